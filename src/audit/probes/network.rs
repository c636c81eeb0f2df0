//! Everything that there is in the stack's network namespaces, compared with what the plan makes of it.
//!
//! # Theory of operation
//!
//! What [`survey`](crate::audit::survey) lists is compared line by line with what `crate::net` sets and the kernel adds to
//! that by itself. A line that nobody can account for is unexpected; one that must be there and is not is missing. In the
//! host's namespace, where everything else is none of ours, only the end of the uplink is looked at, and what has taken it over.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Found, Scene, nothing_of};
use crate::audit::agent::{Agent, Answer, Ask, SOMETHING_ELSE};
use crate::audit::catalogue::{Probe, Side, probe};
use crate::audit::survey::{Link, Survey};
use crate::audit::{Group, Outcome};
use crate::config::{Protocol, Source};
use crate::firewall::{self, APP_TABLE, SIDECAR_TABLE, host_table, is_ours};
use crate::net;
use crate::plan::{AppPlan, FamilyPlan, Mac, Plan, UplinkEnd};

/// A network namespace of the stack, or the one in which its uplink ends.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The sidecar's.
    Sidecar,
    /// An app's.
    App(&'a AppPlan),
    /// The relay's own.
    Relay,
    /// That of what carries egress by relay: an empty one.
    Egress,
    /// The host's.
    Host,
}

impl Place<'_> {
    /// The part that the findings are about.
    #[must_use]
    pub fn part(&self) -> &str {
        match self {
            Self::Sidecar => "sidecar",
            Self::App(app) => app.name.as_str(),
            Self::Relay => "relay",
            Self::Egress => "egress",
            Self::Host => "host",
        }
    }
}

/// What was found in one.
pub struct Surveyed<'a> {
    place: Place<'a>,
    survey: Result<Survey, String>,
}

impl<'a> Surveyed<'a> {
    /// Has an agent look that is there.
    #[must_use]
    pub fn of(place: Place<'a>, agent: &Result<Agent, String>, plan: &Plan) -> Self {
        let only = match place {
            Place::Host => Some(plan.uplink.host_link.to_string()),
            _ => None,
        };
        let look = || match agent
            .as_ref()
            .map_err(Clone::clone)?
            .ask(&Ask::Survey(only))?
        {
            Answer::Survey(survey) => Ok(*survey),
            _ => Err(SOMETHING_ELSE.to_owned()),
        };
        let survey = look();
        Self { place, survey }
    }
}

/// Links.
pub const LINKS: Probe = probe(
    Group::NetworkIn,
    Side::Look(links),
    "net-links",
    "every link of the stack's network namespaces, and what has taken over the uplink's end on the host",
    "veth(4), bridge(8): a second link is a way past the rules; a bridge, a macvlan or XDP takes packets before a rule does",
    "the planned ones, of the planned kind and address, with nothing on top of them",
);
/// Addresses.
pub const ADDRESSES: Probe = probe(
    Group::NetworkIn,
    Side::Look(addresses),
    "net-addresses",
    "every address of those links",
    "rtnetlink(7): an address more is one more to be reached at, or to be trusted as",
    "the planned ones",
);
/// Neighbours, and what the bridge forwards where.
pub const NEIGHBOURS: Probe = probe(
    Group::NetworkIn,
    Side::Look(neighbours),
    "net-neighbours",
    "every neighbour, whom links answer for, and who is behind which port of the bridge",
    "arp(7): who says where an address is gets its packets",
    "the planned ones, permanent",
);
/// Routes.
pub const ROUTES: Probe = probe(
    Group::NetworkIn,
    Side::Look(routes),
    "net-routes",
    "every route of every table",
    "ip-route(8)",
    "the planned ones, and what the kernel adds to an address",
);
/// Rules of the routing policy.
pub const RULES: Probe = probe(
    Group::NetworkIn,
    Side::Look(rules),
    "net-rules",
    "every rule of the routing policy",
    "ip-rule(8): it decides before any route",
    "the kernel's own, and in the relay's namespace the planned ones",
);
/// What hangs on links beside nftables.
pub const FILTERS: Probe = probe(
    Group::NetworkIn,
    Side::Look(filters),
    "net-filters",
    "every queueing discipline: what filters, redirects and changes packets outside nftables hangs on one (tc)",
    "tc(8), CVE-2023-3776: it sees packets before the rules do",
    "none",
);
/// What decides elsewhere.
pub const POLICIES: Probe = probe(
    Group::NetworkIn,
    Side::Look(policies),
    "net-policies",
    "tables of nftables and iptables, policies of IPsec, next hops",
    "nft(8), ip-xfrm(8), ip-nexthop(8)",
    "the planned tables",
);
/// Sockets.
pub const SOCKETS: Probe = probe(
    Group::NetworkIn,
    Side::Look(sockets),
    "net-sockets",
    "every socket that takes connections or datagrams, or sees what passes",
    "packet(7), socket(7): who listens in a part's network and is not of the part",
    "in the sidecar none but those that apps are handed; in an app its own, of TCP at its planned ports",
);
/// Settings by link.
pub const SETTINGS: Probe = probe(
    Group::NetworkIn,
    Side::Look(settings),
    "net-settings",
    "the settings of every link by itself, on both ends of the uplink",
    "ip-sysctl.rst: `all` and `default` say little of a link; route_localnet on one is CVE-2020-8558",
    "as the namespace's default, which is as planned; at the uplink's end on the host as planned",
);

