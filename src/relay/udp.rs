//! Datagrams: from a published socket on the host to the sidecar's uplink, and their answers back.
//!
//! # Theory of operation
//!
//! UDP has no connections, so the relay keeps *flows*: one for each client (address and port) and address of ours that
//! it has written to. A flow has a socket of its own that is connected to the target, so what comes back on it is the
//! target's answer, to that client and nobody else, and the kernel drops whatever else arrives there. It is sent from
//! the published socket, with the address that the client wrote to as its source (`IP_PKTINFO`, ip(7)): a socket that is
//! bound to all addresses would otherwise answer from the one that the route prefers, which the client doesn't know.
//!
//! - **Bounded.** A quarter of the descriptors, at most [`MOST_FLOWS`], are for flows. When all are taken, the sixteenth
//!   that has been silent for longest makes room: a flood of forged clients pushes out flows that say nothing, and those
//!   in use stay. A flow holds no buffer.
//! - **Idle flows end** as the kernel's own do (`nf_conntrack_udp_timeout`, `nf_conntrack_udp_timeout_stream`): after 30
//!   seconds without a datagram if nobody has answered yet, after 120 otherwise.
//! - **A refusal is no end.** ECONNREFUSED, an ICMP error about an earlier datagram, says that nobody listens now. The
//!   flow stays, and works again when the app does.
//! - **A datagram is a datagram**: of any size up to 65507 bytes, none as well, never torn or joined; lost where there is
//!   no room for it, as on any way that it takes.
//! - **Not a reflector of broadcasts**: what was sent to a broadcast or multicast address is dropped, as by DNAT, which
//!   translates what is for one of the host's own addresses.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::config::Protocol;
use crate::traffic::Why;

use super::{EXHAUSTED_PAUSE, Relay, RelayError, Way};

/// No more flows at once, however many descriptors there are: well below the number of ephemeral ports, of which each
/// flow takes one.
pub(super) const MOST_FLOWS: u64 = 16_384;
/// How long a flow lives that nobody has answered.
const UNANSWERED: Duration = Duration::from_secs(30);
/// How long one lives that was answered.
const ANSWERED: Duration = Duration::from_secs(120);
/// How often the idle ones are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Datagrams that one socket may carry before the others have their turn.
const TURN: usize = 64;
/// Longer than any datagram (udp(7)).
const DATAGRAM: usize = 64 << 10;

/// A published socket.
struct Door {
    socket: UdpSocket,
    way: Way,
    /// Its place among the others.
    number: usize,
}

/// Who talks to which of our addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    door: usize,
    client: SocketAddr,
    ours: IpAddr,
}

struct Flow {
    socket: Rc<UdpSocket>,
    last: Rc<Cell<Instant>>,
    answered: Rc<Cell<bool>>,
    answers: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Every flow of every published socket.
pub(super) struct Flows {
    table: RefCell<HashMap<Key, Flow>>,
    most: usize,
    /// Where a datagram is on its way through.
    datagram: RefCell<Vec<u8>>,
}

impl Flows {
    pub(super) fn new(most: usize) -> Self {
        Self {
            table: RefCell::default(),
            most,
            datagram: RefCell::new(vec![0; if most == 0 { 0 } else { DATAGRAM }]),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.table.borrow().len()
    }

    /// Ends them all: with last orders, the published sockets are somebody else's, who begins anew.
    pub(super) fn end(&self) {
        self.table.borrow_mut().clear();
    }

    /// Makes room by the sixteenth that has been silent for longest; how many those were.
    fn evict(&self) -> usize {
        let mut table = self.table.borrow_mut();
        let mut last: Vec<Instant> = table.values().map(|flow| flow.last.get()).collect();
        let many = last.len().div_ceil(16);
        if many == 0 {
            return 0;
        }
        let (_, limit, _) = last.select_nth_unstable(many - 1);
        let limit = *limit;
        let mut left = many;
        table.retain(|_, flow| {
            let goes = left > 0 && flow.last.get() <= limit;
            left -= usize::from(goes);
            !goes
        });
        many - left
    }

    /// Ends the idle ones, for ever.
    pub(super) async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = Instant::now();
            self.table.borrow_mut().retain(|_, flow| {
                let longest = if flow.answered.get() {
                    ANSWERED
                } else {
                    UNANSWERED
                };
                now - flow.last.get() < longest
            });
        }
    }
}

