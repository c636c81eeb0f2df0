//! A netlink socket from a descriptor.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// Takes a netlink socket that was opened elsewhere (in another network namespace, say).
#[must_use]
pub fn socket(fd: OwnedFd) -> netlink_sys::Socket {
    // SAFETY: the descriptor is open and owned by nobody else (it comes out of an `OwnedFd`), and `Socket` closes it.
    unsafe { netlink_sys::Socket::from_raw_fd(fd.into_raw_fd()) }
}
