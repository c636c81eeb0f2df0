//! Pure: [`Plan`] to rules. A whole table, never a patch.
//!
//! Base chains are fixed, and everything that depends on the plan's apps and ports is an element of a set or a map: a
//! replaced base chain costs some new connection its SYN now and then, a changed element costs nothing.
//!
//! Every rule is made by [`Table::rule`], which gives it a name (its comment), a counter, and in the sidecar's table what
//! it logs ([`logging`]). Every filter chain ends in `drop-rest`, so nothing is eaten by a policy uncounted.
//!
//! A port in a `dnat` needs a transport protocol that is known from the rule (nft(8)), so UDP is a second rule with maps of
//! its own rather than a wider key; a stack that publishes none has neither. And a published port is two maps, address and
//! port, because nft 1.0.6 lists a map with a concatenation as its *value* but refuses to read that JSON again. A packet
//! that meets one of them without the other (while elements change) is not translated, and dropped.

mod edges;
pub(super) mod egress;
mod frame;
mod localhost;
mod rate;
mod uplink;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftables::expr::{
    BinaryOperation, CT, Expression, Exthdr, Fib, FibFlag, FibResult, Map as MapExpression, Meta,
    MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range, Socket, SocketAttr,
};
use nftables::schema::{
    Chain, Map, NfListObject, NfObject, Nftables, Rule, Set, SetFlag, SetType, SetTypeValue,
    Table as NfTable,
};
use nftables::stmt::{
    AnonymousCounter, Counter, JumpTarget, Match, NAT, NATFamily, Operator, Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

pub(super) use frame::frame;
pub use localhost::{APP_TABLE, app_rules};
pub use uplink::{UPLINK_OUT, uplink_rules};

use super::logging;
use crate::config::{Protocol, Source, TrafficLog};
use crate::names::StackName;
use crate::plan::{AppPlan, FamilyPlan, Plan, PublishPlan, Transport, UplinkEnd};

/// The table in the sidecar's namespace. It is alone there, so it needs no stack's name.
pub const SIDECAR_TABLE: &str = "lrpns";

/// The table of a stack in the host's namespace.
///
/// Any [`StackName`] makes an identifier of nft's language this way: a letter first, then letters, digits, `-` and `_`.
#[must_use]
pub fn host_table(stack: &StackName) -> String {
    format!("lrpns-{stack}")
}

/// Whether these are rules of [`host_rules`] for that stack, whatever they say: objects of its table alone.
#[must_use]
pub fn is_of(rules: &Nftables<'_>, stack: &StackName) -> bool {
    let table = host_table(stack);
    rules.objects.iter().all(|object| {
        let object = serde_json::to_value(object).unwrap_or_default();
        let mut kinds = object.as_object().into_iter().flatten();
        kinds.all(|(kind, its)| {
            let name = if kind == "table" { "name" } else { "table" };
            its["family"] == "inet" && its[name] == *table
        })
    })
}

/// Where the rules of [`host_rules`] are in force: a table, or a stack's part of the one that stacks share, as
/// `TABLE/STACK`.
#[must_use]
pub fn end_table(plan: &Plan) -> String {
    match plan.uplink.ends_at {
        UplinkEnd::Host => format!("{}/{}", super::shared::TABLE, plan.stack),
        UplinkEnd::Relay => host_table(&plan.stack),
    }
}

/// Whether a table is one of ours by its name, whichever stack's: also the short-lived ones of `capture` and `trace`.
#[must_use]
pub fn is_ours(table: &str) -> bool {
    table == SIDECAR_TABLE || table == super::shared::TABLE || table.starts_with("lrpns-")
}

/// Takes a chain with its rules out of a ruleset.
pub fn without_chain(rules: &mut Nftables<'static>, name: &str) {
    rules.objects.to_mut().retain(|object| match object {
        NfObject::ListObject(NfListObject::Chain(chain)) => chain.name != name,
        NfObject::ListObject(NfListObject::Rule(rule)) => rule.chain != name,
        _ => true,
    });
}

/// The rules in the sidecar's namespace, the same however a port gets there.
///
/// What each chain is for, and what an attacker finds there:
///
/// - `guard` (raw, before conntrack, after defragmentation: fragments are whole packets again or never arrive): who may
///   say what at all. From the uplink, only packets to the uplink's address, and none that claim to come from the
///   stack's subnet: so an app's address is not reachable by routing to it, and nobody plays app. From the bridge, only
///   an app's own address, which is its own by the link-layer address that the bridge takes from its port alone (IPv6
///   lets anybody bind an address that is not theirs, `ipv6_can_nonlocal_bind`), from a port that is published, to the
///   sidecar's address, which is where `postrouting` makes all connections come from: so an app has no words for the
///   host, 169.254/16, a broadcast, or another app, whatever conntrack would think of them. An app that sees its
///   clients (`source = "client"`) may answer anybody outside of the subnet, from a published port; whether somebody
///   has asked, `forward` knows. Without a prefix, IPv6 ends here, or in `output`; there is no third way into the
///   hooks. With one, it has the same rules as IPv4, made by the same lines; nobody needs to discover a neighbour or a
///   router, so no packet of that kind has a rule that lets it in. Nor does anything here use `lo`.
/// - `prerouting`: published entry ports become app addresses. Its counter counts the new connections that were offered
///   to the map; what the map doesn't know stays addressed to the sidecar and meets `input`.
/// - `input`: accepts nothing. The sidecar has no socket; what arrives is a port that isn't published, an app that
///   speaks out of turn, or a packet that belongs to no connection. Unless an app is handed its sockets (`via = "socket"`),
///   which are here: then what `forward` does for others is done here for those, by the same sets.
/// - `forward`: published connections, and what belongs to them. From the uplink to the bridge and translated by us, to
///   a published port of an app: nothing else is new, so an app starts nothing, also not in the words of a reply, and
///   not by a packet in the middle of a connection that conntrack has never seen. Nobody has a link-local address
///   beyond the uplink: a client that says so would have an app that sees it talk to the host's neighbours. ICMP errors
///   about such a connection are let in, from the uplink only: path MTU discovery needs them. Apps are end hosts and
///   owe nobody one.
///   Where an app has an `allow`, a client that is in none of its ranges ends here, and where it has a `rate`, one that
///   connects more often; what comes by the relay it has judged.
/// - `log-connections` logs how connections begin and end, and decides nothing; what else is logged is said in
///   [`logging`].
/// - `output`: nothing. The sidecar's own ICMP errors would tell of a hop that need not be known, and none is needed:
///   both links have one MTU, and neighbours are permanent. There is no socket that could send a RST. The sockets that
///   apps are handed send replies, and nothing else.
/// - `egress` of an app: to each listed destination and no other, in `guard` and in `forward`, by an element of a set
///   each, so that each has its counter, and a thousand cost a packet as much as one; in `postrouting` it gets the sidecar's uplink address. Where clouds tell credentials (IPv4's
///   link-local addresses, and a few of IPv6) must be listed by itself: a wide range does not open it. IPv6's link-local
///   and multicast addresses nothing opens.
/// - `connect` of an app: to each listed port of another app and no other, the same way, from the bridge to the bridge. The
///   bridge's ports are isolated from each other, so the sidecar is the only way; it translates nothing, and both apps see
///   each other's address.
///   Where that app has been replaced, `prerouting` takes who connects by the address it had at first to where it is.
/// - `postrouting`: the app sees the sidecar's address, and needs no route; unless it shall see its clients'.
#[must_use]
pub fn sidecar_rules(plan: &Plan) -> Nftables<'static> {
    let side = Sidecar::of(plan);
    let mut table = Table::new(SIDECAR_TABLE.to_owned());
    table.log = Some(plan.log);
    side.sets(&mut table);
    rate::sets(&mut table, plan);
    egress::sets(&mut table, plan);

    table.filter("guard", NfHook::Prerouting, RAW, NfChainPolicy::Drop);
    table.nat("prerouting", NfHook::Prerouting, DSTNAT);
    table.filter("input", NfHook::Input, FILTER, NfChainPolicy::Drop);
    table.filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Drop);
    table.filter("output", NfHook::Output, FILTER, NfChainPolicy::Drop);
    table.nat("postrouting", NfHook::Postrouting, SRCNAT);
    edges::chain(&mut table, plan);

    side.guard(&mut table);
    side.prerouting(&mut table);
    side.moved(&mut table);
    side.input(&mut table);
    side.forward(&mut table);
    side.output(&mut table);
    side.postrouting(&mut table);
    edges::rules(&mut table, plan);
    match plan.rules {
        Some(_) => super::extra::with_places(&table.into_rules()),
        None => table.into_rules(),
    }
}

