//! Words of other tools (docker compose, Podman's Quadlet, systemd, Kubernetes) for what lrpns calls otherwise, each with
//! a line to paste. Looked at only for keys that lrpns does not know, so a word here never hides a key.

use toml::de::DeValue;

use super::keys::Key;
use super::{Vars, keys, parse};

/// What lrpns has for a foreign word.
#[derive(Debug, Clone, Copy)]
enum Ours {
    /// A key of `[app]`, by its name.
    App(&'static str),
    /// A key of `limits`.
    Limit(Key),
    /// Another line.
    Line(&'static str),
    /// Nothing: the line goes.
    Nothing,
}
use Ours::{App, Limit, Line, Nothing};

/// Words as [`normal`] writes them, what lrpns has instead, and what whoever wrote it should know.
const WORDS: &[(&str, Ours, &str)] = &[
    (
        "ports port expose exposedports publishport publishports published",
        App("publish"),
        "[ADDRESS:]HOST_PORT:APP_PORT; without ADDRESS it is 127.0.0.1, not every address as in docker",
    ),
    (
        "environment envs envvars environ variables",
        App("env"),
        "a table of names and strings",
    ),
    (
        "envfile envfiles environmentfile envfrom",
        Line("env = { PASSWORD = \"${PASSWORD}\" }    # and: lrpns up --env-file .env"),
        "a file of variables is given to the command; the app gets what `env` takes from it by name",
    ),
    (
        "image build dockerfile from root rootdirectory rootimage container",
        App("rootfs"),
        "the root file system: `host` for the programs of this machine, or `dir:PATH` for an unpacked one",
    ),
    (
        "entrypoint cmd exec execstart args arguments run program start",
        App("command"),
        "a list: the program, absolute or a bare name, then its arguments",
    ),
    (
        "runas runasuser uid dynamicuser username",
        App("user"),
        "an app has a user of its own, unprivileged on the host",
    ),
    (
        "runasgroup gid groupadd supplementarygroups",
        App("group"),
        "the app's group within",
    ),
    (
        "workingdir workingdirectory cwd chdir directory dir",
        App("workdir"),
        "an app starts in `/`",
    ),
    (
        "dependson requires wants bindsto partof needs before",
        App("after"),
        "which apps of this file come up first",
    ),
    (
        "links networks network externallinks",
        App("connect"),
        "an app is alone in its network: it reaches only what is granted by name and port",
    ),
    (
        "egresses outbound allowegress ipaddressallow extrahosts dns",
        App("egress"),
        "an app connects to nothing but what this lists",
    ),
    (
        "networkmode net pid ipc uts usernsmode userns cgroup cgroupparent privatenetwork privateusers privatepids hostnetwork",
        Nothing,
        "every part has namespaces of its own, always; what it may reach is said by `publish` and `egress`",
    ),
    (
        "privileged capadd capdrop capabilities addcapability dropcapability capabilityboundingset ambientcapabilities",
        Nothing,
        "an app holds no capability and can't be given one; it may listen on ports below 1024 without",
    ),
    (
        "nonewprivileges readonly protectsystem protecthome privatetmp privatedevices protectproc protectkerneltunables restrictaddressfamilies readonlyrootfilesystem readonlypaths restrictnamespaces lockpersonality",
        Nothing,
        "this is always so; `tmpfs` and `volumes` say what is writable",
    ),
    (
        "securityopt seccompprofile systemcallfilter",
        App("seccomp"),
        "\"default\", \"strict\" or the path of a profile",
    ),
    (
        "mounts mount volume binds bind bindpaths bindreadonlypaths readwritepaths statedirectory configs volumesfrom",
        App("volumes"),
        "HOST_PATH:PATH[:rw]; read-only unless it says rw, and nothing has a name of its own",
    ),
    (
        "temporaryfilesystem runtimedirectory cachedirectory",
        App("tmpfs"),
        "PATH:SIZE",
    ),
    (
        "loadcredential setcredential secret credentials",
        App("secrets"),
        "a file that only the app reads",
    ),
    (
        "restartpolicy restarts",
        App("restart"),
        "\"no\", \"on-failure\" or \"always\"",
    ),
    (
        "startlimitburst maxretries maxattempts startlimitinterval startlimitintervalsec",
        Line("restart = { policy = \"on-failure\", max = 5, window = \"1m\" }"),
        "how often an app is started again at most",
    ),
    (
        "restartsec restartsteps restartmaxdelaysec",
        Nothing,
        "lrpns waits longer from one restart to the next by itself",
    ),
    (
        "memlimit memorylimit mem memory memorymax memoryhigh memreservation maxmemory",
        Limit(keys::MEMORY),
        "a size in bytes or with K, M or G",
    ),
    (
        "cpus cpu cpuquota cpulimit cpucount cpushares",
        Limit(keys::CPU),
        "a number of processors",
    ),
    (
        "pids pidslimit tasksmax nproc maxprocesses",
        Limit(keys::PIDS),
        "a number of processes and threads",
    ),
    (
        "deploy resources limit ulimits ulimit memswaplimit",
        Line("limits = { memory = \"256M\", pids = 64, cpu = 1.0 }"),
        "memory, processes and processors; of open files an app has as many as lrpns was started with",
    ),
    (
        "healthcheck healthcmd livenessprobe readinessprobe watchdogsec",
        App("health"),
        "`http` with a path, or `tcp`, and an interval",
    ),
    (
        "stopsignal killsignal",
        App("stop_signal"),
        "the signal that ends the app",
    ),
    (
        "stopgraceperiod stoptimeout timeoutstopsec timeoutstop terminationgraceperiodseconds",
        App("stop_timeout"),
        "how long the app may take to end",
    ),
    (
        "timeoutstartsec timeoutsec startperiod starttimeoutsec waittimeout",
        App("start_timeout"),
        "how long a published port may take to answer",
    ),
    (
        "containername hostname domainname service",
        Line(
            "name = \"web\"    # before the first table; an app's own name is that of its table, [app.web]",
        ),
        "the stack has a name, and each app has one",
    ),
    (
        "services containers apps app pods unit install",
        Line("[app.web]"),
        "a table `[app]`, or `[app.NAME]` for each of several",
    ),
    ("alias aliases", App("connect"), "by the app's name"),
    (
        "labels annotations logging logdriver standardoutput standarderror syslogidentifier description documentation wantedby profiles pullpolicy platform version pidfile type remainafterexit extends include replicas scale killmode",
        Nothing,
        "lrpns needs nothing of the kind; what apps print is shown by `lrpns logs`",
    ),
    (
        "init tty stdinopen stdin interactive",
        Nothing,
        "every app has an init that reaps; a terminal is given by `lrpns run -t` and `lrpns exec`",
    ),
    (
        "devices device gpus sysctls sysctl deviceallow devicecgrouprules",
        Nothing,
        "an app gets no device but null, zero, full, random, urandom and tty, and no sysctl of its own",
    ),
    (
        "execstop execreload execstartpre execstartpost poststart prestop",
        Nothing,
        "an app is one command, which ends upon SIGTERM",
    ),
    (
        "firewall allowedips allowlist whitelist",
        App("allow"),
        "addresses and ranges of clients",
    ),
    (
        "ratelimit throttle",
        App("rate"),
        "new connections in a time",
    ),
];

/// What lrpns has for a foreign word, as the message, what is expected and the line to paste.
pub(super) struct Translation {
    /// Follows "unknown key `WORD` in PLACE: ".
    pub(super) hint: String,
    pub(super) expected: &'static str,
    pub(super) example: String,
}

/// Case, `_` and `-` make no difference: `ExecStart`, `exec_start` and `exec-start` are one word.
fn normal(word: &str) -> String {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .take(64)
        .collect::<String>()
        .to_lowercase()
}

/// Whether other tools have such a key.
pub(super) fn is_foreign(word: &str) -> bool {
    entry(word).is_some()
}

fn entry(word: &str) -> Option<&'static (&'static str, Ours, &'static str)> {
    let word = normal(word);
    WORDS
        .iter()
        .find(|(words, ..)| words.split(' ').any(|other| other == word))
}

/// What lrpns has for `word`, which was given `value`.
pub(super) fn translate(word: &str, value: &DeValue<'_>) -> Option<Translation> {
    let (_, ours, expected) = entry(word)?;
    let nothing = || format!("leave `{}` out", super::errors::escaped(word));
    let (hint, example) = match ours {
        App(name) => match keys::APP_KEYS.iter().find(|key| key.name == *name) {
            Some(key) => {
                let line = pasted(key.name, value).unwrap_or_else(|| key.example.to_owned());
                (format!("lrpns calls it `{}`, in `[app]`", key.name), line)
            }
            None => ("lrpns has nothing of that name".to_owned(), nothing()),
        },
        Limit(key) => {
            let line = match pasted(key.name, value) {
                Some(line) => format!("limits = {{ {line} }}"),
                None => format!("limits = {{ {} }}", key.example),
            };
            (
                format!("lrpns calls it `{}`, in `limits` of `[app]`", key.name),
                line,
            )
        }
        Line(line) => ("lrpns says it otherwise".to_owned(), (*line).to_owned()),
        Nothing => ("lrpns has no such key".to_owned(), nothing()),
    };
    Some(Translation {
        hint,
        expected,
        example,
    })
}

/// The line that says the same as `value` under our key; `None` if there is none that would be taken.
fn pasted(key: &str, value: &DeValue<'_>) -> Option<String> {
    let words = strings(value);
    let listed = |words: Vec<String>| format!("{key} = {}", toml::Value::from(words));
    let line = match key {
        "env" => {
            let pairs: Vec<String> = match value {
                DeValue::Table(table) => table
                    .iter()
                    .map(|(name, value)| Some((name.get_ref(), strings(value.get_ref())?)))
                    .map(|pair| pair.map(|(name, value)| env_pair(name, &value.join(" "))))
                    .collect::<Option<_>>()?,
                _ => words?
                    .iter()
                    .map(|word| {
                        word.split_once('=')
                            .map(|(name, value)| env_pair(name, value))
                    })
                    .collect::<Option<_>>()?,
            };
            format!("env = {{ {} }}", pairs.join(", "))
        }
        "publish" => {
            // The short form of compose, one port, has docker choose the host's.
            let both = |word: String| match word.parse::<u16>() {
                Ok(port) => format!("{port}:{port}"),
                Err(_) => word,
            };
            listed(words?.into_iter().map(both).collect())
        }
        "command" => {
            let words = words?;
            match (value, words.as_slice()) {
                (DeValue::String(_), [line])
                    if line.contains(['"', '\'', '$', '|', ';', '&', '>']) =>
                {
                    listed(vec![
                        "sh".to_owned(),
                        "-c".to_owned(),
                        format!("exec {line}"),
                    ])
                }
                (DeValue::String(_), [line]) => {
                    listed(line.split_whitespace().map(str::to_owned).collect())
                }
                _ => listed(words),
            }
        }
        "volumes" | "tmpfs" | "egress" | "connect" | "allow" | "after" => listed(words?),
        "memory" => {
            let size = words?.concat().to_uppercase();
            let size = size
                .strip_suffix("IB")
                .or(size.strip_suffix('B'))
                .unwrap_or(&size)
                .to_owned();
            format!("memory = {}", toml::Value::from(size))
        }
        "cpu" => {
            let text = words?.concat();
            let cpu = match text.strip_suffix('%') {
                Some(percent) => percent.parse::<f64>().ok()? / 100.0,
                None => text.parse().ok()?,
            };
            format!("cpu = {cpu:?}")
        }
        "pids" => format!("pids = {}", words?.concat().parse::<u32>().ok()?),
        "user" | "group" | "workdir" | "stop_signal" | "stop_timeout" | "start_timeout" => {
            format!("{key} = {}", toml::Value::from(words?.concat()))
        }
        "restart" => {
            let word = words?.concat();
            format!("restart = \"{}\"", restart(&word).unwrap_or(&word))
        }
        _ => return None,
    };
    // One that would be refused is no help.
    let (limit, rest) = match key {
        "memory" | "cpu" | "pids" => (format!("limits = {{ {line} }}"), "command = [\"sh\"]"),
        "command" => (line.clone(), ""),
        _ => (line.clone(), "command = [\"sh\"]"),
    };
    let file = format!("name = \"x\"\n[app]\nrootfs = \"host\"\n{limit}\n{rest}\n");
    parse(std::path::Path::new("/x.toml"), &file, &Vars::default()).ok()?;
    Some(line)
}

fn env_pair(name: &str, value: &str) -> String {
    format!("{name} = {}", toml::Value::from(value))
}

/// The strings and numbers of a value or a list.
fn strings(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::String(text) => Some(vec![text.to_string()]),
        DeValue::Integer(number) => Some(vec![number.as_str().to_owned()]),
        DeValue::Float(number) => Some(vec![number.as_str().to_owned()]),
        DeValue::Boolean(flag) => Some(vec![flag.to_string()]),
        DeValue::Array(array) => {
            let mut all = Vec::with_capacity(array.len());
            for value in array {
                match value.get_ref() {
                    DeValue::Array(_) | DeValue::Table(_) => return None,
                    value => all.extend(strings(value)?),
                }
            }
            Some(all)
        }
        DeValue::Table(_) | DeValue::Datetime(_) => None,
    }
}

