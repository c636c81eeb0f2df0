//! Which sockets a network namespace has, and in what state, by sock_diag(7): /proc/net/tcp tells the same, but walks the
//! table of all connections of the machine for it, which costs milliseconds where that table is large.
//!
//! The kernel tells nobody when a socket begins to listen, or changes its state otherwise (include/uapi/linux/sock_diag.h has
//! no group for it); it does tell when one is gone ([`Listening::until_none`]).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use tokio::io::unix::AsyncFd;

use super::{Error, message};
use crate::config::Protocol;
use crate::sys;

/// One answer of the kernel is never longer (`NLMSG_GOODSIZE` and what `netlink_dump` makes of it, at most 32 KiB).
const ANSWER: usize = 32 << 10;

const FAMILIES: [u8; 2] = [AF_INET, AF_INET6];

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Where.
    pub address: SocketAddr,
    /// IPv6 and nothing else (`IPV6_V6ONLY`, ipv6(7)); an IPv6 wildcard takes IPv4 too, unless it was told not to.
    pub only: bool,
}

impl ListeningSocket {
    /// Whether it takes what comes to `target`.
    #[must_use]
    pub fn takes(&self, target: SocketAddr) -> bool {
        let ours = self.address.ip();
        let ip = match (ours, target.ip()) {
            (IpAddr::V6(ours), IpAddr::V4(wanted)) => {
                !self.only && (ours.is_unspecified() || ours.to_ipv4_mapped() == Some(wanted))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
            (ours, wanted) => ours.is_unspecified() || ours == wanted,
        };
        ip && self.address.port() == target.port()
    }
}

impl fmt::Display for ListeningSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        f.write_str(if self.only { " (IPv6 only)" } else { "" })
    }
}

/// A socket that has a port, whatever it does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its own address and port.
    pub address: SocketAddr,
    /// Whom it is connected with, or was; port 0 if with nobody.
    pub peer: SocketAddr,
    /// Of TCP, in the kernel's numbers (include/net/tcp_states.h); of UDP 1 if it is connected, else 7.
    pub state: u8,
    /// Names the socket in `/proc/PID/fd`; 0 if no process has it any more.
    pub inode: u32,
    /// Who made it.
    pub uid: u32,
}

/// `TCP_FIN_WAIT2`.
const FIN_WAIT2: u8 = 5;
/// `TCP_TIME_WAIT`.
pub const TIME_WAIT: u8 = 6;
/// `TCP_LISTEN`.
pub const LISTEN: u8 = 10;

/// All states of TCP up to `TCP_BOUND_INACTIVE`, which a kernel before 6.8 does not look at.
const ANY_STATE: u32 = 0x3ffe;

/// Multicast groups of `NETLINK_SOCK_DIAG`: a message for each TCP socket that is destroyed (include/uapi/linux/sock_diag.h).
const GONE: [u32; 2] = [1, 3]; // SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY

/// How often it is looked what is left, at most, however many sockets an app makes to end them.
const LOOKS_EVERY: Duration = Duration::from_millis(5);

/// A question about one namespace, to be asked as often as needed.
pub struct Listening {
    socket: netlink_sys::Socket,
    /// Whether, among answers, it was told of a socket that is gone.
    told: AtomicBool,
}

