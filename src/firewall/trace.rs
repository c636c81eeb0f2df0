//! What happens to one client's packets, rule by rule, as the kernel tells (`meta nftrace`, nft(8)).
//!
//! A temporary table marks the packets before any rule looks at them, and the kernel then tells of each rule that they
//! meet, in whosever table. The table belongs to a socket of this value: when it is dropped, or its process is killed,
//! the kernel takes the table away.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nftables::schema::{Chain, NfListObject, Table};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::counters::{attributes_of, comment, dump};
use super::encode::Encoder;
use super::load::{ANSWER, LoadError, Socket, transact};
use super::netlink::*;

/// Which packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packets {
    /// Who sends them.
    pub from: IpAddr,
    /// The port that they are sent to.
    pub port: u16,
    /// UDP; else TCP, and then only what opens a connection.
    pub udp: bool,
}

/// One thing that happened to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which packet: the kernel's number for it while it is in this namespace.
    pub packet: u32,
    /// The table's family: `ip`, `ip6`, `inet` or another by its number.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; `None` is the chain's policy, or its end.
    pub rule: Option<u64>,
    /// What was decided.
    pub verdict: Verdict,
}

/// What a rule or a policy decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next base chain.
    Accept,
    /// The end.
    Drop,
    /// On to the next rule.
    Continue,
    /// Back to where the chain was called from.
    Return,
    /// On in another chain.
    Jump(String),
    /// To a program.
    Queue,
}

/// The chain of the marking table that packets meet when they come in.
pub const MARKED_IN: &str = "in";
/// The one that they meet when they are sent from here.
pub const MARKED_OUT: &str = "out";
/// Priority of the marking chains: after fragments are put together (-400), before everything that is usual (raw, -300).
const FIRST: i32 = -350;
const NFTA_TRACE_TABLE: u16 = 1;
const NFTA_TRACE_CHAIN: u16 = 2;
const NFTA_TRACE_RULE_HANDLE: u16 = 3;
const NFTA_TRACE_TYPE: u16 = 4;
const NFTA_TRACE_VERDICT: u16 = 5;
const NFTA_TRACE_ID: u16 = 6;
const NFTA_TRACE_POLICY: u16 = 16;

/// Marks packets in one network namespace and hears what becomes of them.
pub struct Tracer {
    /// Owns the table.
    _table: Socket,
    events: netlink_sys::Socket,
    name: String,
}

impl std::os::fd::AsFd for Tracer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.events)
    }
}

impl Tracer {
    /// Begins in the calling thread's network namespace; needs `CAP_NET_ADMIN` over it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(packets: &[Packets]) -> Result<Self, LoadError> {
        let open = || {
            let mut events = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
            events.bind_auto()?;
            events.add_membership(libc::NFNLGRP_NFTRACE as u32)?;
            Ok(events)
        };
        let events = open().map_err(|source| LoadError::Open { source })?;
        let name = format!("lrpns-trace-{}", std::process::id());
        let table = Socket::open()?;
        transact(&table, &marks(&name, packets))?;
        Ok(Self {
            _table: table,
            events,
            name,
        })
    }

    /// What has happened since this was last asked, without waiting: poll(2) the descriptor for that.
    ///
    /// # Errors
    /// [`LoadError::Receive`]. That some got lost is no error: there was more than this reads.
    pub fn steps(&self) -> Result<Vec<Step>, LoadError> {
        let mut steps = vec![];
        loop {
            let mut buffer = Vec::with_capacity(ANSWER);
            match self.events.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(steps),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(source) => return Err(LoadError::Receive { source }),
            }
            let trace = nft(libc::NFT_MSG_TRACE);
            let told = messages(&buffer).filter(|message| message.kind == trace);
            steps.extend(told.filter_map(|message| step(message.body)));
        }
    }

    /// Whether a step is of the marking itself.
    #[must_use]
    pub fn is_own(&self, step: &Step) -> bool {
        step.table == self.name
    }
}

