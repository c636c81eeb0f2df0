//! The sidecar: holds the rules, and NET_ADMIN over its own network namespace, and nothing else; tells of the traffic.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use caps::Capability;

use super::{StageError, drop_privileges, step, weakened};
use crate::confine::landlock::TcpOnlyTo;
use crate::confine::privileges::{self, Privileges};
use crate::confine::seccomp;
use crate::firewall::{self, Batch};
use crate::protocol::{self, FromStage, ToStage};
use crate::rootfs;
use crate::traffic::Settings;
use crate::traffic::watch::Watch;

/// Becomes the sidecar: empty root, NET_ADMIN alone, then the rules; ends when the supervisor does.
///
/// The order is the promise: when the rules are loaded there is nothing left but the capability to load rules, and
/// no link is up before `Ready` has been said. With `seal` there is not even that left: what the kernel does for a socket
/// that is set up it goes on doing, and later rules are the [loader's](super::loader).
///
/// # Errors
/// [`StageError`] with the step that did not work.
pub fn run(
    supervisor: &OwnedFd,
    rules: &Batch,
    seal: bool,
    traffic: Option<Settings>,
    fds: Vec<OwnedFd>,
) -> Result<(), StageError> {
    let more: &[Capability] = if weakened("sidecar-capability") {
        &[Capability::CAP_NET_RAW]
    } else {
        &[]
    };
    let (mut privileges, notes) = confine(more, seal)?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    firewall::transact(&socket, rules).map_err(step("load the rules"))?;
    // All of it now: reading needs no privilege, whatever is given up later.
    let watch = traffic
        .zip(fds.into_iter().next())
        .map(|(settings, told)| Watch::open(&settings, told))
        .transpose()
        .map_err(step("open the sockets of the traffic log"))?;
    // Here and no later: whatever needs the capability when it is set up must be set up by now.
    if seal && !weakened("seal") {
        privileges = privileges::seal().map_err(step("seal"))?;
    }
    let ready = FromStage::Ready { privileges, notes };
    protocol::send(supervisor, &ready, &[]).map_err(step("say ready"))?;
    if let Some(mut watch) = watch {
        watch.run(supervisor).map_err(step("watch the traffic"))?;
    }
    // Nothing more is ever said to a sidecar; the end of the conversation is the end of it.
    match protocol::receive::<ToStage>(supervisor) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(step("wait for the end")(io::Error::from(
            io::ErrorKind::InvalidData,
        ))),
        Err(e) => Err(step("wait for the end")(e)),
    }
}

/// What sidecar and loader share: an empty root, Landlock, `NET_ADMIN` (and `more`, if a test asks for it) alone, the
/// filter; with `seal` an empty bounding set. Gives back what is held then, and what this kernel had not.
pub(super) fn confine(
    more: &[Capability],
    seal: bool,
) -> Result<(Privileges, Vec<String>), StageError> {
    rootfs::enter_empty().map_err(step("make the root"))?;
    let filter = if seal {
        seccomp::sealing_sidecar()
    } else {
        seccomp::sidecar()
    };
    let filter = filter.compile().map_err(step("make the seccomp filter"))?;
    let confined = TcpOnlyTo::of([]).enforce();
    let notes = confined.map_err(step("confine by Landlock"))?;
    let keep = [&[Capability::CAP_NET_ADMIN], more].concat();
    let privileges = if seal {
        privileges::drop_to_until_sealed(&keep, privileges::Ids::ROOT, &filter)
            .map_err(step("drop privileges"))
    } else {
        drop_privileges(&keep, privileges::Ids::ROOT, &filter)
    }?;
    Ok((privileges, notes.into_iter().collect()))
}
