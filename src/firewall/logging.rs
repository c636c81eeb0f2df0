//! What the sidecar's rules log, and to whom: NFLOG groups, one for each reader, of the sidecar's network namespace.
//!
//! A group that nobody listens to costs a look into a table and no more (`nfulnl_log_packet()`), so every rule that drops
//! logs for [`CAPTURE`] too, whoever captures when. Groups have sockets of their own: a flood of refused packets fills
//! that of the refused ones, and no connection is missed for it.

use nftables::expr::{CT, Expression, NamedExpression, Payload};
use nftables::stmt::{Log, Mangle, Match, Operator, Statement};

use crate::config::TrafficLog;

/// The beginnings and ends of connections.
pub const CONNECTIONS: u16 = 1;
/// Packets that a rule refused.
pub const REFUSED: u16 = 2;
/// Packets that a rule let through, with `log = "packets"`.
pub const ACCEPTED: u16 = 3;
/// Packets that a rule refused, for `lrpns capture`; what is let through is logged there by its own table.
pub const CAPTURE: u16 = 4;

/// Packets that a rule of the user's logs.
pub const OWN: u16 = 5;
/// What the prefix of one begins with; no chain of ours is called so.
pub const OWN_PREFIX: &str = "log/";

/// What a message about a connection has for a prefix if its mark is not ours.
pub const OTHERS_MARKS: &str = "marked";

/// What a rule does between its counter and its verdict. The prefix of what it logs is the rule's name, `chain/name`,
/// but in [`CONNECTIONS`].
///
/// A rule that drops logs what it drops. One that accepts logs the packet that begins a connection, and with
/// [`TrafficLog::Packets`] every packet; but not in `guard`, where nothing is let through for good. Of TCP the answer to
/// the first packet says more than it does, and is logged instead (`ruleset::edges`).
///
/// Of all that conntrack could tell only the end of a connection that never closed is wanted: so who accepts a connection
/// asks for that; nothing else is said, `nf_conntrack_events` is 0.
pub(super) fn statements(
    level: TrafficLog,
    chain: &str,
    name: &str,
    matches: &[Statement<'_>],
    verdict: &Statement<'_>,
) -> Vec<Statement<'static>> {
    let log = |group| log(chain, name, group);
    let mut all = vec![];
    match verdict {
        Statement::Drop(_) => {
            if level > TrafficLog::Off {
                all.push(log(REFUSED));
            }
            all.push(log(CAPTURE));
        }
        Statement::Accept(_) if chain != "guard" => {
            if level > TrafficLog::Off && matches.iter().any(begins_a_connection) {
                all.push(tell_of_the_end());
                if !matches.iter().any(is_about_tcp) {
                    all.push(note());
                }
            }
            if level == TrafficLog::Packets {
                all.push(log(ACCEPTED));
            }
        }
        _ => {}
    }
    all
}

/// What conntrack tells of this connection from here on.
fn tell_of_the_end() -> Statement<'static> {
    Statement::Mangle(Mangle {
        key: Expression::Named(NamedExpression::CT(CT {
            key: "event".into(),
            family: None,
            dir: None,
        })),
        value: Expression::String("destroy".into()),
    })
}

/// Whether a field of TCP's header is compared.
fn is_about_tcp(statement: &Statement<'_>) -> bool {
    fn reads_tcp(expression: &Expression<'_>) -> bool {
        match expression {
            Expression::Named(NamedExpression::Concat(parts)) => parts.iter().any(reads_tcp),
            Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
                field.protocol == "tcp"
            }
            _ => false,
        }
    }
    matches!(statement, Statement::Match(comparison) if reads_tcp(&comparison.left))
}

/// Logs a packet and decides nothing.
pub(super) fn log(chain: &str, name: &str, group: u16) -> Statement<'static> {
    Statement::Log(Some(Log {
        prefix: Some(format!("{chain}/{name}").into()),
        ..Log::new(Some(group.into()))
    }))
}

/// Logs a packet that begins or ends a connection. Which is seen by the packet, and a prefix is printed and copied
/// for each.
pub(super) fn note() -> Statement<'static> {
    Statement::Log(Some(Log::new(Some(CONNECTIONS.into()))))
}

/// Whether this is `ct state new`.
fn begins_a_connection(statement: &Statement<'_>) -> bool {
    matches!(
        statement,
        Statement::Match(Match {
            left: Expression::Named(NamedExpression::CT(ct)),
            right: Expression::String(state),
            op: Operator::IN | Operator::EQ,
        }) if ct.key == "state" && state == "new"
    )
}
