//! What a stack that has ended leaves to be read: `ps -a`, `status` and `logs` of it, and how that goes again.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::lab::{Lab, describe, until};
use support::user::User;

/// A file for a stack of one app that runs a shell command and publishes nothing.
fn file(lab: &Lab, name: &str, restart: &str, script: &str) -> String {
    let text = format!(
        r#"name = "{name}"
[app]
rootfs = "host"
command = ["/bin/sh", "-c", '''{script}''']
restart = "{restart}"
"#
    );
    let path = lab.write(&format!("{name}.toml"), &text);
    path.to_str().unwrap().to_owned()
}

/// Waits for the end of a stack that ends by itself.
fn until_ended(lab: &Lab, name: &str) {
    until("the stack ends", || {
        lab.lrpns_ok(&["ps", "-q"]).is_empty().then_some(())
    });
    assert!(
        lab.lrpns_ok(&["ps", "-a", "-q"])
            .lines()
            .any(|line| line == name)
    );
}

/// `status --json` of a stack that has ended, which is a failed check.
fn ended(lab: &Lab, name: &str) -> Value {
    let output = lab.lrpns(&["status", name, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_stack_whose_app_ends_leaves_how_and_what_it_said_last() {
    let lab = Lab::new();
    // Told to end when the stack is known to be up, so that it is an end after the start.
    let script =
        "trap 'echo FATAL >&2; exit 3' USR1; echo begun; while :; do read -r x </dev/zero; done";
    let script = script.replace("read -r x </dev/zero", "sleep 1000 & wait");
    let file = file(&lab, "shop", "no", &script);
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let status = lab.status("shop");
    lab.kill("USR1", &status["parts"][1]["pid"]);
    until_ended(&lab, "shop");

    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "");
    let list = lab.lrpns_ok(&["ps", "-a"]);
    assert!(
        list.contains("shop") && list.contains("ended (3)"),
        "{list}"
    );
    let list: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "-a", "--json"])).unwrap();
    assert_eq!(list[0]["state"], "ended");
    assert_eq!(list[0]["exit"], 3);

    let log = lab.lrpns_ok(&["logs", "shop"]);
    assert!(log.contains("app | begun"), "{log}");
    assert!(log.contains("app | FATAL"), "{log}");
    assert!(log.contains("app | ended with exit status 3"), "{log}");
    let (code, said) = lab.lrpns_err(&["logs", "shop", "--part", "db"]);
    assert_eq!(code, 1);
    assert!(said.contains("shop had no part `db`"), "{said}");

    let output = lab.lrpns(&["status", "shop"]);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("its app app ended with exit status 3"),
        "{said}"
    );
    assert!(said.contains("app | FATAL"), "{said}");
    let document = ended(&lab, "shop");
    assert_eq!(document["state"], "ended");
    assert_eq!(document["cause"], "app-ended");
    assert_eq!(document["since"], status["since"]);
    let parts = document["parts"].as_array().unwrap();
    let app = parts.iter().find(|part| part["name"] == "app").unwrap();
    assert_eq!(app["exit"]["status"], 3);
    assert_eq!(app["out_of_memory"], false);
    assert!(app["ended"].is_string(), "{app}");
    let sidecar = parts.iter().find(|part| part["name"] == "sidecar").unwrap();
    assert_eq!(sidecar["exit"], Value::Null);

    // What else would need it running says how it ended.
    let (_, said) = lab.lrpns_err(&["restart", "-f", &file]);
    assert!(said.contains("ended with exit status 3"), "{said}");
    // It is no leftover of a crash.
    let gc = lab.lrpns(&["gc"]);
    assert!(
        describe(&gc).contains("nothing to remove"),
        "{}",
        describe(&gc)
    );
    let gc = lab.lrpns(&["gc", "--all"]);
    assert!(
        describe(&gc).contains("shop is forgotten"),
        "{}",
        describe(&gc)
    );
    assert_eq!(lab.lrpns_ok(&["ps", "-a", "-q"]), "");
    assert!(!lab.root().join("run/lrpns").exists());
    let (_, said) = lab.lrpns_err(&["status", "shop"]);
    assert!(said.contains("shop does not run"), "{said}");
}

