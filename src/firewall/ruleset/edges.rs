//! Where TCP connections begin and end, for the log.
//!
//! # Theory of operation
//!
//! What the log costs is its messages, a microsecond or more each; so a connection has two: the answer to its SYN, and the
//! last of its FINs, or its reset. Such a packet tells of both ways, by what it is and what it acknowledges. But who closes
//! while the other does so too has not seen the other's FIN: therefore the number of the first FIN is kept as the
//! connection's mark, and the packet of the last is marked with it, which NFLOG tells.
//!
//! Which FIN is the last conntrack knows: it waits for nothing as short as for the last ACK.
//!
//! A mark of a connection is 32 bits, and there is one. If the user's own rules may use it, it is theirs.
//!
//! The rule in `forward`, or in `input` and `output` for the sockets that apps are handed, is asked by every packet of every connection. It looks at four bytes where TCP has its flags,
//! whatever the protocol: words of that size the kernel compares without a call (`nft_do_chain()`,
//! net/netfilter/nf_tables_core.c), and the chain then asks whether it is TCP.

use nftables::expr::{PayloadBase, PayloadRaw};
use nftables::stmt::{Log, Mangle};

use super::*;

/// The chain that packets with SYN, FIN or RST of an established connection go through.
const CHAIN: &str = "log-connections";

/// In seconds: how long conntrack waits for the last ACK (`tcp_timeouts`, net/netfilter/nf_conntrack_proto_tcp.c). In
/// any state before both sides have closed it waits longer. Every network namespace begins with this, and ours keeps
/// it.
const LAST_ACK: u32 = 30;

/// Flags of TCP (RFC 9293, 3.1) in the word of its header that has them.
const FIN: u32 = 0x01 << 16;
const SYN: u32 = 0x02 << 16;
const RST: u32 = 0x04 << 16;

/// One of these flags is set, if this is TCP.
fn flags(any: u32) -> Statement<'static> {
    let word = Expression::BinaryOperation(Box::new(BinaryOperation::AND(
        transport_word(3),
        Expression::Number(any),
    )));
    is_not(word, Expression::Number(0))
}

/// A word of the transport's header, of four bytes each.
fn transport_word(number: u32) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
        base: PayloadBase::TH,
        offset: number * 32,
        len: 32,
    })))
}

pub(super) fn chain(table: &mut Table, plan: &Plan) {
    if plan.log > TrafficLog::Off {
        table.add_chain(Chain {
            name: CHAIN.into(),
            ..Chain::default()
        });
    }
}

pub(super) fn in_chain(table: &mut Table, plan: &Plan, chain: &'static str) {
    if plan.log == TrafficLog::Off {
        return;
    }
    table.rule(
        chain,
        "note-edge",
        // The flags first: every packet of every connection comes here, and few have them.
        [
            flags(FIN | SYN | RST),
            has(ct("state"), name("established")),
        ],
        Statement::Jump(JumpTarget {
            target: CHAIN.into(),
        }),
    );
}

pub(super) fn rules(table: &mut Table, plan: &Plan) {
    if plan.log == TrafficLog::Off {
        return;
    }
    let other = is_not(meta(MetaKey::L4proto), name("tcp"));
    table.rule(CHAIN, "skip-other-protocols", [other], back());
    let begin = [logging::note(), back()];
    table.rule_doing(CHAIN, "note-begin", [flags(SYN)], begin);
    let first = [
        flags(FIN),
        compare(
            ct("expiration"),
            Operator::GEQ,
            Expression::Number(LAST_ACK + 1),
        ),
    ];
    // Who sees a connection close takes back what was asked for when it was accepted, by asking for a change of labels,
    // which there are none of.
    let quiet = set(ct("event"), name("label"));
    if marks_are_free(plan) {
        let keep = set(ct("mark"), transport_word(1));
        table.rule_doing(CHAIN, "note-first-fin", first, [keep, back()]);
        let tell = set(meta(MetaKey::Mark), ct("mark"));
        table.rule_doing(CHAIN, "note-end", [], [tell, quiet, logging::note()]);
    } else {
        table.rule(CHAIN, "skip-first-fin", first, back());
        let note = Statement::Log(Some(Log {
            prefix: Some(logging::OTHERS_MARKS.into()),
            ..Log::new(Some(logging::CONNECTIONS.into()))
        }));
        table.rule_doing(CHAIN, "note-end", [], [quiet, note]);
    }
}

/// Whether the user's rules can't know of marks: nft's language has one word for them, and a variable may hold it.
fn marks_are_free(plan: &Plan) -> bool {
    plan.rules.as_ref().is_none_or(|rules| {
        let mut texts = rules.defines.values().chain([&rules.text]);
        !texts.any(|text| text.contains("mark"))
    })
}

fn set(key: Expression<'static>, value: Expression<'static>) -> Statement<'static> {
    Statement::Mangle(Mangle { key, value })
}

fn back() -> Statement<'static> {
    Statement::Return(None)
}
