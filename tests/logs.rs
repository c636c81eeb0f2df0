//! `lrpns logs`: which lines it shows, and of which stack and parts.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};

use support::lab::{Lab, describe, until};

/// A file for a stack of two apps; each says ten lines, then one more for every SIGUSR1.
fn file(lab: &Lab, name: &str) -> String {
    let app = |app: &str| {
        format!(
            r#"[app.{app}]
rootfs = "host"
command = ["/bin/sh", "-c", '''
trap 'echo {app} signalled' USR1
for i in 0 1 2 3 4 5 6 7 8 9; do echo {app} line $i; done
while :; do sleep 1000 & wait; done''']
"#
        )
    };
    let text = format!("name = \"{name}\"\n{}{}", app("web"), app("db"));
    let path = lab.write(&format!("{name}.toml"), &text);
    path.to_str().unwrap().to_owned()
}

/// A stack that has said everything.
fn up(lab: &Lab, name: &str) {
    lab.lrpns_ok(&["up", "-d", "-f", &file(lab, name)]);
    until("both have said their lines", || {
        let log = lab.lrpns_ok(&["logs", name]);
        let all = log.contains("web line 9") && log.contains("db line 9");
        all.then_some(())
    });
}

/// The texts of the lines that a command shows.
fn texts(lab: &Lab, args: &[&str]) -> Vec<String> {
    let shown = lab.lrpns_ok(args);
    let lines = shown.lines().map(|line| line.split_once("| ").unwrap().1);
    lines.map(str::to_owned).collect()
}

#[test]
fn the_last_lines_those_of_a_time_and_those_that_match_are_shown() {
    let lab = Lab::new();
    up(&lab, "shop");
    let last = ["web line 7", "web line 8", "web line 9"];
    assert_eq!(texts(&lab, &["logs", "shop", "web", "-n", "3"]), last);
    assert_eq!(texts(&lab, &["logs", "shop/web", "--tail", "3"]), last);
    assert_eq!(
        texts(&lab, &["logs", "--part", "web", "-n", "3", "shop"]),
        last
    );
    assert!(texts(&lab, &["logs", "shop", "-n", "0"]).is_empty());
    let both = texts(
        &lab,
        &["logs", "shop", "web", "db", "--grep", "line [0-2]$"],
    );
    assert_eq!(both.len(), 6, "{both:?}");
    assert_eq!(
        texts(&lab, &["logs", "shop", "-n", "1", "--grep", "^web"]),
        ["web line 9"]
    );
    let (code, said) = lab.lrpns_err(&["logs", "shop", "--grep", "("]);
    assert_eq!(code, 2, "{said}");

    let all = texts(&lab, &["logs", "shop", "web", "--since", "1h"]);
    assert_eq!(all.len(), 10, "{all:?}");
    assert!(texts(&lab, &["logs", "shop", "--until", "1h"]).is_empty());
    // From the time of a line on, and up to it.
    let json = lab.lrpns_ok(&["logs", "shop", "web", "--json"]);
    let times: Vec<String> = json
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["time"].as_str().unwrap().to_owned()
        })
        .collect();
    let since = texts(&lab, &["logs", "shop", "web", "--since", &times[9]]);
    let at = times.iter().filter(|time| *time >= &times[9]).count();
    assert_eq!(since.len(), at, "{since:?}");
    let until = texts(&lab, &["logs", "shop", "web", "--until", &times[0]]);
    let at = times.iter().filter(|time| *time <= &times[0]).count();
    assert_eq!(until.len(), at, "{until:?}");
    let (code, said) = lab.lrpns_err(&["logs", "shop", "--since", "yesterday"]);
    assert_eq!(code, 2);
    assert!(said.contains("10m"), "{said}");

    // The same of one that has ended.
    lab.lrpns_ok(&["down", "shop"]);
    let ended = texts(&lab, &["logs", "shop", "web", "-n", "2"]);
    assert_eq!(ended, ["web line 9", "ended with signal SIGTERM"]);
    let grepped = texts(&lab, &["logs", "shop", "--grep", "db line 3"]);
    assert_eq!(grepped, ["db line 3"]);
}

#[test]
fn who_follows_begins_with_the_last_lines() {
    let lab = Lab::new();
    up(&lab, "shop");
    let mut follow = lab.spawn_lrpns(&["logs", "shop", "web", "-f", "-n", "1"]);
    let mut said = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || said.next().unwrap().unwrap();
    assert!(next().ends_with("web line 9"));
    let status = lab.status("shop");
    for name in ["db", "web"] {
        let parts = status["parts"].as_array().unwrap();
        let part = parts.iter().find(|part| part["name"] == name).unwrap();
        lab.kill("USR1", &part["pid"]);
    }
    // Of the other part there is nothing between.
    assert!(next().ends_with("web signalled"));
    lab.lrpns_ok(&["down", "shop"]);
    assert!(follow.wait().unwrap().success());
}

