//! The way out: two processes, the carrier and, as its child, the dialer ([`crate::relay::egress`]).
//!
//! Both come from this one image: the child is cloned before either has dropped anything, and each drops to what it needs.
//! The carrier then leaves the network namespace, in which the dialer stays, for an empty one.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{StageError, drop_privileges, step};
use crate::config::clients::{Admission, Gate};
use crate::config::{Egress, Protocol};
use crate::confine::landlock::TcpOnlyTo;
use crate::confine::privileges::{Ids, Privileges};
use crate::confine::seccomp;
use crate::plan::Door;
use crate::protocol::{self, FromStage};
use crate::relay::Way;
use crate::relay::egress::ports::Ports;
use crate::relay::egress::{self, dialer};
use crate::rootfs;
use crate::sys::namespace::unshare;
use crate::sys::process::detach_with;

/// What is granted, and the sockets by which it is asked for.
pub(super) struct Out {
    /// The destinations.
    pub grants: Vec<Egress>,
    /// What each socket is.
    pub doors: Vec<Door>,
    /// Who may ask: the sidecar.
    pub clients: Admission,
    /// The sockets.
    pub sockets: Vec<OwnedFd>,
}

/// Becomes both processes; this one is the carrier, and ends when the supervisor or the dialer does.
///
/// # Errors
/// [`StageError`] with the step that did not work, in either.
pub(super) fn run(supervisor: &OwnedFd, out: Out) -> Result<ExitCode, StageError> {
    rootfs::enter_empty().map_err(step("make the root"))?;
    let (mut streams, mut datagrams) = (vec![], vec![]);
    for (socket, door) in out.sockets.into_iter().zip(&out.doors) {
        match door.protocol {
            Protocol::Tcp => streams.push((socket, *door)),
            Protocol::Udp => datagrams.push((socket, *door)),
        }
    }
    // Whatever waits for the dialer's answers mustn't block; whoever waits for its first word may.
    let (ours, theirs) = pair(SocketType::SEQPACKET, SocketFlags::NONBLOCK)?;
    let (told, tell) = pair(SocketType::STREAM, SocketFlags::empty())?;
    let (sockets, doors): (Vec<_>, Vec<Door>) = datagrams.into_iter().unzip();
    let mut kept = vec![theirs, tell];
    kept.extend(sockets);
    let dialer = detach_with(kept, |kept| dial(&out.grants, &doors, &out.clients, kept))
        .map_err(step("clone the dialer"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(step("leave the network namespace"))?;
    let confined = TcpOnlyTo::of([]).enforce();
    let notes = confined.map_err(step("confine by Landlock"))?;
    let filter = seccomp::carrier()
        .compile()
        .map_err(step("make the seccomp filter"))?;
    let privileges = drop_privileges(&[], Ids::ROOT, &filter)?;
    match protocol::receive::<FromStage>(&told).map_err(step("hear from the dialer"))? {
        Some((FromStage::Ready { .. }, _)) => {}
        Some((
            FromStage::Failed {
                step: what, cause, ..
            },
            _,
        )) => {
            return Err(step("start the dialer")(format!("{what}: {cause}")));
        }
        _ => return Err(step("start the dialer")("it ended")),
    }
    let ready = FromStage::Ready {
        privileges,
        notes: notes.into_iter().collect(),
    };
    protocol::send(supervisor, &ready, &[]).map_err(step("say ready"))?;
    protocol::send(supervisor, &FromStage::Started, &[dialer.as_fd()])
        .map_err(step("hand the dialer up"))?;
    drop(dialer);
    let shutdown = supervisor.try_clone().map_err(step("share the socket"))?;
    egress::carry(ways(&out.clients, streams), ours, shutdown).map_err(step("carry"))?;
    Ok(ExitCode::SUCCESS)
}

fn pair(kind: SocketType, more: SocketFlags) -> Result<(OwnedFd, OwnedFd), StageError> {
    let flags = SocketFlags::CLOEXEC | more;
    rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)
        .map_err(step("make a socket pair"))
}

/// Each socket with the way to whatever address was asked for.
fn ways<S: From<OwnedFd>>(clients: &Admission, sockets: Vec<(OwnedFd, Door)>) -> Vec<(S, Way)> {
    let gate = Rc::new(Gate::new(clients.clone()));
    let any = |door: Door| match door.ipv6 {
        true => IpAddr::from([0u16; 8]),
        false => IpAddr::from([0u8; 4]),
    };
    let way = |door: Door| Way {
        target: SocketAddr::new(any(door), door.port),
        gate: Rc::clone(&gate),
        shows_client: false,
        app: 0,
        joined: true,
        early: 0,
    };
    let sockets = sockets.into_iter();
    sockets
        .map(|(socket, door)| (socket.into(), way(door)))
        .collect()
}

/// The dialer's whole life. `kept` are the carrier's end of the conversation, where to say that it is ready, and the
/// sockets of UDP in the order of `doors`.
fn dial(grants: &[Egress], doors: &[Door], clients: &Admission, kept: Vec<OwnedFd>) -> i32 {
    let mut kept = kept.into_iter();
    let (Some(carrier), Some(tell)) = (kept.next(), kept.next()) else {
        return 125;
    };
    let (message, grants) = match become_dialer(grants) {
        Ok((grants, ports, privileges)) => {
            let notes = vec![];
            let ready = FromStage::Ready { privileges, notes };
            (ready, Some((grants, ports)))
        }
        Err(e) => (e.into(), None),
    };
    let told = protocol::send(&tell, &message, &[]);
    drop(tell);
    match grants {
        Some((grants, ports)) if told.is_ok() => {
            let sockets = kept.zip(doors.iter().copied()).collect();
            i32::from(dialer::run(grants, ports, ways(clients, sockets), carrier).is_err())
        }
        _ => 125,
    }
}

/// Drops to nothing.
fn become_dialer(list: &[Egress]) -> Result<(dialer::Grants, Ports, Privileges), StageError> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(step("set the parent-death signal"))?;
    let grants = dialer::Grants::new(list.to_vec()).map_err(step("open a NETLINK_ROUTE socket"))?;
    let by_tcp = || list.iter().filter(|grant| grant.protocol == Protocol::Tcp);
    let own = match by_tcp().next() {
        Some(_) => Ports::choose().map_err(step("choose ports to dial from"))?,
        None => Ports::default(),
    };
    let ports = by_tcp().flat_map(|grant| grant.first_port..=grant.last_port);
    let confined = TcpOnlyTo::ports(ports).from(own.all()).enforce();
    confined.map_err(step("confine by Landlock"))?;
    let udp = list.iter().any(|grant| grant.protocol == Protocol::Udp);
    let ipv6 = list.iter().any(|grant| grant.to.addr().is_ipv6());
    let filter = seccomp::dialer(udp, ipv6).compile();
    let filter = filter.map_err(step("make the seccomp filter"))?;
    let privileges = drop_privileges(&[], Ids::ROOT, &filter)?;
    Ok((grants, own, privileges))
}
