//! The rules for what apps may connect to, in both tables. A plan without egress has none of them.

use ipnet::IpNet;

use super::*;
use crate::config::{Egress, METADATA6};

/// Every destination with the app that may connect to it, and a number by which the rules of it are known: its place in
/// the app's list.
fn granted(plan: &Plan) -> impl Iterator<Item = Grant> {
    let families = families(plan);
    plan.apps.iter().flat_map(move |app| {
        let families = families.clone();
        app.egress
            .iter()
            .enumerate()
            .filter_map(move |(place, egress)| {
                let of = |family: &&Family| family.plan.has(egress.to.addr());
                let family = *families.iter().find(of)?;
                Some(Grant {
                    name: format!("accept-egress-{}-{place}", app.name),
                    family,
                    from: family.app(app)?,
                    egress: *egress,
                })
            })
    })
}

/// The families that an app may connect by. The others have no rule for it.
fn granted_families(plan: &Plan) -> impl Iterator<Item = Family> {
    let all = families(plan).into_iter();
    all.filter(|family| granted(plan).any(|grant| grant.family == *family))
}

struct Grant {
    name: String,
    family: Family,
    /// The app's address.
    from: IpAddr,
    egress: Egress,
}

impl Grant {
    fn from(&self) -> Statement<'static> {
        is(self.family.saddr(), address(self.from))
    }

    /// The destination's address.
    fn to(&self) -> Statement<'static> {
        let (to, daddr) = (self.egress.to, self.family.daddr());
        match to.prefix_len() {
            // All of the family, which a rule's other address says.
            0 => always(),
            _ => is(daddr, subnet(to)),
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

    /// Whether it is of what must be listed by itself.
    fn is_narrow(&self) -> bool {
        match self.egress.to {
            IpNet::V4(net) => LINK_LOCAL.contains(&net),
            IpNet::V6(net) => self.egress.is_single() && METADATA6.contains(&net.addr()),
        }
    }

    /// Whether it would open all of `net` as well.
    fn opens(&self, net: IpNet) -> bool {
        self.egress.to.contains(&net)
    }
}

/// The grants of what must be listed by itself, then the others.
fn by_reach(plan: &Plan) -> [Vec<Grant>; 2] {
    let (narrow, others) = granted(plan).partition(Grant::is_narrow);
    [narrow, others]
}

/// Whether a range has one of [`METADATA6`] in it.
fn opens_metadata6(grant: &Grant) -> bool {
    !grant.is_narrow()
        && METADATA6
            .iter()
            .any(|to| grant.opens(IpAddr::V6(*to).into()))
}

pub(super) fn sets(table: &mut Table, plan: &Plan) {
    if granted(plan).any(|grant| opens_metadata6(&grant)) {
        let all: BTreeSet<_> = METADATA6.into_iter().collect();
        let all = all.into_iter().map(address).collect();
        table.set("metadata6".to_owned(), &[SetType::Ipv6Addr], all);
    }
}

pub(super) fn in_guard(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    let from_bridge = || is(meta(MetaKey::Iifname), name(bridge));
    let [narrow, others] = by_reach(plan);
    let accept_all = |table: &mut Table, grants: Vec<Grant>| {
        for grant in grants {
            let conditions = [from_bridge(), grant.from(), grant.to(), grant.ports()];
            table.rule("guard", grant.name, conditions, accept());
        }
    };
    accept_all(table, narrow);
    // What a wide range would open as well.
    for family in families(plan) {
        let mut special = vec![
            ("drop-app-link-local", family.link_local()),
            ("drop-app-subnet", family.plan.subnet),
        ];
        if family.plan.bridge.is_ipv6() {
            special.push(("drop-app-multicast", MULTICAST6.into()));
        }
        for (rule, net) in special {
            if others.iter().any(|grant| grant.opens(net)) {
                let to = is(family.daddr(), subnet(net));
                table.rule("guard", family.named(rule), [from_bridge(), to], drop());
            }
        }
    }
    if others.iter().any(opens_metadata6) {
        let to = is(header_field("ip6", "daddr"), name("@metadata6"));
        table.rule("guard", "drop-app-metadata6", [from_bridge(), to], drop());
    }
    accept_all(table, others);
}

pub(super) fn in_forward(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    let uplink = plan.uplink.sidecar_link.as_str();
    for grant in granted(plan) {
        let conditions = [
            is(meta(MetaKey::Iifname), name(bridge)),
            is(meta(MetaKey::Oifname), name(uplink)),
            has(ct("state"), name("new")),
            grant.from(),
            grant.to(),
            grant.ports(),
        ];
        table.rule("forward", grant.name, conditions, accept());
    }
}