#[test]
fn a_part_alone_means_that_of_the_one_stack_that_has_it() {
    let lab = Lab::new();
    up(&lab, "shop");
    assert_eq!(texts(&lab, &["logs", "db", "-n", "1"]), ["db line 9"]);
    let status = lab.lrpns_ok(&["status", "db"]);
    assert!(status.starts_with("db of shop: running"), "{status}");
    let status = lab.lrpns_ok(&["status", "shop/sidecar", "--json"]);
    assert!(status.contains("\"name\": \"sidecar\""), "{status}");
    assert_eq!(
        lab.lrpns_ok(&["exec", "db", "--", "echo", "here"]),
        "here\n"
    );
    let said = describe(&lab.lrpns(&["restart", "shop/web", "db"]));
    assert!(said.contains("shop: web, db started again"), "{said}");
    let parts = lab.status("shop")["parts"].as_array().unwrap().clone();
    let restarts = parts.iter().map(|part| part["restarts"].as_i64().unwrap());
    assert_eq!(restarts.sum::<i64>(), 2, "{parts:?}");

    // What takes a whole stack says so, and does nothing.
    for verb in ["down", "rm", "audit", "capture"] {
        let (code, said) = lab.lrpns_err(&[verb, "web"]);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("web is a part of shop"), "{said}");
        assert!(said.contains(&format!("lrpns {verb} shop")), "{said}");
    }
    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "shop\n");

    up(&lab, "bar");
    for args in [&["logs", "web"][..], &["down", "web"], &["restart", "web"]] {
        let (code, said) = lab.lrpns_err(args);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("bar/web, shop/web"), "{said}");
    }
    let (_, said) = lab.lrpns_err(&["restart", "shop/web", "bar/db"]);
    assert!(said.contains("another stack than shop"), "{said}");
    // A stack goes before a part of its name.
    let text = "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"1000\"]\n";
    let path = lab.write("web.toml", text);
    lab.lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
    lab.lrpns_ok(&["down", "web"]);
    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "bar\nshop\n");
    lab.lrpns_ok(&["down", "bar"]);
    // And one that runs before what has ended.
    let again = texts(&lab, &["logs", "web", "--grep", "^started again"]);
    assert_eq!(again, ["started again"]);
}

#[test]
fn who_is_still_reading_when_the_stack_ends_reads_all_of_it() {
    let lab = Lab::new();
    // More than the pipe and the conversation hold. It says its last word when it is let.
    let script = "trap 'while [ ! -e /tmp/go ]; do read -t 0.05 _ <>/tmp/fifo; done; echo the last word; exit 0' TERM; \
                  mkfifo /tmp/fifo; i=0; while [ $i -lt 20000 ]; do echo \"line $i of many that nobody reads yet\"; \
                  i=$((i+1)); done; touch /tmp/said; while :; do sleep 1000 & wait; done";
    let text = format!(
        "name = \"shop\"\n[log]\nto = \"off\"\n[app.web]\nrootfs = \"host\"\n\
         command = [\"/bin/bash\", \"-c\", '''{script}''']\n"
    );
    let path = lab.write("shop.toml", &text);
    lab.lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
    until("it has said its lines", || {
        let log = lab.lrpns_ok(&["logs", "shop", "-n", "1"]);
        log.contains("line 19999 ").then_some(())
    });
    let mut follow = lab.spawn_lrpns(&["logs", "shop", "web", "-f"]);
    let mut said = BufReader::new(follow.stdout.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.contains("line 0 "), "{first}");

    let mut down = lab.spawn_lrpns(&["down", "shop"]);
    until("the end has begun", || {
        let log = lab.lrpns_ok(&["logs", "shop", "-n", "1"]);
        log.contains("waiting for its command to end").then_some(())
    });
    // Who asks how it is, or looks why it takes so long, is answered.
    let status = lab.status("shop");
    assert_eq!(
        (&status["stopping"], &status["parts"][1]["state"]),
        (&true.into(), &"running".into())
    );
    let list: serde_json::Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
    assert_eq!(list[0]["state"], "stopping");
    let (_, refused) = lab.lrpns_err(&["restart", "shop/web"]);
    assert!(refused.contains("shop is being taken down"), "{refused}");
    lab.lrpns_ok(&["exec", "shop/web", "--", "touch", "/tmp/go"]);
    let rest: Vec<String> = said.lines().map(Result::unwrap).collect();
    // How it ended may be known before what it said last is read.
    for words in [
        "line 19999 of many that nobody reads yet",
        "| the last word",
        "ended with",
    ] {
        let said = rest.iter().any(|line| line.contains(words));
        assert!(said, "no {words}, last: {:?}", rest.last());
    }
    assert!(down.wait().unwrap().success() && follow.wait().unwrap().success());
}
