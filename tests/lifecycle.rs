//! A stack's life: up, restarts, its end; one stack whoever asks for it how often, and several side by side.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;
use support::lab::{LAB, Lab, describe, difference, lrpns, until};
use support::look::{self, PYTHON};

const URL: &str = "http://localhost:5000/";

/// A file for a stack whose app is a small server of the host's that ends with 0 at SIGUSR1.
fn served(lab: &Lab, name: &str, port: u16, restart: &str) -> String {
    let text = format!(
        r#"name = "{name}"
[network]
subnet = "172.18.0.0/24"
[app]
rootfs = "host"
command = ["/bin/sh", "-c", "echo $SAYS >/tmp/index.html; trap 'exit 0' USR1; busybox httpd -f -p 8000 -h /tmp & wait"]
env = {{ SAYS = "{name}" }}
publish = ["0.0.0.0:{port}:8000"]
restart = "{restart}"
"#
    );
    let file = lab.write(&format!("{name}.toml"), &text);
    file.to_str().unwrap().to_owned()
}

/// Waits until a part has been started again so often; the status then.
fn until_restarted(lab: &Lab, stack: &str, name: &str, times: u64) -> Value {
    until("the part runs again", || {
        let status = lab.status(stack);
        let now = look::part(&status, name);
        (now["state"] == "running" && now["restarts"] == times).then_some(status)
    })
}

fn pid(value: &Value) -> String {
    value.as_i64().unwrap().to_string()
}

/// What a command says in the network namespace of a process of the lab.
fn in_netns_of(lab: &Lab, process: &Value, command: &[&str]) -> String {
    let netns = format!("--net=/proc/{}/ns/net", pid(process));
    lab.ok(&[&["nsenter", &netns], command].concat())
}

/// Links with their indexes, addresses, neighbours and the rules with their handles: all that must outlive a process.
fn network(lab: &Lab, status: &Value) -> String {
    // The lab's own link gets its IPv6 address by and by.
    let mut seen = lab.ok(&["ip", "-4", "-j", "addr"]);
    for name in ["sidecar", "app"] {
        for command in [
            &["ip", "-j", "addr"][..],
            &["ip", "-j", "route"],
            &["ip", "-j", "neigh", "show", "nud", "permanent"],
        ] {
            seen += &in_netns_of(lab, &look::part(status, name)["init"], command);
        }
    }
    seen
}

/// The sidecar's ruleset with its handles, without counts.
fn handles(lab: &Lab, status: &Value) -> String {
    let sidecar = &look::part(status, "sidecar")["init"];
    in_netns_of(lab, sidecar, &["nft", "-a", "-s", "list", "ruleset"])
}

/// A connection that stays open between requests.
struct KeptAlive(BufReader<TcpStream>);

impl KeptAlive {
    fn open(lab: &Lab, address: &str) -> Self {
        Self(BufReader::new(lab.connect(address).unwrap()))
    }

    fn get(&mut self) -> std::io::Result<String> {
        let stream = self.0.get_mut();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(String::from_utf8(body).unwrap())
    }
}

/// What a process says on its standard error until a line has `word`.
fn heard(child: &mut Child, word: &str) -> String {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(word) {
        let got = lines.read_line(&mut said).unwrap();
        assert_ne!(got, 0, "`{word}` was never said: {said}");
    }
    child.stderr = Some(lines.into_inner());
    said
}

#[test]
fn up_without_a_file_says_hello_world_and_provider_changes_it() {
    let lab = Lab::new();
    for (env, args, answer) in [
        (&[][..], &[][..], "Hello world!"),
        (&[("LRPNS_PROVIDER", "lrpns")], &[], "Hello lrpns!"),
        (&[], &["--set", "PROVIDER=set"], "Hello set!"),
        (
            &[("LRPNS_PROVIDER", "lrpns")],
            &["--set", "PROVIDER=set"],
            "Hello set!",
        ),
    ] {
        let up = lab.lrpns_with(env, &[&["up", "-d", "--demo"], args].concat());
        assert!(up.status.success(), "{}", describe(&up));
        assert_eq!(lab.get(URL).unwrap(), answer);
        lab.lrpns_ok(&["down"]);
    }
}

#[test]
fn an_env_file_sets_variables_and_the_environment_goes_before_it() {
    let lab = Lab::new();
    let file = lab.write("vars", "PROVIDER=file\n");
    let args = ["up", "-d", "--demo", "--env-file", file.to_str().unwrap()];
    lab.lrpns_ok(&args);
    assert_eq!(lab.get(URL).unwrap(), "Hello file!");
    lab.lrpns_ok(&["down"]);
    let up = lab.lrpns_with(&[("LRPNS_PROVIDER", "environment")], &args);
    assert!(up.status.success(), "{}", describe(&up));
    assert_eq!(lab.get(URL).unwrap(), "Hello environment!");
}