/// What the rules in the sidecar's namespace are made of: [`sidecar_rules`] chain by chain.
struct Sidecar<'p> {
    plan: &'p Plan,
    families: Vec<Family>,
    published: Vec<(Of, Vec<(&'p AppPlan, &'p PublishPlan)>)>,
    /// The families in which not everybody may be a client, and who may of which app.
    selective: Vec<(Family, Vec<(IpAddr, IpNet)>)>,
}

impl<'p> Sidecar<'p> {
    fn of(plan: &'p Plan) -> Self {
        let families = families(plan);
        let selective = families.iter();
        let selective = selective.filter_map(|family| Some((*family, allowed(plan, *family)?)));
        Self {
            plan,
            published: published(plan),
            selective: selective.collect(),
            families,
        }
    }

    fn iif_uplink(&self) -> Statement<'static> {
        let uplink = self.plan.uplink.sidecar_link.as_str();
        is(meta(MetaKey::Iifname), name(uplink))
    }

    fn oif_uplink(&self) -> Statement<'static> {
        let uplink = self.plan.uplink.sidecar_link.as_str();
        is(meta(MetaKey::Oifname), name(uplink))
    }

    /// Whether an app is handed its sockets, which are in the sidecar's namespace.
    fn hands_over(&self) -> bool {
        self.plan.handed_apps().next().is_some()
    }

    /// The published ports at which an app may have such a socket.
    fn handed(&self) -> impl Iterator<Item = Of> {
        let all = self.published.iter().map(|(of, _)| *of);
        all.filter(|of| self.hands_over() && of.protocol == Protocol::Tcp)
    }

    fn iif_bridge(&self) -> Statement<'static> {
        is(meta(MetaKey::Iifname), name(self.plan.bridge.name.as_str()))
    }

    fn oif_bridge(&self) -> Statement<'static> {
        is(meta(MetaKey::Oifname), name(self.plan.bridge.name.as_str()))
    }

    fn sets(&self, table: &mut Table) {
        for (of, ports) in &self.published {
            let entries: BTreeMap<u16, SocketAddr> = ports
                .iter()
                .map(|(app, port)| (port.entry_port, app.service(port)))
                .collect();
            // Connections through a port that is closing live on, and nothing translates a new one to it.
            let services = |via_socket: bool| -> Vec<Expression<'static>> {
                let its = reachable(self.plan, *of);
                let its = its.filter(|(app, _)| app.via_socket == via_socket);
                let its: BTreeSet<SocketAddr> = its.map(|(app, at)| app.service(at)).collect();
                its.iter()
                    .map(|service| concat([address(service.ip()), port(service.port())]))
                    .collect()
            };
            table.map(
                of.set("publish_address"),
                &[SetType::InetService],
                of.family.address_type(),
                entries
                    .iter()
                    .map(|(entry, service)| pair(port(*entry), address(service.ip())))
                    .collect(),
            );
            table.map(
                of.set("publish_port"),
                &[SetType::InetService],
                SetType::InetService,
                entries
                    .iter()
                    .map(|(entry, service)| pair(port(*entry), port(service.port())))
                    .collect(),
            );
            table.set(
                of.set("services"),
                &[of.family.address_type(), SetType::InetService],
                services(false),
            );
            if self.hands_over() {
                table.set(
                    of.set("sockets"),
                    &[of.family.address_type(), SetType::InetService],
                    services(true),
                );
            }
        }
        for family in &self.families {
            let addresses = |wanted: &dyn Fn(&AppPlan) -> bool| -> Vec<_> {
                let apps = self.plan.apps.iter().filter(|app| wanted(app));
                let all: BTreeSet<IpAddr> = apps.filter_map(|app| family.app(app)).collect();
                all.into_iter().map(address).collect()
            };
            let set_type = [family.address_type()];
            table.set(family.named("apps"), &set_type, addresses(&|_| true));
            let senders = self.plan.linked_apps();
            let senders: BTreeSet<_> = senders
                .filter_map(|app| Some((family.app(app)?, app.mac.to_string())))
                .collect();
            table.set(
                family.named("senders"),
                &[family.address_type(), SetType::EtherAddr],
                senders
                    .iter()
                    .map(|(app, mac)| concat([address(*app), name(mac)]))
                    .collect(),
            );
            table.set(
                family.named("sees_clients"),
                &set_type,
                addresses(&|app| app.source == Source::Client),
            );
        }
        for (family, allowed) in &self.selective {
            let element = |(app, net): &(IpAddr, IpNet)| concat([address(*app), subnet(*net)]);
            table.ranges(
                family.named("allowed"),
                &[family.address_type(), family.address_type()],
                allowed.iter().map(element).collect(),
            );
        }
    }

    fn guard(&self, table: &mut Table) {
        if self.plan.has_ipv6() {
            // A source route: the kernel's own refusal of it comes later, and may be forgotten (RFC 5095, RFC 8754).
            table.rule("guard", "drop-routing-header", [routing_header()], drop());
            // Of IPv4 by IPv6 (RFC 4291, 2.5.5.2): such an address is none on a network, and to a socket of both families
            // it is its IPv4 client's, 127.0.0.1's too. The kernel refuses that of TCP alone, where the socket is.
            let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
            let forged = is(header_field("ip6", "saddr"), subnet(mapped));
            table.rule("guard", "drop-mapped6", [forged], drop());
        } else {
            table.rule("guard", "drop-ipv6", [is_ipv6()], drop());
        }
        for family in &self.families {
            table.rule(
                "guard",
                family.named("drop-uplink-spoof"),
                [
                    self.iif_uplink(),
                    is(family.saddr(), subnet(family.plan.subnet)),
                ],
                drop(),
            );
            table.rule(
                "guard",
                family.named("accept-uplink"),
                [
                    self.iif_uplink(),
                    is(family.daddr(), address(family.plan.sidecar)),
                ],
                accept(),
            );
        }
        table.rule("guard", "drop-uplink-bypass", [self.iif_uplink()], drop());
        for family in &self.families {
            table.rule(
                "guard",
                family.named("drop-app-spoof"),
                [
                    self.iif_bridge(),
                    is_not(
                        concat([family.saddr(), header_field("ether", "saddr")]),
                        family.at("senders"),
                    ),
                ],
                drop(),
            );
        }
        for (of, _) in &self.published {
            let family = of.family;
            let from_service = || is(concat([family.saddr(), of.sport()]), of.at("services"));
            table.rule(
                "guard",
                of.rule("accept-app-reply"),
                [
                    self.iif_bridge(),
                    is(family.daddr(), address(family.plan.bridge)),
                    from_service(),
                ],
                accept(),
            );
            table.rule(
                "guard",
                of.rule("accept-app-reply-to-client"),
                [
                    self.iif_bridge(),
                    is(family.saddr(), family.at("sees_clients")),
                    is_not(family.daddr(), subnet(family.plan.subnet)),
                    from_service(),
                ],
                accept(),
            );
        }
        egress::links_in_guard(table, self.plan);
        egress::in_guard(table, self.plan);
        table.rule("guard", "drop-app-egress", [self.iif_bridge()], drop());
        table.rule("guard", "drop-rest", [], drop());
    }

    fn prerouting(&self, table: &mut Table) {
        for (of, _) in &self.published {
            table.rule(
                "prerouting",
                of.rule("dnat-published"),
                [
                    self.iif_uplink(),
                    is(of.family.daddr(), address(of.family.plan.sidecar)),
                    of.speaks(),
                ],
                of.family.dnat(
                    lookup(of.dport(), of.at("publish_address")),
                    lookup(of.dport(), of.at("publish_port")),
                ),
            );
        }
    }

    /// Who connects to an app by the address that its /etc/hosts has is taken to where that app is.
    fn moved(&self, table: &mut Table) {
        for family in &self.families {
            let of = |(home, _): &(IpAddr, IpAddr)| family.plan.has(*home);
            let moved: BTreeMap<IpAddr, IpAddr> = self.plan.moved().filter(of).collect();
            if moved.is_empty() {
                continue;
            }
            let elements = moved.iter();
            let elements = elements.map(|(home, now)| pair(address(*home), address(*now)));
            table.map(
                family.named("moved"),
                &[family.address_type()],
                family.address_type(),
                elements.collect(),
            );
            table.rule(
                "prerouting",
                family.named("dnat-moved"),
                [self.iif_bridge()],
                family.dnat_address(lookup(family.daddr(), family.at("moved"))),
            );
        }
    }

    fn input(&self, table: &mut Table) {
        table.rule(
            "input",
            "drop-invalid",
            [has(ct("state"), name("invalid"))],
            drop(),
        );
        self.sockets_in(table);
        table.rule("input", "drop-unpublished", [self.iif_uplink()], drop());
        table.rule("input", "drop-from-app", [self.iif_bridge()], drop());
        table.rule("input", "drop-rest", [], drop());
    }

    /// To the sockets that apps are handed: as in `forward`, by the same rules, and nothing that they are not for.
    fn sockets_in(&self, table: &mut Table) {
        let to_socket = |of: Of| is(concat([of.family.daddr(), of.dport()]), of.at("sockets"));
        if self.hands_over() {
            edges::in_chain(table, self.plan, "input");
        }
        for of in self.handed() {
            let family = of.family;
            if self.plan.rules.is_some() {
                let own = Statement::Jump(JumpTarget {
                    target: "before".into(),
                });
                let matches = [self.iif_uplink(), to_socket(of)];
                table.rule("input", of.rule("jump-before-socket"), matches, own);
            }
            table.rule(
                "input",
                of.rule("accept-socket-established"),
                [
                    self.iif_uplink(),
                    to_socket(of),
                    has(ct("state"), name("established")),
                ],
                accept(),
            );
            table.rule(
                "input",
                of.rule("drop-socket-link-local-client"),
                [
                    self.iif_uplink(),
                    to_socket(of),
                    is(family.saddr(), subnet(family.link_local())),
                    has(ct("state"), name("new")),
                ],
                drop(),
            );
            if self.selective.iter().any(|(other, _)| *other == family) {
                table.rule(
                    "input",
                    of.rule("drop-socket-not-allowed"),
                    [
                        self.iif_uplink(),
                        to_socket(of),
                        has(ct("state"), name("new")),
                        is_not(
                            concat([family.daddr(), family.saddr()]),
                            family.at("allowed"),
                        ),
                    ],
                    drop(),
                );
            }
        }
        rate::in_input(table, self.plan);
        for of in self.handed() {
            table.rule(
                "input",
                of.rule("accept-socket"),
                [
                    self.iif_uplink(),
                    has(ct("state"), name("new")),
                    has(ct("status"), name("dnat")),
                    to_socket(of),
                ],
                accept(),
            );
        }
        for family in &self.families {
            if self.hands_over() {
                table.rule(
                    "input",
                    family.named("accept-socket-icmp-error"),
                    [
                        self.iif_uplink(),
                        has(ct("state"), name("related")),
                        is(meta(MetaKey::L4proto), name(family.icmp())),
                    ],
                    accept(),
                );
            }
        }
    }

    /// Lets the sockets that apps are handed send what belongs to a connection that came to one. An app can disconnect what it
    /// has accepted (connect(2), `AF_UNSPEC`) and connect elsewhere with it, also from the same port to the same client. So a
    /// SYN leaves only with an ACK, and only packets of connections that conntrack has seen come in.
    fn sockets_out(&self, table: &mut Table) {
        if self.hands_over() {
            edges::in_chain(table, self.plan, "output");
        }
        for of in self.handed() {
            table.rule(
                "output",
                of.rule("accept-socket-reply"),
                [
                    self.oif_uplink(),
                    is(concat([of.family.saddr(), of.sport()]), of.at("sockets")),
                    has(ct("state"), name("established")),
                    has(ct("status"), name("dnat")),
                    is_not(masked(of.field("flags"), ["syn", "ack"]), name("syn")),
                ],
                accept(),
            );
        }
    }

    fn forward(&self, table: &mut Table) {
        edges::in_chain(table, self.plan, "forward");
        // The common case first; nothing that is invalid or new matches it.
        table.rule(
            "forward",
            "accept-established",
            [has(ct("state"), name("established"))],
            accept(),
        );
        for family in &self.families {
            table.rule(
                "forward",
                family.named("drop-link-local-client"),
                [
                    self.iif_uplink(),
                    is(family.daddr(), family.at("sees_clients")),
                    is(family.saddr(), subnet(family.link_local())),
                    has(ct("state"), name("new")),
                ],
                drop(),
            );
        }
        for (family, _) in &self.selective {
            table.rule(
                "forward",
                family.named("drop-not-allowed"),
                [
                    self.iif_uplink(),
                    self.oif_bridge(),
                    has(ct("state"), name("new")),
                    is_not(
                        concat([family.daddr(), family.saddr()]),
                        family.at("allowed"),
                    ),
                ],
                drop(),
            );
        }
        rate::in_forward(table, self.plan);
        for (of, _) in &self.published {
            table.rule(
                "forward",
                of.rule("accept-published"),
                [
                    self.iif_uplink(),
                    self.oif_bridge(),
                    has(ct("state"), name("new")),
                    has(ct("status"), name("dnat")),
                    is(concat([of.family.daddr(), of.dport()]), of.at("services")),
                ],
                accept(),
            );
        }
        for family in &self.families {
            table.rule(
                "forward",
                family.named("accept-icmp-error"),
                [
                    self.iif_uplink(),
                    self.oif_bridge(),
                    has(ct("state"), name("related")),
                    is(meta(MetaKey::L4proto), name(family.icmp())),
                ],
                accept(),
            );
        }
        table.rule(
            "forward",
            "drop-invalid",
            [has(ct("state"), name("invalid"))],
            drop(),
        );
        egress::links_in_forward(table, self.plan);
        egress::in_forward(table, self.plan);
        table.rule("forward", "drop-from-app", [self.iif_bridge()], drop());
        table.rule("forward", "drop-rest", [], drop());
    }

    fn output(&self, table: &mut Table) {
        if !self.plan.has_ipv6() {
            table.rule("output", "drop-ipv6", [is_ipv6()], drop());
        }
        if self.plan.rules.is_some() {
            // What `reject` in a rule of the user's answers: the kernel attaches it to the connection of the packet that it
            // is about (nf_send_reset(), icmp_glue_bits()), so it is related to that and goes to who sent the packet.
            // Nobody else sends anything that is: the sidecar has no socket, and of a raw one it has no capability.
            let related = || has(ct("state"), name("related"));
            table.rule(
                "output",
                "accept-reset",
                [related(), has(header_field("tcp", "flags"), name("rst"))],
                accept(),
            );
            for family in &self.families {
                table.rule(
                    "output",
                    family.named("accept-unreachable"),
                    [related(), is(meta(MetaKey::L4proto), name(family.icmp()))],
                    accept(),
                );
            }
        }
        self.sockets_out(table);
        table.rule("output", "drop-rest", [], drop());
    }

    fn postrouting(&self, table: &mut Table) {
        for family in &self.families {
            // Translated, and not from without: both see each other's address.
            if self.plan.moved().any(|(home, _)| family.plan.has(home)) {
                let from_app = is(family.saddr(), family.at("apps"));
                let matches = [self.oif_bridge(), from_app];
                table.rule(
                    "postrouting",
                    family.named("accept-moved"),
                    matches,
                    accept(),
                );
            }
            table.rule(
                "postrouting",
                family.named("snat-published"),
                [
                    self.oif_bridge(),
                    has(ct("status"), name("dnat")),
                    is_not(family.daddr(), family.at("sees_clients")),
                ],
                family.snat(address(family.plan.bridge)),
            );
        }
        egress::in_postrouting(table, self.plan);
    }
}

