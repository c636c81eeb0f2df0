//! The sidecar: holds the rules, and NET_ADMIN over its own network namespace, and nothing else.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use caps::Capability;

use super::{StageError, drop_privileges, step, weakened};
use crate::confine::TcpOnlyTo;
use crate::firewall::{self, Batch};
use crate::privileges::Privileges;
use crate::protocol::{self, FromStage, ToStage};
use crate::rootfs;
use crate::seccomp;

/// Becomes the sidecar: empty root, NET_ADMIN alone, then the rules; ends when the supervisor does.
///
/// The order is the promise: when the rules are loaded there is nothing left but the capability to load rules, and
/// no link is up before `Ready` has been said.
///
/// # Errors
/// [`StageError`] with the step that did not work.
pub fn run(supervisor: &OwnedFd, rules: &Batch) -> Result<(), StageError> {
    let more: &[Capability] = if weakened("sidecar-capability") {
        &[Capability::CAP_NET_RAW]
    } else {
        &[]
    };
    let (privileges, notes) = confine(more)?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    firewall::transact(&socket, rules).map_err(step("load the rules"))?;
    let ready = FromStage::Ready { privileges, notes };
    protocol::send(supervisor, &ready, &[]).map_err(step("say ready"))?;
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
/// filter. Gives back what is held then, and what this kernel had not.
pub(super) fn confine(more: &[Capability]) -> Result<(Privileges, Vec<String>), StageError> {
    rootfs::enter_empty().map_err(step("make the root"))?;
    let filter = seccomp::sidecar()
        .compile()
        .map_err(step("make the seccomp filter"))?;
    let confined = TcpOnlyTo::of(&[]).enforce();
    let notes = confined.map_err(step("confine by Landlock"))?;
    let keep = [&[Capability::CAP_NET_ADMIN], more].concat();
    let privileges = drop_privileges(&keep, 0, &filter)?;
    Ok((privileges, notes.into_iter().collect()))
}
