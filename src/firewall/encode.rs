//! The `nftables` crate's values to one nfnetlink batch: exactly the subset that [`super::ruleset`] uses, and an error
//! that names whatever else it is given. Nothing is skipped.
//!
//! How the kernel sees it: include/uapi/linux/netfilter/nf_tables.h. What `nft` needs to print a rule again as it was
//! written: types of keys and values, comments as libnftnl's TLV "userdata", and the same instructions as nft's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftables::expr::{
    BinaryOperation, CT, Expression, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadBase, PayloadRaw, Prefix, SocketAttr,
};
use nftables::schema::{
    Chain, NfListObject, NfObject, Nftables, Rule, SetFlag, SetType, SetTypeValue,
};
use nftables::stmt::{
    Counter, JumpTarget, Limit, Mangle, Match, NAT, NATFamily, Operator, Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use crate::netlink::*;
use crate::plan::{ExtraObject, Plan};

use super::shared::Scope;

/// Why a ruleset can't be encoded. Rulesets of this crate always can; a test says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It uses something that this encoder doesn't know.
    #[error("encode {object}: {what} is not supported")]
    Unsupported {
        /// The object, such as `rule forward/accept-published`.
        object: String,
        /// The part that is unknown, as nft's JSON.
        what: String,
    },
    /// A value can't be of the type that its place asks for.
    #[error("encode {object}: {value} is no {kind}")]
    Value {
        /// The object, such as `elements of map publish_port`.
        object: String,
        /// The value, as nft's JSON.
        value: String,
        /// The type, by nft's name.
        kind: &'static str,
    },
}

/// One transaction as nfnetlink bytes, and what each of its messages is about. Made by [`encode`], sent by
/// [`super::transact`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Batch {
    #[serde(with = "crate::plan::hexadecimal")]
    pub(super) bytes: Vec<u8>,
    /// By sequence number.
    pub(super) labels: Vec<String>,
}

impl Batch {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The sequence number of the one message that asks for an acknowledgement: the last but the batch's end.
    pub(super) fn last(&self) -> u32 {
        self.labels.len() as u32 - 2
    }
}

/// Makes the transaction that puts `rules` in the place of whatever their tables hold now.
///
/// # Errors
/// [`EncodeError`] if `rules` use more of nftables than this crate's rules do.
pub fn encode(rules: &Nftables<'_>) -> Result<Batch, EncodeError> {
    encode_with(rules, 0, &[])
}

/// Like [`encode`], but the tables belong to the socket that loads them (`NFT_TABLE_F_OWNER`): no other process can
/// change them, and they vanish with it. Replacing them must go through the same socket, and by this function.
///
/// # Errors
/// As [`encode`].
pub fn encode_owned(rules: &Nftables<'_>) -> Result<Batch, EncodeError> {
    encode_with(rules, NFT_TABLE_F_OWNER, &[])
}

