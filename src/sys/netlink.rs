//! Netlink sockets, and those made from descriptors: `netlink-sys` has `FromRawFd` for it and no `From<OwnedFd>`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use netlink_sys::{Socket, TokioSocket};
use nix::sys::socket::{SockFlag, SockProtocol, SockType};
use rustix::net::{AddressFamily, sockopt};

/// A netlink socket of `protocol` in the calling thread's network namespace, as a descriptor to hand on (netlink(7)).
///
/// # Errors
/// What socket(2) says.
pub fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let family = nix::sys::socket::AddressFamily::Netlink;
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(nix::sys::socket::socket(
        family,
        SockType::Raw,
        flags,
        protocol,
    )?)
}

/// The netlink socket behind `fd`.
///
/// # Errors
/// `fd` is no netlink socket.
pub fn socket(fd: OwnedFd) -> io::Result<Socket> {
    check(&fd)?;
    // SAFETY: the descriptor is open and ours alone, and `into_raw_fd` hands the duty to close it to the new owner.
    Ok(unsafe { Socket::from_raw_fd(fd.into_raw_fd()) })
}

/// The same, if it is one for netfilter: to another protocol our messages would say something else.
///
/// # Errors
/// `fd` is none.
pub fn netfilter(fd: OwnedFd) -> io::Result<Socket> {
    match sockopt::socket_protocol(&fd)? {
        Some(rustix::net::netlink::NETFILTER) => socket(fd),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a netlink socket for netfilter",
        )),
    }
}

/// The netlink socket behind `fd`, made non-blocking and registered with the current tokio runtime.
///
/// # Errors
/// `fd` is no netlink socket.
///
/// # Panics
/// There is no tokio runtime with I/O enabled.
pub fn tokio_socket(fd: OwnedFd) -> io::Result<TokioSocket> {
    // A descriptor that can't be polled would make `TokioSocket::from_raw_fd` panic; a socket always can.
    check(&fd)?;
    // SAFETY: as in `socket`.
    Ok(unsafe { TokioSocket::from_raw_fd(fd.into_raw_fd()) })
}

fn check(fd: &OwnedFd) -> io::Result<()> {
    if sockopt::socket_domain(fd)? == AddressFamily::NETLINK {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a netlink socket",
        ))
    }
}
