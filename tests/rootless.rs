//! Without root: the same stack, by the same code, for an ordinary user.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{CLIENT6, LAB, LAB6, Lab, describe};
use support::look::{self, PYTHON};
use support::user::User;

fn machine() -> bool {
    look::machine_with(&["setpriv", "ps"])
}

/// The whole of a stack's life, with what each command says.
fn a_life(user: &User<'_>) {
    let lab = user.lab;
    let links = lab.ok(&["ip", "-j", "link"]);
    let rules = lab.ok(&["nft", "-j", "list", "ruleset"]);
    user.lrpns_ok(&["up", "-d", "--demo", "--set", "PROVIDER=nobody"]);
    for answer in [
        lab.get("http://localhost:5000/"),
        lab.get(&format!("http://{LAB}:5000/")),
        lab.client_get(&format!("http://{LAB}:5000/")),
    ] {
        assert_eq!(answer.unwrap(), "Hello nobody!");
    }
    // The uplink is in a namespace of the user's own: nothing was added to the host's.
    assert_eq!(lab.ok(&["ip", "-j", "link"]), links);
    assert_eq!(lab.ok(&["nft", "-j", "list", "ruleset"]), rules);

    let before = user.status("customerA");
    assert_eq!(before["plan"]["mode"], "rootless");
    let ps: Value = serde_json::from_str(&user.lrpns_ok(&["ps", "--json"])).unwrap();
    assert_eq!(
        (&ps[0]["stack"], &ps[0]["state"]),
        (&json!("customerA"), &json!("up"))
    );
    let again = user.lrpns(&["up", "-d", "--demo", "--set", "PROVIDER=nobody"]);
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("nothing was changed"),
        "{}",
        describe(&again)
    );
    for part in ["app", "sidecar", "relay"] {
        user.lrpns_ok(&["restart", "customerA", part]);
        let now = user.status("customerA");
        assert_ne!(look::init(&now, part), look::init(&before, part), "{part}");
        assert_eq!(
            lab.client_get(&format!("http://{LAB}:5000/")).unwrap(),
            "Hello nobody!",
            "after a restart of {part}"
        );
    }
    let log = user.lrpns_ok(&["logs", "customerA", "--part", "app"]);
    assert!(log.contains("GET /"), "{log}");

    user.lrpns_ok(&["down"]);
    assert_eq!(lab.client_get(&format!("http://{LAB}:5000/")), Err(7));
    assert_eq!(user.processes(), Vec::<String>::new());
    user.lrpns_ok(&["down"]);
    // What a stack has left to read is all that is left of it.
    user.lrpns_ok(&["gc", "--all"]);
}

#[test]
fn a_stack_lives_for_an_ordinary_user_and_leaves_nothing() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    a_life(&user);
    let left = lab.ok(&["find", user.runtime.as_deref().unwrap(), "-mindepth", "1"]);
    assert_eq!(left, "");
}

