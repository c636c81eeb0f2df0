//! The rules in the network namespace of an app that is to see its clients as its own machine (`source = "localhost"`).
//!
//! # Theory of operation
//!
//! What the sidecar lets through arrives at `eth0`, at the app's address. Here a published port becomes 127.0.0.1's, and who
//! comes to it becomes 127.0.0.1: so it reaches a server that binds its loopback alone, and one that admits nobody else. What
//! answers is rerouted by the kernel when it is translated back (`nf_nat_ipv4_local_fn()`, net/netfilter/nf_nat_proto.c), which
//! `route_localnet` lets it do. The sidecar, and so the traffic log, knows the client as ever.
//!
//! - `guard` (raw): by that setting the kernel would also take in what is *sent* to 127.0.0.1, or from there. None of it
//!   comes from the sidecar's rules; a sidecar that was taken over finds this.
//! - `prerouting`: published ports, and those that other apps may connect to. Whatever else the app has at its loopback has no
//!   way in: this is the only one.
//! - `input`: whom they come from.
//!
//! The app has no capability over it. Of IPv6 there is none: the kernel has no such setting there.

use super::*;
use crate::plan::AppPlan;

/// The table in the network namespace of an app. It is alone there.
pub const APP_TABLE: &str = "lrpns";

/// The rules in an app's own network namespace, if it has some.
#[must_use]
pub fn app_rules(app: &AppPlan) -> Option<Nftables<'static>> {
    if app.source != Source::Localhost {
        return None;
    }
    let mut table = Table::new(APP_TABLE.to_owned());
    table.filter("guard", NfHook::Prerouting, RAW, NfChainPolicy::Accept);
    table.nat("prerouting", NfHook::Prerouting, DSTNAT);
    table.nat("input", NfHook::Input, SRCNAT);
    let from_outside = || is_not(meta(MetaKey::Iifname), name("lo"));
    let own = Ipv4Addr::LOCALHOST;
    let nat = || {
        Some(NAT {
            addr: Some(address(own)),
            family: Some(NATFamily::IP),
            port: None,
            flags: None,
        })
    };
    for (rule, end) in [
        ("drop-to-loopback", "daddr"),
        ("drop-from-loopback", "saddr"),
    ] {
        let loopback = is(header_field("ip", end), subnet(LOOPBACK));
        table.rule("guard", rule, [from_outside(), loopback], drop());
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let ports = app.answers_on(protocol);
        if ports.is_empty() {
            continue;
        }
        let (set, rule) = match protocol {
            Protocol::Tcp => ("services", "dnat-to-loopback"),
            Protocol::Udp => ("services_udp", "dnat-to-loopback-udp"),
        };
        let element = |(first, last): (u16, u16)| {
            let ports = match first == last {
                true => port(first),
                false => Expression::Range(Box::new(Range {
                    range: [port(first), port(last)],
                })),
            };
            concat([address(app.address), ports])
        };
        table.ranges(
            set.to_owned(),
            &[SetType::Ipv4Addr, SetType::InetService],
            ports.into_iter().map(element).collect(),
        );
        let dport = header_field(protocol.name(), "dport");
        let there = concat([header_field("ip", "daddr"), dport]);
        let there = is(there, name(&format!("@{set}")));
        table.rule(
            "prerouting",
            rule,
            [from_outside(), there],
            Statement::DNAT(nat()),
        );
    }
    table.rule(
        "input",
        "snat-to-loopback",
        [
            from_outside(),
            is(header_field("ip", "daddr"), address(own)),
            has(ct("status"), name("dnat")),
        ],
        Statement::SNAT(nat()),
    );
    Some(table.into_rules())
}
