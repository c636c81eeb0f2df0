//! Who is let in: published ports that open, close for an app that is not well, and close at the end.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use nftables::schema::Nftables;

use super::error::StackError;
use super::ground::{EndTable, Ground};
use super::listening::ASK_EVERY;
use crate::config::Protocol;
use crate::firewall;
use crate::names::PartName;
use crate::net::Listening;
use crate::net::publish::Listener;

/// How long the kernel may take to deliver what an app that has ended had written, and the relay to hand it on.
const DELIVERED_WITHIN: Duration = Duration::from_secs(1);
/// How long who has begun to connect may take to get through to the relay.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(1);
/// Closes ports that a relay still accepts at, when it has accepted who is there. A listening socket that is closed resets
/// who has connected and was not accepted, and who was answered and has not said so yet: so nobody new is answered, and
/// those few are waited for.
pub async fn close(listeners: impl IntoIterator<Item = &Listener>) {
    let tcp = |listener: &&Listener| listener.protocol == Protocol::Tcp;
    let (listeners, others): (Vec<_>, Vec<_>) = listeners.into_iter().partition(tcp);
    others.into_iter().for_each(Listener::close);
    if listeners.is_empty() {
        return;
    }
    let begun = tokio::time::Instant::now();
    let waiting = || listeners.iter().any(|listener| listener.has_waiting());
    for listener in &listeners {
        // A kernel that takes a filter from root only: then who connects in the moment of the end is reset.
        let _ = listener.admit_no_more();
    }
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.address).collect();
    let question = Listening::open().ok();
    let half_open = || {
        let found = question
            .as_ref()
            .map(|question| question.has_half_open(&addresses));
        matches!(found, Some(Ok(true)))
    };
    // In this order: who has got through meanwhile waits. The kernel tells of neither's end.
    while (half_open() || waiting()) && begun.elapsed() < ACCEPTED_WITHIN {
        tokio::time::sleep(ASK_EVERY).await;
    }
    for listener in listeners {
        listener.close();
    }
}

impl Ground {
    /// The apps to which nobody new is let in, since they are not healthy.
    #[must_use]
    pub fn closed(&self) -> BTreeSet<PartName> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.clone()
    }

    /// Lets nobody new in to these apps and to no other; `whole` puts all rules in the place of whatever there is. A relay
    /// is then to be told that sockets listen again.
    ///
    /// # Errors
    /// [`StackError`] of the sidecar's rules, [`StackError::Listen`]; then it is to be tried again.
    pub async fn close_only(
        &self,
        wanted: BTreeSet<PartName>,
        whole: bool,
    ) -> Result<(), StackError> {
        let before = self.closed();
        let of = |apps: &BTreeSet<PartName>| {
            let ports = self.plan.published().zip(&self.listeners);
            let its = ports.filter(|((app, _), _)| apps.contains(&app.name));
            its.map(|(_, listener)| listener.clone())
                .collect::<Vec<_>>()
        };
        close(&of(&wanted)).await;
        let (old, new) = (self.plan.in_force(&before), self.plan.in_force(&wanted));
        match whole {
            true => self.load_rules(self.batch(&new)?).await?,
            false => self.update_exactly(&old, &new).await?,
        }
        for listener in of(&before.difference(&wanted).cloned().collect()) {
            listener.listen()?;
        }
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        Ok(())
    }

    /// Lets the bound sockets of the published ports listen.
    pub(super) fn listen(&self) -> Result<(), StackError> {
        for listener in &self.listeners {
            listener.listen()?;
        }
        Ok(())
    }

    /// Lets nobody in any more, and leaves who is in: the listening sockets refuse, and what the host's table translates is who passes
    /// by such a socket. One that a service manager has too is left to it, with who connects there from now on, unless the stack
    /// ends `for_good` and it is kept for the next start alone.
    pub async fn close_entries(&self, for_good: bool) {
        let outlives = |listener: &&Listener| listener.outlives(for_good);
        let (left, closing): (Vec<_>, Vec<_>) = self.listeners.iter().partition(outlives);
        left.into_iter().for_each(Listener::leave);
        // As long as they wait for who is there, who is new comes to them.
        closing
            .iter()
            .for_each(|listener| listener.is_passed_by_no_more());
        close(closing).await;
    }

    /// Every network namespace in which an app may listen.
    fn where_apps_listen(&self) -> impl Iterator<Item = &Arc<Listening>> {
        let handed = self.plan.handed_apps().next();
        let handed = handed.map(|_| &self.sidecar_listening);
        self.apps.iter().map(|app| &app.listening).chain(handed)
    }

    /// Waits until nobody waits to be accepted by an app. Who can't be asked about is not waited for, but whoever calls must
    /// not wait for ever: an app may never accept.
    pub async fn accepted(&self) {
        let waits = |listening: &Arc<Listening>| matches!(listening.has_unaccepted(), Ok(true));
        // The kernel does not tell of it.
        while self.where_apps_listen().any(waits) {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Waits until what apps that have ended had written is with who was to have it, for a second at most.
    pub async fn delivered(&self) {
        let its = |listening: &Arc<Listening>| {
            let listening = Arc::clone(listening);
            async move { listening.until_none(Listening::is_delivering).await }
        };
        let all = join_all(self.where_apps_listen().map(its));
        // Who can't be asked about is not waited for.
        let _ = tokio::time::timeout(DELIVERED_WITHIN, all).await;
    }

    /// Opens the published ports of a stack that was brought up without; its relay is then to be told to proceed. Gives
    /// back what the host's table holds then.
    ///
    /// # Errors
    /// [`StackError::HostTable`], [`StackError::SharedTable`], [`StackError::Listen`].
    pub fn publish(&self, host_table: &EndTable) -> Result<Nftables<'static>, StackError> {
        let rules = firewall::host_rules(&self.plan);
        match host_table {
            EndTable::Own(socket) => {
                firewall::transact(socket, &firewall::encode(&rules)?)?;
            }
            EndTable::Host { shared, .. } => {
                let closed = firewall::closed_host_rules(&self.plan);
                shared.change(&self.plan, &closed, &rules)?;
            }
        }
        self.listen()?;
        Ok(rules)
    }
}
