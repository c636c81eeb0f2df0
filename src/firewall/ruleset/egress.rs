//! The rules for what apps may connect to, in both tables. A plan without egress has none of them.

use ipnet::IpNet;

use super::*;
use crate::config::Egress;
use crate::plan::AppPlan;

/// Every destination with the app that may connect to it, and a number by which the rules of it are known: its place in
/// the app's list.
fn granted(plan: &Plan) -> impl Iterator<Item = (&AppPlan, Grant)> {
    plan.apps.iter().flat_map(|app| {
        app.egress.iter().enumerate().map(move |(place, egress)| {
            let name = format!("accept-egress-{}-{place}", app.name);
            (
                app,
                Grant {
                    name,
                    egress: *egress,
                },
            )
        })
    })
}

struct Grant {
    name: String,
    egress: Egress,
}

impl Grant {
    /// The destination's address.
    fn to(&self) -> Statement<'static> {
        match self.egress.to {
            IpNet::V4(net) if net.prefix_len() == 0 => always(),
            IpNet::V4(net) if net.prefix_len() == 32 => is(ip("daddr"), address(net.addr())),
            IpNet::V4(net) => is(ip("daddr"), subnet(net)),
            // The configuration takes none.
            IpNet::V6(net) => is(header_field("ip6", "daddr"), name(&net.to_string())),
        }
    }

    /// Its protocol and ports.
    fn ports(&self) -> Statement<'static> {
        let field = header_field(self.egress.protocol.name(), "dport");
        let (first, last) = (self.egress.first_port, self.egress.last_port);
        if first == last {
            is(field, port(first))
        } else {
            let range = [port(first), port(last)];
            is(field, Expression::Range(Box::new(Range { range })))
        }
    }

    fn is_link_local(&self) -> bool {
        matches!(self.egress.to, IpNet::V4(net) if LINK_LOCAL.contains(&net))
    }
}

/// The grants of link-local addresses, then the others.
fn by_reach(plan: &Plan) -> [Vec<(&AppPlan, Grant)>; 2] {
    let (narrow, others) = granted(plan).partition(|(_, grant)| grant.is_link_local());
    [narrow, others]
}

pub(super) fn in_guard(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    let from_bridge = || is(meta(MetaKey::Iifname), name(bridge));
    let [narrow, others] = by_reach(plan);
    let accept_all = |table: &mut Table, grants: Vec<(&AppPlan, Grant)>| {
        for (app, grant) in grants {
            let from = is(ip("saddr"), address(app.address));
            let conditions = [from_bridge(), from, grant.to(), grant.ports()];
            table.rule("guard", grant.name, conditions, accept());
        }
    };
    // What a wide range would open as well.
    let special = [
        ("drop-app-link-local", LINK_LOCAL),
        ("drop-app-subnet", plan.bridge.subnet),
    ]
    .map(|(rule, net)| {
        let wide = |(_, grant): &(_, Grant)| grant.egress.to.contains(&IpNet::V4(net));
        (rule, net, others.iter().any(wide))
    });
    accept_all(table, narrow);
    for (rule, net, _) in special.into_iter().filter(|(_, _, wide)| *wide) {
        let to = is(ip("daddr"), subnet(net));
        table.rule("guard", rule, [from_bridge(), to], drop());
    }
    accept_all(table, others);
}

pub(super) fn in_forward(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    let uplink = plan.uplink.sidecar_link.as_str();
    for (app, grant) in granted(plan) {
        let conditions = [
            is(meta(MetaKey::Iifname), name(bridge)),
            is(meta(MetaKey::Oifname), name(uplink)),
            has(ct("state"), name("new")),
            is(ip("saddr"), address(app.address)),
            grant.to(),
            grant.ports(),
        ];
        table.rule("forward", grant.name, conditions, accept());
    }
}

/// What an app starts leaves with the sidecar's address: the host knows no other.
pub(super) fn in_postrouting(table: &mut Table, plan: &Plan) {
    if granted(plan).next().is_none() {
        return;
    }
    let uplink = plan.uplink.sidecar_link.as_str();
    table.rule(
        "postrouting",
        "snat-egress",
        [
            is(meta(MetaKey::Oifname), name(uplink)),
            is(ip("saddr"), name("@apps")),
        ],
        families(plan)[0].snat(address(plan.uplink.sidecar_address)),
    );
}

pub(super) fn host_chains(table: &mut Table, plan: &Plan) {
    if granted(plan).next().is_some() {
        table.nat("postrouting", NfHook::Postrouting, SRCNAT);
    }
}

/// To the host itself only by an address that was listed by itself: a range of addresses does not open the host. The
/// host's own rules still have their say.
pub(super) fn in_host_input(table: &mut Table, plan: &Plan) {
    for (_, grant) in granted(plan).filter(|(_, grant)| grant.egress.is_single()) {
        let conditions = [
            is(meta(MetaKey::Iifname), name(plan.uplink.host_link.as_str())),
            is(ip("saddr"), address(plan.uplink.sidecar_address)),
            grant.to(),
            grant.ports(),
        ];
        table.rule("input", grant.name, conditions, accept());
    }
}

/// What a service of the host answers an app: the service is a user of the host's, too.
pub(super) fn in_host_output(table: &mut Table, plan: &Plan) {
    if granted(plan).any(|(_, grant)| grant.egress.is_single()) {
        let conditions = [
            is(meta(MetaKey::Oifname), name(plan.uplink.host_link.as_str())),
            has(ct("state"), name("established")),
        ];
        table.rule("output", "accept-egress-reply", conditions, accept());
    }
}

pub(super) fn in_host_forward(table: &mut Table, plan: &Plan) {
    let link = plan.uplink.host_link.as_str();
    let sidecar = plan.uplink.sidecar_address;
    let mut some = false;
    for (_, grant) in granted(plan) {
        some = true;
        let conditions = [
            is(meta(MetaKey::Iifname), name(link)),
            is(ip("saddr"), address(sidecar)),
            grant.to(),
            grant.ports(),
        ];
        table.rule("forward", grant.name, conditions, accept());
    }
    if some {
        for (rule, state) in [
            ("accept-egress-reply", "established"),
            ("accept-egress-error", "related"),
        ] {
            let conditions = [
                is(meta(MetaKey::Oifname), name(link)),
                is(ip("daddr"), address(sidecar)),
                has(ct("state"), name(state)),
            ];
            table.rule("forward", rule, conditions, accept());
        }
    }
}

/// Nobody beyond the host knows the uplink's addresses.
pub(super) fn in_host_postrouting(table: &mut Table, plan: &Plan) {
    if granted(plan).next().is_none() {
        return;
    }
    let link = plan.uplink.host_link.as_str();
    table.rule(
        "postrouting",
        "masquerade-egress",
        [
            is(ip("saddr"), address(plan.uplink.sidecar_address)),
            is_not(meta(MetaKey::Oifname), name(link)),
        ],
        Statement::Masquerade(None),
    );
}
