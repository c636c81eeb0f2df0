//! `lrpns up --gate`: the audit of a stack whose ports are still closed.
//!
//! # Theory of operation
//!
//! The audit attacks from outside as well, with what the caller of `up` may do; the supervisor gives that up, and rootless
//! it is inside of a user namespace. So the process that audits is forked first of all, holds nothing of the stack but
//! the sockets that a service manager has handed over, and waits until the supervisor says that there is something to attack.
//! Should the supervisor end first, so does it.
//!
//! It is in a process group of its own: a Ctrl-C is the supervisor's to hear, which takes the stack down, upon which the
//! audit finds nothing any more, takes its scratch stack down and ends.
#![forbid(unsafe_code)]

use crate::audit::{report, target};
use crate::commands::failure::Failure;
use crate::host::Host;
use crate::names::StackName;
use crate::part::namespaces::socketpair;
use crate::protocol;
use crate::supervise::{Gate, Judgement};
use crate::sys::process::{Cloned, clone3, exit_now};

/// Forks the process that will audit `stack` when it is told to.
pub fn auditor(stack: &StackName) -> Result<Gate, Failure> {
    let unable = |what: &str, e: std::io::Error| Failure::unable(format!("{what}: {e}"));
    let (ours, theirs) = socketpair().map_err(|e| unable("make a socket pair", e))?;
    match clone3(0).map_err(|e| unable("clone", e))? {
        Cloned::Child => {
            drop(ours);
            let _ = rustix::process::setpgid(None, None);
            if let Ok(Some(((), _))) = protocol::receive::<()>(&theirs) {
                let judgement = judge(stack);
                // Should the supervisor be gone, there is nobody to tell.
                let _ = protocol::send(&theirs, &judgement, &[]);
            }
            exit_now(0)
        }
        Cloned::Parent { .. } => Ok(Gate { auditor: ours }),
    }
}

fn judge(stack: &StackName) -> Judgement {
    match target::run(&Host::state_root(), stack, &mut |_| {}) {
        Ok(report) => Judgement {
            passed: report.passed(),
            findings: report::human(&report, false),
        },
        Err(why) => Judgement {
            passed: false,
            findings: format!("audit {stack}: {why}"),
        },
    }
}