fn each(scene: &Scene<'_>, look: impl Fn(Place<'_>, &Survey, &Plan) -> Option<Outcome>) -> Found {
    let plan = scene.plan();
    let found = scene.networks.iter().filter_map(|network| {
        let outcome = match &network.survey {
            Ok(survey) => look(network.place, survey, plan)?,
            Err(e) => Outcome::unknown(e.clone()),
        };
        Some((network.place.part().to_owned(), outcome))
    });
    found.collect()
}

/// What is there and should not be, and the other way round.
fn differences<'a>(
    found: impl IntoIterator<Item = &'a String>,
    wanted: &BTreeSet<String>,
    may_be: impl Fn(&str) -> bool,
) -> Outcome {
    let found: BTreeSet<&String> = found.into_iter().collect();
    let unexpected = found
        .iter()
        .filter(|line| !wanted.contains(**line) && !may_be(line));
    let unexpected = unexpected.map(|line| format!("unexpected: {line}"));
    let missing = wanted.iter().filter(|line| !found.contains(line));
    let missing = missing.map(|line| format!("missing: {line}"));
    let wrong: Vec<String> = unexpected.chain(missing).collect();
    nothing_of(&wrong, format!("{}, as planned", found.len()))
}

/// What a place has of one address family: link, address, length of its prefix.
fn given(place: Place<'_>, plan: &Plan, family: &FamilyPlan) -> Vec<(String, IpAddr, u8)> {
    let uplink = &plan.uplink;
    match place {
        Place::Sidecar => {
            let both = [
                (
                    plan.bridge.name.to_string(),
                    family.bridge,
                    family.subnet.prefix_len(),
                ),
                (
                    uplink.sidecar_link.to_string(),
                    family.sidecar,
                    family.bits() - 1,
                ),
            ];
            let handed = plan.handed_apps().filter_map(|app| family.app(app));
            let handed =
                handed.map(|address| (uplink.sidecar_link.to_string(), address, family.bits()));
            both.into_iter().chain(handed).collect()
        }
        Place::App(app) => {
            let own = family.app(app).into_iter().filter(|_| !app.via_socket);
            own.map(|address| {
                (
                    net::APP_LINK.to_owned(),
                    address,
                    family.subnet.prefix_len(),
                )
            })
            .collect()
        }
        Place::Relay | Place::Host => {
            vec![(uplink.host_link.to_string(), family.host, family.bits() - 1)]
        }
        Place::Egress => vec![],
    }
}