/// The names of a table's rules, by their handles: their comments.
///
/// # Errors
/// What `sendmsg(2)` or the kernel says.
pub fn rule_names(socket: &Socket, family: &str, table: &str) -> io::Result<BTreeMap<u64, String>> {
    let number = match family {
        "ip" => libc::NFPROTO_IPV4,
        "ip6" => libc::NFPROTO_IPV6,
        _ => libc::NFPROTO_INET,
    };
    let of_table = |out: &mut Attributes<'_>| out.text(NFTA_RULE_TABLE, table);
    let mut names = BTreeMap::new();
    for body in dump(socket, libc::NFT_MSG_GETRULE, number, of_table)? {
        let rule = attributes_of(&body);
        if text(rule, NFTA_RULE_TABLE).as_deref() != Some(table) {
            continue;
        }
        if let (Some(handle), Some(name)) = (
            long(rule, NFTA_RULE_HANDLE),
            attribute(rule, NFTA_RULE_USERDATA).and_then(comment),
        ) {
            names.insert(handle, name);
        }
    }
    Ok(names)
}

fn long(attributes: &[u8], kind: u16) -> Option<u64> {
    let bytes = attribute(attributes, kind)?;
    bytes.first_chunk().copied().map(u64::from_be_bytes)
}

fn step(body: &[u8]) -> Option<Step> {
    let family = match i32::from(*body.first()?) {
        libc::NFPROTO_IPV4 => "ip".to_owned(),
        libc::NFPROTO_IPV6 => "ip6".to_owned(),
        libc::NFPROTO_INET => "inet".to_owned(),
        libc::NFPROTO_BRIDGE => "bridge".to_owned(),
        other => other.to_string(),
    };
    let trace = attributes_of(body);
    let kind = number(trace, NFTA_TRACE_TYPE)?.cast_signed();
    let verdict = attribute(trace, NFTA_TRACE_VERDICT);
    let code = verdict
        .and_then(|verdict| number(verdict, NFTA_VERDICT_CODE))
        .or_else(|| number(trace, NFTA_TRACE_POLICY))
        .map(u32::cast_signed);
    let to = || {
        verdict
            .and_then(|verdict| text(verdict, NFTA_VERDICT_CHAIN))
            .unwrap_or_default()
    };
    let verdict = match code {
        Some(libc::NF_DROP) => Verdict::Drop,
        Some(libc::NF_ACCEPT) => Verdict::Accept,
        Some(libc::NFT_JUMP | libc::NFT_GOTO) => Verdict::Jump(to()),
        Some(libc::NFT_RETURN) => Verdict::Return,
        Some(code) if code & libc::NF_VERDICT_MASK == libc::NF_QUEUE && code >= 0 => Verdict::Queue,
        _ => Verdict::Continue,
    };
    Some(Step {
        packet: number(trace, NFTA_TRACE_ID)?,
        family,
        table: text(trace, NFTA_TRACE_TABLE)?,
        chain: text(trace, NFTA_TRACE_CHAIN)?,
        rule: (kind == libc::NFT_TRACETYPE_RULE)
            .then(|| long(trace, NFTA_TRACE_RULE_HANDLE))
            .flatten(),
        verdict,
    })
}

/// A table with a chain where packets come in and one where they are sent from here.
fn marks(name: &str, packets: &[Packets]) -> super::Batch {
    let mut out = Encoder::begin(NFT_TABLE_F_OWNER);
    let known = "tables and base chains are encoded";
    let table = Table {
        family: NfFamily::INet,
        name: name.to_owned().into(),
        ..Table::default()
    };
    out.object(&NfListObject::Table(table)).expect(known);
    for (chain, hook) in [
        (MARKED_IN, NfHook::Prerouting),
        (MARKED_OUT, NfHook::Output),
    ] {
        let base = Chain {
            family: NfFamily::INet,
            table: name.to_owned().into(),
            name: chain.into(),
            _type: Some(NfChainType::Filter),
            hook: Some(hook),
            prio: Some(FIRST),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        };
        out.object(&NfListObject::Chain(base)).expect(known);
    }
    for chain in [MARKED_IN, MARKED_OUT] {
        for packets in packets {
            let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
            let label = format!("rule {chain}/mark");
            out.message(libc::NFT_MSG_NEWRULE, flags, label, |rule| {
                rule.text(NFTA_RULE_TABLE, name);
                rule.text(NFTA_RULE_CHAIN, chain);
                rule.nest(NFTA_RULE_EXPRESSIONS, |list| mark(list, packets));
            });
        }
    }
    out.finish()
}

