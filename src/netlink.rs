//! Netlink's messages and attributes (netlink(7)), and nf_tables' names for them: as far as needed, and no further.

use std::net::IpAddr;

/// Attributes that are being written: a length, a kind, a value, padded to four bytes.
pub(crate) struct Attributes<'a>(pub &'a mut Vec<u8>);

impl Attributes<'_> {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.nest_as(kind, |inner| inner.0.extend(value));
    }

    /// Text, with the NUL that the kernel wants.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.nest_as(kind, |inner| {
            inner.0.extend(value.as_bytes());
            inner.0.push(0);
        });
    }

    /// A number in network order, as all of nf_tables' are.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute of attributes; what `inside` returns.
    pub fn nest<R>(&mut self, kind: u16, inside: impl FnOnce(&mut Attributes<'_>) -> R) -> R {
        self.nest_as(kind | libc::NLA_F_NESTED as u16, inside)
    }

    fn nest_as<R>(&mut self, kind: u16, inside: impl FnOnce(&mut Attributes<'_>) -> R) -> R {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        let result = inside(self);
        let length = u16::try_from(self.0.len() - start)
            .expect("long lists are split into several messages");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        result
    }
}

/// The value of the first attribute of one kind.
pub(crate) fn attribute(of: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(of).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// All attributes, each with its kind, up to the first that is cut short.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        // The last one need not be padded.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((
            u16::from_ne_bytes([c, d]) & libc::NLA_TYPE_MASK as u16,
            value,
        ))
    })
}

/// Which attributes of conntrack's tuple are about one end of a connection: its address by IPv4 and by IPv6, its port
/// (linux/netfilter/nfnetlink_conntrack.h).
pub(crate) type End = [u16; 3];
/// `CTA_IP_V4_SRC`, `CTA_IP_V6_SRC`, `CTA_PROTO_SRC_PORT`.
pub(crate) const SOURCE: End = [1, 3, 2];
/// The same of the destination.
pub(crate) const DESTINATION: End = [2, 4, 3];

/// The protocol of a tuple, and one end; a protocol without ports has port 0.
pub(crate) fn end(tuple: &[u8], [four, six, port]: End) -> Option<(u8, (IpAddr, u16))> {
    const CTA_TUPLE_IP: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    const CTA_PROTO_NUM: u16 = 1;
    let ip = attribute(tuple, CTA_TUPLE_IP)?;
    let four = attribute(ip, four).and_then(|bytes| bytes.first_chunk::<4>());
    let six = attribute(ip, six).and_then(|bytes| bytes.first_chunk::<16>());
    let address = match (four, six) {
        (Some(bytes), _) => IpAddr::from(*bytes),
        (None, bytes) => IpAddr::from(*bytes?),
    };
    let proto = attribute(tuple, CTA_TUPLE_PROTO)?;
    let port = attribute(proto, port).and_then(|bytes| bytes.first_chunk().copied());
    let protocol = *attribute(proto, CTA_PROTO_NUM)?.first()?;
    Some((protocol, (address, port.map_or(0, u16::from_be_bytes))))
}

/// A number in network order.
pub(crate) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    attribute(attributes, kind)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

/// A number in the machine's own order, as all of rtnetlink's are.
pub(crate) fn native(attributes: &[u8], kind: u16) -> Option<u32> {
    attribute(attributes, kind)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Text up to its NUL.
pub(crate) fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let value = attribute(attributes, kind)?;
    let text = value.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The length of a `struct nlmsghdr`.
pub(crate) const HEADER: usize = size_of::<libc::nlmsghdr>();
/// The length of a `struct nfgenmsg`, which comes first in every message of netfilter.
pub(crate) const FAMILY_HEADER: usize = 4;

/// Writes one message: `resource` is the second half of its `struct nfgenmsg`.
pub(crate) fn message<R>(
    out: &mut Vec<u8>,
    (kind, flags, sequence): (libc::c_int, libc::c_int, u32),
    (family, resource): (libc::c_int, libc::c_int),
    attributes: impl FnOnce(&mut Attributes<'_>) -> R,
) -> R {
    let start = out.len();
    out.extend([0; 4]);
    out.extend((kind as u16).to_ne_bytes());
    out.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family as u8, libc::NFNETLINK_V0 as u8]);
    out.extend((resource as u16).to_be_bytes());
    let result = attributes(&mut Attributes(out));
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    result
}

