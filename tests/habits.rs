//! What users of Docker Compose, Podman and systemctl type, and what a shell completes.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::lab::{Lab, describe, lrpns, until};

/// A file for a stack whose apps say which signals they get.
fn file(lab: &Lab, name: &str, apps: &[&str]) -> String {
    let app = |app: &&str| {
        format!(
            r#"[app.{app}]
rootfs = "host"
command = ["/bin/sh", "-c", '''
trap 'echo {app} reloads' HUP
echo {app} begins
while :; do sleep 1000 & wait; done''']
"#
        )
    };
    let apps: String = apps.iter().map(app).collect();
    let path = lab.write(
        &format!("{name}.toml"),
        &format!("name = \"{name}\"\n{apps}"),
    );
    path.to_str().unwrap().to_owned()
}

fn up(lab: &Lab, name: &str, apps: &[&str]) {
    lab.lrpns_ok(&["up", "-d", "-f", &file(lab, name, apps)]);
    for app in apps {
        until_said(lab, name, &format!("{app} begins"));
    }
}

fn until_said(lab: &Lab, stack: &str, text: &str) {
    until(text, || {
        let log = lab.lrpns_ok(&["logs", stack, "--grep", text]);
        (!log.is_empty()).then_some(())
    });
}

#[test]
fn what_means_something_here_is_understood() {
    let lab = Lab::new();
    let path = file(&lab, "shop", &["web", "db"]);
    // Compose has the file before the verb.
    lab.lrpns_ok(&["-f", &path, "up", "-d"]);
    until_said(&lab, "shop", "web begins");
    until_said(&lab, "shop", "db begins");
    assert_eq!(
        lab.lrpns_ok(&["-f", &path, "exec", "web", "--", "echo", "here"]),
        "here\n"
    );
    assert!(
        lab.lrpns_ok(&["--file", &path, "logs", "db"])
            .contains("db begins")
    );
    let listed = lab.lrpns_ok(&["ls"]);
    assert_eq!(listed, lab.lrpns_ok(&["ps"]));
    let document: Value = serde_json::from_str(&lab.lrpns_ok(&["inspect", "shop"])).unwrap();
    assert_eq!(document["plan"]["stack"], "shop");
    let document: Value = serde_json::from_str(&lab.lrpns_ok(&["inspect", "shop/db"])).unwrap();
    assert_eq!(document["name"], "db");
    assert!(
        lab.lrpns_ok(&["config", "-f", &path])
            .contains("stack shop")
    );

    assert_eq!(
        lab.lrpns_ok(&["exec", "shop", "echo", "-n", "as typed"]),
        "as typed"
    );
    assert_eq!(
        lab.lrpns_ok(&["exec", "-it", "shop/db", "cat", "/proc/self/comm"]),
        "cat\n"
    );
    assert_eq!(
        lab.lrpns_ok(&["exec", "db", "sh", "-c", "echo -- $0", "x"]),
        "-- x\n"
    );

    let top = lab.lrpns_ok(&["top", "shop"]);
    for words in ["db", "web", "sidecar", "sleep 1000"] {
        assert!(top.contains(words), "{top}");
    }
    let top = lab.lrpns_ok(&["top", "db"]);
    assert!(top.contains("sleep 1000") && !top.contains("web"), "{top}");

    lab.lrpns_ok(&["stop", "shop"]);
    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "");
    let file = lab.lrpns(&["start", "-f", &path]);
    assert!(file.status.success(), "{}", describe(&file));
    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "shop\n");
    lab.lrpns_ok(&["rm", "-f", "shop"]);
    assert_eq!(lab.lrpns_ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn a_signal_goes_to_the_command_of_an_app() {
    let lab = Lab::new();
    up(&lab, "shop", &["web", "db"]);
    let said = describe(&lab.lrpns(&["kill", "-s", "HUP", "db"]));
    assert!(said.contains("shop: SIGHUP sent to db"), "{said}");
    until_said(&lab, "shop", "db reloads");
    assert_eq!(lab.lrpns_ok(&["logs", "shop", "--grep", "web reloads"]), "");
    lab.lrpns_ok(&["kill", "-s", "1", "shop"]);
    until_said(&lab, "shop", "web reloads");
    // By default it ends, and is started again as its restart says.
    lab.lrpns_ok(&["kill", "shop/web"]);
    until_said(&lab, "shop", "ended with signal SIGKILL");
    until("it is started again", || {
        let status = lab.status("shop");
        let parts = status["parts"].as_array().unwrap();
        let web = parts.iter().find(|part| part["name"] == "web").unwrap();
        (web["restarts"] == 1 && web["state"] == "running").then_some(())
    });
    let (code, said) = lab.lrpns_err(&["kill", "shop/sidecar"]);
    assert_eq!(code, 1);
    assert!(said.contains("sidecar is no app"), "{said}");
    let (code, said) = lab.lrpns_err(&["kill", "-s", "HANGUP", "shop"]);
    assert_eq!(code, 2);
    assert!(said.contains("`HANGUP` is no signal"), "{said}");
}

#[test]
fn what_means_nothing_here_is_answered_with_what_does_it() {
    let lab = Lab::new();
    let path = file(&lab, "shop", &["web", "db"]);
    lab.ok(&["cp", &path, "lrpns.toml"]);
    for (args, answer) in [
        (
            &["up", "web", "db"][..],
            "takes one stack, and web, db are 2",
        ),
        (&["up", "-d", "web"], "web is an app of shop"),
        (&["up", "-d", "shop/web"], "takes a whole stack: shop"),
        (&["compose", "up"], "leave `compose` out"),
        (&["enable", "shop"], "systemctl enable --now lrpns@STACK"),
        (&["build"], "scripts/rootfs"),
        (&["reload", "shop"], "lrpns apply STACK"),
        (&["-f", "lrpns.toml", "doctor"], "unexpected argument '-f'"),
    ] {
        let (code, said) = lab.lrpns_err(args);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(answer), "{args:?}: {said}");
    }
    assert!(!lab.root().join("run/lrpns").exists());
    // With a file here, a part needs no stack.
    lab.lrpns_ok(&["up", "-d"]);
    let (code, said) = lab.lrpns_err(&["down", "web"]);
    assert_eq!(code, 2);
    assert!(
        said.contains("web is a part of shop") && said.contains("lrpns restart shop/web"),
        "{said}"
    );
    assert_eq!(lab.lrpns_ok(&["ps", "-q"]), "shop\n");
    lab.lrpns_ok(&["down"]);
}

