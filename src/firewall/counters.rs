//! What is in force: every table of a network namespace as the kernel tells it, and what its rules have counted.
//!
//! Two [`Listing`]s are compared by [`Listing::differences`]: a ruleset that was loaded into an empty namespace and
//! listed there is what the kernel makes of it, to the instruction, so nothing needs to be decoded.

use std::collections::BTreeMap;
use std::io;

use nftables::expr::{Expression, NamedExpression};
use nftables::schema::{NfListObject, NfObject, Nftables};
use nftables::stmt::Statement;
use serde::{Deserialize, Serialize};

use super::load::{ANSWER, Socket};
use super::ruleset::egress::granted_in;
use super::shared::{self, Scope, verdict};
use crate::netlink::*;

/// One thing of nf_tables: a table, a chain, a rule, a set or an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// Its name for people, such as `rule forward/drop-rest`.
    pub label: String,
    /// What it is, in the kernel's own bytes, without what changes by itself (handles, counters).
    pub content: Vec<u8>,
}

/// What one table holds and has counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Everything, in an order of its own; rules in the order in which they are looked at.
    pub objects: Vec<Object>,
    /// Of each rule, and of each grant that is an element of a set, by `chain/name`: packets and bytes.
    pub counters: BTreeMap<String, (u64, u64)>,
    /// Other tables of this namespace.
    pub other_tables: Vec<String>,
}

impl Listing {
    /// How this listing differs from what was meant, in words; nothing when it does not.
    #[must_use]
    pub fn differences(&self, meant: &Self) -> Vec<String> {
        let labels = |list: &Self| -> Vec<String> {
            list.objects
                .iter()
                .map(|object| object.label.clone())
                .collect()
        };
        let mut found = vec![];
        for object in &self.objects {
            if !meant.objects.contains(object) {
                let changed = meant
                    .objects
                    .iter()
                    .any(|other| other.label == object.label);
                let how = if changed {
                    "is not as meant"
                } else {
                    "should not be there"
                };
                found.push(format!("{} {how}", object.label));
            }
        }
        for object in &meant.objects {
            if !self.objects.iter().any(|other| other.label == object.label) {
                found.push(format!("{} is missing", object.label));
            }
        }
        if found.is_empty() && labels(self) != labels(meant) {
            found.push("the order of the rules is not as meant, or one is there twice".to_owned());
        }
        found
    }
}

/// The families that our tables have. Of the sidecar's there is none of a link's, so that is one too many there.
const FAMILIES: [(libc::c_int, &str); 2] =
    [(libc::NFPROTO_INET, ""), (libc::NFPROTO_NETDEV, "netdev ")];

/// What the label of an object of this family begins with; `None` for a family that none of our tables has.
fn prefix(body: &[u8]) -> Option<&'static str> {
    let family = i32::from(body.first().copied().unwrap_or_default());
    let known = FAMILIES.into_iter().find(|(number, _)| *number == family);
    known.map(|(_, prefix)| prefix)
}

