//! The user's own rules (`sidecar.rules`): where they are called, and how they get from where nft has made them into ours.
//!
//! # Theory of operation
//!
//! nft is not run where the rules are to be in force. In an empty network namespace, made for that and gone afterwards,
//! our own rules are loaded, nft adds the user's file to the same table, and the table is read back ([`snapshot`]): what is
//! there now and was not before is the user's ([`added`]), in the kernel's own bytes. These become part of the one batch
//! that the sidecar loads ([`super::sidecar_batch`]). So what the file may do is judged by what came of it and not by its
//! words; nft sees nothing of a running stack; and there is one transaction, at the start, at a restart and at a change.
//!
//! At a live change of them ([`ExtraChange`]) the user's objects alone are deleted and made anew, in one transaction: our
//! chains, which are hooked, stay the same objects, and the kernel looks at the user's as they were or as they will be.
//!
//! The file's rules are in three chains, and our base chains jump there:
//!
//! - `before`: first in `forward`, each packet of each connection. `guard` has had its say by then, and what it drops
//!   stays dropped: no rule of the user's can open what keeps apps and uplink from spoofing or bypassing.
//! - `after`: right before `drop-rest` at the end of `forward`: what nothing else has accepted or dropped.
//! - `nat`: first in `prerouting`, the first packet of each connection: from the uplink, and, with egress, from an app.

use std::io;

use nftables::schema::{Chain, NfListObject, NfObject, Nftables, Rule};
use nftables::stmt::{AnonymousCounter, Counter, JumpTarget, Statement};
use nftables::types::NfFamily;

use serde::{Deserialize, Serialize};

use super::counters::{attributes_of, comment, dump, next};
use super::encode::Encoder;
use super::{SIDECAR_TABLE, Socket, logging};
use crate::netlink::*;
use crate::plan::ExtraObject;

/// The table's name, in every kind of message.
pub(super) const TABLE: u16 = 1;

/// Each place: the user's chain, the base chain that jumps there, and the rule before which it does.
const PLACES: [(&str, &str, &str); 3] = [
    ("before", "forward", ""),
    ("after", "forward", "drop-rest"),
    ("nat", "prerouting", ""),
];

/// Whether a chain is one of the places.
pub(super) fn is_place(chain: &str) -> bool {
    PLACES.iter().any(|(place, ..)| *place == chain)
}

/// The user's objects that are in force, and those that shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraChange {
    /// What has to be deleted by name: chains, sets, objects.
    pub(super) old: Vec<ExtraObject>,
    /// All that is to be there instead.
    pub(super) new: Vec<ExtraObject>,
}

impl ExtraChange {
    /// What lies between what nft has made of two files, both as they were or are to be loaded; `None` if that is nothing.
    #[must_use]
    pub fn between(old: &[ExtraObject], new: &[ExtraObject]) -> Option<Self> {
        if old == new {
            return None;
        }
        let (mut old, new) = (old.to_vec(), new.to_vec());
        old.retain(|object| {
            // Rules go with a chain's content, elements and sets without a name with what they are of.
            !matches!(
                object.kind,
                libc::NFT_MSG_NEWRULE | libc::NFT_MSG_NEWSETELEM
            ) && !is_anonymous(object)
        });
        Some(Self { old, new })
    }

