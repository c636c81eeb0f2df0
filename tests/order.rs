//! `after` and `job`: apps come up in their order, at `up` and at `apply`, and a job runs to its end.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use serde_json::Value;
use support::lab::{Lab, describe};
use support::look::{self, PYTHON, part, toml_list};
use support::user::User;

/// Writes down that it runs, then listens.
const SERVER: &str = r#"
import socket, sys
with open("/data/order", "a") as order:
    print(sys.argv[1], file=order)
s = socket.create_server(("0.0.0.0", int(sys.argv[2])))
while True:
    s.accept()[0].close()
"#;

/// Needs the server at once, and writes down that it has been there.
const MIGRATE: &str = r#"
import socket, sys
socket.create_connection(("db", 5432)).close()
with open("/data/order", "a") as order:
    print("migrate", file=order)
"#;

/// Ends with 7 if the job was not done before it.
const WEB: &str = r#"
import socket, sys
with open("/data/order", "r+") as order:
    if "migrate" not in order.read():
        sys.exit(7)
    print("web", file=order)
s = socket.create_server(("0.0.0.0", 5000))
while True:
    c = s.accept()[0]
    c.recv(9999)
    c.sendall(b"HTTP/1.0 200 OK\r\n\r\nfrom web")
    c.close()
"#;

fn app(name: &str, command: &[&str], data: &Path, more: &str) -> String {
    format!(
        "[app.{name}]\nrootfs = \"host\"\ncommand = {}\nvolumes = [\"{}:/data:rw\"]\n{more}\n",
        toml_list(command),
        data.display()
    )
}

fn web(data: &Path, after: &str) -> String {
    let more = format!("publish = [\"0.0.0.0:5000:5000\"]\n{after}");
    app("web", &[PYTHON, "-c", WEB], data, &more)
}

fn migrate(data: &Path) -> String {
    let more = "job = true\nafter = [\"db\"]\nconnect = [\"db:5432\"]";
    app("migrate", &[PYTHON, "-c", MIGRATE], data, more)
}

fn db(data: &Path) -> String {
    app("db", &[PYTHON, "-c", SERVER, "db", "5432"], data, "")
}

const AFTER: &str = "after = { db = \"started\", migrate = \"done\" }";

/// The last first, as none of the three could come up.
fn shop(data: &Path) -> String {
    format!(
        "name = \"shop\"\n{}{}{}",
        web(data, AFTER),
        migrate(data),
        db(data)
    )
}

fn said(data: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(data.join("order")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Asserts that the texts are in `all`, one after the other.
#[track_caller]
fn assert_in_order(all: &str, texts: &[&str]) {
    let mut rest = all;
    for text in texts {
        let Some(at) = rest.find(text) else {
            panic!("no {text:?} in its place in\n{all}");
        };
        rest = &rest[at + text.len()..];
    }
}

fn restarts(status: &Value, name: &str) -> u64 {
    part(status, name)["restarts"].as_u64().unwrap()
}

#[test]
fn apps_come_up_in_their_order_and_a_job_is_done_before_those_after_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let up = look::up(&lab, &shop(&data));
    assert_in_order(
        &up,
        &[
            "db is started\n",
            "db listens\n",
            "migrate is started, after db\n",
            "migrate is done\n",
            "web is started, after db, migrate (done)\n",
            "web listens\n",
            "shop is up",
        ],
    );
    assert_eq!(said(&data), ["db", "migrate", "web"]);
    assert_eq!(lab.get("http://127.0.0.1:5000/").unwrap(), "from web");
    let status = lab.status("shop");
    let job = part(&status, "migrate");
    assert_eq!(job["state"], "ended");
    assert_eq!(job["last_exit"], serde_json::json!({ "status": 0 }));
    let shown = lab.lrpns_ok(&["status", "shop"]);
    let line = shown.lines().find(|line| line.starts_with(" migrate  "));
    assert!(line.unwrap().contains("done"), "{shown}");
    let audit = lab.lrpns(&["audit", "shop", "--json"]);
    assert_eq!(look::findings(&audit.stdout), [""; 0]);

    // Who comes after a part that starts again runs on; what was done once is not done again unasked.
    lab.lrpns_ok(&["restart", "shop", "db"]);
    assert_eq!(said(&data), ["db", "migrate", "web", "db"]);
    let status = lab.status("shop");
    assert_eq!(restarts(&status, "db"), 1);
    assert_eq!(restarts(&status, "web"), 0);
    lab.lrpns_ok(&["restart", "shop"]);
    let status = lab.status("shop");
    assert_eq!(
        (restarts(&status, "web"), restarts(&status, "migrate")),
        (1, 0)
    );
    lab.lrpns_ok(&["restart", "shop", "migrate"]);
    assert_eq!(said(&data).last().map(String::as_str), Some("migrate"));
    lab.lrpns_ok(&["down", "shop"]);
}

#[test]
fn a_job_that_fails_ends_the_start_with_what_it_said() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let before = lab.traces();
    let data = lab.volume("data");
    let job = "echo no such table >&2; exit 3";
    let file = format!(
        "name = \"shop\"\n{}{}",
        app("migrate", &["/bin/sh", "-c", job], &data, "job = true"),
        web(&data, "after = { migrate = \"done\" }")
    );
    let file = lab.write("shop.toml", &file);
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no such table"), "{said}");
    let error = "migrate ended with exit status 3; it is a job, which has to end with 0";
    assert!(said.contains(error), "{said}");
    assert!(!said.contains("web is started"), "{said}");
    lab.assert_as(&before);
}