#[test]
fn an_ordinary_user_seals_the_sidecar_has_rules_and_traces_what_they_drop() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    lab.write(
        "extra.nft",
        "chain before { tcp dport 6000 counter drop comment \"drop-6000\"; }\n",
    );
    let file = look::telling("web", "x", "0.0.0.0:5000:5000", "");
    let file = file
        .replace("[sidecar]", "[sidecar]\nseal = true\nrules = \"extra.nft\"")
        .replace(
            "\"0.0.0.0:5000:5000\"",
            "\"0.0.0.0:5000:5000\", \"0.0.0.0:7000:5000\"",
        );
    user.up(&file);
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    let sidecar = look::init(&user.status("web"), "sidecar");
    assert_eq!(look::capabilities(&lab, sidecar), ["0000000000000000"; 5]);
    let rules = look::beside(&lab, sidecar, &["nft", "list", "ruleset"]);
    assert!(rules.contains("drop-6000"), "{rules}");

    lab.write(
        "extra.nft",
        "chain before { tcp dport 5000 counter drop comment \"drop-5000\"; }\n",
    );
    let path = lab.dir.path().join("rootless.toml");
    // It takes the data path being tried to notice that this would lock everybody out.
    let apply = user.lrpns(&["apply", "-f", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&apply.stderr).into_owned();
    assert!(
        !apply.status.success() && said.contains("as it was before"),
        "{said}"
    );
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();

    let drop = "insert rule inet lrpns forward tcp dport 5000 counter drop comment \"drop-mine\"";
    look::beside(&lab, sidecar, &["nft", drop]);
    let mut trace = user
        .command(&[
            user.program().as_str(),
            "trace",
            support::lab::CLIENT,
            "5000",
            "web",
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = std::io::BufReader::new(trace.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("try now"), "{line}");
    let url = format!("http://{LAB}:5000/");
    // What the client got doesn't matter.
    let _ = lab.client(&["curl", "-s", "--max-time", "1", &url]);
    let output = trace.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.starts_with(
            "dropped in the sidecar by table inet lrpns, chain forward, rule `drop-mine`"
        ),
        "{text}"
    );

    // A capture holds as little, and shows the same.
    let mut capture = user
        .command(&[
            user.program().as_str(),
            "capture",
            "-c",
            "1",
            "web",
            "refused",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let listens = || {
        let groups = look::beside(&lab, sidecar, &["cat", "/proc/net/netfilter/nfnetlink_log"]);
        groups.lines().count() > 1
    };
    look::eventually("the capture listens beside the log", &true, listens);
    let found = lab.ok(&["pgrep", "-f", "^[^ ]*lrpns capture"]);
    let pid = found.trim().parse().unwrap();
    let held = || look::capabilities(&lab, pid);
    look::eventually("held", &vec!["0000000000000000".to_owned(); 5], held);
    assert_eq!(look::status_line(&lab, pid, "NoNewPrivs"), "1");
    capture.kill().unwrap();
    capture.wait().unwrap();
}

#[test]
fn no_volume_shows_an_app_the_socket_that_commands_its_stack() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    let runtime = user.runtime.clone().unwrap();
    let refused = |volume: &str, more: &str, why: &str| {
        let text = format!(
            "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"100\"]\nvolumes = [{volume}]\n{more}\n"
        );
        let path = lab.write("shown.toml", &text);
        let said = user.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
        let said = describe(&said);
        assert!(said.contains(why) && said.contains("hint:"), "{said}");
    };
    // Before its first stack as well, when nothing is there yet.
    let contains = "contains the directory of all stacks";
    refused(&format!("\"{runtime}:/x\""), "", contains);
    refused("\"/run/lab:/x\"", "", contains);
    let declared = format!("sockets = [\"{runtime}:/x\"]");
    refused("", &declared, contains);
    let stacks = format!("{runtime}/lrpns");
    refused(
        &format!("\"{stacks}:/x\""),
        "",
        "is the directory of all stacks",
    );
    user.up("name = \"other\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"100\"]\n");
    let part = "is part of a stack's state";
    refused(&format!("\"{stacks}/other:/x\""), "", part);
    refused(&format!("\"{stacks}/other/plan.json:/x\""), "", part);
    let declared = format!("sockets = [\"{stacks}/other/control.sock:/x\"]");
    refused("", &declared, part);
    // What is beside them is a volume as any other.
    let beside = format!("{runtime}/beside");
    user.run(&["mkdir", &beside]);
    user.up(&format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"100\"]\nvolumes = [\"{beside}:/x\"]\n"
    ));
    user.lrpns_ok(&["down", "--all"]);
}

#[test]
fn a_stack_lives_without_a_runtime_directory_and_leaves_nothing() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    // /tmp is the machine's: a uid that no other test run has at the same time.
    let user = User {
        runtime: None,
        ..User::new(&lab, 4_000_000 + std::process::id())
    };
    if !user.may() {
        return;
    }
    let dir = format!("/tmp/lrpns-{}", user.uid);
    a_life(&user);
    assert!(!std::path::Path::new(&dir).exists(), "{dir}");

    // Somebody else's directory of that name is not used.
    std::fs::create_dir(&dir).unwrap();
    let refused = user.lrpns(&["up", "-d", "--demo"]);
    std::fs::remove_dir(&dir).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{}", describe(&refused));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("must be ours"), "{said}");
}

