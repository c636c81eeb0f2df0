//! From one ruleset to another with the least change, in one transaction.
//!
//! # Theory of operation
//! Replacing a table swaps its base chains one by one: now and then a new connection's SYN meets neither and is lost, which
//! costs that connection a second. What stays must therefore stay the same object:
//!
//! - Of a set or map that stays, only elements come and go.
//! - Of a chain that stays, only the rules that differ come and go, by their handles, so the others keep their counts. The
//!   kernel looks at a chain's rules as they were or as they will be, never at something in between
//!   (`nf_tables_commit_chain`, net/netfilter/nf_tables_api.c).
//! - A base chain is made or deleted only with its first or last reason to be.
//!
//! Everything is in one batch: rules are deleted first, since they hold sets; then sets and chains that aren't wanted any
//! more; then what is new, in the order in which it needs each other. The user's objects ([`ExtraChange`]) go before all
//! that and come after it, since they may hold ours and ours don't hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nftables::expr::Expression;
use nftables::schema::{Chain, NfListObject, NfObject, Nftables, Rule, SetTypeValue};
use nftables::stmt::{Counter, Statement};

use super::counters::{attributes_of, dump};
use super::encode::{self, Encoder, Place, unsupported};
use super::load::{LoadError, Socket, transact};
use super::shared::{self, Lead, Scope};
use super::{Batch, EncodeError, ExtraChange};
use crate::netlink::*;

/// Why a ruleset was not changed; it is what it was.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The rules that are in force can't be read.
    #[error("read the rules of {table}")]
    Read {
        /// The table.
        table: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The new rules can't be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The kernel refused.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What [`update`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updated {
    /// Both rulesets are the same.
    Nothing,
    /// One transaction of so many bytes.
    Transaction(usize),
}

/// Changes the table that `old` was loaded as into `new`: all of it or nothing. Both are one table each, of one name. A
/// table that belongs to a socket must be changed through that socket; the caller needs `CAP_NET_ADMIN` as
/// [`Socket::open`] says, the opener of the socket must have had it as well.
///
/// # Errors
/// [`UpdateError`]; the ruleset is then what it was before.
pub fn update(
    socket: &Socket,
    old: &Nftables<'static>,
    new: &Nftables<'static>,
) -> Result<Updated, UpdateError> {
    update_sidecar(socket, old, new, None)
}

/// As [`update`], for the sidecar's table; `theirs` changes the user's objects in the same transaction.
///
/// # Errors
/// As [`update`].
pub fn update_sidecar(
    socket: &Socket,
    old: &Nftables<'static>,
    new: &Nftables<'static>,
    theirs: Option<&ExtraChange>,
) -> Result<Updated, UpdateError> {
    let (old, new) = (Ruleset::of(old)?, Ruleset::of(new)?);
    let handles = handles(socket, old.table).map_err(|source| UpdateError::Read {
        table: old.table.to_owned(),
        source,
    })?;
    let out = Encoder::begin(0);
    match encode_update(out, &old, &new, &handles, theirs, None)? {
        None => Ok(Updated::Nothing),
        Some(batch) => {
            transact(socket, &batch)?;
            Ok(Updated::Transaction(batch.size()))
        }
    }
}

/// As [`update`], for one stack's part of the table that several share, whose lock is held.
pub(super) fn update_part(
    socket: &Socket,
    scope: &Scope,
    [old, new]: [&Nftables<'static>; 2],
    [before, after]: [BTreeSet<Lead>; 2],
) -> Result<Updated, UpdateError> {
    let (old, new) = (Ruleset::of(old)?, Ruleset::of(new)?);
    let all = handles(socket, shared::TABLE).map_err(|source| UpdateError::Read {
        table: shared::TABLE.to_owned(),
        source,
    })?;
    let own = all.into_iter();
    let own = own.filter_map(|(chain, handles)| Some((scope.own(&chain)?.to_owned(), handles)));
    let (handles, out) = (own.collect(), Encoder::begin_in(scope.clone()));
    let leads = Leads {
        scope,
        before,
        after,
    };
    match encode_update(out, &old, &new, &handles, None, Some(leads))? {
        None => Ok(Updated::Nothing),
        Some(batch) => {
            transact(socket, &batch)?;
            Ok(Updated::Transaction(batch.size()))
        }
    }
}

/// Of each chain, the handles of its rules, in their order.
type Handles = BTreeMap<String, Vec<u64>>;

fn handles(socket: &Socket, table: &str) -> io::Result<Handles> {
    let mut handles = Handles::new();
    let of_table = |a: &mut Attributes<'_>| a.text(NFTA_RULE_TABLE, table);
    for body in dump(socket, libc::NFT_MSG_GETRULE, libc::NFPROTO_INET, of_table)? {
        let rule = attributes_of(&body);
        let handle = attribute(rule, NFTA_RULE_HANDLE)
            .and_then(|bytes| bytes.first_chunk().copied())
            .map(u64::from_be_bytes);
        if text(rule, NFTA_RULE_TABLE).as_deref() == Some(table)
            && let (Some(chain), Some(handle)) = (text(rule, NFTA_RULE_CHAIN), handle)
        {
            handles.entry(chain).or_default().push(handle);
        }
    }
    Ok(handles)
}

/// A ruleset by kinds of objects.
struct Ruleset<'a> {
    table: &'a str,
    sets: BTreeMap<&'a str, SetOrMap<'a>>,
    chains: BTreeMap<&'a str, &'a Chain<'static>>,
    rules: BTreeMap<&'a str, Vec<&'a Rule<'static>>>,
}