/// Lists the table `inet NAME`, and `netdev NAME` if there is one, of the network namespace in which `socket` was opened.
///
/// # Errors
/// What `sendmsg(2)` or the kernel says; ENOENT is an empty listing.
///
/// `TABLE/STACK` is a stack's part of the table that stacks share, with what that has beside such parts, and `netdev` its own.
pub fn list(socket: &Socket, name: &str) -> io::Result<Listing> {
    let of = Of::parse(name);
    let mut listing = Listing::default();
    for body in dump(socket, libc::NFT_MSG_GETTABLE, libc::AF_UNSPEC, |_| {})? {
        let Some(table) = text(attributes_of(&body), NFTA_TABLE_NAME) else {
            continue;
        };
        match prefix(&body) {
            Some(prefix) if of.is(prefix, &table) => listing.objects.push(Object {
                label: format!("table {prefix}{table}"),
                content: vec![],
            }),
            _ => listing.other_tables.push(table),
        }
    }
    // The later was made, or made anew.
    listing.objects.sort();
    let mut chains = vec![];
    for body in dump(socket, libc::NFT_MSG_GETCHAIN, libc::NFPROTO_UNSPEC, |_| {})? {
        let chain = attributes_of(&body);
        let Some(prefix) = prefix(&body) else {
            continue;
        };
        let chain_name = text(chain, NFTA_CHAIN_NAME).unwrap_or_default();
        let table = text(chain, NFTA_CHAIN_TABLE).unwrap_or_default();
        if !of.is(prefix, &table) || !of.has(&chain_name) {
            continue;
        }
        let label = format!("chain {prefix}{chain_name}");
        let mut content = vec![];
        for kind in [NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE] {
            content.extend(attribute(chain, kind).unwrap_or_default());
        }
        chains.push(Object { label, content });
    }
    chains.sort();
    listing.objects.extend(chains);

    rules(socket, &of, &mut listing)?;

    let name = of.table;
    let of_table = |a: &mut Attributes<'_>| a.text(NFTA_SET_TABLE, name);
    let mut sets = vec![];
    for body in dump(socket, libc::NFT_MSG_GETSET, libc::NFPROTO_INET, of_table)? {
        let set = attributes_of(&body);
        if text(set, NFTA_SET_TABLE).as_deref() != Some(name) {
            continue;
        }
        let mut content = vec![];
        for kind in [
            NFTA_SET_FLAGS,
            NFTA_SET_KEY_TYPE,
            NFTA_SET_KEY_LEN,
            NFTA_SET_DATA_TYPE,
        ] {
            content.extend(attribute(set, kind).unwrap_or_default());
        }
        let flags = number(set, NFTA_SET_FLAGS).unwrap_or_default();
        let by_packets = flags & (NFT_SET_TIMEOUT | NFT_SET_EVAL) != 0;
        let set = text(set, NFTA_SET_NAME).unwrap_or_default();
        if of.has(&set) {
            sets.push((set, content, by_packets));
        }
    }
    sets.sort();
    for (set, mut content, by_packets) in sets {
        // What packets put into a set, and time takes out, is no part of what was meant.
        if by_packets {
            listing.objects.push(Object {
                label: format!("set {set}"),
                content,
            });
            continue;
        }
        let mut elements = vec![];
        for_each_element(socket, name, &set, |element| {
            // Of what leads to other stacks' chains nothing is asked.
            if verdict(element).is_some_and(|(_, chain)| !of.has(&chain)) {
                return;
            }
            let parts = [
                NFTA_SET_ELEM_KEY,
                NFTA_SET_ELEM_KEY_END,
                NFTA_SET_ELEM_DATA,
                NFTA_SET_ELEM_USERDATA,
            ];
            let part = |kind| attribute(element, kind).unwrap_or_default();
            elements.push(parts.map(part).concat());
            count_grant(&mut listing.counters, of.own(&set), element);
        })?;
        elements.sort();
        content.extend(elements.concat());
        listing.objects.push(Object {
            label: format!("set {set}"),
            content,
        });
    }
    Ok(listing)
}

/// Every table of the network namespace in which `socket` was opened, as `FAMILY NAME`.
///
/// # Errors
/// As [`list`].
pub fn tables(socket: &Socket) -> io::Result<Vec<String>> {
    let all = dump(socket, libc::NFT_MSG_GETTABLE, libc::AF_UNSPEC, |_| {})?;
    let tables = all.iter().map(|body| {
        let family = match i32::from(body.first().copied().unwrap_or_default()) {
            libc::NFPROTO_INET => "inet".to_owned(),
            libc::NFPROTO_IPV4 => "ip".to_owned(),
            libc::NFPROTO_IPV6 => "ip6".to_owned(),
            libc::NFPROTO_ARP => "arp".to_owned(),
            libc::NFPROTO_BRIDGE => "bridge".to_owned(),
            libc::NFPROTO_NETDEV => "netdev".to_owned(),
            other => format!("family {other}"),
        };
        let name = text(attributes_of(body), NFTA_TABLE_NAME).unwrap_or_default();
        format!("{family} {name}")
    });
    Ok(tables.collect())
}

/// What the rules and the grants of the table `inet NAME` have counted: packets and bytes, by `chain/name`. Of several with one name,
/// the sum.
///
/// # Errors
/// As [`list`].
pub fn counters(socket: &Socket, name: &str) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut listing = Listing::default();
    let of = Of::parse(name);
    rules(socket, &of, &mut listing)?;
    let name = of.table;
    let of_table = |a: &mut Attributes<'_>| a.text(NFTA_SET_TABLE, name);
    for body in dump(socket, libc::NFT_MSG_GETSET, libc::NFPROTO_INET, of_table)? {
        let set = attributes_of(&body);
        let (Some(table), Some(set)) = (text(set, NFTA_SET_TABLE), text(set, NFTA_SET_NAME)) else {
            continue;
        };
        let own = of.own(&set);
        if table == name && of.has(&set) && granted_in(own).is_some() {
            let count = |element: &[u8]| count_grant(&mut listing.counters, own, element);
            for_each_element(socket, name, &set, count)?;
        }
    }
    Ok(listing.counters)
}

