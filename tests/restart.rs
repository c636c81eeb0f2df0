//! What ends is started again: later each time, as often as its limit allows, and nothing is open meanwhile.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::Child;

use serde_json::Value;
use support::lab::{LAB, Lab, describe, until};
use support::look::{self, PYTHON, part, planned, toml_list};

/// A stack of one app that stays and one that runs this.
fn with(stack: &str, script: &str, more: &str) -> String {
    let app = |name: &str, command: &[&str], more: &str| {
        let command = toml_list(command);
        format!("[app.{name}]\nrootfs = \"host\"\ncommand = {command}\n{more}\n")
    };
    format!(
        "name = \"{stack}\"\n{}{}",
        app("web", &["/bin/sh", "-c", script], more),
        app("stays", &["/bin/sleep", "600"], "")
    )
}

fn shown<'a>(text: &'a str, name: &str) -> &'a str {
    let mut lines = text.lines();
    let line = lines.find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[test]
fn an_app_that_ends_again_and_again_is_given_up_at_its_limit() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let limit = "restart = { policy = \"on-failure\", max = 3 }";
    let file = with("shop", "echo no database >&2; exit 3", limit);
    let path = lab.write("shop.toml", &file);
    let up = || {
        let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", describe(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = up();
    assert!(
        said.contains("but web has ended with exit status 3"),
        "{said}"
    );
    assert!(said.contains("no database"), "{said}");
    let status = until("it is given up", || {
        let status = lab.status("shop");
        (part(&status, "web")["gave_up"] == true).then_some(status)
    });
    let web = part(&status, "web");
    assert_eq!(
        (&web["state"], &web["restarts"]),
        (&"ended".into(), &3.into())
    );
    assert_eq!(web["last_exit"], serde_json::json!({ "status": 3 }));
    assert_eq!(part(&status, "stays")["state"], "running");
    let text = lab.lrpns_ok(&["status", "shop"]);
    assert!(shown(&text, "web").contains("given up (3)"), "{text}");
    let text = lab.lrpns_ok(&["ps"]);
    assert!(text.contains("web given up (3), stays running"), "{text}");
    let log = lab.lrpns_ok(&["logs", "shop", "--part", "web"]);
    for line in [
        "web | is started again in 100ms\n",
        "web | is started again in 200ms, 2 times in a row by then\n",
        "web | is started again in 400ms, 3 times in a row by then\n",
        "web | is not started again: it has been 3 times, at most is 3 in a row\n",
    ] {
        assert!(log.contains(line), "{line}{log}");
    }
    let said = up();
    let expected = "but web is given up (3), it has ended with exit status 3";
    assert!(said.contains(expected), "{said}");

    // A command starts it all the same, and all begins anew.
    lab.lrpns_ok(&["restart", "shop", "web"]);
    until("it is given up again", || {
        let status = lab.status("shop");
        let web = part(&status, "web");
        (web["gave_up"] == true && web["restarts"] == 7).then_some(())
    });
}

#[test]
fn ps_and_status_name_an_app_that_ends_again_and_again() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &with("shop", "exit 1", "restart = \"always\""));
    until("three in a row", || {
        let status = lab.status("shop");
        let web = part(&status, "web");
        (web["in_a_row"].as_u64() >= Some(3)).then_some(())
    });
    let text = lab.lrpns_ok(&["ps"]);
    assert!(text.contains("web restarting ("), "{text}");
    let text = lab.lrpns_ok(&["status", "shop"]);
    assert!(shown(&text, "web").contains("restarting ("), "{text}");
    until("it waits for its next start", || {
        let status = lab.status("shop");
        part(&status, "web")["next_start"].is_string().then_some(())
    });
    // A command does not wait for the pause.
    let list: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
    let states = list[0]["app_states"].as_array().unwrap();
    assert!(
        states[0].as_str().unwrap().starts_with("restarting ("),
        "{list}"
    );
    assert_eq!(states[1], "running");
}

#[test]
fn a_stack_ends_with_the_last_app_that_is_given_up() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = "name = \"one\"\n[app]\nrootfs = \"host\"\ncommand = [\"sh\", \"-c\", \"exit 4\"]\n\
                restart = { max = 2, window = \"1m\" }\n";
    let path = lab.write("one.toml", file);
    let up = lab.lrpns(&["up", "-f", path.to_str().unwrap()]);
    assert_eq!(up.status.code(), Some(1));
    let said = String::from_utf8_lossy(&up.stdout).into_owned();
    let line = "is not started again: it has been 2 times, at most is 2 in 1m";
    assert!(said.contains(line), "{said}");
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
}

/// Connects to all that its arguments name, again and again, until its input ends; then says how often it tried and what
/// it reached.
const ATTACKER: &str = r#"
import json, socket, sys, threading
stop, tries, reached = threading.Event(), [], set()
def attack(host, port):
    while not stop.is_set():
        s = socket.socket()
        s.settimeout(0.05)
        try:
            s.connect((host, int(port)))
            reached.add(host + ":" + port)
        except OSError:
            pass
        s.close()
        tries.append(1)
