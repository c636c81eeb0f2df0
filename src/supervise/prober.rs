//! A process that is as the supervisor is, for [`crate::audit`]: what is tried from it is what who takes the supervisor over
//! could do.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Signal;

use crate::sys::process::{default_signals, detach, end};

/// What it does with its end of the conversation, and the status that it ends with.
pub type Life = fn(OwnedFd) -> i32;

/// A clone of the supervisor with its ids, capabilities, securebits, namespaces and cgroup, and under its filter, but without its
/// descriptors. It executes nothing, since that would take capabilities from it. It ends with this value.
pub(super) struct Prober(OwnedFd);

impl Prober {
    /// Starts it.
    ///
    /// # Errors
    /// What `clone3(2)` says.
    pub(super) fn start(socket: OwnedFd, life: Life) -> io::Result<Self> {
        let child = detach(socket, |socket| {
            // tokio's handlers write to a descriptor that is closed here.
            default_signals();
            match rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
                Ok(()) => life(socket),
                Err(_) => 1,
            }
        });
        child.map(Self)
    }

    /// Waits for its end. Should be called inside the runtime.
    pub(super) async fn ended(self) {
        if let Ok(pidfd) = crate::sys::watch::readable(self.0.as_fd()) {
            let _ = pidfd.readable().await;
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = end(&self.0);
    }
}
