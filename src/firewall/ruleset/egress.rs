//! The rules for what apps may connect to, in both tables. A plan without egress has none of them.
//!
//! # Theory of operation
//!
//! Each grant is an element of a set, with its name for a comment and a counter, and one rule of a chain accepts what is in
//! the set: so a packet's way is as long with a thousand grants as with one, and `lrpns apply` changes elements and no
//! rule.
//!
//! One address with one port is an element of a set of such, which is a table of hashes and costs 0.1 us whatever is in it.
//! Ranges are of a set of ranges, whose cost grows slowly with them (0.2 us for one, 4 for 500, as much as 100 rules). In
//! one of these no two may have a key in common, or the kernel says EEXIST (`nft_pipapo_insert()`,
//! net/netfilter/nft_set_pipapo.c): therefore a range that overlaps an earlier one is in the set behind that one's, which a
//! rule of its own asks next. There are as many sets and rules as ranges that all overlap one another. So a packet is
//! counted by the grant of just its destination; else by the first range in the list that has it.
//!
//! TCP and UDP have sets of their own, since their rules log differently ([`logging`]); chains have, since each counts by
//! itself. A set is called by its chain, and [`granted_in`] takes that apart again.

use ipnet::IpNet;
use nftables::expr::Elem;

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

/// What sets of ranges are called, after their chain; and those behind them, with a number.
const RANGE: &str = "range";
const OVERLAP: &str = "overlap";

/// The chain whose grants a set has, by the set's name; `None` for another set.
pub(in crate::firewall) fn granted_in(set: &str) -> Option<&str> {
    let (chain, rest) = set.split_once('_')?;
    let ours = ["egress", "listed_egress", "connect", RANGE, OVERLAP];
    (["guard", "forward", "input"].contains(&chain)
        && ours.iter().any(|begin| rest.starts_with(begin)))
    .then_some(chain)
}

