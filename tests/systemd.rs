//! `scripts/lrpns@.service`, and the one for users, as systemd sees them, without a running systemd.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use support::lab::{Lab, describe, lrpns};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lrpns@.service");
const USERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lrpns-user@.service");
const INSTALLED: &str = "/usr/local/bin/lrpns";

/// What `systemd-analyze verify` says to a unit, for root's manager or a user's, with the program that was just built in
/// place of the installed one, and after `change`; `None` if there is no systemd-analyze.
fn verify(unit: &str, change: impl Fn(String) -> String) -> Option<(bool, String)> {
    let Some(analyze) = support::program("systemd-analyze") else {
        support::skip("systemd", "there is no systemd-analyze");
        return None;
    };
    let text = fs::read_to_string(unit).unwrap();
    assert!(
        text.contains(INSTALLED),
        "the unit starts something else than {INSTALLED}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lrpns@customerA.service");
    fs::write(
        &file,
        change(text.replace(INSTALLED, env!("CARGO_BIN_EXE_lrpns"))),
    )
    .unwrap();
    Some(support::run(
        // A manual page that is not installed is no mistake of the unit.
        Command::new(analyze)
            .args((unit == USERS).then_some("--user"))
            .args(["verify", "--man=no", "--recursive-errors=no"])
            // A user's manager has one, and looks for nothing in it here.
            .env("XDG_RUNTIME_DIR", dir.path())
            .arg(&file),
    ))
}

#[test]
fn systemd_accepts_the_units_without_a_word() {
    for unit in [UNIT, USERS] {
        let Some((accepted, said)) = verify(unit, |text| text) else {
            return;
        };
        // Other units of the machine may have mistakes of their own.
        let about_us: Vec<&str> = said.lines().filter(|line| line.contains("lrpns")).collect();
        assert!(accepted && about_us.is_empty(), "{unit}: {said}");
    }
}

#[test]
fn systemd_would_have_said_a_word() {
    for unit in [UNIT, USERS] {
        let Some((_, said)) = verify(unit, |text| text.replace("OOMPolicy=", "OOMpolicy=")) else {
            return;
        };
        assert!(
            said.contains("OOMpolicy"),
            "an unknown key was taken: {said}"
        );
        let gone = |text: String| text.replace(env!("CARGO_BIN_EXE_lrpns"), "/no/such/lrpns");
        let (accepted, said) = verify(unit, gone).unwrap();
        assert!(!accepted, "a missing program was taken: {said}");
    }
}

#[test]
fn the_unit_keeps_what_a_part_needs() {
    let unit = fs::read_to_string(UNIT).unwrap();
    let keys: Vec<&str> = unit
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once('='))
        .map(|(k, _)| k)
        .collect();
    // Each of these mounts over /proc or /sys/fs/cgroup, forbids a namespace or a call; the unit's last comment says why
    // not.
    for key in [
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectProc",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHostname",
        "RestrictNamespaces",
        "RestrictSUIDSGID",
        "PrivateUsers",
        "PrivateNetwork",
        "MemoryDenyWriteExecute",
        "RuntimeDirectory",
    ] {
        assert!(!keys.contains(&key), "{key} breaks the parts");
    }
    for key in [
        "NoNewPrivileges",
        "CapabilityBoundingSet",
        "Delegate",
        "OOMPolicy",
        "PrivateDevices",
        "ProtectClock",
        "ProtectKernelModules",
    ] {
        assert!(keys.contains(&key), "{key} is gone");
    }
}

/// Python that lets everything be but openat2(2), which it answers as `RestrictSUIDSGID=yes` does (systemd: ENOSYS, since
/// a filter can't see the mode that is asked for), and becomes its arguments.
const WITHOUT_OPENAT2: &str = r#"
import ctypes, os, struct, sys
def op(code, k, yes=0, no=0): return struct.pack("HBBI", code, yes, no, k)
OPENAT2, ENOSYS, ALLOW, ERRNO = 437, 38, 0x7FFF0000, 0x00050000
filter = op(0x20, 0) + op(0x15, OPENAT2, 0, 1) + op(0x06, ERRNO | ENOSYS) + op(0x06, ALLOW)
buffer = ctypes.create_string_buffer(filter)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(program)) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_unit_that_takes_openat2_away_is_told_which_line_does_it() {
    if support::program("python3").is_none() {
        return support::skip("python3", "there is no python3");
    }
    let lab = Lab::new();
    let up = lab.run(&[
        "python3",
        "-c",
        WITHOUT_OPENAT2,
        lrpns(),
        "up",
        "-d",
        "--demo",
    ]);
    assert_eq!(up.status.code(), Some(125), "{}", describe(&up));
    let said = describe(&up);
    assert!(said.contains("RestrictSUIDSGID"), "{said}");
}

