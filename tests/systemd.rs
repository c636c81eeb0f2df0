//! `scripts/lrpns@.service`, and the one for users, as systemd sees them, without a running systemd.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use support::lab::{Lab, describe, lrpns, until};
use support::look;

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
        "PrivateTmp",
        "ProtectClock",
        "ProtectKernelModules",
        "RestrictSUIDSGID",
        "WatchdogSec",
    ] {
        assert!(keys.contains(&key), "{key} is gone");
    }
}

#[test]
fn every_line_that_systemd_counts_against_the_unit_is_explained() {
    let Some(analyze) = support::program("systemd-analyze") else {
        return support::skip("systemd", "there is no systemd-analyze");
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lrpns@customerA.service");
    fs::copy(UNIT, &file).unwrap();
    let (counted, said) = support::run(
        Command::new(analyze)
            .args(["security", "--offline=yes", "--no-pager"])
            .arg(&file),
    );
    assert!(counted, "{said}");
    let service = concat!(env!("CARGO_MANIFEST_DIR"), "/src/manual/service.md");
    let service = fs::read_to_string(service).unwrap();
    let (_, counts) = service.split_once("## What systemd counts").unwrap();
    let (counts, _) = counts.split_once("\n## ").unwrap();
    let mut lines = 0;
    for line in said.lines().filter(|line| line.starts_with('✗')) {
        let key = line.trim_start_matches('✗').trim_start();
        let (key, _) = key.split_once('=').unwrap();
        assert!(counts.contains(&format!("`{key}=`")), "{key}: {line}");
        lines += 1;
    }
    assert!(lines > 0, "{said}");
    let level = said.split("Overall exposure level for ").nth(1).unwrap();
    let level: f64 = level.split(' ').nth(1).unwrap().parse().unwrap();
    let told: f64 = counts
        .split_once("gives root's unit ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    // Another systemd counts other lines.
    assert!(level <= told + 0.3, "{level}, and the manual says {told}");
}

#[test]
fn what_the_unit_takes_of_debugging_no_app_could_have() {
    let Some(analyze) = support::program("systemd-analyze") else {
        return support::skip("systemd", "there is no systemd-analyze");
    };
    let unit = fs::read_to_string(UNIT).unwrap();
    let filter = unit
        .lines()
        .find_map(|line| line.strip_prefix("SystemCallFilter=~"))
        .unwrap();
    assert!(filter.contains("@debug"), "{filter}");
    let (listed, calls) = support::run(Command::new(analyze).args(["syscall-filter", "@debug"]));
    assert!(listed, "{calls}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stack.toml");
    let plan = |call: &str| {
        let app = "[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]";
        let text = format!("name = \"unit\"\n{app}\nseccomp = \"default+{call}\"\n");
        fs::write(&file, text).unwrap();
        support::run(Command::new(lrpns()).arg("plan").arg("-f").arg(&file))
    };
    let (planned, said) = plan("io_setup");
    assert!(planned, "what an app may have: {said}");
    let calls = calls.lines().map(str::trim);
    let mut kept = 0;
    for call in calls.filter(|call| !call.is_empty() && !call.starts_with(['#', '@'])) {
        let (planned, said) = plan(call);
        let never = format!("`{call}` is kept from every app");
        let foreign = format!("this machine has no system call `{call}`");
        assert!(!planned, "{call}: {said}");
        assert!(
            said.contains(&never) || said.contains(&foreign),
            "{call}: {said}"
        );
        kept += usize::from(said.contains(&never));
    }
    assert!(kept >= 3, "{kept}");
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
fn a_stack_needs_no_openat2_which_a_line_of_the_unit_takes_away() {
    if support::program("python3").is_none() {
        return support::skip("python3", "there is no python3");
    }
    let lab = Lab::new();
    // A volume, a root that is a directory, with accounts of its own behind a link.
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir -p data root/proc root/dev root/tmp root/data root/etc root/static; cp \"$0\" root/webapp
         echo me:x:4321:4321::/:/ >root/static/passwd; ln -s /static/passwd root/etc/passwd",
        lrpns(),
    ]);
    lab.write(
        "stack.toml",
        "name = \"x\"\n[app]\nrootfs = \"dir:root\"\ncommand = [\"/webapp\"]\nuser = \"me\"\npublish = [\"5000:5000\"]\nvolumes = [\"./data:/data\"]\n",
    );
    let up = [
        "python3",
        "-c",
        WITHOUT_OPENAT2,
        lrpns(),
        "up",
        "-d",
        "-f",
        "stack.toml",
    ];
    let up = lab.run(&up);
    assert!(up.status.success(), "{}", describe(&up));
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
    // Rules on the host, a port below 1024, a log on disk, and a root below a directory that is another's and closed.
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir closed; cd closed; mkdir -p root/proc root/dev root/tmp; cp \"$0\" root/webapp
         chmod 700 .; chown 4321 .",
        lrpns(),
    ]);
    lab.write(
        "stack.toml",
        "name = \"unit\"\n[log]\nto = \"file\"\n[app]\nrootfs = \"dir:closed/root\"\ncommand = [\"/webapp\"]\n\
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

/// systemd's socket, as far as a stack sees it.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(lab: &Lab) -> Self {
        let path = lab.dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let patience = Some(Duration::from_secs(120));
        socket.set_read_timeout(patience).unwrap();
        Self { socket, path }
    }

    fn next(&self) -> String {
        let mut said = [0; 65536];
        let length = self.socket.recv(&mut said).expect("systemd was told more");
        String::from_utf8(said[..length].to_vec()).unwrap()
    }

    /// All messages up to the one that has `what`, which is the last.
    fn up_to(&self, what: &str) -> Vec<String> {
        let mut said = vec![];
        while !said.last().is_some_and(|last: &String| last.contains(what)) {
            said.push(self.next());
        }
        said
    }

    fn hears(&self, what: &str) -> String {
        self.up_to(what).pop().unwrap()
    }

    /// Puts a word of ours after all that it has been told. Its socket has room for few (`net.unix.max_dgram_qlen`), and nobody but
    /// us reads there: what is in the way is heard.
    fn mark(&self, what: &str) {
        let marker = UnixDatagram::unbound().unwrap();
        marker.set_nonblocking(true).unwrap();
        while let Err(e) = marker.send_to(what.as_bytes(), &self.path) {
            assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{e}");
            self.next();
        }
    }

    /// `lrpns up` in the foreground, as a unit starts it, with more of the environment.
    fn start(&self, lab: &Lab, more: &[(&str, &str)]) -> Child {
        lab.command(&[lrpns(), "up", "-f", "stack.toml"])
            .env("NOTIFY_SOCKET", &self.path)
            .envs(more.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }
}