/// Carries what comes to one socket, for ever; what it returns is why it can't any more.
pub(super) async fn carry_all(
    number: usize,
    socket: std::net::UdpSocket,
    way: Way,
    relay: Rc<Relay>,
) -> RelayError {
    let listen = socket
        .local_addr()
        .map_or_else(|_| "an unknown address".to_owned(), |a| a.to_string());
    let door = match Door::new(number, socket, way) {
        Ok(door) => Rc::new(door),
        Err(source) => return RelayError::Listener { listen, source },
    };
    loop {
        let result = door.take_some(&relay).await;
        match result {
            Ok(()) => tokio::task::yield_now().await,
            Err(source) => match Errno::from_io_error(&source) {
                Some(Errno::NOMEM | Errno::NOBUFS) => {
                    relay.count(|s| s.exhausted += 1);
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                // About a datagram that was sent before.
                Some(
                    Errno::CONNREFUSED
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::HOSTDOWN
                    | Errno::NETDOWN
                    | Errno::INTR,
                ) => {}
                _ => return RelayError::Listener { listen, source },
            },
        }
    }
}

impl Door {
    fn new(number: usize, socket: std::net::UdpSocket, way: Way) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        match socket.local_addr()? {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            way,
            number,
        })
    }

    /// Waits for datagrams and carries those that are there, a turn at most.
    async fn take_some(self: &Rc<Self>, relay: &Rc<Relay>) -> io::Result<()> {
        self.socket.readable().await?;
        for _ in 0..TURN {
            let mut buffer = relay.flows.datagram.borrow_mut();
            let got = self
                .socket
                .try_io(Interest::READABLE, || self.receive(&mut buffer));
            match got {
                Ok(Some((length, client, ours))) => {
                    self.carry(&buffer[..length], client, ours, relay);
                }
                Ok(None) => relay.count(|s| s.dropped += 1),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// One datagram: its length, who sent it and to which of our addresses; `None` if that is nobody who could be
    /// answered, or no address of ours alone.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr, IpAddr)>> {
        let mut space = nix::cmsg_space!(libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let got = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let client = got.address.and_then(|address| {
            let v4 = address
                .as_sockaddr_in()
                .map(|a| SocketAddr::V4((*a).into()));
            v4.or_else(|| {
                address
                    .as_sockaddr_in6()
                    .map(|a| SocketAddr::V6((*a).into()))
            })
        });
        let ours = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let local = |a: libc::in_addr| Ipv4Addr::from(u32::from_be(a.s_addr));
                // The kernel's own choice of a source differs for what was sent to more than us (ip_recv_error(7) aside).
                (info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr)
                    .then(|| IpAddr::V4(local(info.ipi_addr)))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
                (!address.is_multicast()).then_some(IpAddr::V6(address))
            }
            _ => None,
        });
        Ok(client
            .filter(|client| client.port() != 0)
            .zip(ours)
            .map(|(client, ours)| (got.bytes, client, ours)))
    }

    /// Hands a datagram on, by the flow that it belongs to or a new one.
    fn carry(
        self: &Rc<Self>,
        datagram: &[u8],
        client: SocketAddr,
        ours: IpAddr,
        relay: &Rc<Relay>,
    ) {
        let key = Key {
            door: self.number,
            client,
            ours,
        };
        let refuse = |why| {
            let ours = || {
                let port = self.socket.local_addr().ok()?.port();
                Some(SocketAddr::new(ours, port))
            };
            relay
                .refused
                .note(self.way.app, why, Protocol::Udp, client, ours);
        };
        if !self.way.gate.admits(client.ip()) {
            return refuse(Why::NotAllowed);
        }
        let begins = !relay.flows.table.borrow().contains_key(&key);
        if begins
            && !self
                .way
                .gate
                .may_begin(client.ip(), Instant::now().into_std())
        {
            return refuse(Why::Rate);
        }
        let known = relay.flows.table.borrow().get(&key).map(|flow| {
            flow.last.set(Instant::now());
            flow.socket.clone()
        });
        let socket = match known.map_or_else(|| self.begin(key, relay), Ok) {
            Ok(socket) => socket,
            Err(_) => return relay.count(|s| s.dropped += 1),
        };
        let send = || rustix::net::send(&*socket, datagram, SendFlags::DONTWAIT);
        // The first error may be an earlier datagram's.
        match send().or_else(|e| {
            if e == Errno::CONNREFUSED {
                send()
            } else {
                Err(e)
            }
        }) {
            Ok(_) => relay.count(|s| {
                s.datagrams_in += 1;
                s.bytes_in += datagram.len() as u64;
            }),
            Err(_) => relay.count(|s| s.dropped += 1),
        }
    }

    /// A new flow.
    fn begin(self: &Rc<Self>, key: Key, relay: &Rc<Relay>) -> io::Result<Rc<UdpSocket>> {
        let target = self.way.to(key.ours);
        relay.permit(Protocol::Udp, target)?;
        if relay.flows.count() >= relay.flows.most {
            let evicted = relay.flows.evict() as u64;
            relay.count(|s| s.evicted += evicted);
        }
        let source = relay.source(key.client, &self.way);
        let socket = Rc::new(dial_from(source, target)?);
        let (last, answered) = (Rc::new(Cell::new(Instant::now())), Rc::default());
        let answers = Answers {
            door: self.clone(),
            key,
            socket: socket.clone(),
            last: last.clone(),
            answered: Rc::clone(&answered),
            relay: relay.clone(),
        };
        let flow = Flow {
            socket: socket.clone(),
            last,
            answered,
            answers: tokio::task::spawn_local(answers.carry()).abort_handle(),
        };
        relay.flows.table.borrow_mut().insert(key, flow);
        relay.count(|s| s.flows += 1);
        Ok(socket)
    }

    /// Sends an answer, from the address that the client wrote to.
    fn answer(&self, datagram: &[u8], key: &Key) -> io::Result<()> {
        let slices = [IoSlice::new(datagram)];
        let to = SockaddrStorage::from(key.client);
        let send = |info: ControlMessage<'_>| {
            let fd = self.socket.as_raw_fd();
            sendmsg(fd, &slices, &[info], MsgFlags::MSG_DONTWAIT, Some(&to))?;
            Ok(())
        };
        match key.ours {
            IpAddr::V4(address) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(address).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            })),
            IpAddr::V6(address) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                ipi6_ifindex: 0,
            })),
        }
    }
}

