//! The dialer: makes connections to what is granted, for a carrier that makes none; carries datagrams.
//!
//! # What it needs
//!
//! No capability and no file. The system calls, from [`run`] to its end, memory and signals aside:
//!
//! - start: `prlimit64` (reading), `epoll_create1`, `eventfd2`, `socketpair`, `fcntl` (`F_DUPFD_CLOEXEC`), `ioctl`
//!   (`FIONBIO`), `getsockname`, `setsockopt`, `getrandom`;
//! - each connection: `recvmsg`, `sendto` and `recvfrom` (of what leads where), `socket`, `setsockopt`, `bind`, `connect`,
//!   `epoll_ctl`, `getsockopt` (`SO_ERROR`), `sendmsg`, `close`;
//! - datagrams: as the relay's.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use super::super::{
    Dials, Places, Relay, RelayError, Tuning, Way, connected, is_taken, socket_for, udp,
};
use super::ports::Ports;
use super::{Answer, REQUEST, Request, hear, tell};
use crate::config::{Egress, Protocol};
use crate::net::Routes;

/// What may be dialled.
pub struct Grants {
    list: Vec<Egress>,
    routes: Routes,
}

impl Grants {
    /// These, judged where this process is: its network namespace decides which addresses are the machine's own.
    ///
    /// # Errors
    /// What the kernel says to a socket of NETLINK_ROUTE.
    pub fn new(list: Vec<Egress>) -> io::Result<Self> {
        let routes = Routes::open()?;
        Ok(Self { list, routes })
    }

    /// The sidecar's rules have said the same already, unless they were changed.
    ///
    /// # Errors
    /// EACCES for what is not granted. A range of addresses grants none of this machine's own, and nothing grants a
    /// loopback address or one of many machines.
    pub(in super::super) fn permit(&self, protocol: Protocol, to: SocketAddr) -> io::Result<()> {
        let refused = || Err(Errno::ACCESS.into());
        let ip = to.ip();
        let never = ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_multicast()
            || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
            || ip != ip.to_canonical();
        if never {
            return refused();
        }
        let mut covering = (self.list.iter())
            .filter(|grant| grant.covers(protocol, ip, to.port()))
            .peekable();
        if covering.peek().is_none() {
            return refused();
        }
        if covering.any(Egress::is_single) || self.routes.to(ip)?.leads_away {
            return Ok(());
        }
        refused()
    }
}

/// Dials for the carrier at the other end of `carrier` until that ends; blocks, with an event loop of its own on the
/// calling thread. `datagrams` are sockets of granted ports, each with a way to whatever address was asked for.
///
/// # Errors
/// [`RelayError`]. That something is refused is no error.
pub fn run(
    grants: Grants,
    ports: Ports,
    datagrams: Vec<(std::net::UdpSocket, Way)>,
    carrier: OwnedFd,
) -> Result<(), RelayError> {
    let places = Places::share_out(0, datagrams.len())?;
    let runtime = crate::sys::runtime::local().map_err(|source| RelayError::Runtime { source })?;
    runtime.block_on(async {
        let carrier =
            crate::sys::watch::owned(carrier).map_err(|source| RelayError::Control { source })?;
        let carrier = Rc::new(carrier);
        let relay = Relay::new(places, Tuning::default(), Dials::Granted(grants))
            .map_err(|source| RelayError::Control { source })?;
        let relay = Rc::new(relay);
        let ports = Rc::new(RefCell::new(ports));
        let mut carrying = JoinSet::new();
        if !datagrams.is_empty() {
            let relay = Rc::clone(&relay);
            tokio::task::spawn_local(async move { relay.flows.sweep().await });
        }
        for (number, (socket, way)) in datagrams.into_iter().enumerate() {
            carrying.spawn_local(udp::carry_all(number, socket, way, Rc::clone(&relay)));
        }
        tokio::select! {
            biased;
            ended = answer_all(&carrier, &relay, &ports) => {
                ended.map_err(|source| RelayError::Control { source })
            }
            Some(failed) = carrying.join_next() => {
                Err(failed.expect("it does not panic, and nobody aborts it"))
            }
        }
    })
}

/// Answers until the carrier has gone.
async fn answer_all(
    carrier: &Rc<AsyncFd<OwnedFd>>,
    relay: &Rc<Relay>,
    ports: &Rc<RefCell<Ports>>,
) -> io::Result<()> {
    loop {
        // One byte more than a request, so that one that is too long is not taken for one.
        let mut bytes = [0; REQUEST + 1];
        let heard = |socket: &OwnedFd| hear(socket.as_fd(), &mut bytes);
        let (length, _) = carrier.async_io(Interest::READABLE, heard).await?;
        if length == 0 {
            return Ok(());
        }
        let request = Request::of(&bytes[..length]);
        let request = request.ok_or(io::ErrorKind::InvalidData)?;
        // What is too much waits.
        let place = Arc::clone(&relay.places).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let (carrier, relay, ports) = (Rc::clone(carrier), Rc::clone(relay), Rc::clone(ports));
        tokio::task::spawn_local(async move {
            let dialled = connect(&relay, &ports, request.to).await;
            let errno = match &dialled {
                Ok(_) => 0,
                // A time limit of ours has no number.
                Err(e) => e.raw_os_error().unwrap_or(libc::ETIMEDOUT),
            };
            let number = request.number;
            let answer = Answer { number, errno }.bytes();
            let fd = dialled.as_ref().ok().map(AsFd::as_fd);
            // The carrier may be gone, and then we are as well.
            let _ = carrier
                .async_io(Interest::WRITABLE, |socket| {
                    tell(socket.as_fd(), &answer, fd)
                })
                .await;
            drop(place);
        });
    }
}

