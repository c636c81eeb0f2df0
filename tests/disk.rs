//! The log on disk: it survives the stack and its supervisor, in bounds, whatever an app and the disk do.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use support::lab::{Lab, describe, until};
use support::user::User;

/// A file for a stack of two apps of the host's shell; `log` are lines of `[log]`.
fn file(lab: &Lab, log: &str, web: &str, db: &str) -> String {
    let app = |name: &str, script: &str| {
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\nrestart = \"no\"\n"
        )
    };
    let text = format!(
        "name = \"shop\"\n[log]\n{log}\n{}{}",
        app("web", web),
        app("db", db)
    );
    let path = lab.write("shop.toml", &text);
    path.to_str().unwrap().to_owned()
}

/// Says a line and stays.
fn says(text: &str) -> String {
    format!("echo {text}; exec sleep 1000")
}

fn up(lab: &Lab, log: &str, web: &str, db: &str) {
    lab.lrpns_ok(&["up", "-d", "-f", &file(lab, log, web, db)]);
}

/// Waits until the log has a line.
fn until_said(lab: &Lab, text: &str) {
    until("the app says it", || {
        let log = lab.lrpns_ok(&["logs", "shop", "--grep", text]);
        (!log.is_empty()).then_some(())
    });
}

fn kill_supervisor(lab: &Lab) {
    let supervisor = lab.status("shop")["supervisor"].clone();
    lab.kill("KILL", &supervisor);
    until("it is dead", || {
        let list = lab.lrpns_ok(&["ps"]);
        list.contains("crashed").then_some(())
    });
}

fn directory(lab: &Lab) -> PathBuf {
    lab.root().join("var/log/lrpns/shop")
}

fn bytes(lab: &Lab, path: &str) -> u64 {
    let said = lab.ok(&["du", "-sb", "--apparent-size", path]);
    said.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn the_log_survives_the_supervisors_death_and_the_stack() {
    let lab = Lab::new();
    up(&lab, "", &says("first"), &says("quiet"));
    until_said(&lab, "first");
    until_said(&lab, "quiet");
    kill_supervisor(&lab);
    let log = lab.lrpns_ok(&["logs", "shop"]);
    assert!(
        log.contains("web | first") && log.contains("db | quiet"),
        "{log}"
    );
    lab.lrpns_ok(&["down", "shop"]);
    let log = lab.lrpns_ok(&["logs", "shop", "web"]);
    assert!(log.ends_with("web | first\n"), "{log}");

    // Of the next run nothing is mixed with it, unless it is asked for.
    up(&lab, "", &says("second"), &says("quiet"));
    until_said(&lab, "second");
    let shown = |args: &[&str]| lab.lrpns_ok(&[&["logs", "shop", "web"], args].concat());
    assert!(!shown(&[]).contains("first"));
    let since = shown(&["--since", "1h"]);
    let places = ["first", "second"].map(|text| since.find(text));
    assert!(places[0] < places[1] && places[0].is_some(), "{since}");
    let previous = shown(&["--previous"]);
    assert!(
        previous.contains("first") && !previous.contains("second"),
        "{previous}"
    );
    let mut follow = lab.spawn_lrpns(&["logs", "shop", "web", "-f", "--since", "1h"]);
    lab.lrpns_ok(&["down", "shop"]);
    assert!(follow.wait().unwrap().success());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut follow.stdout.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("first") && said.contains("SIGTERM"), "{said}");

    // Nobody else reads it, and it goes with what is known of the stack.
    let modes = lab.ok(&[
        "sh",
        "-c",
        "stat -c '%a %u' /var/log/lrpns/shop /var/log/lrpns/shop/* | sort -u",
    ]);
    let modes: Vec<&str> = modes.lines().collect();
    let [of_files, of_all] = modes.as_slice() else {
        panic!("{modes:?}");
    };
    let owner = of_files.strip_prefix("600 ").unwrap();
    assert_eq!(*of_all, format!("700 {owner}"));
    // Of the stack's range, and none of its parts'.
    assert_eq!(owner.parse::<u32>().unwrap() & 0xf000_ffff, 0x7000_fff0);
    lab.lrpns_ok(&["rm", "shop"]);
    assert!(!directory(&lab).exists());
    let (code, said) = lab.lrpns_err(&["logs", "shop"]);
    assert_eq!(code, 1);
    assert!(said.contains("does not run"), "{said}");
}

#[test]
fn a_flood_costs_neither_disk_nor_the_lines_of_others() {
    let lab = Lab::new();
    let flood = "while [ ! -e /tmp/end ]; do busybox yes a line of a flood | head -n 200000; done; echo over; exec sleep 1000";
    up(&lab, "size = \"256K\"", flood, &says("quiet"));
    until_said(&lab, "quiet");
    // It has been written over and over.
    let size = || bytes(&lab, "/var/log/lrpns/shop");
    until("it rotates", || {
        assert!(size() <= 260 << 10, "{}", size());
        directory(&lab).join("web.log.1").exists().then_some(())
    });
    let taken = lab.lrpns_ok(&["logs", "shop", "-n", "1"]);
    assert!(!taken.is_empty());
    lab.lrpns_ok(&["exec", "shop/web", "--", "touch", "/tmp/end"]);
    kill_supervisor(&lab);
    assert!(size() <= 260 << 10, "{}", size());
    let log = lab.lrpns_ok(&["logs", "shop", "db"]);
    assert!(log.contains("db | quiet"), "{log}");
    let log = lab.lrpns_ok(&["logs", "shop", "web", "-n", "3"]);
    assert!(log.contains("a line of a flood"), "{log}");
}

