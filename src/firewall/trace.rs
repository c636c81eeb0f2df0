//! What happens to one client's packets, rule by rule, as the kernel tells (`meta nftrace`, nft(8)).
//!
//! A temporary table marks the packets before any rule looks at them, and the kernel then tells of each rule that they
//! meet, in whosever table. The table has a chain at every other place where the kernel asks as well, first or last, with
//! nothing in it: that a packet has met it tells how far it came, also where nobody else has a rule. The table belongs to a
//! socket of this value: when it is dropped, or its process is killed, the kernel takes the table away.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nftables::schema::{Chain, NfListObject, Table};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::counters::{attributes_of, comment, dump};
use super::encode::Encoder;
use super::load::{ANSWER, LoadError, Socket, transact};
use crate::config::Protocol;
use crate::netlink::*;

/// Which packets are marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packets {
    /// What somebody sends to a port: of TCP only what opens a connection.
    To {
        /// Who sends them.
        from: IpAddr,
        /// The port that they are sent to.
        port: u16,
        /// By which transport protocol.
        protocol: Protocol,
    },
    /// What TCP answers to that: that the connection is open, or a reset.
    Answers {
        /// Who answers; `None` for whoever does to `to`.
        from: Option<IpAddr>,
        /// The port that was asked.
        port: u16,
        /// Who is answered; `None` for everybody.
        to: Option<IpAddr>,
    },
    /// That a destination is unreachable, as ICMP says it.
    Errors {
        /// Who says so.
        from: IpAddr,
    },
}

/// What is in a packet, as far as the kernel tells, which it does once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Who sends it; port 0 where there are none.
    pub source: SocketAddr,
    /// To whom.
    pub target: SocketAddr,
    /// What it says.
    pub content: Content,
}

/// What a packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// TCP: a connection is wanted.
    Syn,
    /// TCP: it is open.
    SynAck,
    /// TCP: there is none.
    Reset,
    /// UDP.
    Datagram,
    /// ICMP: a destination can't be reached.
    Unreachable,
    /// Something else.
    Other,
}

/// How far a packet is on its way through a network namespace: the places where the marking table looks as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// It has come in.
    ComesIn,
    /// Conntrack knows it.
    Tracked,
    /// The last rule before its route is looked up.
    Routing,
    /// It is for this namespace itself.
    ForUs,
    /// The last rule before the socket.
    Delivered,
    /// It is sent from here.
    Sent,
    /// It goes on.
    Forwarded,
    /// The last rule before the link.
    Leaves,
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
    /// What the packet is; only in the first step of each.
    pub headers: Option<Headers>,
    /// The index of the link by which it came in, if it did.
    pub link: Option<u32>,
    /// The kernel's number for its connection, from where conntrack has seen it; older kernels don't tell.
    pub connection: Option<u32>,
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

/// Priority of the marking chains: after fragments are put together (-400), before everything that is usual (raw, -300).
const FIRST: i32 = -350;
/// Right after conntrack (`NF_IP_PRI_CONNTRACK`, linux/netfilter_ipv4.h).
const TRACKED: i32 = -199;

impl Hop {
    const ALL: [Self; 8] = [
        Self::ComesIn,
        Self::Tracked,
        Self::Routing,
        Self::ForUs,
        Self::Delivered,
        Self::Sent,
        Self::Forwarded,
        Self::Leaves,
    ];

    /// The chain in the marking table.
    const fn chain(self) -> &'static str {
        match self {
            Self::ComesIn => "in",
            Self::Tracked => "tracked",
            Self::Routing => "routing",
            Self::ForUs => "for-us",
            Self::Delivered => "delivered",
            Self::Sent => "out",
            Self::Forwarded => "forwarded",
            Self::Leaves => "leaves",
        }
    }

    const fn hook(self) -> (NfHook, i32) {
        // One priority is conntrack's own, after everything else.
        const LAST: i32 = i32::MAX - 1;
        match self {
            Self::ComesIn => (NfHook::Prerouting, FIRST),
            Self::Tracked => (NfHook::Prerouting, TRACKED),
            Self::Routing => (NfHook::Prerouting, LAST),
            Self::ForUs => (NfHook::Input, i32::MIN + 1),
            Self::Delivered => (NfHook::Input, LAST),
            Self::Sent => (NfHook::Output, FIRST),
            Self::Forwarded => (NfHook::Forward, i32::MIN + 1),
            Self::Leaves => (NfHook::Postrouting, LAST),
        }
    }
}

