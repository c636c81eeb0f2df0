//! The stage: a fresh, single-threaded image of our own program that becomes one part of a stack.
//!
//! # Theory of operation
//!
//! [`crate::part::container`] has put this process into its namespaces, with every capability over them and as pid 1, with an
//! empty environment and one descriptor: standard input is the supervisor's socket. The first message says what to
//! become. From there each role is a straight line: root, privileges, `Ready`, work. Whatever step does not work is
//! named to the supervisor and the process ends; there is no way on.
//!
//! Should read nothing but that message. Mustn't start a thread, and mustn't touch a path of the host after the root
//! has been changed.
#![forbid(unsafe_code)]

pub mod app;
mod compiler;
mod egress;
mod loader;
mod ownlog;
mod relay;
mod sidecar;
mod syslog;

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::OnceLock;

use caps::Capability;

use crate::confine::privileges::{self, Ids, Privileges};
use crate::confine::seccomp::Program;
use crate::protocol::{self, FromStage, Role, Start, ToStage};
use crate::sys::process::null_standard_descriptors;

/// A step of the stage that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {cause}")]
pub struct StageError {
    step: &'static str,
    cause: String,
    /// For the command's `execve(2)`.
    errno: Option<i32>,
}

impl From<StageError> for FromStage {
    fn from(e: StageError) -> Self {
        Self::Failed {
            step: e.step.to_owned(),
            cause: e.cause,
            errno: e.errno,
        }
    }
}

/// Names the step that an error belongs to.
pub(crate) fn step<E: Display>(step: &'static str) -> impl FnOnce(E) -> StageError {
    move |e| StageError {
        step,
        cause: e.to_string(),
        errno: None,
    }
}

/// Drops to what the role may hold. Wraps [`privileges::drop_to`] for all roles alike.
pub(crate) fn drop_privileges(
    keep: &[Capability],
    user: Ids,
    filter: &Program,
) -> Result<Privileges, StageError> {
    privileges::drop_to(keep, user, filter).map_err(step("drop privileges"))
}

/// What a test has asked to be left undone, so that [`crate::audit`] is seen to notice.
static WEAKEN: OnceLock<String> = OnceLock::new();

/// Whether a test has asked for this weakness; never in a release build.
pub(crate) fn weakened(what: &str) -> bool {
    cfg!(debug_assertions) && WEAKEN.get().is_some_and(|asked| asked == what)
}

/// Whether standard input is a socket, as it is for a stage: `lrpns init` of a user is another thing.
#[must_use]
pub fn was_started_by_us() -> bool {
    rustix::process::getpid().is_init() && rustix::net::getsockname(io::stdin()).is_ok()
}

/// The stage's whole life. Called from `main` before anything else exists.
#[must_use]
pub fn run() -> ExitCode {
    let Ok(supervisor) = take_socket() else {
        eprintln!("lrpns init is started by lrpns itself, not by hand");
        return ExitCode::from(2);
    };
    let failed = match become_part(&supervisor) {
        Ok(code) => return code,
        Err(e) => e,
    };
    let told = FromStage::from(failed);
    // Should the supervisor be gone, there is nobody to tell.
    let _ = protocol::send(&supervisor, &told, &[]);
    ExitCode::from(125)
}

/// Moves the supervisor's socket off standard input and puts the null device on the three standard descriptors.
fn take_socket() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::getsockname(&socket)?;
    null_standard_descriptors()?;
    Ok(socket)
}

/// The descriptors of all that relay and carrier have to hold: the messages that follow have what the first had no room
/// for.
fn all_of(
    count: usize,
    mut fds: Vec<OwnedFd>,
    supervisor: &OwnedFd,
) -> Result<Vec<OwnedFd>, StageError> {
    while fds.len() < count {
        match protocol::receive(supervisor).map_err(step("take the published sockets"))? {
            Some((ToStage::More, more)) if !more.is_empty() => fds.extend(more),
            _ => return Err(step("take the published sockets")("there are too few")),
        }
    }
    Ok(fds)
}

fn become_part(supervisor: &OwnedFd) -> Result<ExitCode, StageError> {
    let (start, fds) = match protocol::receive(supervisor).map_err(step("hear what to become"))? {
        Some((ToStage::Start(start), fds)) => (start, fds),
        Some(_) => return Err(step("hear what to become")("another message came first")),
        // The supervisor ended before it said anything: so do we.
        None => return Ok(ExitCode::SUCCESS),
    };
    let Start {
        hostname,
        nproc,
        role,
        weaken,
    } = *start;
    if let Some(weaken) = weaken {
        let _ = WEAKEN.set(weaken);
    }
    nix::unistd::sethostname(&hostname).map_err(step("set the host name"))?;
    rustix::process::setsid().map_err(step("start a session"))?;
    if !weakened("limits") {
        crate::confine::ceilings::lower(nproc).map_err(step("lower the resource limits"))?;
    }
    if matches!(role, Role::Relay { .. } | Role::Egress { .. }) {
        crate::confine::ceilings::all_descriptors()
            .map_err(step("raise the limit of descriptors"))?;
    }
    // What is made from here on is the part's own root, which everybody in it may read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match role {
        Role::Sidecar {
            rules,
            seal,
            traffic,
        } => sidecar::run(supervisor, &rules, seal, traffic, fds).map(|()| ExitCode::SUCCESS),
        Role::Updater {
            old,
            new,
            theirs,
            forget,
        } => loader::update(supervisor, (&old, &new), theirs.as_ref(), &forget)
            .map(|()| ExitCode::SUCCESS),
        Role::Forgetter { grants } => {
            loader::forget(supervisor, &grants).map(|()| ExitCode::SUCCESS)
        }
        Role::Loader { rules } => loader::run(supervisor, &rules).map(|()| ExitCode::SUCCESS),
        Role::Compiler {
            ours,
            text,
            command,
        } => compiler::run(supervisor, &ours, (&text, &command)).map(|()| ExitCode::SUCCESS),
        Role::Relay {
            carried,
            admissions,
            as_clients,
            joined,
            wait,
        } => {
            let mut sockets = all_of(carried.len() + 1, fds, supervisor)?;
            let told = sockets.remove(0);
            let work = relay::Work {
                carried,
                admissions,
                as_clients,
                joined,
                wait,
                told,
                sockets,
            };
            relay::run(supervisor, work).map(|()| ExitCode::SUCCESS)
        }
        Role::Egress {
            grants,
            doors,
            clients,
        } => {
            let sockets = all_of(doors.len(), fds, supervisor)?;
            let out = egress::Out {
                grants,
                doors,
                clients,
                sockets,
            };
            egress::run(supervisor, out)
        }
        Role::App(start) => app::run(supervisor, *start, fds),
    }
}