#[test]
fn every_part_of_an_ordinary_users_stack_is_confined() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    user.lrpns_ok(&["up", "-d", "--demo"]);
    look::assert_confined(&lab, &user.status("customerA"), 4321..4322);
    user.lrpns_ok(&["down"]);
    user.up(&look::telling("web", "t", "0.0.0.0:5000:5000", ""));
    look::assert_confined(&lab, &user.status("web"), 4321..4322);
    for part in ["app", "sidecar", "relay"] {
        user.lrpns_ok(&["restart", "web", part]);
    }
    look::assert_confined(&lab, &user.status("web"), 4321..4322);
}

#[test]
fn an_ordinary_users_app_reaches_nothing_and_writes_nowhere() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    let token = look::token();
    user.up(&look::telling("web", &token, "0.0.0.0:5000:5000", ""));
    let answer = lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    assert!(answer.contains(&token), "{answer}");
    let status = user.status("web");
    look::settle(&lab, &status);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let near = look::planned(&status, "/uplink/host_address");
    let far = look::planned(&status, "/uplink/sidecar_address");
    let code = format!(
        r#"{}
def attach():
    call(libc.ptrace(16, 1, 0, 0))
say({{
    "elsewhere": sorted({{knock(a, 5000) for a in ("{near}", "{far}", "{LAB}", "10.99.0.2", "203.0.113.8")}}),
    "sidecar": [knock("172.18.0.33", 22), throw("172.18.0.33", 53)],
    "raw": tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
    "packet": tried(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
    "user namespace": tried(lambda: call(libc.unshare(0x10000000))) != "OK",
    "attach": tried(attach),
    "ids": [os.getuid(), os.getgid()],
    "write": [tried(lambda: os.close(os.open(d, os.O_TMPFILE | os.O_RDWR))) for d in ("/", "/usr", "/etc", "/dev", "/tmp")],
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
}})"#,
        look::ATTACKS
    );
    let exec = user.lrpns_ok(&["exec", "web", "--", PYTHON, "-c", &code]);
    let found: Value = serde_json::from_str(&exec).unwrap();
    assert_eq!(
        found,
        json!({
            // Its own port, which Landlock lets it connect to: there is no route.
            "elsewhere": ["ENETUNREACH"],
            "sidecar": [look::refused_tcp("EINPROGRESS"), "OK"], "raw": "EPERM", "packet": "EPERM",
            "user namespace": true, "attach": "EPERM", "ids": [1000, 1000],
            "write": ["EROFS", "EROFS", "EROFS", "EROFS", "OK"],
            // Its server and itself.
            "processes": 2,
        })
    );
    let refused = if look::landlock_knows_tcp() { 1 } else { 2 };
    look::assert_counted(
        &lab,
        sidecar,
        &before,
        &[("guard/drop-app-egress", refused)],
    );
    // Landlock has refused the connections before there was a packet: who is not under it meets the route and the rules.
    let app = look::pid(&status, "app");
    let found = look::attack_beside(
        &lab,
        app,
        &format!("say([knock(a, 5000) for a in ('{near}', '{LAB}', '172.18.0.33')])"),
    );
    assert_eq!(found, json!(["ENETUNREACH", "ENETUNREACH", "EINPROGRESS"]));
    look::assert_counted(
        &lab,
        sidecar,
        &before,
        &[("guard/drop-app-egress", refused + 1)],
    );
}

#[test]
fn a_port_that_an_ordinary_user_may_not_have_is_refused_with_a_hint() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    for (publish, via, words) in [
        (
            "0.0.0.0:80:5000",
            "auto",
            ["port 80", "1024", "ip_unprivileged_port_start"],
        ),
        (
            "0.0.0.0:5000:5000",
            "dnat",
            ["via = \"dnat\"", "needs root", "via = \"auto\""],
        ),
    ] {
        let file = look::telling("web", "t", publish, &format!("via = \"{via}\""));
        let path = lab.write("refused.toml", &file);
        let refused = user.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(125), "{}", describe(&refused));
        let said = String::from_utf8_lossy(&refused.stderr);
        for word in words.iter().chain(&["hint: "]) {
            assert!(said.contains(word), "no `{word}` in {said}");
        }
        let left = lab.ok(&["find", user.runtime.as_deref().unwrap(), "-mindepth", "1"]);
        assert_eq!((left.as_str(), user.processes()), ("", vec![]));
    }
    // Where the machine allows it, it works.
    lab.ok(&[
        "sh",
        "-c",
        "echo 80 >/proc/sys/net/ipv4/ip_unprivileged_port_start",
    ]);
    user.up(&look::telling("web", "t", "0.0.0.0:80:5000", ""));
    assert!(lab.client_get(&format!("http://{LAB}/")).is_ok());
}

