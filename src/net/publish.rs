//! Ports on the host: bound before anything is made, open when everything is ready.
//!
//! A port that is bound and not listened on is ours alone only without `SO_REUSEADDR`: with it any user's socket that has
//! the same option may have the port as well, and whoever listens first gets the clients. So a port of TCP is bound without.
//! That is refused while connections of an earlier run are in TIME-WAIT; then the option is needed, and the socket listens
//! from the start, which nobody can share either, behind a filter that throws every packet away: an early client is not
//! answered, and its next SYN, a second later, may be. Where the kernel takes no filter from an ordinary user, somebody else
//! may have begun to listen when we do, which is refused then ([`ListenError`]).
//!
//! Once it listens the socket gets the option in any case: connections that it accepts pass it on to their TIME-WAIT, and
//! the next run could not bind else.
//!
//! What is published by DNAT passes the socket by: the host's table translates a SYN if the socket that it would come to has
//! `IP_TRANSPARENT` ([`crate::firewall::host_rules`]). To set that takes `NET_ADMIN`, to clear it takes nothing (`do_ip_setsockopt()`,
//! net/ipv4/ip_sockglue.c). So a supervisor that has dropped all privilege can still have new clients come to the socket and
//! wait there, before its sidecar ends. The option has no other effect on one that only listens: who may bind to addresses that are
//! not the host's is bound already.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::sockopt::IpTransparent;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::handed::{self, Held};
use crate::config::Protocol;
use crate::plan::{Plan, PublishPlan};
use crate::sys::socket::{Dropped, drop_incoming};

/// What the sockets of UDP of a stack may hold together until the relay comes to read them, in bytes of the kernel's memory
/// for all UDP of the machine (`udp_mem`, udp(7))…
const UDP_BUFFERS: usize = 64 << 20;
/// …one of them at most: 20 ms at 150,000 datagrams of 1,200 bytes a second…
const UDP_BUFFER: usize = 8 << 20;
/// …and at least, as any socket has it (`net.core.rmem_default`).
const LEAST_UDP_BUFFER: usize = 212_992;

/// How many connections may wait to be accepted (listen(2)).
const WAITING: i32 = 4096;

/// So many published ports need no more descriptors than any process may have.
const FEW_PORTS: usize = 64;

/// Somebody else has begun to listen since the port was bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {source}")]
pub struct ListenError {
    /// The host's address and port.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// A published port's socket on the host.
///
/// It exists whichever way the port is published: by relay it is where clients connect; by DNAT it takes what the
/// host itself sends, and it keeps everybody else from the port.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The host's address and port.
    pub address: SocketAddr,
    /// Of which protocol.
    pub protocol: Protocol,
    /// Where the relay takes what comes: the sidecar's end of the uplink.
    pub target: SocketAddr,
    /// The socket, bound.
    pub socket: Arc<OwnedFd>,
    /// Who else has it.
    pub held: Held,
    /// How many connections may wait there that were not born [as they are carried](carried).
    pub early: u32,
}

impl Listener {
    /// Which port of the host it is ([`PublishPlan::outside`]).
    #[must_use]
    pub fn outside(&self) -> (SocketAddr, Protocol) {
        (self.address, self.protocol)
    }