/// A set or a map, without its elements, and its elements.
struct SetOrMap<'a> {
    label: String,
    key: &'a SetTypeValue<'static>,
    value: Option<&'a SetTypeValue<'static>>,
    /// With elements, as it is added.
    whole: &'a NfListObject<'static>,
    /// Without.
    bare: NfListObject<'static>,
    keys: encode::Keys,
    elements: &'a [Expression<'static>],
}

impl<'a> Ruleset<'a> {
    fn of(rules: &'a Nftables<'static>) -> Result<Self, EncodeError> {
        let mut found = Self {
            table: "",
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            rules: BTreeMap::new(),
        };
        for object in rules.objects.iter() {
            let NfObject::ListObject(object) = object else {
                return Err(unsupported("ruleset", object));
            };
            match object {
                NfListObject::Table(table) => found.table = &table.name,
                NfListObject::Chain(chain) => {
                    found.chains.insert(&chain.name, chain);
                }
                NfListObject::Rule(rule) => found.rules.entry(&rule.chain).or_default().push(rule),
                NfListObject::Set(set) => {
                    let mut bare = set.clone();
                    bare.elem = None;
                    let set = SetOrMap {
                        label: format!("set {}", set.name),
                        key: &set.set_type,
                        keys: encode::keys(set).ok_or_else(|| unsupported("set", set))?,
                        value: None,
                        whole: object,
                        bare: NfListObject::Set(bare),
                        elements: set.elem.as_deref().unwrap_or_default(),
                    };
                    found.sets.insert(name_of(object), set);
                }
                NfListObject::Map(map) => {
                    let mut bare = map.clone();
                    bare.elem = None;
                    let map = SetOrMap {
                        label: format!("map {}", map.name),
                        key: &map.set_type,
                        keys: encode::Keys::Single,
                        value: Some(&map.map),
                        whole: object,
                        bare: NfListObject::Map(bare),
                        elements: map.elem.as_deref().unwrap_or_default(),
                    };
                    found.sets.insert(name_of(object), map);
                }
                other => return Err(unsupported("ruleset", other)),
            }
        }
        Ok(found)
    }

    fn rules(&self, chain: &str) -> &[&'a Rule<'static>] {
        self.rules.get(chain).map_or(&[], Vec::as_slice)
    }
}

fn name_of<'a>(object: &'a NfListObject<'_>) -> &'a str {
    match object {
        NfListObject::Set(set) => &set.name,
        NfListObject::Map(map) => &map.name,
        _ => "",
    }
}

/// What of the shared table leads to a stack's chains, before and after.
struct Leads<'s> {
    scope: &'s Scope,
    before: BTreeSet<Lead>,
    after: BTreeSet<Lead>,
}

/// The transaction; `None` when there is nothing to change.
fn encode_update(
    out: Encoder,
    old: &Ruleset<'_>,
    new: &Ruleset<'_>,
    handles: &Handles,
    theirs: Option<&ExtraChange>,
    leads: Option<Leads<'_>>,
) -> Result<Option<Batch>, EncodeError> {
    let mut change = Change {
        out,
        old,
        new,
        renewed: renewed(old, new),
        changed: theirs.is_some(),
    };
    // What leads to a chain goes before the chain does.
    if let Some(Leads {
        scope,
        before,
        after,
    }) = &leads
    {
        change.lead(libc::NFT_MSG_DELSETELEM, scope, before.difference(after));
    }
    if let Some(theirs) = theirs {
        theirs.delete(&mut change.out, |chain| handles.contains_key(chain));
    }
    let new_rules = change.delete_rules(handles);
    change.delete_chains();
    change.delete_sets();
    change.add_chains()?;
    change.add_sets()?;
    for (rule, place) in new_rules {
        change.out.rule_at(rule, place)?;
    }
    for object in theirs.iter().flat_map(|theirs| &theirs.new) {
        change.out.extra(object);
    }
    if let Some(Leads {
        scope,
        before,
        after,
    }) = &leads
    {
        change.lead(libc::NFT_MSG_NEWSETELEM, scope, after.difference(before));
    }
    Ok(change.changed.then(|| change.out.finish()))
}