#[test]
fn a_file_is_taken_from_the_flag_else_from_the_current_directory() {
    let lab = Lab::new();
    let text = |name: &str, port: u16| {
        format!(
            "name = \"{name}\"\n[app]\nrootfs = \"builtin:webapp\"\nenv = {{ PROVIDER = \"{name}\" }}\npublish = [\"{port}:5000\"]\n"
        )
    };
    lab.write("lrpns.toml", &text("here", 5001));
    let given = lab.write("other.toml", &text("given", 5002));
    let given = given.to_str().unwrap();
    lab.lrpns_ok(&["up", "-d"]);
    lab.lrpns_ok(&["up", "-d", "-f", given]);
    assert_eq!(lab.get("http://localhost:5001/").unwrap(), "Hello here!");
    assert_eq!(lab.get("http://localhost:5002/").unwrap(), "Hello given!");
    // The name alone is enough where the file isn't needed, and the file where the name isn't said.
    assert_eq!(lab.status("given")["plan"]["stack"], "given");
    lab.lrpns_ok(&["down"]);
    assert!(lab.get("http://localhost:5001/").is_err());
    assert!(lab.get("http://localhost:5002/").is_ok());
    lab.lrpns_ok(&["down", "-f", given]);
    assert!(lab.get("http://localhost:5002/").is_err());
}

#[test]
fn a_detached_stack_keeps_nothing_that_its_starter_had_open() {
    let lab = Lab::new();
    let script = format!(
        "mkfifo fifo; exec 7<>fifo 200<>fifo; {} up -d 2>/dev/null; ls -l /proc/self/fd >&2",
        lrpns()
    );
    let output = lab.run(&["bash", "-c", &format!("cd $(mktemp -d) && {script}")]);
    let own = String::from_utf8_lossy(&output.stderr);
    assert!(own.contains("fifo"), "{own}");
    let supervisor = lab.status("customerA")["supervisor"].as_i64().unwrap();
    let root = format!("/proc/{supervisor}/fd");
    let held = lab.ok(&["ls", "-l", &root]);
    assert!(held.contains("socket:"), "{held}");
    assert!(!held.contains("fifo"), "{held}");
}

#[test]
fn up_detached_returns_when_a_slow_app_answers() {
    let lab = Lab::new();
    let text = "name = \"slow\"\n[app]\nrootfs = \"host\"\n\
                command = [\"/bin/sh\", \"-c\", \"sleep 1; echo slow >/tmp/index.html; exec busybox httpd -f -p 8000 -h /tmp\"]\n\
                publish = [\"0.0.0.0:5000:8000\"]\n";
    lab.write("lrpns.toml", text);
    lab.lrpns_ok(&["up", "-d"]);
    assert_eq!(lab.get(URL).unwrap(), "slow\n");
    let from_outside = lab.client_get(&format!("http://{LAB}:5000/"));
    assert_eq!(from_outside.unwrap(), "slow\n");
}

#[test]
fn foreground_up_shows_progress_then_the_log_and_each_signal_takes_all_down() {
    let lab = Lab::new();
    let before = lab.traces();
    for signal in ["INT", "TERM", "HUP"] {
        let mut up = lab.spawn_lrpns(&["up", "--demo"]);
        let said = heard(&mut up, "Ctrl-C");
        for step in [
            "namespaces are made",
            "links are up",
            "ports are published",
            "customerA is up: 0.0.0.0:5000",
        ] {
            assert!(said.contains(step), "{said}");
        }
        assert_eq!(lab.get(URL).unwrap(), "Hello world!");
        lab.kill(signal, &lab.status("customerA")["supervisor"]);
        let up = up.wait_with_output().unwrap();
        assert_eq!(up.status.code(), Some(0), "{}", describe(&up));
        let log = String::from_utf8_lossy(&up.stdout).into_owned();
        // The webapp writes a line for each request.
        assert!(log.contains(" app | ") && log.contains("GET /"), "{log}");
        lab.assert_as(&before);
    }
}

/// Says many more bytes than a pipe or a terminal takes, then serves.
const TALKATIVE: &str = r#"
name = "talks"
[app]
rootfs = "host"
command = ["sh", "-c", "i=0; while [ $$i -lt 3000 ]; do i=$$((i+1)); echo line $$i of many that nobody reads; done; exec python3 -m http.server 5000"]
publish = ["127.0.0.1:5000:5000"]
"#;