#[test]
fn a_shell_completes_stacks_and_parts() {
    let lab = Lab::new();
    up(&lab, "shop", &["web", "db"]);
    up(&lab, "bar", &["web"]);
    let bash = |words: &[&str]| {
        let typed = words.last().unwrap();
        let script = format!(
            "PATH={}:$PATH; source <(lrpns completions bash); COMP_WORDS=(lrpns {}); COMP_CWORD={}; \
             _clap_complete_lrpns lrpns '{typed}' x 2>&1; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            std::path::Path::new(lrpns()).parent().unwrap().display(),
            words
                .iter()
                .map(|word| format!("'{word}'"))
                .collect::<Vec<_>>()
                .join(" "),
            words.len(),
        );
        lab.ok(&["bash", "-c", &script])
    };
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(words(&bash(&["down", ""]))[..2], ["bar", "shop"]);
    assert_eq!(words(&bash(&["restart", "d"])), ["db"]);
    // There are two of that name.
    assert_eq!(words(&bash(&["restart", "w"])), [""; 0]);
    assert_eq!(
        words(&bash(&["logs", "shop/"])),
        ["shop/sidecar", "shop/relay", "shop/web", "shop/db"]
    );
    assert_eq!(words(&bash(&["kill", "bar", "shop/w"])), [""; 0]);
    assert!(words(&bash(&["lo"])).contains(&"logs".to_owned()));
    assert_eq!(words(&bash(&["exec", "--part", "d"])), ["db"]);
    lab.lrpns_ok(&["down", "bar"]);
    assert_eq!(words(&bash(&["rm", ""]))[..1], ["bar"]);
    for shell in ["zsh", "fish"] {
        let output = lab.lrpns_with(
            &[
                ("LRPNS_COMPLETE", shell),
                ("_CLAP_COMPLETE_INDEX", "2"),
                ("_CLAP_IFS", "\n"),
            ],
            &["--", "lrpns", "down", "sh"],
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("shop"), "{shell}: {}", describe(&output));
    }
}