const NFTA_TRACE_TABLE: u16 = 1;
const NFTA_TRACE_CHAIN: u16 = 2;
const NFTA_TRACE_RULE_HANDLE: u16 = 3;
const NFTA_TRACE_TYPE: u16 = 4;
const NFTA_TRACE_VERDICT: u16 = 5;
const NFTA_TRACE_ID: u16 = 6;
const NFTA_TRACE_NETWORK_HEADER: u16 = 8;
const NFTA_TRACE_TRANSPORT_HEADER: u16 = 9;
const NFTA_TRACE_IIF: u16 = 10;
const NFTA_TRACE_POLICY: u16 = 16;
/// Since Linux 6.16.
const NFTA_TRACE_CT_ID: u16 = 18;
/// What the kernel may keep for a slow reader, in bytes.
const ROOM: usize = 1 << 20;

/// Marks packets in one network namespace and hears what becomes of them.
pub struct Tracer {
    /// Owns the table.
    table: Socket,
    events: netlink_sys::Socket,
    name: String,
}

impl AsFd for Tracer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        AsFd::as_fd(&self.events)
    }
}

impl Tracer {
    /// Begins in the calling thread's network namespace; needs `CAP_NET_ADMIN` over it. `number` is in the table's
    /// name, and keeps two of them apart.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(packets: &[Packets], number: u32) -> Result<Self, LoadError> {
        let open = || {
            let mut events = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
            events.bind_auto()?;
            // As much as there may be: what is lost is lost evidence.
            let _ = setsockopt(&events, sockopt::RcvBufForce, &ROOM)
                .or_else(|_| setsockopt(&events, sockopt::RcvBuf, &ROOM));
            events.add_membership(libc::NFNLGRP_NFTRACE as u32)?;
            Ok(events)
        };
        let events = open().map_err(|source| LoadError::Open { source })?;
        let name = Self::table(number);
        let table = Socket::open()?;
        transact(&table, &marks(&name, packets))?;
        Ok(Self {
            table,
            events,
            name,
        })
    }

    fn table(number: u32) -> String {
        format!("lrpns-trace-{number}")
    }

    /// Its two sockets, to hand to another process, which needs no privilege to go on with them ([`Tracer::made_of`]).
    #[must_use]
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.table.as_fd(), AsFd::as_fd(&self.events)]
    }

    /// One that another process has started with `number`.
    ///
    /// # Errors
    /// [`LoadError::Open`]: they are no netlink sockets.
    pub fn made_of([table, events]: [OwnedFd; 2], number: u32) -> Result<Self, LoadError> {
        Ok(Self {
            table: Socket::from_fd(table)?,
            events: crate::sys::netlink::socket(events)
                .map_err(|source| LoadError::Open { source })?,
            name: Self::table(number),
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

    /// How far the packet is, if the step is of the marking itself and of no rule on its way.
    #[must_use]
    pub fn hop(&self, step: &Step) -> Option<Hop> {
        let own = step.table == self.name;
        let mut all = Hop::ALL.into_iter();
        all.find(|hop| own && hop.chain() == step.chain)
    }
}

/// A rule, and its comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName {
    /// The table's family, as [`Step::family`] has it.
    pub family: String,
    /// The table.
    pub table: String,
    /// The rule's handle.
    pub handle: u64,
    /// What it is called.
    pub name: String,
}

/// Every rule of a network namespace that has a comment, whosever it is.
///
/// # Errors
/// What `sendmsg(2)` or the kernel says.
pub fn rule_names(socket: &Socket) -> io::Result<Vec<RuleName>> {
    let mut names = vec![];
    for body in dump(socket, libc::NFT_MSG_GETRULE, libc::NFPROTO_UNSPEC, |_| {})? {
        let rule = attributes_of(&body);
        if let (Some(family), Some(table), Some(handle), Some(name)) = (
            body.first(),
            text(rule, NFTA_RULE_TABLE),
            long(rule, NFTA_RULE_HANDLE),
            attribute(rule, NFTA_RULE_USERDATA).and_then(comment),
        ) {
            names.push(RuleName {
                family: family_name(*family),
                table,
                handle,
                name,
            });
        }
    }
    Ok(names)
}

/// A family, as nft(8) calls it.
fn family_name(number: u8) -> String {
    match i32::from(number) {
        libc::NFPROTO_IPV4 => "ip".to_owned(),
        libc::NFPROTO_IPV6 => "ip6".to_owned(),
        libc::NFPROTO_INET => "inet".to_owned(),
        libc::NFPROTO_BRIDGE => "bridge".to_owned(),
        other => other.to_string(),
    }
}

fn long(attributes: &[u8], kind: u16) -> Option<u64> {
    let bytes = attribute(attributes, kind)?;
    bytes.first_chunk().copied().map(u64::from_be_bytes)
}

fn step(body: &[u8]) -> Option<Step> {
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
        family: family_name(*body.first()?),
        table: text(trace, NFTA_TRACE_TABLE)?,
        chain: text(trace, NFTA_TRACE_CHAIN)?,
        rule: (kind == libc::NFT_TRACETYPE_RULE)
            .then(|| long(trace, NFTA_TRACE_RULE_HANDLE))
            .flatten(),
        verdict,
        headers: headers(
            attribute(trace, NFTA_TRACE_NETWORK_HEADER),
            attribute(trace, NFTA_TRACE_TRANSPORT_HEADER),
        ),
        link: number(trace, NFTA_TRACE_IIF),
        connection: number(trace, NFTA_TRACE_CT_ID),
    })
}

