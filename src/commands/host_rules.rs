//! The host's rules of stacks that are taken down.
//!
//! # Theory of operation
//!
//! A supervisor has dropped what changing the host's rules takes, so at its end it could only close the sockets that own them. Who
//! closes such a socket waits until the kernel has waited for every processor (`nft_rcv_nl_event()`,
//! net/netfilter/nf_tables_api.c), under the lock of all rules of the network namespace: one stack after another, some 15 ms
//! each. `down` has the privilege. So it asks the supervisors for those sockets before it asks for their end, and once they have ended
//! removes what is owned by transactions, which wait for nobody. If it is killed before, the sockets close with it, or with the
//! supervisor, whoever ends later, and then the rules go.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use tokio::time::Instant;

use super::down::{ANSWERS_WITHIN, root};
use crate::control::{Client, Request};
use crate::firewall::{self, AtLink, Shared};
use crate::names::StackName;
use crate::plan::UplinkEnd;
use crate::state::{Liveness, StateRoot};
use crate::supervise;
use crate::sys::process::{beside, null_standard_descriptors};

/// What there is of some stacks in the host's rules.
#[derive(Default)]
pub(super) struct HostRules {
    shared: Option<Shared>,
    at_links: BTreeMap<StackName, AtLink>,
    /// Of rules that are gone: closing them waits all the same, for what the kernel has not freed yet.
    done: Vec<firewall::Socket>,
}

impl HostRules {
    /// What the supervisors of these stacks hand over.
    pub(super) fn of(state: &StateRoot, stacks: &[StackName]) -> Self {
        let mut rules = Self::default();
        if !root() {
            return rules;
        }
        let asked: Vec<_> = stacks
            .iter()
            .filter_map(|stack| ask(state, stack))
            .collect();
        for (stack, client) in asked {
            let Some([table, at_link]) = handed_over(&client) else {
                continue;
            };
            // Each is looked at: one of another network namespace has a table of the same name there.
            let (Ok(Some(table)), Ok(at_link)) = (
                Shared::from_fd(table, state.path()),
                AtLink::from_fd(at_link),
            ) else {
                continue;
            };
            rules.shared.get_or_insert(table);
            rules.at_links.insert(stack.clone(), at_link);
        }
        rules
    }

    /// Takes what there is of other stacks; of those from before, sockets of rules that are gone are closed.
    pub(super) fn and(&mut self, more: Self) {
        self.done.clear();
        self.at_links.extend(more.at_links);
        if let Some(shared) = more.shared {
            self.shared.get_or_insert(shared);
        }
    }

    /// Removes the rules at the link of a stack that has ended.
    pub(super) fn remove_at_link(&mut self, stack: &StackName) {
        if let Some(at_link) = self.at_links.remove(stack) {
            self.done.push(at_link.remove(stack));
        }
    }

    /// Removes the parts of stacks that have ended from the shared table, and that if nobody has it any more; `None` if there is
    /// none at hand.
    ///
    /// # Errors
    /// As [`Shared::sweep`].
    pub(super) fn sweep(
        &mut self,
        state: &StateRoot,
    ) -> Option<Result<usize, firewall::SharedError>> {
        let shared = self.shared.take()?;
        // Whoever has it, or gets it from one who has, holds its stack's lock meanwhile.
        if nobody_lives(state) {
            return Some(shared.remove().map(|socket| {
                self.done.push(socket);
                0
            }));
        }
        let swept = shared.sweep(|stack| supervise::lives(state, stack));
        self.done.push(shared.into_socket());
        Some(swept)
    }

    /// Has the sockets closed by a process that nobody waits for.
    pub(super) fn close(self) {
        let copies = self
            .done
            .iter()
            .map(|socket| socket.as_fd().try_clone_to_owned());
        let Ok(mut kept) = copies.collect::<io::Result<Vec<OwnedFd>>>() else {
            return;
        };
        if kept.is_empty() {
            return;
        }
        let Ok((ours, theirs)) = io::pipe() else {
            return;
        };
        kept.push(ours.into());
        // Without it this process waits.
        let _ = beside(kept, |kept| {
            let _ = null_standard_descriptors();
            // Whoever closes them last waits: not before this process has.
            let mut end = [0];
            let _ = kept.last().map(|pipe| rustix::io::read(pipe, &mut end));
            0
        });
        drop(self);
        drop(theirs);
    }
}

/// Asks the supervisor of a stack that has a part in the shared table for what it has of the host's rules.
fn ask<'s>(state: &StateRoot, stack: &'s StackName) -> Option<(&'s StackName, Client)> {
    let plan = state.plan(stack)?;
    if plan.uplink.ends_at != UplinkEnd::Host {
        return None;
    }
    let client = Client::connect(&state.control(stack)).ok()?;
    client.ask(&Request::HostRules).ok()?;
    Some((stack, client))
}

fn handed_over(client: &Client) -> Option<[OwnedFd; 2]> {
    let answers = client.has_answered_by(Instant::now() + ANSWERS_WITHIN);
    let (_, fds) = answers.ok()?.then(|| client.reply().ok().flatten())??;
    fds.try_into().ok()
}

fn nobody_lives(state: &StateRoot) -> bool {
    let ended = |stack: &StackName| {
        matches!(
            state.liveness(stack),
            Ok(Liveness::Absent | Liveness::Crashed)
        )
    };
    state.stacks().is_ok_and(|stacks| stacks.iter().all(ended))
}