#[test]
fn a_job_has_its_time_and_no_more() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let more = "job = true\nstart_timeout = \"2500ms\"";
    let file = format!(
        "name = \"shop\"\n{}",
        app("migrate", &["/bin/sleep", "600"], &data, more)
    );
    let file = lab.write("shop.toml", &file);
    let (_, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert_in_order(
        &said,
        &[
            "waiting for migrate to end, for 2 s of at most 2",
            "migrate is a job and has not ended after 2 s",
        ],
    );
}

#[test]
fn an_app_that_ends_before_those_after_it_are_started_ends_the_start() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    // The job goes on for as long as the one that both wait for lives.
    let db = "sleep 0.2; exit 5";
    let job = "while :; do sleep 60; done";
    let file = format!(
        "name = \"shop\"\n{}{}{}",
        app("db", &["/bin/sh", "-c", db], &data, ""),
        app("never", &["/bin/sh", "-c", job], &data, "job = true"),
        app(
            "web",
            &["/bin/sh", "-c", job],
            &data,
            "after = { db = \"started\", never = \"done\" }"
        ),
    );
    let file = lab.write("shop.toml", &file);
    let (_, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    let error = "db ended with exit status 5 before web was started, which comes after it";
    assert!(said.contains(error), "{said}");
}

#[test]
fn a_stack_of_jobs_ends_with_them() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let write = |name: &str| format!("echo {name} >>/data/order");
    let file = format!(
        "name = \"batch\"\n{}{}",
        app(
            "second",
            &["/bin/sh", "-c", &write("second")],
            &data,
            "job = true\nafter = { first = \"done\" }"
        ),
        app(
            "first",
            &["/bin/sh", "-c", &write("first")],
            &data,
            "job = true"
        ),
    );
    let file = lab.write("batch.toml", &file);
    let up = lab.lrpns(&["up", "-f", file.to_str().unwrap()]);
    assert!(up.status.success(), "{}", describe(&up));
    assert_eq!(said(&data), ["first", "second"]);
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
}

#[test]
fn apply_keeps_the_order() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    std::fs::write(data.join("order"), "migrate\n").unwrap();
    std::os::unix::fs::chown(data.join("order"), Some(1000), Some(1000)).unwrap();
    look::up(&lab, &format!("name = \"shop\"\n{}", web(&data, "")));
    std::fs::write(data.join("order"), "").unwrap();
    // Both that join come before the one that has to start again, and it is the first of the file.
    let file = format!(
        "name = \"shop\"\n{}env = {{ NEW = \"1\" }}\n{}{}",
        web(&data, AFTER),
        migrate(&data),
        db(&data)
    );
    let path = lab.write("new.toml", &file);
    let path = path.to_str().unwrap();
    let apply = lab.lrpns(&["apply", "-f", path]);
    assert!(apply.status.success(), "{}", describe(&apply));
    assert_eq!(said(&data), ["db", "migrate", "web"]);
    let status = lab.status("shop");
    assert_eq!(part(&status, "migrate")["state"], "ended");

    // One that fails takes the change back.
    let bad = file
        .replace("(\\\"db\\\", 5432)", "(\\\"db\\\", 1)")
        .replace("NEW", "NEWER");
    assert_ne!(bad, file);
    lab.write("new.toml", &bad);
    let (_, said) = lab.lrpns_err(&["apply", "-f", path]);
    assert!(said.contains("migrate ended with exit status 1"), "{said}");
    assert!(said.contains("all is as it was before"), "{said}");
    assert_eq!(lab.get("http://127.0.0.1:5000/").unwrap(), "from web");
}

#[test]
fn the_plan_shows_the_order_and_a_circle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |file: &str| {
        let path = dir.path().join("shop.toml");
        std::fs::write(&path, file).unwrap();
        std::process::Command::new(support::lab::lrpns())
            .args(["plan", "-v", "--trust-file", "-f"])
            .arg(path)
            .output()
            .unwrap()
    };
    let shop = shop(dir.path());
    let shown = plan(&shop);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("order of start: db, then migrate (a job), then web\n"),
        "{shown}"
    );
    assert!(
        shown.contains("  comes up after db, migrate (done)  ("),
        "{shown}"
    );
    assert!(
        shown.contains("  is a job: it has to end with 0, within 60m  ("),
        "{shown}"
    );
    let round = plan(&format!("{shop}after = [\"web\"]\n"));
    assert_eq!(round.status.code(), Some(2), "{}", describe(&round));
    let said = String::from_utf8_lossy(&round.stderr).into_owned();
    let expected = "no app of these can be the first: `web` comes after `db` comes after `web`";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn the_same_without_root() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    let data = lab.volume("data");
    user.up(&shop(&data));
    assert_eq!(said(&data), ["db", "migrate", "web"]);
    assert_eq!(lab.get("http://127.0.0.1:5000/").unwrap(), "from web");
}
