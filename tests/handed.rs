//! Published ports whose sockets a service manager has as well: those of a socket unit, and those that it keeps.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};

use serde_json::Value;
use support::lab::{LAB, Lab, describe, lrpns, until};
use support::look::{self, PYTHON, toml_list};

/// systemd, played.
struct Systemd {
    child: Child,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Systemd {
    fn of(lab: &Lab) -> Self {
        let code = include_str!("support/systemd.py");
        let mut child = lab
            // Whoever is asked then says nothing.
            .command(&["timeout", "300", PYTHON, "-c", code, lrpns()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            asks: child.stdin.take().unwrap(),
            says: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.asks, "{what}").unwrap();
        let mut answer = String::new();
        self.says.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }

    /// How `up` has ended: with which code, and what it said.
    fn end(&mut self, what: &str) -> (i64, String) {
        let answer = self.ask(what);
        let end: Value = serde_json::from_str(&answer).expect(&answer);
        let said = end["said"].as_str().unwrap().to_owned();
        (end["code"].as_i64().unwrap(), said)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An app that says again what it hears: by TCP all of a connection, once that has come to its end, by UDP each datagram.
const ECHO: &str = r#"
import socket, threading
def serve(made):
    made.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    text = b""
    while more := made.recv(4096): text += more
    made.sendall(text)
    made.close()
def datagrams():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 5300))
    while True:
        text, peer = udp.recvfrom(4096)
        udp.sendto(text, peer)
threading.Thread(target=datagrams, daemon=True).start()
listener = socket.create_server(("0.0.0.0", 5000), backlog=100)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

fn echo(ports: &str) -> String {
    let command = toml_list(&[PYTHON, "-c", ECHO]);
    format!("name = \"unit\"\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [{ports}]\n")
}

/// A client that says half of something, and that it has; when it is told to, the rest, of which a byte is urgent; then what it
/// was answered.
const CLIENT: &str = r#"
import socket, sys
address = (sys.argv[1], int(sys.argv[3]))
if sys.argv[2] == "tcp":
    made = socket.create_connection(address, timeout=20)
    made.send(b"begin")
    made.send(b"!", socket.MSG_OOB)
    print("said", flush=True)
    sys.stdin.readline()
    made.send(b"end")
    made.shutdown(socket.SHUT_WR)
else:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(20)
    made.connect(address)
    made.send(b"begin!end")
    print("said", flush=True)
text = b""
while len(text) < 9 and (more := made.recv(4096)): text += more
print(text.decode(), flush=True)
"#;

/// Somebody who has said something, and waits for the answer.
struct Waits(Child, BufReader<ChildStdout>, String);

impl Waits {
    fn begin(lab: &Lab, from_client: bool, kind: &str, port: &str) -> Self {
        let at = if from_client { LAB } else { "127.0.0.1" };
        let args = [PYTHON, "-c", CLIENT, at, kind, port];
        let mut child = match from_client {
            true => lab.spawn(&[&["ip", "netns", "exec", "client"], &args[..]].concat()),
            false => lab.spawn(&args),
        };
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "said\n", "{kind} {port}: nobody is there");
        Self(child, said, format!("{kind} {at}"))
    }

    fn gets_its_answer(mut self) {
        let mut rest = self.0.stdin.take().unwrap();
        // One of UDP has its answer already.
        let _ = rest.write_all(b"\n");
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        let _ = self.0.kill();
        let output = self.0.wait_with_output().unwrap();
        assert_eq!(line, "begin!end\n", "{}: {}", self.2, describe(&output));
    }
}

fn all_kinds(lab: &Lab) -> Vec<Waits> {
    let kinds = [
        (true, "tcp", "5000"),
        (false, "tcp", "5000"),
        (true, "udp", "5300"),
    ];
    let begin = |&(from_client, kind, port): &_| Waits::begin(lab, from_client, kind, port);
    kinds.iter().map(begin).collect()
}

#[test]
fn who_comes_to_a_socket_unit_before_its_stack_is_up_loses_no_byte() {
    for forwards in [false, true] {
        let lab = match forwards {
            true => Lab::forwarding(),
            false => Lab::new(),
        };
        lab.write(
            "stack.toml",
            &echo("\"0.0.0.0:5000:5000\", \"0.0.0.0:5300:5300/udp\""),
        );
        let mut systemd = Systemd::of(&lab);
        systemd.ask("unit tcp 0.0.0.0 5000 lrpns@unit.socket");
        systemd.ask("unit udp 0.0.0.0 5300 lrpns@unit.socket");
        for end in ["stop 15", "down", "stop 9"] {
            let early = all_kinds(&lab);
            assert_eq!(systemd.ask("start"), "ready", "{forwards} {end}");
            for one in early {
                one.gets_its_answer();
            }
            // Where the host forwards too: what is translated would lead nowhere when the stack is gone.
            let status = lab.status("unit");
            let way = status["plan"]["apps"][0]["publish"][0]["via"].as_str();
            assert_eq!(way.map(str::to_lowercase).as_deref(), Some("relay"));
            for one in all_kinds(&lab) {
                one.gets_its_answer();
            }
            assert_eq!(systemd.ask("store"), "");
            if end == "down" {
                lab.lrpns_ok(&["down", "unit"]);
                assert_eq!(systemd.end("ended").0, 0);
            } else {
                systemd.end(end);
            }
        }
        for one in all_kinds(&lab) {
            drop(one);
        }
    }
}

/// Asks again and again on connections of their own, until its input ends; says how often it was answered, and what went
/// wrong.
const ASKS: &str = r#"
import json, select, socket, sys
answered, wrong = 0, []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        made = socket.create_connection((sys.argv[1], 5000), timeout=60)
        made.sendall(b"GET / HTTP/1.0\r\n\r\n")
        text = b""
        while more := made.recv(4096): text += more
        if b"Hello world!" in text: answered += 1
        else: wrong.append(text.decode())
    except OSError as e:
        wrong.append(repr(e))
print(json.dumps({"answered": answered, "wrong": wrong}), flush=True)
"#;

fn webapp(ports: &str) -> String {
    let app = "[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]";
    format!("name = \"unit\"\n{app}\npublish = [{ports}]\n")
}

/// As the unit has it.
const STORES: &str = "start FDSTORE=16";

#[test]
fn nobody_is_refused_while_a_stack_whose_ports_are_kept_is_started_anew() {
    for (forwards, via, beside) in [
        (false, "relay", false),
        (true, "relay", false),
        (true, "dnat", false),
        // Which keeps the host's table, with what was translated for a stack that has ended.
        (true, "dnat", true),
    ] {
        let lab = match forwards {
            true => Lab::forwarding(),
            false => Lab::new(),
        };
        let file = webapp("\"0.0.0.0:5000:5000\"") + &format!("via = \"{via}\"\n");
        lab.write("stack.toml", &file);
        if beside {
            let other = webapp("\"0.0.0.0:5001:5000\"").replace("\"unit\"", "\"beside\"");
            lab.write("beside.toml", &other);
            lab.lrpns_ok(&["up", "-d", "-f", "beside.toml"]);
        }
        let mut systemd = Systemd::of(&lab);
        assert_eq!(systemd.ask(STORES), "ready");
        let kept = "lrpns-port-tcp-0.0.0.0_5000";
        assert_eq!(systemd.ask("store"), kept);
        let asks = [PYTHON, "-c", ASKS, LAB];
        let mut client = lab.spawn(&[&["ip", "netns", "exec", "client"], &asks[..]].concat());
        let mut said = BufReader::new(client.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        // One that is killed can't say that nobody is to be translated any more, and its apps refuse until their network is gone.
        let last = if via == "dnat" { "stop 15" } else { "stop 9" };
        for end in ["stop 15", "stop 15", last] {
            if via == "dnat" {
                until("clients that are translated", || {
                    let tables = lab.lrpns_ok(&["rules", "unit", "--counters", "--json"]);
                    (look::told_counters(&tables, "host")["prerouting/dnat-any"] > 10).then_some(())
                });
            }
            let ended = systemd.end(end);
            assert_eq!(systemd.ask("store"), kept, "{ended:?}");
            if end == "stop 15" {
                assert_eq!(ended.0, 0, "{ended:?}");
                // Without a stack a client is heard all the same.
                drop(Waits::begin(&lab, true, "tcp", "5000"));
            }
            assert_eq!(systemd.ask(STORES), "ready");
            assert_eq!(systemd.ask("store"), kept);
        }
        drop(client.stdin.take());
        line.clear();
        said.read_line(&mut line).unwrap();
        let _ = client.wait();
        let told: Value = serde_json::from_str(&line).expect(&line);
        assert!(told["answered"].as_u64() > Some(0), "{told}");
        let wrong = told["wrong"].as_array().unwrap();
        let refused = |what: &&Value| what.as_str().unwrap().contains("refused");
        let count = wrong.iter().filter(refused).count();
        assert_eq!(count, 0, "{forwards} {via} {beside}: {told}");
        // Who was being served when it was killed, or stopped, may be missed: one each.
        assert!(wrong.len() <= 3, "{forwards} {via} {beside}: {told}");
        // For good: nothing is kept.
        lab.lrpns_ok(&["down", "unit"]);
        assert_eq!(systemd.end("ended").0, 0);
        assert_eq!(systemd.ask("store"), "");
        let nobody = lab.connect("127.0.0.1:5000").unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn what_is_kept_is_what_is_published() {
    let lab = Lab::new();
    let write = |ports: &str| lab.write("stack.toml", &echo(ports));
    write("\"5000:5000\", \"5300:5300/udp\"");
    let mut systemd = Systemd::of(&lab);
    assert_eq!(systemd.ask(STORES), "ready");
    let both = "lrpns-port-tcp-127.0.0.1_5000 lrpns-port-udp-127.0.0.1_5300";
    assert_eq!(systemd.ask("store"), both);
    write("\"5001:5000\", \"5000:5000\"");
    lab.lrpns_ok(&["apply", "unit", "-f", "stack.toml"]);
    let kept = "lrpns-port-tcp-127.0.0.1_5000 lrpns-port-tcp-127.0.0.1_5001";
    assert_eq!(systemd.ask("store"), kept);
    // A file that has changed meanwhile.
    assert_eq!(systemd.end("stop 15").0, 0);
    write("\"5001:5000\"");
    assert_eq!(systemd.ask(STORES), "ready");
    assert_eq!(systemd.ask("store"), "lrpns-port-tcp-127.0.0.1_5001");
    Waits::begin(&lab, false, "tcp", "5001").gets_its_answer();
    assert!(lab.connect("127.0.0.1:5000").is_err());
    assert_eq!(systemd.end("stop 15").0, 0);
    // More than there is room for, and a manager of somebody else's: nothing is kept.
    drop(systemd);
    for not in [
        "start FDSTORE=0",
        "start",
        "start FDSTORE=16 SYSTEMD_EXEC_PID=1",
    ] {
        std::fs::remove_file(lab.dir.path().join("notify")).unwrap();
        let mut systemd = Systemd::of(&lab);
        assert_eq!(systemd.ask(not), "ready");
        assert_eq!(systemd.ask("store"), "", "{not}");
        assert_eq!(systemd.end("stop 15").0, 0);
        assert!(lab.connect("127.0.0.1:5001").is_err(), "{not}");
    }
}

#[test]
fn of_what_is_translated_only_tcp_is_kept_and_nothing_taken() {
    let lab = Lab::forwarding();
    let file = echo("\"0.0.0.0:5000:5000\", \"0.0.0.0:5300:5300/udp\"");
    lab.write("stack.toml", &file);
    let mut systemd = Systemd::of(&lab);
    let tcp = "lrpns-port-tcp-0.0.0.0_5000";
    assert_eq!(systemd.ask(STORES), "ready");
    assert!(lab.lrpns_ok(&["status", "unit", "--json"]).contains("dnat"));
    assert_eq!(systemd.ask("store"), tcp);
    assert_eq!(systemd.end("stop 15").0, 0);
    // What was kept while it was relayed is not kept any more.
    lab.write("stack.toml", &format!("{file}via = \"relay\"\n"));
    assert_eq!(systemd.ask(STORES), "ready");
    let both = format!("{tcp} lrpns-port-udp-0.0.0.0_5300");
    assert_eq!(systemd.ask("store"), both);
    assert_eq!(systemd.end("stop 15").0, 0);
    lab.write("stack.toml", &format!("{file}via = \"dnat\"\n"));
    assert_eq!(systemd.ask(STORES), "ready");
    assert_eq!(systemd.ask("store"), tcp);
    for one in all_kinds(&lab) {
        one.gets_its_answer();
    }
    lab.lrpns_ok(&["down", "unit"]);
    assert_eq!(systemd.end("ended").0, 0);
    assert_eq!(systemd.ask("store"), "");
    assert!(lab.connect("127.0.0.1:5000").is_err());
    systemd.ask("unit tcp 0.0.0.0 5000 web.socket");
    let (code, said) = systemd.end("start");
    assert_eq!(code, 125, "{said}");
    let why = "0.0.0.0:5000/tcp was handed over by web.socket, and via = \"dnat\" translates";
    assert!(said.contains(why), "{said}");
}

#[test]
fn a_socket_that_is_no_published_port_is_refused_by_both_names() {
    let lab = Lab::new().with_ipv6();
    let file = "\"0.0.0.0:5000:5000\", \"[::]:5000:5000\"";
    let ipv6 = "name = \"unit\"\n[network]\nipv6 = \"fd00:18::/64\"\n";
    lab.write(
        "stack.toml",
        &webapp(file).replace("name = \"unit\"\n", ipv6),
    );
    for (unit, said) in [
        (
            "unit tcp 0.0.0.0 5001 web.socket",
            "web.socket hands over 0.0.0.0:5001/tcp, which unit does not publish: it publishes 0.0.0.0:5000/tcp, [::]:5000/tcp",
        ),
        (
            "unit udp 0.0.0.0 5000 web.socket",
            "web.socket hands over 0.0.0.0:5000/udp, which unit does not publish",
        ),
        (
            "unit tcp :: 5000 web.socket",
            "web.socket hands over [::]:5000/tcp with IPv4 in it, and unit publishes",
        ),
    ] {
        let mut systemd = Systemd::of(&lab);
        assert_eq!(systemd.ask(unit), "ok");
        let (code, all) = systemd.end("start");
        assert_eq!(code, 125, "{all}");
        assert!(all.contains(said), "{all}");
        assert!(all.contains("hint: "), "{all}");
        drop(systemd);
        std::fs::remove_file(lab.dir.path().join("notify")).unwrap();
    }
}

#[test]
fn a_port_of_a_socket_unit_is_not_taken_away_by_a_change() {
    let lab = Lab::new();
    lab.write("stack.toml", &webapp("\"5000:5000\""));
    let mut systemd = Systemd::of(&lab);
    systemd.ask("unit tcp 127.0.0.1 5000 web.socket");
    assert_eq!(systemd.ask("start"), "ready");
    lab.write("stack.toml", &webapp("\"5001:5000\""));
    let (_, said) = lab.lrpns_err(&["apply", "unit", "-f", "stack.toml"]);
    let why = "web.socket has 127.0.0.1:5000/tcp, which is published no more";
    assert!(said.contains(why), "{said}");
    lab.write("stack.toml", &webapp("\"5000:5000\", \"5001:5000\""));
    lab.lrpns_ok(&["apply", "unit", "-f", "stack.toml"]);
    for port in [5000, 5001] {
        let url = format!("http://127.0.0.1:{port}/");
        assert_eq!(lab.get(&url).unwrap(), "Hello world!");
    }
}

#[test]
fn who_waits_while_a_start_dies_at_any_step_is_served_by_the_next() {
    let lab = Lab::new();
    lab.write(
        "stack.toml",
        &echo("\"0.0.0.0:5000:5000\", \"0.0.0.0:5300:5300/udp\""),
    );
    let mut systemd = Systemd::of(&lab);
    systemd.ask("unit tcp 0.0.0.0 5000 lrpns@unit.socket");
    // Of UDP it is kept, from the first start on.
    assert_eq!(systemd.ask(STORES), "ready");
    assert_eq!(systemd.end("stop 15").0, 0);
    for how in ["DIE", "FAIL"] {
        for step in lrpns::stack::STEPS {
            let early = all_kinds(&lab);
            let dies = format!("{STORES} LRPNS_TEST_{how}_AT={step}");
            let (code, said) = systemd.end(&dies);
            assert_ne!(code, 0, "{how} {step}: {said}");
            assert_eq!(systemd.ask("store"), "lrpns-port-udp-0.0.0.0_5300");
            let later = all_kinds(&lab);
            assert_eq!(systemd.ask(STORES), "ready", "{how} {step}");
            for one in later {
                one.gets_its_answer();
            }
            // With the last step they are let in, and end with who has accepted them.
            for one in early.into_iter().filter(|_| step != "published") {
                one.gets_its_answer();
            }
            assert_eq!(systemd.end("stop 15").0, 0);
        }
    }
    lab.lrpns_ok(&["gc"]);
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
}

#[test]
fn who_comes_to_a_socket_unit_waits_until_the_audit_of_a_gate_has_passed() {
    let lab = Lab::new();
    lab.write("stack.toml", &echo("\"0.0.0.0:5000:5000\""));
    let mut systemd = Systemd::of(&lab);
    systemd.ask("unit tcp 0.0.0.0 5000 lrpns@unit.socket");
    let early = Waits::begin(&lab, true, "tcp", "5000");
    assert_eq!(systemd.ask("start --gate"), "ready");
    early.gets_its_answer();
    assert_eq!(systemd.end("stop 15").0, 0);
}

#[test]
fn who_comes_to_a_socket_unit_of_an_app_that_is_not_healthy_is_heard_when_it_is_and_when_it_ends() {
    let lab = Lab::new();
    let health = "health = { http = \"/\", interval = \"50ms\", timeout = \"500ms\", retries = 2 }\nstop_timeout = \"1s\"\n";
    lab.write("stack.toml", &(webapp("\"5000:5000\"") + health));
    let mut systemd = Systemd::of(&lab);
    systemd.ask("unit tcp 127.0.0.1 5000 web.socket");
    assert_eq!(systemd.ask("start"), "ready");
    let app = serde_json::json!(look::pid(&lab.status("unit"), "app"));
    let url = "http://127.0.0.1:5000/";
    let asks = || lab.spawn(&["curl", "-sS", "--max-time", "60", url]);
    let said = |what: &str, times| {
        until(what, || {
            let log = lab.lrpns_ok(&["logs", "unit", "--part", "app"]);
            (log.matches(what).count() == times).then_some(())
        });
    };
    lab.kill("STOP", &app);
    said("its ports are taken away", 1);
    let waits = asks();
    lab.kill("CONT", &app);
    said("its ports are published", 1);
    let answer = waits.wait_with_output().unwrap();
    assert_eq!(answer.stdout, b"Hello world!", "{}", describe(&answer));
    lab.kill("STOP", &app);
    said("its ports are taken away", 2);
    // It is ended while it hears nobody; the manager's socket hears again.
    assert_eq!(systemd.end("stop 15").0, 0);
    let waits = asks();
    lab.connect("127.0.0.1:5000").unwrap();
    assert_eq!(systemd.ask("start"), "ready");
    let answer = waits.wait_with_output().unwrap();
    assert_eq!(answer.stdout, b"Hello world!", "{}", describe(&answer));
}