async fn connect(
    relay: &Relay,
    ports: &RefCell<Ports>,
    to: SocketAddr,
) -> io::Result<std::net::TcpStream> {
    relay.permit(Protocol::Tcp, to)?;
    let mut from = ports.borrow_mut().for_next(to, Instant::now());
    for _ in 0..TRIES {
        match dial(from, to).await {
            // The connection before still goes on, or another program of the host has the port; or the kernel has none left.
            Err(e) if is_taken(&e) => {
                from = match from {
                    Some(_) => None,
                    None => Some(in_turn(ports, to).await.ok_or(e)?),
                };
            }
            dialled => return dialled?.into_std(),
        }
    }
    Err(Errno::ADDRNOTAVAIL.into())
}

/// A port of ours, when there is one that was not used just now: of too many connections at once the later ones wait.
async fn in_turn(ports: &RefCell<Ports>, to: SocketAddr) -> Option<SocketAddr> {
    for _ in 0..WAITS {
        let port = ports.borrow_mut().in_need(to, Instant::now())?;
        match port {
            Ok(from) => return Some(from),
            Err(rest) => tokio::time::sleep(rest).await,
        }
    }
    None
}

async fn dial(from: Option<SocketAddr>, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let socket = socket_for(to)?;
    // What is in TIME-WAIT at a port is in the way of a later one that is bound to it, unless both say this.
    socket.set_reuseaddr(true)?;
    if let Some(from) = from {
        socket.bind(from)?;
    }
    connected(socket, to).await
}

/// So often a connection is tried from another port.
const TRIES: usize = 8;
/// So often one waits for its turn, a tenth of a second at most each time.
const WAITS: usize = 50;

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    fn grant(protocol: Protocol, to: &str, first_port: u16, last_port: u16) -> Egress {
        Egress {
            protocol,
            to: to.parse::<IpNet>().unwrap(),
            first_port,
            last_port,
        }
    }

    #[test]
    fn only_what_is_granted_is_dialled_and_the_machine_only_by_its_own_address() {
        let ip = |args: &[&str]| {
            let done = std::process::Command::new("ip").args(args).status();
            assert!(done.unwrap().success(), "{args:?}");
        };
        // Of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "set", "lo", "up"]);
        ip(&[
            "link", "add", "left", "type", "veth", "peer", "name", "right",
        ]);
        ip(&["address", "add", "192.0.2.1/24", "dev", "left"]);
        ip(&["address", "add", "192.0.2.9/24", "dev", "left"]);
        ip(&["link", "set", "left", "up"]);
        ip(&["link", "set", "right", "up"]);
        ip(&["route", "add", "default", "via", "192.0.2.254"]);
        let grants = Grants::new(vec![
            grant(Protocol::Tcp, "192.0.2.0/28", 8000, 8003),
            grant(Protocol::Tcp, "192.0.2.9/32", 7000, 7000),
            grant(Protocol::Udp, "192.0.2.2/32", 53, 53),
            grant(Protocol::Tcp, "0.0.0.0/0", 443, 443),
            grant(Protocol::Tcp, "169.254.1.1/32", 80, 80),
        ])
        .unwrap();
        use Protocol::{Tcp, Udp};
        for (protocol, to, may) in [
            (Tcp, "192.0.2.2:8000", true),
            (Tcp, "192.0.2.2:8003", true),
            (Tcp, "192.0.2.2:7999", false),
            (Tcp, "192.0.2.2:8004", false),
            (Tcp, "192.0.2.16:8000", false),
            (Udp, "192.0.2.2:8000", false),
            // The machine's own, the second one too.
            (Tcp, "192.0.2.1:8000", false),
            (Tcp, "192.0.2.9:8000", false),
            (Tcp, "192.0.2.9:7000", true),
            (Udp, "192.0.2.2:53", true),
            (Udp, "192.0.2.3:53", false),
            (Tcp, "192.0.2.2:53", false),
            (Tcp, "198.51.100.1:443", true),
            (Tcp, "192.0.2.1:443", false),
            // Everywhere is neither here, nor at all machines, nor in the next room.
            (Tcp, "127.0.0.1:443", false),
            (Tcp, "127.1.2.3:443", false),
            (Tcp, "0.0.0.0:443", false),
            (Tcp, "255.255.255.255:443", false),
            (Tcp, "192.0.2.255:443", false),
            (Tcp, "224.0.0.1:443", false),
            (Tcp, "169.254.169.254:443", false),
            (Tcp, "169.254.1.1:80", true),
            (Tcp, "[::1]:443", false),
            (Tcp, "[::ffff:127.0.0.1]:443", false),
            (Tcp, "[::ffff:198.51.100.1]:443", false),
            (Tcp, "[2001:db8::1]:443", false),
        ] {
            let permitted = grants.permit(protocol, to.parse().unwrap());
            assert_eq!(permitted.is_ok(), may, "{protocol} {to}: {permitted:?}");
        }
    }
}