impl Listening {
    /// By a `NETLINK_SOCK_DIAG` socket that was made inside the namespace. No capability is needed.
    ///
    /// # Errors
    /// [`Error::Socket`]: it is no netlink socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let mut socket = sys::netlink::socket(fd).map_err(Error::Socket)?;
        // Who has no address is told nothing.
        let any = netlink_sys::SocketAddr::new(0, 0);
        socket.bind(&any).map_err(Error::Socket)?;
        Ok(Self {
            socket,
            told: AtomicBool::new(false),
        })
    }

    /// About the namespace of this process.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        let socket = sys::netlink::open(nix::sys::socket::SockProtocol::NetlinkSockDiag);
        Self::from_fd(socket.map_err(Error::Open)?)
    }

    /// Which TCP sockets listen, or which UDP sockets are bound without being connected to anybody.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn of(&self, protocol: Protocol) -> Result<Vec<ListeningSocket>, Error> {
        let mut found = vec![];
        let kind = || match protocol {
            Protocol::Tcp => (IPPROTO_TCP, StateFlags::LISTEN),
            // What a socket of UDP is when it isn't TCP_ESTABLISHED (net/ipv4/udp.c).
            Protocol::Udp => (IPPROTO_UDP, StateFlags::CLOSE),
        };
        for family in FAMILIES {
            self.dump(family, 0, kind(), |socket| {
                let id = &socket.header.socket_id;
                found.push(ListeningSocket {
                    address: SocketAddr::new(id.source_address, id.source_port),
                    only: socket.nlas.contains(&Nla::SkV6Only(true)),
                });
            })
            .map_err(Error::SockDiag)?;
        }
        Ok(found)
    }

    /// How many connections wait to be accepted at the sockets that listen at `address`, of whatever network.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn backlog(&self, address: SocketAddr) -> Result<u32, Error> {
        let mut waiting = 0_u32;
        let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
        let kind = (IPPROTO_TCP, StateFlags::LISTEN);
        self.dump(family, address.port(), kind, |socket| {
            let id = &socket.header.socket_id;
            if SocketAddr::new(id.source_address, id.source_port) == address {
                waiting = waiting.max(socket.header.recv_queue);
            }
        })
        .map_err(Error::SockDiag)?;
        Ok(waiting)
    }

    /// Every socket that has `port`. One of TCP that is bound and neither listens nor is connected is among them from
    /// Linux 6.8 on.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn holders(&self, protocol: Protocol, port: u16) -> Result<Vec<Holder>, Error> {
        let mut found = vec![];
        let number = match protocol {
            Protocol::Tcp => IPPROTO_TCP,
            Protocol::Udp => IPPROTO_UDP,
        };
        let kind = || (number, StateFlags::from_bits_retain(ANY_STATE));
        for family in FAMILIES {
            self.dump(family, port, kind(), |socket| {
                let header = &socket.header;
                let id = &header.socket_id;
                found.push(Holder {
                    address: SocketAddr::new(id.source_address, id.source_port),
                    peer: SocketAddr::new(id.destination_address, id.destination_port),
                    state: header.state,
                    inode: header.inode,
                    uid: header.uid,
                });
            })
            .map_err(Error::SockDiag)?;
        }
        // The kernel before 4.4 took no port here.
        found.retain(|holder| holder.address.port() == port);
        Ok(found)
    }

    /// Whether there is a connection of TCP to a port that somebody listens at, of whatever state but its very end: one that
    /// a process has, or whose end is still under way. Connections within are none, of which both ends are here; where clients
    /// come to the loopback (`by_loopback`), nothing else tells theirs from those.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn has_clients(&self, by_loopback: bool) -> Result<bool, Error> {
        let listening = self.of(Protocol::Tcp)?.into_iter();
        let listening: BTreeSet<u16> = listening.map(|socket| socket.address.port()).collect();
        let states = || {
            StateFlags::ESTABLISHED
                | StateFlags::SYN_RECV
                | StateFlags::CLOSE_WAIT
                | StateFlags::FIN_WAIT1
                | StateFlags::FIN_WAIT2
                | StateFlags::CLOSING
                | StateFlags::LAST_ACK
        };
        let (mut found, mut within, mut ends) = (false, vec![], BTreeSet::new());
        for family in FAMILIES {
            let states = match by_loopback {
                true => StateFlags::from_bits_retain(ANY_STATE),
                false => states(),
            };
            self.dump(family, 0, (IPPROTO_TCP, states), |socket| {
                let id = &socket.header.socket_id;
                let own = (id.source_address.to_canonical(), id.source_port);
                let other = (id.destination_address.to_canonical(), id.destination_port);
                ends.insert((own, other));
                let is_within = own.0 == other.0 || own.0.is_loopback();
                // Without a process that is what the kernel remembers of it, as TIME-WAIT.
                let over = match socket.header.state {
                    FIN_WAIT2 => socket.header.inode == 0,
                    state => [TIME_WAIT, LISTEN].contains(&state),
                };
                match !over && listening.contains(&id.source_port) {
                    true if is_within => within.push((other, own)),
                    is_client => found |= is_client,
                }
            })
            .map_err(Error::SockDiag)?;
        }
        found |= by_loopback && within.iter().any(|other_end| !ends.contains(other_end));
        Ok(found)
    }

    /// Whether somebody is about to connect to one of these, has been answered and has not answered that.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn has_half_open(&self, at: &[SocketAddr]) -> Result<bool, Error> {
        let mut found = false;
        for family in FAMILIES {
            let kind = (IPPROTO_TCP, StateFlags::SYN_RECV);
            self.dump(family, 0, kind, |socket| {
                let id = &socket.header.socket_id;
                let ours = SocketAddr::new(id.source_address, id.source_port);
                found |= at.iter().any(|&address| {
                    ListeningSocket {
                        address,
                        only: false,
                    }
                    .takes(ours)
                });
            })
            .map_err(Error::SockDiag)?;
        }
        Ok(found)
    }

    /// Whether a connection waits to be accepted: it is there, and no process has it.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn waits(&self, at: SocketAddr, peer: SocketAddr) -> Result<bool, Error> {
        let mut found = false;
        let family = if at.is_ipv4() { AF_INET } else { AF_INET6 };
        let states = StateFlags::ESTABLISHED | StateFlags::SYN_RECV;
        self.dump(family, at.port(), (IPPROTO_TCP, states), |socket| {
            let id = &socket.header.socket_id;
            let ends = (
                SocketAddr::new(id.source_address, id.source_port),
                SocketAddr::new(id.destination_address, id.destination_port),
            );
            found |= ends == (at, peer) && socket.header.inode == 0;
        })
        .map_err(Error::SockDiag)?;
        Ok(found)
    }

    /// Whether somebody from elsewhere waits to be accepted at a socket of TCP that listens, or is about to.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn has_unaccepted(&self) -> Result<bool, Error> {
        let mut found = false;
        for family in FAMILIES {
            let kind = (IPPROTO_TCP, StateFlags::LISTEN | StateFlags::SYN_RECV);
            self.dump(family, 0, kind, |socket| {
                let header = &socket.header;
                found |= match header.state {
                    LISTEN => header.recv_queue > 0,
                    _ => true,
                };
            })
            .map_err(Error::SockDiag)?;
        }
        Ok(found)
    }

    /// Whether a TCP socket whose process has closed it still has something to deliver.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn is_delivering(&self) -> Result<bool, Error> {
        let states = || StateFlags::FIN_WAIT1 | StateFlags::CLOSING | StateFlags::LAST_ACK;
        let mut found = false;
        for family in FAMILIES {
            self.dump(family, 0, (IPPROTO_TCP, states()), |_| found = true)
                .map_err(Error::SockDiag)?;
        }
        Ok(found)
    }

    /// Waits until `left` finds nothing any more: it is asked now, and whenever a socket of TCP is gone. What ends without
    /// that, it must not ask for. One who waits at a time.
    ///
    /// # Errors
    /// [`Error::SockDiag`], what `left` says.
    ///
    /// # Panics
    /// There is no tokio runtime with I/O and time enabled.
    pub async fn until_none(
        &self,
        left: impl Fn(&Self) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let hears = Hears::begin(self).map_err(Error::SockDiag)?;
        let mut may_look = tokio::time::interval(LOOKS_EVERY);
        may_look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            may_look.tick().await;
            if !left(self)? {
                return Ok(());
            }
            hears.of_one_gone().await.map_err(Error::SockDiag)?;
        }
    }

    /// Tells `found` every socket of `family` with `port`, which 0 leaves open, in one of the states.
    fn dump(
        &self,
        family: u8,
        port: u16,
        (protocol, states): (u8, StateFlags),
        mut found: impl FnMut(&InetResponse),
    ) -> io::Result<()> {
        let mut socket_id = if family == AF_INET {
            SocketId::new_v4()
        } else {
            SocketId::new_v6()
        };
        socket_id.source_port = port;
        let request = InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states,
            socket_id,
        };
        let request = SockDiagMessage::InetRequest(request);
        let request = message::bytes(request, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send(&request, 0)?;
        let mut answer = Vec::with_capacity(ANSWER);
        loop {
            answer.clear();
            self.socket.recv(&mut answer, 0)?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        if message.header.flags & NLM_F_MULTIPART != 0 {
                            found(&socket);
                        } else {
                            self.told.store(true, Ordering::Relaxed);
                        }
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(e) => {
                        // A kernel without IPv6 has no sockets of it.
                        let e = e.to_io();
                        return if family == AF_INET6 && e.kind() == io::ErrorKind::NotFound {
                            Ok(())
                        } else {
                            Err(e)
                        };
                    }
                    _ => {}
                }
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// As long as it lives, the kernel tells of sockets that are gone.
struct Hears<'a> {
    of: &'a Listening,
    ready: AsyncFd<BorrowedFd<'a>>,
}