/// What [`counters`] tells of one table of ours, in the order in which a packet meets it: of a rule itself, then of the
/// grants in its set.
pub fn counted(rules: &Nftables<'_>) -> Vec<String> {
    let objects = || {
        rules.objects.iter().filter_map(|object| match object {
            NfObject::ListObject(object) => Some(object),
            NfObject::CmdObject(_) => None,
        })
    };
    let mut grants: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for object in objects() {
        let NfListObject::Set(set) = object else {
            continue;
        };
        let elements = set.elem.as_deref().unwrap_or_default().iter();
        let names = elements.filter_map(|element| match element {
            Expression::Named(NamedExpression::Elem(element)) => element.comment.as_deref(),
            _ => None,
        });
        grants.insert(format!("@{}", set.name), names.collect());
    }
    let mut all = vec![];
    for object in objects() {
        let NfListObject::Rule(rule) = object else {
            continue;
        };
        let path = |name: &str| format!("{}/{name}", rule.chain);
        all.push(path(rule.comment.as_deref().unwrap_or_default()));
        for statement in rule.expr.iter() {
            if let Statement::Match(comparison) = statement
                && let Expression::String(set) = &comparison.right
            {
                let its = grants.get(set.as_ref()).into_iter().flatten();
                all.extend(its.map(|name| path(name)));
            }
        }
    }
    all
}

/// What is asked of: a table, or one stack's part of one.
struct Of<'n> {
    table: &'n str,
    part: Option<Scope>,
}

impl<'n> Of<'n> {
    fn parse(name: &'n str) -> Self {
        match shared::part(name) {
            Some((table, part)) => Self {
                table,
                part: Some(part),
            },
            None => Self {
                table: name,
                part: None,
            },
        }
    }

    /// Whether it is this table; the family is as [`prefix`] has it.
    fn is(&self, family: &str, table: &str) -> bool {
        match &self.part {
            Some(part) if !family.is_empty() => table == part.netdev(),
            _ => table == self.table,
        }
    }

    /// Whether a chain or a set of the table is wanted: it belongs to this stack, or to none.
    fn has(&self, name: &str) -> bool {
        match &self.part {
            Some(part) => part.own(name).is_some() || !shared::is_of_stack(name),
            None => true,
        }
    }

    /// What it is called in the stack's own table.
    fn own<'m>(&self, name: &'m str) -> &'m str {
        self.part
            .as_ref()
            .and_then(|part| part.own(name))
            .unwrap_or(name)
    }
}

/// Reads a set's elements, each as its attributes.
pub(super) fn for_each_element(
    socket: &Socket,
    table: &str,
    set: &str,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let of_set = |a: &mut Attributes<'_>| {
        a.text(NFTA_SET_ELEM_LIST_TABLE, table);
        a.text(NFTA_SET_ELEM_LIST_SET, set);
    };
    for body in dump(socket, libc::NFT_MSG_GETSETELEM, libc::NFPROTO_INET, of_set)? {
        let list = attribute(attributes_of(&body), NFTA_SET_ELEM_LIST_ELEMENTS);
        let mut list = list.unwrap_or_default();
        while let Some((element, rest)) = next(list) {
            each(element);
            list = rest;
        }
    }
    Ok(())
}

/// Adds what a grant has counted; another element has nothing to add.
fn count_grant(counters: &mut BTreeMap<String, (u64, u64)>, set: &str, element: &[u8]) {
    let comment = attribute(element, NFTA_SET_ELEM_USERDATA).and_then(comment);
    let counter = attribute(element, NFTA_SET_ELEM_EXPR)
        .and_then(|expression| attribute(expression, NFTA_EXPR_DATA));
    if let (Some(chain), Some(comment), Some(counter)) = (granted_in(set), comment, counter) {
        add_counter(counters, format!("{chain}/{comment}"), counter);
    }
}

fn add_counter(counters: &mut BTreeMap<String, (u64, u64)>, path: String, counter: &[u8]) {
    let counted = |kind| {
        attribute(counter, kind)
            .and_then(|bytes| bytes.first_chunk().copied())
            .map_or(0, u64::from_be_bytes)
    };
    let entry = counters.entry(path).or_default();
    entry.0 += counted(NFTA_COUNTER_PACKETS);
    entry.1 += counted(NFTA_COUNTER_BYTES);
}