    /// Deletes what was the user's, in the order in which one holds the other; `filled` says which chains have rules.
    pub(super) fn delete(&self, out: &mut Encoder, filled: impl Fn(&str) -> bool) {
        let named = |kind: libc::c_int, name: u16| {
            let objects = self.old.iter().filter(move |object| object.kind == kind);
            objects.filter_map(move |object| Some((object, text(&object.attributes, name)?)))
        };
        let chains = || named(libc::NFT_MSG_NEWCHAIN, NFTA_CHAIN_NAME);
        let places = PLACES.iter().map(|(place, ..)| (*place).to_owned());
        for chain in chains().map(|(_, name)| name).chain(places) {
            if filled(&chain) {
                super::update::delete_rules(out, SIDECAR_TABLE, &chain, None);
            }
        }
        for (object, name) in named(libc::NFT_MSG_NEWSET, NFTA_SET_NAME) {
            out.message(libc::NFT_MSG_DELSET, 0, object.label.clone(), |a| {
                a.text(NFTA_SET_TABLE, SIDECAR_TABLE);
                a.text(NFTA_SET_NAME, &name);
            });
        }
        for (object, name) in chains() {
            out.message(libc::NFT_MSG_DELCHAIN, 0, object.label.clone(), |a| {
                a.text(NFTA_CHAIN_TABLE, SIDECAR_TABLE);
                a.text(NFTA_CHAIN_NAME, &name);
            });
        }
        for (object, name) in named(libc::NFT_MSG_NEWOBJ, NFTA_OBJ_NAME) {
            let kind = attribute(&object.attributes, NFTA_OBJ_TYPE).unwrap_or_default();
            out.message(libc::NFT_MSG_DELOBJ, 0, object.label.clone(), |a| {
                a.text(TABLE, SIDECAR_TABLE);
                a.text(NFTA_OBJ_NAME, &name);
                a.bytes(NFTA_OBJ_TYPE, kind);
            });
        }
    }
}

/// Whether it is a set that a rule brings along.
fn is_anonymous(object: &ExtraObject) -> bool {
    object.kind == libc::NFT_MSG_NEWSET
        && attribute(&object.attributes, NFTA_SET_FLAGS)
            .and_then(|bytes| bytes.first_chunk().copied())
            .is_some_and(|bytes| u32::from_be_bytes(bytes) & NFT_SET_ANONYMOUS != 0)
}

/// Adds the places to our rules; the chains are empty.
pub(super) fn with_places(rules: &Nftables<'static>) -> Nftables<'static> {
    let mut objects = rules.objects.to_vec();
    let is_chain =
        |object: &NfObject<'_>| matches!(object, NfObject::ListObject(NfListObject::Chain(_)));
    let chains = objects
        .iter()
        .rposition(is_chain)
        .map_or(0, |last| last + 1);
    for (name, ..) in PLACES.iter().rev() {
        let chain = Chain {
            family: NfFamily::INet,
            table: SIDECAR_TABLE.into(),
            name: (*name).into(),
            ..Chain::default()
        };
        objects.insert(chains, NfObject::ListObject(NfListObject::Chain(chain)));
    }
    for (target, base, rule) in PLACES {
        let at = objects.iter().position(|object| {
            matches!(object, NfObject::ListObject(NfListObject::Rule(it))
                if it.chain == base && (rule.is_empty() || it.comment.as_deref() == Some(rule)))
        });
        objects.insert(at.unwrap_or(objects.len()), jump(base, target));
    }
    Nftables {
        objects: objects.into(),
    }
}

fn jump(from: &'static str, to: &'static str) -> NfObject<'static> {
    let counter = Counter::Anonymous(Some(AnonymousCounter {
        packets: Some(0),
        bytes: Some(0),
    }));
    let jump = Statement::Jump(JumpTarget { target: to.into() });
    NfObject::ListObject(NfListObject::Rule(Rule {
        family: NfFamily::INet,
        table: SIDECAR_TABLE.into(),
        chain: from.into(),
        expr: vec![Statement::Counter(counter), jump].into(),
        comment: Some(format!("jump-{to}").into()),
        ..Rule::default()
    }))
}

/// Everything in this namespace's tables, as far as it matters here.
#[derive(Debug)]
pub struct Snapshot {
    objects: Vec<ExtraObject>,
    /// Tables that are not ours.
    others: Vec<String>,
    /// The hook of a chain that has one.
    hooked: Vec<String>,
    /// Flowtables, whose packets meet no rule.
    flowtables: bool,
}

