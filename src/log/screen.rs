//! Standard output of a foreground `up` or `run`, which must not hold the stack up.
//!
//! # Theory of operation
//!
//! The supervisor is one thread, so it must never wait for whoever reads its log: a terminal that Ctrl-S has stopped, a
//! pager, a pipe that nobody empties. What can't be written at once waits here, up to [`WAITING`] bytes, and a small task
//! writes it when there is room. Lines for which there is no room are counted, and the number is shown in their place;
//! `lrpns logs` has them.
//!
//! O_NONBLOCK belongs to an open file and not to a descriptor, and others (the shell) have the same file open. So a pipe or
//! a terminal is opened once more by `/proc/self/fd` (proc(5)); where that is refused (the terminal is somebody else's,
//! as after `su`) poll(2) is asked before each write, which is kept short. A socket is told with each message (send(2)).
//! Files and `/dev/null` don't block.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;
use tokio::io::Interest;

use crate::sys::watch;

/// How many bytes may wait for a reader: what the log holds, so that all of it can be shown at once.
const WAITING: usize = 4 << 20;
/// What is written at once where a write could block: a terminal that poll(2) calls writable has more room than that but
/// for rare cases, a pipe has 4096 (pipe(7)).
const SHORT: usize = 256;
/// How long the end waits for a reader who takes nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// An output that is written to without waiting.
#[derive(Clone)]
pub struct Screen(Arc<Mutex<State>>);

struct State {
    out: Output,
    waiting: VecDeque<u8>,
    /// Lines that were left out since the last one that was taken.
    missed: u64,
    /// Whether a task waits for room.
    watched: bool,
    /// Nobody will ever read.
    gone: bool,
}

/// Where something is written, without waiting.
pub(crate) struct Output {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With O_NONBLOCK, or such that it never blocks.
    Plain,
    /// It may block.
    Polled,
    Socket,
}

impl Screen {
    /// Writes to what `fd` is open on.
    ///
    /// # Errors
    /// The descriptor can't be duplicated: dup(2), fstat(2).
    pub fn new(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(State {
            out: Output::of(fd)?,
            waiting: VecDeque::new(),
            missed: 0,
            watched: false,
            gone: false,
        }))))
    }

    /// Writes a line, or as much of it as there is room for, and keeps the rest; a line that can't be kept is counted.
    ///
    /// Called within a tokio runtime.
    pub fn line(&self, text: &str) {
        let mut state = self.state();
        state.take(text);
        state.write();
        if !state.waiting.is_empty() && !state.watched {
            state.watched = true;
            tokio::spawn(self.clone().write_when_there_is_room());
        }
    }

    /// Writes what waits, as long as somebody reads. Blocks, up to a second without a reader.
    pub fn finish(&self) {
        let mut state = self.state();
        state.tell_what_is_missed();
        state.write();
        while !state.waiting.is_empty() && state.out.has_room(PATIENCE) {
            let before = state.waiting.len();
            state.write();
            if state.waiting.len() == before {
                break;
            }
        }
    }

    async fn write_when_there_is_room(self) {
        let fd = self.state().out.fd.try_clone();
        // What epoll(7) doesn't know never blocks, and then nothing waits.
        if let Ok(Ok(fd)) = fd.map(watch::owned) {
            while let Ok(mut room) = fd.writable().await {
                let mut state = self.state();
                state.tell_what_is_missed();
                state.write();
                if state.waiting.is_empty() {
                    break;
                }
                room.clear_ready();
            }
        }
        self.state().watched = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, text: &str) {
        self.tell_what_is_missed();
        if self.missed > 0 || self.waiting.len() + text.len() >= WAITING {
            self.missed += 1;
        } else if !self.gone {
            self.waiting.extend(text.as_bytes());
            self.waiting.push_back(b'\n');
        }
    }

    fn tell_what_is_missed(&mut self) {
        if self.missed == 0 || self.waiting.len() > WAITING / 2 {
            return;
        }
        let text = format!(
            "{} lines are left out here: they came faster than they were read; lrpns logs has what it still keeps\n",
            self.missed
        );
        self.waiting.extend(text.as_bytes());
        self.missed = 0;
    }

    /// Writes until all is written, or there is no room.
    fn write(&mut self) {
        while !self.waiting.is_empty() {
            match self.out.write(self.waiting.as_slices().0) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // A reader that has gone away doesn't end the stack.
                    self.gone = true;
                    self.waiting.clear();
                }
            }
        }
    }
}

/// What `fd` is open on, a pipe or a terminal, opened once more for the O_NONBLOCK that only this one has.
///
/// # Errors
/// What `open(2)` says: it may not be ours.
pub(crate) fn opened_again(fd: &OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Output {
    /// What `fd` is open on.
    ///
    /// # Errors
    /// What `dup(2)` or `fstat(2)` says.
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind == FileType::Socket {
            return Ok(Self {
                fd,
                kind: Kind::Socket,
            });
        }
        if !matches!(kind, FileType::Fifo | FileType::CharacterDevice) {
            return Ok(Self {
                fd,
                kind: Kind::Plain,
            });
        }
        Ok(match opened_again(&fd, OFlags::WRONLY) {
            Ok(fd) => Self {
                fd,
                kind: Kind::Plain,
            },
            Err(_) => Self {
                fd,
                kind: Kind::Polled,
            },
        })
    }

    /// Writes all, in as many pieces as there is room for. Called within a tokio runtime, which goes on meanwhile.
    ///
    /// # Errors
    /// What `write(2)` says.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut watched = None;
        while !bytes.is_empty() {
            let written = match (&watched, self.write(bytes)) {
                (_, Err(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
                (None, Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    watched = Some(watch::owned(self.fd.try_clone()?)?);
                    continue;
                }
                (Some(fd), Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    let write = |_: &OwnedFd| self.write(bytes);
                    fd.async_io(Interest::WRITABLE, write).await?
                }
                (_, written) => written?,
            };
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Plain => Ok(rustix::io::write(&self.fd, bytes)?),
            Kind::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(&self.fd, bytes, flags)?)
            }
            Kind::Polled if self.has_room(Duration::ZERO) => {
                let short = &bytes[..bytes.len().min(SHORT)];
                Ok(rustix::io::write(&self.fd, short)?)
            }
            Kind::Polled => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Whether it takes something within that time.
    fn has_room(&self, within: Duration) -> bool {
        let within = Timespec {
            tv_sec: within.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: within.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        rustix::event::poll(&mut fds, Some(&within)).is_ok_and(|ready| ready > 0)
    }
}
