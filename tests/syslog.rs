//! What an app says by syslog(3): it is in its log, and nothing that comes to /dev/log reaches anything else.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{Lab, describe, until};
use support::look::{self, PYTHON};
use support::user::User;

/// The file of a stack of one app.
fn file(command: &[&str], more: &str) -> String {
    let command = look::toml_list(command);
    format!("name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {command}\n{more}\n")
}

/// The texts of the app's lines of standard error, in their order.
fn lines(log: &str) -> Vec<String> {
    let lines = log.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = line["text"].as_str().unwrap().to_owned();
        (line["stream"] == "err").then_some(text)
    });
    lines.flatten().collect()
}

fn log(lab: &Lab) -> Vec<String> {
    lines(&lab.lrpns_ok(&["logs", "web", "--json"]))
}

#[test]
fn what_is_said_by_syslog_is_on_standard_error_to_the_last_word() {
    if !look::machine_with(&["logger"]) {
        return;
    }
    let lab = Lab::new();
    let code = "import syslog
syslog.openlog('me', syslog.LOG_PID, syslog.LOG_DAEMON)
syslog.syslog(syslog.LOG_ERR, 'the last word')";
    let script = format!("ls -l /dev/log; logger -t tag hello; {PYTHON} -c \"{code}\"; exit 3");
    let args = ["run", "--rootfs", "host", "--", "sh", "-c", &script];
    let user = User::new(&lab, 4321);
    for ordinary in [false, true] {
        let output = match ordinary {
            false => lab.lrpns(&args),
            true if user.may() => user.lrpns(&args),
            true => continue,
        };
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
        let (first, last) = said.split_once('\n').unwrap();
        assert_eq!(first, "user.notice tag: hello");
        assert!(
            last.starts_with("daemon.err me[") && last.ends_with("]: the last word\n"),
            "{said}"
        );
        let listed = String::from_utf8(output.stdout).unwrap();
        assert!(listed.starts_with("srw-rw-rw-"), "{listed}");
    }
}

#[test]
fn every_start_has_a_socket_and_a_range_of_ids_may_write_to_it() {
    if !look::machine_with(&["logger", "setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let script =
        "setpriv --reuid 33 --regid 33 --clear-groups logger -t tag started; exec sleep infinity";
    look::up(&lab, &file(&["sh", "-c", script], "ids = \"range\""));
    for starts in 1..=2 {
        until("it has said so", || {
            let said = log(&lab);
            let all = said
                .iter()
                .filter(|line| **line == "user.notice tag: started");
            (all.count() == starts).then_some(())
        });
        if starts == 1 {
            lab.lrpns_ok(&["restart", "web"]);
        }
    }
    // Who comes by `exec` says it there as well.
    lab.lrpns_ok(&["exec", "web", "--", "logger", "-t", "visitor", "hello"]);
    until("the visitor's word", || {
        log(&lab)
            .contains(&"user.notice visitor: hello".to_owned())
            .then_some(())
    });
}

#[test]
fn no_message_of_whatever_bytes_is_more_than_lines_of_the_apps_own() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let code = r#"
import os, socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.connect("/dev/log")
for message in [b"", b"\0", b"\n", b"<", b"<999999999999999999999>x", b"<13>\x1b[2J\xff\xfe", b"one\ntwo", b"x" * 8192, b"y" * 8193]:
    log.send(message)
read, write = os.pipe()
try:
    socket.send_fds(log, [b"<13>with a descriptor"], [write])
    sent = "sent"
except OSError as error:
    sent = str(error.errno)
os.close(write)
# Nobody has it any more: an end, and no wait.
print("descriptor", sent, os.read(read, 1), flush=True)
for kind, name in [(socket.SOCK_STREAM, "stream"), (socket.SOCK_SEQPACKET, "seqpacket")]:
    try:
        socket.socket(socket.AF_UNIX, kind).connect("/dev/log")
    except OSError as error:
        print(name, error.errno, flush=True)
for name, change in [("unlink", os.unlink), ("chmod", lambda path: os.chmod(path, 0)), ("rename", lambda path: os.rename(path, "/dev/x"))]:
    try:
        change("/dev/log")
        print(name, "done", flush=True)
    except OSError as error:
        print(name, error.errno, flush=True)
log.send(b"the end")
"#;
    let path = lab.write("web.toml", &file(&[PYTHON, "-c", code], "restart = \"no\""));
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", describe(&output));
    let all = until("its end", || {
        let log = lab.lrpns_ok(&["logs", "web", "--json"]);
        log.contains("the end").then_some(log)
    });
    let mut said = lines(&all);
    // Of a kernel before 6.16 a descriptor can be sent along, and is closed.
    said.retain(|line| line != "user.notice with a descriptor");
    let expected = [
        "<".to_owned(),
        "<999999999999999999999>x".to_owned(),
        "user.notice \u{1b}[2J\u{fffd}\u{fffd}".to_owned(),
        "one".to_owned(),
        "two".to_owned(),
        "x".repeat(8192),
        format!("{} [longer than 8192 bytes]", "y".repeat(8192)),
        "the end".to_owned(),
    ];
    assert_eq!(said, expected);
    let out: Vec<&str> = all
        .lines()
        .filter(|line| line.contains("\"out\""))
        .collect();
    let out = out.join("\n");
    assert!(
        out.contains("descriptor 1 b''") || out.contains("descriptor sent b''"),
        "{out}"
    );
    for refused in [
        "stream 91",
        "seqpacket 91",
        "unlink 30",
        "chmod 30",
        "rename 30",
    ] {
        assert!(out.contains(refused), "{refused}: {out}");
    }
}

#[test]
fn a_flood_to_syslog_is_bounded_as_lines_are_and_leaves_pid_1_free() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let code = "
import socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.connect('/dev/log')
while True:
    log.send(b'<13>' + b'flood\\n' * 1000)";
    look::up(&lab, &file(&[PYTHON, "-c", code], ""));
    until("something is left out", || {
        let notes = look::part(&lab.status("web"), "app")["notes"].to_string();
        notes.contains("are left out of its log").then_some(())
    });
    // Its pid 1 reads no faster than it is read, and answers all the same.
    lab.lrpns_ok(&["exec", "web", "--", "true"]);
    lab.lrpns_ok(&["down", "web"]);
}