/// Waits until the last of its lines is in the log.
fn has_said_all(lab: &Lab) {
    until("its last line is in the log", || {
        let said = lab.lrpns_ok(&["logs", "talks", "--part", "app"]);
        said.contains("line 3000 of many").then_some(())
    });
}

#[test]
fn a_foreground_up_that_nobody_reads_answers_all_the_same_and_loses_no_line() {
    let lab = Lab::new();
    lab.write("talks.toml", TALKATIVE);
    let mut up = lab.spawn_lrpns(&["up", "-f", "talks.toml"]);
    heard(&mut up, "Ctrl-C");
    // Nobody has read its standard output so far, nor does anybody now. Its port may be open before its last line is read.
    has_said_all(&lab);
    assert_eq!(lab.status("talks")["parts"][1]["state"], "running");
    // Whoever reads at last gets all of it, in order.
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let mut next = 1;
    while next <= 3000 {
        let line = lines.next().unwrap().unwrap();
        if line.contains(" of many that nobody reads") {
            assert!(line.contains(&format!("| line {next} of many")), "{line}");
            next += 1;
        }
    }
    lab.lrpns_ok(&["down", "talks"]);
    assert_eq!(up.wait().unwrap().code(), Some(0));
}

#[test]
fn a_foreground_up_at_a_terminal_that_is_stopped_can_be_taken_down() {
    let lab = Lab::new();
    lab.write("talks.toml", TALKATIVE);
    let before = lab.traces();
    let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    rustix::pty::grantpt(&terminal).unwrap();
    rustix::pty::unlockpt(&terminal).unwrap();
    let name = rustix::pty::ptsname(&terminal, vec![]).unwrap();
    let open = std::fs::OpenOptions::new().write(true).to_owned();
    let screen = open.open(name.to_str().unwrap()).unwrap();
    // Nobody reads what the terminal is to show.
    let mut up = lab.command(&[support::lab::lrpns(), "up", "-f", "talks.toml"]);
    let mut up = up.stdout(screen).stderr(Stdio::piped()).spawn().unwrap();
    heard(&mut up, "Ctrl-C");
    has_said_all(&lab);
    lab.lrpns_ok(&["down", "talks"]);
    assert_eq!(up.wait().unwrap().code(), Some(0));
    drop(terminal);
    lab.assert_as(&before);
}

#[test]
fn up_twice_changes_nothing_and_says_so() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let first = lab.lrpns(&["up", "-d", "--demo"]);
        assert!(first.status.success(), "{}", describe(&first));
        let (status, traces) = (lasting(&lab), lab.traces());
        for args in [&["up", "-d", "--demo"][..], &["up", "--demo"]] {
            let again = lab.lrpns(args);
            assert!(again.status.success(), "{}", describe(&again));
            let said = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(said.contains("nothing was changed"), "{said}");
        }
        let now = lab.traces();
        assert!(traces == now, "changed: {}", difference(&traces, &now));
        assert_eq!(status, lasting(&lab), "pids, run, everything");
    }
}

/// The status without the traffic, of which the path's own test is told a moment later.
fn lasting(lab: &Lab) -> Value {
    let mut status = lab.status("customerA");
    status["traffic"] = Value::Null;
    status
}

