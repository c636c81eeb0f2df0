//! What the host has already, read once and judged elsewhere.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};

use super::message;
use super::rtnl::{Error, Rtnl, Step};

/// The links, addresses and routes of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Each link's name and each of its IPv4 addresses with its prefix; a point-to-point link's peer counts as one.
    pub addresses: Vec<(String, Ipv4Net)>,
    /// Each link's name and each of its IPv6 addresses.
    pub addresses6: Vec<(String, Ipv6Addr)>,
    /// Where the IPv4 unicast routes of every routing table lead, without the default routes.
    pub routes: Vec<Ipv4Net>,
    /// Where the IPv6 unicast routes of every routing table lead, with the default routes and without what is link-local.
    pub routes6: Vec<Ipv6Net>,
    /// The links of which the kernel has a route by a router's advertisement.
    pub told_by_routers: BTreeSet<String>,
    /// The links' names.
    pub links: Vec<String>,
}

/// Reads the [`Facts`] of the host's namespace.
///
/// # Errors
/// [`Error`] when the kernel refuses.
pub async fn facts(host: &Rtnl) -> Result<Facts, Error> {
    let mut names = BTreeMap::new();
    let mut facts = Facts::default();
    for answer in host
        .run("host", vec![Step::dump("list the links", message::links())])
        .await?
    {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(link.header.index, name);
                }
            }
        }
    }
    for answer in host
        .run(
            "host",
            vec![Step::dump("list the addresses", message::addresses())],
        )
        .await?
    {
        if let RouteNetlinkMessage::NewAddress(address) = answer {
            let name = names.get(&address.header.index).cloned();
            // A link may have come between the two lists.
            let name = name.unwrap_or_else(|| format!("link {}", address.header.index));
            for net in networks(&address.attributes, address.header.prefix_len) {
                facts.addresses.push((name.clone(), net));
            }
            // On a point-to-point link `Address` is the peer's.
            let of = |wanted: fn(&AddressAttribute) -> Option<Ipv6Addr>| {
                address.attributes.iter().find_map(wanted)
            };
            let local = of(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V6(address)) => Some(*address),
                _ => None,
            });
            let address6 = local.or_else(|| {
                of(|attribute| match attribute {
                    AddressAttribute::Address(IpAddr::V6(address)) => Some(*address),
                    _ => None,
                })
            });
            facts
                .addresses6
                .extend(address6.map(|address| (name, address)));
        }
    }
    // The kernel does one dump of a socket at a time.
    let mut routes = vec![];
    for (what, family) in [
        ("list the routes", AddressFamily::Inet),
        ("list the IPv6 routes", AddressFamily::Inet6),
    ] {
        let list = Step::dump(what, message::routes(family));
        routes.extend(host.run("host", vec![list]).await?);
    }
    for answer in routes {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            continue;
        };
        match destination(&route) {
            Some(IpNet::V4(net)) if net.prefix_len() > 0 => facts.routes.push(net),
            Some(IpNet::V6(net)) if !net.addr().is_unicast_link_local() => {
                facts.routes6.push(net);
            }
            _ => {}
        }
        if route.header.protocol == RouteProtocol::Ra {
            let link = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => names.get(index).cloned(),
                    _ => None,
                });
            facts.told_by_routers.extend(link);
        }
    }
    facts.links = names.into_values().collect();
    Ok(facts)
}

/// The local address with its prefix; on a point-to-point link the prefix is the peer's (`IFA_ADDRESS`, rtnetlink(7)).
fn networks(attributes: &[AddressAttribute], prefix: u8) -> Vec<Ipv4Net> {
    let mut local = None;
    let mut peer = None;
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => peer = Some(*address),
            _ => {}
        }
    }
    let net = |address: Ipv4Addr, prefix| Ipv4Net::new(address, prefix).ok();
    match (local, peer) {
        (Some(local), Some(peer)) if local != peer => net(local, 32)
            .into_iter()
            .chain(net(peer, prefix))
            .collect(),
        (Some(address), _) | (None, Some(address)) => net(address, prefix).into_iter().collect(),
        (None, None) => Vec::new(),
    }
}

/// `None` for what `unreachable` and `blackhole` cover, which may be used: our route is the narrower one.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let length = route.header.destination_prefix_length;
    let to = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some((*address).into()),
            _ => None,
        });
    // A prefix of no bits is a default route, in whichever table, and has no destination.
    let everywhere: Option<IpAddr> = match (length, route.header.address_family) {
        (0, AddressFamily::Inet) => Some(Ipv4Addr::UNSPECIFIED.into()),
        (0, AddressFamily::Inet6) => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    };
    IpNet::new(to.or(everywhere)?, length).ok()
}
