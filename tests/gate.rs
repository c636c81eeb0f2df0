//! `lrpns up --gate`: no published port lets anybody in before the audit has passed.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Output, Stdio};

use support::lab::{LAB, LAB6, Lab, describe, lrpns};
use support::look;

/// Somebody who tries to get in all the time, says so once, and at the end how often he has tried, and got in.
const KNOCKING: &str = r#"
import signal, socket, sys
over = False
def stop(*_):
    global over
    over = True
signal.signal(signal.SIGTERM, stop)
tried, inside = 0, 0
while not over:
    with socket.socket() as s:
        s.settimeout(0.05)
        try:
            s.connect((sys.argv[1], 5000))
            inside += 1
        except OSError:
            pass
    tried += 1
    if tried == 1:
        print("trying", flush=True)
print(tried, inside, flush=True)
"#;

struct Knocking {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Knocking {
    /// From the client's namespace, or from the lab itself.
    fn at(lab: &Lab, address: &str) -> Self {
        let mut args = vec![look::PYTHON, "-c", KNOCKING, address];
        if address == LAB {
            args.splice(0..0, ["ip", "netns", "exec", "client"]);
        }
        let mut child = lab.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "trying\n");
        Self { child, said }
    }

    /// How often he has tried, and got in.
    fn stop(mut self, lab: &Lab) -> (u32, u32) {
        lab.ok(&["pkill", "-TERM", "-f", "import signal, socket, sys"]);
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        self.child.wait().unwrap();
        let (tried, inside) = line.trim().split_once(' ').unwrap();
        (tried.parse().unwrap(), inside.parse().unwrap())
    }
}

type Make = fn() -> Lab;
const WAYS: [(Make, &str); 2] = [(Lab::new, "relay"), (Lab::forwarding, "dnat")];

fn up(lab: &Lab, weaken: &str, args: &[&str]) -> Output {
    let weaken = format!("LRPNS_TEST_WEAKEN={weaken}");
    lab.run(&[&["env", &weaken, lrpns(), "up", "--gate", "--demo"], args].concat())
}

#[test]
fn nobody_ever_gets_into_a_stack_that_does_not_stand_its_audit() {
    if !look::machine_with(&["pkill"]) {
        return;
    }
    for (lab, way) in WAYS {
        for detach in [&["-d"][..], &[]] {
            for address in [LAB, "127.0.0.1"] {
                let lab = lab();
                let knocking = Knocking::at(&lab, address);
                let up = up(&lab, "app-capability", detach);
                let (tried, inside) = knocking.stop(&lab);
                assert_eq!(inside, 0, "{way}: of {tried}");
                assert!(tried > 20, "{way}: {tried}");
                assert_eq!(up.status.code(), Some(1), "{}", describe(&up));
                let said = String::from_utf8_lossy(&up.stderr).into_owned();
                for words in ["app-cap-sets", "app-cap-inside", "3 failed, 0 unknown"] {
                    assert!(said.contains(words), "{way}: {said}");
                }
                // And nothing of it is left, nor of the one that helped with the audit.
                assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
                assert_eq!(lab.ok(&["nft", "list", "ruleset"]), "");
                let left = lab.run(&["ps", "-C", "lrpns"]);
                assert!(!left.status.success(), "{}", describe(&left));
            }
        }
    }
}

#[test]
fn a_stack_that_stands_its_audit_answers_and_was_closed_until_then() {
    if !look::machine_with(&["pkill"]) {
        return;
    }
    for (lab, way) in WAYS {
        let lab = lab();
        let up = up(&lab, "", &["-d"]);
        assert!(up.status.success(), "{}", describe(&up));
        let said = String::from_utf8_lossy(&up.stderr).into_owned();
        assert!(said.contains(&format!("by {way}")), "{said}");
        let url = format!("http://{LAB}:5000/");
        assert_eq!(lab.client_get(&url).unwrap(), "Hello world!");
        assert_eq!(lab.get("http://127.0.0.1:5000/").unwrap(), "Hello world!");
        let status = lab.status("customerA");
        assert_eq!(status["gated"], false);
        // The same as without a gate: the same rules, privileges and relay, which the audit compares with the plan.
        let audit = lab.lrpns(&["audit", "customerA"]);
        assert!(audit.status.success(), "{}", describe(&audit));
        lab.lrpns_ok(&["restart", "customerA", "relay"]);
        lab.lrpns_ok(&["restart", "customerA"]);
        assert_eq!(
            lab.client_get(&format!("http://{LAB}:5000/")).unwrap(),
            "Hello world!"
        );
        lab.lrpns_ok(&["down", "customerA"]);
    }
}