    /// Has the port, and answers nobody yet: EADDRINUSE when somebody listens there, and from now on for everybody else
    /// who wants to, or only to bind. UDP has nothing like listening: what arrives from now on waits, as far as there is
    /// room.
    ///
    /// # Errors
    /// What `socket(2)`, `bind(2)`, `setsockopt(2)` or `listen(2)` says.
    pub fn bind(address: SocketAddr, protocol: Protocol, target: SocketAddr) -> io::Result<Self> {
        let socket = match bound(address, protocol, Others::None) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && protocol == Protocol::Tcp => {
                let socket = bound(address, protocol, Others::TimeWait)?;
                match drop_incoming(socket.as_fd(), Dropped::All) {
                    Ok(()) => rustix::net::listen(&socket, WAITING)?,
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(e) => return Err(e),
                }
                socket
            }
            bound => bound?,
        };
        Ok(Self {
            address,
            protocol,
            target,
            socket: Arc::new(socket),
            held: Held::Nobody,
            early: 0,
        })
    }

    /// Whether another socket of the same user may have the port as well, if that one says so too (`SO_REUSEPORT`,
    /// socket(7)): as long as a port moves from one address to another of which one is all of them.
    ///
    /// # Errors
    /// What `setsockopt(2)` says.
    pub fn share(&self, shared: bool) -> io::Result<()> {
        Ok(sockopt::set_socket_reuseport(&*self.socket, shared)?)
    }

    /// Begins to answer, also again after [`Listener::close`].
    ///
    /// # Errors
    /// [`ListenError`]; EADDRINUSE when somebody else has begun to listen since [`Listener::close`], or since the socket was
    /// bound to share its port.
    pub fn listen(&self) -> Result<(), ListenError> {
        if self.protocol == Protocol::Tcp {
            rustix::net::listen(&*self.socket, WAITING)
                .map_err(io::Error::from)
                .and_then(|()| Ok(sockopt::set_socket_reuseaddr(&*self.socket, true)?))
                .and_then(|()| connects_nowhere(&self.socket))
                .and_then(|()| self.pass_by())
                .map_err(|source| ListenError {
                    address: self.address,
                    source,
                })?;
        }
        // Not before it listens: one that doesn't is hung up, and forgotten.
        handed::store(self);
        Ok(())
    }

    /// Whether it is to be left as it is when the stack ends, `for_good` or to be started anew: who connects waits for who
    /// accepts next.
    #[must_use]
    pub fn outlives(&self, for_good: bool) -> bool {
        match self.held {
            Held::Nobody => false,
            Held::Stored => !for_good,
            Held::Handed(_) => true,
        }
    }

    /// Lets new clients be translated again past one that was left. A unit's is the service manager's; the others never were.
    fn pass_by(&self) -> io::Result<()> {
        match self.held {
            Held::Stored => passed_by(&*self.socket),
            Held::Nobody | Held::Handed(_) => Ok(()),
        }
    }

    /// Has who is translated from now on come to it.
    pub fn is_passed_by_no_more(&self) {
        if self.protocol == Protocol::Tcp {
            let _ = nix::sys::socket::setsockopt(&*self.socket, IpTransparent, &false);
        }
    }

    /// Leaves it to who else has it: whoever connects from now on waits.
    pub fn leave(&self) {
        let _ = match self.protocol {
            Protocol::Tcp => nix::sys::socket::setsockopt(&*self.socket, IpTransparent, &false)
                .map_err(io::Error::from)
                .and_then(|()| connects_nowhere(&self.socket)),
            Protocol::Udp => drop_incoming(self.socket.as_fd(), Dropped::Nothing),
        };
    }

    /// Lets nobody begin to connect, until it is told to listen again: a SYN gets no answer, and the next one, a second later,
    /// meets whatever is there then. Who has been answered still connects.
    ///
    /// # Errors
    /// What `setsockopt(2)` says: EPERM where the kernel takes no filter from an ordinary user.
    pub fn admit_no_more(&self) -> io::Result<()> {
        match self.protocol {
            Protocol::Tcp => admit_no_more(&*self.socket),
            Protocol::Udp => Ok(()),
        }
    }

    /// Whether somebody has connected whom nobody has accepted yet; [`Listener::close`] would reset that connection.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        let mut ready = [PollFd::new(&*self.socket, PollFlags::IN)];
        let now = rustix::event::Timespec::default();
        self.protocol == Protocol::Tcp
            && rustix::event::poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0)
            && ready[0].revents() == PollFlags::IN
    }

    /// Refuses connections from now on; the socket stays bound, as before it listened. One of a socket unit is not shut down
    /// ([`handed`]).
    pub fn close(&self) {
        handed::unstore(self);
        if matches!(self.held, Held::Handed(_)) {
            return;
        }
        // Of UDP, what nobody reads stays unread; and a socket that was shut down could not be read again.
        if self.protocol == Protocol::Udp {
            return;
        }
        // A socket that doesn't listen is closed already. Shut down, it would remember that, and whoever connects to it once
        // it listens again would be at their end at once (inet_shutdown(), net/ipv4/af_inet.c).
        if !sockopt::socket_acceptconn(&*self.socket).unwrap_or(false) {
            return;
        }
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Read);
    }
}

