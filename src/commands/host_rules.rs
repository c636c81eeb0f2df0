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
use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;
use super::root;
use crate::control::{Client, Request};
use crate::firewall::{self, AtLink, Shared, SharedError};
use crate::names::StackName;
use crate::plan::UplinkEnd;
use crate::state::StateRoot;
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
        let has_some = |stack: &&StackName| {
            let plan = state.plan(stack);
            plan.is_some_and(|plan| plan.uplink.ends_at == UplinkEnd::Host)
        };
        let asked = stacks.iter().filter(has_some).filter_map(|stack| {
            let client = ask(state, stack, &Request::HostRules).ok()?;
            Some((stack, client))
        });
        for (stack, client) in asked.collect::<Vec<_>>() {
            let Ok([table, at_link]) = <[OwnedFd; 2]>::try_from(handed_over(&client)) else {
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

    /// Removes parts of the host's table that are of no stack that lives, and the table if none does; how many parts there were.
    /// Whoever has the table is asked for it, unless it is at hand; without a stack that has a part in it there is none.
    pub(super) fn sweep(&mut self, state: &StateRoot) -> Result<usize, Failure> {
        match self.shared.take() {
            Some(shared) => self.sweep_at_hand(state, shared).map_err(untidied),
            None => sweep_by_another(state),
        }
    }

    fn sweep_at_hand(&mut self, state: &StateRoot, shared: Shared) -> Result<usize, SharedError> {
        let lives = |stack: &str| supervise::lives(state, stack);
        let stacks = state.stacks();
        // Whoever has it, or gets it from one who has, holds its stack's lock meanwhile.
        if stacks.is_ok_and(|stacks| !stacks.iter().any(|stack| lives(stack.as_str()))) {
            self.done.push(shared.remove()?);
            return Ok(0);
        }
        let swept = shared.sweep(lives);
        self.done.push(shared.into_socket());
        swept
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

fn untidied(e: SharedError) -> Failure {
    Failure::unable(format!("tidy the host's table: {e}"))
}

/// [`HostRules::sweep`] by what the supervisor of another stack hands over.
fn sweep_by_another(state: &StateRoot) -> Result<usize, Failure> {
    if !root() || !Shared::is_there().map_err(untidied)? {
        return Ok(0);
    }
    for stack in state.stacks()? {
        // A supervisor that is gone, does not answer, or has no part in the table is passed over: the next one may have it.
        let Ok(client) = ask(state, &stack, &Request::HostTable) else {
            continue;
        };
        let Some(fd) = handed_over(&client).into_iter().next() else {
            continue;
        };
        // Nor does one that hands something else over hold anybody up.
        if let Ok(Some(table)) = Shared::from_fd(fd, state.path()) {
            return table
                .sweep(|stack| supervise::lives(state, stack))
                .map_err(untidied);
        }
    }
    Ok(0)
}

fn ask(state: &StateRoot, stack: &StackName, request: &Request) -> io::Result<Client> {
    let client = Client::connect(&state.control(stack))?;
    client.ask(request)?;
    Ok(client)
}

/// How long a supervisor may take to hand over what it was asked for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The descriptors that come with its answer; none if it says nothing in time.
fn handed_over(client: &Client) -> Vec<OwnedFd> {
    let answers = client.has_answered_by(Instant::now() + ANSWERS_WITHIN);
    let reply = answers.and_then(|answers| match answers {
        true => client.reply(),
        false => Ok(None),
    });
    reply.ok().flatten().map(|(_, fds)| fds).unwrap_or_default()
}
