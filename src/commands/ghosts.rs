//! Supervisors without a stack.
//!
//! Who takes over root's supervisor may have the stack's directory and its cgroups removed, as at its end, and live on, where no
//! command that looks for stacks sees him. But he is who he is: an id that no stack has, and none of the host's
//! ([`crate::plan::Plan::supervisor`]). `lrpns gc` ends such
//! processes, and so does a `down` that finds nothing to take down, or takes down all.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, Signal};

use super::failure::Failure;
use crate::control::processes;
use crate::state::StateRoot;

/// How long one that has removed its stack may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// How often those are looked for that have been forked meanwhile.
const ROUNDS: usize = 1000;

/// Ends them; how many processes there were. Should be called by root.
///
/// # Errors
/// [`Failure`].
pub(super) fn end(state: &StateRoot) -> Result<usize, Failure> {
    let found = {
        let _global = state.lock()?;
        ghosts(state)?
    };
    let until = Instant::now() + ENDS_WITHIN;
    for (_, pidfd) in &found {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(Failure::unable)?;
        let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
        let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&left)));
    }
    if found.is_empty() {
        return Ok(0);
    }
    // Nobody is brought up meanwhile, with the id of one of them.
    let _global = state.lock()?;
    let mut count = 0;
    for _ in 0..ROUNDS {
        let found = ghosts(state)?;
        if found.is_empty() {
            break;
        }
        for (pid, pidfd) in found {
            match rustix::process::pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) => count += 1,
                Err(rustix::io::Errno::SRCH) => continue,
                Err(e) => {
                    let what = format!("end process {pid}, a supervisor without a stack: {e}");
                    return Err(Failure::unable(what));
                }
            }
            let _ = rustix::io::retry_on_intr(|| {
                rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)
            });
        }
    }
    Ok(count)
}

/// Processes of an id that is a supervisor's, and of no stack that there is.
fn ghosts(state: &StateRoot) -> Result<Vec<(i32, OwnedFd)>, Failure> {
    let mut owners = BTreeSet::new();
    for stack in state.stacks()? {
        match state.plan(&stack) {
            Some(plan) => owners.extend(plan.supervisor().map(|ids| ids.uid)),
            // It may be anyone's.
            None => return Ok(vec![]),
        }
    }
    let of_nobody = |uid: u32| !owners.contains(&uid);
    let mut found = vec![];
    for (pid, uid) in processes::of_supervisors() {
        let number = rustix::process::Pid::from_raw(pid).filter(|_| of_nobody(uid));
        let opened = number.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        // Whose number it was before is nobody's any more.
        if let Some(Ok(pidfd)) = opened
            && processes::supervisor_id(pid) == Some(uid)
        {
            found.push((pid, pidfd));
        }
    }
    Ok(found)
}
