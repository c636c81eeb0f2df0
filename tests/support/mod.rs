//! What the test programs share; each of them uses a part of it.
#![allow(dead_code)]

pub mod lab;
pub mod load;
pub mod look;
pub mod servers;
pub mod user;

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// Says that this test can't run here because `need` is missing, and counts it. `scripts/test` names in
/// `LRPNS_TEST_REQUIRE` (comma-separated) what it has seen to: the lack of that is a failure.
///
/// Call it and return.
///
/// # Panics
/// If `need` is required.
pub fn skip(need: &str, why: &str) {
    let required = env::var("LRPNS_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == need),
        "`{need}` is required, but {why}"
    );
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped: {test}: {why}");
    if let Some(path) = env::var_os("LRPNS_TEST_SKIPS") {
        let mut list = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("open the list of skips");
        // One write: tests run in parallel.
        list.write_all(format!("{test}: {why}\n").as_bytes())
            .expect("add to the list of skips");
    }
}

/// Where a program of the machine is, if it has it; /usr/sbin counts, whatever `PATH` says.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Runs a program to its end.
///
/// # Panics
/// If it can't be started.
pub fn run(command: &mut Command) -> (bool, String) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