/// What lrpns calls a way of restarting of docker's, Podman's or systemd's.
pub(super) fn restart(word: &str) -> Option<&'static str> {
    match word {
        "unless-stopped" | "yes" | "true" | "any" | "Always" => Some("always"),
        "never" | "none" | "false" | "off" | "Never" => Some("no"),
        "on-abnormal" | "on-abort" | "on-watchdog" | "failure" | "OnFailure" => Some("on-failure"),
        word if word.starts_with("on-failure:") => Some("on-failure"),
        _ => None,
    }
}

/// What a file that is no TOML seems to be instead.
pub(super) fn looks_like(text: &str) -> Option<&'static str> {
    let mut lines = text.lines();
    if lines
        .clone()
        .any(|line| matches!(line.trim(), "[Unit]" | "[Service]" | "[Container]"))
    {
        return Some(
            "TOML; this looks like a unit of systemd, which is not read: `lrpns init` writes an lrpns.toml",
        );
    }
    let yaml = |line: &str| {
        let name = line.strip_suffix(':').unwrap_or_default();
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    lines
        .any(|line| yaml(line.trim_end()))
        .then_some("TOML; this looks like YAML, docker compose's perhaps, which is not read: `lrpns init` writes an lrpns.toml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigErrors;

    fn example(line: &str) -> String {
        let text = format!("name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"sh\"]\n{line}\n");
        let errors: ConfigErrors =
            parse(std::path::Path::new("/x.toml"), &text, &Vars::default()).unwrap_err();
        assert_eq!(errors.problems().len(), 1, "{line}: {errors}");
        errors.problems()[0].example.clone()
    }

    #[test]
    fn a_foreign_key_is_answered_by_a_line_that_says_the_same() {
        for (line, ours) in [
            ("ports = [\"8080:80\"]", "publish = [\"8080:80\"]"),
            (
                "ports = [\"3000\", 53]",
                "publish = [\"3000:3000\", \"53:53\"]",
            ),
            ("ports = \"80:80\"", "publish = [\"80:80\"]"),
            (
                "environment = { A = \"b c\", N = 1 }",
                "env = { A = \"b c\", N = \"1\" }",
            ),
            (
                "environment = [\"A=b\", \"C=d=e\"]",
                "env = { A = \"b\", C = \"d=e\" }",
            ),
            ("Environment = [\"A=b\"]", "env = { A = \"b\" }"),
            ("mem_limit = \"512m\"", "limits = { memory = \"512M\" }"),
            ("mem_limit = \"1gb\"", "limits = { memory = \"1G\" }"),
            ("memory = \"64M\"", "limits = { memory = \"64M\" }"),
            ("cpus = \"0.5\"", "limits = { cpu = 0.5 }"),
            ("CPUQuota = \"150%\"", "limits = { cpu = 1.5 }"),
            ("pids_limit = 100", "limits = { pids = 100 }"),
            (
                "mounts = [\"/srv:/data:rw\"]",
                "volumes = [\"/srv:/data:rw\"]",
            ),
            (
                "restart_policy = \"unless-stopped\"",
                "restart = \"always\"",
            ),
            ("cap_add = [\"NET_ADMIN\"]", "leave `cap_add` out"),
            ("privileged = true", "leave `privileged` out"),
            ("network_mode = \"host\"", "leave `network_mode` out"),
            ("image = \"nginx:latest\"", "rootfs = \"host\""),
            (
                "healthcheck = { test = \"x\" }",
                "health = { http = \"/\", interval = \"5s\" }",
            ),
        ] {
            assert_eq!(example(line), ours, "{line}");
        }
        // A value that can't be taken over leaves the key's own example.
        assert_eq!(
            example("mem_limit = \"lots\""),
            "limits = { memory = \"256M\" }"
        );
        assert_eq!(
            example("ports = [[1]]"),
            "publish = [\"0.0.0.0:5000:5000/tcp\"]"
        );
    }

    #[test]
    fn a_command_in_one_string_becomes_a_list() {
        for (line, ours) in [
            (
                "ExecStart = \"/usr/sbin/nginx -g x\"",
                r#"command = ["/usr/sbin/nginx", "-g", "x"]"#,
            ),
            (
                "entrypoint = [\"/bin/x\", \"a b\"]",
                r#"command = ["/bin/x", "a b"]"#,
            ),
            ("cmd = \"a | b\"", r#"command = ["sh", "-c", "exec a | b"]"#),
        ] {
            let text = format!("name = \"x\"\n[app]\nrootfs = \"host\"\n{line}\n");
            let errors =
                parse(std::path::Path::new("/x.toml"), &text, &Vars::default()).unwrap_err();
            let found = errors
                .problems()
                .iter()
                .any(|problem| problem.example == ours);
            assert!(found, "{errors}");
        }
    }

    #[test]
    fn no_word_stands_twice_hides_a_key_or_is_not_normal() {
        let mut seen = std::collections::BTreeSet::new();
        for word in WORDS.iter().flat_map(|(words, ..)| words.split(' ')) {
            assert_eq!(normal(word), word);
            let again = !seen.insert(word);
            assert!(!again, "{word} stands twice");
        }
    }

    #[test]
    fn every_line_to_paste_is_taken() {
        for (words, ours, _) in WORDS {
            let value = DeValue::Boolean(true);
            let word = words.split(' ').next().unwrap();
            let said = translate(word, &value).unwrap();
            if matches!(ours, Nothing) || said.example.starts_with("leave ") {
                continue;
            }
            let app = "rootfs = \"host\"\ncommand = [\"sh\"]\n";
            let (top, table) = match said.example.as_str() {
                line if line.starts_with("name =") => (line, "[app]\n".to_owned() + app),
                line if line.starts_with('[') => ("name = \"x\"", format!("{line}\n{app}")),
                line => {
                    let key = line.split(' ').next().unwrap();
                    let app: String = app
                        .lines()
                        .filter(|other| !other.starts_with(key))
                        .fold(String::new(), |all, line| all + line + "\n");
                    // What is checked has a port.
                    (
                        "name = \"x\"",
                        format!("[app]\nlisten = [5000]\n{app}{line}\n"),
                    )
                }
            };
            // What is said of several apps needs others, and what takes a file or a variable needs that.
            if ["after", "connect", "secrets", "sockets"]
                .iter()
                .any(|key| said.example.starts_with(key))
            {
                continue;
            }
            let vars = Vars {
                set: vec![("PASSWORD".to_owned(), "x".to_owned())],
                ..Vars::default()
            };
            let vars = if said.example.contains("${PASSWORD}") {
                vars
            } else {
                Vars::default()
            };
            let text = format!("{top}\n{table}");
            if let Err(errors) = parse(std::path::Path::new("/x.toml"), &text, &vars) {
                let later = errors
                    .problems()
                    .iter()
                    .all(|p| p.message.starts_with("not supported yet"));
                assert!(later, "{}: {errors}", word);
            }
        }
    }
}