#[test]
fn up_with_another_configuration_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let (status, traces) = (lasting(&lab), lab.traces());
    let (code, said) = lab.lrpns_err(&["up", "-d", "--demo", "--set", "PROVIDER=other"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another configuration"), "{said}");
    let now = lab.traces();
    assert!(traces == now, "changed: {}", difference(&traces, &now));
    assert_eq!(status, lasting(&lab));
    assert_eq!(lab.get(URL).unwrap(), "Hello world!");
}

#[test]
fn two_ups_at_once_make_one_stack() {
    let lab = Lab::new();
    let before = lab.traces();
    for _ in 0..5 {
        let ups: Vec<Child> = (0..4)
            .map(|_| lab.spawn_lrpns(&["up", "-d", "--demo"]))
            .collect();
        let mut made = 0;
        for up in ups {
            let up = up.wait_with_output().unwrap();
            assert!(up.status.success(), "{}", describe(&up));
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            made += usize::from(!said.contains("nothing was changed"));
        }
        assert_eq!(made, 1, "one made it, the others found it");
        let supervisor = pid(&lab.status("customerA")["supervisor"]);
        until("one supervisor alone is left", || {
            let all = lab.ok(&["pgrep", "-f", &format!("^{} up", lrpns())]);
            let undoers = lab.ok(&["pgrep", "-x", "lrpns-undoer"]);
            let undoers: Vec<&str> = undoers.lines().collect();
            let others: Vec<&str> = all.lines().filter(|pid| !undoers.contains(pid)).collect();
            (undoers.len() == 1 && others == [supervisor.as_str()]).then_some(())
        });
        assert_eq!(lab.get(URL).unwrap(), "Hello world!");
        lab.lrpns_ok(&["down"]);
        lab.assert_as(&before);
    }
}

#[test]
fn whom_a_supervisor_has_left_behind_is_ended_by_down_and_by_the_next_up() {
    let lab = Lab::new();
    let up = || {
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        pid(&lab.status("customerA")["supervisor"])
    };
    let owner = |supervisor: &str| {
        let status = lab.ok(&["cat", &format!("/proc/{supervisor}/status")]);
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t"));
        uid.unwrap().split('\t').next().unwrap().to_owned()
    };
    let leave = |uid: &str| {
        let ids = [&format!("--reuid={uid}"), &format!("--regid={uid}")];
        let mut left = lab.spawn(&["setpriv", ids[0], ids[1], "--clear-groups", "sleep", "600"]);
        until("it is that uid", || {
            let all = lab.run(&["pgrep", "-U", uid, "-x", "sleep"]);
            all.status.success().then_some(())
        });
        move || left.wait().unwrap()
    };
    let uid = owner(&up());
    let mut ended = leave(&uid);
    lab.lrpns_ok(&["down"]);
    assert!(!ended().success());

    let supervisor = up();
    assert_eq!(owner(&supervisor), uid);
    let mut ended = leave(&uid);
    lab.ok(&["kill", "-KILL", &supervisor]);
    let again = up();
    assert_ne!(again, supervisor);
    assert!(!ended().success());
    // Nobody else was.
    assert_eq!(lab.get(URL).unwrap(), "Hello world!");
    lab.lrpns_ok(&["down"]);
}

#[test]
fn two_downs_at_once_are_both_success() {
    let lab = Lab::new();
    let before = lab.traces();
    for _ in 0..5 {
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let downs: Vec<Child> = (0..4).map(|_| lab.spawn_lrpns(&["down"])).collect();
        for down in downs {
            let down = down.wait_with_output().unwrap();
            assert!(down.status.success(), "{}", describe(&down));
        }
        lab.assert_as(&before);
    }
}

#[test]
fn an_up_that_meets_a_down_takes_its_turn() {
    let lab = Lab::new();
    for _ in 0..5 {
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let down = lab.spawn_lrpns(&["down"]);
        let up = lab.lrpns(&["up", "-d", "--demo"]);
        let down = down.wait_with_output().unwrap();
        assert!(up.status.success(), "{}", describe(&up));
        assert!(down.status.success(), "{}", describe(&down));
        // Either the up came first and found the stack, or it came second and made it.
        let found = String::from_utf8_lossy(&up.stderr).contains("nothing was changed");
        assert_eq!(lab.get(URL).is_ok(), !found);
        lab.lrpns_ok(&["down"]);
    }
}

#[test]
fn two_stacks_with_the_same_subnet_run_side_by_side_and_down_all_ends_both() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let before = lab.traces();
        let (a, b) = (served(&lab, "a", 5001, "no"), served(&lab, "b", 5002, "no"));
        lab.lrpns_ok(&["up", "-d", "-f", &a]);
        lab.lrpns_ok(&["up", "-d", "-f", &b]);
        for (port, says) in [(5001, "a\n"), (5002, "b\n")] {
            assert_eq!(lab.get(&format!("http://localhost:{port}/")).unwrap(), says);
            let from_outside = lab.client_get(&format!("http://{LAB}:{port}/"));
            assert_eq!(from_outside.unwrap(), says);
        }
        let (one, other) = (lab.status("a"), lab.status("b"));
        let plan = |status: &Value, key: &str| status["plan"][key].clone();
        assert_eq!(
            plan(&one, "bridge")["subnet"],
            plan(&other, "bridge")["subnet"]
        );
        assert_ne!(
            plan(&one, "uplink")["host_address"],
            plan(&other, "uplink")["host_address"]
        );
        for name in ["sidecar", "relay", "app"] {
            assert_ne!(
                look::part(&one, name)["host_uid"],
                look::part(&other, name)["host_uid"]
            );
        }
        // From one sidecar the other's uplink is another host's, and there is no way to it.
        let target = plan(&other, "uplink")["sidecar_address"].clone();
        let sidecar = look::part(&one, "sidecar")["init"].clone();
        let netns = format!("--net=/proc/{}/ns/net", pid(&sidecar));
        let url = format!("http://{}:5002/", target.as_str().unwrap());
        let reached = lab.run(&["nsenter", &netns, "curl", "-sS", "--max-time", "2", &url]);
        assert!(!reached.status.success(), "{}", describe(&reached));
        let table = lab.lrpns_ok(&["ps"]);
        assert!(
            table.contains("0.0.0.0:5001") && table.contains("0.0.0.0:5002"),
            "{table}"
        );
        lab.lrpns_ok(&["down", "--all"]);
        lab.assert_as(&before);
        lab.lrpns_ok(&["down", "--all"]);
    }
}

