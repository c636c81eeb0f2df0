//! The way out: carries what apps connect to, by two processes that trust each other with nothing.
//!
//! # Theory of operation
//!
//! The uplink ends in a network namespace in which every address is local. There, for each granted port, a socket listens
//! at all addresses; who connects through the sidecar to `192.0.2.10:5432` is connected to that socket, which is asked
//! for the address (`getsockname(2)`). Nothing listens at any other port, and the rules of that namespace let in what is
//! granted and nothing else.
//!
//! - The *carrier* has the listening sockets of TCP and moves the bytes (`super`). It is in an empty network namespace
//!   and can make no socket, connect none and send to no address: all that it has ever reached was handed to it.
//! - The *dialer* ([`dialer`]) is in the host's network namespace. The carrier says an address and a port to it; if that
//!   is granted it connects and hands the socket over, and if not it says no. It sees no byte of a connection. Datagrams
//!   it carries itself (`super::udp`), without a look into them: the holder of a socket of UDP could send by it anywhere.
//!
//! So who breaks into the carrier, by what an app or a server has sent, has the connections that are open, and may ask for
//! what is granted anyway.
//!
//! An app's connection is accepted before there is one to the destination. If that fails, by a refusal or by silence for
//! ten seconds, the app's is reset.
//!
//! # The conversation
//!
//! Messages on a socket pair of type SOCK_SEQPACKET, any number at a time: a request is a number, an address and a
//! port; its answer is the same number, and the error number with nothing or 0 with the connected socket.

pub mod dialer;
pub mod ports;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{Places, RelayError, Tuning, Way, run_with};

/// A request: its number, the address (IPv4 as IPv6), the port, all with the most significant byte first.
const REQUEST: usize = 8 + 16 + 2;
/// An answer: the request's number, an error number or 0.
const ANSWER: usize = 8 + 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    number: u64,
    to: SocketAddr,
}

impl Request {
    pub(crate) fn bytes(self) -> [u8; REQUEST] {
        let address = match self.to.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut bytes = [0; REQUEST];
        bytes[..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[8..24].copy_from_slice(&address.octets());
        bytes[24..].copy_from_slice(&self.to.port().to_be_bytes());
        bytes
    }

    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (address, port) = rest.split_first_chunk::<16>()?;
        let address = IpAddr::V6(Ipv6Addr::from(*address)).to_canonical();
        Some(Self {
            number: u64::from_be_bytes(*number),
            to: SocketAddr::new(address, u16::from_be_bytes(port.try_into().ok()?)),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    number: u64,
    /// 0 for none.
    errno: i32,
}

impl Answer {
    pub(crate) fn bytes(self) -> [u8; ANSWER] {
        let mut bytes = [0; ANSWER];
        bytes[..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[8..].copy_from_slice(&self.errno.to_be_bytes());
        bytes
    }

    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let (number, errno) = bytes.split_first_chunk()?;
        Some(Self {
            number: u64::from_be_bytes(*number),
            errno: i32::from_be_bytes(errno.try_into().ok()?),
        })
    }
}

/// Sends one message, with a descriptor or none.
fn tell(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let Some(fd) = fd else {
        send(socket, bytes, flags)?;
        return Ok(());
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Takes one message and the descriptor that has come with it; of no bytes is the other side's end.
fn hear(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let mut fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten();
    Ok((got.bytes, fds.next()))
}

/// The carrier's side of the conversation.
pub(super) struct Asker {
    socket: AsyncFd<OwnedFd>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<io::Result<OwnedFd>>>>,
    next: Cell<u64>,
}

/// A question that may be given up.
struct Asked<'a> {
    asker: &'a Asker,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.asker.waiting.borrow_mut().remove(&self.number);
    }
}

impl Asker {
    pub(super) fn new(dialer: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: crate::sys::watch::owned(dialer)?,
            waiting: RefCell::default(),
            next: Cell::new(0),
        })
    }

    /// A connection to `to`, by the dialer.
    pub(super) async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let number = self.next.get();
        self.next.set(number + 1);
        let (answer, answered) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, answer);
        let _given_up = Asked {
            asker: self,
            number,
        };
        let request = Request { number, to }.bytes();
        self.socket
            .async_io(Interest::WRITABLE, |socket| {
                tell(socket.as_fd(), &request, None)
            })
            .await?;
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        TcpStream::from_std(answered.await.map_err(gone)??.into())
    }

    /// Takes answers, for ever; what it returns is why there will be no more.
    pub(super) async fn take_answers(&self) -> io::Error {
        loop {
            let mut bytes = [0; ANSWER];
            let heard = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    hear(socket.as_fd(), &mut bytes)
                })
                .await;
            let (length, fd) = match heard {
                Ok(heard) => heard,
                Err(e) => return e,
            };
            if length == 0 {
                return io::ErrorKind::UnexpectedEof.into();
            }
            let Some(answer) = Answer::of(&bytes[..length]) else {
                return io::ErrorKind::InvalidData.into();
            };
            let result = match (answer.errno, fd) {
                (0, Some(fd)) => Ok(fd),
                (0, None) => Err(io::ErrorKind::InvalidData.into()),
                (errno, _) => Err(io::Error::from_raw_os_error(errno)),
            };
            // Who has asked may have gone; the connection goes too then.
            if let Some(waits) = self.waiting.borrow_mut().remove(&answer.number) {
                let _ = waits.send(result);
            }
        }
    }
}

/// Carries connections, each to where it was meant to go, until told to stop; see [`super::run`]. `dialer` is one end of a
/// socket pair of type SOCK_SEQPACKET, with [`dialer::run`] at the other, whose end is the end of this.
///
/// # Errors
/// [`RelayError`]. Nothing that an app or a destination does is an error.
pub fn carry(
    listeners: Vec<(std::net::TcpListener, Way)>,
    dialer: OwnedFd,
    control: OwnedFd,
) -> Result<(), RelayError> {
    let places = Places::share_out(listeners.len(), 0)?;
    let dials = super::Dials::Asks(dialer);
    let control = (control, [].as_slice(), None);
    run_with(listeners, vec![], dials, control, places, Tuning::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_an_answer_are_what_was_said() {
        for to in ["192.0.2.1:53", "[2001:db8::1]:65535", "0.0.0.0:1"] {
            let said = Request {
                number: u64::MAX - 1,
                to: to.parse().unwrap(),
            };
            assert_eq!(Request::of(&said.bytes()), Some(said));
            assert_eq!(Request::of(&said.bytes()[1..]), None);
        }
        let said = Answer {
            number: 7,
            errno: 111,
        };
        assert_eq!(Answer::of(&said.bytes()), Some(said));
        assert_eq!(Answer::of(&[&said.bytes()[..], &[0]].concat()), None);
    }
}