/// Accepts what is granted, under `conditions`. `what` tells several such places of a chain apart.
fn accept_all(
    table: &mut Table,
    place: (&'static str, &str),
    grants: &[Grant],
    conditions: impl Fn() -> Vec<Statement<'static>>,
) {
    let there = |of: Of| [of.family.saddr(), of.family.daddr(), of.dport()];
    accept_each(table, place, grants, there, conditions);
}

/// As [`accept_all`], where `key` says what of a packet is looked up: who grants, to whom, and which port.
fn accept_each(
    table: &mut Table,
    (chain, what): (&'static str, &str),
    grants: &[Grant],
    key: impl Fn(Of) -> [Expression<'static>; 3],
    conditions: impl Fn() -> Vec<Statement<'static>>,
) {
    let mut kinds: Vec<Of> = vec![];
    for of in grants.iter().map(Grant::of) {
        if !kinds.contains(&of) {
            kinds.push(of);
        }
    }
    for of in kinds {
        let its = grants.iter().filter(|grant| grant.of() == of);
        let (exact, ranges): (Vec<_>, Vec<_>) = its.partition(|grant| grant.is_exact());
        let mut accept_in = |kind: String, grants: Vec<&Grant>, set_of: AddSet| {
            let set = of.set(&format!("{chain}_{kind}{what}"));
            let family = of.family;
            let key = key(of);
            let within = is(concat(key), name(&format!("@{set}")));
            let address = family.address_type();
            let elements = grants.into_iter().map(Grant::element).collect();
            set_of(
                table,
                set,
                &[address, address, SetType::InetService],
                elements,
            );
            let rule = format!("accept-{kind}{what}").replace('_', "-");
            let conditions = conditions().into_iter().chain([within]);
            table.rule(chain, of.rule(&rule), conditions, accept());
        };
        let exact = distinct(exact);
        if !exact.is_empty() {
            accept_in(String::new(), exact, Table::set);
        }
        for (place, layer) in layers(distinct(ranges)).into_iter().enumerate() {
            let kind = match place {
                0 => format!("{RANGE}_"),
                _ => format!("{OVERLAP}{place}_"),
            };
            accept_in(kind, layer, Table::ranges);
        }
    }
}

/// [`Table::set`] or [`Table::ranges`].
type AddSet = fn(&mut Table, String, &[SetType], Vec<Expression<'static>>);

/// Leaves out what is there before.
fn distinct(mut grants: Vec<&Grant>) -> Vec<&Grant> {
    let mut known = BTreeSet::new();
    grants.retain(|grant| known.insert((grant.from, grant.egress)));
    grants
}

/// Takes ranges of one protocol apart such that none of a layer overlaps another, and each is behind all that come before
/// it and overlap it.
fn layers(grants: Vec<&Grant>) -> Vec<Vec<&Grant>> {
    let mut placed: Vec<(&Grant, usize)> = vec![];
    let mut layers: Vec<Vec<&Grant>> = vec![];
    for grant in grants {
        let overlapped = placed.iter().filter(|(other, _)| grant.overlaps(other));
        let layer = overlapped.map(|(_, layer)| layer + 1).max().unwrap_or(0);
        placed.push((grant, layer));
        match layers.get_mut(layer) {
            Some(layer) => layer.push(grant),
            None => layers.push(vec![grant]),
        }
    }
    layers
}

impl Grant {
    fn of(&self) -> Of {
        Of {
            protocol: self.egress.protocol,
            family: self.family,
        }
    }

    fn element(&self) -> Expression<'static> {
        let (first, last) = (self.egress.first_port, self.egress.last_port);
        let ports = if first == last {
            port(first)
        } else {
            let range = [port(first), port(last)];
            Expression::Range(Box::new(Range { range }))
        };
        let key = concat([address(self.from), subnet(self.egress.to), ports]);
        Expression::Named(NamedExpression::Elem(Elem {
            val: Box::new(key),
            timeout: None,
            expires: None,
            comment: Some(self.name.clone().into()),
            counter: Some(Counter::Anonymous(Some(AnonymousCounter {
                packets: Some(0),
                bytes: Some(0),
            }))),
        }))
    }

    /// Whether both grant some connection, if they are of one protocol and family.
    fn overlaps(&self, other: &Self) -> bool {
        let (one, two) = (&self.egress, &other.egress);
        one.first_port <= two.last_port
            && two.first_port <= one.last_port
            && self.from == other.from
            && (one.to.contains(&two.to) || two.to.contains(&one.to))
    }

    /// Whether it is one address and one port.
    fn is_exact(&self) -> bool {
        self.egress.is_single() && self.egress.first_port == self.egress.last_port
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
    let conditions = || vec![from_bridge()];
    accept_all(table, ("guard", "listed_egress"), &narrow, conditions);
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
    accept_all(table, ("guard", "egress"), &others, conditions);
}

/// What apps may reach of each other, as grants; those of answers are named so.
fn links(plan: &Plan, what: &str) -> Vec<Grant> {
    let families = families(plan);
    let mut found = vec![];
    for app in &plan.apps {
        for (link, egress) in plan.links(app) {
            let of = |family: &&Family| family.plan.has(egress.to.addr());
            let Some(family) = families.iter().find(of) else {
                continue;
            };
            let Some(from) = family.app(app) else {
                continue;
            };
            let ports = match (link.first_port, link.last_port) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            found.push(Grant {
                name: format!("accept-{what}-{}-{}-{ports}", app.name, link.app),
                family: *family,
                from,
                egress,
            });
        }
    }
    found
}

/// Apps of the stack, from one to another by way of the sidecar: what is granted, and what answers that. Whether somebody
/// has asked, `forward` knows.
pub(super) fn links_in_guard(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    let from_bridge = || vec![is(meta(MetaKey::Iifname), name(bridge))];
    accept_all(
        table,
        ("guard", "connect"),
        &links(plan, "connect"),
        from_bridge,
    );
    let answers = links(plan, "connect-reply");
    let back = |of: Of| [of.family.daddr(), of.family.saddr(), of.sport()];
    accept_each(
        table,
        ("guard", "connect_reply"),
        &answers,
        back,
        from_bridge,
    );
}

/// The same in `forward`: the answers belong to what was let in.
pub(super) fn links_in_forward(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    accept_all(
        table,
        ("forward", "connect"),
        &links(plan, "connect"),
        || {
            vec![
                is(meta(MetaKey::Iifname), name(bridge)),
                is(meta(MetaKey::Oifname), name(bridge)),
                has(ct("state"), name("new")),
            ]
        },
    );
}

pub(super) fn in_forward(table: &mut Table, plan: &Plan) {
    let bridge = plan.bridge.name.as_str();
    let uplink = plan.uplink.sidecar_link.as_str();
    let grants: Vec<_> = granted(plan).collect();
    accept_all(table, ("forward", "egress"), &grants, || {
        vec![
            is(meta(MetaKey::Iifname), name(bridge)),
            is(meta(MetaKey::Oifname), name(uplink)),
            has(ct("state"), name("new")),
        ]
    });
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

/// The grants as they are seen beyond the sidecar, from where all of it comes.
fn granted_to_sidecar(plan: &Plan) -> impl Iterator<Item = Grant> {
    granted(plan).map(|grant| Grant {
        from: grant.family.plan.sidecar,
        ..grant
    })
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
    let grants: Vec<_> = granted_to_sidecar(plan)
        .filter(|grant| by_relay || grant.egress.is_single())
        .collect();
    let link = plan.uplink.host_link.as_str();
    let from_sidecar = || vec![is(meta(MetaKey::Iifname), name(link))];
    accept_all(table, ("input", "egress"), &grants, from_sidecar);
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
    let conditions = || vec![from_sidecar()];
    let (single, ranges): (Vec<_>, Vec<_>) =
        granted_to_sidecar(plan).partition(|grant| grant.egress.is_single());
    accept_all(table, ("forward", "listed_egress"), &single, conditions);
    if !ranges.is_empty() {
        let translated = has(ct("status"), name("dnat"));
        let conditions = [from_sidecar(), translated];
        table.rule("forward", "drop-egress-translated", conditions, drop());
    }
    accept_all(table, ("forward", "egress"), &ranges, conditions);
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
