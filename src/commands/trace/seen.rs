//! What was seen of packets in one network namespace: nothing here asks the kernel.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Serialize;

use crate::firewall::trace::{Headers, Hop, Step, Verdict};
use crate::firewall::{self, Fill};

/// At most this many packets of one place are kept: a flood must not use up the memory.
const MOST: usize = 4096;

/// Which network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Site {
    /// The host's.
    Host,
    /// The relay's own, where it has one.
    Relay,
    /// The sidecar's.
    Sidecar,
}

impl Site {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Relay => "relay",
            Self::Sidecar => "sidecar",
        }
    }
}

/// A packet that was marked.
pub(super) struct Seen {
    pub(super) id: u32,
    /// Its place among all that were heard of, of any namespace.
    pub(super) order: usize,
    /// What it was before anybody changed it.
    pub(super) headers: Headers,
    /// The index of the link that it came by.
    pub(super) link: Option<u32>,
    /// Which connection, if the kernel tells.
    pub(super) connection: Option<u32>,
    /// How far it came, in order.
    pub(super) hops: Vec<Hop>,
    /// What it met of others.
    pub(super) steps: Vec<Step>,
}

impl Seen {
    pub(super) fn met(&self, hop: Hop) -> bool {
        self.hops.contains(&hop)
    }

    pub(super) fn drop(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.verdict == Verdict::Drop)
    }
}

/// The name or the text of a rule, by the table's family, the table and its handle.
pub(super) type Names = BTreeMap<(String, String, u64), String>;

/// What was seen in one network namespace, and how rules are called there.
pub(super) struct Sight {
    pub(super) site: Site,
    /// How full its connection table was when the waiting began, if the kernel has told.
    pub(super) connections: Option<Fill>,
    /// The rules' comments.
    pub(super) comments: Names,
    /// Their text, if there was an nft to tell it.
    pub(super) texts: Names,
    /// In the order in which they were first heard of.
    pub(super) seen: Vec<Seen>,
}

impl Sight {
    /// Takes down one thing that happened, at one of the places where the marking table looks if there is a `hop`; `order`
    /// counts the packets of all places.
    pub(super) fn take(&mut self, step: Step, hop: Option<Hop>, order: &mut usize) {
        let begins = matches!(hop, Some(Hop::ComesIn | Hop::Sent));
        let known = self.seen.iter().rposition(|seen| seen.id == step.packet);
        // The kernel's numbers come back: nobody begins twice.
        let known = known.filter(|at| {
            let last = self.seen[*at].hops.last();
            !begins || last == hop.as_ref()
        });
        let at = match (known, step.headers) {
            (Some(at), _) => at,
            (None, Some(headers)) if begins && self.seen.len() < MOST => {
                *order += 1;
                self.seen.push(Seen {
                    id: step.packet,
                    order: *order,
                    headers,
                    link: step.link,
                    connection: None,
                    hops: vec![],
                    steps: vec![],
                });
                self.seen.len() - 1
            }
            _ => return,
        };
        let seen = &mut self.seen[at];
        seen.connection = seen.connection.or(step.connection);
        match hop {
            Some(hop) if seen.hops.last() != Some(&hop) => seen.hops.push(hop),
            Some(_) => {}
            None => seen.steps.push(step),
        }
    }

    /// The name of a rule: its comment in a table of ours, its text in another's, if there was an nft to tell it.
    pub(super) fn named(&self, step: &Step) -> Option<String> {
        let key = (step.family.clone(), step.table.clone(), step.rule?);
        let (comment, text) = (self.comments.get(&key), self.texts.get(&key));
        let name = if firewall::is_ours(&step.table) {
            comment.or(text)
        } else {
            text.or(comment)
        };
        name.cloned()
    }
}
