//! A daemon: its command goes to the background and ends, and what it has left is the app.
#![allow(clippy::unwrap_used)]

mod support;
use serde_json::Value;
use support::lab::{LAB, Lab, until};
use support::look::{self, PYTHON};
use support::user::User;

/// Goes to the background as daemon(7) has it, by two forks; what is left answers, or ends as a client asks it to.
const DAEMON: &str = r#"
import os, signal, socket, sys
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
def asked(number, frame):
    print("asked to end", file=sys.stderr, flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, asked)
server = socket.create_server(("0.0.0.0", 8000))
while True:
    client, _ = server.accept()
    word = client.recv(100)
    if b"/3" in word:
        sys.exit(3)
    if b"/kill" in word:
        os.kill(os.getpid(), signal.SIGKILL)
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
    client.close()
"#;

fn stack(more: &str) -> String {
    let command = look::toml_list(&[PYTHON, "-c", DAEMON]);
    format!(
        "name = \"d\"\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [\"0.0.0.0:5000:8000\"]\n{more}\n"
    )
}

fn until_said(lab: &Lab, text: &str) {
    until(text, || {
        let log = lab.lrpns_ok(&["logs", "d", "--grep", text]);
        (!log.is_empty()).then_some(())
    });
}

/// The number that the daemon has within.
fn answered(lab: &Lab) -> i64 {
    let url = format!("http://{LAB}:5000/");
    lab.client_get(&url).unwrap().parse().unwrap()
}

/// The number within of the process that is shown as the app.
fn shown(lab: &Lab, status: &Value) -> i64 {
    let line = look::status_line(lab, look::pid(status, "app"), "NSpid");
    line.split_whitespace()
        .next_back()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn what_a_daemon_leaves_running_is_the_app() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &stack("forks = true"));
    let within = answered(&lab);
    // The first that was left ended as well, and its heir is who answers.
    until("the daemon is shown as the app", || {
        (shown(&lab, &lab.status("d")) == within).then_some(())
    });
    let said = lab.lrpns_ok(&["exec", "d", "--", "/bin/echo", "here"]);
    assert_eq!(said, "here\n");
    let audit = lab.lrpns_ok(&["audit", "d"]);
    assert!(audit.contains("0 failed, 0 unknown"), "{audit}");
    assert_eq!(answered(&lab), within);
    lab.lrpns_ok(&["down", "d"]);
    until_said(&lab, "asked to end");
    let log = lab.lrpns_ok(&["logs", "d"]);
    assert!(log.contains("ended with exit status 0"), "{log}");
    assert!(!log.contains("killed"), "{log}");
}

#[test]
fn a_daemon_that_fails_is_an_app_that_fails() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &stack("forks = true\nrestart = \"on-failure\""));
    for (path, exit) in [("3", "exit status 3"), ("kill", "signal SIGKILL")] {
        let within = answered(&lab);
        until("the daemon is shown as the app", || {
            (shown(&lab, &lab.status("d")) == within).then_some(())
        });
        let before = look::pid(&lab.status("d"), "app");
        let _ = lab.client_get(&format!("http://{LAB}:5000/{path}"));
        until_said(&lab, &format!("ended with {exit}"));
        until("it is started again", || {
            let status = lab.status("d");
            let parts = status["parts"].as_array().unwrap();
            let app = parts.iter().find(|part| part["name"] == "app").unwrap();
            let runs = app["state"] == "running" && app["pid"].as_i64() != Some(before);
            runs.then_some(())
        });
    }
    lab.lrpns_ok(&["down", "d"]);
}

#[test]
fn without_the_key_a_daemon_ends_with_its_command_and_is_told_of_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // One that never listens: what goes to the background might, for a moment.
    let command = look::toml_list(&["/bin/sh", "-c", "sleep infinity & exit 0"]);
    let file = format!(
        "name = \"d\"\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [\"5000:8000\"]\nrestart = \"no\"\n"
    );
    let path = lab.write("d.toml", &file);
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("forks = true"), "{said}");
}

#[test]
fn a_daemon_of_a_users_is_the_app_too() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4242);
    let command = look::toml_list(&[PYTHON, "-c", DAEMON]);
    user.up(&format!(
        "name = \"d\"\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [\"0.0.0.0:5000:8000\"]\nforks = true\n"
    ));
    answered(&lab);
    user.lrpns_ok(&["down", "d"]);
}