/// A packet's first bytes, of IP (RFC 791, RFC 8200) and of what it carries.
fn headers(network: Option<&[u8]>, transport: Option<&[u8]>) -> Option<Headers> {
    let (network, transport) = (network?, transport.unwrap_or_default());
    let (source, target, protocol): (IpAddr, IpAddr, u8) = match network.first()? >> 4 {
        4 => {
            let address = |at| Some(<[u8; 4]>::try_from(network.get(at..at + 4)?).ok()?.into());
            (address(12)?, address(16)?, *network.get(9)?)
        }
        6 => {
            let address = |at| Some(<[u8; 16]>::try_from(network.get(at..at + 16)?).ok()?.into());
            (address(8)?, address(24)?, *network.get(6)?)
        }
        _ => return None,
    };
    let port = |at: usize| {
        let bytes = transport
            .get(at..at + 2)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u16::from_be_bytes)
    };
    let (ports, content) = match i32::from(protocol) {
        libc::IPPROTO_TCP => {
            let flags = transport.get(13).copied().unwrap_or_default();
            let content = match (flags & RST != 0, flags & SYN != 0, flags & ACK != 0) {
                (true, _, _) => Content::Reset,
                (_, true, true) => Content::SynAck,
                (_, true, false) => Content::Syn,
                _ => Content::Other,
            };
            ((port(0), port(2)), content)
        }
        libc::IPPROTO_UDP => ((port(0), port(2)), Content::Datagram),
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => ((0, 0), Content::Unreachable),
        _ => ((0, 0), Content::Other),
    };
    Some(Headers {
        source: SocketAddr::new(source, ports.0),
        target: SocketAddr::new(target, ports.1),
        content,
    })
}

// Of TCP's header, byte 13 (RFC 9293).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A table with a chain at each [`Hop`]; where packets come in and where they are sent from here, they are marked.
fn marks(name: &str, packets: &[Packets]) -> super::Batch {
    let mut out = Encoder::begin(NFT_TABLE_F_OWNER);
    let known = "tables and base chains are encoded";
    let table = Table {
        family: NfFamily::INet,
        name: name.to_owned().into(),
        ..Table::default()
    };
    out.object(&NfListObject::Table(table)).expect(known);
    for hop in Hop::ALL {
        let (hook, priority) = hop.hook();
        let base = Chain {
            family: NfFamily::INet,
            table: name.to_owned().into(),
            name: hop.chain().into(),
            _type: Some(NfChainType::Filter),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        };
        out.object(&NfListObject::Chain(base)).expect(known);
    }
    for chain in [Hop::ComesIn, Hop::Sent].map(Hop::chain) {
        for packets in packets {
            let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
            let label = format!("rule {chain}/mark");
            out.message(libc::NFT_MSG_NEWRULE, flags, label, |rule| {
                rule.text(NFTA_RULE_TABLE, name);
                rule.text(NFTA_RULE_CHAIN, chain);
                rule.nest(NFTA_RULE_EXPRESSIONS, |list| Mark(list).these(packets));
            });
        }
    }
    out.finish()
}

/// The expressions of one rule: comparisons, then the mark.
struct Mark<'a, 'b>(&'a mut Attributes<'b>);

impl Mark<'_, '_> {
    const REGISTER: u32 = libc::NFT_REG_1 as u32;

