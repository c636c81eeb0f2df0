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
//! - **What comes together goes together.** Each datagram on the way to an app passes two links, a bridge and every rule,
//!   which costs more than all the relay does. Those of one flow that come one after the other, all of one length but the
//!   last, go as one call with the length of each (`UDP_SEGMENT`, udp(7)): the kernel takes them through as one packet and
//!   cuts it up at the socket they are for: where rules are the user's, or each packet is logged, they see each, and nothing
//!   is joined on this way ([`Way::joined`]). What the kernel has joined itself comes in one call (`UDP_GRO`) and goes on in
//!   one. Order is kept; where the kernel won't have a batch (longer than the link takes, no checksums by it), its datagrams
//!   go one by one.
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
use rustix::net::{SendFlags, SocketAddrAny, SocketFlags, SocketType};
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
/// What a batch may be long, with its headers no longer than a packet.
const BATCH: usize = 65_000;
/// How many datagrams may be one (`UDP_MAX_SEGMENTS` before Linux 6.6).
const MOST_IN_BATCH: usize = 64;

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

/// Datagrams of one flow, one behind the other, that go by one call: all of one length but the last.
struct Batch {
    bytes: Vec<u8>,
    /// How many of these are datagrams.
    length: usize,
    /// The length of each but the last.
    segment: usize,
    datagrams: u64,
}

impl Batch {
    fn new(room: usize) -> Self {
        Self {
            bytes: vec![0; room],
            length: 0,
            segment: 0,
            datagrams: 0,
        }
    }

    /// Where the next datagram is to go.
    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.length..]
    }

    /// Whether what lies in the room, `length` bytes of datagrams of `segment` bytes each, can go with what there is.
    fn takes(&self, length: usize, segment: usize) -> bool {
        // The last may be shorter.
        let is_next = segment == self.segment || length < self.segment && segment >= length;
        self.datagrams == 0
            || is_next
                && length > 0
                && self.length.is_multiple_of(self.segment)
                && self.length + length <= BATCH
                && (self.length + length).div_ceil(self.segment) <= MOST_IN_BATCH
    }

    /// Takes it.
    fn push(&mut self, length: usize, segment: usize) {
        if self.datagrams == 0 {
            self.segment = segment;
        }
        self.length += length;
        self.datagrams += length.div_ceil(segment.max(1)).max(1) as u64;
    }

    /// Takes all out of it, but for `kept` bytes in the room, which come first then.
    fn clear(&mut self, kept: usize) {
        self.bytes.copy_within(self.length..self.length + kept, 0);
        (self.length, self.segment, self.datagrams) = (0, 0, 0);
    }

    /// Its datagrams.
    fn each(&self) -> impl Iterator<Item = &[u8]> {
        let all = &self.bytes[..self.length];
        let none = (self.length == 0 && self.datagrams > 0).then_some(all);
        none.into_iter().chain(all.chunks(self.segment.max(1)))
    }

    /// Hands all of it to `send`, with the length of each datagram where it is more than one: at once, or one by one where
    /// that may not be (`joined`), or the kernel won't have it so. What that came to of each, in the order of [`Self::each`], or of all.
    fn send(
        &self,
        joined: bool,
        mut send: impl FnMut(&[u8], Option<u16>) -> io::Result<()>,
        mut sent: impl FnMut(&[u8], u64, io::Result<()>),
    ) {
        let all = &self.bytes[..self.length];
        if self.datagrams > 1 {
            let at_once = match u16::try_from(self.segment) {
                Ok(segment) if joined => send(all, Some(segment)),
                _ => Err(Errno::OPNOTSUPP.into()),
            };
            if !at_once.as_ref().is_err_and(is_no_batch) {
                return sent(all, self.datagrams, at_once);
            }
        }
        for datagram in self.each() {
            sent(datagram, 1, send(datagram, None));
        }
    }
}

/// Whether an error is about a batch, and not about each of its datagrams as well.
fn is_no_batch(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(Errno::INVAL | Errno::MSGSIZE | Errno::IO | Errno::OPNOTSUPP)
    )
}

/// Every flow of every published socket.
pub(super) struct Flows {
    table: RefCell<HashMap<Key, Flow>>,
    most: usize,
    /// Where datagrams are on their way through.
    batch: RefCell<Batch>,
}

