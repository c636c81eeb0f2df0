//! How often clients may begin a connection, where the sidecar sees them. Whatever comes from the relay's address the relay
//! has counted.
//!
//! A client is counted by an element of a set that its first packet adds. A set that is full takes no more, and a rule that
//! can't add matches nothing: so those that are not in it meet a second rule, which counts them together, as one client.
//! A flood of made-up clients therefore costs who comes new, not who is known, and the app never sees more than it.

use nftables::stmt::{Limit, Meter};

use super::*;

/// As many clients as the relay counts by themselves.
const MOST_CLIENTS: u32 = 65_536;

struct Counted<'a> {
    family: Family,
    app: &'a AppPlan,
    address: IpAddr,
    /// What a client may, over which a rule with it matches.
    over: Limit<'static>,
    per_client: bool,
    seconds: u32,
    /// Of the set. With all that an element keeps of its rate: a live change must not leave any that has the old one.
    set: String,
}

/// Every app with a rate that is published by DNAT, or was.
fn counted(plan: &Plan) -> Vec<Counted<'_>> {
    let mut found = vec![];
    for family in families(plan) {
        for app in &plan.apps {
            let by_dnat = app
                .reachable()
                .any(|port| port.via == Transport::Dnat && family.plan.has(port.listen.ip()));
            if let (Some(rate), Some(address), true) = (app.rate, family.app(app), by_dnat) {
                let unit = rate.unit();
                found.push(Counted {
                    family,
                    app,
                    address,
                    over: Limit {
                        rate: rate.count,
                        rate_unit: None,
                        per: Some(unit.into()),
                        burst: Some(rate.count),
                        burst_unit: None,
                        inv: Some(true),
                    },
                    per_client: rate.per_client,
                    seconds: rate.seconds,
                    set: format!(
                        "{}-{}-{unit}-{}",
                        family.named("rate"),
                        rate.count,
                        app.own_name()
                    ),
                });
            }
        }
    }
    found
}

pub(super) fn sets(table: &mut Table, plan: &Plan) {
    for counted in counted(plan).iter().filter(|counted| counted.per_client) {
        table.set(
            counted.set.clone(),
            &[counted.family.address_type()],
            vec![],
        );
        if let Some(NfListObject::Set(set)) = table.objects.last_mut() {
            set.flags = Some(HashSet::from([SetFlag::Timeout]));
            set.size = Some(MOST_CLIENTS);
            // By then an element is as good as none.
            set.timeout = Some(counted.seconds);
        }
    }
}

pub(super) fn in_forward(table: &mut Table, plan: &Plan) {
    rules(table, plan, false);
}

/// Of the apps that are handed their sockets.
pub(super) fn in_input(table: &mut Table, plan: &Plan) {
    rules(table, plan, true);
}

fn rules(table: &mut Table, plan: &Plan, via_socket: bool) {
    let its = counted(plan).into_iter();
    for counted in its.filter(|counted| counted.app.via_socket == via_socket) {
        let family = counted.family;
        let mut rule = |name: &str, over: Vec<Statement<'static>>| {
            let to_bridge = || {
                let bridge = self::name(plan.bridge.name.as_str());
                is(meta(MetaKey::Oifname), bridge)
            };
            let mut matches = vec![
                is(
                    meta(MetaKey::Iifname),
                    self::name(plan.uplink.sidecar_link.as_str()),
                ),
                if via_socket { always() } else { to_bridge() },
                has(ct("state"), self::name("new")),
                has(ct("status"), self::name("dnat")),
                is(family.daddr(), address(counted.address)),
                is_not(family.saddr(), address(family.plan.host)),
            ];
            matches.extend(over);
            let name = format!("{}-{}", family.named(name), counted.app.name);
            let chain = if via_socket { "input" } else { "forward" };
            table.rule(chain, name, matches, drop());
        };
        let limit = || Statement::Limit(counted.over.clone());
        if !counted.per_client {
            rule("drop-rate", vec![limit()]);
            continue;
        }
        let client = Statement::Meter(Meter {
            name: counted.set.clone().into(),
            key: family.saddr(),
            stmt: Box::new(limit()),
        });
        rule("drop-rate", vec![client]);
        let unknown = is_not(family.saddr(), self::name(&format!("@{}", counted.set)));
        rule("drop-crowd", vec![unknown, limit()]);
    }
}
