//! The supervisor of a scratch stack, which `lrpns audit` attacks from and which ends with that audit.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use super::up;
use crate::audit::target;
use crate::commands::failure::Failure;
use crate::config::{self, Vars};
use crate::names::StackName;

/// Whether an audit has started this process: its standard input is a pidfd. `lrpns scratch` of a user is a mistake.
#[must_use]
pub fn was_started_by_us() -> bool {
    let info = std::fs::read_to_string("/proc/self/fdinfo/0");
    info.is_ok_and(|info| info.lines().any(|line| line.starts_with("Pid:")))
}

/// Brings up the stack that `words` say: its name and its subnet. It ends with the process that standard input is a pidfd of.
#[must_use]
pub fn run(words: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    up(words).unwrap_or_else(|failure| failure.print())
}

fn up(words: impl Iterator<Item = std::ffi::OsString>) -> Result<ExitCode, Failure> {
    let words: Vec<String> = words.filter_map(|word| word.into_string().ok()).collect();
    let [name, subnet] = words.as_slice() else {
        return Err(Failure::usage("a scratch stack has a name and a subnet"));
    };
    let name = StackName::new(name.as_str()).map_err(Failure::usage)?;
    let subnet = subnet.parse().map_err(Failure::usage)?;
    let text = target::scratch_config(&name, &subnet);
    let config = config::parse(Path::new("<scratch stack>"), &text, &Vars::default())?;
    let audit = io::stdin().as_fd().try_clone_to_owned();
    let audit = audit.map_err(|e| Failure::unable(format!("keep the audit's pidfd: {e}")))?;
    up::up_with(config, audit)
}