/// [`Listener::admit_no_more`], for a listening socket of TCP.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn admit_no_more(socket: impl AsFd) -> io::Result<()> {
    drop_incoming(socket.as_fd(), Dropped::NewConnections)
}

/// Lets what is translated pass a socket of TCP by. Who may not set the option has no rules that look at it (rootless), or comes
/// after whoever has bound the socket, and set it.
fn passed_by(socket: impl AsFd) -> io::Result<()> {
    match nix::sys::socket::setsockopt(&socket, IpTransparent, &true) {
        Ok(()) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Has a socket of TCP be of use for nothing but to listen, and answer whoever connects: it is of the host's network namespace, from
/// where no relay may connect. Without that where the kernel takes no more filters but from who holds CAP_BPF
/// (`net.core.bpf_jit_limit`), as root's supervisor does while it binds.
///
/// # Errors
/// What `setsockopt(2)` says.
pub(super) fn connects_nowhere(socket: &impl AsFd) -> io::Result<()> {
    match drop_incoming(socket.as_fd(), Dropped::Answers) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            drop_incoming(socket.as_fd(), Dropped::Nothing)
        }
        done => done,
    }
}

/// Has the kernel forget that a port of this network namespace was shared, when nobody shares it any more: by what it
/// remembers of the port (`fastreuseport`, net/ipv4/inet_connection_sock.c) it would let one more of the same user listen
/// there without looking. Whoever binds the port and doesn't share ends that; so somebody does, of the other family, where
/// nobody is in the way. That this doesn't work where it is another's namespace or a port below 1024 is no error.
pub fn end_of_sharing(port: u16) {
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let flags = SocketFlags::CLOEXEC;
        let Ok(socket) = rustix::net::socket_with(family, SocketType::STREAM, flags, None) else {
            continue;
        };
        let all: std::net::IpAddr = match family {
            AddressFamily::INET => std::net::Ipv4Addr::UNSPECIFIED.into(),
            _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        if all.is_ipv6() && sockopt::set_ipv6_v6only(&socket, true).is_err() {
            continue;
        }
        if rustix::net::bind(&socket, &SocketAddr::new(all, port)).is_ok() {
            return;
        }
    }
}

/// Who else may have a port that is bound and not listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Nobody, not even what is left of connections.
    None,
    /// Of TCP, connections of an earlier run in TIME-WAIT; but also whoever says so as well.
    TimeWait,
    /// These, and sockets of the same user that share it, as [`Listener::share`] says.
    Shared,
}

/// Keepalive: silence before the first probe, time between probes, probes without an answer (tcp(7)).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Sets a socket of TCP as every connection that is carried must be ([`crate::relay`]). What is accepted at a listening socket
/// is born with what that had before the client came, so it is set there once, and early.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn carried(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
    // An urgent byte would be lost otherwise: it is carried as an ordinary one.
    sockopt::set_socket_oobinline(socket, true)?;
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    Ok(())
}