/// The kind of one of nf_tables' messages.
pub(super) fn nft(kind: libc::c_int) -> libc::c_int {
    libc::NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// One message of an answer.
pub(crate) struct Message<'a> {
    pub kind: libc::c_int,
    pub flags: libc::c_int,
    pub sequence: u32,
    pub body: &'a [u8],
}

/// The messages in a buffer.
pub(crate) fn messages(mut buffer: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER] = buffer.first_chunk()?;
        let short = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let length = word(0) as usize;
        let message = Message {
            kind: short(4).into(),
            flags: short(6).into(),
            sequence: word(8),
            body: buffer.get(HEADER..length)?,
        };
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

impl Message<'_> {
    /// The number in a `struct nlmsgerr`, positive; 0 is an acknowledgement.
    pub fn error(&self) -> i32 {
        self.body
            .first_chunk()
            .and_then(|number| i32::from_ne_bytes(*number).checked_neg())
            .unwrap_or(libc::EBADMSG)
    }

    /// The kernel's words about an error, if it has any: they follow the header of the message that is answered.
    pub fn words(&self) -> Option<String> {
        const NLMSGERR_ATTR_MSG: u16 = 1;
        (self.flags & libc::NLM_F_ACK_TLVS != 0)
            .then(|| self.body.get(4 + HEADER..))
            .flatten()
            .and_then(|attributes| text(attributes, NLMSGERR_ATTR_MSG))
    }
}

// Of include/uapi/linux/netfilter/nf_tables.h, where the comments say what each is.
pub(super) const NFTA_LIST_ELEM: u16 = 1;

pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_OWNER: u16 = 7;
pub(super) const NFT_TABLE_F_OWNER: u32 = 2;
/// `NFT_DATA_VERDICT`: what a verdict map's values are.
pub(super) const NFT_DATA_VERDICT: u32 = 0xffff_ff00;

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_CHAIN_USERDATA: u16 = 12;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_HOOK_DEV: u16 = 3;

pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
pub(super) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(super) const NFTA_SET_DATA_LEN: u16 = 7;
pub(super) const NFTA_SET_DESC: u16 = 9;
pub(super) const NFTA_SET_DESC_SIZE: u16 = 1;
pub(super) const NFTA_SET_DESC_CONCAT: u16 = 2;
pub(super) const NFTA_SET_FIELD_LEN: u16 = 1;
pub(super) const NFTA_SET_ID: u16 = 10;
pub(super) const NFTA_SET_TIMEOUT: u16 = 11;
pub(super) const NFTA_SET_USERDATA: u16 = 13;
pub(super) const NFTA_SET_EXPR: u16 = 17;
pub(super) const NFT_SET_ANONYMOUS: u32 = 1;
pub(super) const NFT_SET_INTERVAL: u32 = 4;
pub(super) const NFT_SET_MAP: u32 = 8;
pub(super) const NFT_SET_TIMEOUT: u32 = 16;
pub(super) const NFT_SET_EVAL: u32 = 32;
pub(super) const NFT_SET_CONCAT: u32 = 0x80;

pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
pub(super) const NFTA_SET_ELEM_USERDATA: u16 = 6;
pub(super) const NFTA_SET_ELEM_EXPR: u16 = 7;
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;

pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_POSITION: u16 = 6;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;

pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(super) const NFT_MSG_GETFLOWTABLE: libc::c_int = 23;
pub(super) const NFTA_OBJ_NAME: u16 = 2;
pub(super) const NFTA_OBJ_TYPE: u16 = 3;

pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

pub(super) const NFTA_BYTEORDER_SREG: u16 = 1;
pub(super) const NFTA_BYTEORDER_DREG: u16 = 2;
pub(super) const NFTA_BYTEORDER_OP: u16 = 3;
pub(super) const NFTA_BYTEORDER_LEN: u16 = 4;
pub(super) const NFTA_BYTEORDER_SIZE: u16 = 5;
pub(super) const NFT_BYTEORDER_HTON: u32 = 1;
pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_META_SREG: u16 = 3;

pub(super) const NFTA_CT_DREG: u16 = 1;
pub(super) const NFTA_CT_KEY: u16 = 2;
pub(super) const NFTA_CT_SREG: u16 = 4;

pub(super) const NFTA_FIB_DREG: u16 = 1;
pub(super) const NFTA_FIB_RESULT: u16 = 2;
pub(super) const NFTA_FIB_FLAGS: u16 = 3;
pub(super) const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
pub(super) const NFTA_FIB_F_DADDR: u32 = 2;

pub(super) const NFTA_EXTHDR_DREG: u16 = 1;
pub(super) const NFTA_EXTHDR_TYPE: u16 = 2;
pub(super) const NFTA_EXTHDR_OFFSET: u16 = 3;
pub(super) const NFTA_EXTHDR_LEN: u16 = 4;
pub(super) const NFTA_EXTHDR_FLAGS: u16 = 5;
pub(super) const NFTA_EXTHDR_OP: u16 = 6;
pub(super) const NFT_EXTHDR_F_PRESENT: u32 = 1;
pub(super) const NFT_EXTHDR_OP_IPV6: u32 = 0;

pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;

pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;

pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;

pub(super) const NFTA_LOOKUP_SET: u16 = 1;
pub(super) const NFTA_LOOKUP_SREG: u16 = 2;
pub(super) const NFTA_LOOKUP_DREG: u16 = 3;
pub(super) const NFTA_LOOKUP_FLAGS: u16 = 5;
pub(super) const NFT_LOOKUP_F_INV: u32 = 1;

pub(super) const NFTA_COUNTER_BYTES: u16 = 1;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;

pub(super) const NFTA_DYNSET_SET_NAME: u16 = 1;
pub(super) const NFTA_DYNSET_OP: u16 = 3;
pub(super) const NFTA_DYNSET_SREG_KEY: u16 = 4;
pub(super) const NFTA_DYNSET_TIMEOUT: u16 = 6;
pub(super) const NFTA_DYNSET_EXPR: u16 = 7;
pub(super) const NFT_DYNSET_OP_UPDATE: u32 = 1;

pub(super) const NFTA_SOCKET_KEY: u16 = 1;
pub(super) const NFTA_SOCKET_DREG: u16 = 2;
pub(super) const NFT_SOCKET_TRANSPARENT: u32 = 0;
pub(super) const NFT_SOCKET_WILDCARD: u32 = 2;

pub(super) const NFTA_LIMIT_RATE: u16 = 1;
pub(super) const NFTA_LIMIT_UNIT: u16 = 2;
pub(super) const NFTA_LIMIT_BURST: u16 = 3;
pub(super) const NFTA_LIMIT_TYPE: u16 = 4;
pub(super) const NFTA_LIMIT_FLAGS: u16 = 5;
pub(super) const NFT_LIMIT_PKTS: u32 = 0;
pub(super) const NFT_LIMIT_F_INV: u32 = 1;

pub(super) const NFTA_LOG_GROUP: u16 = 1;
pub(super) const NFTA_LOG_PREFIX: u16 = 2;
pub(super) const NFTA_LOG_LEVEL: u16 = 5;

pub(super) const NFTA_NAT_TYPE: u16 = 1;
pub(super) const NFTA_NAT_FAMILY: u16 = 2;
pub(super) const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