/// As [`super::dial_from`]: from the client's own address, and its port if that is free.
fn dial_from(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<UdpSocket> {
    dial(source, target).or_else(|e| dial(super::at_any_port(source, e)?, target))
}

/// A socket whose other end is the target. It need not be bound, and may not be unless the relay dials as its clients
/// (`bind` is none of its calls then).
fn dial(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<UdpSocket> {
    let family = SocketAddrAny::from(target).address_family();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &source)?;
    }
    rustix::net::connect(&socket, &target)?;
    UdpSocket::from_std(socket.into())
}

/// The way back of one flow.
struct Answers {
    door: Rc<Door>,
    key: Key,
    socket: Rc<UdpSocket>,
    last: Rc<Cell<Instant>>,
    answered: Rc<Cell<bool>>,
    relay: Rc<Relay>,
}

impl Answers {
    /// For ever: the flow's end takes the task away.
    async fn carry(self) {
        while self.socket.readable().await.is_ok() {
            for _ in 0..TURN {
                match self.carry_one() {
                    Ok(()) => {}
                    Err(Left::Nothing) => break,
                    // The published socket has no room at the moment.
                    Err(Left::Datagram(datagram)) => {
                        let send = || self.door.answer(&datagram, &self.key);
                        let sent = self.door.socket.async_io(Interest::WRITABLE, send).await;
                        self.sent(datagram.len(), &sent);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn carry_one(&self) -> Result<(), Left> {
        let mut buffer = self.relay.flows.datagram.borrow_mut();
        let receive = || {
            let socket = self.socket.as_fd();
            let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            Ok(length)
        };
        let datagram = match self.socket.try_io(Interest::READABLE, receive) {
            Ok(length) => &buffer[..length],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(Left::Nothing),
            // A refusal.
            Err(_) => return Ok(()),
        };
        self.last.set(Instant::now());
        self.answered.set(true);
        match self.door.answer(datagram, &self.key) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(Left::Datagram(datagram.to_vec()))
            }
            sent => {
                self.sent(datagram.len(), &sent);
                Ok(())
            }
        }
    }

    fn sent(&self, length: usize, sent: &io::Result<()>) {
        self.relay.count(|s| match sent {
            Ok(()) => {
                s.datagrams_out += 1;
                s.bytes_out += length as u64;
            }
            Err(_) => s.dropped += 1,
        });
    }
}

/// What is left to do for the way back.
enum Left {
    Nothing,
    Datagram(Vec<u8>),
}
