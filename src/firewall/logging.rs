//! What the sidecar's rules log, and to whom: NFLOG groups, one for each reader, of the sidecar's network namespace.
//!
//! A group that nobody listens to costs a look into a table and no more (`nfulnl_log_packet()`), so every rule that drops
//! logs for [`CAPTURE`] too, whoever captures when. Groups have sockets of their own: a flood of refused packets fills
//! that of the refused ones, and no connection is missed for it.

use nftables::stmt::{Log, Match, Operator, Statement};

use crate::config::TrafficLog;

/// The beginnings and ends of connections.
pub const CONNECTIONS: u16 = 1;
/// Packets that a rule refused.
pub const REFUSED: u16 = 2;
/// Packets that a rule let through, with `log = "packets"`.
pub const ACCEPTED: u16 = 3;
/// Packets that a rule refused, for `lrpns capture`; what is let through is logged there by its own table.
pub const CAPTURE: u16 = 4;

/// What a rule logs, between its counter and its verdict. The prefix is the rule's name, `chain/name`.
///
/// A rule that drops logs what it drops. One that accepts logs the packet that begins a connection, and with
/// [`TrafficLog::Packets`] every packet; but not in `guard`, where nothing is let through for good.
pub(super) fn statements(
    level: TrafficLog,
    chain: &str,
    name: &str,
    matches: &[Statement<'_>],
    verdict: &Statement<'_>,
) -> Vec<Statement<'static>> {
    let mut groups = vec![];
    match verdict {
        Statement::Drop(_) => {
            if level > TrafficLog::Off {
                groups.push(REFUSED);
            }
            groups.push(CAPTURE);
        }
        Statement::Accept(_) if chain != "guard" => {
            if level > TrafficLog::Off && matches.iter().any(begins_a_connection) {
                groups.push(CONNECTIONS);
            }
            if level == TrafficLog::Packets {
                groups.push(ACCEPTED);
            }
        }
        _ => {}
    }
    groups
        .into_iter()
        .map(|group| log(chain, name, group))
        .collect()
}

/// Logs a packet and decides nothing.
pub(super) fn log(chain: &str, name: &str, group: u16) -> Statement<'static> {
    Statement::Log(Some(Log {
        prefix: Some(format!("{chain}/{name}").into()),
        ..Log::new(Some(group.into()))
    }))
}

/// Whether this is `ct state new`.
fn begins_a_connection(statement: &Statement<'_>) -> bool {
    use nftables::expr::{Expression, NamedExpression};
    matches!(
        statement,
        Statement::Match(Match {
            left: Expression::Named(NamedExpression::CT(ct)),
            right: Expression::String(state),
            op: Operator::IN | Operator::EQ,
        }) if ct.key == "state" && state == "new"
    )
}
