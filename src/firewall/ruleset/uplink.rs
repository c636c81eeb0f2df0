//! The rules at the uplink itself, where it ends among the host's links.
//!
//! # Theory of operation
//!
//! The host's other rules know our link by its name, and a packet has that name only as long as nothing has taken the link
//! over: what comes in by a port of a bridge, a VRF or a bond, or below a macvlan or a VLAN, comes by *their* name. Network
//! managers are told to do that to every link they see. But whatever takes it over, a frame first meets the hook of the link
//! itself (`nf_ingress()` in `__netif_receive_skb_core()`, net/core/dev.c), and what is sent by it the other one.
//!
//! - `uplink-in`: from the sidecar come IP packets with the sidecar's address, to the host's end. So whatever they are taken
//!   for afterwards, the host's rules know them by that address ([`as_sidecar`]); and nothing that is bridged goes on to
//!   anybody else. There is no ARP and no neighbour discovery on this link.
//! - `uplink-out`: to the sidecar goes what the host routes there. A frame that a bridge passes on was not for the host:
//!   that is its packet type. Since Linux 5.16; before, a bridge that has our link lets its other ports write to the sidecar,
//!   whose own rules then decide alone.
//!
//! Both chains belong to a socket of the supervisor's alone, and are loaded before the stack's part of the host's table
//! ([`crate::firewall::Shared`]), before the link is up.

use super::*;

/// The chain of what is sent by the uplink, which not every kernel can have.
pub const UPLINK_OUT: &str = "uplink-out";

/// The rules at our link; `None` where it ends in a namespace in which there is nobody but us.
#[must_use]
pub fn uplink_rules(plan: &Plan) -> Option<Nftables<'static>> {
    if !is_among_others(plan) {
        return None;
    }
    let uplink = &plan.uplink;
    let mut table = Table::of(NfFamily::NetDev, host_table(&plan.stack));
    for (chain, hook) in [("uplink-in", NfHook::Ingress), (UPLINK_OUT, NfHook::Egress)] {
        table.add_chain(Chain {
            name: chain.into(),
            _type: Some(NfChainType::Filter),
            hook: Some(hook),
            prio: Some(FILTER),
            policy: Some(NfChainPolicy::Drop),
            dev: Some(uplink.host_link.to_string().into()),
            ..Chain::default()
        });
    }
    for family in families(plan) {
        let to = name(&uplink.host_mac.to_string());
        let conditions = [
            is(header_field("ether", "daddr"), to),
            is(family.saddr(), address(family.plan.sidecar)),
        ];
        let rule = family.named("accept-sidecar");
        table.rule("uplink-in", rule, conditions, accept());
    }
    table.rule("uplink-in", "drop-uplink-foreign", [], drop());
    for family in families(plan) {
        let conditions = [
            is(meta(MetaKey::Pkttype), name("host")),
            is(family.daddr(), address(family.plan.sidecar)),
        ];
        let rule = family.named("accept-host");
        table.rule(UPLINK_OUT, rule, conditions, accept());
    }
    table.rule(UPLINK_OUT, "drop-uplink-bypass", [], drop());
    Some(table.into_rules())
}

/// Whether the uplink ends where there are links of others.
pub(super) fn is_among_others(plan: &Plan) -> bool {
    plan.uplink.ends_at == UplinkEnd::Host
}

/// What has the sidecar's address, by whichever link, and no other rule has let in.
pub(super) fn as_sidecar(table: &mut Table, plan: &Plan, chain: &'static str) {
    for family in families(plan) {
        let from = is(family.saddr(), address(family.plan.sidecar));
        table.rule(chain, family.named("drop-as-sidecar"), [from], drop());
    }
}

/// What goes to the sidecar's address, by whichever link, if it meets `conditions`.
pub(super) fn to_sidecar(
    table: &mut Table,
    plan: &Plan,
    (chain, rule): (&'static str, &str),
    conditions: impl Fn() -> Vec<Statement<'static>>,
) {
    for family in families(plan) {
        let to = is(family.daddr(), address(family.plan.sidecar));
        let all = std::iter::once(to).chain(conditions());
        table.rule(chain, family.named(rule), all, drop());
    }
}