#[test]
fn restarting_the_app_keeps_address_rules_links_and_the_sidecar() {
    for lab in [Lab::new(), Lab::forwarding()] {
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let before = lab.status("customerA");
        let (links, rules) = (network(&lab, &before), handles(&lab, &before));
        for (times, args) in [
            &["restart"][..],
            &["restart", "app"],
            &["restart", "customerA"],
            &["restart", "customerA", "app"],
        ]
        .iter()
        .enumerate()
        {
            lab.lrpns_ok(args);
            let now = lab.status("customerA");
            assert_eq!(lab.get(URL).unwrap(), "Hello world!", "at once");
            assert_eq!(look::part(&now, "app")["restarts"], times + 1);
            assert_ne!(
                look::part(&now, "app")["pid"],
                look::part(&before, "app")["pid"]
            );
            for name in ["sidecar", "relay"] {
                assert_eq!(look::part(&now, name), look::part(&before, name));
            }
            assert_eq!(links, network(&lab, &now));
            assert_eq!(rules, handles(&lab, &now));
        }
    }
}

#[test]
fn restarting_the_sidecar_keeps_the_app_and_connections_live_on() {
    // By relay and by DNAT: which of them is seen by what the stack says.
    for (lab, address) in [
        (Lab::new(), "127.0.0.1:5000"),
        (Lab::forwarding(), "10.99.0.1:5000"),
        (Lab::forwarding(), "client"),
    ] {
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let before = lab.status("customerA");
        let links = network(&lab, &before);
        if address == "client" {
            assert_eq!(before["plan"]["apps"][0]["publish"][0]["via"], "dnat");
            // One connection, two requests with the restart between them: bash's own socket, in the client's namespace.
            let script = format!(
                r#"exec 3<>/dev/tcp/{LAB}/5000
                   ask() {{ printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' >&3; while read -r -t 10 line <&3; do [ "$line" != $'\r' ] || break; done; read -r -t 10 -N 12 body <&3; echo "$body"; }}
                   ask; read -r go; ask"#
            );
            let mut client = lab.spawn(&["ip", "netns", "exec", "client", "bash", "-c", &script]);
            let mut said = BufReader::new(client.stdout.take().unwrap());
            let mut line = String::new();
            said.read_line(&mut line).unwrap();
            assert_eq!(line, "Hello world!\n");
            lab.lrpns_ok(&["restart", "customerA", "sidecar"]);
            client.stdin.take().unwrap().write_all(b"go\n").unwrap();
            line.clear();
            said.read_line(&mut line).unwrap();
            assert_eq!(line, "Hello world!\n");
            assert!(client.wait().unwrap().success());
        } else {
            let mut connection = KeptAlive::open(&lab, address);
            assert_eq!(connection.get().unwrap(), "Hello world!");
            lab.lrpns_ok(&["restart", "customerA", "sidecar"]);
            assert_eq!(connection.get().unwrap(), "Hello world!");
        }
        let now = lab.status("customerA");
        assert_ne!(
            look::part(&now, "sidecar")["pid"],
            look::part(&before, "sidecar")["pid"]
        );
        for name in ["app", "relay"] {
            assert_eq!(look::part(&now, name), look::part(&before, name));
        }
        assert_eq!(links, network(&lab, &now));
        assert_eq!(lab.get(URL).unwrap(), "Hello world!");
        let from_outside = lab.client_get(&format!("http://{LAB}:5000/"));
        assert_eq!(from_outside.unwrap(), "Hello world!");
    }
}

#[test]
fn no_request_is_refused_or_lost_while_the_sidecar_is_started_again() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    // New connections all the while; the first failure ends the loop, and 200 are enough to span ten restarts.
    let script = format!(
        "n=0; while [ -e {0}/go ]; do curl -sS --max-time 10 -o /dev/null http://{LAB}:5000/ || exit 1; n=$((n+1)); done; echo $n",
        lab.dir.path().display()
    );
    lab.write("go", "");
    let client = lab.spawn(&["ip", "netns", "exec", "client", "sh", "-c", &script]);
    for _ in 0..10 {
        lab.lrpns_ok(&["restart", "customerA", "sidecar"]);
    }
    std::fs::remove_file(lab.dir.path().join("go")).unwrap();
    let client = client.wait_with_output().unwrap();
    assert!(client.status.success(), "{}", describe(&client));
    let asked: u32 = String::from_utf8_lossy(&client.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(asked > 0);
}

#[test]
fn restarting_the_relay_keeps_the_port_and_the_other_parts() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let before = lab.status("customerA");
    lab.lrpns_ok(&["restart", "customerA", "relay"]);
    assert_eq!(lab.get(URL).unwrap(), "Hello world!");
    let now = lab.status("customerA");
    assert_ne!(
        look::part(&now, "relay")["pid"],
        look::part(&before, "relay")["pid"]
    );
    for name in ["app", "sidecar"] {
        assert_eq!(look::part(&now, name), look::part(&before, name));
    }
}

#[test]
fn restarting_what_is_not_there_is_refused_and_the_parts_are_named() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let status = || {
        let mut status = lab.status("customerA");
        // `up`'s own connections are counted a moment later.
        status.as_object_mut().unwrap().remove("traffic");
        status
    };
    let before = status();
    for (args, words) in [
        (
            &["restart", "customerA", "nobody"][..],
            &["nobody", "sidecar", "relay", "app"][..],
        ),
        (&["restart", "nobody"], &["nobody does not run", "lrpns ps"]),
    ] {
        let (code, said) = lab.lrpns_err(args);
        assert_eq!(code, 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{said}");
        }
    }
    assert_eq!(before, status());
}

