//! The host's table, from who has it: see [`crate::firewall::Shared`].
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::refused;
use crate::control::{Reply, Request};
use crate::firewall::{self, Shared, SharedError};
use crate::names::StackName;
use crate::plan::{Plan, UplinkEnd};
use crate::protocol::Channel;
use crate::stack::{EndTable, StackError};
use crate::state::{Liveness, StateRoot};

/// How many supervisors are asked at once: any of them will do.
const AT_ONCE: usize = 8;
/// How long one may take. It answers beside everything else that it does.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long the table is looked for that somebody else has made.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// One whose owner is about to end can be had from nobody, and is there until then: the kernel tells nobody of a table that
/// goes with its owner (`nft_rcv_nl_event()` of net/netfilter/nf_tables_api.c).
const ASKED_EVERY: Duration = Duration::from_millis(5);

/// What this supervisor has of the host's rules, as it hands it to others: once it has it, and until its end.
#[derive(Clone, Default)]
pub(super) struct Offer(Arc<Mutex<Offered>>);

#[derive(Clone, Default)]
struct Offered {
    table: Option<Arc<Shared>>,
    /// What owns the rules at the stack's own link, once they are in force.
    at_link: Option<Arc<firewall::Socket>>,
}

impl Offer {
    fn held(&self) -> MutexGuard<'_, Offered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a stack that is up has.
    pub(super) fn complete(&self, end: &EndTable) {
        if let EndTable::Host { at_link, .. } = end {
            self.held().at_link = Some(Arc::clone(at_link));
        }
    }

    /// It is handed to nobody any more.
    pub(super) fn withdraw(&self) {
        let mut held = self.held();
        (held.table, held.at_link) = (None, None);
    }

    /// Answers [`Request::HostTable`], and [`Request::HostRules`] with what is `at_link` as well.
    pub(super) async fn answer(&self, channel: &Channel, at_link: bool) -> io::Result<()> {
        use std::os::fd::AsFd;
        let held = self.held().clone();
        let at_link_too = held.at_link.filter(|_| at_link);
        match held.table {
            Some(_) if at_link && at_link_too.is_none() => {
                let why = "it is not up yet".to_owned();
                channel.send(&refused(why, None), &[]).await
            }
            Some(table) => {
                let fds = std::iter::once(table.as_fd());
                let fds = fds.chain(at_link_too.iter().map(|socket| socket.as_fd()));
                channel.send(&Reply::Done, &fds.collect::<Vec<_>>()).await
            }
            None => {
                let why = "it has no part in the host's table".to_owned();
                channel.send(&refused(why, None), &[]).await
            }
        }
    }
}

/// The table that stacks share, if this one has a part in it: from another supervisor, or made. Parts of stacks that have
/// ended are removed.
pub(super) async fn table(plan: &Plan, offer: &Offer) -> Result<Option<Arc<Shared>>, StackError> {
    if plan.uplink.ends_at != UplinkEnd::Host {
        return Ok(None);
    }
    let state = StateRoot::of_stack(&plan.state_dir);
    let until = Instant::now() + FOUND_WITHIN;
    let table = loop {
        if let Some(table) = ask_others(&state, &plan.stack).await {
            break table;
        }
        if let Some(table) = Shared::make(state.path())? {
            break table;
        }
        if Instant::now() >= until {
            return Err(SharedError::NotHandedOver.into());
        }
        tokio::time::sleep(ASKED_EVERY).await;
    };
    table.sweep(|stack| lives(&state, stack))?;
    let table = Arc::new(table);
    offer.held().table = Some(Arc::clone(&table));
    Ok(Some(table))
}

/// Whether a stack may have a part in the table: also one of which it can't be said whether it lives.
pub fn lives(state: &StateRoot, stack: &str) -> bool {
    let liveness = StackName::new(stack).map(|stack| state.liveness(&stack));
    liveness.is_ok_and(|liveness| !matches!(liveness, Ok(Liveness::Absent | Liveness::Crashed)))
}

async fn ask_others(state: &StateRoot, own: &StackName) -> Option<Shared> {
    let mut others = state.stacks().unwrap_or_default();
    others.retain(|other| other != own);
    for some in others.chunks(AT_ONCE) {
        let asked = some.iter().map(|other| {
            let path = state.control(other);
            Box::pin(async move {
                let asked = tokio::time::timeout(ANSWERS_WITHIN, ask(&path, state.path()));
                asked
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            })
        });
        // Whoever is gone, silent, or has no part in it: the next one may have.
        if let Ok((table, _)) = futures_util::future::select_ok(asked).await {
            return Some(table);
        }
    }
    None
}

async fn ask(path: &Path, stacks: &Path) -> io::Result<Shared> {
    let client = tokio::net::UnixStream::connect(path).await?;
    if client.peer_cred()?.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut channel = Channel::new(OwnedFd::from(client.into_std()?))?;
    channel.send(&Request::HostTable, &[]).await?;
    let answer = channel.receive::<Reply>().await?;
    let fds = answer.map(|(_, fds)| fds).unwrap_or_default();
    let none = || io::Error::from(io::ErrorKind::NotFound);
    let fd = fds.into_iter().next().ok_or_else(none)?;
    // One of another network namespace has a part in the table there.
    Shared::from_fd(fd, stacks)
        .map_err(io::Error::other)?
        .ok_or_else(none)
}
