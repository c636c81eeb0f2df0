use super::*;

fn no_vars() -> Vars {
    Vars::default()
}

fn with_env(env: &[(&str, &str)]) -> Vars {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Vars {
        env: env.iter().map(own).collect(),
        ..Vars::default()
    }
}

fn with_set(set: &[(&str, &str)]) -> Vars {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Vars {
        set: set.iter().map(own).collect(),
        ..Vars::default()
    }
}

fn read(text: &str) -> Result<Config, ConfigErrors> {
    parse(Path::new("lrpns.toml"), text, &no_vars())
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// Line, column and message of every problem.
fn problems(result: Result<Config, ConfigErrors>) -> Vec<(usize, usize, String)> {
    let errors = result.expect_err("something wrong was taken");
    let place = |problem: &Problem| match &problem.place {
        Place::Text { line, column, .. } => (*line, *column, problem.message.clone()),
        _ => (0, 0, problem.message.clone()),
    };
    for problem in errors.problems() {
        let whole = !problem.expected.is_empty() && !problem.example.is_empty();
        assert!(whole, "not all is said: {problem:?}");
    }
    errors.problems().iter().map(place).collect()
}

fn assert_problems(text: &str, expected: &[(usize, usize, &str)]) {
    let found = problems(read(text));
    let alike = found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| {
            (found.0, found.1) == (expected.0, expected.1) && found.2.contains(expected.2)
        });
    assert!(alike, "{text}\nexpected {expected:#?}\nfound {found:#?}");
}

/// A whole file whose line 4 is `line`, in `[app]`.
fn app(line: &str) -> String {
    format!("name = \"x\"\n[app]\nrootfs = \"host\"\n{line}\ncommand = [\"sh\"]\n")
}

#[test]
fn the_built_in_example_is_the_original_set_up() {
    let config = builtin(&no_vars(), Demo::Everywhere).unwrap();
    let env = [("PORT", "5000"), ("PROVIDER", "world")];
    let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let expected = Config {
        path: None,
        name: StackName::new("customerA").unwrap(),
        network: Network {
            subnet: Some("172.18.0.0/24".parse().unwrap()),
            ipv6: None,
        },
        sidecar: Sidecar {
            address: Some([172, 18, 0, 33].into()),
            log: TrafficLog::Connections,
            seal: false,
            rules: None,
        },
        record: Record::default(),
        apps: vec![App {
            name: PartName::new("app").unwrap(),
            address: Some([172, 18, 0, 23].into()),
            rootfs: Rootfs::BuiltinWebapp,
            user: None,
            group: None,
            ids: super::IdCount::One,
            workdir: "/".into(),
            command: vec!["/webapp".to_owned()],
            env: env.into_iter().map(own).collect(),
            publish: vec![Publish {
                address: Ipv4Addr::UNSPECIFIED.into(),
                host_port: 5000,
                app_port: 5000,
                count: 1,
                protocol: Protocol::Tcp,
            }],
            wait: true,
            start_timeout: std::time::Duration::from_secs(60),
            listen: vec![],
            via: Via::Auto,
            source: Source::Sidecar,
            egress: vec![],
            connect: vec![],
            allow: crate::config::clients::everybody(),
            rate: None,
            tmpfs: vec![Tmpfs {
                path: "/tmp".into(),
                size: 16 << 20,
            }],
            volumes: vec![],
            sockets: vec![],
            secrets: vec![],
            after: vec![],
            job: false,
            forks: false,
            health: None,
            restart: Restart::OnFailure,
            restart_limit: None,
            stop: Stop::default(),
            replace: None,
            limits: Limits::default(),
            seccomp: crate::confine::seccomp::default(),
        }],
        origins: config.origins.clone(),
    };
    assert_eq!(config, expected);
    assert!(config.origins.values().all(|o| *o == Origin::Builtin));
    assert!(config.origins.contains_key("app.address"));
}

#[test]
fn the_example_file_is_the_built_in_example() {
    let file = parse(Path::new("/tmp/lrpns.toml"), EXAMPLE, &no_vars()).unwrap();
    assert_eq!(file.path.as_deref(), Some(Path::new("/tmp/lrpns.toml")));
    let builtin = builtin(&no_vars(), Demo::Everywhere).unwrap();
    let keys = |config: &Config| config.origins.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&file), keys(&builtin));
    let stripped = Config {
        path: None,
        origins: builtin.origins.clone(),
        ..file
    };
    assert_eq!(stripped, builtin);
}

