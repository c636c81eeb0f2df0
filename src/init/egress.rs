//! The way out: two processes, the carrier and, as its child, the dialer ([`crate::relay::egress`]).
//!
//! Both come from this one image: the child is cloned before either has dropped anything, and each drops to what it needs.
//! The carrier then leaves the network namespace, in which the dialer stays, for an empty one.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;

use nix::sched::CloneFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{StageError, drop_privileges, step, weakened};
use crate::admission::{Admission, Gate};
use crate::config::{Egress, Protocol};
use crate::confine::TcpOnlyTo;
use crate::protocol::{self, Door, FromStage};
use crate::relay::Way;
use crate::relay::egress::{self, dialer};
use crate::rootfs;
use crate::seccomp;
use crate::sys::namespace::unshare;
use crate::sys::process::{Cloned, clone3, exit_now};

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
    let gate = Rc::new(Gate::new(out.clients));
    for (socket, door) in out.sockets.into_iter().zip(&out.doors) {
        let any = if door.ipv6 {
            [0u16; 8].into()
        } else {
            [0u8; 4].into()
        };
        let way = Way {
            target: SocketAddr::new(any, door.port),
            gate: Rc::clone(&gate),
        };
        match door.protocol {
            Protocol::Tcp => streams.push((socket.into(), way)),
            Protocol::Udp => datagrams.push((socket.into(), way)),
        }
    }
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(step("make a socket pair"))?;
    let (told, tell) = crate::namespaces::socketpair().map_err(step("make a socket pair"))?;
    // The dialer's pidfd is not kept: it ends with this process, which is pid 1 of both.
    let dialer = match clone3(0).map_err(step("clone the dialer"))? {
        Cloned::Child => {
            drop((ours, told, streams));
            exit_now(dial(&out.grants, datagrams, theirs, tell, supervisor))
        }
        Cloned::Parent { pidfd, .. } => pidfd,
    };
    drop((theirs, tell, datagrams));
    unshare(CloneFlags::CLONE_NEWNET).map_err(step("leave the network namespace"))?;
    let confined = TcpOnlyTo::of([]).enforce();
    let notes = confined.map_err(step("confine by Landlock"))?;
    let filter = seccomp::carrier()
        .compile()
        .map_err(step("make the seccomp filter"))?;
    let privileges = drop_privileges(&[], 0, &filter)?;
    // It has said what did not work itself; then there is nothing to say here but to end.
    match protocol::receive::<FromStage>(&told).map_err(step("hear from the dialer"))? {
        Some((FromStage::Ready { .. }, _)) => {}
        Some((FromStage::Failed { step: what, cause, .. }, _)) => {
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
    egress::carry(streams, ours, shutdown).map_err(step("carry"))?;
    Ok(ExitCode::SUCCESS)
}

/// The dialer's whole life.
fn dial(
    grants: &[Egress],
    datagrams: Vec<(std::net::UdpSocket, Way)>,
    carrier: OwnedFd,
    tell: OwnedFd,
    _supervisor: &OwnedFd,
) -> i32 {
    let (message, ready) = match become_dialer(grants) {
        Ok((grants, privileges)) => {
            let notes = vec![];
            (FromStage::Ready { privileges, notes }, Some(grants))
        }
        Err(e) => {
            let failed = FromStage::Failed {
                step: e.step.to_owned(),
                cause: e.cause,
                errno: None,
            };
            (failed, None)
        }
    };
    let told = protocol::send(&tell, &message, &[]);
    drop(tell);
    match ready {
        Some(grants) if told.is_ok() => {
            i32::from(dialer::run(grants, datagrams, carrier).is_err())
        }
        _ => 125,
    }
}