/// As [`encode`], for several tables at once: all of them or none.
///
/// # Errors
/// As [`encode`].
pub fn encode_together(rules: &[&Nftables<'_>]) -> Result<Batch, EncodeError> {
    encode_all(rules, 0, &[])
}

/// The transaction that takes away a table of this name, if there is one.
#[must_use]
pub fn encode_without(table: &str) -> Batch {
    let mut encoder = Encoder::begin(0);
    encoder.table("inet", table);
    encoder.no_table(libc::NFPROTO_INET, table);
    encoder.finish()
}

/// The transaction that makes an empty table of ours: what a test of who may change rules sends.
#[must_use]
pub fn an_empty_table() -> Batch {
    let table = nftables::schema::Table {
        family: NfFamily::INet,
        name: "lrpns-probe".into(),
        ..Default::default()
    };
    encode(&Nftables {
        objects: vec![NfObject::ListObject(NfListObject::Table(table))].into(),
    })
    .expect("a table is encoded")
}

/// The transaction that puts all rules of a plan's sidecar in the place of what is there: ours, and what nft has made of
/// the user's, `theirs`.
///
/// # Errors
/// As [`encode`].
pub fn sidecar_batch(plan: &Plan, theirs: &[ExtraObject]) -> Result<Batch, EncodeError> {
    encode_with(&super::sidecar_rules(plan), 0, theirs)
}

fn encode_with(
    rules: &Nftables<'_>,
    table_flags: u32,
    extra: &[ExtraObject],
) -> Result<Batch, EncodeError> {
    encode_all(&[rules], table_flags, extra)
}

fn encode_all(
    rules: &[&Nftables<'_>],
    table_flags: u32,
    extra: &[ExtraObject],
) -> Result<Batch, EncodeError> {
    let mut encoder = Encoder::begin(table_flags);
    for object in rules.iter().flat_map(|rules| rules.objects.iter()) {
        match object {
            NfObject::ListObject(object) => encoder.object(object)?,
            NfObject::CmdObject(command) => return Err(unsupported("ruleset", command)),
        }
    }
    for object in extra {
        encoder.extra(object);
    }
    Ok(encoder.finish())
}

/// Where the low byte of a message's flags is, `struct nlmsghdr`.
const FLAGS: usize = if cfg!(target_endian = "little") { 6 } else { 7 };

/// An attribute's length has 16 bits, and an element of the widest key and value that there is (16 bytes each) takes 44.
const ELEMENTS_PER_MESSAGE: usize = 1000;
/// As that: two keys of 36 bytes and a comment of 128 take 228.
const NAMED_PER_MESSAGE: usize = 250;

/// Where a rule goes in its chain.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// At its end.
    Last,
    /// Before the rule with this handle.
    Before(u64),
}

/// A batch that is being written; `super::update` writes others with it.
pub(super) struct Encoder {
    batch: Batch,
    /// Where the last message begins.
    last: usize,
    sets: u32,
    table_flags: u32,
    /// Of the table that messages are about.
    family: libc::c_int,
    /// Whose part of a table that several share is written: see [`super::shared`].
    scope: Option<Scope>,
}

impl Encoder {
    /// As [`Encoder::begin`], for one stack's part of a table that there is already.
    pub(super) fn begin_in(scope: Scope) -> Self {
        Encoder {
            scope: Some(scope),
            ..Self::begin(0)
        }
    }

    /// What a table of this name is called where it is written to.
    fn table_name(&self, name: &str) -> String {
        match &self.scope {
            Some(_) => super::shared::TABLE.to_owned(),
            None => name.to_owned(),
        }
    }

    /// The same of a chain or a set.
    fn own_name(&self, name: &str) -> String {
        match &self.scope {
            Some(scope) => scope.name(name),
            None => name.to_owned(),
        }
    }

    /// Where a chain or a set of this table is written to.
    pub(super) fn place_of(&self, table: &str, name: &str) -> (String, String) {
        (self.table_name(table), self.own_name(name))
    }

    pub(super) fn begin(table_flags: u32) -> Self {
        let mut encoder = Encoder {
            batch: Batch {
                bytes: Vec::new(),
                labels: Vec::new(),
            },
            last: 0,
            sets: 0,
            table_flags,
            family: libc::NFPROTO_INET,
            scope: None,
        };
        encoder.edge(libc::NFNL_MSG_BATCH_BEGIN, "the batch");
        encoder
    }

    pub(super) fn finish(mut self) -> Batch {
        // The kernel answers in the batch's order and reports every error unasked, so the answer to this message is the
        // last.
        self.batch.bytes[self.last + FLAGS] |= libc::NLM_F_ACK as u8;
        self.edge(libc::NFNL_MSG_BATCH_END, "the batch's end");
        self.batch
    }

    pub(super) fn object(&mut self, object: &NfListObject<'_>) -> Result<(), EncodeError> {
        match object {
            NfListObject::Table(table) => {
                let (number, name) = known(&format!("table {}", table.name), table.family)?;
                self.family = number;
                if self.scope.is_none() {
                    self.table(name, &table.name);
                }
                Ok(())
            }
            NfListObject::Chain(chain) => self.chain(chain),
            NfListObject::Rule(rule) => self.rule(rule),
            NfListObject::Set(set) => {
                let object = format!("set {}", set.name);
                only_inet(&object, set.family)?;
                self.family = libc::NFPROTO_INET;
                if (&set.policy, set.gc_interval, &set.comment) != (&None, None, &None) {
                    return Err(unsupported(&object, set));
                }
                let keys = keys(set).ok_or_else(|| unsupported(&object, set))?;
                let elements = set.elem.as_deref().unwrap_or_default();
                self.set(
                    &object,
                    &set.table,
                    &set.name,
                    (&set.set_type, None),
                    keys,
                    elements,
                )
            }
            NfListObject::Map(map) => {
                let object = format!("map {}", map.name);
                only_inet(&object, map.family)?;
                self.family = libc::NFPROTO_INET;
                if !is_plain(map) {
                    return Err(unsupported(&object, map));
                }
                let elements = map.elem.as_deref().unwrap_or_default();
                self.set(
                    &object,
                    &map.table,
                    &map.name,
                    (&map.set_type, Some(&map.map)),
                    Keys::Single,
                    elements,
                )
            }
            other => Err(unsupported("ruleset", other)),
        }
    }

    /// Add, so that there is something to delete; delete, with all its content; add.
    fn table(&mut self, family: &str, name: &str) {
        let label = format!("table {family} {name}");
        let flags = self.table_flags;
        for kind in [
            libc::NFT_MSG_NEWTABLE,
            libc::NFT_MSG_DELTABLE,
            libc::NFT_MSG_NEWTABLE,
        ] {
            let add = kind == libc::NFT_MSG_NEWTABLE;
            let create = if add { libc::NLM_F_CREATE } else { 0 };
            self.message(kind, create, label.clone(), |table| {
                table.text(NFTA_TABLE_NAME, name);
                if add {
                    table.number(NFTA_TABLE_FLAGS, flags);
                }
            });
        }
    }

    /// Delete, with all its content.
    pub(super) fn no_table(&mut self, family: libc::c_int, name: &str) {
        self.family = family;
        let label = format!("table {name}");
        self.message(libc::NFT_MSG_DELTABLE, 0, label, |table| {
            table.text(NFTA_TABLE_NAME, name);
        });
    }

    /// What nft has made of the user's rules: as it is, but into our table, with nothing that could hook anywhere.
    pub(super) fn extra(&mut self, extra: &ExtraObject) {
        let flags = match extra.kind {
            libc::NFT_MSG_NEWRULE => libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            _ => libc::NLM_F_CREATE,
        };
        let kept = super::extra::kept(extra.kind, &extra.attributes, false);
        self.family = libc::NFPROTO_INET;
        self.sets += 1;
        let id = self.sets;
        self.message(extra.kind, flags, extra.label.clone(), |out| {
            out.text(super::extra::TABLE, super::SIDECAR_TABLE);
            if extra.kind == libc::NFT_MSG_NEWSET {
                out.number(NFTA_SET_ID, id);
            }
            out.0.extend(kept);
        });
    }

    fn chain(&mut self, chain: &Chain<'_>) -> Result<(), EncodeError> {
        let object = format!("chain {}", chain.name);
        self.family = known(&object, chain.family)?.0;
        let (table, name) = (self.table_name(&chain.table), self.own_name(&chain.name));
        if (
            chain._type,
            chain.hook,
            chain.prio,
            chain.policy,
            &chain.dev,
        ) == (None, None, None, None, &None)
            || self.scope.is_some()
        {
            // Of a table that is shared the base chains are all stacks': see `shared`.
            self.message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, object, |out| {
                out.text(NFTA_CHAIN_TABLE, &table);
                out.text(NFTA_CHAIN_NAME, &name);
            });
            return Ok(());
        }
        let (Some(kind), Some(hook), Some(priority), Some(policy)) =
            (chain._type, chain.hook, chain.prio, chain.policy)
        else {
            return Err(unsupported(&object, chain));
        };
        // Only these hooks are a link's, and they are nothing else.
        let is_of_link = matches!(hook, NfHook::Ingress | NfHook::Egress);
        if [chain.dev.is_some(), chain.family == NfFamily::NetDev] != [is_of_link; 2] {
            return Err(unsupported(&object, chain));
        }
        let kind = match kind {
            NfChainType::Filter => "filter",
            NfChainType::NAT => "nat",
            NfChainType::Route => return Err(unsupported(&object, chain)),
        };
        let hook = match hook {
            NfHook::Prerouting => libc::NF_INET_PRE_ROUTING,
            NfHook::Input => libc::NF_INET_LOCAL_IN,
            NfHook::Forward => libc::NF_INET_FORWARD,
            NfHook::Output => libc::NF_INET_LOCAL_OUT,
            NfHook::Postrouting => libc::NF_INET_POST_ROUTING,
            NfHook::Ingress => libc::NF_NETDEV_INGRESS,
            NfHook::Egress => libc::NF_NETDEV_EGRESS,
        };
        let policy = match policy {
            NfChainPolicy::Accept => libc::NF_ACCEPT,
            NfChainPolicy::Drop => libc::NF_DROP,
        };
        self.message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, object, |out| {
            out.text(NFTA_CHAIN_TABLE, &table);
            out.text(NFTA_CHAIN_NAME, &name);
            out.nest(NFTA_CHAIN_HOOK, |out| {
                out.number(NFTA_HOOK_HOOKNUM, hook as u32);
                out.number(NFTA_HOOK_PRIORITY, priority as u32);
                if let Some(link) = &chain.dev {
                    out.text(NFTA_HOOK_DEV, link);
                }
            });
            out.number(NFTA_CHAIN_POLICY, policy as u32);
            out.text(NFTA_CHAIN_TYPE, kind);
        });
        Ok(())
    }

    fn set(
        &mut self,
        object: &str,
        table: &str,
        name: &str,
        (key, value): (&SetTypeValue<'_>, Option<&SetTypeValue<'_>>),
        keys: Keys,
        elements: &[Expression<'_>],
    ) -> Result<(), EncodeError> {
        self.sets += 1;
        let id = self.sets;
        let (table, name) = (&*self.table_name(table), &*self.own_name(name));
        let mut key = Shape::new(object, key)?;
        key.1 = keys;
        let value = value.map(|value| Shape::new(object, value)).transpose()?;
        self.message(
            libc::NFT_MSG_NEWSET,
            libc::NLM_F_CREATE,
            object.to_owned(),
            |out| {
                out.text(NFTA_SET_TABLE, table);
                out.text(NFTA_SET_NAME, name);
                out.number(NFTA_SET_ID, id);
                out.number(
                    NFTA_SET_FLAGS,
                    match (&value, keys) {
                        (Some(_), _) => NFT_SET_MAP,
                        (None, Keys::Ranges | Keys::NamedRanges) => {
                            NFT_SET_INTERVAL | NFT_SET_CONCAT
                        }
                        (None, Keys::Single | Keys::Named) => 0,
                        (None, Keys::Counted { .. }) => NFT_SET_TIMEOUT | NFT_SET_EVAL,
                    },
                );
                out.number(NFTA_SET_KEY_TYPE, key.type_id());
                out.number(NFTA_SET_KEY_LEN, key.width());
                if let Some(value) = &value {
                    out.number(NFTA_SET_DATA_TYPE, value.type_id());
                    out.number(NFTA_SET_DATA_LEN, value.width());
                }
                if let Keys::Counted { most, seconds } = keys {
                    let milliseconds = u64::from(seconds) * 1000;
                    out.bytes(NFTA_SET_TIMEOUT, &milliseconds.to_be_bytes());
                    out.nest(NFTA_SET_DESC, |out| out.number(NFTA_SET_DESC_SIZE, most));
                }
                if keys.are_named() {
                    // Every element gets one.
                    out.nest(NFTA_SET_EXPR, |out| {
                        out.text(NFTA_EXPR_NAME, "counter");
                        out.nest(NFTA_EXPR_DATA, |out| put_counter(out, 0, 0));
                    });
                }
                if keys.are_ranges() {
                    // Which bytes belong together: each part of a key is a range by itself.
                    out.nest(NFTA_SET_DESC, |out| {
                        out.nest(NFTA_SET_DESC_CONCAT, |out| {
                            for part in &key.0 {
                                out.nest(NFTA_LIST_ELEM, |out| {
                                    out.number(NFTA_SET_FIELD_LEN, part.width());
                                });
                            }
                        });
                    });
                }
                out.bytes(NFTA_SET_USERDATA, &byte_orders(&key, value.as_ref()));
            },
        );
        let shapes = (&key, value.as_ref());
        self.elements(
            libc::NFT_MSG_NEWSETELEM,
            object,
            (table, name, Some(id)),
            shapes,
            elements,
        )
    }

    /// Adds or deletes elements; `id` is that of a set that this batch makes.
    fn elements(
        &mut self,
        kind: libc::c_int,
        object: &str,
        (table, name, id): (&str, &str, Option<u32>),
        (key, value): (&Shape, Option<&Shape>),
        elements: &[Expression<'_>],
    ) -> Result<(), EncodeError> {
        let create = if kind == libc::NFT_MSG_NEWSETELEM {
            libc::NLM_F_CREATE
        } else {
            0
        };
        let most = match key.1.are_named() {
            true => NAMED_PER_MESSAGE,
            false => ELEMENTS_PER_MESSAGE,
        };
        for (chunk, elements) in elements.chunks(most).enumerate() {
            let label = format!("elements of {object}, from number {} on", chunk * most);
            self.message(kind, create, label, |out| {
                out.text(NFTA_SET_ELEM_LIST_TABLE, table);
                out.text(NFTA_SET_ELEM_LIST_SET, name);
                if let Some(id) = id {
                    out.number(NFTA_SET_ELEM_LIST_SET_ID, id);
                }
                out.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |out| {
                    elements
                        .iter()
                        .try_for_each(|element| put_element(out, object, key, value, element))
                })
            })?;
        }
        Ok(())
    }

    /// Adds or deletes elements of a set or map that is there.
    pub(super) fn change_elements(
        &mut self,
        kind: libc::c_int,
        object: &str,
        (table, name): (&str, &str),
        (key, value): (&SetTypeValue<'_>, Option<&SetTypeValue<'_>>),
        keys: Keys,
        elements: &[Expression<'_>],
    ) -> Result<(), EncodeError> {
        let (table, name) = (&*self.table_name(table), &*self.own_name(name));
        let mut key = Shape::new(object, key)?;
        key.1 = keys;
        let value = value.map(|value| Shape::new(object, value)).transpose()?;
        let shapes = (&key, value.as_ref());
        self.elements(kind, object, (table, name, None), shapes, elements)
    }

    fn rule(&mut self, rule: &Rule<'_>) -> Result<(), EncodeError> {
        self.rule_at(rule, Place::Last)
    }

    pub(super) fn rule_at(&mut self, rule: &Rule<'_>, place: Place) -> Result<(), EncodeError> {
        let name = rule.comment.as_deref().unwrap_or("(no comment)");
        let object = format!("rule {}/{name}", rule.chain);
        self.family = known(&object, rule.family)?.0;
        if rule.index.is_some() {
            return Err(unsupported(&object, rule));
        }
        let comment = rule
            .comment
            .as_ref()
            .map(|comment| comment_tlv(&object, comment))
            .transpose()?;
        let flags = libc::NLM_F_CREATE
            | match place {
                Place::Last => libc::NLM_F_APPEND,
                Place::Before(_) => 0,
            };
        let (table, chain) = (self.table_name(&rule.table), self.own_name(&rule.chain));
        let scope = self.scope.clone();
        self.message(libc::NFT_MSG_NEWRULE, flags, object.clone(), |out| {
            out.text(NFTA_RULE_TABLE, &table);
            out.text(NFTA_RULE_CHAIN, &chain);
            if let Place::Before(handle) = place {
                out.bytes(NFTA_RULE_POSITION, &handle.to_be_bytes());
            }
            if let Some(comment) = comment {
                out.bytes(NFTA_RULE_USERDATA, &comment);
            }
            out.nest(NFTA_RULE_EXPRESSIONS, |out| {
                let mut encoder = RuleEncoder {
                    object: &object,
                    list: Attributes(out.0),
                    is_of_link: rule.family == NfFamily::NetDev,
                    scope: scope.as_ref(),
                    knows_family: None,
                    knows_tcp: false,
                    knows_udp: false,
                    knows_ether: false,
                };
                rule.expr
                    .iter()
                    .try_for_each(|statement| encoder.statement(statement))
            })
        })
    }

    pub(super) fn message<R>(
        &mut self,
        kind: libc::c_int,
        flags: libc::c_int,
        label: String,
        attributes: impl FnOnce(&mut Attributes<'_>) -> R,
    ) -> R {
        let sequence = self.batch.labels.len() as u32;
        self.batch.labels.push(label);
        self.last = self.batch.bytes.len();
        message(
            &mut self.batch.bytes,
            (nft(kind), flags, sequence),
            (self.family, 0),
            attributes,
        )
    }

    /// The begin or the end of the batch, which names the subsystem that it is for (nfnetlink_rcv_batch).
    fn edge(&mut self, kind: libc::c_int, label: &str) {
        let sequence = self.batch.labels.len() as u32;
        self.batch.labels.push(label.to_owned());
        let resource = libc::NFNL_SUBSYS_NFTABLES;
        message(
            &mut self.batch.bytes,
            (kind, 0, sequence),
            (libc::NFPROTO_UNSPEC, resource),
            |_| (),
        );
    }
}

/// A map whose values are verdicts, which the `nftables` crate has no type for.
pub(super) struct VerdictMap {
    pub(super) name: &'static str,
    /// The types of its key's parts, by nft's names.
    pub(super) key: &'static [&'static str],
    /// Whether who is found goes there for good, or comes back.
    pub(super) goes: bool,
}

impl VerdictMap {
    fn shape(&self) -> Result<Shape, EncodeError> {
        let kind = |name: &&str| match *name {
            "ifname" => Ok(Kind::Link),
            "uid" => Ok(Kind::User),
            "ipv4_addr" => Ok(Kind::Address),
            "ipv6_addr" => Ok(Kind::Address6),
            "inet_proto" => Ok(Kind::Protocol),
            "inet_service" => Ok(Kind::Port),
            other => Err(unsupported(self.name, &other)),
        };
        let kinds = self.key.iter().map(kind).collect::<Result<_, _>>()?;
        Ok(Shape(kinds, Keys::Single))
    }
}

impl Encoder {
    /// From here on what is written is one stack's part.
    pub(super) fn enter_scope(&mut self, scope: Scope) {
        self.scope = Some(scope);
        self.family = libc::NFPROTO_INET;
    }

    pub(super) fn verdict_map(&mut self, table: &str, map: &VerdictMap) -> Result<(), EncodeError> {
        self.sets += 1;
        let (id, key) = (self.sets, map.shape()?);
        let label = format!("map {}", map.name);
        self.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, label, |out| {
            out.text(NFTA_SET_TABLE, table);
            out.text(NFTA_SET_NAME, map.name);
            out.number(NFTA_SET_ID, id);
            out.number(NFTA_SET_FLAGS, NFT_SET_MAP);
            out.number(NFTA_SET_KEY_TYPE, key.type_id());
            out.number(NFTA_SET_KEY_LEN, key.width());
            out.number(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT);
            out.bytes(NFTA_SET_USERDATA, &byte_orders(&key, None));
        });
        Ok(())
    }

    /// Adds or deletes elements of a verdict map, each with the chain that it leads to.
    pub(super) fn verdicts(
        &mut self,
        kind: libc::c_int,
        table: &str,
        map: &VerdictMap,
        elements: &[(Vec<u8>, String)],
    ) {
        let code = if map.goes {
            libc::NFT_GOTO
        } else {
            libc::NFT_JUMP
        };
        let map = map.name;
        let adds = kind == libc::NFT_MSG_NEWSETELEM;
        let create = if adds {
            libc::NLM_F_CREATE | libc::NLM_F_EXCL
        } else {
            0
        };
        for elements in elements.chunks(NAMED_PER_MESSAGE) {
            let label = format!("elements of map {map}");
            self.message(kind, create, label, |out| {
                out.text(NFTA_SET_ELEM_LIST_TABLE, table);
                out.text(NFTA_SET_ELEM_LIST_SET, map);
                out.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |out| {
                    for (key, chain) in elements {
                        out.nest(NFTA_LIST_ELEM, |out| {
                            out.nest(NFTA_SET_ELEM_KEY, |out| out.bytes(NFTA_DATA_VALUE, key));
                            out.nest(NFTA_SET_ELEM_DATA, |out| {
                                out.nest(NFTA_DATA_VERDICT, |out| {
                                    out.number(NFTA_VERDICT_CODE, code as u32);
                                    out.text(NFTA_VERDICT_CHAIN, chain);
                                });
                            });
                        });
                    }
                });
            });
        }
    }
}