/// A socket for a published port, bound.
///
/// # Errors
/// What `socket(2)`, `setsockopt(2)` or `bind(2)` says.
pub fn bound(address: SocketAddr, protocol: Protocol, others: Others) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        SocketAddrAny::from(address).address_family(),
        match protocol {
            Protocol::Tcp => SocketType::STREAM,
            Protocol::Udp => SocketType::DGRAM,
        },
        SocketFlags::CLOEXEC,
        None,
    )?;
    if address.is_ipv6() {
        // `::` is all of IPv6 and nothing else: what is published at 0.0.0.0 is said by itself.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    match protocol {
        // Listening sockets still count (socket(7)).
        Protocol::Tcp => {
            sockopt::set_socket_reuseaddr(&socket, others != Others::None)?;
            carried(&socket)?;
            passed_by(&socket)?;
        }
        // Here the same option would let another socket have the port as well.
        Protocol::Udp => {}
    }
    if others == Others::Shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// What each of so many sockets of UDP may hold ([`UDP_BUFFERS`]).
fn udp_buffer(sockets: usize) -> usize {
    (UDP_BUFFERS / sockets.max(1)).clamp(LEAST_UDP_BUFFER, UDP_BUFFER)
}

/// Binds every published port of the plan that `running` hasn't bound and that isn't among those that were `handed` over; all
/// that can't be bound are told, not only the first.
///
/// # Errors
/// Each address with what the kernel said.
pub fn bind_new<'p>(
    plan: &'p Plan,
    running: Option<&Plan>,
    mut handed: Vec<Listener>,
) -> Result<Vec<Listener>, Vec<(&'p PublishPlan, io::Error)>> {
    let (mut bound, mut refused) = (vec![], vec![]);
    let ports = plan.published().count();
    make_room_for(plan);
    let all = plan.published().map(|(_, publish)| publish.protocol);
    let buffer = udp_buffer(all.filter(|protocol| *protocol == Protocol::Udp).count());
    for publish in new_ports(plan, running) {
        let known = handed
            .iter()
            .position(|listener| listener.outside() == publish.outside());
        let listener = match known {
            Some(index) => Ok(handed.swap_remove(index)),
            None => Listener::bind(publish.listen, publish.protocol, target(plan, publish)).map(
                |listener| Listener {
                    held: Held::of_ours(publish, ports),
                    ..listener
                },
            ),
        };
        match listener {
            Ok(listener) => {
                if listener.protocol == Protocol::Udp {
                    // Beyond net.core.rmem_max only root may; it is smaller without.
                    let _ = sockopt::set_socket_recv_buffer_size_force(&listener.socket, buffer)
                        .or_else(|_| {
                            sockopt::set_socket_recv_buffer_size(&listener.socket, buffer)
                        });
                }
                bound.push(listener);
            }
            Err(e) => refused.push((publish, e)),
        }
    }
    if refused.is_empty() {
        Ok(bound)
    } else {
        Err(refused)
    }
}

/// So that this process may have a socket for each published port of the plan.
pub fn make_room_for(plan: &Plan) {
    if plan.published().nth(FEW_PORTS).is_some() {
        more_descriptors();
    }
}

/// As many descriptors as the relay may have, where this process may have that many: raising a soft limit takes no
/// privilege (getrlimit(2)). What is still too few, bind(2) tells.
fn more_descriptors() {
    let now = getrlimit(Resource::Nofile);
    let wanted = now
        .maximum
        .map_or(MOST_DESCRIPTORS, |most| most.min(MOST_DESCRIPTORS));
    if now.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted),
            ..now
        };
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

const MOST_DESCRIPTORS: u64 = 65_536;

/// The published ports of `plan` that `running` has not, but for those that [move](moved_ports).
pub fn new_ports<'p>(
    plan: &'p Plan,
    running: Option<&Plan>,
) -> impl Iterator<Item = &'p PublishPlan> {
    let moved: Vec<_> = running
        .into_iter()
        .flat_map(|running| moved_ports(plan, running))
        .map(PublishPlan::outside)
        .collect();
    unknown(plan, running).filter(move |publish| !moved.contains(&publish.outside()))
}