fn is_ipv6() -> Statement<'static> {
    is(meta(MetaKey::Nfproto), name("ipv6"))
}

/// What [`capture_rules`] call a packet that was let through.
pub const CAPTURED: &str = "forward/let-through";

/// The table of [`capture_rules`].
pub const CAPTURE_TABLE: &str = "lrpns-capture";

/// The table of `lrpns capture`, in the sidecar's namespace, beside ours and behind it: what comes here has been let
/// through. What is dropped never does, and is logged where that is done.
#[must_use]
pub fn capture_rules() -> Nftables<'static> {
    let mut table = Table::new(CAPTURE_TABLE.to_owned());
    // The last two for the sockets that apps are handed: nothing else comes through there.
    for (chain, hook) in [
        ("forward", NfHook::Forward),
        ("input", NfHook::Input),
        ("output", NfHook::Output),
    ] {
        table.filter(chain, hook, FILTER + 10, NfChainPolicy::Accept);
        let log = logging::log("forward", "let-through", logging::CAPTURE);
        table.rule(chain, "let-through", [], log);
    }
    table.into_rules()
}

/// The rules in the host's namespace: they publish by DNAT, where the plan says so, and guard our own link, always.
///
/// Nothing here decides about a packet that neither crosses our link nor has an address of it, nor starts a connection to a
/// published port, nor comes from the relay. A stack that only relays, and no UDP, has no rule that makes the kernel track
/// connections. An `accept` here says that we have no objection; the host's own rules still have their say, as do a drop of
/// ours and theirs.
///
/// - `input`: from the sidecar come replies to the relay and nothing else: from its address to ours, from an entry port,
///   and never a SYN without ACK (where the uplink ends at the relay, to any address: each is a client's that the relay
///   dials as, and there is nobody else), so nobody in the sidecar opens a connection to the host. Stateless, because that
///   much needs no state; UDP has no such mark, so there a reply is what conntrack knows as one.
/// - `output`, on a host with users: over our link, root and the relay send, and no other user of the host, whom the
///   sidecar could not tell from the relay (so `allow` would be nothing to them). What has no socket is the kernel's own.
/// - `output`, with UDP: what bounds the relay. Landlock keeps it to the entry ports by TCP and knows no UDP, so the
///   sockets that it makes itself, which are its user's, get out over our link only, and to entry ports. The published
///   sockets are not among them: they were made by the supervisor, and answer whoever has written to them.
/// - All of these know the sidecar by its address as well as by the link, since a link may be taken over: [`uplink_rules`].
/// - `forward`: to the sidecar goes what `prerouting` translated, out of it come replies to that; with relay alone,
///   nothing in either direction. So nobody routes around the published address.
/// - `prerouting`: connections to one of the host's own addresses, of TCP while the listening socket says that it may be
///   passed by ([`crate::net::publish::Listener::leave`]). Not the loopback's, which the relay serves; and there
///   is no such chain in `output`: what the host itself sends to its own address meets the relay's listening socket, which
///   exists either way. The counters of `dnat-*` count what was offered to the map.
#[must_use]
pub fn host_rules(plan: &Plan) -> Nftables<'static> {
    let side = HostSide::of(plan);
    let mut table = Table::new(host_table(&plan.stack));
    side.sets(&mut table);

    if !side.translated.is_empty() {
        table.nat("prerouting", NfHook::Prerouting, DSTNAT);
    }
    table.filter("input", NfHook::Input, FILTER, NfChainPolicy::Accept);
    table.filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Accept);
    if side.has_users || !side.udp.is_empty() {
        table.filter("output", NfHook::Output, FILTER, NfChainPolicy::Accept);
    }
    egress::host_chains(&mut table, plan);

    side.prerouting(&mut table);
    side.input(&mut table);
    side.forward(&mut table);
    side.output(&mut table);
    egress::in_host_postrouting(&mut table, plan);
    table.into_rules()
}

