//! The log in systemd's journal: by the real journald, in a lab.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;
use support::lab::{CLIENT, LAB, Lab, describe, until};
use support::skip;

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// A lab in which journald runs, as on a machine that systemd has started.
struct Booted {
    lab: Lab,
    journald: Child,
}

impl Booted {
    fn new() -> Option<Self> {
        if !Path::new(JOURNALD).exists() || support::program("journalctl").is_none() {
            skip("journald", "there is no systemd-journald here");
            return None;
        }
        let lab = Lab::forwarding();
        lab.ok(&["mkdir", "-p", "/run/systemd/journal", "/run/systemd/system"]);
        let booted = Self {
            journald: Self::start(&lab),
            lab,
        };
        booted.wait();
        Some(booted)
    }

    fn start(lab: &Lab) -> Child {
        let mut command = lab.command(&[JOURNALD]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Ends journald, by its number in the lab: the child is what has joined the lab, and waits for it.
    fn end(&mut self) {
        let pid = self.lab.ok(&["pgrep", "-x", "systemd-journal"]);
        self.lab.ok(&["kill", "-s", "KILL", pid.trim()]);
        self.journald.wait().unwrap();
    }

    fn wait(&self) {
        until("journald listens", || {
            let sync = self.lab.run(&["journalctl", "--sync"]);
            sync.status.success().then_some(())
        });
    }

    /// What the journal has, by these fields.
    fn entries(&self, fields: &[&str]) -> Vec<Value> {
        self.lab.ok(&["journalctl", "--sync"]);
        let args = [&["journalctl", "--quiet", "--output=json"], fields].concat();
        let said = self.lab.run(&args);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let entries = said.lines().map(|line| serde_json::from_str(line).unwrap());
        entries.collect()
    }

    fn up(&self, log: &str) {
        let text = format!(
            r#"name = "shop"
[log]
{log}
[app.web]
rootfs = "builtin:webapp"
command = ["/webapp"]
env = {{ PROVIDER = "world", PORT = "5000" }}
publish = ["0.0.0.0:5000:5000"]
allow = ["{LAB}"]
[app.db]
rootfs = "host"
command = ["/bin/sh", "-c", "echo FATAL >&2; exec sleep 1000"]
"#
        );
        let path = self.lab.write("shop.toml", &text);
        self.lab
            .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
    }
}

#[test]
fn each_line_is_in_the_journal_with_fields_and_no_file_is_written() {
    let Some(booted) = Booted::new() else { return };
    let lab = &booted.lab;
    booted.up("");
    let of_db = ["LRPNS_STACK=shop", "LRPNS_PART=db", "LRPNS_STREAM=err"];
    let found = until("the line is there", || {
        booted.entries(&of_db).first().cloned()
    });
    assert_eq!(found["MESSAGE"], "FATAL");
    assert_eq!(found["PRIORITY"], "3");
    assert_eq!(found["SYSLOG_IDENTIFIER"], "lrpns");
    assert_eq!(
        lab.get(&format!("http://{LAB}:5000/")).unwrap(),
        "Hello world!"
    );
    // Whoever isn't let in is named, with the rule.
    assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_err());
    let refused = until("the packet is there", || {
        let all = booted.entries(&["LRPNS_STACK=shop", &format!("LRPNS_CLIENT={CLIENT}")]);
        all.into_iter()
            .find(|entry| entry["LRPNS_RULE"].is_string())
    });
    assert_eq!(refused["PRIORITY"], "4", "{refused}");
    assert_eq!(refused["LRPNS_PART"], "traffic");
    assert!(!lab.root().join("var/log/lrpns").exists());

    // After the supervisor's death it is where it was, and logs finds it.
    lab.kill("KILL", &lab.status("shop")["supervisor"]);
    // Who asks a supervisor while it is dying hears that it has ended.
    let log = until("the log is found", || {
        let output = lab.lrpns(&["logs", "shop", "db"]);
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(log)
    });
    assert!(log.contains("db | FATAL"), "{log}");
    // Also once somebody has noted that it is dead, and has tidied up.
    assert_eq!(lab.lrpns(&["status", "shop"]).status.code(), Some(1));
    assert!(lab.lrpns_ok(&["logs", "shop", "db"]).contains("db | FATAL"));
    lab.lrpns_ok(&["down", "shop"]);
    assert!(lab.lrpns_ok(&["logs", "shop", "db"]).contains("db | FATAL"));
    booted.up("");
    lab.lrpns_ok(&["down", "shop"]);
    let count = |args: &[&str]| {
        lab.ok(&["journalctl", "--sync"]);
        let log = lab.lrpns_ok(&[&["logs", "shop", "db", "--grep", "FATAL"], args].concat());
        log.lines().count()
    };
    assert_eq!(count(&[]), 1);
    assert_eq!(count(&["--since", "1h"]), 2);
}

#[test]
fn both_are_had_if_asked_for_and_a_journald_that_is_gone_holds_nothing_up() {
    let Some(mut booted) = Booted::new() else {
        return;
    };
    booted.up("to = \"both\"");
    let of_db = ["LRPNS_STACK=shop", "LRPNS_PART=db", "LRPNS_STREAM=err"];
    until("the line is there", || {
        booted.entries(&of_db).first().cloned()
    });
    let file = booted.lab.root().join("var/log/lrpns/shop/db.log");
    assert!(std::fs::read_to_string(file).unwrap().contains("FATAL"));
    booted.end();
    booted.lab.lrpns_ok(&["restart", "shop/db"]);
    booted
        .lab
        .ok(&["sh", "-c", "rm -f /run/systemd/journal/socket"]);
    booted.journald = Booted::start(&booted.lab);
    booted.wait();
    until("it is found again", || {
        booted.lab.lrpns_ok(&["restart", "shop/db"]);
        let all = booted.entries(&["LRPNS_STACK=shop", "LRPNS_PART=db"]);
        let missing = |entry: &Value| {
            let text = entry["MESSAGE"].as_str().unwrap_or_default();
            text.contains("lines are missing here")
        };
        all.iter().any(missing).then_some(())
    });
    booted.lab.lrpns_ok(&["down", "shop"]);

    let lab = Lab::new();
    let text = "name = \"x\"\n[log]\nto = \"journal\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"9\"]\n";
    let path = lab.write("x.toml", text);
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(125), "{}", describe(&output));
    let said = describe(&output);
    assert!(said.contains("/run/systemd/journal/socket"), "{said}");
}