#[test]
fn restarts_at_once_end_with_one_running_app() {
    let lab = Lab::new();
    let file = served(&lab, "web", 5000, "no");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    for _ in 0..3 {
        let restarts: Vec<Child> = (0..3)
            .map(|_| lab.spawn_lrpns(&["restart", "web", "app"]))
            .collect();
        for restart in restarts {
            let restart = restart.wait_with_output().unwrap();
            assert!(restart.status.success(), "{}", describe(&restart));
        }
        assert_eq!(lab.get(URL).unwrap(), "web\n");
        let status = lab.status("web");
        let running = look::part(&status, "app");
        assert_eq!(running["state"], "running");
        let servers = lab.ok(&["pgrep", "-c", "-f", "^busybox httpd"]);
        assert_eq!(servers.trim(), "1", "{running}");
    }
    lab.lrpns_ok(&["down", "web"]);
}

#[test]
fn a_restart_of_several_apps_of_which_one_does_not_come_back_says_so() {
    let lab = Lab::new();
    // The second app starts once only: its root can be changed from outside.
    let text = format!(
        r#"name = "two"
[app.good]
rootfs = "builtin:webapp"
publish = ["0.0.0.0:5000:5000"]
[app.bad]
rootfs = "dir:{0}"
command = ["/busybox", "sh", "-c", "/busybox test -e /go && exec /busybox httpd -f -p 8000"]
publish = ["0.0.0.0:5001:8000"]
"#,
        lab.dir.path().join("root").display()
    );
    let root = lab.dir.path().join("root");
    for name in ["proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    for dir in [
        root.clone(),
        root.join("proc"),
        root.join("dev"),
        root.join("tmp"),
    ] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, mode).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("busybox")).unwrap();
    std::fs::write(root.join("go"), "").unwrap();
    let file = lab.write("lrpns.toml", &text);
    lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
    std::fs::remove_file(root.join("go")).unwrap();
    let (code, said) = lab.lrpns_err(&["restart", "two"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("bad ended with exit status 1"), "{said}");
    assert_eq!(
        lab.get(URL).unwrap(),
        "Hello world!",
        "the other one is there"
    );
    lab.lrpns_ok(&["down", "two"]);
}