/// What the rules in the host's namespace are made of: [`host_rules`] chain by chain.
struct HostSide<'p> {
    plan: &'p Plan,
    published: Vec<(Of, Vec<(&'p AppPlan, &'p PublishPlan)>)>,
    /// Of which ports some are published by DNAT, or were until a live change.
    translated: Vec<Of>,
    /// The ports of UDP beside which the relay has to be bounded.
    udp: Vec<Of>,
    /// Whether others can be there: beside the relay alone there is nobody else.
    has_users: bool,
}

impl<'p> HostSide<'p> {
    fn of(plan: &'p Plan) -> Self {
        let published = published(plan);
        let all = || published.iter().map(|(of, _)| *of);
        let by_dnat =
            |port: &PublishPlan| port.via == Transport::Dnat && !port.listen.ip().is_loopback();
        // What belongs to a connection through a port that is closing is still translated.
        let is_translated = |of: &Of| reachable(plan, *of).any(|(_, port)| by_dnat(port));
        // In a namespace of its own there is nobody else.
        let in_host = plan.uplink.ends_at == UplinkEnd::Host;
        let is_bounded = |of: &Of| of.protocol == Protocol::Udp && in_host;
        Self {
            plan,
            translated: all().filter(is_translated).collect(),
            udp: all().filter(is_bounded).collect(),
            has_users: in_host,
            published,
        }
    }