/// The keys of a map's elements, as the kernel has them.
pub(super) fn map_keys(map: &nftables::schema::Map<'_>) -> Result<Vec<Vec<u8>>, EncodeError> {
    let object = format!("map {}", map.name);
    let shape = Shape::new(&object, &map.set_type)?;
    let elements = map.elem.as_deref().unwrap_or_default().iter();
    let keys = elements.map(|element| match element {
        Expression::List(pair) if pair.len() == 2 => shape.bytes(&object, &pair[0]),
        other => Err(unsupported(&object, other)),
    });
    keys.collect()
}

/// Whether a map is nothing but its elements, as all of ours are.
pub(super) fn is_plain(map: &nftables::schema::Map<'_>) -> bool {
    map.policy.is_none()
        && map.flags.is_none()
        && map.timeout.is_none()
        && map.gc_interval.is_none()
        && map.size.is_none()
        && map.comment.is_none()
}

/// What a set's elements are; `None` for a kind that isn't known here. Only keys of several parts may be ranges: the kernel
/// has another form for those of one.
pub(super) fn keys(set: &nftables::schema::Set<'_>) -> Option<Keys> {
    let only = |flag| set.flags == Some([flag].into());
    let named = matches!(
        set.elem.as_deref().and_then(<[_]>::first),
        Some(Expression::Named(NamedExpression::Elem(_)))
    );
    match (&set.flags, &set.set_type, set.size, set.timeout) {
        (None, _, None, None) if named => Some(Keys::Named),
        (None, _, None, None) => Some(Keys::Single),
        (_, SetTypeValue::Concatenated(_), None, None) => {
            let keys = match named {
                true => Keys::NamedRanges,
                false => Keys::Ranges,
            };
            only(SetFlag::Interval).then_some(keys)
        }
        // nft's JSON knows no "dynamic": it is what a set is that a rule adds to.
        (_, _, Some(most), Some(seconds)) => {
            only(SetFlag::Timeout).then_some(Keys::Counted { most, seconds })
        }
        _ => None,
    }
}