/// Brings a stack up that needs all that a stack may need, with `bounding` as the widest that its supervisor can hold.
fn up_with(lab: &Lab, bounding: &[&str]) -> Output {
    let mut set = "-all".to_owned();
    for capability in bounding {
        set += ",+";
        set += capability.strip_prefix("CAP_").unwrap();
    }
    let set = set.to_lowercase();
    let confine = ["setpriv", "--no-new-privs", "--bounding-set", &set];
    lab.run(&[&confine[..], &[lrpns(), "up", "-d", "-f", "stack.toml"]].concat())
}

#[test]
fn a_stack_needs_every_capability_that_the_unit_gives_and_no_other() {
    let lab = Lab::forwarding();
    // Rules on the host, a port below 1024, and a root below a directory that is another's and closed.
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir closed; cd closed; mkdir -p root/proc root/dev root/tmp; cp \"$0\" root/webapp
         chmod 700 .; chown 4321 .",
        lrpns(),
    ]);
    lab.write(
        "stack.toml",
        "name = \"unit\"\n[app]\nrootfs = \"dir:closed/root\"\ncommand = [\"/webapp\"]\n\
         publish = [\"0.0.0.0:80:5000\"]\nvia = \"dnat\"\n",
    );
    let unit = fs::read_to_string(UNIT).unwrap();
    let list = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let all: Vec<&str> = list.split_whitespace().collect();

    let up = up_with(&lab, &all);
    assert!(up.status.success(), "{}", describe(&up));
    assert_eq!(lab.get("http://localhost:80/").unwrap(), "Hello world!");
    lab.lrpns_ok(&["restart", "unit", "app"]);
    lab.lrpns_ok(&["restart", "unit", "sidecar"]);
    assert_eq!(lab.get("http://localhost:80/").unwrap(), "Hello world!");
    lab.lrpns_ok(&["down", "unit"]);

    for one in &all {
        let others: Vec<&str> = all.iter().copied().filter(|other| other != one).collect();
        let up = up_with(&lab, &others);
        assert_eq!(
            up.status.code(),
            Some(125),
            "not needed: {one}: {}",
            describe(&up)
        );
    }
}

/// Python that is systemd's socket: it says `ready`, then each message, until one has its second argument in it.
const MANAGER: &str = r#"
import socket, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(sys.argv[1])
print("ready", flush=True)
said = ""
while sys.argv[2] not in said:
    said = manager.recv(65536).decode()
    print(said, flush=True)
"#;

#[test]
fn the_units_status_is_what_the_stack_is_also_after_a_reload() {
    if support::program("python3").is_none() {
        return support::skip("python3", "there is no python3");
    }
    let lab = Lab::new();
    let stack = |ports: &str| {
        let head = "name = \"unit\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]";
        lab.write("stack.toml", &format!("{head}\npublish = [{ports}]\n"));
    };
    stack("\"5000:5000\"");
    let listen = [
        "timeout", "120", "python3", "-c", MANAGER, "notify", ":5001 ->",
    ];
    let mut manager = lab.command(&listen).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(manager.stdout.take().unwrap()).lines();
    let mut hears = |what: &str| {
        said.by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains(what))
            .unwrap_or_else(|| panic!("systemd was not told {what}"))
    };
    hears("ready");
    let socket = lab.dir.path().join("notify");
    let mut up = lab
        .command(&[lrpns(), "up", "-f", "stack.toml"])
        .env("NOTIFY_SOCKET", &socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    hears("READY=1");
    let first = hears("STATUS=");
    assert!(first.contains("127.0.0.1:5000 -> app port 5000"), "{first}");
    stack("\"5000:5000\", \"5001:5000\"");
    lab.lrpns_ok(&["apply", "unit", "-f", "stack.toml"]);
    let second = hears("STATUS=");
    assert!(
        second.contains("127.0.0.1:5001 -> app port 5000"),
        "{second}"
    );
    lab.lrpns_ok(&["down", "unit"]);
    assert!(up.wait().unwrap().success());
    assert!(manager.wait().unwrap().success());
}
