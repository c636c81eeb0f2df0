//! What an app was refused by its seccomp filter, for `--explain`.
//!
//! # Theory of operation
//!
//! The filter of an app that is explained asks (`SECCOMP_RET_USER_NOTIF`, seccomp_unotify(2)) where another's answers with an
//! error number, and where a process would become somebody else. The supervisor is asked: it notes the call's number and
//! its arguments as they are, and gives the answer that the profile has. So an app that is explained makes no call that it
//! could not make otherwise. What an argument points to is neither read nor believed.
//!
//! The app waits for each answer, and the supervisor for nothing: one answer at a time, between its other work. What is kept
//! is bounded, however often and whatever the app asks.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::confine::seccomp::{self, Profile};
use crate::sys;
use crate::text::harmless;

/// No more different calls are kept of all apps together.
const MOST: usize = 64;

/// What is kept of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The app.
    pub app: String,
    /// The call's number.
    pub number: u32,
    /// Those of its first three arguments that tell what was wanted; else 0.
    pub args: [u64; 3],
    /// All of the first such call's arguments, of which those that are addresses say nothing.
    pub first: [u64; 6],
    /// What it got; `None` for what was left to the kernel.
    pub errno: Option<u16>,
    /// How the program calls itself that made it first.
    pub by: String,
    /// How often.
    pub times: u64,
}

/// All that was refused so far, the latest last; the same for all clones.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    calls: Vec<Refused>,
    /// How many calls more there were than are kept.
    more: u64,
}

impl Refusals {
    /// All of them, the latest last, and how many calls more there were.
    #[must_use]
    pub fn all(&self) -> (Vec<Refused>, u64) {
        let kept = self.lock();
        (kept.calls.clone(), kept.more)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, app: &str, asked: &sys::seccomp::Asked, errno: Option<u16>) {
        let args = telling(asked.number, asked.args);
        let mut kept = self.lock();
        let same =
            |call: &Refused| call.app == app && call.number == asked.number && call.args == args;
        if let Some(at) = kept.calls.iter().position(same) {
            let mut call = kept.calls.remove(at);
            call.times += 1;
            kept.calls.push(call);
        } else if kept.calls.len() < MOST {
            let by = std::fs::read_to_string(format!("/proc/{}/comm", asked.thread));
            kept.calls.push(Refused {
                app: app.to_owned(),
                number: asked.number,
                args,
                first: asked.args,
                errno,
                by: harmless(by.unwrap_or_default().trim(), 16),
                times: 1,
            });
        } else {
            kept.more += 1;
        }
    }

    /// Answers what the filter of `app` asks, as `profile` has it, until the last of its processes has ended. Should be
    /// called inside the runtime.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch(&self, app: String, profile: Profile, listener: OwnedFd) -> io::Result<()> {
        let listener = sys::watch::owned(listener)?;
        let refusals = self.clone();
        tokio::spawn(async move {
            while let Ok(mut ready) = listener.readable().await {
                match waits(listener.get_ref()) {
                    Ok(Some(true)) => {}
                    Ok(Some(false)) => {
                        ready.clear_ready();
                        continue;
                    }
                    // Nobody is left who could ask.
                    Ok(None) | Err(_) => break,
                }
                match sys::seccomp::asked(listener.as_fd()) {
                    Ok(asked) => {
                        let errno = seccomp::explained(
                            &profile,
                            asked.architecture,
                            asked.number,
                            asked.args,
                        );
                        // One that is answered as if it were done is nothing that it lacks.
                        if errno != Some(0) {
                            refusals.note(&app, &asked, errno);
                        }
                        // It may have been ended meanwhile.
                        let _ = sys::seccomp::answer(listener.as_fd(), asked.id, errno);
                    }
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(_) => break,
                }
                tokio::task::yield_now().await;
            }
        });
        Ok(())
    }
}

/// Whether a call waits; `None` once nobody can make any. The kernel counts what it has announced, also if who made the call
/// has ended since: so the one who listens and has seen that a call waits does not wait for it (recv_wait_event(),
/// kernel/seccomp.c).
fn waits(listener: &OwnedFd) -> io::Result<Option<bool>> {
    let mut poll = [PollFd::new(listener, PollFlags::IN)];
    match rustix::event::poll(&mut poll, Some(&Timespec::default())) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Some(false)),
        Ok(_) if poll[0].revents().contains(PollFlags::IN) => Ok(Some(true)),
        Ok(_) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The arguments that tell one wish from another, where the number alone does not.
fn telling(number: u32, args: [u64; 6]) -> [u64; 3] {
    let low = |at: usize| args[at] & u64::from(u32::MAX);
    match seccomp::name(number) {
        Some("socket") => [low(0), low(1), low(2)],
        Some("prctl" | "unshare" | "clone" | "personality" | "keyctl" | "bpf") => [low(0), 0, 0],
        Some("ioctl" | "setns" | "fcntl") => [0, low(1), 0],
        Some("setsockopt") => [0, low(1), low(2)],
        Some(
            "setuid" | "setgid" | "setreuid" | "setregid" | "setresuid" | "setresgid" | "setgroups",
        ) => {
            let many = match seccomp::name(number) {
                Some("setresuid" | "setresgid") => 3,
                Some("setreuid" | "setregid") => 2,
                _ => 1,
            };
            [0, 1, 2].map(|at| if at < many { low(at) } else { 0 })
        }
        Some("chown" | "fchown" | "lchown") => [0, low(1), low(2)],
        Some("fchownat") => [0, low(2), low(3)],
        _ => [0; 3],
    }
}