#[test]
fn a_full_disk_ends_nothing_and_what_is_missing_is_counted() {
    let lab = Lab::new();
    lab.ok(&[
        "sh",
        "-c",
        "mkdir /run/small; mount -t tmpfs -o size=1M tmpfs /run/small",
    ]);
    let fill = "head -c 2M /dev/zero >/run/small/filler";
    let chatty = "trap 'echo signalled' USR1; while :; do sleep 1000 & wait; done";
    up(&lab, "dir = \"/run/small/logs\"", chatty, &says("quiet"));
    let _ = lab.run(&["sh", "-c", fill]);
    let status = lab.status("shop");
    let parts = status["parts"].as_array().unwrap();
    let web = parts.iter().find(|part| part["name"] == "web").unwrap()["pid"].clone();
    let disk = || {
        std::fs::read_to_string(lab.root().join("run/small/logs/shop/web.log")).unwrap_or_default()
    };
    until("the log says that it can't be written", || {
        lab.kill("USR1", &web);
        let log = lab.lrpns_ok(&["logs", "shop"]);
        log.contains("log | the log on disk lacks what follows")
            .then_some(())
    });
    assert!(lab.lrpns_ok(&["logs", "shop", "web"]).contains("signalled"));
    lab.ok(&["rm", "/run/small/filler"]);
    until("it is written again", || {
        lab.kill("USR1", &web);
        disk().contains("lines are missing on disk").then_some(())
    });
    lab.lrpns_ok(&["down", "shop"]);
}

#[test]
fn what_is_asked_for_is_had_or_the_stack_does_not_come_up() {
    let lab = Lab::new();
    lab.write("in the way", "");
    let dir = lab.dir.path().join("in the way/logs");
    let to = |to: &str| format!("to = \"{to}\"\ndir = \"{}\"", dir.display());
    let (code, said) = lab.lrpns_err(&[
        "up",
        "-d",
        "-f",
        &file(&lab, &to("file"), "sleep 9", "sleep 9"),
    ]);
    assert_eq!(code, 125, "{said}");
    assert!(
        said.contains("Not a directory") && said.contains("hint: "),
        "{said}"
    );
    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "");
    up(&lab, &to("auto"), &says("first"), &says("quiet"));
    let log = lab.lrpns_ok(&["logs", "shop"]);
    assert!(log.contains("log | is kept in memory only: "), "{log}");

    // From now on, without an end of anything.
    let before = lab.status("shop")["parts"].clone();
    let path = file(&lab, "", &says("first"), &says("quiet"));
    let said = describe(&lab.lrpns(&["apply", "shop", "-f", &path]));
    assert!(said.contains("log"), "{said}");
    assert_eq!(lab.status("shop")["parts"], before);
    lab.lrpns_ok(&["restart", "shop/web"]);
    until("it is written", || {
        let log = std::fs::read_to_string(directory(&lab).join("web.log"));
        log.is_ok_and(|log| log.contains("first")).then_some(())
    });
    lab.lrpns_ok(&["down", "shop"]);
    lab.lrpns_ok(&["gc", "--all"]);
    assert!(!directory(&lab).exists());

    up(&lab, "to = \"off\"", &says("first"), &says("quiet"));
    lab.lrpns_ok(&["down", "shop"]);
    assert!(!directory(&lab).exists());
    // What was said last is known all the same.
    assert!(lab.lrpns_ok(&["logs", "shop"]).contains("first"));
    lab.lrpns_ok(&["run", "--", "true"]);
    let all = lab.run(&["ls", "/var/log/lrpns"]);
    assert!(
        String::from_utf8_lossy(&all.stdout).is_empty(),
        "{}",
        describe(&all)
    );
}

#[test]
fn without_root_it_is_in_the_users_own_directory() {
    let lab = Lab::new();
    let user = User::new(&lab, 4242);
    if !user.may() {
        return;
    }
    let home = "/run/lab/4242/home";
    lab.ok(&["install", "-d", "-o", "4242", home]);
    let path = file(&lab, "", &says("mine"), &says("quiet"));
    let home_is = format!("HOME={home}");
    let lrpns = |args: &[&str]| {
        let output = user.run(&[&["env", &home_is, &user.program()], args].concat());
        assert!(output.status.success(), "{args:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    lrpns(&["up", "-d", "-f", &path]);
    let supervisor = user.status("shop")["supervisor"].clone();
    lab.kill("KILL", &supervisor);
    until("it is dead", || {
        lrpns(&["ps"]).contains("crashed").then_some(())
    });
    assert!(lrpns(&["logs", "shop"]).contains("mine"));
    lrpns(&["down", "shop"]);
    assert!(lrpns(&["logs", "shop"]).contains("mine"));
    let owner = lab.ok(&[
        "stat",
        "-c",
        "%u %a",
        &format!("{home}/.local/state/lrpns/shop"),
    ]);
    assert_eq!(owner, "4242 700\n");
}