    fn dnat_families(&self) -> Vec<Family> {
        let mut families = families(self.plan);
        families.retain(|family| self.translated.iter().any(|of| of.family == *family));
        families
    }

    fn iif_sidecar(&self) -> Statement<'static> {
        is(
            meta(MetaKey::Iifname),
            name(self.plan.uplink.host_link.as_str()),
        )
    }

    fn oif_sidecar(&self) -> Statement<'static> {
        is(
            meta(MetaKey::Oifname),
            name(self.plan.uplink.host_link.as_str()),
        )
    }

    fn sets(&self, table: &mut Table) {
        for (of, ports) in &self.published {
            let entries: BTreeSet<u16> = reachable(self.plan, *of)
                .map(|(_, port)| port.entry_port)
                .collect();
            table.set(
                of.set("entries"),
                &[SetType::InetService],
                entries.iter().map(|entry| port(*entry)).collect(),
            );
            if !self.translated.contains(of) {
                continue;
            }
            let (mut exact, mut any) = (BTreeMap::new(), BTreeMap::new());
            for (_, published) in ports {
                let listen = published.listen;
                if published.via != Transport::Dnat || listen.ip().is_loopback() {
                    continue;
                }
                if listen.ip().is_unspecified() {
                    any.insert(listen.port(), published.entry_port);
                } else {
                    exact.insert(listen, published.entry_port);
                }
            }
            table.map(
                of.set("publish"),
                &[of.family.address_type(), SetType::InetService],
                SetType::InetService,
                exact
                    .iter()
                    .map(|(to, entry)| {
                        pair(concat([address(to.ip()), port(to.port())]), port(*entry))
                    })
                    .collect(),
            );
            table.map(
                of.set("publish_any"),
                &[SetType::InetService],
                SetType::InetService,
                any.iter()
                    .map(|(to_port, entry)| pair(port(*to_port), port(*entry)))
                    .collect(),
            );
        }
    }

    fn prerouting(&self, table: &mut Table) {
        if self.translated.is_empty() {
            return;
        }
        table.rule(
            "prerouting",
            "return-loopback",
            [is(meta(MetaKey::Iifname), name("lo"))],
            Statement::Return(None),
        );
        for family in &self.dnat_families() {
            table.rule(
                "prerouting",
                family.named("return-loopback-address"),
                [is(family.daddr(), family.loopback())],
                Statement::Return(None),
            );
        }
        table.rule(
            "prerouting",
            "return-foreign-address",
            [is_not(fib_type_of_daddr(), name("local"))],
            Statement::Return(None),
        );
        for of in &self.translated {
            let family = of.family;
            // nft would ask for the family at the place where it is first needed: after the counter.
            let is_family = || is(meta(MetaKey::Nfproto), name(family.nfproto()));
            let matches = || {
                let open = (of.protocol == Protocol::Tcp).then(passes_by);
                [is_family(), of.speaks()].into_iter().chain(open)
            };
            table.rule(
                "prerouting",
                of.rule("dnat-exact"),
                matches(),
                family.dnat(
                    address(family.plan.sidecar),
                    lookup(concat([family.daddr(), of.dport()]), of.at("publish")),
                ),
            );
            table.rule(
                "prerouting",
                of.rule("dnat-any"),
                matches(),
                family.dnat(
                    address(family.plan.sidecar),
                    lookup(of.dport(), of.at("publish_any")),
                ),
            );
        }
    }

    fn input(&self, table: &mut Table) {
        for (of, _) in &self.published {
            let is_reply = match of.protocol {
                Protocol::Tcp => is_not(masked(of.field("flags"), ["syn", "ack"]), name("syn")),
                Protocol::Udp => has(ct("state"), name("established")),
            };
            let from = is(of.family.saddr(), address(of.family.plan.sidecar));
            let from_port = is(of.sport(), of.at("entries"));
            let matches = match self.plan.uplink.ends_at {
                UplinkEnd::Host => {
                    let to = is(of.family.daddr(), address(of.family.plan.host));
                    vec![self.iif_sidecar(), from, to, from_port, is_reply]
                }
                UplinkEnd::Relay => vec![self.iif_sidecar(), from, from_port, is_reply],
            };
            table.rule("input", of.rule("accept-relay-reply"), matches, accept());
        }
        let mut families = families(self.plan);
        // By this the host tracks connections, which it need not where nothing is rejected.
        let rejects = self.plan.rules.is_some();
        families
            .retain(|family| rejects && self.published.iter().any(|(of, _)| of.family == *family));
        for family in families {
            // The same, to the relay.
            table.rule(
                "input",
                family.named("accept-relay-unreachable"),
                [
                    self.iif_sidecar(),
                    is(family.saddr(), address(family.plan.sidecar)),
                    has(ct("state"), name("related")),
                    is(meta(MetaKey::L4proto), name(family.icmp())),
                ],
                accept(),
            );
        }
        egress::in_host_input(table, self.plan);
        table.rule("input", "drop-from-sidecar", [self.iif_sidecar()], drop());
        if uplink::is_among_others(self.plan) {
            uplink::as_sidecar(table, self.plan, "input");
        }
    }

    fn forward(&self, table: &mut Table) {
        for family in &self.dnat_families() {
            table.rule(
                "forward",
                family.named("accept-published-reply"),
                [
                    self.iif_sidecar(),
                    is(family.saddr(), address(family.plan.sidecar)),
                    has(ct("state"), name("established")),
                    has(ct("status"), name("dnat")),
                ],
                accept(),
            );
            if self.plan.rules.is_none() {
                continue;
            }
            // What a rule of the user's in the sidecar answers to a client that it rejects.
            table.rule(
                "forward",
                family.named("accept-unreachable"),
                [
                    self.iif_sidecar(),
                    has(ct("state"), name("related")),
                    has(ct("status"), name("dnat")),
                    is(meta(MetaKey::L4proto), name(family.icmp())),
                ],
                accept(),
            );
        }
        egress::in_host_forward(table, self.plan);
        table.rule("forward", "drop-from-sidecar", [self.iif_sidecar()], drop());
        let is_among_others = uplink::is_among_others(self.plan);
        if is_among_others {
            uplink::as_sidecar(table, self.plan, "forward");
        }
        for family in &self.dnat_families() {
            table.rule(
                "forward",
                family.named("accept-published"),
                [
                    self.oif_sidecar(),
                    is(family.daddr(), address(family.plan.sidecar)),
                    has(ct("status"), name("dnat")),
                ],
                accept(),
            );
        }
        table.rule("forward", "drop-bypass", [self.oif_sidecar()], drop());
        if is_among_others {
            let rule = ("forward", "drop-bypass-address");
            uplink::to_sidecar(table, self.plan, rule, Vec::new);
        }
    }

    fn output(&self, table: &mut Table) {
        let relay = || {
            is(
                meta(MetaKey::Skuid),
                Expression::Number(self.plan.relay.host_id),
            )
        };
        for of in &self.udp {
            table.rule(
                "output",
                of.rule("accept-relay"),
                [
                    self.oif_sidecar(),
                    relay(),
                    is(of.family.daddr(), address(of.family.plan.sidecar)),
                    is(of.dport(), of.at("entries")),
                ],
                accept(),
            );
        }
        if !self.udp.is_empty() {
            table.rule(
                "output",
                "drop-relay-udp",
                [is(meta(MetaKey::L4proto), name("udp")), relay()],
                drop(),
            );
        }
        if self.has_users {
            egress::in_host_output(table, self.plan);
            // The supervisor tries the way to an app that has started again, as who it is by then.
            let supervisor = self.plan.supervisor().map(|ids| ids.uid);
            let others = || -> Vec<_> {
                let ids = [0, self.plan.relay.host_id].into_iter().chain(supervisor);
                ids.map(|id| is_not(meta(MetaKey::Skuid), Expression::Number(id)))
                    .collect()
            };
            let by_link = std::iter::once(self.oif_sidecar()).chain(others());
            table.rule("output", "drop-local-user", by_link, drop());
            let rule = ("output", "drop-local-user-address");
            uplink::to_sidecar(table, self.plan, rule, others);
        }
    }
}