fn write_stack(lab: &Lab, ports: &str) {
    let head = "name = \"unit\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]";
    lab.write("stack.toml", &format!("{head}\npublish = [{ports}]\n"));
}

#[test]
fn systemd_is_told_when_a_change_begins_and_what_the_stack_is_after_it() {
    let lab = Lab::new();
    write_stack(&lab, "\"5000:5000\"");
    let manager = Manager::of(&lab);
    let mut up = manager.start(&lab, &[]);
    let first = manager.hears("READY=1");
    assert!(first.contains("127.0.0.1:5000 -> app port 5000"), "{first}");
    let apply = || lab.lrpns(&["apply", "unit", "-f", "stack.toml"]);
    write_stack(&lab, "\"5000:5000\", \"5001:5000\"");
    assert!(apply().status.success());
    let begins = manager.next();
    let now = begins.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    let now: u64 = now.expect(&begins).trim().parse().unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!(now > 0 && now <= (uptime * 1e6) as u64 + 20_000, "{begins}");
    let second = manager.next();
    assert!(second.starts_with("READY=1\nSTATUS="), "{second}");
    assert!(
        second.contains("127.0.0.1:5001 -> app port 5000"),
        "{second}"
    );
    // One that is taken back is over too.
    let deaf = "[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]\nenv = { PORT = \"5999\" }\nstart_timeout = \"1s\"";
    lab.write(
        "stack.toml",
        &format!("name = \"unit\"\n{deaf}\npublish = [\"5000:5000\"]\n"),
    );
    let refused = apply();
    assert!(!refused.status.success(), "{}", describe(&refused));
    assert!(manager.next().starts_with("RELOADING=1\n"));
    assert_eq!(manager.next(), second, "{}", describe(&refused));
    lab.lrpns_ok(&["down", "unit"]);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    assert!(up.wait().unwrap().success());
}

#[test]
fn systemd_is_told_that_all_is_well_only_while_it_is() {
    let lab = Lab::new();
    write_stack(&lab, "\"5000:5000\"");
    let manager = Manager::of(&lab);
    // 20 ms: what is done below takes longer.
    let mut up = manager.start(&lab, &[("WATCHDOG_USEC", "20000")]);
    manager.hears("READY=1");
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1\n");
    }
    // An app is started again as its file says: that is no reason.
    let status = lab.status("unit");
    lab.kill("STOP", &serde_json::json!(look::pid(&status, "app")));
    manager.hears("WATCHDOG=1");
    lab.kill("CONT", &serde_json::json!(look::pid(&status, "app")));
    let relay = serde_json::json!(look::init(&status, "relay"));
    let noted = |times| {
        let said = "not told that all is well";
        let log = lab.lrpns_ok(&["logs", "unit", "--part", "relay"]);
        (log.matches(said).count() == times).then_some(())
    };
    lab.kill("STOP", &relay);
    until("the note", || noted(1));
    manager.mark("it is noted");
    for _ in 0..5 {
        lab.status("unit");
    }
    manager.mark("it was waited");
    manager.hears("it is noted");
    assert_eq!(manager.next(), "it was waited");
    lab.kill("CONT", &relay);
    manager.hears("WATCHDOG=1");
    // The relay is started again.
    lab.kill("KILL", &relay);
    until("another relay", || lab.get("http://127.0.0.1:5000/").ok());
    manager.mark("it is back");
    manager.hears("it is back");
    manager.hears("WATCHDOG=1");
    lab.lrpns_ok(&["down", "unit"]);
    manager.hears("STOPPING=1");
    assert!(up.wait().unwrap().success());
}

#[test]
fn systemd_is_not_told_that_all_is_well_where_another_process_is_to() {
    let lab = Lab::new();
    write_stack(&lab, "\"5000:5000\"");
    let manager = Manager::of(&lab);
    let asked = [("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "1")];
    let mut up = manager.start(&lab, &asked);
    manager.hears("READY=1");
    for _ in 0..5 {
        lab.status("unit");
    }
    lab.lrpns_ok(&["down", "unit"]);
    let said = manager.up_to("STOPPING=1");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(up.wait().unwrap().success());
}
