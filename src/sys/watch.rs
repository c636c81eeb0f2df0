//! Descriptors in the runtime's epoll set.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor of ours for reading and writing. Must be called inside the runtime.
///
/// # Errors
/// What `epoll_ctl(2)` says.
pub fn owned(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped and always names the same descriptor; AsyncFd leaves the epoll
    // set before it drops it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Watches a borrowed descriptor for reading only. Must be called inside the runtime.
///
/// # Errors
/// What `epoll_ctl(2)` says.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a BorrowedFd is open for its whole lifetime, which outlives this AsyncFd, and always names the same
    // descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Whether the other side has ended, whatever there is still to be read.
///
/// # Errors
/// What `poll(2)` says.
pub fn has_hung_up(fd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    // What is not asked for is told all the same (`POLLHUP`, poll(2)).
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&Timespec::default())))?;
    Ok(fds[0].revents().contains(PollFlags::HUP))
}

/// Whether there is something to be read now, the other side's end among it.
#[must_use]
pub fn has_something(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