#[test]
fn when_an_ordinary_users_supervisor_is_killed_nothing_stays() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    user.lrpns_ok(&["up", "-d", "--demo"]);
    let supervisor = user.status("customerA")["supervisor"].to_string();
    lab.ok(&["kill", "-KILL", &supervisor]);
    look::eventually("processes of the user", &Vec::<String>::new(), || {
        user.processes()
    });
    assert_eq!(lab.client_get(&format!("http://{LAB}:5000/")), Err(7));
    user.lrpns_ok(&["down"]);
    user.lrpns_ok(&["gc", "--all"]);
    let left = lab.ok(&["find", user.runtime.as_deref().unwrap(), "-mindepth", "1"]);
    assert_eq!(left, "");
    user.lrpns_ok(&["up", "-d", "--demo"]);
    assert_eq!(lab.get("http://localhost:5000/").unwrap(), "Hello world!");
}

#[test]
fn an_ordinary_users_supervisor_stays_his_whatever_its_children_become() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    user.lrpns_ok(&["up", "-d", "--demo"]);
    let supervisor = user.status("customerA")["supervisor"].to_string();
    // What is in it belongs to root while it is not dumpable (proc_pid(5)), and its user is told nothing of its memory.
    let owner = || lab.ok(&["stat", "-c", "%u", &format!("/proc/{supervisor}/environ")]);
    assert_eq!(owner().trim(), "4321");
    user.lrpns_ok(&["restart", "customerA", "app"]);
    assert_eq!(owner().trim(), "4321");
    user.lrpns_ok(&["down"]);
}

#[test]
fn users_and_root_have_stacks_of_one_name_side_by_side() {
    if !machine() {
        return;
    }
    let lab = Lab::forwarding();
    let users = [User::new(&lab, 4321), User::new(&lab, 4322)];
    if !users[0].may() {
        return;
    }
    let file =
        |who: &str, port: u16| look::telling("web", who, &format!("0.0.0.0:{port}:5000"), "");
    look::up(&lab, &file("root", 5000));
    users[0].up(&file("one", 5001));
    users[1].up(&file("two", 5002));
    for (port, who) in [(5000, "root"), (5001, "one"), (5002, "two")] {
        let answer = lab.client_get(&format!("http://{LAB}:{port}/")).unwrap();
        assert!(answer.contains(&format!("\"{who}\"")), "{answer}");
    }
    users[1].lrpns_ok(&["down", "--all"]);
    assert!(lab.client_get(&format!("http://{LAB}:5002/")).is_err());
    for port in [5000, 5001] {
        assert!(lab.client_get(&format!("http://{LAB}:{port}/")).is_ok());
    }
    // Nor can one ask another's supervisor, even where the path is known and open.
    let runtime = users[0].runtime.as_deref().unwrap();
    lab.ok(&["chmod", "-R", "a+rwX", runtime]);
    let other = User {
        runtime: users[0].runtime.clone(),
        ..User::new(&lab, 4322)
    };
    let refused = other.lrpns(&["down", "web"]);
    assert!(!refused.status.success(), "{}", describe(&refused));
    assert!(lab.client_get(&format!("http://{LAB}:5001/")).is_ok());
}