/// Who of a family may be a client of which app, if that is not everybody. The relay decides itself whom it lets in, so
/// whatever comes from its address may.
fn allowed(plan: &Plan, family: Family) -> Option<Vec<(IpAddr, IpNet)>> {
    let all = family.pick(Ipv4Net::default().into(), Ipv6Net::default().into());
    let relay = IpNet::from(family.plan.host);
    plan.apps
        .iter()
        .any(|app| !app.allow.contains(&all))
        .then(|| {
            plan.apps
                .iter()
                .filter_map(|app| Some((app, family.app(app)?)))
                .flat_map(|(app, address)| {
                    let ours = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
                    let mut nets: Vec<_> = app.allow.iter().filter(ours).copied().collect();
                    nets.push(relay);
                    // The kernel refuses ranges that overlap.
                    IpNet::aggregate(&nets)
                        .into_iter()
                        .map(move |net| (address, net))
                })
                .collect()
        })
}

/// [`host_rules`] while nothing is published yet: every rule, and nothing in the maps by which they translate.
#[must_use]
pub fn closed_host_rules(plan: &Plan) -> Nftables<'static> {
    let mut rules = host_rules(plan);
    for object in rules.objects.to_mut() {
        if let NfObject::ListObject(NfListObject::Map(map)) = object {
            map.elem = None;
        }
    }
    rules
}