/// Name, kind, link-layer address and master of every planned link.
fn planned_links(
    place: Place<'_>,
    plan: &Plan,
) -> Vec<(String, &'static str, Mac, Option<String>)> {
    let (bridge, uplink) = (&plan.bridge, &plan.uplink);
    match place {
        Place::Sidecar => {
            let ports = plan.linked_apps().map(|app| {
                let master = Some(bridge.name.to_string());
                (
                    app.port_link.to_string(),
                    "veth",
                    net::port_mac(app),
                    master,
                )
            });
            [
                (bridge.name.to_string(), "bridge", bridge.mac, None),
                (
                    uplink.sidecar_link.to_string(),
                    "veth",
                    uplink.sidecar_mac,
                    None,
                ),
            ]
            .into_iter()
            .chain(ports)
            .collect()
        }
        Place::App(app) if app.via_socket => vec![],
        Place::App(app) => vec![(net::APP_LINK.to_owned(), "veth", app.mac, None)],
        Place::Relay | Place::Host => {
            vec![(uplink.host_link.to_string(), "veth", uplink.host_mac, None)]
        }
        Place::Egress => vec![],
    }
}

fn links(scene: &Scene<'_>) -> Found {
    const UP: u32 = libc::IFF_UP as u32;
    const WANTED: u32 = UP | libc::IFF_NOARP as u32;
    const LOOKED_AT: u32 = WANTED | libc::IFF_PROMISC as u32 | libc::IFF_ALLMULTI as u32;
    let line = |name: &str, kind: &str, mac: &str, master: Option<&str>, more: &str| {
        let master = master.map_or_else(String::new, |master| format!(", a port of {master}"));
        format!("{name}: {kind} {mac}{master}{more}")
    };
    let say = |link: &Link| {
        let mut more = String::new();
        if link.flags & LOOKED_AT != WANTED {
            more += &format!(", flags {:#x}", link.flags & LOOKED_AT);
        }
        // A bridge looks at all that its ports receive.
        let promiscuity = link.promiscuity - u32::from(link.master.is_some()).min(link.promiscuity);
        for (is, what) in [
            (link.xdp, "with a program (XDP)"),
            (link.over.is_some(), "on top of another link"),
            (link.more_names > 0, "with other names"),
            (promiscuity > 0, "hears what is not for it"),
        ] {
            if is {
                more += &format!(", {what}");
            }
        }
        line(
            &link.name,
            &link.kind,
            &link.mac,
            link.master.as_deref(),
            &more,
        )
    };
    each(scene, |place, survey, plan| {
        let planned = planned_links(place, plan);
        let wanted = planned.iter().map(|(name, kind, mac, master)| {
            line(name, kind, &mac.to_string(), master.as_deref(), "")
        });
        let found: Vec<String> = survey
            .links
            .iter()
            .filter(|link| !is_loopback(link))
            .map(say)
            .collect();
        Some(differences(&found, &wanted.collect(), |_| false))
    })
}

/// The loopback, as every network namespace has it.
fn is_loopback(link: &Link) -> bool {
    link.name == "lo" && link.index == 1 && !link.xdp && link.master.is_none()
}

fn addresses(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        let families = plan.families();
        let given = families
            .iter()
            .flat_map(|family| given(place, plan, family));
        let wanted = given.map(|(link, address, prefix)| format!("{link} {address}/{prefix}"));
        let loopback = |line: &str| ["lo 127.0.0.1/8", "lo ::1/128"].contains(&line);
        Some(differences(&survey.addresses, &wanted.collect(), loopback))
    })
}