/// One element: a key, or, in a map, a key and a value.
fn put_element(
    out: &mut Attributes<'_>,
    object: &str,
    key: &Shape,
    value: Option<&Shape>,
    element: &Expression<'_>,
) -> Result<(), EncodeError> {
    let (element, comment) = match element {
        Expression::Named(NamedExpression::Elem(named)) if key.1.are_named() => {
            let (None, None, Some(comment)) = (named.timeout, named.expires, &named.comment) else {
                return Err(unsupported(object, element));
            };
            (named.val.as_ref(), Some(comment_tlv(object, comment)?))
        }
        _ => (element, None),
    };
    let mut end = None;
    let (key, value) = match (value, element) {
        (None, element) if key.1.are_ranges() => {
            let (first, last) = key.range(object, element)?;
            end = Some(last);
            (first, None)
        }
        (None, element) => (key.bytes(object, element)?, None),
        (Some(value), Expression::List(pair)) if pair.len() == 2 => (
            key.bytes(object, &pair[0])?,
            Some(value.bytes(object, &pair[1])?),
        ),
        (Some(_), other) => return Err(unsupported(object, other)),
    };
    out.nest(NFTA_LIST_ELEM, |out| {
        out.nest(NFTA_SET_ELEM_KEY, |out| out.bytes(NFTA_DATA_VALUE, &key));
        if let Some(value) = value {
            out.nest(NFTA_SET_ELEM_DATA, |out| out.bytes(NFTA_DATA_VALUE, &value));
        }
        if let Some(end) = end {
            out.nest(NFTA_SET_ELEM_KEY_END, |out| {
                out.bytes(NFTA_DATA_VALUE, &end)
            });
        }
        if let Some(comment) = comment {
            out.bytes(NFTA_SET_ELEM_USERDATA, &comment);
        }
    });
    Ok(())
}

fn put_counter(out: &mut Attributes<'_>, packets: u64, bytes: u64) {
    out.bytes(NFTA_COUNTER_BYTES, &bytes.to_be_bytes());
    out.bytes(NFTA_COUNTER_PACKETS, &packets.to_be_bytes());
}

/// Writes the expressions of one rule.
struct RuleEncoder<'a> {
    object: &'a str,
    list: Attributes<'a>,
    /// In a table of family netdev.
    is_of_link: bool,
    /// As the encoder's.
    scope: Option<&'a Scope>,
    /// In a table of family inet, a field of an IP or TCP header may only be read once the rule has asked for the protocol.
    knows_family: Option<libc::c_int>,
    knows_tcp: bool,
    knows_udp: bool,
    /// Nor one of the link layer's before it has asked which.
    knows_ether: bool,
}

/// nft's first two registers of 16 bytes. Concatenations use them as four registers of four bytes.
const FIRST: u32 = libc::NFT_REG_1 as u32;
const SECOND: u32 = libc::NFT_REG_2 as u32;