/// An address family: what its header fields are called, and what the stack has of it. Names of what IPv6 has end in 6.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Family {
    plan: FamilyPlan,
}

/// The families that the stack has.
fn families(plan: &Plan) -> Vec<Family> {
    let families = plan.families().into_iter();
    families.map(|plan| Family { plan }).collect()
}

impl Family {
    /// `four` for IPv4, `six` for IPv6.
    fn pick<T>(self, four: T, six: T) -> T {
        if self.plan.bridge.is_ipv6() {
            six
        } else {
            four
        }
    }

    fn app(self, app: &AppPlan) -> Option<IpAddr> {
        self.plan.app(app)
    }

    /// The name of a set or a rule that there is for both families.
    fn named(self, base: &str) -> String {
        format!("{base}{}", self.pick("", "6"))
    }

    fn at(self, base: &str) -> Expression<'static> {
        name(&format!("@{}", self.named(base)))
    }

    fn saddr(self) -> Expression<'static> {
        header_field(self.pick("ip", "ip6"), "saddr")
    }

    fn daddr(self) -> Expression<'static> {
        header_field(self.pick("ip", "ip6"), "daddr")
    }

    fn address_type(self) -> SetType {
        self.pick(SetType::Ipv4Addr, SetType::Ipv6Addr)
    }

    fn nfproto(self) -> &'static str {
        self.pick("ipv4", "ipv6")
    }

    fn icmp(self) -> &'static str {
        self.pick("icmp", "ipv6-icmp")
    }

    fn link_local(self) -> IpNet {
        self.pick(LINK_LOCAL.into(), LINK_LOCAL6.into())
    }

    fn loopback(self) -> Expression<'static> {
        self.pick(subnet(LOOPBACK), address(Ipv6Addr::LOCALHOST))
    }

    fn nat(
        self,
        to: Expression<'static>,
        port: Option<Expression<'static>>,
    ) -> Option<NAT<'static>> {
        Some(NAT {
            addr: Some(to),
            family: Some(self.pick(NATFamily::IP, NATFamily::IP6)),
            port,
            flags: None,
        })
    }

    fn dnat(self, to: Expression<'static>, port: Expression<'static>) -> Statement<'static> {
        Statement::DNAT(self.nat(to, Some(port)))
    }

    fn dnat_address(self, to: Expression<'static>) -> Statement<'static> {
        Statement::DNAT(self.nat(to, None))
    }

    fn snat(self, to: Expression<'static>) -> Statement<'static> {
        Statement::SNAT(self.nat(to, None))
    }
}

/// A transport protocol of an address family, with the names of what there is for it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Of {
    protocol: Protocol,
    family: Family,
}

impl Of {
    fn set(self, base: &str) -> String {
        self.family.named(&match self.protocol {
            Protocol::Tcp => base.to_owned(),
            Protocol::Udp => format!("{base}_udp"),
        })
    }

    fn at(self, base: &str) -> Expression<'static> {
        name(&format!("@{}", self.set(base)))
    }

    fn rule(self, base: &str) -> String {
        self.family.named(&match self.protocol {
            Protocol::Tcp => base.to_owned(),
            Protocol::Udp => format!("{base}-udp"),
        })
    }

    fn speaks(self) -> Statement<'static> {
        is(meta(MetaKey::L4proto), name(self.protocol.name()))
    }

    fn field(self, field: &'static str) -> Expression<'static> {
        header_field(self.protocol.name(), field)
    }

    /// Whether `port` is one of these.
    fn is(self, port: &PublishPlan) -> bool {
        port.protocol == self.protocol && self.family.plan.has(port.listen.ip())
    }

    fn sport(self) -> Expression<'static> {
        self.field("sport")
    }

    fn dport(self) -> Expression<'static> {
        self.field("dport")
    }
}

/// Of each family the published ports of TCP, and, if there are any or were, of UDP.
fn published(plan: &Plan) -> Vec<(Of, Vec<(&AppPlan, &PublishPlan)>)> {
    let mut found = vec![];
    for family in families(plan) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let of = Of { protocol, family };
            if protocol == Protocol::Tcp || reachable(plan, of).next().is_some() {
                let ports = plan.published().filter(|(_, port)| of.is(port));
                found.push((of, ports.collect()));
            }
        }
    }
    found
}

/// The ports that connections may go through, those that are closing too.
fn reachable(plan: &Plan, of: Of) -> impl Iterator<Item = (&AppPlan, &PublishPlan)> {
    plan.apps
        .iter()
        .flat_map(|app| app.reachable().map(move |port| (app, port)))
        .filter(move |(_, port)| of.is(port))
}

// Priorities of netfilter_ipv4.h, by nft's names.
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// RFC 3927; where clouds have the address that tells credentials.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
/// RFC 4291, 2.5.6.
const LINK_LOCAL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
/// RFC 4291, 2.7.
const MULTICAST6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8);
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// A table that is being written. It ends in the order in which nft lists one: sets and maps, chains, rules.
struct Table {
    family: NfFamily,
    name: String,
    /// Whether its rules log, and what.
    log: Option<TrafficLog>,
    objects: Vec<NfListObject<'static>>,
}

impl Table {
    fn new(name: String) -> Self {
        Self::of(NfFamily::INet, name)
    }

    fn of(family: NfFamily, name: String) -> Self {
        let table = NfTable {
            family,
            name: name.clone().into(),
            handle: None,
        };
        Self {
            family,
            name,
            log: None,
            objects: vec![NfListObject::Table(table)],
        }
    }

    /// `name` is as rules refer to it, with `@` or without.
    fn set(&mut self, name: String, key: &[SetType], elements: Vec<Expression<'static>>) {
        self.objects.push(NfListObject::Set(Box::new(Set {
            family: self.family,
            table: self.name.clone().into(),
            name: name.into(),
            set_type: set_type(key),
            elem: unless_empty(elements),
            ..Set::default()
        })));
    }

    /// A set whose keys are concatenations of ranges.
    fn ranges(&mut self, name: String, key: &[SetType], elements: Vec<Expression<'static>>) {
        self.set(name, key, elements);
        if let Some(NfListObject::Set(set)) = self.objects.last_mut() {
            set.flags = Some(HashSet::from([SetFlag::Interval]));
        }
    }