/// What an app starts leaves with the sidecar's address: the host knows no other.
pub(super) fn in_postrouting(table: &mut Table, plan: &Plan) {
    let uplink = plan.uplink.sidecar_link.as_str();
    for family in granted_families(plan) {
        table.rule(
            "postrouting",
            family.named("snat-egress"),
            [
                is(meta(MetaKey::Oifname), name(uplink)),
                is(family.saddr(), family.at("apps")),
            ],
            family.snat(address(family.plan.sidecar)),
        );
    }
}

/// Whether the host forwards what is granted; else the relay's namespace is where it ends.
fn by_host(plan: &Plan) -> bool {
    plan.uplink.ends_at == UplinkEnd::Host && granted(plan).next().is_some()
}

pub(super) fn host_chains(table: &mut Table, plan: &Plan) {
    if by_host(plan) {
        table.nat("postrouting", NfHook::Postrouting, SRCNAT);
    }
}

/// To the host itself only by an address that was listed by itself: a range of addresses does not open the host. The
/// host's own rules still have their say.
///
/// In the relay's namespace every address is local, so all that is granted is let in; but from the sidecar only, and not
/// from the relay, which could write to the same sockets.
pub(super) fn in_host_input(table: &mut Table, plan: &Plan) {
    let by_relay = plan.egress_relay().is_some();
    if by_relay {
        let within = is(meta(MetaKey::Iifname), name("lo"));
        table.rule("input", "drop-within", [within], drop());
    }
    for grant in granted(plan).filter(|grant| by_relay || grant.egress.is_single()) {
        let family = grant.family;
        let conditions = [
            is(meta(MetaKey::Iifname), name(plan.uplink.host_link.as_str())),
            is(family.saddr(), address(family.plan.sidecar)),
            grant.to(),
            grant.ports(),
        ];
        table.rule("input", grant.name, conditions, accept());
    }
}

/// What a service of the host answers an app: the service is a user of the host's, too.
pub(super) fn in_host_output(table: &mut Table, plan: &Plan) {
    if by_host(plan) && granted(plan).any(|grant| grant.egress.is_single()) {
        let conditions = [
            is(meta(MetaKey::Oifname), name(plan.uplink.host_link.as_str())),
            has(ct("state"), name("established")),
        ];
        table.rule("output", "accept-egress-reply", conditions, accept());
    }
}

/// What the host translates was said to one of its own addresses, such as a port that another stack or Docker publishes
/// there. To a range that may look like any destination; an address that was listed by itself is not it any more.
pub(super) fn in_host_forward(table: &mut Table, plan: &Plan) {
    if !by_host(plan) {
        return;
    }
    let link = plan.uplink.host_link.as_str();
    let from_sidecar = || is(meta(MetaKey::Iifname), name(link));
    let accept_all = |table: &mut Table, grants: Vec<Grant>| {
        for grant in grants {
            let from = is(grant.family.saddr(), address(grant.family.plan.sidecar));
            let conditions = [from_sidecar(), from, grant.to(), grant.ports()];
            table.rule("forward", grant.name, conditions, accept());
        }
    };
    let (single, ranges): (Vec<_>, Vec<_>) =
        granted(plan).partition(|grant| grant.egress.is_single());
    accept_all(table, single);
    if !ranges.is_empty() {
        let translated = has(ct("status"), name("dnat"));
        let conditions = [from_sidecar(), translated];
        table.rule("forward", "drop-egress-translated", conditions, drop());
    }
    accept_all(table, ranges);
    for family in granted_families(plan) {
        for (rule, state) in [
            ("accept-egress-reply", "established"),
            ("accept-egress-error", "related"),
        ] {
            let conditions = [
                is(meta(MetaKey::Oifname), name(link)),
                is(family.daddr(), address(family.plan.sidecar)),
                has(ct("state"), name(state)),
            ];
            table.rule("forward", family.named(rule), conditions, accept());
        }
    }
}

/// Nobody beyond the host knows the uplink's addresses.
pub(super) fn in_host_postrouting(table: &mut Table, plan: &Plan) {
    if !by_host(plan) {
        return;
    }
    let link = plan.uplink.host_link.as_str();
    for family in granted_families(plan) {
        table.rule(
            "postrouting",
            family.named("masquerade-egress"),
            [
                is(family.saddr(), address(family.plan.sidecar)),
                is_not(meta(MetaKey::Oifname), name(link)),
            ],
            Statement::Masquerade(None),
        );
    }
}