/// Reads the table of the sidecar back.
///
/// # Errors
/// What `sendmsg(2)` or the kernel says.
pub fn snapshot(socket: &Socket) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot {
        objects: vec![],
        others: vec![],
        hooked: vec![],
        flowtables: false,
    };
    for body in dump(socket, libc::NFT_MSG_GETTABLE, libc::AF_UNSPEC, |_| {})? {
        let family = body.first().copied().unwrap_or_default();
        let name = text(attributes_of(&body), TABLE).unwrap_or_default();
        if (i32::from(family), name.as_str()) != (libc::NFPROTO_INET, SIDECAR_TABLE) {
            snapshot.others.push(name);
        }
    }
    let ours = |body: &[u8]| text(attributes_of(body), TABLE).as_deref() == Some(SIDECAR_TABLE);
    let of_table = |out: &mut Attributes<'_>| out.text(TABLE, SIDECAR_TABLE);
    for body in dump(socket, libc::NFT_MSG_GETCHAIN, libc::NFPROTO_INET, |_| {})? {
        let chain = attributes_of(&body);
        if !ours(&body) {
            continue;
        }
        let name = text(chain, NFTA_CHAIN_NAME).unwrap_or_default();
        if attribute(chain, NFTA_CHAIN_HOOK).is_some() {
            snapshot.hooked.push(name.clone());
        }
        snapshot.add(libc::NFT_MSG_NEWCHAIN, format!("chain {name}"), chain);
    }
    for body in dump(socket, libc::NFT_MSG_GETOBJ, libc::NFPROTO_INET, of_table)? {
        if ours(&body) {
            let object = attributes_of(&body);
            let name = text(object, NFTA_OBJ_NAME).unwrap_or_default();
            snapshot.add(libc::NFT_MSG_NEWOBJ, format!("object {name}"), object);
        }
    }
    let mut sets = vec![];
    for body in dump(socket, libc::NFT_MSG_GETSET, libc::NFPROTO_INET, of_table)? {
        if ours(&body) {
            let set = attributes_of(&body);
            let name = text(set, NFTA_SET_NAME).unwrap_or_default();
            snapshot.add(libc::NFT_MSG_NEWSET, format!("set {name}"), set);
            sets.push(name);
        }
    }
    for name in sets {
        let of_set = |out: &mut Attributes<'_>| {
            out.text(NFTA_SET_ELEM_LIST_TABLE, SIDECAR_TABLE);
            out.text(NFTA_SET_ELEM_LIST_SET, &name);
        };
        for body in dump(socket, libc::NFT_MSG_GETSETELEM, libc::NFPROTO_INET, of_set)? {
            let label = format!("elements of set {name}");
            snapshot.add(libc::NFT_MSG_NEWSETELEM, label, attributes_of(&body));
        }
    }
    for body in dump(socket, libc::NFT_MSG_GETRULE, libc::NFPROTO_INET, of_table)? {
        if ours(&body) {
            let rule = attributes_of(&body);
            let chain = text(rule, NFTA_RULE_CHAIN).unwrap_or_default();
            let name = attribute(rule, NFTA_RULE_USERDATA).and_then(comment);
            let name = name.as_deref().unwrap_or("(unnamed)");
            snapshot.add(libc::NFT_MSG_NEWRULE, format!("rule {chain}/{name}"), rule);
        }
    }
    // A kernel without them has none.
    let flowtables = dump(socket, NFT_MSG_GETFLOWTABLE, libc::NFPROTO_INET, |_| {});
    snapshot.flowtables = flowtables.is_ok_and(|list| list.iter().any(|body| ours(body)));
    Ok(snapshot)
}

impl Snapshot {
    fn add(&mut self, kind: libc::c_int, label: String, attributes: &[u8]) {
        let attributes = kept(kind, attributes, true);
        // A set without elements has an answer all the same.
        let none = kind == libc::NFT_MSG_NEWSETELEM
            && attribute(&attributes, NFTA_SET_ELEM_LIST_ELEMENTS).is_none();
        if !none {
            self.objects.push(ExtraObject {
                kind,
                label,
                attributes,
            });
        }
    }
}

