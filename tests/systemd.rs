//! `scripts/lrpns@.service` as systemd sees it, without a running systemd.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lrpns@.service");
const INSTALLED: &str = "/usr/local/bin/lrpns";

/// What `systemd-analyze verify` says to the unit with the program that was just built in place of the installed one,
/// and after `change`; `None` if there is no systemd-analyze.
fn verify(change: impl Fn(String) -> String) -> Option<(bool, String)> {
    let Some(analyze) = support::program("systemd-analyze") else {
        support::skip("systemd", "there is no systemd-analyze");
        return None;
    };
    let text = fs::read_to_string(UNIT).unwrap();
    assert!(
        text.contains(INSTALLED),
        "the unit starts something else than {INSTALLED}"
    );
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("lrpns@customerA.service");
    fs::write(
        &unit,
        change(text.replace(INSTALLED, env!("CARGO_BIN_EXE_lrpns"))),
    )
    .unwrap();
    Some(support::run(
        // A manual page that is not installed is no mistake of the unit.
        Command::new(analyze)
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&unit),
    ))
}

#[test]
fn systemd_accepts_the_unit_without_a_word() {
    if let Some((accepted, said)) = verify(|unit| unit) {
        // Other units of the machine may have mistakes of their own.
        let about_us: Vec<&str> = said.lines().filter(|line| line.contains("lrpns")).collect();
        assert!(accepted && about_us.is_empty(), "{said}");
    }
}

#[test]
fn systemd_would_have_said_a_word() {
    if let Some((_, said)) = verify(|unit| unit.replace("RestrictRealtime=", "RestrictRealTime=")) {
        assert!(
            said.contains("RestrictRealTime"),
            "an unknown key was taken: {said}"
        );
    }
    if let Some((accepted, said)) =
        verify(|unit| unit.replace(env!("CARGO_BIN_EXE_lrpns"), "/no/such/lrpns"))
    {
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
    // Each of these mounts over /proc or /sys/fs/cgroup or forbids a namespace; the unit's last comment says why not.
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
    ] {
        assert!(keys.contains(&key), "{key} is gone");
    }
}