fn unknown<'p>(plan: &'p Plan, running: Option<&Plan>) -> impl Iterator<Item = &'p PublishPlan> {
    let had: HashSet<_> = running
        .into_iter()
        .flat_map(|running| running.published().map(|(_, publish)| publish.outside()))
        .collect();
    plan.published()
        .map(|(_, publish)| publish)
        .filter(move |publish| !had.contains(&publish.outside()))
}

/// The published ports of `plan` that can't be bound as long as one that goes is listened on: it is the same port at all
/// addresses, or at one of them. By TCP only: what is sent to a bound socket of UDP waits there, so a port of UDP can't be
/// taken and given back.
pub fn moved_ports<'p>(plan: &'p Plan, running: &Plan) -> Vec<&'p PublishPlan> {
    let stays: HashSet<_> = plan.published().map(|(_, p)| p.outside()).collect();
    let going: Vec<_> = running
        .published()
        .map(|(_, publish)| publish)
        .filter(|publish| publish.protocol == Protocol::Tcp && !stays.contains(&publish.outside()))
        .collect();
    if going.is_empty() {
        return vec![];
    }
    unknown(plan, Some(running))
        .filter(|new| going.iter().any(|old| overlap(old, new)))
        .collect()
}

/// Whether it is one port, at all addresses of a family and at one of them.
#[must_use]
pub fn overlap(one: &PublishPlan, other: &PublishPlan) -> bool {
    let (a, b) = (one.listen, other.listen);
    one.protocol == other.protocol
        && a.port() == b.port()
        && a.is_ipv6() == b.is_ipv6()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Where a published port's connections enter the sidecar.
#[must_use]
pub fn target(plan: &Plan, publish: &PublishPlan) -> SocketAddr {
    plan.uplink.entry(publish)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::AddressFamily;

    #[test]
    fn a_port_that_somebody_listens_on_is_refused() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = Listener::bind(address, Protocol::Tcp, address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        assert!(Listener::bind(address, Protocol::Tcp, address).is_ok());
    }

    #[test]
    fn a_port_of_tcp_is_nobody_elses_once_it_is_bound_and_answers_when_it_is_told_to() {
        for (all, time_wait) in [(false, false), (true, false), (false, true), (true, true)] {
            let earlier = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let at_one = earlier.local_addr().unwrap();
            if time_wait && drop_incoming(earlier.as_fd(), Dropped::All).is_err() {
                // Some kernels take a filter from root only.
                continue;
            }
            drop_incoming(earlier.as_fd(), Dropped::Nothing).unwrap();
            if time_wait {
                // Who closes first has it.
                let mut client = std::net::TcpStream::connect(at_one).unwrap();
                drop(earlier.accept().unwrap());
                io::Read::read(&mut client, &mut [0]).unwrap();
            }
            drop(earlier);
            let address = match all {
                true => SocketAddr::from(([0, 0, 0, 0], at_one.port())),
                false => at_one,
            };
            let ours = Listener::bind(address, Protocol::Tcp, address).unwrap();
            // Whoever else wants it: at the same address, at another that is the same port, of both families.
            for other in [
                at_one,
                SocketAddr::from(([0, 0, 0, 0], at_one.port())),
                SocketAddr::from(([0_u16; 8], at_one.port())),
            ] {
                let family = SocketAddrAny::from(other).address_family();
                let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
                let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
                sockopt::set_socket_reuseaddr(&socket, true).unwrap();
                let had = rustix::net::bind(&socket, &other)
                    .and_then(|()| rustix::net::listen(&socket, 1));
                assert_eq!(had, Err(rustix::io::Errno::ADDRINUSE), "{address} {other}");
            }
            let wait = std::time::Duration::from_millis(50);
            let early = std::net::TcpStream::connect_timeout(&at_one, wait).unwrap_err();
            let wanted = match time_wait {
                true => io::ErrorKind::TimedOut,
                false => io::ErrorKind::ConnectionRefused,
            };
            assert_eq!(early.kind(), wanted, "{address}");
            ours.listen().unwrap();
            std::net::TcpStream::connect(at_one).unwrap();
        }
    }

    #[test]
    fn a_port_that_admits_nobody_new_lets_in_who_was_answered_and_answers_again_when_it_listens_again()
     {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let ours = Listener::bind(address, Protocol::Tcp, address).unwrap();
        ours.listen().unwrap();
        let begin = |deaf| {
            let (kind, flags) = (SocketType::STREAM, SocketFlags::NONBLOCK);
            let client = rustix::net::socket_with(AddressFamily::INET, kind, flags, None).unwrap();
            if deaf {
                drop_incoming(client.as_fd(), Dropped::All).unwrap();
            }
            assert_eq!(
                rustix::net::connect(&client, &address),
                Err(rustix::io::Errno::INPROGRESS)
            );
            client
        };
        let connected = |client: &OwnedFd| {
            let mut ready = [PollFd::new(client, PollFlags::OUT)];
            rustix::event::poll(&mut ready, None).unwrap();
            sockopt::socket_error(client).unwrap()
        };
        let question = crate::net::Listening::open().unwrap();
        let answered = begin(true);
        while !question.has_half_open(&[address]).unwrap() {
            std::thread::yield_now();
        }
        ours.admit_no_more().unwrap();
        let late = begin(false);
        drop_incoming(answered.as_fd(), Dropped::Nothing).unwrap();
        assert_eq!(connected(&answered), Ok(()));
        while !ours.has_waiting() {
            std::thread::yield_now();
        }
        drop(rustix::net::accept(&*ours.socket).unwrap());
        assert!(!ours.has_waiting());
        ours.close();
        ours.listen().unwrap();
        assert_eq!(connected(&late), Ok(()));
    }

    #[test]
    fn a_port_of_a_socket_unit_is_not_shut_down_and_hears_again_when_it_is_left() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let ours = Listener {
            held: Held::Handed("web.socket".to_owned()),
            ..Listener::bind(address, Protocol::Tcp, address).unwrap()
        };
        ours.listen().unwrap();
        if ours.admit_no_more().is_err() {
            return; // Some kernels take a filter from root only.
        }
        ours.close();
        let wait = std::time::Duration::from_millis(50);
        let deaf = std::net::TcpStream::connect_timeout(&address, wait).unwrap_err();
        assert_eq!(deaf.kind(), io::ErrorKind::TimedOut);
        ours.leave();
        std::net::TcpStream::connect(address).unwrap();
        assert!(ours.outlives(true) && ours.outlives(false));
    }

    #[test]
    fn connections_of_an_earlier_run_are_in_nobodys_way() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        for _ in 0..3 {
            let ours = Listener::bind(address, Protocol::Tcp, address).unwrap();
            ours.listen().unwrap();
            let mut client = std::net::TcpStream::connect(address).unwrap();
            let accepted = rustix::net::accept(&*ours.socket).unwrap();
            // In order, and not by the reset that the relay's connections are born to end with.
            sockopt::set_socket_linger(&accepted, None).unwrap();
            drop(accepted);
            io::Read::read(&mut client, &mut [0]).unwrap();
        }
    }

    #[test]
    fn sockets_of_udp_hold_little_where_there_are_many() {
        let held = [0, 1, 8, 16, 100, 4096].map(udp_buffer);
        assert_eq!(held, [8 << 20, 8 << 20, 8 << 20, 4 << 20, 671_088, 212_992]);
    }

    #[test]
    fn a_port_of_udp_is_nobody_elses_once_it_is_bound() {
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let ours = Listener::bind(address, Protocol::Udp, address).unwrap();
        for shared in [false, true] {
            let flags = SocketFlags::CLOEXEC;
            let other =
                rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
                    .unwrap();
            sockopt::set_socket_reuseaddr(&other, shared).unwrap();
            assert!(rustix::net::bind(&other, &address).is_err());
        }
        drop(ours);
        assert!(Listener::bind(address, Protocol::Udp, address).is_ok());
    }
}