    fn map(
        &mut self,
        name: String,
        key: &[SetType],
        value: SetType,
        elements: Vec<Expression<'static>>,
    ) {
        self.objects.push(NfListObject::Map(Box::new(Map {
            family: self.family,
            table: self.name.clone().into(),
            name: name.into(),
            set_type: set_type(key),
            map: SetTypeValue::Single(value),
            elem: unless_empty(elements),
            ..Map::default()
        })));
    }

    fn filter(&mut self, name: &'static str, hook: NfHook, priority: i32, policy: NfChainPolicy) {
        self.chain(name, NfChainType::Filter, hook, priority, policy);
    }

    /// A nat chain only sees the first packet of a connection, so it isn't where packets are dropped.
    fn nat(&mut self, name: &'static str, hook: NfHook, priority: i32) {
        self.chain(
            name,
            NfChainType::NAT,
            hook,
            priority,
            NfChainPolicy::Accept,
        );
    }

    fn chain(
        &mut self,
        name: &'static str,
        kind: NfChainType,
        hook: NfHook,
        priority: i32,
        policy: NfChainPolicy,
    ) {
        self.add_chain(Chain {
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(policy),
            ..Chain::default()
        });
    }

    fn add_chain(&mut self, chain: Chain<'static>) {
        self.objects.push(NfListObject::Chain(Chain {
            family: self.family,
            table: self.name.clone().into(),
            ..chain
        }));
    }

    fn rule(
        &mut self,
        chain: &'static str,
        name: impl Into<Cow<'static, str>>,
        matches: impl IntoIterator<Item = Statement<'static>>,
        verdict: Statement<'static>,
    ) {
        self.rule_doing(chain, name, matches, [verdict]);
    }

    /// A rule that does several things, of which the last is its verdict, if it has one.
    fn rule_doing<const N: usize>(
        &mut self,
        chain: &'static str,
        name: impl Into<Cow<'static, str>>,
        matches: impl IntoIterator<Item = Statement<'static>>,
        actions: [Statement<'static>; N],
    ) {
        let counter = Statement::Counter(Counter::Anonymous(Some(AnonymousCounter {
            packets: Some(0),
            bytes: Some(0),
        })));
        // A condition that always holds is none.
        let matches: Vec<_> = matches.into_iter().filter(|m| *m != always()).collect();
        let name = name.into();
        let verdict = actions.last();
        let logs = self
            .log
            .zip(verdict)
            .map_or_else(Vec::new, |(level, verdict)| {
                logging::statements(level, chain, &name, &matches, verdict)
            });
        let statements: Vec<_> = matches
            .into_iter()
            .chain([counter])
            .chain(logs)
            .chain(actions)
            .collect();
        self.objects.push(NfListObject::Rule(Rule {
            family: self.family,
            table: self.name.clone().into(),
            chain: chain.into(),
            expr: statements.into(),
            comment: Some(name),
            ..Rule::default()
        }));
    }

    fn into_rules(mut self) -> Nftables<'static> {
        self.objects.sort_by_key(|object| match object {
            NfListObject::Table(_) => 0,
            NfListObject::Set(_) | NfListObject::Map(_) => 1,
            NfListObject::Chain(_) => 2,
            _ => 3,
        });
        let objects: Vec<_> = self.objects.into_iter().map(NfObject::ListObject).collect();
        Nftables {
            objects: objects.into(),
        }
    }
}

fn set_type(key: &[SetType]) -> SetTypeValue<'static> {
    match key {
        [single] => SetTypeValue::Single(*single),
        several => SetTypeValue::Concatenated(several.to_vec().into()),
    }
}

/// nft lists an empty set without `elem`.
fn unless_empty(elements: Vec<Expression<'static>>) -> Option<Cow<'static, [Expression<'static>]>> {
    (!elements.is_empty()).then(|| elements.into())
}

fn name(text: &str) -> Expression<'static> {
    Expression::String(text.to_owned().into())
}

fn address(address: impl Into<IpAddr>) -> Expression<'static> {
    Expression::String(address.into().to_string().into())
}

fn port(port: u16) -> Expression<'static> {
    Expression::Number(port.into())
}

/// An address by itself is no prefix: nft lists none of full length.
fn subnet(net: impl Into<IpNet>) -> Expression<'static> {
    let net = net.into();
    if net.prefix_len() == net.max_prefix_len() {
        return address(net.addr());
    }
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(address(net.network())),
        len: net.prefix_len().into(),
    }))
}

fn pair(key: Expression<'static>, value: Expression<'static>) -> Expression<'static> {
    Expression::List(vec![key, value])
}

fn concat<const N: usize>(parts: [Expression<'static>; N]) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts.into()))
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        family: None,
        dir: None,
    }))
}

fn header_field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(
        PayloadField {
            protocol: protocol.into(),
            field: field.into(),
        },
    )))
}

/// There is a routing header.
fn routing_header() -> Statement<'static> {
    let header = Exthdr {
        name: "rt".into(),
        field: None,
        offset: None,
    };
    is(
        Expression::Named(NamedExpression::Exthdr(header)),
        Expression::Boolean(true),
    )
}

fn fib_type_of_daddr() -> Expression<'static> {
    Expression::Named(NamedExpression::Fib(Fib {
        result: FibResult::Type,
        flags: HashSet::from([FibFlag::Daddr]),
    }))
}

fn masked<const N: usize>(
    field: Expression<'static>,
    bits: [&'static str; N],
) -> Expression<'static> {
    let bits = bits.into_iter().map(name).collect();
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(
        field,
        Expression::List(bits),
    )))
}

fn lookup(key: Expression<'static>, map: Expression<'static>) -> Expression<'static> {
    Expression::Named(NamedExpression::Map(Box::new(MapExpression {
        key,
        data: map,
    })))
}

fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::EQ, right)
}

/// Whether the socket that listens where the packet goes says that it may be passed by: [`crate::net::publish`].
fn passes_by() -> Statement<'static> {
    let key = Cow::Borrowed(&SocketAttr::Transparent);
    let socket = Expression::Named(NamedExpression::Socket(Socket { key }));
    is(socket, Expression::Number(1))
}

fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::NEQ, right)
}

/// One of `right`'s bits is set.
fn has(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    compare(left, Operator::IN, right)
}

fn compare(
    left: Expression<'static>,
    op: Operator,
    right: Expression<'static>,
) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

/// No condition at all.
fn always() -> Statement<'static> {
    Statement::Continue(None)
}

fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

fn drop() -> Statement<'static> {
    Statement::Drop(None)
}
