//! One transaction into the kernel, and what it answers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::Batch;
use crate::netlink::messages;
use crate::sys;

/// Why a ruleset isn't in the kernel. The old one is, untouched.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum LoadError {
    /// No netfilter netlink socket.
    #[error("open a netfilter netlink socket: {source}")]
    Open {
        /// What the kernel said.
        #[source]
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// The batch didn't get to the kernel. `EMSGSIZE`: it is larger than `net.core.wmem_max` allows.
    #[error("send a ruleset of {size} bytes to the kernel: {source}")]
    Send {
        /// The batch's size in bytes.
        size: usize,
        /// What the kernel said.
        #[source]
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// The kernel's answer couldn't be read.
    #[error("read the kernel's answer to a ruleset: {source}")]
    Receive {
        /// What the kernel said.
        #[source]
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// The kernel refused one object, and with it all of them. `EPERM`: no `CAP_NET_ADMIN` over this network namespace, or
    /// somebody else owns the table.
    #[error("load {object}{detail}: {source}")]
    Refused {
        /// The first object that was refused, such as `rule forward/accept-published`; `the batch` if it was all of it.
        object: String,
        /// In brackets what the kernel had to say beyond a number, if anything.
        detail: String,
        /// The error number.
        #[source]
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// The kernel took the batch and neither refused nor acknowledged it, which it never does (nfnetlink_rcv_batch).
    #[error("the kernel did not answer to a ruleset")]
    NoAnswer,
}

impl LoadError {
    /// Whether the kernel said that we may not.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Open { source }
            | Self::Send { source, .. }
            | Self::Receive { source }
            | Self::Refused { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::NoAnswer => false,
        }
    }

    /// Whether the kernel said of this chain that it has nothing that could hook it there.
    #[must_use]
    pub fn is_unknown_to_the_kernel(&self, chain: &str) -> bool {
        matches!(self, Self::Refused { object, source, .. }
            if *object == format!("chain {chain}") && source.raw_os_error() == Some(libc::EOPNOTSUPP))
    }
}

/// What the kernel said, on its way from the process that loads to the one that tells: its number is all there is to it.
mod errno {
    use std::io;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(error: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i32(error.raw_os_error().unwrap_or(libc::EIO))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<io::Error, D::Error> {
        i32::deserialize(from).map(io::Error::from_raw_os_error)
    }
}

/// A netlink socket for netfilter, in the network namespace where it was opened; wherever the thread goes later.
///
/// Dropping it makes the tables vanish that were loaded through it by [`super::encode_owned`].
pub struct Socket(pub(super) netlink_sys::Socket);

impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace. To load rules, the caller must hold `CAP_NET_ADMIN` in the user
    /// namespace that owns it, when it opens the socket and when it sends; nothing else is needed.
    ///
    /// # Errors
    /// [`LoadError::Open`].
    pub fn open() -> Result<Self, LoadError> {
        netlink_sys::Socket::new(NETLINK_NETFILTER)
            .and_then(Self::prepare)
            .map_err(|source| LoadError::Open { source })
    }

    /// The same by a `NETLINK_NETFILTER` socket that was made inside the namespace that it is to change.
    ///
    /// # Errors
    /// [`LoadError::Open`]: it is no netlink socket for netfilter.
    pub fn made_inside(fd: OwnedFd) -> Result<Self, LoadError> {
        sys::netlink::netfilter(fd)
            .and_then(Self::prepare)
            .map_err(|source| LoadError::Open { source })
    }

    fn prepare(mut socket: netlink_sys::Socket) -> io::Result<Self> {
        socket.bind_auto()?;
        // A refusal need not carry the whole batch back, but its words if it has some.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self(socket))
    }

    /// The socket itself, to hand to another process: who sends on it needs the capability as well.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The same socket, from another process. What that one has asked and not heard is thrown away.
    ///
    /// # Errors
    /// [`LoadError::Open`]: it is no netlink socket for netfilter.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, LoadError> {
        let socket = Self::taken(fd)?;
        socket.drain();
        Ok(socket)
    }

    /// As [`Socket::from_fd`], and throws nothing away.
    pub(super) fn taken(fd: OwnedFd) -> Result<Self, LoadError> {
        let socket = sys::netlink::netfilter(fd).map_err(|source| LoadError::Open { source })?;
        Ok(Self(socket))
    }

    /// Throws away what others have asked by this socket and not heard.
    pub(super) fn drain(&self) {
        let mut left = Vec::with_capacity(ANSWER);
        while self.0.recv(&mut left, libc::MSG_DONTWAIT).is_ok() {
            left.clear();
        }
    }

    /// The socket's own address, by which the kernel tells whose a table is.
    pub(super) fn address(&self) -> io::Result<u32> {
        let mut address = netlink_sys::SocketAddr::new(0, 0);
        self.0.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// A transaction is one message buffer, of which the socket must be able to hold all.
    fn make_room(&self, size: usize) -> nix::Result<()> {
        // netlink_sendmsg allows for 32 bytes of its own; the kernel doubles what is asked for, socket(7).
        if getsockopt(&self.0, sockopt::SndBuf)? < size + 32
            && setsockopt(&self.0, sockopt::SndBufForce, &size).is_err()
        {
            // In a user namespace below the first, only as far as net.core.wmem_max.
            setsockopt(&self.0, sockopt::SndBuf, &size)?;
        }
        Ok(())
    }
}

/// Loads `batch`: all of it or nothing.
///
/// # Errors
/// [`LoadError`]; the ruleset is then what it was before.
pub fn transact(socket: &Socket, batch: &Batch) -> Result<(), LoadError> {
    let send = || {
        socket.make_room(batch.size())?;
        socket.0.send(&batch.bytes, 0)
    };
    send().map_err(|source| LoadError::Send {
        size: batch.size(),
        source,
    })?;
    // The kernel works in the sender's system call, so all answers are there by now.
    let mut acknowledged = false;
    let mut refused = None;
    loop {
        let mut buffer = Vec::with_capacity(ANSWER);
        match socket.0.recv(&mut buffer, libc::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(source) => return Err(LoadError::Receive { source }),
        }
        for message in messages(&buffer).filter(|message| message.kind == libc::NLMSG_ERROR) {
            match message.error() {
                0 => acknowledged |= message.sequence == batch.last(),
                number if refused.is_none() => {
                    let object = batch.labels.get(message.sequence as usize);
                    refused = Some(LoadError::Refused {
                        object: object.map_or_else(|| "the batch".to_owned(), Clone::clone),
                        detail: message
                            .words()
                            .map_or_else(String::new, |words| format!(" ({words})")),
                        source: io::Error::from_raw_os_error(number),
                    });
                }
                _ => {}
            }
        }
    }
    match refused {
        Some(refused) => Err(refused),
        None if acknowledged => Ok(()),
        None => Err(LoadError::NoAnswer),
    }
}

/// More than the kernel puts into one answer (`NLMSG_GOODSIZE`, and 32 kB for a dump).
pub(super) const ANSWER: usize = 64 * 1024;