/// An app that keeps of each sender when its earliest datagram was sent, and tells who asks.
const KEEPING: &str = r#"
import json, socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 5353))
first = {}
while True:
    data, peer = s.recvfrom(99)
    if data == b"tell":
        s.sendto(json.dumps(first).encode(), peer)
    else:
        who, sent = data.decode().split()
        first[who] = min(int(sent), first.get(who, int(sent)))
"#;

/// Somebody who sends all the time, each time what the clock says; in the end, once
/// the app has heard him, what it tells.
const SENDING: &str = r#"
import socket, sys, time
who, to = sys.argv[1:]
s = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.001)
said = False
while True:
    try:
        s.sendto(f"{who} {time.time_ns()}".encode(), (to, 5353))
        s.sendto(b"tell", (to, 5353))
        answer = s.recv(999).decode()
        if f'"{who}"' in answer:
            print(answer, flush=True)
            break
    except OSError:
        pass
    if not said:
        said = True
        print("sending", flush=True)
"#;

#[test]
fn no_datagram_that_was_sent_before_the_gate_opened_ever_reaches_the_app() {
    if !look::machine() {
        return;
    }
    for (lab, way) in WAYS {
        let lab = lab().with_ipv6();
        let client = &["ip", "netns", "exec", "client"][..];
        let senders: Vec<_> = [
            (LAB, client),
            (LAB6, client),
            ("127.0.0.1", &[]),
            ("::1", &[]),
        ]
        .into_iter()
        .enumerate()
        .map(|(who, (to, prefix))| {
            let who = format!("who{who}");
            let args = [prefix, &[look::PYTHON, "-c", SENDING, &who, to]].concat();
            let mut child = lab.command(&args).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            said.read_line(&mut line).unwrap();
            assert_eq!(line, "sending\n");
            (who, child, said)
        })
        .collect();
        let file = format!(
            "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = {}\n\
             publish = [\"0.0.0.0:5353:5353/udp\", \"[::]:5353:5353/udp\"]\nvia = \"{way}\"\n",
            look::toml_list(&[look::PYTHON, "-c", KEEPING]),
        );
        lab.write("lrpns.toml", &file);
        let mut up = lab
            .command(&[lrpns(), "up", "--gate"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // What waits in a socket is what came first: long before the audit, which begins when this is said.
        let mut said = BufReader::new(up.stderr.take().unwrap());
        let (mut line, mut closed_until) = (String::new(), 0);
        while !line.contains("is up") {
            if line.contains("apps answer through the sidecar") {
                let now = std::time::SystemTime::now();
                let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
                closed_until = i64::try_from(now.as_nanos()).unwrap();
            }
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0);
        }
        assert!(closed_until > 0, "nothing was said of the apps");
        for (who, mut child, mut said) in senders {
            let mut line = String::new();
            said.read_line(&mut line).unwrap();
            child.wait().unwrap();
            let told: serde_json::Value = serde_json::from_str(&line).unwrap();
            let first = told[&who].as_i64().unwrap();
            assert!(
                first >= closed_until,
                "{way}: {who} was heard with what he sent {} ms before the gate opened",
                (closed_until - first) / 1_000_000
            );
        }
        lab.lrpns_ok(&["down", "web"]);
        up.wait().unwrap();
    }
}

#[test]
fn down_is_heard_while_the_gate_is_closed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let mut up = lab
        .command(&[lrpns(), "up", "--gate", "--demo"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(up.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("apps answer through the sidecar") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0);
    }
    lab.lrpns_ok(&["down", "customerA"]);
    assert_eq!(up.wait().unwrap().code(), Some(1));
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
}