#[test]
fn the_provider_of_the_example_comes_from_set_then_environment_then_env_file_then_plain_environment()
 {
    let mut vars = with_env(&[("PROVIDER", "plain")]);
    let mut seen = vec![];
    let mut look = |vars: &Vars| {
        let config = builtin(vars, Demo::Everywhere).unwrap();
        seen.push((
            config.apps[0].env["PROVIDER"].clone(),
            config.origins["app.env.PROVIDER"].clone(),
        ));
    };
    look(&vars);
    vars.env_file = Some(("x.env".into(), "PROVIDER=file".into()));
    look(&vars);
    vars.env.insert("LRPNS_PROVIDER".into(), "env".into());
    look(&vars);
    vars.set.push(("PROVIDER".into(), "set".into()));
    look(&vars);
    let environment = |name: &str| Origin::Environment { name: name.into() };
    let file = Origin::File {
        path: "x.env".into(),
        line: 1,
    };
    let flag = Origin::Flag {
        name: "--set PROVIDER".into(),
    };
    let expected = [
        ("plain".to_owned(), environment("PROVIDER")),
        ("file".to_owned(), file),
        ("env".to_owned(), environment("LRPNS_PROVIDER")),
        ("set".to_owned(), flag),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_file_does_not_see_the_plain_environment() {
    let vars = with_env(&[("PROVIDER", "plain")]);
    let config = parse(Path::new("x.toml"), EXAMPLE, &vars).unwrap();
    assert_eq!(config.apps[0].env["PROVIDER"], "world");
}

#[test]
fn an_almost_empty_file_gets_the_documented_defaults() {
    let config = good("name = \"x\"\napp.rootfs = \"builtin:webapp\"\n");
    assert_eq!(config.network.subnet, None);
    assert_eq!(config.sidecar.address, None);
    let app = &config.apps[0];
    assert_eq!((app.name.as_str(), app.address), ("app", None));
    assert_eq!(app.command, ["/webapp"]);
    assert_eq!(app.env.get("PORT").map(String::as_str), Some("5000"));
    assert_eq!(app.env.len(), 1);
    assert_eq!(app.publish, []);
    assert_eq!((app.via, app.restart), (Via::Auto, Restart::OnFailure));
    assert_eq!(app.tmpfs, reader::default_tmpfs());
    assert_eq!(
        config.origins.keys().collect::<Vec<_>>(),
        ["app.rootfs", "name"]
    );
}

#[test]
fn values_that_are_supported_are_taken() {
    let config = good(
        r#"
name = "x"
[app]
rootfs = "dir:root"
command = ["/bin/sh", "-c", "echo $HOME $$x"]
env = {}
publish = ["80:8080", "127.0.0.2:80:80"]
via = "relay"
tmpfs = []
restart = "no"
volumes = []
"#,
    );
    let app = &config.apps[0];
    let here = std::env::current_dir().unwrap();
    assert_eq!(app.rootfs, Rootfs::Dir(here.join("root")));
    assert_eq!(app.command[2], "echo $HOME $x");
    assert!(app.env.is_empty() && app.tmpfs.is_empty());
    assert_eq!(app.publish[0].address, Ipv4Addr::LOCALHOST);
    assert_eq!((app.via, app.restart), (Via::Relay, Restart::No));
}

#[test]
fn several_apps_keep_the_order_of_the_file() {
    let config = good(
        r#"name = "x"
[app.web]
rootfs = "host"
command = ["web"]
publish = ["80:80"]
[app.db]
rootfs = "host"
command = ["db"]
[app.app]
rootfs = "builtin:webapp"
"#,
    );
    let names: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["web", "db", "app"]);
    let origin = Origin::File {
        path: "lrpns.toml".into(),
        line: 5,
    };
    assert_eq!(config.origins["app.web.publish"], origin);
}

#[test]
fn a_relative_root_is_taken_from_the_directory_of_the_file() {
    let text = app("").replace("\"host\"", "\"dir:root\"");
    let config = parse(Path::new("/srv/web/lrpns.toml"), &text, &no_vars()).unwrap();
    assert_eq!(config.apps[0].rootfs, Rootfs::Dir("/srv/web/root".into()));
}

#[test]
fn a_file_in_etc_is_named_after_its_stack() {
    let system = |text: &str| parse(Path::new("/etc/lrpns/web.toml"), text, &no_vars());
    let nameless = app("").replace("name = \"x\"\n", "\n");
    assert_eq!(system(&nameless).unwrap().name.as_str(), "web");
    let named = nameless.replacen('\n', "name = \"web\"\n", 1);
    assert_eq!(system(&named).unwrap().name.as_str(), "web");
    assert_eq!(
        problems(system(&app(""))),
        [(
            1,
            8,
            "the stack `x` in the file of the stack `web`".to_owned()
        )]
    );
    assert_problems(&nameless, &[(1, 1, "the file has no `name`")]);
}

#[test]
fn variables_are_filled_in_everywhere_and_their_origin_is_kept() {
    let text = r#"name = "${STACK}-${N:-1}"
[app]
rootfs = "host"
command = ["sh", "${WORD}"]
publish = ["${PORT}:80"]
via = "${VIA:-auto}"
[vars]
PORT = "${P:-8080}"
WORD = "from the file"
"#;
    let mut vars = with_set(&[("STACK", "web")]);
    vars.env.insert("LRPNS_P".into(), "81".into());
    let config = parse(Path::new("x.toml"), text, &vars).unwrap();
    assert_eq!(config.name.as_str(), "web-1");
    assert_eq!(config.apps[0].publish[0].host_port, 81);
    assert_eq!(config.apps[0].command[1], "from the file");
    let flag = Origin::Flag {
        name: "--set STACK".into(),
    };
    assert_eq!(config.origins["name"], flag);
    let environment = Origin::Environment {
        name: "LRPNS_P".into(),
    };
    assert_eq!(config.origins["app.publish"], environment);
    let via = Origin::File {
        path: "x.toml".into(),
        line: 6,
    };
    assert_eq!(config.origins["app.via"], via);
}

#[test]
fn values_of_vars_can_not_use_each_other() {
    let text = app("") + "[vars]\nA = \"${B}\"\nB = \"x${B:-y}\"\n";
    assert_problems(&text, &[(7, 6, "the variable `B` is not set")]);
}

#[test]
fn a_variable_without_value_is_an_error_at_its_place() {
    let text = app("env = { A = \"ä ${PROVIDR}\", B = \"\\t${X}\" }\nvia = \"${\"")
        + "[vars]\nPROVIDER = \"x\"\n";
    assert_problems(
        &text,
        &[
            (
                4,
                16,
                "`PROVIDR` is not set; the nearest name that is set is `PROVIDER`",
            ),
            (4, 33, "`X` is not set"),
            (5, 8, "`${` without its `}`"),
        ],
    );
}

#[test]
fn an_unset_variable_is_never_empty() {
    let with = |vars: &Vars| parse(Path::new("x.toml"), &app("env.A = \"${A}\""), vars);
    assert_eq!(problems(with(&no_vars())).len(), 1);
    assert_eq!(with(&with_set(&[("A", "")])).unwrap().apps[0].env["A"], "");
}

#[test]
fn a_table_of_another_tool_in_app_is_a_mistaken_key_and_not_an_app() {
    assert_problems(
        &app("environment = { A = \"b\", C = \"d\" }"),
        &[(
            4,
            1,
            "unknown key `environment` in `[app]`: lrpns calls it `env`",
        )],
    );
    // The same under a head of its own, and without any right key beside it.
    assert_problems(
        &(app("") + "[app.environment]\nA = \"b\"\n"),
        &[(6, 6, "unknown key `environment`")],
    );
    assert_problems(
        "name = \"x\"\n[app]\nenvironment = { A = \"b\" }\n",
        &[
            (2, 2, "`[app]` has no `rootfs`"),
            (3, 1, "unknown key `environment`"),
        ],
    );
    // A table that has an app's keys is an app, whatever it is called.
    let config = good("name = \"x\"\n[app.image]\nrootfs = \"builtin:webapp\"\n");
    assert_eq!(config.apps[0].name.as_str(), "image");
    assert_problems(
        &(app("") + "[app.web]\n"),
        &[(6, 6, "unknown key `web` in `[app]`")],
    );
}

#[test]
fn a_file_of_another_tool_is_named_as_that() {
    for (text, words) in [
        ("services:\n  web:\n    image: x\n", "docker compose"),
        ("[Service]\nExecStart=/bin/x\n", "a unit of systemd"),
    ] {
        let errors = read(text).unwrap_err();
        let said = &errors.problems()[0].expected;
        assert!(said.contains(words), "{errors}");
    }
    assert_problems(
        "name = \"x\"\n[services.web]\nimage = \"x\"\n",
        &[
            (1, 1, "the file has no `app`"),
            (2, 2, "unknown key `services` in the file"),
        ],
    );
}

#[test]
fn a_set_that_nothing_uses_is_an_error() {
    let vars = with_set(&[("PROVIDR", "x"), ("PROVIDER", "y")]);
    let errors = builtin(&vars, Demo::Everywhere).unwrap_err();
    assert_eq!(errors.problems().len(), 1);
    let text = errors.to_string();
    for words in [
        "--set PROVIDR: no string",
        "<built-in example>",
        "`PROVIDER`",
    ] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_bad_env_file_and_a_bad_file_are_reported_together() {
    let vars = Vars {
        set: vec![("NOBODY".into(), "x".into())],
        env_file: Some(("x.env".into(), "A b\n".into())),
        ..Vars::default()
    };
    let errors = parse(Path::new("x.toml"), "nme = \"x\"", &vars).unwrap_err();
    let text = errors.to_string();
    let places = ["--set NOBODY:", "x.env:1:1", "x.toml:1:1"].map(|place| text.find(place));
    assert!(places.iter().all(Option::is_some), "{text}");
    assert_eq!(errors.problems().len(), 5, "{text}");
}

#[test]
fn every_problem_of_one_key_has_its_line_column_and_words() {
    // The line that stands in `[app]` as line 4, the column, a part of the message.
    let cases: &[(&str, usize, &str)] = &[
        (
            "pubish = []",
            1,
            "unknown key `pubish` in `[app]`: the nearest known key is `publish`",
        ),
        ("  \"ä b\" = 1", 3, "unknown key `ä b` in `[app]`"),
        (
            "subnet = \"10.0.0.0/8\"",
            1,
            "unknown key `subnet` in `[app]`: it belongs to `[network]`",
        ),
        ("a\\u0007 = 1", 2, "not TOML"),
        ("\"\\u001b[2J\" = 1", 1, "unknown key `\\u{1b}[2J`"),
        ("via = 1", 7, "`app.via` is an integer, not a string"),
        (
            "via = \"rely\"",
            7,
            "`rely` is unknown, the nearest is `relay`",
        ),
        ("via = \"sockets\"", 7, "the nearest is `socket`"),
        ("source = \"clinet\"", 10, "the nearest is `client`"),
        (
            "restart = false",
            11,
            "`app.restart` is a boolean, not a string",
        ),
        (
            "restart = \"never\"",
            11,
            "`never` is what others call it; here it is `no`",
        ),
        (
            "address = \"10.0.0.256\"",
            11,
            "`10.0.0.256` is no IPv4 address",
        ),
        ("address = \"fd00::1\"", 11, "no IPv4 address"),
        (
            "address = \"10.0.0.2\"",
            11,
            "the address 10.0.0.2 needs a subnet",
        ),
        (
            "address = \"a\\u0000\"",
            11,
            "`app.address` has a NUL character",
        ),
        (
            "publish = \"80:80\"",
            11,
            "`app.publish` is a string, not a list of strings",
        ),
        (
            "publish = [80]",
            12,
            "`app.publish` is an integer, not a string",
        ),
        (
            "publish = [\"80:80\", \"0:80\"]",
            21,
            "port 0 does not exist",
        ),
        (
            "publish = [\"80:80\", \"0.0.0.0:80:81\"]",
            21,
            "0.0.0.0:80 is published already, by 127.0.0.1:80 on line 4",
        ),
        (
            "publish = [\"[::1]:80:80\"]",
            12,
            "[::1] is an IPv6 address, and the stack's IPv6 is off",
        ),
        (
            "publish = [\"80:80/udp\", \"80:80/tcp\", \"70-90:1070-1090/udp\"]",
            38,
            "127.0.0.1:70 is published already, by 127.0.0.1:80 on line 4",
        ),
        (
            "publish = [\"1-4096:1-4096\", \"5000:5000\"]",
            29,
            "4097 ports are published",
        ),
        ("publish = [\"8000-8010:8000\"]", 12, "not the same length"),
        (
            "egress = [\"tcp 192.0.2.10/24:5432\"]",
            11,
            "an address within the range `192.0.2.0/24`",
        ),
        ("egress = [\"tcp 127.0.0.1:80\"]", 11, "it is reserved"),
        ("egress = [\"udp 224.0.0.251:5353\"]", 11, "it is reserved"),
        (
            "egress = [\"tcp 169.254.0.0/16:80\"]",
            11,
            "each address of 169.254.0.0/16 must be listed by itself",
        ),
        (
            "egress = [\"tcp 192.0.2.10:90-80\"]",
            11,
            "ends before it begins",
        ),
        ("egress = [\"tcp 192.0.2.10\"]", 11, "no destination"),
        ("egress = [\"sctp 192.0.2.10:1\"]", 11, "`sctp` is unknown"),
        (
            "egress = [\"tcp example.org:1\"]",
            11,
            "`example.org` is no address",
        ),
        (
            "egress = [\"tcp [2001:db8::1]:1\"]",
            11,
            "`tcp [2001:db8::1]:1` is IPv6, and the stack's IPv6 is off",
        ),
        (
            "egress = [\"tcp 2001:db8::1:80\"]",
            11,
            "needs brackets before its port: `[2001:db8::1]:80`",
        ),
        (
            "egress = [\"tcp [2001:db8::1/64]:80\"]",
            11,
            "an address within the range `2001:db8::/64`",
        ),
        (
            "egress = [\"tcp [2001:db8::1]/64:80\"]",
            11,
            "is no address",
        ),
        ("egress = [\"tcp [::1]:80\"]", 11, "within ::/96"),
        (
            "egress = [\"udp [ff02::fb]:5353\"]",
            11,
            "no app can reach `ff02::fb/128`: it is within ff00::/8, it is for multicast",
        ),
        (
            "egress = [\"tcp [fe80::a9fe:a9fe]:80\"]",
            11,
            "it is for link-local addresses",
        ),
        (
            "egress = [\"tcp [fd6c:7270:6e73::1]:80\"]",
            11,
            "lrpns takes its uplinks from it",
        ),
        (
            "egress = [\"tcp [::ffff:10.0.0.0/104]:80\"]",
            11,
            "is IPv4 written as IPv6: write `10.0.0.0/8`",
        ),
        ("allow = []", 1, "nobody could connect"),
        (
            "allow = [\"::ffff:10.0.0.0/104\"]",
            10,
            "is IPv4 written as IPv6: write `10.0.0.0/8`",
        ),
        (
            "allow = [\"10.0.0.1/8\"]",
            10,
            "an address within the range `10.0.0.0/8`",
        ),
        ("allow = [\"all\"]", 10, "`all` is no range of addresses"),
        ("rate = \"2000000/second\"", 8, "from 1 to 1000000"),
        ("rate = \"200/secnd\"", 8, "the nearest is `second`"),
        ("rate = \"many\"", 8, "`many` is no rate"),
        ("rate = \"0/second\"", 8, "from 1 to 1000000"),
        ("tmpfs = [\"/tmp\"]", 10, "`/tmp` has no size"),
        (
            "tmpfs = [\"/proc/x:1M\"]",
            10,
            "`/proc/x` can't be writable",
        ),
        ("tmpfs = [\"tmp:1M\"]", 10, "`tmp` is not an absolute path"),
        ("tmpfs = [\"/a/../b:1M\"]", 10, "`/a/../b` has a `..`"),
        ("tmpfs = [\"/tmp:0\"]", 10, "the size 0 would mean no limit"),
        (
            "tmpfs = [\"/a:1M\", \"/a/:2M\"]",
            19,
            "two tmpfs are to be at `/a`",
        ),
        (
            "volumes = [\"/srv:/tmp\"]",
            12,
            "a volume and a tmpfs are both to be at `/tmp`",
        ),
        (
            "volumes = [\"/srv:/a\", \"/opt:/a\"]",
            23,
            "two volumes are to be at `/a`",
        ),
        (
            "volumes = [\"/srv:/usr\"]",
            12,
            "nothing can be mounted at `/usr`",
        ),
        ("wait = \"no\"", 8, "`app.wait` is a string"),
        ("start_timeout = \"5\"", 17, "`5` is no time"),
        (
            "start_timeout = \"0s\"",
            17,
            "`0s` is not between 1ms and 60m",
        ),
        ("start_timeout = 60", 17, "is an integer, not a string"),
        ("volumes = [\"/srv:/data:rx\"]", 12, "`rx` is unknown"),
        ("volumes = [\"/srv\"]", 12, "`/srv` is no volume"),
        (
            "health = { http = \"/\", interval = \"5s\" }",
            1,
            "`health` needs a port: the app publishes none by TCP",
        ),
        (
            "health = { tcp = true }",
            1,
            "`health` needs a port: the app publishes none by TCP",
        ),
        (
            "health = { htp = \"/\", tcp = true }\nlisten = [80]",
            12,
            "unknown key `htp` in `[app.health]`: the nearest known key is `http`",
        ),
        (
            "health = {}",
            1,
            "`health` needs either `http`, `tcp` or `command`",
        ),
        (
            "health = { tcp = true, port = 80 }",
            31,
            "the app may not listen on port 80",
        ),
        ("health = { command = [] }", 1, "the command is empty"),
        (
            "health = { command = [\"true\"], retries = 0 }",
            42,
            "`app.health.retries` is out of range",
        ),
        (
            "health = { command = [\"true\"], on_unhealthy = \"reboot\" }",
            47,
            "`reboot` is unknown",
        ),
        (
            "health = { tcp = 1 }\nlisten = [80]",
            18,
            "`app.health.tcp` is an integer",
        ),
        (
            "health = { http = \"x\" }\nlisten = [80]",
            19,
            "`x` is no path of an URL",
        ),
        (
            "health = { tcp = true, interval = \"5\" }\nlisten = [80]",
            35,
            "`5` is no time",
        ),
        (
            "limits = { memory = \"256M\", pids = 0 }",
            36,
            "`app.limits.pids` is out of range",
        ),
        (
            "limits = { pids = 1 }",
            19,
            "`app.limits.pids` is out of range",
        ),
        (
            "limits = { memory = \"256\" }",
            21,
            "`256` is less than the 4M",
        ),
        (
            "limits = { cpu = 0.001 }",
            18,
            "`app.limits.cpu` is out of range",
        ),
        (
            "limits = { memory = 256 }",
            21,
            "`app.limits.memory` is an integer",
        ),
        ("limits = { cpu = -1.0 }", 18, "out of range"),
        ("limits = { cpu = nan }", 18, "out of range"),
        (
            "limits = { pids = 1.5 }",
            19,
            "`app.limits.pids` is a float",
        ),
        ("limits = []", 10, "`app.limits` is an array, not a table"),
        ("env = []", 7, "`app.env` is an array, not a table"),
        (
            "env = { PORT = 5000 }",
            16,
            "`app.env.PORT` is an integer, not a string",
        ),
        (
            "env = { \"A B\" = \"x\" }",
            9,
            "`A B` is no name of a variable",
        ),
        ("env.A = \"\\u0000\"", 9, "NUL"),
        ("rootfs = \"host\"", 1, "not TOML: duplicate key"),
        ("via = \"auto", 12, "not TOML"),
        ("via =", 6, "not TOML"),
        ("via = 2026-01-01", 7, "`app.via` is a date"),
    ];
    for (line, column, words) in cases {
        assert_problems(&app(line), &[(4, *column, words)]);
    }
}

#[test]
fn every_problem_of_a_whole_file_has_its_line_column_and_words() {
    let app = "[app]\nrootfs = \"host\"\ncommand = [\"sh\"]\n";
    type Expected<'t> = &'t [(usize, usize, &'t str)];
    let cases: &[(&str, Expected<'_>)] = &[
        (
            "",
            &[
                (1, 1, "the file has no `name`"),
                (1, 1, "the file has no `app`"),
            ],
        ),
        (
            "name = \"x\"\napp = 1",
            &[(2, 7, "`app` is an integer, not a table")],
        ),
        (
            "name = \"x\"\n[[app]]",
            &[(2, 1, "`app` is an array, not a table")],
        ),
        ("name = \"x\"\n[app]", &[(2, 2, "`[app]` has no `rootfs`")]),
        (
            "name = \"x\"\n[app]\nrootfs = \"host\"",
            &[(2, 2, "`[app]` has no `command`")],
        ),
        (
            "name = \"x y\"\n[app]\nrootfs = \"builtin:webapp\"",
            &[(1, 8, "`x y` has the character ' '")],
        ),
        (
            "name = \"\"\n[app]\nrootfs = \"builtin:webapp\"",
            &[(1, 8, "a name can't be empty")],
        ),
        (
            "name = \"x\"\n[app]\nrootfs = \"builtin:webap\"\ncommand = []",
            &[
                (3, 10, "nothing built in is called `webap`"),
                (4, 1, "the command is empty"),
            ],
        ),
        (
            "name = \"x\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"sh\"]",
            &[(4, 12, "no other program than `/webapp`")],
        ),
        (
            "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = \"sh\"",
            &[(4, 11, "not a list of strings")],
        ),
        (
            "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"./sh\"]",
            &[(4, 12, "neither absolute nor a bare name")],
        ),
        (
            "name = \"x\"\n[app]\nrootfs = \"oci:x\"",
            &[(3, 10, "not supported yet: app.rootfs = `oci:x`")],
        ),
        (
            "name = \"x\"\n[app]\nrootfs = \"dri:x\"",
            &[(3, 10, "`dri` is unknown, the nearest is `dir`")],
        ),
        (
            "name = \"x\"\n[app]\nvia = \"auto\"\n[app.web]\nrootfs = \"builtin:webapp\"",
            &[(
                3,
                1,
                "`via` is a key of `[app]`, which can't stand beside `[app.NAME]` (here `[app.web]`)",
            )],
        ),
        (
            "name = \"x\"\n[app.relay]\nrootfs = \"builtin:webapp\"\n[app.\"a b\"]\nrootfs = \"builtin:webapp\"",
            &[
                (2, 6, "`relay` is reserved"),
                (4, 6, "`a b` has the character"),
            ],
        ),
        (
            "name = \"x\"\n[app.web]\nrootfs = \"builtin:webapp\"\npublish = [\"1:1\"]\n[app.b]\nrootfs = \"builtin:webapp\"\npublish = [\"0.0.0.0:1:1\"]\nrate = \"1/secund\"",
            &[
                (7, 12, "published already, by 127.0.0.1:1 on line 4"),
                (8, 8, "the nearest is `second`"),
            ],
        ),
        (
            &format!(
                "name = \"x\"\n[netwrk]\n[network]\nsubnet = \"10.0.0.1/24\"\nipv6 = \"on\"\n{app}address = \"10.0.1.1\""
            ),
            &[
                (
                    2,
                    2,
                    "unknown key `netwrk` in the file: the nearest known key is `network`",
                ),
                (
                    4,
                    10,
                    "`10.0.0.1/24` is an address within the subnet `10.0.0.0/24`",
                ),
                (5, 8, "`on` is neither `off` nor an IPv6 prefix"),
            ],
        ),
        (
            &format!(
                "name = \"x\"\n[network]\nsubnet = \"10.0.0.0/31\"\nipv6 = \"fd00::/64\"\n{app}"
            ),
            &[(3, 10, "the prefix length 31 is not between 8 and 30")],
        ),
        (
            &format!("name = \"x\"\nnetwork.subnet = \"10.0.0.0\"\n{app}"),
            &[(2, 18, "`10.0.0.0` has no prefix length")],
        ),
        (
            &format!("name = \"x\"\nnetwork.subnet = \"127.1.0.0/16\"\n{app}"),
            &[(2, 18, "reserved")],
        ),
        (
            &format!(
                "name = \"x\"\n[network]\nsubnet = \"10.0.0.0/29\"\n[sidecar]\naddress = \"10.0.0.0\"\n{app}address = \"10.0.0.7\""
            ),
            &[
                (5, 11, "10.0.0.0 is the subnet's own address"),
                (9, 11, "10.0.0.7 is the subnet's broadcast address"),
            ],
        ),
        (
            &format!(
                "name = \"x\"\n[network]\nsubnet = \"10.0.0.0/29\"\n[sidecar]\naddress = \"10.0.0.3\"\n{app}address = \"10.0.0.3\""
            ),
            &[(9, 11, "10.0.0.3 is also the address of the sidecar")],
        ),
        (
            &format!(
                "name = \"x\"\n[network]\nsubnet = \"10.0.0.0/29\"\n{app}address = \"10.0.0.1\""
            ),
            &[(7, 11, "which is the sidecar's when it has no other")],
        ),
        (
            &format!(
                "name = \"x\"\n[network]\nsubnet = \"10.0.0.0/29\"\n{app}address = \"10.0.0.8\""
            ),
            &[(7, 11, "10.0.0.8 is not in the subnet 10.0.0.0/29")],
        ),
        (
            "name = \"x\"\nnetwork.subnet = \"10.0.0.0/30\"\n[app.a]\nrootfs = \"builtin:webapp\"\n[app.b]\nrootfs = \"builtin:webapp\"",
            &[(2, 18, "has 2 addresses, the sidecar and 2 apps need 3")],
        ),
        (
            &format!(
                "name = \"x\"\n[sidecar]\nlog = \"conections\"\nseal = 1\nrules = \"\"\nrate = \"off\"\n{app}"
            ),
            &[
                (3, 7, "the nearest is `connections`"),
                (4, 8, "`sidecar.seal` is an integer, not true or false"),
                (5, 9, "a path can't be empty"),
                (6, 1, "it belongs to `[app]`"),
            ],
        ),
        (
            &format!("name = \"x\"\n{app}[vars]\nA-B = \"x\"\nC = 1\n"),
            &[
                (6, 1, "`A-B` is no variable's name"),
                (7, 5, "`vars.C` is an integer, not a string"),
            ],
        ),
        (
            "name = = 1\n[app\n",
            &[
                (1, 8, "not TOML: extra `=`"),
                (2, 5, "not TOML: unclosed table"),
            ],
        ),
    ];
    for (text, expected) in cases {
        assert_problems(text, expected);
    }
}

#[test]
fn a_problem_is_shown_with_its_place_what_was_expected_and_an_example() {
    let errors = read(&app("pubish = [\"80:80\"]")).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "\
error: unknown key `pubish` in `[app]`: the nearest known key is `publish`
 --> lrpns.toml:4:1
  |
4 | pubish = [\"80:80\"]
  | ^^^^^^
  |
  = expected: one of address, rootfs, command, user, group, ids, workdir, env, publish, wait, start_timeout, listen, via, source, egress, connect, after, job, forks, allow, rate, tmpfs, volumes, sockets, secrets, health, restart, stop_signal, stop_timeout, replace, limits, seccomp
  = example: publish = [\"0.0.0.0:5000:5000/tcp\"]"
    );
    assert_eq!(errors.render(false), errors.to_string());
    assert!(errors.render(true).contains("\u{1b}["));
}

#[test]
fn every_problem_shown_has_the_line_and_column_it_knows() {
    for text in [
        "",
        "\n",
        "name = \"ä\"\n\tx = 1\n\n   [äpp]\n",
        "\u{feff}name = 1\r\nx = \"ä\" # \u{1b}[2J\r\n",
        "name = \"\"\"\na\nb\"\"\"\nx=[\n",
    ] {
        let errors = read(text).unwrap_err();
        let shown = errors.to_string();
        for problem in errors.problems() {
            let Place::Text { line, column, .. } = problem.place else {
                panic!("{problem:?}")
            };
            let place = format!("--> lrpns.toml:{line}:{column}\n");
            assert!(shown.contains(&place), "{place} is not in\n{shown}");
            assert!(!problem.expected.is_empty(), "{problem:?}");
        }
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }
}

#[test]
fn every_key_of_the_contract_is_known() {
    // The contract's own example.
    let text = r#"
name = "customerA"

[network]
subnet = "172.18.0.0/24"
ipv6 = "off"

[sidecar]
address = "172.18.0.33"
log = "connections"
seal = false
rules = "extra.nft"

[app]
address = "172.18.0.23"
rootfs = "builtin:webapp"
command = ["/webapp"]
env = { PROVIDER = "world", PORT = "5000" }
publish = ["0.0.0.0:5000:5000/tcp"]
via = "auto"
source = "sidecar"
egress = []
allow = ["0.0.0.0/0", "::/0"]
rate = "off"
tmpfs = ["/tmp:16M"]
volumes = ["/srv/data:/data:ro"]
health = { http = "/", interval = "5s" }
restart = "on-failure"
limits = { memory = "256M", pids = 64, cpu = 1.0 }

[vars]
"#;
    assert_problems(
        text,
        &[
            // The file that `rules` names is looked for and isn't there.
            (0, 0, "read the file: No such file"),
        ],
    );
}

#[test]
fn clients_come_to_a_loopback_of_ipv4_by_a_link() {
    let file = |more: &str| {
        format!(
            "name = \"x\"\n[network]\nipv6 = \"fd00:18::/64\"\n{}",
            &app(more)[11..]
        )
    };
    let six =
        file("source = \"localhost\"\npublish = [\"80:80\", \"[::]:81:80\"]\nvia = \"relay\"");
    assert_problems(&six, &[(7, 21, "takes clients to 127.0.0.1")]);
    let handed = file("source = \"localhost\"\npublish = [\"80:80\"]\nvia = \"socket\"");
    assert_problems(&handed, &[(6, 1, "it has no link from which")]);
    let config = read(&file("source = \"localhost\"\npublish = [\"80:80\"]")).unwrap();
    assert_eq!(config.apps[0].source, Source::Localhost);
}

#[test]
fn an_order_names_apps_of_the_file_that_can_get_as_far_and_has_no_circle() {
    let file = |web: &str, db: &str| {
        let app = "rootfs = \"host\"\ncommand = [\"sh\"]\n";
        format!("name = \"x\"\n[app.web]\n{app}{web}\n[app.db]\n{app}{db}\n")
    };
    let cases = [
        (
            "after = [\"dbs\"]",
            "",
            (
                5,
                10,
                "there is no app `dbs` in this file, the nearest is `db`",
            ),
        ),
        ("after = [\"web\"]", "", (5, 10, "`web` is this app itself")),
        ("after = { db = \"up\" }", "", (5, 16, "`up` is unknown")),
        (
            "after = { db = \"service_healthy\" }",
            "",
            (5, 16, "docker compose calls it; here it is `healthy`"),
        ),
        (
            "after = { db = \"done\" }",
            "",
            (5, 11, "`db` is never done: it is no job"),
        ),
        (
            "after = { db = \"healthy\" }",
            "",
            (5, 11, "`db` is never known to be healthy"),
        ),
        ("after = \"db\"", "", (5, 9, "`app.web.after` is a string")),
        (
            "after = [\"db\"]",
            "after = [\"web\"]",
            (5, 10, "`web` comes after `db` comes after `web`"),
        ),
        (
            "job = true\npublish = [\"80:80\"]",
            "",
            (6, 1, "a job publishes nothing"),
        ),
        (
            "job = true\nrestart = \"always\"",
            "",
            (6, 11, "always started again has no end"),
        ),
    ];
    for (web, db, problem) in cases {
        assert_problems(&file(web, db), &[problem]);
    }
    let config = good(&file("after = { db = \"done\" }", "job = true"));
    let minutes = |app: &App| app.start_timeout.as_secs() / 60;
    let [web, db] = config.apps.as_slice() else {
        panic!("{config:?}")
    };
    assert_eq!(web.after[0].to_string(), "db (done)");
    assert_eq!((minutes(web), minutes(db)), (1, 60));
    assert_eq!((web.restart, db.restart), (Restart::OnFailure, Restart::No));
}

#[test]
fn the_example_file_shows_every_key() {
    let all = [
        keys::ROOT_KEYS,
        keys::NETWORK_KEYS,
        keys::SIDECAR_KEYS,
        keys::APP_KEYS,
        keys::HEALTH_KEYS,
        keys::RESTART_KEYS,
        keys::LIMITS_KEYS,
    ];
    for key in all.into_iter().flatten() {
        let shown = EXAMPLE.contains(&format!("{} = ", key.name))
            || EXAMPLE.contains(&format!("[{}]", key.name));
        assert!(shown, "{} is not shown", key.name);
    }
    // What is commented out is right but for being early: it is refused as such and as nothing else.
    for line in EXAMPLE
        .lines()
        .filter(|line| line.starts_with("# ") && line.contains(" = "))
    {
        let own = line.trim_start_matches("# ");
        let text = EXAMPLE.replace(line, own);
        match read(&text) {
            Ok(_) => assert!(
                [
                    "PROVIDER",
                    "dir",
                    "volumes",
                    "sockets",
                    "secrets",
                    "limits",
                    "health",
                    "wait",
                    "start_timeout",
                    "stop_",
                    "replace",
                    "user",
                    "group",
                    "ids",
                    "workdir"
                ]
                .iter()
                .any(|key| own.starts_with(key)),
                "{own}"
            ),
            Err(errors) => {
                assert_eq!(errors.problems().len(), 1, "{errors}");
                let said = errors.to_string();
                let missing = own.starts_with("rules") && said.contains("extra.nft: read the file");
                assert!(missing || said.contains("not supported yet"), "{said}");
            }
        }
    }
}

#[test]
fn a_mangled_example_never_panics() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let mut refused = 0;
    let mut attempt = |line: usize, instead: &str| {
        let mut mangled = lines.clone();
        mangled[line] = instead;
        let text = mangled.join("\n");
        if let Err(errors) = read(&text) {
            refused += 1;
            assert!(!errors.to_string().is_empty());
        }
    };
    for (i, line) in lines.iter().enumerate() {
        if line.starts_with('#') {
            continue;
        }
        attempt(i, "");
        let code = line.split(" # ").next().unwrap_or_default().trim_end();
        for at in 0..code.len() {
            attempt(i, &code[..at]);
            attempt(i, &code[at..]);
            for bad in ["\"", "[", "}", "ä", "${", "\u{0}", "\n", "0", "'''"] {
                attempt(i, &format!("{}{bad}{}", &code[..at], &code[at + 1..]));
            }
        }
    }
    assert!(refused > 1000, "only {refused} were refused");
}

#[test]
fn a_file_is_read_from_disk_or_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lrpns.toml");
    let absent = load(&path, &no_vars()).unwrap_err().to_string();
    assert!(
        absent.contains("lrpns.toml: read the file: No such file"),
        "{absent}"
    );
    std::fs::write(&path, EXAMPLE).unwrap();
    let config = load(&path, &no_vars()).unwrap();
    assert_eq!(config.path, Some(path.clone()));
    std::fs::write(&path, b"name = \"x\"\n# \xc3\xa4 \xff\n").unwrap();
    let found = problems(load(&path, &no_vars()));
    assert_eq!(found, [(2, 5, "the file is not UTF-8".to_owned())]);
    std::fs::write(&path, vec![b'#'; (LARGEST + 1) as usize]).unwrap();
    let large = load(&path, &no_vars()).unwrap_err().to_string();
    assert!(large.contains("more than 1048576 bytes"), "{large}");
    let directory = load(dir.path(), &no_vars()).unwrap_err().to_string();
    assert!(directory.contains("is a directory"), "{directory}");
}

/// A test that waits for ever is one that has failed.
#[test]
fn what_is_no_file_is_refused_at_once_wherever_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    std::os::unix::fs::symlink("pipe", at("link")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("device")).unwrap();
    // With a hole: it takes no place, and would take long to read.
    let large = std::fs::File::create(at("large")).unwrap();
    large.set_len(8 << 30).unwrap();
    for (name, why) in [
        ("pipe", "it is a pipe, no file"),
        ("link", "it is a pipe, no file"),
        ("socket", "it is a socket, no file"),
        ("device", "it is a device, no file"),
        (".", "is a directory"),
        ("large", "the file has more than 1048576 bytes"),
    ] {
        let path = at(name);
        let said = load(&path, &no_vars()).unwrap_err().to_string();
        assert!(said.contains(why), "as configuration: {said}");
        let said = Vars::from_process(&[], Some(&path))
            .unwrap_err()
            .to_string();
        assert!(said.contains(why), "as variables: {said}");
        let rules = EXAMPLE.replacen("[sidecar]", &format!("[sidecar]\nrules = {path:?}"), 1);
        let said = read(&rules).unwrap_err().to_string();
        let why_no_rules = why.replace("1048576", "4194304");
        assert!(said.contains(&why_no_rules), "as rules: {said}");
        let seccomp = EXAMPLE.replacen("[app]", &format!("[app]\nseccomp = {path:?}"), 1);
        let said = read(&seccomp).unwrap_err().to_string();
        assert!(said.contains(why), "as a seccomp profile: {said}");
    }
}

fn options() -> RunOptions {
    let own = |text: &str| text.to_owned();
    RunOptions {
        name: own("run-1"),
        publish: vec![own("8000:80")],
        rootfs: own("host"),
        env: vec![own("A=b=c")],
        command: vec![own("sh"), own("-c"), own("true")],
        ..RunOptions::default()
    }
}

#[test]
fn run_takes_volumes_and_limits_as_docker_and_podman_do() {
    let flags = RunOptions {
        volumes: vec!["data:/data:rw".into(), "/srv:/tmp/srv".into()],
        memory: Some("256m".into()),
        cpus: Some("1.5".into()),
        pids: Some("64".into()),
        ..options()
    };
    let app = run(&flags, Path::new("/base")).unwrap().apps.remove(0);
    assert_eq!(app.volumes[0].host, Path::new("/base/data"));
    assert!(app.volumes[0].writable && !app.volumes[1].writable);
    assert_eq!(app.limits.memory, Some(256 << 20));
    assert_eq!(app.limits.pids, Some(64));
    assert_eq!(app.limits.cpu, Processors::new(1.5));
    let bad = RunOptions {
        volumes: vec!["/srv".into(), "/srv:/tmp".into()],
        memory: Some("much".into()),
        cpus: Some("0".into()),
        pids: Some("1".into()),
        ..options()
    };
    assert_eq!(problems(run(&bad, Path::new("/base"))).len(), 5);
}

#[test]
fn run_makes_a_stack_of_its_flags() {
    let config = run(&options(), Path::new("/base")).unwrap();
    assert_eq!((config.name.as_str(), &config.path), ("run-1", &None));
    let app = &config.apps[0];
    assert_eq!(app.rootfs, Rootfs::Host);
    assert_eq!(app.command, ["sh", "-c", "true"]);
    assert_eq!(app.env["A"], "b=c");
    assert_eq!(app.env.len(), 1);
    assert_eq!((app.via, app.restart), (Via::Auto, Restart::No));
    assert_eq!(app.tmpfs, reader::default_tmpfs());
    let flag = Origin::Flag {
        name: "--publish".into(),
    };
    assert_eq!(config.origins["app.publish"], flag);
    assert_eq!(config.network.ipv6, None, "nobody asked for it");
    let six = RunOptions {
        publish: vec!["[::1]:80:8080".into(), "[::]:81-82:81-82/udp".into()],
        ..options()
    };
    let config = run(&six, Path::new("/base")).unwrap();
    let prefix = config.network.ipv6.unwrap();
    // As good as one of a file's.
    assert_eq!(values::ipv6(&prefix.to_string()).unwrap(), Some(prefix));
    assert!(matches!(
        config.origins["network.ipv6"],
        Origin::Chosen { .. }
    ));
    let webapp = RunOptions {
        rootfs: "builtin:webapp".into(),
        command: vec![],
        ..options()
    };
    let app = run(&webapp, Path::new("/base")).unwrap().apps.remove(0);
    assert_eq!(app.command, ["/webapp"]);
    assert_eq!(app.env["PORT"], "5000");
}

#[test]
fn run_names_every_flag_that_is_wrong() {
    let own = |text: &str| text.to_owned();
    let bad = RunOptions {
        name: own("a/b"),
        publish: vec![
            own("0:80"),
            own("[::1]:0:1"),
            own("80:1"),
            own("0.0.0.0:80:2"),
        ],
        rootfs: own("hots"),
        env: vec![own("A")],
        tmpfs: vec![own("/tmp")],
        via: Some(own("relais")),
        command: vec![own("./x")],
        ..RunOptions::default()
    };
    let errors = run(&bad, Path::new("/base")).unwrap_err();
    let text = errors.to_string();
    for words in [
        "--name: `a/b` has the character",
        "--publish: port 0",
        "--publish: port 0",
        "--publish: 0.0.0.0:80 is published already, by 127.0.0.1:80",
        "--rootfs: `hots` is unknown, the nearest is `host`",
        "--env: `A` has no `=`",
        "--tmpfs: `/tmp` has no size",
        "--via: `relais` is unknown, the nearest is `relay`",
        "COMMAND: `./x` is neither",
        "example: 0.0.0.0:5000:5000/tcp",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
    assert_eq!(errors.problems().len(), 9, "{text}");
    let said = |problem: &Problem| !problem.expected.is_empty() && !problem.example.is_empty();
    assert!(errors.problems().iter().all(said), "{text}");
    let empty = RunOptions {
        command: vec![],
        ..options()
    };
    let text = run(&empty, Path::new("/base")).unwrap_err().to_string();
    assert!(text.contains("COMMAND: the command is missing"), "{text}");
}

#[test]
fn the_flags_of_the_process_are_checked_together() {
    let set = ["A=b".to_owned(), "=".to_owned(), "C".to_owned()];
    let errors = Vars::from_process(&set, Some(Path::new("/nonexistent/x.env"))).unwrap_err();
    let text = errors.to_string();
    assert_eq!(errors.problems().len(), 3, "{text}");
    for words in [
        "--set: `` is no variable's name",
        "--set: `C` has no `=`",
        "x.env: read the file: No such file",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let vars = Vars::from_process(&set[..1], None).unwrap();
    assert_eq!(vars.set, [("A".to_owned(), "b".to_owned())]);
    assert_eq!(vars.env.get("PATH"), std::env::var("PATH").ok().as_ref());
}

#[test]
fn a_line_of_thousands_of_mistakes_costs_little_and_shows_the_first_of_them() {
    let bad: Vec<String> = (0..30_000).map(|i| format!("\"bad{i}\"")).collect();
    let text = format!(
        "name = \"a\"\n[app]\nrootfs = \"host\"\ncommand = [\"x\"]\npublish = [{}]\n",
        bad.join(", ")
    );
    let errors = parse(Path::new("x.toml"), &text, &Vars::default()).unwrap_err();
    assert_eq!(errors.problems().len(), 30_000);
    let kept: usize = errors
        .problems()
        .iter()
        .map(|problem| match &problem.place {
            Place::Text { text, span, .. } => {
                // What is marked is what is meant, wherever the line is cut.
                assert!(text[span.clone()].starts_with("\"bad"), "{text} {span:?}");
                text.len()
            }
            place => panic!("{place:?}"),
        })
        .sum();
    assert!(kept < 30_000 * 400, "{kept} bytes");
    let shown = errors.render(false);
    assert!(shown.contains("`bad49`") && !shown.contains("`bad50`"));
    assert!(shown.ends_with("and 29950 more problems of the same file; mend these first"));
    assert!(shown.len() < 100_000, "{} bytes", shown.len());
}

#[test]
fn variables_make_no_string_longer_than_the_kernel_takes() {
    let doubled: String = (1..60)
        .map(|i| format!("V{i}=\"${{V{}}}${{V{}}}\"\n", i - 1, i - 1))
        .collect();
    let vars = |text: &str| Vars {
        env_file: Some(("x.env".into(), text.to_owned())),
        ..Vars::default()
    };
    let file = |command: &str| {
        format!("name = \"a\"\n[app]\nrootfs = \"host\"\ncommand = [\"{command}\"]\n")
    };
    let path = Path::new("x.toml");
    let errors = parse(
        path,
        &file("${V59}"),
        &vars(&format!("V0=xxxxxxxxxx\n{doubled}")),
    );
    let errors = errors.unwrap_err().render(false);
    assert!(errors.contains("longer than 131072 bytes"), "{errors}");
    // One that is long, many times in one string, and once in each of many.
    let long = format!("B={}\n", "y".repeat(100_000));
    let errors = parse(path, &file("${B}${B}"), &vars(&long));
    assert!(
        errors
            .unwrap_err()
            .render(false)
            .contains("longer than 131072 bytes")
    );
    assert!(parse(path, &file("${B}"), &vars(&long)).is_ok());
    let many = format!(
        "{}env = {{ {} }}\n",
        file("x"),
        (0..100)
            .map(|i| format!("A{i} = \"${{B}}\""))
            .collect::<Vec<_>>()
            .join(", ")
    );
    let errors = parse(path, &many, &vars(&long)).unwrap_err();
    assert!(
        errors
            .render(false)
            .contains("variables make more than 8388608 bytes")
    );
    assert_eq!(errors.problems().len(), 100 - 8_388_608 / 100_000);
}

#[test]
fn a_stack_has_a_number_of_apps_that_can_be_started() {
    let text = |count: usize| -> String {
        let app = |i| format!("[app.a{i}]\nrootfs = \"host\"\ncommand = [\"x\"]\n");
        format!("name = \"a\"\n{}", (0..count).map(app).collect::<String>())
    };
    assert_eq!(read(&text(256)).unwrap().apps.len(), 256);
    let errors = read(&text(257)).unwrap_err();
    assert_eq!(errors.problems().len(), 1);
    assert!(errors.render(false).contains("257 apps in a stack"));
}