impl<'a> Hears<'a> {
    fn begin(of: &'a Listening) -> io::Result<Self> {
        // What there is no room for is told by what has room: that there was something.
        of.socket.set_no_enobufs(true)?;
        let hears = Self {
            of,
            ready: sys::watch::readable(of.socket.as_fd())?,
        };
        for group in GONE {
            of.socket.add_membership(group)?;
        }
        Ok(hears)
    }

    async fn of_one_gone(&self) -> io::Result<()> {
        let mut told = Vec::with_capacity(ANSWER);
        loop {
            if self.of.told.swap(false, Ordering::Relaxed) {
                return Ok(());
            }
            let mut ready = self.ready.readable().await?;
            loop {
                told.clear();
                match self.of.socket.recv(&mut told, libc::MSG_DONTWAIT) {
                    Ok(_) => self.of.told.store(true, Ordering::Relaxed),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
            ready.clear_ready();
        }
    }
}

impl Drop for Hears<'_> {
    fn drop(&mut self) {
        for group in GONE {
            // A group that it is not in.
            let _ = self.of.socket.drop_membership(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{Dropped, drop_incoming};

    fn question() -> Listening {
        Listening::open().unwrap()
    }

    #[test]
    fn who_has_a_port_is_told_also_when_nobody_listens_there_any_more() {
        let question = question();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, there) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        let states = |port| {
            let found = question.holders(Protocol::Tcp, port).unwrap();
            let mut states: Vec<(SocketAddr, u8)> = found
                .iter()
                .map(|holder| (holder.peer, holder.state))
                .collect();
            states.sort();
            states
        };
        let nobody: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert_eq!(states(here.port()), [(there, 1)]);
        assert_eq!(states(there.port()), [(nobody, LISTEN), (here, 1)]);
        // Who closes first keeps the port in TIME-WAIT.
        let accepted = listener.accept().unwrap().0;
        drop(client);
        std::io::copy(&mut &accepted, &mut std::io::sink()).unwrap();
        drop(accepted);
        while states(here.port()) != [(there, TIME_WAIT)] {
            std::thread::yield_now();
        }
    }

    /// Of each connection, who of both closes first, and whether the one that is served had ended its stream long before.
    #[test]
    fn the_end_of_a_connection_is_heard_of_whoever_ends_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            for (server_first, half_closed) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let question = question();
                let listener = std::net::TcpListener::bind(address).unwrap();
                let port = listener.local_addr().unwrap().port();
                let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let served = listener.accept().unwrap().0;
                if half_closed {
                    served.shutdown(std::net::Shutdown::Write).unwrap();
                }
                let looks = std::cell::Cell::new(0);
                let left = |question: &Listening| {
                    looks.set(looks.get() + 1);
                    let held = question.holders(Protocol::Tcp, port)?;
                    let is_held = |holder: &Holder| holder.state != LISTEN && holder.inode != 0;
                    Ok(held.iter().any(is_held))
                };
                let ends = async {
                    // It has been looked, and there was something.
                    while looks.get() == 0 {
                        tokio::task::yield_now().await;
                    }
                    match server_first {
                        true => drop((served, client)),
                        false => drop((client, served)),
                    }
                };
                let (none, ()) = runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(60), async {
                        tokio::join!(question.until_none(left), ends)
                    })
                    .await
                    .unwrap()
                });
                none.unwrap();
                assert!(looks.get() > 1, "{address}");
            }
        }
    }

    #[test]
    fn who_is_about_to_connect_is_found_at_the_address_and_no_other() {
        let question = question();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let all = SocketAddr::from(([0, 0, 0, 0], address.port()));
        let other = SocketAddr::from(([127, 0, 0, 2], address.port()));
        let half_open = |at| question.has_half_open(&[at]).unwrap();
        assert!(!half_open(address));
        // A client that hears no answer.
        let (kind, flags) = (
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
        );
        let family = rustix::net::AddressFamily::INET;
        let client = rustix::net::socket_with(family, kind, flags, None).unwrap();
        if drop_incoming(client.as_fd(), Dropped::All).is_err() {
            return; // Some kernels take a filter from root only.
        }
        let _ = rustix::net::connect(&client, &address);
        while !half_open(address) {
            std::thread::yield_now();
        }
        assert!(half_open(all));
        assert!(!half_open(other));
        drop_incoming(client.as_fd(), Dropped::Nothing).unwrap();
        // The answer comes again.
        drop(listener.accept().unwrap());
        assert!(!half_open(address));
    }

    #[test]
    fn a_bound_socket_of_udp_is_found_unless_it_is_connected() {
        let question = question();
        let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let is_there = || {
            let found = question.of(Protocol::Udp).unwrap();
            found.iter().any(|socket| socket.address == address)
        };
        assert!(is_there());
        bound.connect("127.0.0.1:9").unwrap();
        assert!(!is_there());
    }

    #[test]
    fn a_listening_socket_is_found_and_no_other() {
        let question = question();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let connected = client.local_addr().unwrap();
        let is_there = |address: SocketAddr| {
            let found = question.of(Protocol::Tcp).unwrap();
            found.iter().any(|socket| socket.address == address)
        };
        assert!(is_there(address));
        assert!(!is_there(connected));
        drop(listener);
        assert!(!is_there(address));
    }

    #[test]
    fn an_ipv6_wildcard_takes_both_families_unless_it_was_told_not_to() {
        let question = question();
        let (four, six) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for (bind, only, takes_four, takes_six) in [
            ("0.0.0.0:0", false, true, false),
            ("[::]:0", false, true, true),
            ("[::]:0", true, false, true),
            ("[::1]:0", false, false, false),
            ("127.0.0.1:0", false, false, false),
        ] {
            let address: SocketAddr = bind.parse().unwrap();
            let family = rustix::net::SocketAddrAny::from(address).address_family();
            let socket =
                rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
            if only {
                rustix::net::sockopt::set_ipv6_v6only(&socket, true).unwrap();
            }
            rustix::net::bind(&socket, &address).unwrap();
            rustix::net::listen(&socket, 1).unwrap();
            let socket = std::net::TcpListener::from(socket);
            let port = socket.local_addr().unwrap().port();
            let takes = |ip: IpAddr| {
                let target = SocketAddr::new(ip, port);
                let found = question.of(Protocol::Tcp).unwrap();
                found.iter().any(|socket| socket.takes(target))
            };
            assert_eq!(takes(four), takes_four, "{bind}, only {only}: IPv4");
            assert_eq!(takes(six), takes_six, "{bind}, only {only}: IPv6");
        }
    }
}