fn neighbours(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        let (bridge, uplink) = (&plan.bridge, &plan.uplink);
        let mut wanted = BTreeSet::new();
        let mut know = |link: &str, address: IpAddr, mac: Mac| {
            wanted.insert(format!("{link} {address} is {mac}, permanent"));
        };
        for family in plan.families() {
            match place {
                Place::Sidecar => {
                    know(uplink.sidecar_link.as_str(), family.host, uplink.host_mac);
                    for app in plan.linked_apps() {
                        if let Some(address) = family.app(app) {
                            know(bridge.name.as_str(), address, app.mac);
                        }
                    }
                }
                Place::App(app) if family.app(app).is_some() && !app.via_socket => {
                    know(net::APP_LINK, family.bridge, bridge.mac);
                }
                Place::Relay | Place::Host => {
                    know(
                        uplink.host_link.as_str(),
                        family.sidecar,
                        uplink.sidecar_mac,
                    );
                }
                _ => {}
            }
        }
        if matches!(place, Place::Sidecar) {
            // The bridge's own, one of each port, and the one that its app has.
            let own = (bridge.mac, bridge.name.as_str(), "permanent");
            let ports = plan.linked_apps().flat_map(|app| {
                let port = app.port_link.as_str();
                [
                    (net::port_mac(app), port, "permanent"),
                    (app.mac, port, "noarp"),
                ]
            });
            let all = std::iter::once(own).chain(ports);
            wanted.extend(all.map(|(mac, link, how)| format!("{mac} behind {link}, {how}")));
        }
        let found = survey.neighbours.iter().chain(&survey.forwarding);
        Some(differences(found, &wanted, |_| false))
    })
}

/// What the kernel has in its local table for the addresses that are given, and for the loopback.
fn kernels_own(place: Place<'_>, survey: &Survey, plan: &Plan) -> BTreeSet<String> {
    let mut own: BTreeSet<String> = [
        "local 127.0.0.0/8 on lo in table 255",
        "local 127.0.0.1/32 on lo in table 255",
        "broadcast 127.255.255.255/32 on lo in table 255",
        "broadcast 127.0.0.0/32 on lo in table 255",
        "local ::1/128 on lo in table 255",
        "::1/128 on lo",
    ]
    .map(str::to_owned)
    .into();
    for family in plan.families() {
        for (link, address, prefix) in given(place, plan, &family) {
            own.insert(format!(
                "local {address}/{} on {link} in table 255",
                family.bits()
            ));
            if let Ok(net) = IpNet::new(address, prefix) {
                // Of IPv6 the first address of a network is its routers' (RFC 4291, 2.6.1).
                for (kind, end) in [
                    ("broadcast", net.broadcast()),
                    ("broadcast", net.network()),
                    ("anycast", net.network()),
                ] {
                    own.insert(format!(
                        "{kind} {end}/{} on {link} in table 255",
                        family.bits()
                    ));
                }
            }
        }
    }
    let links = survey.links.iter();
    own.extend(links.map(|link| format!("multicast ff00::/8 on {} in table 255", link.name)));
    own
}

fn routes(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        let (bridge, uplink) = (&plan.bridge, &plan.uplink);
        let mut wanted = BTreeSet::new();
        for family in plan.families() {
            let FamilyPlan {
                subnet,
                host,
                sidecar,
                ..
            } = family;
            let bits = family.bits();
            let loopback = if host.is_ipv6() { " on lo" } else { "" };
            match place {
                Place::Sidecar => {
                    let link = &uplink.sidecar_link;
                    let everywhere = if host.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
                    wanted.insert(format!("{everywhere} via {host} on {link}"));
                    wanted.insert(format!("{host}/{bits} on {link}"));
                    wanted.insert(format!("unreachable {subnet}{loopback}"));
                    let apps = plan.linked_apps().filter_map(|app| family.app(app));
                    wanted.extend(apps.map(|app| format!("{app}/{bits} on {}", bridge.name)));
                }
                Place::App(app) if family.app(app).is_some() && !app.via_socket => {
                    wanted.insert(format!("{}/{bits} on {}", family.bridge, net::APP_LINK));
                }
                Place::Relay => {
                    wanted.insert(format!("{sidecar}/{bits} on {}", uplink.host_link));
                }
                _ => {}
            }
        }
        match place {
            Place::App(app) => wanted.extend(net::routes(plan, app).into_iter().map(|route| {
                format!(
                    "{} via {} on {}",
                    route.net(),
                    route.gateway(),
                    net::APP_LINK
                )
            })),
            Place::Relay => wanted.extend(net::local_to_relay(plan).into_iter().map(|route| {
                use net::LocalRoute::{Local, Throw};
                match route {
                    // What is thrown out of IPv6's is said to be on the loopback.
                    Throw(net) => {
                        let on = if net.addr().is_ipv6() { " on lo" } else { "" };
                        format!("throw {net}{on} in table 255")
                    }
                    Local(net) => format!("local {net} on lo in table 255"),
                }
            })),
            // Everything else there is the host's own affair; `in-host-route` looks at what leads to the sidecar.
            Place::Host => return None,
            _ => {}
        }
        let own = kernels_own(place, survey, plan);
        Some(differences(&survey.routes, &wanted, |line| {
            own.contains(line)
        }))
    })
}