    fn these(mut self, packets: &Packets) {
        match packets {
            Packets::To {
                from,
                port,
                protocol,
            } => {
                self.family(*from);
                self.address(*from, true);
                match protocol {
                    Protocol::Udp => self.protocol(libc::IPPROTO_UDP),
                    Protocol::Tcp => {
                        self.protocol(libc::IPPROTO_TCP);
                        // Congestion notification may be asked for with it.
                        self.flags(SYN | ACK | RST | FIN, libc::NFT_CMP_EQ, SYN);
                    }
                }
                self.port(*port, false);
            }
            Packets::Answers { from, port, to } => {
                if let Some(address) = from.or(*to) {
                    self.family(address);
                }
                for (address, is_source) in [(from, true), (to, false)] {
                    if let Some(address) = address {
                        self.address(*address, is_source);
                    }
                }
                self.protocol(libc::IPPROTO_TCP);
                self.flags(SYN | RST, libc::NFT_CMP_NEQ, 0);
                self.port(*port, true);
            }
            Packets::Errors { from } => {
                self.family(*from);
                self.address(*from, true);
                // RFC 792 and RFC 4443, 3.1.
                let (protocol, kind) = match from {
                    IpAddr::V4(_) => (libc::IPPROTO_ICMP, 3),
                    IpAddr::V6(_) => (libc::IPPROTO_ICMPV6, 1),
                };
                self.protocol(protocol);
                self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
                self.compare(libc::NFT_CMP_EQ, &[kind]);
            }
        }
        self.expression("immediate", |out| {
            out.number(NFTA_IMMEDIATE_DREG, Self::REGISTER);
            out.nest(NFTA_IMMEDIATE_DATA, |out| out.bytes(NFTA_DATA_VALUE, &[1]));
        });
        self.expression("meta", |out| {
            out.number(NFTA_META_KEY, libc::NFT_META_NFTRACE as u32);
            out.number(NFTA_META_SREG, Self::REGISTER);
        });
    }

    fn family(&mut self, of: IpAddr) {
        let family = match of {
            IpAddr::V4(_) => libc::NFPROTO_IPV4,
            IpAddr::V6(_) => libc::NFPROTO_IPV6,
        };
        self.meta(libc::NFT_META_NFPROTO);
        self.compare(libc::NFT_CMP_EQ, &[family as u8]);
    }

    /// RFC 791 and RFC 8200: where the addresses are.
    fn address(&mut self, address: IpAddr, is_source: bool) {
        let (offset, address) = match address {
            IpAddr::V4(address) => (if is_source { 12 } else { 16 }, address.octets().to_vec()),
            IpAddr::V6(address) => (if is_source { 8 } else { 24 }, address.octets().to_vec()),
        };
        self.payload(
            libc::NFT_PAYLOAD_NETWORK_HEADER,
            offset,
            address.len() as u32,
        );
        self.compare(libc::NFT_CMP_EQ, &address);
    }

    fn protocol(&mut self, protocol: libc::c_int) {
        self.meta(libc::NFT_META_L4PROTO);
        self.compare(libc::NFT_CMP_EQ, &[protocol as u8]);
    }

    fn port(&mut self, port: u16, is_source: bool) {
        let offset = if is_source { 0 } else { 2 };
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2);
        self.compare(libc::NFT_CMP_EQ, &port.to_be_bytes());
    }

    fn flags(&mut self, mask: u8, operator: libc::c_int, value: u8) {
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1);
        self.expression("bitwise", |out| {
            out.number(NFTA_BITWISE_SREG, Self::REGISTER);
            out.number(NFTA_BITWISE_DREG, Self::REGISTER);
            out.number(NFTA_BITWISE_LEN, 1);
            out.nest(NFTA_BITWISE_MASK, |out| out.bytes(NFTA_DATA_VALUE, &[mask]));
            out.nest(NFTA_BITWISE_XOR, |out| out.bytes(NFTA_DATA_VALUE, &[0]));
        });
        self.compare(operator, &[value]);
    }

    fn meta(&mut self, key: libc::c_int) {
        self.expression("meta", |out| {
            out.number(NFTA_META_DREG, Self::REGISTER);
            out.number(NFTA_META_KEY, key as u32);
        });
    }

    fn payload(&mut self, base: libc::c_int, offset: u32, length: u32) {
        self.expression("payload", |out| {
            out.number(NFTA_PAYLOAD_DREG, Self::REGISTER);
            out.number(NFTA_PAYLOAD_BASE, base as u32);
            out.number(NFTA_PAYLOAD_OFFSET, offset);
            out.number(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn compare(&mut self, operator: libc::c_int, value: &[u8]) {
        self.expression("cmp", |out| {
            out.number(NFTA_CMP_SREG, Self::REGISTER);
            out.number(NFTA_CMP_OP, operator as u32);
            out.nest(NFTA_CMP_DATA, |out| out.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nest(NFTA_LIST_ELEM, |out| {
            out.text(NFTA_EXPR_NAME, name);
            out.nest(NFTA_EXPR_DATA, data);
        });
    }
}
