//! The sidecar: holds the rules, and NET_ADMIN over its own network namespace, and nothing else; tells of the traffic.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use caps::Capability;

use super::{StageError, drop_privileges, step, weakened};
use crate::confine::TcpOnlyTo;
use crate::firewall::{self, Batch};
use crate::protocol::{self, FromStage, ToStage};
use crate::rootfs;
use crate::seccomp;
use crate::traffic::Settings;
use crate::traffic::watch::Watch;

/// Becomes the sidecar: empty root, NET_ADMIN alone, then the rules; ends when the supervisor does.
///
/// The order is the promise: when the rules are loaded there is nothing left but the capability to load rules, and
/// no link is up before `Ready` has been said.
///
/// # Errors
/// [`StageError`] with the step that did not work.
pub fn run(
    supervisor: &OwnedFd,
    rules: &Batch,
    traffic: Option<Settings>,
    fds: Vec<OwnedFd>,
) -> Result<(), StageError> {
    rootfs::enter_empty().map_err(step("make the root"))?;
    let filter = seccomp::sidecar()
        .compile()
        .map_err(step("make the seccomp filter"))?;
    let confined = TcpOnlyTo::of(&[]).enforce();
    let notes = confined.map_err(step("confine by Landlock"))?;
    let mut keep = vec![Capability::CAP_NET_ADMIN];
    if weakened("sidecar-capability") {
        keep.push(Capability::CAP_NET_RAW);
    }
    let privileges = drop_privileges(&keep, 0, &filter)?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    firewall::transact(&socket, rules).map_err(step("load the rules"))?;
    // All of it now: reading needs no privilege, whatever is given up later.
    let watch = traffic
        .zip(fds.into_iter().next())
        .map(|(settings, told)| Watch::open(&settings, told))
        .transpose()
        .map_err(step("open the sockets of the traffic log"))?;
    let ready = FromStage::Ready {
        privileges,
        notes: notes.into_iter().collect(),
    };
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