fn rules(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        if matches!(place, Place::Host) {
            return None;
        }
        let own: BTreeSet<String> = [
            "ipv4 0 from all to all table 255",
            "ipv4 32766 from all to all table 254",
            "ipv4 32767 from all to all table 253",
            "ipv6 0 from all to all table 255",
            "ipv6 32766 from all to all table 254",
        ]
        .map(str::to_owned)
        .into();
        let mut wanted: BTreeSet<String> = own
            .iter()
            .filter(|rule| rule.starts_with("ipv4"))
            .cloned()
            .collect();
        if matches!(place, Place::Relay) {
            for family in plan.families() {
                let name = if family.host.is_ipv6() {
                    "ipv6"
                } else {
                    "ipv4"
                };
                let to = format!("{}/{}", family.sidecar, family.bits());
                wanted.insert(format!("{name} 2 from all to {to} table 254"));
            }
            let refused = net::refused_to_relay(plan).into_iter();
            wanted.extend(refused.map(|net| format!("ipv6 1 from {net} to all unreachable")));
        }
        Some(differences(&survey.rules, &wanted, |rule| {
            own.contains(rule)
        }))
    })
}

fn filters(scene: &Scene<'_>) -> Found {
    each(scene, |_, survey, _| {
        Some(differences(&survey.queues, &BTreeSet::new(), |_| false))
    })
}

fn policies(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        let mut wanted = BTreeSet::new();
        match place {
            Place::Sidecar => {
                wanted.insert(format!("table inet {SIDECAR_TABLE}"));
            }
            Place::Relay => {
                wanted.insert(format!("table inet {}", host_table(&plan.stack)));
            }
            Place::App(app) if app.source == Source::Localhost => {
                wanted.insert(format!("table inet {APP_TABLE}"));
            }
            Place::Host => return None,
            _ => {}
        }
        // Of `lrpns trace`, while it goes on, and of `lrpns capture`, which `rules-sidecar` looks into.
        let ours = |line: &str| {
            let name = line.strip_prefix("table inet ");
            name.is_some_and(|name| {
                name == firewall::CAPTURE_TABLE || is_ours(name) && name.contains("-trace-")
            })
        };
        Some(differences(&survey.others, &wanted, ours))
    })
}