threads = [threading.Thread(target=attack, args=to.split(":")) for to in sys.argv[1:]]
for thread in threads: thread.start()
print("ready", flush=True)
sys.stdin.read()
stop.set()
for thread in threads: thread.join()
print(json.dumps({"tries": len(tries), "reached": sorted(reached)}))
"#;

/// An [`ATTACKER`] that attacks.
struct Attacker(Child, BufReader<std::process::ChildStdout>);

impl Attacker {
    fn start(lab: &Lab, netns: Option<i64>, targets: &[&str]) -> Self {
        let netns = netns.map(|pid| pid.to_string());
        let enter: &[&str] = match &netns {
            Some(pid) => &["nsenter", "--net", "--target", pid, "--"],
            None => &[],
        };
        let mut child = lab.spawn(&[enter, &[PYTHON, "-c", ATTACKER], targets].concat());
        let mut says = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        says.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child, says)
    }

    /// How often it tried, and what it reached.
    fn end(mut self) -> (u64, Vec<String>) {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.1.read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        let said: Value = serde_json::from_str(&text).unwrap();
        let reached = said["reached"].as_array().unwrap().iter();
        let reached = reached.map(|to| to.as_str().unwrap().to_owned()).collect();
        (said["tries"].as_u64().unwrap(), reached)
    }
}

/// Kills a part and waits until there is another one.
fn replace(lab: &Lab, name: &str) {
    let status = lab.status("customerA");
    let before = part(&status, name)["init"].clone();
    lab.kill("KILL", &before);
    until("there is another one", || {
        let status = lab.status("customerA");
        let now = part(&status, name);
        (now["state"] == "running" && now["init"] != before).then_some(())
    });
}

#[test]
fn nothing_is_open_while_a_sidecar_or_a_relay_is_replaced() {
    if !look::machine() {
        return;
    }
    for (lab, via) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        let token = look::token();
        let more = format!("via = \"{via}\"");
        let file = look::telling("customerA", &token, "0.0.0.0:5000:5000", &more);
        look::up(&lab, &file);
        let status = lab.status("customerA");
        let sidecar = planned(&status, "/uplink/sidecar_address").to_owned();
        let host = planned(&status, "/uplink/host_address").to_owned();
        // As root of the host, and as the owner of the app's network namespace: with more than anybody has.
        // By relay there is no link to the stack on the host that a route could lead to.
        if via == "dnat" {
            lab.ok(&["ip", "route", "add", "172.18.0.0/24", "via", &sidecar]);
        }
        let app = look::pid(&status, "app");
        look::route_everywhere(&lab, app);
        let _outside = lab.listen(&format!("{LAB}:7000"));
        let control = format!("{LAB}:7000");
        let at = |address: &str, port: u16| format!("{address}:{port}");
        let to_app = [
            at("172.18.0.23", 5000),
            at("172.18.0.23", 6000),
            at(&sidecar, 6000),
            control.clone(),
        ];
        let from_app = [at(LAB, 7000), at(&host, 7000), at("10.99.0.2", 7000)];
        fn list(targets: &[String]) -> Vec<&str> {
            targets.iter().map(String::as_str).collect()
        }
        let outside = Attacker::start(&lab, None, &list(&to_app));
        let inside = Attacker::start(&lab, Some(app), &list(&from_app));
        let url = format!("http://{LAB}:5000/");
        for _ in 0..4 {
            replace(&lab, "sidecar");
            // Rules and links are the namespace's: who may come is served all the time.
            assert_eq!(look::told(lab.get(&url))["token"], token.as_str(), "{via}");
        }
        if via == "relay" {
            for _ in 0..4 {
                replace(&lab, "relay");
                assert_eq!(look::told(lab.get(&url))["token"], token.as_str());
            }
        }
        let (tries, reached) = outside.end();
        assert_eq!(reached, [control], "{via}: of {tries} attempts");
        let (more, reached) = inside.end();
        assert_eq!(reached, [""; 0], "{via}: of {more} attempts");
        assert!(
            tries > 20 && more > 20,
            "{via}: only {tries} and {more} attempts"
        );
    }
}

#[test]
fn ps_and_status_say_how_an_app_has_ended() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &with("shop", "exit 1", "restart = \"no\""));
    until("it has ended", || {
        let status = lab.status("shop");
        (part(&status, "web")["state"] == "ended").then_some(())
    });
    let text = lab.lrpns_ok(&["ps"]);
    assert!(text.contains("web ended (1), stays running"), "{text}");
    let text = lab.lrpns_ok(&["status", "shop"]);
    assert!(shown(&text, "web").contains("ended (1)"), "{text}");
}