#[test]
fn a_user_changes_a_stack_that_runs_and_what_is_not_confirmed_is_taken_back() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4_000_031);
    if !user.may() {
        return;
    }
    let file = |publish: &[&str]| {
        let file = look::telling("web", "", "PORTS", "");
        file.replace("[\"PORTS\"]", &look::toml_list(publish))
    };
    user.up(&file(&["0.0.0.0:5000:5000"]));
    let app = look::pid(&user.status("web"), "app");
    let path = lab.write("rootless.toml", &file(&["0.0.0.0:8080:6000"]));
    let apply = ["apply", "-f", path.to_str().unwrap()];
    // Its standard input is the null device.
    let output = user.lrpns(&[&apply[..], &["--confirm", "60"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    let get = |port: u16| lab.client_get(&format!("http://{LAB}:{port}/"));
    assert!(get(5000).is_ok() && get(8080).is_err());
    user.lrpns_ok(&apply);
    assert!(get(5000).is_err() && get(8080).is_ok());
    assert_eq!(look::pid(&user.status("web"), "app"), app);
    let counters = user.lrpns_ok(&["rules", "web", "--counters", "--json"]);
    let counters = look::told_counters(&counters, "relay");
    assert!(counters["input/accept-relay-reply"] > 0, "{counters:?}");
}

#[test]
fn an_app_joins_a_users_stack_that_runs_and_leaves_it_again() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4_000_032);
    if !user.may() {
        return;
    }
    let app = |name: &str, port: u16| {
        format!(
            "[app.{name}]\nrootfs = \"builtin:webapp\"\nenv = {{ PROVIDER = \"{name}\", PORT = \"5000\" }}\n\
             publish = [\"0.0.0.0:{port}:5000\"]\n"
        )
    };
    let first = format!("name = \"web\"\n{}", app("first", 5001));
    let both = format!("{first}{}", app("second", 5002));
    user.up(&first);
    let alone = user.status("web");
    let get = |port: u16| lab.client_get(&format!("http://{LAB}:{port}/"));
    let apply = |file: &str| {
        let path = lab.write("rootless.toml", file);
        user.lrpns(&["apply", "-f", path.to_str().unwrap()])
    };
    for _ in 0..2 {
        let joined = apply(&both);
        assert!(joined.status.success(), "{}", describe(&joined));
        assert_eq!(get(5001).unwrap(), "Hello first!");
        assert_eq!(get(5002).unwrap(), "Hello second!");
        let status = user.status("web");
        assert_eq!(look::pid(&status, "first"), look::pid(&alone, "first"));
        let second = status["parts"].as_array().unwrap();
        let second = second.iter().find(|part| part["name"] == "second").unwrap();
        for set in [
            "inheritable",
            "permitted",
            "effective",
            "bounding",
            "ambient",
        ] {
            assert_eq!(second["privileges"][set], 0, "{set}: {second}");
        }
        // Neither reaches the other, by whichever address.
        let address = status["plan"]["apps"][1]["address"].as_str().unwrap();
        let reach = lab.run(&[
            "nsenter",
            "--net",
            "--target",
            &look::init(&status, "first").to_string(),
            "curl",
            "-sS",
            "--max-time",
            "1",
            &format!("http://{address}:5000/"),
        ]);
        assert!(!reach.status.success(), "{}", describe(&reach));
        let left = apply(&first);
        assert!(left.status.success(), "{}", describe(&left));
        assert_eq!(get(5001).unwrap(), "Hello first!");
        assert!(get(5002).is_err());
        assert_eq!(
            user.status("web")["plan"]["apps"].as_array().unwrap().len(),
            1
        );
    }
    // One that doesn't work leaves no trace.
    let broken = both.replace(
        "PORT = \"5000\" }\npublish = [\"0.0.0.0:5002",
        "PORT = \"0\" }\npublish = [\"0.0.0.0:5002",
    );
    assert_ne!(broken, both);
    let refused = apply(&broken);
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    assert_eq!(get(5001).unwrap(), "Hello first!");
    assert!(get(5002).is_err());
    user.lrpns_ok(&["down", "web"]);
    assert_eq!(user.processes(), [""; 0]);
}

#[test]
fn an_ordinary_users_app_sees_its_clients() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4_000_041);
    if !user.may() {
        return;
    }
    user.up(&look::telling(
        "web",
        "",
        "0.0.0.0:5000:5000",
        "source = \"client\"",
    ));
    let status = user.status("web");
    assert_eq!(look::planned(&status, "/uplink/ends_at"), "relay");
    let answer = lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["peer"], support::lab::CLIENT);
}