/// The sets of another type in the new ruleset, which are other sets: what refers to one has to let go of it first.
fn renewed<'a>(old: &Ruleset<'a>, new: &Ruleset<'_>) -> BTreeSet<&'a str> {
    old.sets
        .iter()
        .filter(|(name, set)| new.sets.get(*name).is_some_and(|new| new.bare != set.bare))
        .map(|(name, _)| *name)
        .collect()
}

/// From one ruleset to another.
struct Change<'c, 'a> {
    out: Encoder,
    old: &'c Ruleset<'a>,
    new: &'c Ruleset<'a>,
    /// Sets that are made anew.
    renewed: BTreeSet<&'a str>,
    /// Whether there is something to change.
    changed: bool,
}

impl<'a> Change<'_, 'a> {
    /// Whether a chain stays the same object.
    fn stays(&self, chain: &str) -> bool {
        match (self.old.chains.get(chain), self.new.chains.get(chain)) {
            (Some(old), Some(new)) => same_place(old, new),
            _ => false,
        }
    }

    /// Adds or deletes what leads to the chains of a stack.
    fn lead<'l>(
        &mut self,
        kind: libc::c_int,
        scope: &Scope,
        leads: impl Iterator<Item = &'l Lead>,
    ) {
        for (map, key, chain) in leads {
            self.changed = true;
            let element = (key.clone(), scope.name(chain));
            self.out
                .verdicts(kind, shared::TABLE, shared::named(map), &[element]);
        }
    }

    /// Deletes the rules that go; gives back those that come, each with its place.
    fn delete_rules(&mut self, handles: &Handles) -> Vec<(&'a Rule<'static>, Place)> {
        let (old, new) = (self.old, self.new);
        let mut new_rules = vec![];
        let chains: BTreeSet<&str> = old
            .chains
            .keys()
            .chain(new.chains.keys())
            .copied()
            .collect();
        for chain in chains {
            let (before, after) = (old.rules(chain), new.rules(chain));
            // What is in there is the user's, and no part of either ruleset.
            if super::extra::is_place(chain) && self.stays(chain) {
                continue;
            }
            let known = handles.get(chain).map_or(&[][..], Vec::as_slice);
            if !self.stays(chain) || known.len() != before.len() {
                // All of them: of a chain that goes, or of which something else is in force than we know.
                if !known.is_empty() {
                    self.changed = true;
                    delete_rules(&mut self.out, old.table, chain, None);
                }
                new_rules.extend(after.iter().map(|rule| (*rule, Place::Last)));
                continue;
            }
            let kept = kept(before, after, |rule| {
                self.renewed.iter().any(|set| refers_to(rule, set))
            });
            for (index, handle) in known.iter().enumerate() {
                if !kept.iter().any(|(old, _)| *old == index) {
                    delete_rules(&mut self.out, old.table, chain, Some(*handle));
                }
            }
            for (index, rule) in after.iter().enumerate() {
                if !kept.iter().any(|(_, new)| *new == index) {
                    let next = kept.iter().find(|(_, new)| *new > index);
                    let place = next.map_or(Place::Last, |(old, _)| Place::Before(known[*old]));
                    new_rules.push((*rule, place));
                }
            }
            self.changed |= kept.len() < before.len();
        }
        self.changed |= !new_rules.is_empty();
        new_rules
    }

    fn delete_chains(&mut self) {
        for chain in self.old.chains.keys() {
            if self.stays(chain) {
                continue;
            }
            self.changed = true;
            let (table, name) = self.out.place_of(self.old.table, chain);
            self.out
                .message(libc::NFT_MSG_DELCHAIN, 0, format!("chain {chain}"), |a| {
                    a.text(NFTA_CHAIN_TABLE, &table);
                    a.text(NFTA_CHAIN_NAME, &name);
                });
        }
    }

    fn delete_sets(&mut self) {
        for (name, set) in &self.old.sets {
            if self.renewed.contains(name) || !self.new.sets.contains_key(name) {
                self.changed = true;
                let (table, name) = self.out.place_of(self.old.table, name);
                self.out
                    .message(libc::NFT_MSG_DELSET, 0, set.label.clone(), |a| {
                        a.text(NFTA_SET_TABLE, &table);
                        a.text(NFTA_SET_NAME, &name);
                    });
            }
        }
    }

    fn add_chains(&mut self) -> Result<(), EncodeError> {
        for (name, chain) in &self.new.chains {
            // A policy alone is changed in place.
            if self.old.chains.get(name) != Some(chain) {
                self.changed = true;
                self.out.object(&NfListObject::Chain((*chain).clone()))?;
            }
        }
        Ok(())
    }

    /// Adds sets; of those that stay, changes the elements.
    fn add_sets(&mut self) -> Result<(), EncodeError> {
        for (name, set) in &self.new.sets {
            let before = self.old.sets.get(name);
            let Some(before) = before.filter(|_| !self.renewed.contains(name)) else {
                self.changed = true;
                self.out.object(set.whole)?;
                continue;
            };
            for (kind, these, those) in [
                (libc::NFT_MSG_DELSETELEM, before, set),
                (libc::NFT_MSG_NEWSETELEM, set, before),
            ] {
                let only = only(these.elements, those.elements);
                if !only.is_empty() {
                    self.changed = true;
                    self.out.change_elements(
                        kind,
                        &set.label,
                        (self.new.table, name),
                        (set.key, set.value),
                        set.keys,
                        &only,
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// Whether it is the same chain but for its policy.
fn same_place(one: &Chain<'_>, other: &Chain<'_>) -> bool {
    let mut one = one.clone();
    one.policy = other.policy;
    one == *other
}

/// Deletes one rule of a chain, or all.
pub(super) fn delete_rules(out: &mut Encoder, table: &str, chain: &str, handle: Option<u64>) {
    let label = match handle {
        Some(handle) => format!("rule {handle} of chain {chain}"),
        None => format!("rules of chain {chain}"),
    };
    let (table, chain) = out.place_of(table, chain);
    out.message(libc::NFT_MSG_DELRULE, 0, label, |a| {
        a.text(NFTA_RULE_TABLE, &table);
        a.text(NFTA_RULE_CHAIN, &chain);
        if let Some(handle) = handle {
            a.bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
        }
    });
}

/// The elements that only the first of two lists has.
fn only<'a>(these: &[Expression<'a>], those: &[Expression<'a>]) -> Vec<Expression<'a>> {
    let those: BTreeSet<String> = those.iter().map(json).collect();
    these
        .iter()
        .filter(|element| !those.contains(&json(element)))
        .cloned()
        .collect()
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("the crate's types have string keys only")
}

/// Whether a rule names this set.
fn refers_to(rule: &Rule<'_>, set: &str) -> bool {
    json(&rule.expr).contains(&format!("\"@{set}\""))
}

/// The pairs of places of rules that stay.
fn kept(
    before: &[&Rule<'_>],
    after: &[&Rule<'_>],
    goes: impl Fn(&Rule<'_>) -> bool,
) -> Vec<(usize, usize)> {
    let uncounted = |rules: &[&Rule<'_>]| -> Vec<Option<String>> {
        rules
            .iter()
            .map(|rule| (!goes(rule)).then(|| json(&without_counts(rule))))
            .collect()
    };
    let (before, after) = (uncounted(before), uncounted(after));
    common(before.len(), after.len(), |i, j| {
        before[i].is_some() && before[i] == after[j]
    })
}

/// The pairs of places that are the `same` in two lists of these lengths, as many as can be, in order (a longest common
/// subsequence).
pub fn common(
    before: usize,
    after: usize,
    same: impl Fn(usize, usize) -> bool,
) -> Vec<(usize, usize)> {
    // What both begin and end with needs no table.
    let shorter = before.min(after);
    let first = (0..shorter).take_while(|at| same(*at, *at)).count();
    let last = (0..shorter - first)
        .take_while(|at| same(before - 1 - at, after - 1 - at))
        .count();
    let (before_last, after_last) = (before - last, after - last);
    // length[i][j]: of the one from first + i and first + j on.
    let mut length = vec![vec![0_usize; after_last - first + 1]; before_last - first + 1];
    for i in (first..before_last).rev() {
        for j in (first..after_last).rev() {
            let (row, column) = (i - first, j - first);
            length[row][column] = if same(i, j) {
                length[row + 1][column + 1] + 1
            } else {
                length[row + 1][column].max(length[row][column + 1])
            };
        }
    }
    let mut pairs: Vec<_> = (0..first).map(|at| (at, at)).collect();
    let (mut i, mut j) = (first, first);
    while i < before_last && j < after_last {
        if same(i, j) {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[i - first + 1][j - first] >= length[i - first][j - first + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs.extend((before_last..before).zip(after_last..after));
    pairs
}

/// A rule as it is written, whatever it has counted.
fn without_counts<'a>(rule: &Rule<'a>) -> Rule<'a> {
    let mut rule = rule.clone();
    for statement in rule.expr.to_mut() {
        if let Statement::Counter(Counter::Anonymous(counts)) = statement {
            *counts = None;
        }
    }
    rule
}
