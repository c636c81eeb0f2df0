//! What is said of an app that fails: the cause, by what really happened, with the line to paste.
#![allow(clippy::unwrap_used)]

mod support;
use support::lab::Lab;
use support::look::{self, PYTHON};

/// What `up -d` says and the code it ends with.
fn told(lab: &Lab, command: &[&str], more: &str) -> (i32, String) {
    let path = lab.write(
        "app.toml",
        &format!(
            "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\n{more}\n",
            look::toml_list(command)
        ),
    );
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

#[test]
fn a_cause_has_its_own_hint_with_the_line_to_paste() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    std::fs::create_dir_all("/srv").unwrap();
    let file = lab.write("settings", "x");
    let file = file.to_str().unwrap();
    let python = |code: &str| [PYTHON, "-c", code].map(str::to_owned);
    let listen = "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 6379))";
    for (command, hint) in [
        (
            python("open('/srv/new/log', 'w')"),
            "tmpfs = [\"/tmp:16M\", \"/srv/new:16M\"]".to_owned(),
        ),
        (
            python("import os; os.mkdir('/opt')"),
            "tmpfs = [\"/tmp:16M\", \"/opt:16M\"]".to_owned(),
        ),
        (
            python(&format!("open({file:?})")),
            format!("volumes = [\"{file}:{file}\"]"),
        ),
        (
            python("import os; os.setgroups([])"),
            "a system call was refused".to_owned(),
        ),
        (
            python("raise SystemExit('setgid(33) failed (1: Operation not permitted)')"),
            "it changes its user".to_owned(),
        ),
        (
            python("raise SystemExit('getpwnam(www-data) failed')"),
            "install the server's package on the host, which makes its user".to_owned(),
        ),
        (
            python("raise SystemExit('bind() to 0.0.0.0:6379 failed (13: Permission denied)')"),
            "listen = [6379]".to_owned(),
        ),
        (
            python("pass"),
            "python3 ended without an error. If it goes to the background".to_owned(),
        ),
    ] {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let (code, said) = told(
            &lab,
            &command,
            "publish = [\"8000:8000\"]\nrestart = \"no\"",
        );
        assert_eq!(code, 1, "{command:?}: {said}");
        let hints = &said[said.find("hint: ").expect("no hint")..];
        assert!(hints.contains(&hint), "{command:?}: {said}");
    }
    // Who follows what is said comes up.
    let (code, said) = told(
        &lab,
        &[
            PYTHON,
            "-c",
            &format!("{listen}\nimport signal\nsignal.pause()"),
        ],
        "listen = [6379]",
    );
    assert_eq!(code, 0, "{said}");
}

#[test]
fn an_app_that_publishes_nothing_and_fails_is_told_of_by_up_with_its_last_lines() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let fails = [PYTHON, "-c", "raise SystemExit('no such user: www-data')"];
    let (code, said) = told(&lab, &fails, "restart = \"no\"");
    assert_eq!(code, 1, "{said}");
    for words in [
        "no such user: www-data",
        "web has ended: its app ended with exit status 1 right after its start",
        "hint: the app's root has root, app and the host's users below id 1000",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // One that is started again lives on, and is told of.
    let (code, said) = told(&lab, &fails, "restart = \"always\"");
    assert_eq!(code, 0, "{said}");
    for words in [
        "web is up, nothing is published",
        "but app has ended with exit status 1 and ",
        "no such user",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    lab.lrpns_ok(&["down", "web"]);
    // What has done its work is no failure, and what goes on says nothing.
    let (code, said) = told(&lab, &["/bin/true"], "restart = \"no\"");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("ended with exit status 0"), "{said}");
    let (code, said) = told(
        &lab,
        &["/bin/sh", "-c", "echo hello; exec sleep infinity"],
        "",
    );
    assert_eq!((code, said.contains("hello")), (0, false), "{said}");
}

#[test]
fn a_program_that_may_not_be_executed_is_told_which_option_it_needs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["cp", "/bin/true", "server"]);
    let (code, said) = told(
        &lab,
        &["/srv/server"],
        "volumes = [\"./server:/srv/server\"]",
    );
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(said.contains("hint: the program must be executable by everybody (chmod 755); in a volume it needs the option exec"), "{said}");
    let (code, said) = told(
        &lab,
        &["/srv/server"],
        "volumes = [\"./server:/srv/server:exec\"]\nrestart = \"no\"",
    );
    assert_eq!(code, 0, "{said}");
}

#[test]
fn files_that_a_server_does_not_find_or_may_not_read_have_the_line_that_brings_them() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir /etc/quiet /etc/quiet/own; echo x >/etc/quiet.conf; echo x >/etc/quiet/own/key; chmod 600 /etc/quiet/own/key
         chown -R 4321:4321 /etc/quiet/own; printf '#!/bin/sh\\nexit 3\\n' >/run/lab/quiet; chmod 755 /run/lab/quiet",
    ]);
    let quiet = "volumes = [\"/run/lab/quiet:/srv/quiet:exec\"]";
    let shell = |said: &str| {
        let line = format!("echo {said:?} >&2; exit 1");
        ["sh".to_owned(), "-c".to_owned(), line]
    };
    let program = |argument: &str| {
        [
            "/srv/quiet".to_owned(),
            "-c".to_owned(),
            argument.to_owned(),
        ]
    };
    for (command, more, hint) in [
        // It says nothing: its argument, or the configuration of its name.
        (
            program("/etc/quiet.conf"),
            quiet,
            "volumes = [\"/etc/quiet.conf:/etc/quiet.conf\"]",
        ),
        (program("x"), quiet, "volumes = [\"/etc/quiet:/etc/quiet\"]"),
        // One of several, and one that the host has not either.
        (
            shell("non-existent configuration file(s): /etc/nowhere:/etc/quiet.conf"),
            "",
            "volumes = [\"/etc/quiet.conf:/etc/quiet.conf\"]",
        ),
        (
            shell("Failed to parse config file: /etc/nowhere.conf"),
            "",
            "volumes = [\"./nowhere.conf:/etc/nowhere.conf\"]",
        ),
        (
            shell("directory '/var/cache/quiet' is not writable"),
            "",
            "tmpfs = [\"/tmp:16M\", \"/var/cache/quiet:16M\"]",
        ),
        (
            shell("/etc/quiet/own/key: Permission denied"),
            "volumes = [\"/etc/quiet:/etc/quiet\"]",
            "volumes = [\"/etc/quiet/own:/etc/quiet/own\"]",
        ),
    ] {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let more = format!("publish = [\"8000:8000\"]\nrestart = \"no\"\n{more}");
        let (code, said) = told(&lab, &command, &more);
        assert_eq!(code, 1, "{command:?}: {said}");
        let hints = &said[said.find("hint: ").expect("no hint")..];
        assert!(hints.contains(hint), "{command:?}: {said}");
    }
    let more = "publish = [\"8000:8000\"]\nrestart = \"no\"";
    let (_, said) = told(&lab, &["sh", "-c", "exit 3"], more);
    assert!(said.contains("hint: sh wrote nothing"), "{said}");
}