#[test]
fn an_app_that_fails_is_started_again_unless_the_policy_is_no() {
    let lab = Lab::new();
    let before = lab.traces();
    for policy in ["on-failure", "always"] {
        let file = served(&lab, "web", 5000, policy);
        lab.lrpns_ok(&["up", "-d", "-f", &file]);
        lab.kill("KILL", &look::part(&lab.status("web"), "app")["pid"]);
        let now = until_restarted(&lab, "web", "app", 1);
        assert_eq!(look::part(&now, "app")["last_exit"]["signal"], 9);
        assert_eq!(lab.get(URL).unwrap(), "web\n");
        lab.lrpns_ok(&["down", "web"]);
    }
    let file = served(&lab, "web", 5000, "no");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.kill("KILL", &look::part(&lab.status("web"), "app")["pid"]);
    lab.assert_as(&before);
}

#[test]
fn an_app_that_ends_well_is_started_again_only_if_the_policy_is_always() {
    let lab = Lab::new();
    let before = lab.traces();
    let file = served(&lab, "web", 5000, "always");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.kill("USR1", &look::part(&lab.status("web"), "app")["pid"]);
    let now = until_restarted(&lab, "web", "app", 1);
    assert_eq!(look::part(&now, "app")["last_exit"]["status"], 0);
    assert_eq!(lab.get(URL).unwrap(), "web\n");
    lab.lrpns_ok(&["down", "web"]);
    for policy in ["on-failure", "no"] {
        let file = served(&lab, "web", 5000, policy);
        lab.lrpns_ok(&["up", "-d", "-f", &file]);
        lab.kill("USR1", &look::part(&lab.status("web"), "app")["pid"]);
        lab.assert_as(&before);
    }
}

#[test]
fn an_app_that_once_ended_well_and_is_killed_later_counts_as_killed() {
    let lab = Lab::new();
    let text = r#"name = "two"
[app.a]
rootfs = "builtin:webapp"
publish = ["0.0.0.0:5000:5000"]
[app.b]
rootfs = "host"
command = ["/bin/sh", "-c", "trap 'exit 0' USR1; busybox httpd -f -p 8000 & wait"]
publish = ["0.0.0.0:5001:8000"]
"#;
    let file = lab.write("lrpns.toml", text);
    lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
    lab.kill("USR1", &look::part(&lab.status("two"), "b")["pid"]);
    until("b has ended, and a goes on", || {
        let status = lab.status("two");
        let b = look::part(&status, "b");
        (b["state"] == "ended" && b["last_exit"]["status"] == 0).then_some(())
    });
    lab.lrpns_ok(&["restart", "two", "b"]);
    lab.kill("KILL", &look::part(&lab.status("two"), "b")["init"]);
    let now = until_restarted(&lab, "two", "b", 2);
    assert_eq!(look::part(&now, "b")["last_exit"]["signal"], 9);
}

#[test]
fn a_foreground_up_ends_with_its_app_and_with_1_if_the_app_failed() {
    let lab = Lab::new();
    let file = served(&lab, "web", 5000, "no");
    for (signal, code) in [("USR1", 0), ("KILL", 1)] {
        let mut up = lab.spawn_lrpns(&["up", "-f", &file]);
        heard(&mut up, "Ctrl-C");
        lab.kill(signal, &look::part(&lab.status("web"), "app")["pid"]);
        let up = up.wait_with_output().unwrap();
        assert_eq!(up.status.code(), Some(code), "{}", describe(&up));
    }
}

#[test]
fn an_app_that_ignores_the_polite_signal_is_killed() {
    let lab = Lab::new();
    let before = lab.traces();
    let text = "name = \"stubborn\"\n[app]\nrootfs = \"host\"\n\
                command = [\"/bin/sh\", \"-c\", \"trap '' TERM; busybox httpd -f -p 8000 & while :; do wait; done\"]\n\
                publish = [\"0.0.0.0:5000:8000\"]\n";
    lab.write("lrpns.toml", text);
    lab.lrpns_ok(&["up", "-d"]);
    lab.lrpns_ok(&["down"]);
    lab.assert_as(&before);
}