impl RuleEncoder<'_> {
    fn statement(&mut self, statement: &Statement<'_>) -> Result<(), EncodeError> {
        match statement {
            Statement::Match(comparison) => self.comparison(comparison),
            Statement::Counter(Counter::Anonymous(values)) => {
                let (packets, bytes) = values.as_ref().map_or((0, 0), |values| {
                    (
                        values.packets.unwrap_or_default(),
                        values.bytes.unwrap_or_default(),
                    )
                });
                self.expression("counter", |out| {
                    put_counter(out, packets as u64, bytes as u64)
                });
                Ok(())
            }
            Statement::Accept(_) => {
                // Of a stack's part: it has no objection, and the next that the packet has to do with is asked.
                self.verdict(match self.scope {
                    Some(_) => libc::NFT_RETURN,
                    None => libc::NF_ACCEPT,
                });
                Ok(())
            }
            Statement::VerdictMap(map) => {
                let Some(name) = set_name(&map.data) else {
                    return Err(unsupported(self.object, statement));
                };
                self.depend(&map.key)?;
                self.load_key(&map.key, FIRST)?;
                self.expression("lookup", |out| {
                    out.text(NFTA_LOOKUP_SET, name);
                    out.number(NFTA_LOOKUP_SREG, FIRST);
                    out.number(NFTA_LOOKUP_DREG, libc::NFT_REG_VERDICT as u32);
                });
                Ok(())
            }
            Statement::Drop(_) => {
                self.verdict(libc::NF_DROP);
                Ok(())
            }
            Statement::Mangle(change) => self.set(change, statement),
            Statement::Log(Some(log)) => {
                let (Some(group), None, None, None, None) = (
                    log.group.and_then(|group| u16::try_from(group).ok()),
                    log.snaplen,
                    log.queue_threshold,
                    &log.level,
                    &log.flags,
                ) else {
                    return Err(unsupported(self.object, statement));
                };
                self.expression("log", |out| {
                    if let Some(prefix) = &log.prefix {
                        out.text(NFTA_LOG_PREFIX, prefix);
                    }
                    out.bytes(NFTA_LOG_GROUP, &group.to_be_bytes());
                });
                Ok(())
            }
            Statement::Limit(limit) => {
                let limit =
                    limit_attributes(limit).ok_or_else(|| unsupported(self.object, statement))?;
                self.expression("limit", |out| out.0.extend(limit));
                Ok(())
            }
            Statement::Meter(meter) => {
                let Statement::Limit(limit) = meter.stmt.as_ref() else {
                    return Err(unsupported(self.object, statement));
                };
                let limit =
                    limit_attributes(limit).ok_or_else(|| unsupported(self.object, statement))?;
                self.depend(&meter.key)?;
                self.load_key(&meter.key, FIRST)?;
                let name = self.set_called(&meter.name);
                self.expression("dynset", |out| {
                    out.text(NFTA_DYNSET_SET_NAME, &name);
                    out.number(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                    out.number(NFTA_DYNSET_SREG_KEY, FIRST);
                    out.nest(NFTA_DYNSET_EXPR, |out| {
                        out.text(NFTA_EXPR_NAME, "limit");
                        out.nest(NFTA_EXPR_DATA, |out| out.0.extend(limit));
                    });
                });
                Ok(())
            }
            Statement::Jump(JumpTarget { target }) => {
                self.jump(target);
                Ok(())
            }
            Statement::Return(_) => {
                self.verdict(libc::NFT_RETURN);
                Ok(())
            }
            Statement::Masquerade(None) => {
                self.expression("masq", |_| ());
                Ok(())
            }
            Statement::DNAT(Some(nat)) => self.nat(libc::NFT_NAT_DNAT, nat, statement),
            Statement::SNAT(Some(nat)) => self.nat(libc::NFT_NAT_SNAT, nat, statement),
            other => Err(unsupported(self.object, other)),
        }
    }

    /// Writes into what is kept beside a packet or a connection. A mark has no order of bytes: who writes a field of a
    /// header into it has that field's.
    fn set(&mut self, change: &Mangle<'_>, statement: &Statement<'_>) -> Result<(), EncodeError> {
        if let Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Mark })) = &change.key {
            self.load_word(&change.value, statement)?;
            self.expression("meta", |out| {
                out.number(NFTA_META_SREG, FIRST);
                out.number(NFTA_META_KEY, libc::NFT_META_MARK as u32);
            });
            return Ok(());
        }
        let Expression::Named(NamedExpression::CT(CT {
            key,
            family: None,
            dir: None,
        })) = &change.key
        else {
            return Err(unsupported(self.object, statement));
        };
        let key = match key.as_ref() {
            "event" => {
                let events = Kind::CtEvent.bytes(self.object, &change.value)?;
                self.immediate(&events, FIRST);
                libc::NFT_CT_EVENTMASK
            }
            "mark" => {
                self.load_word(&change.value, statement)?;
                libc::NFT_CT_MARK
            }
            _ => return Err(unsupported(self.object, statement)),
        };
        self.expression("ct", |out| {
            out.number(NFTA_CT_SREG, FIRST);
            out.number(NFTA_CT_KEY, key as u32);
        });
        Ok(())
    }

    /// Loads a field of four bytes.
    fn load_word(
        &mut self,
        field: &Expression<'_>,
        statement: &Statement<'_>,
    ) -> Result<(), EncodeError> {
        self.depend(field)?;
        match self.load(field, FIRST)?.width() {
            4 => Ok(()),
            _ => Err(unsupported(self.object, statement)),
        }
    }

    fn immediate(&mut self, value: &[u8], register: u32) {
        self.expression("immediate", |out| {
            out.number(NFTA_IMMEDIATE_DREG, register);
            out.nest(NFTA_IMMEDIATE_DATA, |out| out.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn comparison(&mut self, comparison: &Match<'_>) -> Result<(), EncodeError> {
        let Match { left, right, op } = comparison;
        let refuse = |encoder: &Self| Err(unsupported(encoder.object, comparison));
        let equality = match op {
            Operator::EQ => Some(libc::NFT_CMP_EQ),
            Operator::NEQ => Some(libc::NFT_CMP_NEQ),
            Operator::GEQ => Some(libc::NFT_CMP_GTE),
            Operator::LEQ => Some(libc::NFT_CMP_LTE),
            Operator::IN => None,
            _ => return refuse(self),
        };
        if let (Some(set), Some(equality)) = (set_name(right), equality) {
            self.depend(left)?;
            self.load_key(left, FIRST)?;
            let flags = if equality == libc::NFT_CMP_NEQ {
                NFT_LOOKUP_F_INV
            } else {
                0
            };
            let set = self.set_called(set);
            self.expression("lookup", |out| {
                out.text(NFTA_LOOKUP_SET, &set);
                out.number(NFTA_LOOKUP_SREG, FIRST);
                out.number(NFTA_LOOKUP_FLAGS, flags);
            });
            return Ok(());
        }
        let (field, bits) = match left {
            Expression::BinaryOperation(operation) => match operation.as_ref() {
                BinaryOperation::AND(field, bits) => (field, Some(bits)),
                _ => return refuse(self),
            },
            field => (field, None),
        };
        self.depend(field)?;
        if let (Some(equality), Expression::Named(NamedExpression::Prefix(prefix)), None) =
            (equality, right, bits)
        {
            return self.prefix(field, equality, prefix);
        }
        let kind = self.load(field, FIRST)?;
        if kind == Kind::Time {
            // The kernel's is in its own order, and compares as memcmp(3) does.
            self.expression("byteorder", |out| {
                out.number(NFTA_BYTEORDER_SREG, FIRST);
                out.number(NFTA_BYTEORDER_DREG, FIRST);
                out.number(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON);
                out.number(NFTA_BYTEORDER_LEN, kind.width());
                out.number(NFTA_BYTEORDER_SIZE, kind.width());
            });
        } else if equality == Some(libc::NFT_CMP_GTE) {
            return refuse(self);
        }
        match (equality, right, bits) {
            (Some(libc::NFT_CMP_EQ), Expression::Range(range), None) => {
                let [first, last] = &range.range;
                self.compare(libc::NFT_CMP_GTE, &kind.bytes(self.object, first)?);
                self.compare(libc::NFT_CMP_LTE, &kind.bytes(self.object, last)?);
            }
            (Some(equality), value, Some(bits)) => {
                self.mask(&kind.bytes(self.object, bits)?);
                self.compare(equality, &kind.bytes(self.object, value)?);
            }
            (Some(equality), value, None) => {
                self.compare(equality, &kind.bytes(self.object, value)?)
            }
            (None, bits, None) if kind.is_bitmask() => {
                let bits = kind.bytes(self.object, bits)?;
                self.mask(&bits);
                self.compare(libc::NFT_CMP_NEQ, &vec![0; bits.len()]);
            }
            _ => return refuse(self),
        }
        // What nft calls a dependency may as well have been written down.
        if let (Some(libc::NFT_CMP_EQ), Expression::String(value)) = (equality, right) {
            self.knows_family = match (kind, value.as_ref()) {
                (Kind::Family, "ipv4") => Some(libc::NFPROTO_IPV4),
                (Kind::Family, "ipv6") => Some(libc::NFPROTO_IPV6),
                _ => self.knows_family,
            };
            self.knows_tcp |= matches!(kind, Kind::Protocol) && value == "tcp";
            self.knows_udp |= matches!(kind, Kind::Protocol) && value == "udp";
        }
        Ok(())
    }

    /// Of whole bytes, only those are loaded, as nft does; else all, and masked.
    fn prefix(
        &mut self,
        field: &Expression<'_>,
        equality: libc::c_int,
        prefix: &Prefix<'_>,
    ) -> Result<(), EncodeError> {
        let address = match &prefix.addr.as_ref() {
            Expression::String(text) if text.contains(':') => Kind::Address6,
            _ => Kind::Address,
        };
        let network = address.bytes(self.object, &prefix.addr)?;
        let (bytes, bits) = (prefix.len / 8, prefix.len % 8);
        if !(1..=8 * address.width()).contains(&prefix.len) {
            return Err(unsupported(self.object, prefix));
        }
        let width = if bits == 0 { bytes } else { address.width() };
        let kind = self.load_bytes(field, FIRST, width)?;
        if kind != address {
            return Err(unsupported(self.object, prefix));
        }
        if bits != 0 {
            let mut mask = vec![0; width as usize];
            mask[..bytes as usize].fill(u8::MAX);
            mask[bytes as usize] = u8::MAX << (8 - bits);
            self.mask(&mask);
        }
        self.compare(equality, &network[..width as usize]);
        Ok(())
    }

    fn nat(
        &mut self,
        kind: libc::c_int,
        nat: &NAT<'_>,
        statement: &Statement<'_>,
    ) -> Result<(), EncodeError> {
        let (Some(address), Some(family), None) = (&nat.addr, nat.family, &nat.flags) else {
            return Err(unsupported(self.object, statement));
        };
        let (family, width) = match family {
            NATFamily::IP => (libc::NFPROTO_IPV4, Kind::Address),
            NATFamily::IP6 => (libc::NFPROTO_IPV6, Kind::Address6),
        };
        // Questions about protocols go through the first register, so all of them come before it is filled.
        for part in [Some(address), nat.port.as_ref()].into_iter().flatten() {
            if let Expression::Named(NamedExpression::Map(map)) = part {
                self.depend(&map.key)?;
            }
        }
        self.nat_operand(address, width, FIRST)?;
        if let Some(port) = &nat.port {
            self.nat_operand(port, Kind::Port, SECOND)?;
        }
        self.expression("nat", |out| {
            out.number(NFTA_NAT_TYPE, kind as u32);
            out.number(NFTA_NAT_FAMILY, family as u32);
            out.number(NFTA_NAT_REG_ADDR_MIN, FIRST);
            if nat.port.is_some() {
                out.number(NFTA_NAT_REG_PROTO_MIN, SECOND);
            }
        });
        Ok(())
    }

    /// A constant, or what a map has for this packet; a packet that the map doesn't know leaves the rule there.
    fn nat_operand(
        &mut self,
        operand: &Expression<'_>,
        kind: Kind,
        register: u32,
    ) -> Result<(), EncodeError> {
        let Expression::Named(NamedExpression::Map(map)) = operand else {
            let value = kind.bytes(self.object, operand)?;
            self.immediate(&value, register);
            return Ok(());
        };
        let Some(name) = set_name(&map.data) else {
            return Err(unsupported(self.object, operand));
        };
        self.load_key(&map.key, register)?;
        let name = self.set_called(name);
        self.expression("lookup", |out| {
            out.text(NFTA_LOOKUP_SET, &name);
            out.number(NFTA_LOOKUP_SREG, register);
            out.number(NFTA_LOOKUP_DREG, register);
        });
        Ok(())
    }

    /// Asks for the protocols that `field` belongs to, once per rule.
    fn depend(&mut self, field: &Expression<'_>) -> Result<(), EncodeError> {
        match field {
            Expression::Named(NamedExpression::Concat(parts)) => {
                parts.iter().try_for_each(|part| self.depend(part))
            }
            Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
                match field.protocol.as_ref() {
                    "ip" => self.depend_on_family(libc::NFPROTO_IPV4),
                    "ip6" => self.depend_on_family(libc::NFPROTO_IPV6),
                    "ether" if !self.knows_ether => {
                        self.meta(libc::NFT_META_IIFTYPE, FIRST);
                        self.compare(libc::NFT_CMP_EQ, &libc::ARPHRD_ETHER.to_ne_bytes());
                        self.knows_ether = true;
                    }
                    "tcp" if !self.knows_tcp => {
                        self.meta(libc::NFT_META_L4PROTO, FIRST);
                        self.compare(libc::NFT_CMP_EQ, &[libc::IPPROTO_TCP as u8]);
                        self.knows_tcp = true;
                    }
                    "udp" if !self.knows_udp => {
                        self.meta(libc::NFT_META_L4PROTO, FIRST);
                        self.compare(libc::NFT_CMP_EQ, &[libc::IPPROTO_UDP as u8]);
                        self.knows_udp = true;
                    }
                    _ => {}
                }
                Ok(())
            }
            Expression::Named(NamedExpression::Exthdr(_)) => {
                self.depend_on_family(libc::NFPROTO_IPV6);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn depend_on_family(&mut self, family: libc::c_int) {
        if self.knows_family != Some(family) {
            if self.is_of_link {
                let kind = match family {
                    libc::NFPROTO_IPV6 => libc::ETH_P_IPV6,
                    _ => libc::ETH_P_IP,
                };
                // Where nft has looked at the frame's header it goes on with it.
                if self.knows_ether {
                    self.payload(libc::NFT_PAYLOAD_LL_HEADER, 12, 2, FIRST);
                } else {
                    self.meta(libc::NFT_META_PROTOCOL, FIRST);
                }
                self.compare(libc::NFT_CMP_EQ, &(kind as u16).to_be_bytes());
            } else {
                self.meta(libc::NFT_META_NFPROTO, FIRST);
                self.compare(libc::NFT_CMP_EQ, &[family as u8]);
            }
            self.knows_family = Some(family);
        }
    }

    /// Loads a field, or a concatenation of fields, each from a register of four bytes on that the one before leaves free.
    fn load_key(&mut self, key: &Expression<'_>, register: u32) -> Result<(), EncodeError> {
        let Expression::Named(NamedExpression::Concat(parts)) = key else {
            return self.load(key, register).map(|_| ());
        };
        let first = libc::NFT_REG32_00 as u32 + 4 * (register - FIRST);
        let mut next = first;
        for part in parts {
            let kind = self.load(part, next)?;
            next += kind.width().div_ceil(4);
        }
        // The last of the sixteen is the fifteenth.
        if next > libc::NFT_REG32_15 as u32 + 1 {
            return Err(unsupported(self.object, key));
        }
        Ok(())
    }

    fn load(&mut self, field: &Expression<'_>, register: u32) -> Result<Kind, EncodeError> {
        self.load_bytes(field, register, u32::MAX)
    }

    /// Loads a field, of a header's field at most so many bytes.
    fn load_bytes(
        &mut self,
        field: &Expression<'_>,
        register: u32,
        most: u32,
    ) -> Result<Kind, EncodeError> {
        let Expression::Named(named) = field else {
            return Err(unsupported(self.object, field));
        };
        let kind = match named {
            NamedExpression::Meta(meta) => {
                let (key, kind) = match meta.key {
                    MetaKey::Iifname => (libc::NFT_META_IIFNAME, Kind::Link),
                    MetaKey::Oifname => (libc::NFT_META_OIFNAME, Kind::Link),
                    MetaKey::Nfproto => (libc::NFT_META_NFPROTO, Kind::Family),
                    MetaKey::L4proto => (libc::NFT_META_L4PROTO, Kind::Protocol),
                    MetaKey::Skuid => (libc::NFT_META_SKUID, Kind::User),
                    MetaKey::Pkttype => (libc::NFT_META_PKTTYPE, Kind::PacketType),
                    _ => return Err(unsupported(self.object, field)),
                };
                self.meta(key, register);
                kind
            }
            NamedExpression::CT(ct) => {
                let (key, kind) = match (ct.key.as_ref(), ct.family, ct.dir) {
                    ("state", None, None) => (libc::NFT_CT_STATE, Kind::CtState),
                    ("status", None, None) => (libc::NFT_CT_STATUS, Kind::CtStatus),
                    ("mark", None, None) => (libc::NFT_CT_MARK, Kind::Mark),
                    ("expiration", None, None) => (libc::NFT_CT_EXPIRATION, Kind::Time),
                    _ => return Err(unsupported(self.object, field)),
                };
                self.expression("ct", |out| {
                    out.number(NFTA_CT_DREG, register);
                    out.number(NFTA_CT_KEY, key as u32);
                });
                kind
            }
            NamedExpression::Payload(Payload::PayloadField(header)) => {
                let (base, offset, kind) = match (header.protocol.as_ref(), header.field.as_ref()) {
                    ("ether", "daddr") => (libc::NFT_PAYLOAD_LL_HEADER, 0, Kind::Ether),
                    ("ether", "saddr") => (libc::NFT_PAYLOAD_LL_HEADER, 6, Kind::Ether),
                    ("ip", "saddr") => (libc::NFT_PAYLOAD_NETWORK_HEADER, 12, Kind::Address),
                    ("ip", "daddr") => (libc::NFT_PAYLOAD_NETWORK_HEADER, 16, Kind::Address),
                    ("ip6", "saddr") => (libc::NFT_PAYLOAD_NETWORK_HEADER, 8, Kind::Address6),
                    ("ip6", "daddr") => (libc::NFT_PAYLOAD_NETWORK_HEADER, 24, Kind::Address6),
                    ("tcp" | "udp", "sport") => (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, Kind::Port),
                    ("tcp" | "udp" | "th", "dport") => {
                        (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, Kind::Port)
                    }
                    ("tcp", "flags") => (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 13, Kind::TcpFlags),
                    _ => return Err(unsupported(self.object, field)),
                };
                self.payload(base, offset, kind.width().min(most), register);
                kind
            }
            NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
                base: PayloadBase::TH,
                offset,
                len: 32,
            })) if offset % 8 == 0 => {
                self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset / 8, 4, register);
                Kind::Word
            }
            NamedExpression::Exthdr(header) => {
                if (header.name.as_ref(), &header.field, header.offset) != ("rt", &None, None) {
                    return Err(unsupported(self.object, field));
                }
                self.expression("exthdr", |out| {
                    out.number(NFTA_EXTHDR_DREG, register);
                    out.bytes(NFTA_EXTHDR_TYPE, &[libc::IPPROTO_ROUTING as u8]);
                    out.number(NFTA_EXTHDR_OFFSET, 0);
                    out.number(NFTA_EXTHDR_LEN, Kind::Present.width());
                    out.number(NFTA_EXTHDR_OP, NFT_EXTHDR_OP_IPV6);
                    out.number(NFTA_EXTHDR_FLAGS, NFT_EXTHDR_F_PRESENT);
                });
                Kind::Present
            }
            NamedExpression::Socket(socket) => {
                let (number, kind) = match *socket.key {
                    SocketAttr::Wildcard => (NFT_SOCKET_WILDCARD, Kind::Present),
                    SocketAttr::Transparent => (NFT_SOCKET_TRANSPARENT, Kind::Flag),
                    _ => return Err(unsupported(self.object, field)),
                };
                self.expression("socket", |out| {
                    out.number(NFTA_SOCKET_KEY, number);
                    out.number(NFTA_SOCKET_DREG, register);
                });
                kind
            }
            NamedExpression::Fib(fib) => {
                if fib.result != FibResult::Type
                    || fib.flags.len() != 1
                    || !fib.flags.contains(&FibFlag::Daddr)
                {
                    return Err(unsupported(self.object, field));
                }
                self.expression("fib", |out| {
                    out.number(NFTA_FIB_DREG, register);
                    out.number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
                    out.number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
                });
                Kind::AddressType
            }
            _ => return Err(unsupported(self.object, field)),
        };
        Ok(kind)
    }

    /// Loads so many bytes from `offset` on.
    fn payload(&mut self, base: libc::c_int, offset: u32, width: u32, register: u32) {
        self.expression("payload", |out| {
            out.number(NFTA_PAYLOAD_DREG, register);
            out.number(NFTA_PAYLOAD_BASE, base as u32);
            out.number(NFTA_PAYLOAD_OFFSET, offset);
            out.number(NFTA_PAYLOAD_LEN, width);
        });
    }

    fn meta(&mut self, key: libc::c_int, register: u32) {
        self.expression("meta", |out| {
            out.number(NFTA_META_DREG, register);
            out.number(NFTA_META_KEY, key as u32);
        });
    }

    fn mask(&mut self, bits: &[u8]) {
        self.expression("bitwise", |out| {
            out.number(NFTA_BITWISE_SREG, FIRST);
            out.number(NFTA_BITWISE_DREG, FIRST);
            out.number(NFTA_BITWISE_LEN, bits.len() as u32);
            out.nest(NFTA_BITWISE_MASK, |out| out.bytes(NFTA_DATA_VALUE, bits));
            out.nest(NFTA_BITWISE_XOR, |out| {
                out.bytes(NFTA_DATA_VALUE, &vec![0; bits.len()])
            });
        });
    }

    fn compare(&mut self, op: libc::c_int, value: &[u8]) {
        self.expression("cmp", |out| {
            out.number(NFTA_CMP_SREG, FIRST);
            out.number(NFTA_CMP_OP, op as u32);
            out.nest(NFTA_CMP_DATA, |out| out.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn set_called(&self, name: &str) -> String {
        match self.scope {
            Some(scope) => scope.name(name),
            None => name.to_owned(),
        }
    }

    fn jump(&mut self, chain: &str) {
        self.expression("immediate", |out| {
            out.number(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32);
            out.nest(NFTA_IMMEDIATE_DATA, |out| {
                out.nest(NFTA_DATA_VERDICT, |out| {
                    out.number(NFTA_VERDICT_CODE, libc::NFT_JUMP as u32);
                    out.text(NFTA_VERDICT_CHAIN, chain);
                });
            });
        });
    }

    fn verdict(&mut self, code: libc::c_int) {
        self.expression("immediate", |out| {
            out.number(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32);
            out.nest(NFTA_IMMEDIATE_DATA, |out| {
                out.nest(NFTA_DATA_VERDICT, |out| {
                    out.number(NFTA_VERDICT_CODE, code as u32)
                });
            });
        });
    }

    fn expression(&mut self, name: &str, attributes: impl FnOnce(&mut Attributes<'_>)) {
        self.list.nest(NFTA_LIST_ELEM, |out| {
            out.text(NFTA_EXPR_NAME, name);
            out.nest(NFTA_EXPR_DATA, attributes);
        });
    }
}

/// A limit of packets; `None` for any other.
fn limit_attributes(limit: &Limit<'_>) -> Option<Vec<u8>> {
    if (&limit.rate_unit, &limit.burst_unit) != (&None, &None) {
        return None;
    }
    let seconds: u64 = match limit.per.as_deref()? {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        _ => return None,
    };
    let over = limit.inv.unwrap_or_default();
    let mut bytes = vec![];
    let mut out = Attributes(&mut bytes);
    out.bytes(NFTA_LIMIT_RATE, &u64::from(limit.rate).to_be_bytes());
    out.bytes(NFTA_LIMIT_UNIT, &seconds.to_be_bytes());
    out.number(NFTA_LIMIT_BURST, limit.burst?);
    out.number(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS);
    out.number(NFTA_LIMIT_FLAGS, if over { NFT_LIMIT_F_INV } else { 0 });
    Some(bytes)
}

/// What kind of value a field holds: how wide it is, and how a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Address6,
    /// Of the link layer.
    Ether,
    /// Whom the link layer thinks that a packet is for.
    PacketType,
    /// Whether there is a header.
    Present,
    /// 0 or 1.
    Flag,
    Port,
    Protocol,
    Family,
    Link,
    User,
    TcpFlags,
    CtState,
    CtStatus,
    CtEvent,
    AddressType,
    /// Of a header, and nothing more is known of it.
    Word,
    /// The kernel's, which means what somebody wants it to.
    Mark,
    /// In milliseconds.
    Time,
}

impl Kind {
    fn width(self) -> u32 {
        match self {
            Kind::Protocol
            | Kind::Family
            | Kind::TcpFlags
            | Kind::Present
            | Kind::Flag
            | Kind::PacketType => 1,
            Kind::Port => 2,
            Kind::Address
            | Kind::User
            | Kind::CtState
            | Kind::CtStatus
            | Kind::CtEvent
            | Kind::AddressType
            | Kind::Word
            | Kind::Mark
            | Kind::Time => 4,
            Kind::Ether => 6,
            Kind::Address6 => 16,
            Kind::Link => libc::IFNAMSIZ as u32,
        }
    }

    fn is_bitmask(self) -> bool {
        matches!(self, Kind::TcpFlags | Kind::CtState | Kind::CtStatus)
    }

    fn nft_name(self) -> &'static str {
        match self {
            Kind::Address => "ipv4_addr",
            Kind::Address6 => "ipv6_addr",
            Kind::Ether => "ether_addr",
            Kind::PacketType => "pkt_type",
            Kind::Present | Kind::Flag => "boolean",
            Kind::Port => "inet_service",
            Kind::Protocol => "inet_proto",
            Kind::Family => "nf_proto",
            Kind::Link => "ifname",
            Kind::User => "uid",
            Kind::TcpFlags => "tcp_flag",
            Kind::CtState => "ct_state",
            Kind::CtStatus => "ct_status",
            Kind::CtEvent => "ct_event",
            Kind::AddressType => "fib_addrtype",
            Kind::Word => "integer",
            Kind::Mark => "mark",
            Kind::Time => "time",
        }
    }

    /// A value as the packet or the kernel has it: header fields in network order, the kernel's own in host order.
    fn bytes(self, object: &str, value: &Expression<'_>) -> Result<Vec<u8>, EncodeError> {
        let bytes = match value {
            Expression::Number(number) if matches!(self, Kind::Port) => u16::try_from(*number)
                .ok()
                .map(|port| port.to_be_bytes().to_vec()),
            Expression::Number(number) if self == Kind::Word => Some(number.to_be_bytes().to_vec()),
            Expression::Number(seconds) if self == Kind::Time => seconds
                .checked_mul(1000)
                .map(|milliseconds| milliseconds.to_be_bytes().to_vec()),
            Expression::Boolean(yes) if self == Kind::Present => Some(vec![u8::from(*yes)]),
            Expression::Number(bit @ 0..=1) if self == Kind::Flag => Some(vec![*bit as u8]),
            Expression::Number(number) if matches!(self, Kind::User) => {
                Some(number.to_ne_bytes().to_vec())
            }
            Expression::String(text) => self.parse(text),
            Expression::List(bits) if self.is_bitmask() => {
                let mut all = vec![0; self.width() as usize];
                for bit in bits {
                    let bit = self.bytes(object, bit)?;
                    all.iter_mut().zip(bit).for_each(|(all, bit)| *all |= bit);
                }
                Some(all)
            }
            _ => None,
        };
        bytes.ok_or_else(|| EncodeError::Value {
            object: object.to_owned(),
            value: json(value),
            kind: self.nft_name(),
        })
    }

    fn parse(self, text: &str) -> Option<Vec<u8>> {
        let byte = |byte: libc::c_int| Some(vec![byte as u8]);
        let word = |word: u32| Some(word.to_ne_bytes().to_vec());
        match (self, text) {
            (Kind::Address, text) => text
                .parse::<Ipv4Addr>()
                .ok()
                .map(|address| address.octets().to_vec()),
            (Kind::Address6, text) => text
                .parse::<Ipv6Addr>()
                .ok()
                .map(|address| address.octets().to_vec()),
            (Kind::Ether, text) => {
                let bytes: Option<Vec<u8>> = text
                    .split(':')
                    .map(|byte| u8::from_str_radix(byte, 16).ok())
                    .collect();
                bytes.filter(|bytes| bytes.len() == 6)
            }
            // All links whose names begin so.
            (Kind::Link, text) if text.ends_with('*') => {
                Some(text.trim_end_matches('*').as_bytes().to_vec())
            }
            (Kind::Link, text) if text.len() < libc::IFNAMSIZ => {
                let mut name = text.as_bytes().to_vec();
                name.resize(libc::IFNAMSIZ, 0);
                Some(name)
            }
            (Kind::Protocol, "tcp") => byte(libc::IPPROTO_TCP),
            (Kind::Protocol, "udp") => byte(libc::IPPROTO_UDP),
            (Kind::Protocol, "icmp") => byte(libc::IPPROTO_ICMP),
            (Kind::Protocol, "ipv6-icmp") => byte(libc::IPPROTO_ICMPV6),
            // PACKET_HOST of linux/if_packet.h.
            (Kind::PacketType, "host") => byte(0),
            (Kind::Family, "ipv4") => byte(libc::NFPROTO_IPV4),
            (Kind::Family, "ipv6") => byte(libc::NFPROTO_IPV6),
            // RFC 9293, 3.1.
            (Kind::TcpFlags, "fin") => byte(0x01),
            (Kind::TcpFlags, "syn") => byte(0x02),
            (Kind::TcpFlags, "rst") => byte(0x04),
            (Kind::TcpFlags, "ack") => byte(0x10),
            // NF_CT_STATE_BIT and enum ip_conntrack_status of nf_conntrack_common.h.
            (Kind::CtState, "invalid") => word(1),
            (Kind::CtState, "established") => word(2),
            (Kind::CtState, "related") => word(4),
            (Kind::CtState, "new") => word(8),
            (Kind::CtStatus, "dnat") => word(1 << 5),
            // enum ip_conntrack_events.
            (Kind::CtEvent, "destroy") => word(1 << 2),
            (Kind::CtEvent, "label") => word(1 << 10),
            (Kind::AddressType, "local") => word(libc::RTN_LOCAL.into()),
            _ => None,
        }
    }
}

/// The type of a set's keys or a map's values: one kind, or several, each padded to four bytes.
struct Shape(Vec<Kind>, Keys);

/// What the elements of a set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// One key each.
    Single,
    /// The same, with a comment and a counter.
    Named,
    /// All keys between two.
    Ranges,
    /// The same, with a comment and a counter.
    NamedRanges,
    /// One key each, which rules add.
    Counted {
        /// There is no room for more.
        most: u32,
        /// It goes when it hasn't been met for so long.
        seconds: u32,
    },
}

impl Keys {
    fn are_ranges(self) -> bool {
        matches!(self, Self::Ranges | Self::NamedRanges)
    }

    fn are_named(self) -> bool {
        matches!(self, Self::Named | Self::NamedRanges)
    }
}

impl Shape {
    fn new(object: &str, types: &SetTypeValue<'_>) -> Result<Self, EncodeError> {
        let kind = |of: &SetType| match of {
            SetType::Ipv4Addr => Ok(Kind::Address),
            SetType::Ipv6Addr => Ok(Kind::Address6),
            SetType::EtherAddr => Ok(Kind::Ether),
            SetType::InetProto => Ok(Kind::Protocol),
            SetType::InetService => Ok(Kind::Port),
            _ => Err(unsupported(object, of)),
        };
        match types {
            SetTypeValue::Single(single) => Ok(Self(vec![kind(single)?], Keys::Single)),
            SetTypeValue::Concatenated(several) if (2..=4).contains(&several.len()) => {
                let kinds = several.iter().map(kind).collect::<Result<_, _>>()?;
                Ok(Self(kinds, Keys::Single))
            }
            SetTypeValue::Concatenated(_) => Err(unsupported(object, types)),
        }
    }

    /// nft's own numbering (enum datatypes of its datatype.h), six bits each. The kernel only stores it.
    fn type_id(&self) -> u32 {
        self.0.iter().fold(0, |id, kind| {
            id << 6
                | match kind {
                    Kind::Address => 7,
                    Kind::Address6 => 8,
                    Kind::Ether => 9,
                    Kind::Protocol => 12,
                    Kind::User => 24,
                    Kind::Link => 41,
                    _ => 13,
                }
        })
    }

    fn width(&self) -> u32 {
        match self.0.as_slice() {
            [single] => single.width(),
            several => several
                .iter()
                .map(|kind| kind.width().next_multiple_of(4))
                .sum(),
        }
    }

    /// The first and the last key of a concatenation, of which any part may be a prefix.
    fn range(
        &self,
        object: &str,
        value: &Expression<'_>,
    ) -> Result<(Vec<u8>, Vec<u8>), EncodeError> {
        let Expression::Named(NamedExpression::Concat(parts)) = value else {
            return Err(unsupported(object, value));
        };
        let end = |last: bool| {
            let parts = parts.iter().map(|part| match part {
                Expression::Named(NamedExpression::Prefix(prefix)) => {
                    let net = match prefix.addr.as_ref() {
                        Expression::String(text) => text.parse::<IpAddr>().ok(),
                        _ => None,
                    }
                    .zip(u8::try_from(prefix.len).ok())
                    .and_then(|(first, len)| ipnet::IpNet::new(first, len).ok())
                    .ok_or_else(|| unsupported(object, part))?;
                    let end = if last { net.broadcast() } else { net.addr() };
                    Ok(Expression::String(end.to_string().into()))
                }
                Expression::Range(range) => Ok(range.range[usize::from(last)].clone()),
                part => Ok(part.clone()),
            });
            let parts = parts.collect::<Result<Vec<_>, EncodeError>>()?;
            self.bytes(object, &Expression::Named(NamedExpression::Concat(parts)))
        };
        Ok((end(false)?, end(true)?))
    }

    fn bytes(&self, object: &str, value: &Expression<'_>) -> Result<Vec<u8>, EncodeError> {
        let parts = match (self.0.as_slice(), value) {
            ([single], value) => return single.bytes(object, value),
            (kinds, Expression::Named(NamedExpression::Concat(parts)))
                if parts.len() == kinds.len() =>
            {
                parts
            }
            _ => return Err(unsupported(object, value)),
        };
        let mut bytes = Vec::with_capacity(self.width() as usize);
        for (kind, part) in self.0.iter().zip(parts) {
            bytes.extend(kind.bytes(object, part)?);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        Ok(bytes)
    }
}

/// libnftnl's `NFTNL_UDATA_SET_KEYBYTEORDER` (0) and `NFTNL_UDATA_SET_DATABYTEORDER` (1): without them nft prints a port
/// with its bytes swapped. 2 is big endian, 0 is for concatenations, whose parts know their own.
fn byte_orders(key: &Shape, value: Option<&Shape>) -> Vec<u8> {
    let order = |shape: &Shape| match shape.0.as_slice() {
        [Kind::Link | Kind::User] => 1u32,
        [_] => 2,
        _ => 0,
    };
    let mut tlvs = tlv(0, &order(key).to_ne_bytes());
    if let Some(value) = value {
        tlvs.extend(tlv(1, &order(value).to_ne_bytes()));
    }
    tlvs
}

/// libnftnl's `NFTNL_UDATA_RULE_COMMENT` (0), with its NUL; nft takes at most 128 bytes.
fn comment_tlv(object: &str, comment: &str) -> Result<Vec<u8>, EncodeError> {
    if comment.len() >= 128 {
        return Err(EncodeError::Value {
            object: object.to_owned(),
            value: format!("{comment:?}"),
            kind: "comment of at most 127 bytes",
        });
    }
    Ok(tlv(0, &[comment.as_bytes(), &[0]].concat()))
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, value.len() as u8], value].concat()
}

/// `@name`.
fn set_name<'a>(expression: &'a Expression<'_>) -> Option<&'a str> {
    match expression {
        Expression::String(text) => text.strip_prefix('@'),
        _ => None,
    }
}

/// A family's number and name, of those that our tables have.
fn known(object: &str, family: NfFamily) -> Result<(libc::c_int, &'static str), EncodeError> {
    match family {
        NfFamily::INet => Ok((libc::NFPROTO_INET, "inet")),
        NfFamily::NetDev => Ok((libc::NFPROTO_NETDEV, "netdev")),
        other => Err(unsupported(object, &other)),
    }
}

fn only_inet(object: &str, family: NfFamily) -> Result<(), EncodeError> {
    match family {
        NfFamily::INet => Ok(()),
        other => Err(unsupported(object, &other)),
    }
}

pub(super) fn unsupported(object: &str, what: &impl serde::Serialize) -> EncodeError {
    EncodeError::Unsupported {
        object: object.to_owned(),
        what: json(what),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("the crate's types have string keys only")
}
