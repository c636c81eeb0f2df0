//! `lrpns audit`: attacks a running stack and says what was refused.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use super::{print, print_json};
use crate::audit::{report, sarif, target};
use crate::cli::AuditFormat;
use crate::commands::failure::{FAILED, Failure};
use crate::control::{Client, Request};
use crate::host::Host;
use crate::names::StackName;
use crate::sys::runtime;

/// What it takes with the scratch stacks that it brings up. With fewer, much would be unknown.
const DESCRIPTORS: usize = 64;

/// Attacks `stack`; exit code 1 when anything failed, or could not be found out.
pub fn audit(stack: &StackName, format: AuditFormat, all: bool) -> Result<ExitCode, Failure> {
    // Says who does not run, in the words of every other command.
    drop::<Client>(super::ask(stack, &Request::Status)?);
    runtime::have_room_for(DESCRIPTORS)
        .map_err(|e| Failure::unable(format!("audit {stack}: open {DESCRIPTORS} files: {e}")))?;
    let terminal = std::io::stderr().is_terminal();
    let mut progress = |step: &str| {
        if terminal {
            eprint!("\r\x1b[Kattacking {stack} {step} ");
            let _ = std::io::stderr().flush();
        }
    };
    let done = target::run(&Host::state_root(), stack, &mut progress);
    if terminal {
        eprint!("\r\x1b[K");
    }
    let report = done.map_err(|e| Failure::unable(format!("audit {stack}: {e}")))?;
    match format {
        AuditFormat::Human => print(&report::human(&report, all))?,
        AuditFormat::Json => print_json(&report::json(&report))?,
        AuditFormat::Sarif => print_json(&sarif::sarif(&report))?,
    }
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}