/// What `now` has that `before`, our own rules alone, had not.
///
/// # Errors
/// What the user's rules must not do, in words: change ours, hook themselves, bypass rules, or use another table.
pub fn added(before: &Snapshot, now: &Snapshot) -> Result<Vec<ExtraObject>, String> {
    if let Some(table) = now.others.first() {
        return Err(format!(
            "it makes the table `{table}`; expected are chains and sets alone, which go into a table of lrpns"
        ));
    }
    if let Some(changed) = before.objects.iter().find(|own| !now.objects.contains(own)) {
        return Err(format!(
            "it changes or deletes `{}`, which is lrpns' own; expected are additions, such as `chain before {{ ... }}`",
            changed.label
        ));
    }
    if let Some(hooked) = now.hooked.iter().find(|name| !before.hooked.contains(name)) {
        return Err(format!(
            "`chain {hooked}` hooks itself; expected is a chain without `type ... hook ...`, called from `before`, `after` or `nat`"
        ));
    }
    if now.flowtables {
        return Err(
            "it makes a flowtable, whose packets meet no rule; expected are rules".to_owned(),
        );
    }
    let added: Vec<ExtraObject> = now
        .objects
        .iter()
        .filter(|object| !before.objects.contains(object))
        .cloned()
        .map(with_a_reader)
        .collect();
    let chain_of = |rule: &ExtraObject| text(&rule.attributes, NFTA_RULE_CHAIN).unwrap_or_default();
    let own_chain = |chain: &str| {
        let label = format!("chain {chain}");
        before.objects.iter().any(|own| own.label == label) && !is_place(chain)
    };
    for object in &added {
        if object.kind == libc::NFT_MSG_NEWRULE && own_chain(&chain_of(object)) {
            return Err(format!(
                "it adds a rule to `chain {}`, which is lrpns' own; expected is a rule in `before`, `after`, `nat` or a chain of your own",
                chain_of(object)
            ));
        }
        if object.kind == libc::NFT_MSG_NEWSETELEM
            && before
                .objects
                .iter()
                .any(|own| format!("elements of {}", own.label) == object.label)
        {
            return Err(format!("it adds {}, which is lrpns' own", object.label));
        }
    }
    Ok(added)
}

/// The same rule, but what it would log to the kernel's log, which a network namespace has none of, it logs for the traffic
/// log. What it logs to a group of its own, or for audit, is somebody else's.
fn with_a_reader(object: ExtraObject) -> ExtraObject {
    if object.kind != libc::NFT_MSG_NEWRULE {
        return object;
    }
    let attributes = without(&object.attributes, |kind, list| {
        (kind == NFTA_RULE_EXPRESSIONS).then(|| each_log_with_a_reader(list))
    });
    ExtraObject {
        attributes,
        ..object
    }
}

fn each_log_with_a_reader(mut list: &[u8]) -> Vec<u8> {
    /// `LOGLEVEL_AUDIT`, linux/netfilter/nf_tables.h: `NFT_LOGLEVEL_AUDIT`.
    const AUDIT: u32 = 8;
    let mut out = vec![];
    while let Some((expression, rest)) = next(list) {
        let number = u16::from_ne_bytes([list[2], list[3]]);
        let is_log = text(expression, NFTA_EXPR_NAME).is_some_and(|name| name == "log");
        let inner = without(expression, |kind, data| {
            let level = attribute(data, NFTA_LOG_LEVEL).and_then(|level| level.first_chunk());
            let audit = level.is_some_and(|level| u32::from_be_bytes(*level) == AUDIT);
            let theirs = audit || attribute(data, NFTA_LOG_GROUP).is_some();
            (is_log && kind == NFTA_EXPR_DATA && !theirs).then(|| {
                let prefix = text(data, NFTA_LOG_PREFIX).unwrap_or_default();
                let mut log = vec![];
                let mut attributes = Attributes(&mut log);
                attributes.text(
                    NFTA_LOG_PREFIX,
                    &format!(
                        "{}{}",
                        logging::OWN_PREFIX,
                        prefix.trim_end_matches([' ', ':'])
                    ),
                );
                attributes.bytes(NFTA_LOG_GROUP, &logging::OWN.to_be_bytes());
                log
            })
        });
        Attributes(&mut out).bytes(number, &inner);
        list = rest;
    }
    out
}