#[test]
fn an_ordinary_users_stack_is_published_by_ipv6_and_its_app_sees_whom_it_is_to_see() {
    if !machine() {
        return;
    }
    let lab = Lab::new().with_ipv6();
    let user = User::new(&lab, 4_000_042);
    if !user.may() {
        return;
    }
    // By TCP and by UDP: whom it sees.
    let code = "import socket, threading\n\
                t = socket.create_server(('::', 5000), family=socket.AF_INET6)\n\
                u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\nu.bind(('::', 5000))\n\
                def datagrams():\n    while True:\n        _, peer = u.recvfrom(99)\n        u.sendto(peer[0].encode(), peer)\n\
                threading.Thread(target=datagrams, daemon=True).start()\n\
                while True:\n    c, peer = t.accept()\n    c.sendall(peer[0].encode())\n    c.close()\n";
    let ask = format!(
        "import socket\nfor kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n\
         \x20   s = socket.socket(socket.AF_INET6, kind)\n    s.settimeout(10)\n    s.connect(('{LAB6}', 5000))\n\
         \x20   if kind == socket.SOCK_DGRAM: s.send(b'?')\n    print(s.recv(99).decode())\n"
    );
    for (source, peer) in [("sidecar", "fd00:18::1"), ("client", CLIENT6)] {
        user.up(&format!(
            "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = {}\n\
             publish = [\"[::]:5000:5000\", \"[::]:5000:5000/udp\"]\nsource = \"{source}\"\n",
            look::toml_list(&[PYTHON, "-c", code])
        ));
        let output = lab.client(&[PYTHON, "-c", &ask]);
        assert!(output.status.success(), "{}", describe(&output));
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, format!("{peer}\n{peer}\n"), "{source}");
        user.lrpns_ok(&["down", "web"]);
    }
}

/// Waits for the number of a process, and reads what is piped into that.
const SPY: &str = "mkfifo /tmp/go /tmp/got; read pid </tmp/go; head -c 6 /proc/$$pid/fd/0 >/tmp/got 2>&1; exec sleep infinity";

/// Of an ordinary user, every part has one uid, and a pipe is its owner's to open by /proc.
#[test]
fn an_app_can_not_take_what_is_piped_into_an_exec() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    user.up(&format!(
        "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"sh\", \"-c\", '{SPY}']\n"
    ));
    let visit = "until [ -p /tmp/got ]; do :; done; echo $$ >/tmp/go; cat /tmp/got";
    let program = user.program();
    let piped = format!("echo secret | {program} exec x -- sh -c '{visit}'");
    let output = user.run(&["timeout", "60", "sh", "-c", &piped]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.starts_with("head:"), "{}", describe(&output));
}

#[test]
fn an_ordinary_users_stack_stands_its_audit_before_its_gate_opens() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    let said = describe(&user.lrpns(&["up", "--gate", "-d", "--demo"]));
    let answer = lab.client_get(&format!("http://{LAB}:5000/"));
    assert_eq!(answer.as_deref(), Ok("Hello world!"), "{said}");
    assert_eq!(user.status("customerA")["gated"], false);
    user.lrpns_ok(&["down"]);
    assert_eq!(user.lrpns_ok(&["ps", "--json"]).trim(), "[]");
}

#[test]
fn an_app_is_the_same_user_within_for_root_and_for_an_ordinary_user() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    let look = "id; cat /proc/self/status /proc/self/uid_map; echo x > /tmp/x && ls -ln /tmp/x";
    let run = ["run", "--rootfs", "host", "--", "sh", "-c", look];
    let said = [lab.lrpns_ok(&run), user.lrpns_ok(&run)];
    for said in &said {
        assert!(said.starts_with("uid=1000(app) gid=1000(app)"), "{said}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                said.contains(&format!("{set}:\t0000000000000000")),
                "{said}"
            );
        }
        assert!(said.contains(" 1000 1000 2 "), "{said}");
    }
    // An ordinary user has no other id to give away: who stays 0 is nobody inside.
    let ids = said[1]
        .lines()
        .rfind(|line| line.trim_start().starts_with("1000 "));
    let ids: Vec<&str> = ids.unwrap().split_whitespace().collect();
    assert_eq!(ids, ["1000", "0", "1"]);
}