#[test]
fn the_next_stack_of_that_name_hides_it_and_its_end_replaces_it() {
    let lab = Lab::new();
    let file = file(&lab, "shop", "no", "echo $$ $0 run; exec sleep 1000");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.lrpns_ok(&["down", "shop"]);
    let first = ended(&lab, "shop");
    assert_eq!(first["cause"], "stopped");
    assert_eq!(first["exit"], 0);
    assert_eq!(first["by"]["command"]["uid"], 0);
    // It ends on SIGTERM, as every app is asked to.
    let parts = first["parts"].as_array().unwrap();
    let app = parts.iter().find(|part| part["name"] == "app").unwrap();
    assert_eq!(app["exit"]["signal"], 15);

    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    assert_eq!(lab.lrpns_ok(&["ps", "-a", "-q"]), "shop\n");
    assert!(lab.lrpns_ok(&["ps", "-a"]).contains(" up "));
    assert!(lab.status("shop")["plan"].is_object());
    let previous = lab.lrpns_ok(&["status", "shop", "--previous", "--json"]);
    let previous: Value = serde_json::from_str(&previous).unwrap();
    assert_eq!(previous, first);
    let log = lab.lrpns_ok(&["logs", "shop", "--previous"]);
    assert!(log.contains("ended with signal SIGTERM"), "{log}");
    let (code, said) = lab.lrpns_err(&["rm", "shop"]);
    assert_eq!(code, 1);
    assert!(said.contains("lrpns down shop"), "{said}");

    let supervisor = lab.status("shop")["supervisor"].clone();
    lab.kill("TERM", &supervisor);
    until_ended(&lab, "shop");
    let second = ended(&lab, "shop");
    assert_ne!(second["ended"], first["ended"]);
    assert_eq!(second["by"]["signal"], 15);
    lab.lrpns_ok(&["rm", "shop"]);
    assert_eq!(lab.lrpns_ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn a_start_that_fails_leaves_why_and_a_command_of_run_nothing() {
    let lab = Lab::new();
    let text = r#"name = "web"
[app]
rootfs = "host"
command = ["/bin/sh", "-c", "echo no such table >&2; exit 4"]
publish = ["127.0.0.1:8000:8000"]
"#;
    let path = lab.write("web.toml", text);
    lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert!(lab.lrpns_ok(&["ps", "-a"]).contains("failed (4)"));
    let document = ended(&lab, "web");
    assert_eq!(document["cause"], "failed");
    assert_eq!(document["since"], Value::Null);
    assert_eq!(document["parts"][0]["exit"]["status"], 4);
    let log = lab.lrpns_ok(&["logs", "web"]);
    assert!(log.contains("no such table"), "{log}");

    let output = lab.lrpns(&["run", "--name", "once", "--", "/bin/sh", "-c", "exit 5"]);
    assert_eq!(output.status.code(), Some(5), "{}", describe(&output));
    assert_eq!(lab.lrpns_ok(&["ps", "-a", "-q"]), "web\n");
}

#[test]
fn an_app_without_root_leaves_the_same() {
    let lab = Lab::new();
    let user = User::new(&lab, 4242);
    if !user.may() {
        return;
    }
    let file = file(&lab, "shop", "no", "echo mine; exec sleep 1000");
    user.lrpns_ok(&["up", "-d", "-f", &file]);
    user.lrpns_ok(&["down", "shop"]);
    let output = user.lrpns(&["status", "shop", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["mode"], "rootless");
    assert_eq!(document["by"]["command"]["uid"], 4242);
    assert!(user.lrpns_ok(&["logs", "shop"]).contains("mine"));
    user.lrpns_ok(&["gc", "--all"]);
    let runtime = lab.root().join("run/lab/4242/lrpns");
    assert!(!runtime.exists());
}

#[test]
fn a_supervisor_that_was_killed_leaves_how_too_once_somebody_finds_it() {
    let lab = Lab::new();
    for finds in ["ps", "down", "up"] {
        let script = "echo FATAL disk full >&2; exec sleep 1000";
        let name = format!("shop-{finds}");
        let text = std::fs::read_to_string(file(&lab, &name, "no", script)).unwrap();
        let file = lab.write("it.toml", &format!("{text}[log]\nto = \"file\"\n"));
        let file = file.to_str().unwrap();
        lab.lrpns_ok(&["up", "-d", "-f", file]);
        until("it is said", || {
            let log = lab.lrpns_ok(&["logs", &name]);
            log.contains("FATAL").then_some(())
        });
        let status = lab.status(&name);
        lab.kill("KILL", &status["supervisor"]);
        until("it is gone", || {
            // Its locks with it: a process is a zombie after it has closed everything.
            let ended = format!(
                "! grep '^State:' /proc/{}/status 2>/dev/null | grep -qv Z",
                status["supervisor"]
            );
            let ended = lab.run(&["sh", "-c", &ended]);
            ended.status.success().then_some(())
        });
        match finds {
            "ps" => {
                let list = lab.lrpns_ok(&["ps"]);
                assert!(list.contains("crashed"), "{list}");
                lab.lrpns_ok(&["down", &name]);
            }
            "up" => {
                lab.lrpns_ok(&["up", "-d", "-f", file]);
                lab.lrpns_ok(&["status", &name]);
                let before = lab.lrpns(&["status", &name, "--previous"]);
                let said = String::from_utf8(before.stdout).unwrap();
                assert!(
                    said.contains("its supervisor was killed, or crashed"),
                    "{said}"
                );
                lab.lrpns_ok(&["down", &name]);
                continue;
            }
            _ => drop(lab.lrpns_ok(&["down", &name])),
        }
        let document = ended(&lab, &name);
        assert_eq!(document["cause"], "killed");
        assert_eq!(document["run"], status["plan"]["run"]);
        let list = lab.lrpns_ok(&["ps", "-a"]);
        let line = list.lines().find(|line| line.contains(&name)).unwrap();
        assert!(line.contains("killed"), "{list}");
        let output = lab.lrpns(&["status", &name]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains("its supervisor was killed, or crashed"),
            "{said}"
        );
        assert!(said.contains("app | FATAL disk full"), "{said}");
    }
}
