//! Ctrl-C and its like, while something is under way that has to be undone.
//!
//! # Theory of operation
//! What a command has begun goes on in a process of its own, so its own end alone would undo nothing. From before that
//! process is there the signals wait for who reads them (signalfd(2)), at the command between two messages of the other.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::supervise;

/// SIGINT, SIGTERM and SIGHUP, as something to wait for.
pub struct Interrupts(SignalFd);

/// What there is to hear.
pub enum Heard {
    /// A signal.
    Interrupt(Signal),
    /// Something to read from the other process, or its end.
    Message,
}

impl Interrupts {
    /// From now on they do nothing by themselves, in this process and in those that it forks.
    ///
    /// # Errors
    /// What `signalfd(2)` says.
    pub fn watch() -> io::Result<Self> {
        let signals = supervise::the_end();
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&signals, flags)?))
    }

    /// Waits for a signal, or for something to read.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn or_message(&self, from: &OwnedFd) -> io::Result<Heard> {
        loop {
            if let Some(heard) = self.or_message_within(from, None)? {
                return Ok(heard);
            }
        }
    }

    /// The same, for no longer than `limit`.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn or_message_within(
        &self,
        from: &OwnedFd,
        limit: Option<Duration>,
    ) -> io::Result<Option<Heard>> {
        let limit = limit.map(Timespec::try_from).transpose();
        let limit = limit.map_err(io::Error::other)?;
        loop {
            let mut ready = [
                PollFd::new(from, PollFlags::IN),
                PollFd::new(self, PollFlags::IN),
            ];
            match rustix::event::poll(&mut ready, limit.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if let Some(signal) = self.came()? {
                return Ok(Some(Heard::Interrupt(signal)));
            }
            if !ready[0].revents().is_empty() {
                return Ok(Some(Heard::Message));
            }
        }
    }

    /// The signal that has come.
    ///
    /// # Errors
    /// What `read(2)` says.
    pub fn came(&self) -> io::Result<Option<Signal>> {
        let Some(signal) = self.0.read_signal()? else {
            return Ok(None);
        };
        let number = i32::try_from(signal.ssi_signo).map_err(io::Error::other)?;
        Ok(Some(Signal::try_from(number)?))
    }
}

/// Says something on standard error, if that is still there: with a hangup the terminal is not.
pub fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