impl Flows {
    pub(super) fn new(most: usize) -> Self {
        Self {
            table: RefCell::default(),
            most,
            batch: RefCell::new(Batch::new(if most == 0 { 0 } else { 2 * DATAGRAM })),
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
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => {}
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
        joined(&socket);
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            way,
            number,
        })
    }

    /// Waits for datagrams and carries those that are there, a turn at most; whether more may be there.
    async fn take_some(self: &Rc<Self>, relay: &Rc<Relay>) -> io::Result<bool> {
        self.socket.readable().await?;
        let mut batch = relay.flows.batch.borrow_mut();
        // Whose the batch is.
        let mut whose: Option<(Key, Rc<UdpSocket>)> = None;
        let mut ended = Ok(true);
        for _ in 0..TURN {
            let got = self
                .socket
                .try_io(Interest::READABLE, || self.receive(batch.room()));
            match got {
                Ok(Some(Got {
                    length,
                    segment,
                    client,
                    ours,
                })) => {
                    let door = self.number;
                    let key = Key { door, client, ours };
                    let goes_on = whose.as_ref().is_some_and(|(of, _)| *of == key);
                    if !goes_on || !self.way.joined || !batch.takes(length, segment) {
                        self.hand_on(&mut batch, whose.as_ref(), length, relay);
                    }
                    if !goes_on {
                        whose = self.flow(key, relay).map(|socket| (key, socket));
                    }
                    if whose.is_some() {
                        batch.push(length, segment);
                    }
                }
                Ok(None) => relay.count(|s| s.dropped += 1),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ended = Ok(false);
                    break;
                }
                Err(e) => {
                    ended = Err(e);
                    break;
                }
            }
        }
        self.hand_on(&mut batch, whose.as_ref(), 0, relay);
        ended
    }

    /// What one call gives: one datagram, or several that the kernel has joined; `None` if that is from nobody who could be
    /// answered, or to no address of ours alone.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Got>> {
        let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
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
        let (mut ours, mut segment) = (None, got.bytes);
        for message in got.cmsgs()? {
            match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let local = |a: libc::in_addr| Ipv4Addr::from(u32::from_be(a.s_addr));
                    // The kernel's own choice of a source differs for what was sent to more than us (ip_recv_error(7) aside).
                    let to = local(info.ipi_addr);
                    // Of what came before anybody wanted to know it (`ipv4_pktinfo_prepare()`, net/ipv4/ip_sockglue.c).
                    let early = info.ipi_ifindex == 0 && !to.is_multicast() && !to.is_broadcast();
                    ours = (early || info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr)
                        .then_some(IpAddr::V4(to));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let address = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    ours = (!address.is_multicast()).then_some(IpAddr::V6(address));
                }
                ControlMessageOwned::UdpGroSegments(length) => segment = of_each(length, segment),
                _ => {}
            }
        }
        let client = client.filter(|client| client.port() != 0);
        Ok(client.zip(ours).map(|(client, ours)| Got {
            length: got.bytes,
            segment,
            client,
            ours,
        }))
    }

    /// The socket of the flow that a datagram belongs to, or of a new one; none if the client is refused, or there is no
    /// room for it.
    fn flow(self: &Rc<Self>, key: Key, relay: &Rc<Relay>) -> Option<Rc<UdpSocket>> {
        let client = key.client;
        let refuse = |why| {
            let ours = || {
                let port = self.socket.local_addr().ok()?.port();
                Some(SocketAddr::new(key.ours, port))
            };
            relay
                .refused
                .note(self.way.app, why, Protocol::Udp, client, ours);
            None
        };
        if !self.way.gate.admits(client.ip()) {
            return refuse(Why::NotAllowed);
        }
        let known = relay.flows.table.borrow().get(&key).map(|flow| {
            flow.last.set(Instant::now());
            flow.socket.clone()
        });
        if known.is_some() {
            return known;
        }
        let now = Instant::now().into_std();
        if !self.way.gate.may_begin(client.ip(), now) {
            return refuse(Why::Rate);
        }
        let begun = self.begin(key, relay);
        if begun.is_err() {
            relay.count(|s| s.dropped += 1);
        }
        begun.ok()
    }

    /// Hands a batch on, and makes it empty but for what has come last, of `kept` bytes.
    fn hand_on(
        &self,
        batch: &mut Batch,
        whose: Option<&(Key, Rc<UdpSocket>)>,
        kept: usize,
        relay: &Relay,
    ) {
        if let Some((_, socket)) = whose {
            let send = |bytes: &[u8], segment: Option<u16>| {
                // The first error may be an earlier datagram's.
                Ok(send_on(socket, bytes, segment).or_else(|e| match e {
                    Errno::CONNREFUSED => send_on(socket, bytes, segment),
                    e => Err(e),
                })?)
            };
            batch.send(self.way.joined, send, |bytes, datagrams, sent| {
                relay.count(|s| match sent {
                    Ok(()) => {
                        s.datagrams_in += datagrams;
                        s.bytes_in += bytes.len() as u64;
                    }
                    Err(_) => s.dropped += datagrams,
                });
            });
        }
        batch.clear(kept);
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

    /// Sends an answer, or several of so many bytes each, from the address that the client wrote to.
    fn answer(&self, bytes: &[u8], segment: Option<u16>, key: &Key) -> io::Result<()> {
        let slices = [IoSlice::new(bytes)];
        let to = SockaddrStorage::from(key.client);
        let send = |info: ControlMessage<'_>| {
            let fd = self.socket.as_raw_fd();
            let both;
            let one;
            let control: &[ControlMessage<'_>] = match &segment {
                Some(length) => {
                    both = [info, ControlMessage::UdpGsoSegments(length)];
                    &both
                }
                None => {
                    one = [info];
                    &one
                }
            };
            sendmsg(fd, &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
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

/// What one call has given.
struct Got {
    /// Of all of it.
    length: usize,
    /// Of each datagram but the last, where it is several.
    segment: usize,
    client: SocketAddr,
    ours: IpAddr,
}

/// The length of each datagram, as the kernel tells it beside `all` bytes; it never tells less than one.
fn of_each(told: i32, all: usize) -> usize {
    match usize::try_from(told) {
        Ok(length) if length > 0 => length,
        _ => all,
    }
}

/// Has the kernel hand over together what it has joined. One that can't (before Linux 5.0) hands over one by one.
fn joined(socket: &impl AsFd) {
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
}

/// Sends by a socket whose other end is the target; several datagrams of so many bytes each.
fn send_on(socket: &UdpSocket, bytes: &[u8], segment: Option<u16>) -> Result<(), Errno> {
    let Some(length) = segment else {
        rustix::net::send(socket, bytes, SendFlags::DONTWAIT)?;
        return Ok(());
    };
    let control = [ControlMessage::UdpGsoSegments(&length)];
    let slices = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &slices, &control, flags, None)
        .map_err(|e| Errno::from_raw_os_error(e as i32))?;
    Ok(())
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
    joined(&socket);
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
            let (more, left) = self.carry_some();
            // The published socket has no room at the moment.
            for datagram in left {
                let send = || self.door.answer(&datagram, None, &self.key);
                let sent = self.door.socket.async_io(Interest::WRITABLE, send).await;
                self.sent(datagram.len(), 1, &sent);
            }
            if more {
                tokio::task::yield_now().await;
            }
        }
    }

    /// A turn at most: whether more may be there, and what there was no room for.
    fn carry_some(&self) -> (bool, Vec<Vec<u8>>) {
        let mut batch = self.relay.flows.batch.borrow_mut();
        let mut left = vec![];
        for _ in 0..TURN {
            let receive = || self.receive(batch.room());
            match self.socket.try_io(Interest::READABLE, receive) {
                Ok((length, segment)) => {
                    if !batch.takes(length, segment) {
                        self.hand_on(&mut batch, length, &mut left);
                    }
                    batch.push(length, segment);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.hand_on(&mut batch, 0, &mut left);
                    return (false, left);
                }
                // A refusal.
                Err(_) => {}
            }
            if !left.is_empty() {
                break;
            }
        }
        self.hand_on(&mut batch, 0, &mut left);
        (true, left)
    }

    /// What one call gives: its length, and that of each datagram but the last.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, usize)> {
        let mut space = nix::cmsg_space!(libc::c_int);
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let got = recvmsg::<()>(fd, &mut slices, Some(&mut space), flags)?;
        let joined = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(length) => Some(of_each(length, got.bytes)),
            _ => None,
        });
        Ok((got.bytes, joined.unwrap_or(got.bytes)))
    }

    /// Sends the batch, and makes it empty but for what has come last, of `kept` bytes. What there is no room for goes to
    /// `left`, and what comes after that as well.
    fn hand_on(&self, batch: &mut Batch, kept: usize, left: &mut Vec<Vec<u8>>) {
        if batch.datagrams > 0 {
            self.last.set(Instant::now());
            self.answered.set(true);
        }
        if !left.is_empty() {
            left.extend(batch.each().map(<[u8]>::to_vec));
            return batch.clear(kept);
        }
        let mut waits = vec![];
        let segment = batch.segment.max(1);
        batch.send(
            true,
            |bytes, segment| self.door.answer(bytes, segment, &self.key),
            |bytes, datagrams, sent| match &sent {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => match bytes.is_empty() {
                    true => waits.push(vec![]),
                    false => waits.extend(bytes.chunks(segment).map(<[u8]>::to_vec)),
                },
                sent => self.sent(bytes.len(), datagrams, sent),
            },
        );
        left.append(&mut waits);
        batch.clear(kept);
    }

    fn sent(&self, length: usize, datagrams: u64, sent: &io::Result<()>) {
        self.relay.count(|s| match sent {
            Ok(()) => {
                s.datagrams_out += datagrams;
                s.bytes_out += length as u64;
            }
            Err(_) => s.dropped += datagrams,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes datagrams, each by itself or joined (length, segment), and lists the batches that they make.
    fn batches(pieces: &[(usize, usize)]) -> Vec<(usize, u64)> {
        let mut batch = Batch::new(2 * DATAGRAM);
        let mut all = vec![];
        for &(length, segment) in pieces {
            if !batch.takes(length, segment) {
                all.push((batch.length, batch.datagrams));
                batch.clear(length);
            }
            assert!(batch.room().len() >= length);
            batch.push(length, segment);
            assert_eq!(batch.each().count() as u64, batch.datagrams);
        }
        all.push((batch.length, batch.datagrams));
        all
    }

    #[test]
    fn datagrams_of_one_length_are_a_batch_and_a_shorter_one_ends_it() {
        let one = |length: usize| (length, length);
        type Case = (&'static str, Vec<(usize, usize)>, Vec<(usize, u64)>);
        let cases: [Case; 10] = [
            ("one", vec![one(5)], vec![(5, 1)]),
            ("equal", vec![one(5); 3], vec![(15, 3)]),
            (
                "a shorter one is the last",
                vec![one(5), one(5), one(2), one(5)],
                vec![(12, 3), (5, 1)],
            ),
            (
                "two shorter ones",
                vec![one(5), one(2), one(2)],
                vec![(7, 2), (2, 1)],
            ),
            (
                "a longer one begins anew",
                vec![one(2), one(5)],
                vec![(2, 1), (5, 1)],
            ),
            (
                "nothing is one too",
                vec![one(0), one(0), one(5)],
                vec![(0, 1), (0, 1), (5, 1)],
            ),
            (
                "nothing ends it",
                vec![one(5), one(0), one(5)],
                vec![(5, 1), (0, 1), (5, 1)],
            ),
            (
                "joined ones",
                vec![(25, 10), one(10)],
                vec![(25, 3), (10, 1)],
            ),
            (
                "joined ones of the same length",
                vec![one(10), (25, 10)],
                vec![(35, 4)],
            ),
            (
                "joined ones are no shorter one",
                vec![one(10), (6, 3)],
                vec![(10, 1), (6, 2)],
            ),
        ];
        for (what, pieces, expected) in cases {
            assert_eq!(batches(&pieces), expected, "{what}");
        }
        // No longer than a packet, and of no more than so many.
        assert_eq!(
            batches(&[(1200, 1200); 60]),
            [(54 * 1200, 54), (6 * 1200, 6)]
        );
        assert_eq!(batches(&[(1, 1); 70]), [(64, 64), (6, 6)]);
        assert_eq!(
            batches(&[(65_507, 1200), (65_507, 1200)]),
            [(65_507, 55), (65_507, 55)]
        );
    }

    #[test]
    fn what_the_kernel_will_not_have_together_goes_one_by_one() {
        let mut batch = Batch::new(2 * DATAGRAM);
        for (length, fill) in [(4, 1), (4, 2), (3, 3)] {
            batch.room()[..length].fill(fill);
            batch.push(length, length);
        }
        for (joined, error, expected) in [
            (true, None, vec![(11, Some(4))]),
            (
                true,
                Some(Errno::MSGSIZE),
                vec![(11, Some(4)), (4, None), (4, None), (3, None)],
            ),
            // That is no reason to try it otherwise.
            (true, Some(Errno::NOBUFS), vec![(11, Some(4))]),
            (false, None, vec![(4, None), (4, None), (3, None)]),
        ] {
            let (mut calls, mut told) = (vec![], 0);
            let send = |bytes: &[u8], segment: Option<u16>| {
                calls.push((bytes.len(), segment));
                match error {
                    Some(e) if segment.is_some() => Err(e.into()),
                    _ => Ok(()),
                }
            };
            batch.send(joined, send, |_, datagrams, _| told += datagrams);
            assert_eq!((calls, told), (expected, 3), "{joined} {error:?}");
        }
    }
}