/// The expressions of one rule: a comparison each of family, sender, protocol, port and, for TCP, SYN; then the mark.
fn mark(list: &mut Attributes<'_>, packets: &Packets) {
    const REGISTER: u32 = libc::NFT_REG_1 as u32;
    let mut expression = |name: &str, data: &dyn Fn(&mut Attributes<'_>)| {
        list.nest(NFTA_LIST_ELEM, |out| {
            out.text(NFTA_EXPR_NAME, name);
            out.nest(NFTA_EXPR_DATA, |out| data(out));
        });
    };
    type Data<'a> = &'a dyn Fn(&mut Attributes<'_>);
    fn equals(expression: &mut dyn FnMut(&str, Data<'_>), value: &[u8]) {
        expression("cmp", &|out| {
            out.number(NFTA_CMP_SREG, REGISTER);
            out.number(NFTA_CMP_OP, libc::NFT_CMP_EQ as u32);
            out.nest(NFTA_CMP_DATA, |out| out.bytes(NFTA_DATA_VALUE, value));
        });
    }
    let mut equal = |load: (&str, Data<'_>), value: &[u8]| {
        expression(load.0, load.1);
        equals(&mut expression, value);
    };
    let meta = |key: libc::c_int| {
        move |out: &mut Attributes<'_>| {
            out.number(NFTA_META_DREG, REGISTER);
            out.number(NFTA_META_KEY, key as u32);
        }
    };
    let payload = |base: libc::c_int, offset: u32, length: u32| {
        move |out: &mut Attributes<'_>| {
            out.number(NFTA_PAYLOAD_DREG, REGISTER);
            out.number(NFTA_PAYLOAD_BASE, base as u32);
            out.number(NFTA_PAYLOAD_OFFSET, offset);
            out.number(NFTA_PAYLOAD_LEN, length);
        }
    };
    let (network, transport) = (
        libc::NFT_PAYLOAD_NETWORK_HEADER,
        libc::NFT_PAYLOAD_TRANSPORT_HEADER,
    );
    // RFC 791 and RFC 8200: where the sender's address is.
    let (family, offset, address) = match packets.from {
        IpAddr::V4(address) => (libc::NFPROTO_IPV4, 12, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::NFPROTO_IPV6, 8, address.octets().to_vec()),
    };
    let protocol = if packets.udp {
        libc::IPPROTO_UDP
    } else {
        libc::IPPROTO_TCP
    };
    equal(("meta", &meta(libc::NFT_META_NFPROTO)), &[family as u8]);
    equal(
        ("payload", &payload(network, offset, address.len() as u32)),
        &address,
    );
    equal(("meta", &meta(libc::NFT_META_L4PROTO)), &[protocol as u8]);
    equal(
        ("payload", &payload(transport, 2, 2)),
        &packets.port.to_be_bytes(),
    );
    if !packets.udp {
        // SYN without ACK, RST and FIN, in byte 13 of the header (RFC 9293); congestion notification may be asked for with it.
        expression("payload", &payload(transport, 13, 1));
        expression("bitwise", &|out| {
            out.number(NFTA_BITWISE_SREG, REGISTER);
            out.number(NFTA_BITWISE_DREG, REGISTER);
            out.number(NFTA_BITWISE_LEN, 1);
            out.nest(NFTA_BITWISE_MASK, |out| out.bytes(NFTA_DATA_VALUE, &[0x17]));
            out.nest(NFTA_BITWISE_XOR, |out| out.bytes(NFTA_DATA_VALUE, &[0]));
        });
        equals(&mut expression, &[2]);
    }
    expression("immediate", &|out| {
        out.number(NFTA_IMMEDIATE_DREG, REGISTER);
        out.nest(NFTA_IMMEDIATE_DATA, |out| out.bytes(NFTA_DATA_VALUE, &[1]));
    });
    expression("meta", &|out| {
        out.number(NFTA_META_KEY, libc::NFT_META_NFTRACE as u32);
        out.number(NFTA_META_SREG, REGISTER);
    });
}
