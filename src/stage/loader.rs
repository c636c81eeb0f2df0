//! The loader: puts one transaction of rules into the sidecar's network namespace and ends.
//!
//! It is the one way in which the rules of a running stack change, whether the sidecar still could or has sealed itself.
//! It is confined as the sidecar is, holds `NET_ADMIN` until it ends, and reads nothing but the transaction; or what apps
//! may connect to, and then it has the kernel forget the connections that are not of these.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use nftables::schema::Nftables;

use super::sidecar::confine;
use super::{StageError, step};
use crate::firewall::{self, Batch, ExtraChange, Grants, UpdateError};
use crate::protocol::{self, FromStage};

/// Loads `rules` and tells how that went. That the kernel refuses them is an answer, and no error of this process.
///
/// # Errors
/// [`StageError`] with the step that did not work.
pub fn run(supervisor: &OwnedFd, rules: &Batch) -> Result<(), StageError> {
    confine(&[], false)?;
    let loaded = firewall::Socket::open().and_then(|socket| firewall::transact(&socket, rules));
    protocol::send(supervisor, &FromStage::Loaded(loaded), &[]).map_err(step("say how it went"))
}

/// Changes the rules from `old` to `new`, and the user's as `theirs` says, forgets the flows of UDP to the ports in
/// `forget`, and tells how that went.
///
/// # Errors
/// As [`run`].
pub fn update(
    supervisor: &OwnedFd,
    (old, new): (&Nftables<'static>, &Nftables<'static>),
    theirs: Option<&ExtraChange>,
    forget: &[u16],
) -> Result<(), StageError> {
    confine(&[], false)?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    let loaded = match firewall::update_sidecar(&socket, old, new, theirs) {
        // Not before: a datagram that comes in between would be remembered the old way.
        Ok(_) => {
            firewall::forget_udp(&socket, forget).map_err(step("forget flows of UDP"))?;
            Ok(())
        }
        Err(UpdateError::Load(e)) => Err(e),
        Err(e) => return Err(step("update the rules")(e)),
    };
    protocol::send(supervisor, &FromStage::Loaded(loaded), &[]).map_err(step("say how it went"))
}

/// Forgets the connections that apps have made and may make no more, and tells so.
///
/// # Errors
/// As [`run`].
pub fn forget(supervisor: &OwnedFd, grants: &[Grants]) -> Result<(), StageError> {
    confine(&[], false)?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    firewall::forget_ungranted(&socket, grants)
        .map_err(step("forget connections that are not granted"))?;
    protocol::send(supervisor, &FromStage::Loaded(Ok(())), &[]).map_err(step("say how it went"))
}