/// Those attributes of an object that make it what it is: without the table, without what the kernel numbers and counts.
/// `compare` keeps what is needed to see a change too: where a base chain is hooked.
pub(super) fn kept(kind: libc::c_int, mut attributes: &[u8], compare: bool) -> Vec<u8> {
    let wanted: &[u16] = match kind {
        libc::NFT_MSG_NEWCHAIN if compare => &[
            NFTA_CHAIN_NAME,
            NFTA_CHAIN_HOOK,
            NFTA_CHAIN_POLICY,
            NFTA_CHAIN_TYPE,
            NFTA_CHAIN_USERDATA,
        ],
        libc::NFT_MSG_NEWCHAIN => &[NFTA_CHAIN_NAME, NFTA_CHAIN_USERDATA],
        libc::NFT_MSG_NEWOBJ => &[NFTA_OBJ_NAME, 3, 4, 8],
        libc::NFT_MSG_NEWSET => &[NFTA_SET_NAME, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18],
        libc::NFT_MSG_NEWSETELEM => &[NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS],
        libc::NFT_MSG_NEWRULE => &[
            NFTA_RULE_CHAIN,
            NFTA_RULE_EXPRESSIONS,
            5,
            NFTA_RULE_USERDATA,
        ],
        _ => &[],
    };
    let mut out = vec![];
    while let Some((value, rest)) = next(attributes) {
        let number = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let plain = number & libc::NLA_TYPE_MASK as u16;
        if kind == libc::NFT_MSG_NEWSETELEM && plain == NFTA_SET_ELEM_LIST_ELEMENTS {
            let elements = without_expiration(value);
            if !elements.is_empty() {
                Attributes(&mut out).bytes(number, &elements);
            }
        } else if kind == libc::NFT_MSG_NEWRULE && plain == NFTA_RULE_EXPRESSIONS {
            Attributes(&mut out).bytes(number, &without_no_timeout(value));
        } else if wanted.contains(&plain) {
            Attributes(&mut out).bytes(number, value);
        }
        attributes = rest;
    }
    out
}

/// A list of expressions, in which those that add to a set don't say that it is for no time: the kernel says so of every
/// one, and takes it of those sets alone whose elements have a timeout (`nft_dynset_dump`, `nft_dynset_init`).
fn without_no_timeout(mut list: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    while let Some((expression, rest)) = next(list) {
        let number = u16::from_ne_bytes([list[2], list[3]]);
        let adds = text(expression, NFTA_EXPR_NAME).is_some_and(|name| name == "dynset");
        let inner = without(expression, |kind, data| {
            let data = (adds && kind == NFTA_EXPR_DATA).then_some(data)?;
            Some(without(data, |kind, value| {
                let none = kind == NFTA_DYNSET_TIMEOUT && value.iter().all(|byte| *byte == 0);
                none.then(Vec::new)
            }))
        });
        Attributes(&mut out).bytes(number, &inner);
        list = rest;
    }
    out
}

/// The same attributes, but for those that `change` makes something else of; empty, they are left out.
fn without(mut attributes: &[u8], change: impl Fn(u16, &[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut out = vec![];
    while let Some((value, rest)) = next(attributes) {
        let number = u16::from_ne_bytes([attributes[2], attributes[3]]);
        match change(number & libc::NLA_TYPE_MASK as u16, value) {
            Some(changed) if changed.is_empty() => {}
            Some(changed) => Attributes(&mut out).bytes(number, &changed),
            None => Attributes(&mut out).bytes(number, value),
        }
        attributes = rest;
    }
    out
}

/// A list of elements, each without the time that is left to it: it begins anew with each load.
fn without_expiration(mut list: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    while let Some((element, rest)) = next(list) {
        let number = u16::from_ne_bytes([list[2], list[3]]);
        let inner = without(element, |kind, _| {
            (kind == NFTA_SET_ELEM_EXPIRATION).then(Vec::new)
        });
        Attributes(&mut out).bytes(number, &inner);
        list = rest;
    }
    out
}