fn rules(socket: &Socket, of: &Of<'_>, listing: &mut Listing) -> io::Result<()> {
    let mut rules = vec![];
    let mut bodies = vec![];
    // Of two tables of that name the kernel would tell of the first only (nf_tables_dump_rules()).
    for (family, prefix) in FAMILIES {
        let table = match &of.part {
            Some(part) if !prefix.is_empty() => part.netdev(),
            _ => of.table.to_owned(),
        };
        let of_table = |a: &mut Attributes<'_>| a.text(NFTA_RULE_TABLE, &table);
        let found = dump(socket, libc::NFT_MSG_GETRULE, family, of_table)?;
        bodies.extend(found.into_iter().map(|body| (table.clone(), body)));
    }
    for (table, body) in bodies {
        let rule = attributes_of(&body);
        let chain = text(rule, NFTA_RULE_CHAIN).unwrap_or_default();
        if text(rule, NFTA_RULE_TABLE) != Some(table) || !of.has(&chain) {
            continue;
        }
        let comment = attribute(rule, NFTA_RULE_USERDATA).and_then(comment);
        let name = comment.as_deref().unwrap_or("(unnamed)");
        let path = format!("{}/{name}", of.own(&chain));
        let mut content = vec![];
        let mut expressions = attribute(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
        while let Some((expression, rest)) = next(expressions) {
            let what = text(expression, NFTA_EXPR_NAME).unwrap_or_default();
            content.extend(what.as_bytes());
            content.push(0);
            let data = attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
            if what == "counter" {
                add_counter(&mut listing.counters, path.clone(), data);
            } else {
                content.extend(data);
            }
            expressions = rest;
        }
        let label = format!("rule {chain}/{name}");
        rules.push((chain, Object { label, content }));
    }
    // Chains are in the order in which they were made, which says nothing.
    rules.sort_by(|(one, _), (other, _)| one.cmp(other));
    listing
        .objects
        .extend(rules.into_iter().map(|(_, rule)| rule));
    Ok(())
}

/// What follows the `struct nfgenmsg`.
pub(super) fn attributes_of(body: &[u8]) -> &[u8] {
    body.get(FAMILY_HEADER..).unwrap_or_default()
}

/// The value of the first attribute, and what follows it.
pub(super) fn next(attributes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [a, b, _, _] = *attributes.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([a, b]));
    let value = attributes.get(4..length)?;
    Some((
        value,
        attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default(),
    ))
}

/// A rule's comment in libnftnl's TLVs: kind 0, length, text with its NUL.
pub(super) fn comment(userdata: &[u8]) -> Option<String> {
    let [0, length, rest @ ..] = userdata else {
        return None;
    };
    let text = rest.get(..usize::from(*length))?;
    let text = text.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Asks for all objects of a kind; the body of each answer.
pub(super) fn dump<R>(
    socket: &Socket,
    kind: libc::c_int,
    family: libc::c_int,
    attributes: impl FnOnce(&mut Attributes<'_>) -> R,
) -> io::Result<Vec<Vec<u8>>> {
    dump_of(socket, nft(kind), family, attributes)
}

/// As [`dump`], of any of netfilter's subsystems: `kind` names that, too.
pub(super) fn dump_of<R>(
    socket: &Socket,
    kind: libc::c_int,
    family: libc::c_int,
    attributes: impl FnOnce(&mut Attributes<'_>) -> R,
) -> io::Result<Vec<Vec<u8>>> {
    let mut request = vec![];
    message(
        &mut request,
        (kind, libc::NLM_F_DUMP, 0),
        (family, 0),
        attributes,
    );
    loop {
        socket.0.send(&request, 0)?;
        if let Some(found) = answers(socket)? {
            return Ok(found);
        }
    }
}

/// Reads up to the dump's end; `None` if what was asked for has changed meanwhile (`NLM_F_DUMP_INTR`), so that it is to be
/// asked for again.
fn answers(socket: &Socket) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut found = vec![];
    let mut interrupted = false;
    loop {
        let mut buffer = Vec::with_capacity(ANSWER);
        socket.0.recv(&mut buffer, 0)?;
        for message in messages(&buffer) {
            interrupted |= message.flags & libc::NLM_F_DUMP_INTR != 0;
            match message.kind {
                libc::NLMSG_DONE => return Ok((!interrupted).then_some(found)),
                libc::NLMSG_ERROR => match message.error() {
                    0 => {}
                    libc::ENOENT => return Ok(Some(found)),
                    number => return Err(io::Error::from_raw_os_error(number)),
                },
                _ => found.push(message.body.to_vec()),
            }
        }
    }
}
