//! The relay: drops to nothing, then carries bytes from the sockets that it was handed ([`crate::relay`]).
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::rc::Rc;

use ipnet::IpNet;

use super::{StageError, drop_privileges, step};
use crate::config::Protocol;
use crate::config::clients::{Admission, Gate};
use crate::confine::landlock::TcpOnlyTo;
use crate::confine::privileges::Ids;
use crate::confine::seccomp;
use crate::protocol::{self, Carried, FromStage, ToStage};
use crate::relay::{self, Way};
use crate::rootfs;

/// What it is told, as in [`protocol::Role::Relay`], the socket for what it tells of refused clients, and that of each port.
pub struct Work {
    pub carried: Vec<Carried>,
    pub admissions: Vec<Admission>,
    pub as_clients: Option<Vec<IpNet>>,
    pub joined: bool,
    pub wait: bool,
    pub told: OwnedFd,
    pub sockets: Vec<OwnedFd>,
}

/// Becomes the relay: empty root, Landlock, no privilege, `Ready`; behind a gate it waits until that is open. Ends when the
/// supervisor does.
///
/// # Errors
/// [`StageError`] with the step that did not work.
pub fn run(supervisor: &OwnedFd, work: Work) -> Result<(), StageError> {
    let (carried, as_clients) = (&work.carried, work.as_clients);
    let binds = as_clients.is_some();
    rootfs::enter_empty().map_err(step("make the root"))?;
    let carries = seccomp::Carries {
        udp: carried.iter().any(|c| c.protocol == Protocol::Udp),
        as_clients: binds,
        ipv6: carried.iter().any(|c| c.target.is_ipv6()),
    };
    let filter = seccomp::relay(carries).compile();
    let filter = filter.map_err(step("make the seccomp filter"))?;
    let by_tcp = carried.iter().filter(|c| c.protocol == Protocol::Tcp);
    let targets = by_tcp.map(|carried| carried.target);
    let confined = TcpOnlyTo::relay(targets, binds).enforce();
    let notes = confined.map_err(step("confine by Landlock"))?;
    let privileges = drop_privileges(&[], Ids::ROOT, &filter)?;

    let (mut streams, mut datagrams) = (vec![], vec![]);
    let gates = work.admissions.into_iter().map(Gate::new).map(Rc::new);
    let gates: Vec<Rc<Gate>> = gates.collect();
    for (fd, carried) in work.sockets.into_iter().zip(carried) {
        let gate = gates.get(carried.admission).cloned();
        let way = Way {
            target: carried.target,
            // Who is named nowhere lets nobody in.
            gate: gate.unwrap_or_else(|| Rc::new(Gate::new(Admission::default()))),
            shows_client: carried.shows_client,
            early: carried.early,
            app: carried.admission,
            joined: work.joined,
        };
        match carried.protocol {
            Protocol::Tcp => streams.push((fd.into(), way)),
            Protocol::Udp => datagrams.push((fd.into(), way)),
        }
    }
    let capacity = relay::capacity(streams.len(), datagrams.len()).map(|(most, of_one)| {
        format!("carries at most {most} connections at once, {of_one} of one client")
    });
    let ready = FromStage::Ready {
        privileges,
        notes: notes.into_iter().chain(capacity).collect(),
    };
    protocol::send(supervisor, &ready, &[]).map_err(step("say ready"))?;
    if work.wait {
        match protocol::receive(supervisor).map_err(step("wait for the gate"))? {
            Some((ToStage::Proceed, _)) => {}
            Some(_) => return Err(step("wait for the gate")("another message came first")),
            None => return Ok(()),
        }
        for (socket, _) in &datagrams {
            relay::forget_what_waits(socket);
        }
    }
    let shutdown = supervisor.try_clone().map_err(step("share the socket"))?;
    let handed_over = protocol::encode(&FromStage::HandedOver).map_err(step("encode a message"))?;
    let control = (shutdown, handed_over.as_slice());
    relay::run(streams, datagrams, as_clients, control, work.told).map_err(step("relay"))
}