#[test]
fn cycles_of_up_request_and_down_leave_no_trace_and_lose_no_request() {
    let cycles = match std::env::var("LRPNS_TEST_CYCLES") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => 25,
    };
    for lab in [Lab::new(), Lab::forwarding()] {
        let before = lab.traces();
        // A lost SYN is sent again after a second, and counted by the kernel of whoever sent it.
        let sent_again = || {
            let of = |text: String| -> u64 {
                let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
                let names: Vec<_> = lines.next().unwrap().split(' ').collect();
                let values: Vec<_> = lines.next().unwrap().split(' ').collect();
                let column = names.iter().position(|n| *n == "TCPSynRetrans").unwrap();
                values[column].parse().unwrap()
            };
            let client = lab.client(&["cat", "/proc/net/netstat"]);
            of(lab.ok(&["cat", "/proc/net/netstat"]))
                + of(String::from_utf8(client.stdout).unwrap())
        };
        for cycle in 0..cycles / 2 + cycles % 2 {
            lab.lrpns_ok(&["up", "-d", "--demo"]);
            let answer = if cycle % 2 == 0 {
                lab.get(URL)
            } else {
                lab.client_get(&format!("http://{LAB}:5000/"))
            };
            assert_eq!(answer.unwrap(), "Hello world!", "cycle {cycle}");
            lab.lrpns_ok(&["down"]);
            assert!(lab.connect("127.0.0.1:5000").is_err(), "cycle {cycle}");
        }
        assert_eq!(sent_again(), 0, "a first packet was lost");
        lab.assert_as(&before);
    }
}

#[test]
fn a_supervisor_that_was_stopped_holds_up_no_command_and_down_ends_it_by_force() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let before = lab.traces();
    lab.lrpns_ok(&["up", "-d"]);
    let supervisor = lab.status("customerA")["supervisor"].clone();
    lab.kill("STOP", &supervisor);
    for args in [
        &["status"][..],
        &["logs"],
        &["exec", "--", "true"],
        &["restart", "customerA", "app"],
        &["rules", "--counters"],
    ] {
        let output = lab.run(&[&["timeout", "60", lrpns()], args].concat());
        assert_eq!(
            output.status.code(),
            Some(125),
            "{args:?}: {}",
            describe(&output)
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("the supervisor of customerA does not answer")
                && said.contains("kill -CONT"),
            "{args:?}: {said}"
        );
    }
    // It goes on as if nothing had been.
    lab.kill("CONT", &supervisor);
    assert_eq!(lab.get("http://localhost:5000/").unwrap(), "Hello world!");
    lab.lrpns_ok(&["status"]);
    lab.kill("STOP", &supervisor);
    let down = lab.run(&["timeout", "60", lrpns(), "down", "customerA"]);
    assert!(down.status.success(), "{}", describe(&down));
    let said = String::from_utf8_lossy(&down.stderr);
    assert!(
        said.contains("has not answered for 2 s: killing it"),
        "{said}"
    );
    lab.assert_as(&before);
}

/// Kills the first process that a supervisor makes for a restart, each time a little later, and tells how many it has met; then
/// what children and how many descriptors the supervisor has, once none of them is a zombie.
const KILLS_HELPERS: &str = "
import os, subprocess, sys, time
lrpns, sup = sys.argv[1:]
def children():
    return set(open(f'/proc/{sup}/task/{sup}/children').read().split())
def state(pid):
    return open(f'/proc/{pid}/stat').read().rpartition(') ')[2][0]
def descriptors():
    links = [os.path.join(f'/proc/{sup}/fd', name) for name in os.listdir(f'/proc/{sup}/fd')]
    # The traffic's log is opened when there is something to write.
    return sum(not os.readlink(link).endswith('.log') for link in links if os.path.lexists(link))
def settles(as_before):
    end = time.monotonic() + 20
    while True:
        now = (len(children()), any(state(p) == 'Z' for p in children()), descriptors())
        if now == as_before or time.monotonic() > end:
            return now
subprocess.run([lrpns, 'restart', 'customerA', 'app'], check=True)
before = (len(children()), False, descriptors())
met = 0
for turn in range(30):
    here = children()
    restart = subprocess.Popen([lrpns, 'restart', 'customerA', 'app'], stderr=subprocess.DEVNULL)
    while not (new := children() - here) and restart.poll() is None:
        pass
    later = time.monotonic() + turn * 50e-6
    while time.monotonic() < later:
        pass
    for pid in new:
        try:
            os.kill(int(pid), 9)
            met += 1
        except ProcessLookupError:
            pass
    restart.wait()
subprocess.run([lrpns, 'restart', 'customerA', 'app'], check=True)
print(met, before, settles(before), sep='|')
";

#[test]
fn a_helper_that_is_killed_leaves_the_supervisor_neither_a_zombie_nor_a_descriptor() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let supervisor = lab.status("customerA")["supervisor"].to_string();
    let said = lab.ok(&[PYTHON, "-c", KILLS_HELPERS, lrpns(), &supervisor]);
    let [met, before, after] = said.trim().split('|').collect::<Vec<_>>()[..] else {
        panic!("{said}")
    };
    assert_ne!(met, "0");
    assert_eq!(before, after, "{met} were met");
    lab.lrpns_ok(&["down"]);
}