fn sockets(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        if let (Place::Sidecar, true) = (place, plan.handed_apps().next().is_some()) {
            let handed = plan.handed_apps().flat_map(AppPlan::handed);
            let wanted = handed.map(|at| {
                let kind = if at.is_ipv6() { "tcp6" } else { "tcp" };
                format!("{kind} {}", at.port())
            });
            let found = survey.sockets.iter();
            let found = found.map(|socket| format!("{} {}", socket.kind, socket.port));
            let found: Vec<String> = found.collect();
            return Some(differences(&found, &wanted.collect(), |_| false));
        }
        let tcp: BTreeSet<u32> = match place {
            Place::App(app) => {
                let published = app
                    .reachable()
                    .filter(|port| port.protocol == Protocol::Tcp && !app.via_socket);
                let published = published.map(|port| port.app_port);
                let served = app
                    .serves
                    .iter()
                    .filter(|link| link.protocol == Protocol::Tcp);
                let served = served.flat_map(|link| link.first_port..=link.last_port);
                let all = published.chain(app.listen.iter().copied()).chain(served);
                all.map(u32::from).collect()
            }
            Place::Sidecar | Place::Egress => BTreeSet::new(),
            // What it carries out comes to sockets there, which the supervisor has made.
            Place::Relay | Place::Host => return None,
        };
        let wrong = survey.sockets.iter().filter_map(|socket| {
            let (kind, port) = (&socket.kind, socket.port);
            let of_app = match place {
                Place::App(app) => Some(app.ids.uid),
                _ => None,
            };
            let is_tcp = kind.starts_with("tcp");
            // `listen = [0]`: one of those that the kernel gives out, `net.ipv4.ip_local_port_range`.
            let free = tcp.contains(&0) && (32_768..=60_999).contains(&port);
            let is_known = ["tcp", "tcp6", "udp", "udp6"].contains(&kind.as_str());
            match of_app {
                Some(uid)
                    if uid == socket.uid
                        && is_known
                        && (!is_tcp || free || tcp.contains(&port)) =>
                {
                    None
                }
                Some(uid) if uid == socket.uid => Some(format!("unexpected: {kind} {port}")),
                _ => Some(format!(
                    "unexpected: {kind} {port}, of uid {} there",
                    socket.uid
                )),
            }
        });
        let wrong: Vec<String> = wrong.collect();
        Some(nothing_of(
            &wrong,
            format!("{}, all its own", survey.sockets.len()),
        ))
    })
}

fn settings(scene: &Scene<'_>) -> Found {
    each(scene, |place, survey, plan| {
        if plan.uplink.ends_at == UplinkEnd::Host && matches!(place, Place::Host) {
            return Some(at_the_host(survey, plan));
        }
        let mut wrong = vec![];
        let mut count = 0;
        for (at, values) in &survey.settings {
            let mut parts = at.rsplitn(2, '/');
            let (Some(link), Some(family)) = (parts.next(), parts.next()) else {
                continue;
            };
            // Older than the settings, the loopback has kept what it was born with.
            if ["all", "default", "lo"].contains(&link) {
                continue;
            }
            let default = survey.settings.get(&format!("{family}/default"));
            for (name, value) in values {
                count += 1;
                let wanted = match name.as_str() {
                    // No address that nobody has planned.
                    "addr_gen_mode" => Some("1"),
                    name => default
                        .and_then(|default| default.get(name))
                        .map(String::as_str),
                };
                if wanted != Some(value.as_str()) && !OF_ITSELF.contains(&name.as_str()) {
                    let wanted = wanted.unwrap_or("not there");
                    wrong.push(format!("{at}/{name} is {value}, the default {wanted}"));
                }
            }
        }
        for (name, safe) in ON_LOOPBACK {
            let found = survey
                .settings
                .get("ipv4/conf/lo")
                .and_then(|lo| lo.get(name));
            if found.is_some_and(|found| found != safe) {
                wrong.push(format!("ipv4/conf/lo/{name} is not {safe}"));
            }
        }
        Some(nothing_of(&wrong, format!("{count}, as the defaults")))
    })
}

/// What is of each link by its nature, and what can't be read before it is set.
const OF_ITSELF: [&str; 2] = ["mtu", "stable_secret"];
/// What would open a loopback, or make it a way to somewhere.
const ON_LOOPBACK: [(&str, &str); 3] = [
    ("route_localnet", "0"),
    ("accept_local", "0"),
    ("proxy_arp", "0"),
];

fn at_the_host(survey: &Survey, plan: &Plan) -> Outcome {
    let link = &plan.uplink.host_link;
    let mut wrong = vec![];
    let (four, six) = net::settings_at_host(plan);
    let count = four.len() + six.len();
    for (family, wanted) in [("ipv4", four), ("ipv6", six)] {
        let at = format!("{family}/conf/{link}");
        for (name, value) in wanted {
            match survey.settings.get(&at).and_then(|values| values.get(name)) {
                Some(found) if *found == value => {}
                Some(found) => wrong.push(format!("{at}/{name} is {found}, planned is {value}")),
                None => wrong.push(format!("{at}/{name} can't be read")),
            }
        }
    }
    nothing_of(&wrong, format!("{count} as planned"))
}
