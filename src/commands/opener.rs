//! A process that looks into a part's namespaces for a command, and ends.
//!
//! `capture` and `trace` read from sockets of namespaces that they are not in. A child joins the namespaces, drops to what
//! opening takes, opens, hands up the descriptors and ends; reading them needs no privilege, and no place in there.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;

use super::exec::wait;
use super::{answered_something_else, ask, reply};
use crate::commands::failure::{Failure, chain};
use crate::confine::privileges::{DropError, Ids, Privileges, leave_roots_groups};
use crate::confine::seccomp;
use crate::control::processes::{self, id_maps};
use crate::control::{Reply, Request};
use crate::host::Host;
use crate::names::StackName;
use crate::part::namespaces::{self, become_first};
use crate::plan::Plan;
use crate::protocol;
use crate::sys::namespace::setns;
use crate::sys::process::{Cloned, clone3, exit_now};

/// The pidfd of the pid 1 of a part, whose namespaces are meant, as the supervisor has named it and the saved plan allows.
pub(super) fn part_of(stack: &StackName, part: &str) -> Result<(OwnedFd, Plan), Failure> {
    let what = format!("no pidfd came for {part}");
    let request = Request::Enter {
        part: part.to_owned(),
    };
    let (Reply::Enter {}, fds) = reply(&ask(stack, &request)?, stack)? else {
        return Err(answered_something_else(stack));
    };
    let pidfd = fds.into_iter().next();
    let pidfd = pidfd.ok_or_else(|| Failure::unable(what))?;
    let plan = Host::state_root().saved(stack)?;
    match processes::is_in_part(pidfd.as_fd(), part, &plan) {
        Ok(true) => Ok((pidfd, plan)),
        Err(e) => Err(Failure::unable(format!("look at a process of {part}: {e}"))),
        Ok(false) => Err(Failure::failed(format!(
            "the supervisor of {stack} has named a process that is not in {part}"
        ))),
    }
}

/// What `open` opens in a child that has joined the user and network namespace of `part`, a pidfd, and called `give_up`
/// there; without a part, in our own namespaces.
///
/// # Errors
/// What went wrong, in words, on either side.
pub(super) fn open_inside(
    part: Option<&OwnedFd>,
    give_up: impl FnOnce() -> Result<Privileges, DropError>,
    open: impl FnOnce() -> Result<Vec<OwnedFd>, String>,
) -> Result<Vec<OwnedFd>, String> {
    let (ours, theirs) =
        namespaces::socketpair().map_err(|e| format!("make a socket pair: {e}"))?;
    let is_root = super::root();
    match clone3(0).map_err(|e| format!("start a process: {e}"))? {
        Cloned::Child => {
            drop(ours);
            let inside = || {
                if let Some(part) = part {
                    leave_roots_groups().map_err(|e| format!("drop privileges: {e}"))?;
                    let maps = id_maps(part.as_fd());
                    let maps = maps.map_err(|e| format!("read its id maps: {e}"))?;
                    setns(part, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
                        .map_err(|e| format!("join its namespaces: {e}"))?;
                    // Who owns that user namespace could trace what is executed in it, and root's as well.
                    let [uid, gid] = maps.map(|map| map.first().map(|[inside, ..]| *inside));
                    if let (Some(uid), Some(gid), true) = (uid, gid, is_root) {
                        become_first(Ids { uid, gid })
                            .map_err(|(step, e)| format!("{step}: {e}"))?;
                    }
                }
                give_up().map_err(|e| format!("drop privileges: {e}"))?;
                if part.is_some() {
                    // What is executed here the supervisor could make its own: it is to have no more of the kernel by that.
                    let filter = seccomp::supervisor().compile().map_err(|e| chain(&e))?;
                    let installed = filter.install();
                    installed.map_err(|e| format!("install the seccomp filter: {e}"))?;
                }
                open()
            };
            let said = match inside() {
                Ok(fds) => {
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    protocol::send(&theirs, &Ok::<(), String>(()), &fds)
                }
                Err(e) => protocol::send(&theirs, &Err::<(), String>(e), &[]),
            };
            exit_now(said.is_err().into())
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let told = protocol::receive::<Result<(), String>>(&ours);
            wait(&pidfd).map_err(|e| format!("wait for the opener: {e}"))?;
            let told = told.map_err(|e| format!("hear from the opener: {e}"))?;
            let (told, fds) = told.ok_or("the opener has ended")?;
            told.map(|()| fds)
        }
    }
}
