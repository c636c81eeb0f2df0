//! What the host has already, read once and judged elsewhere.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

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
    for answer in host
        .run(
            "host",
            vec![Step::dump("list the routes", message::routes())],
        )
        .await?
    {
        if let RouteNetlinkMessage::NewRoute(route) = answer {
            facts.routes.extend(destination(&route));
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

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    // A prefix of no bits is a default route, in whichever table. What `unreachable` and `blackhole` cover may be used:
    // our route is the narrower one.
    if route.header.kind != RouteType::Unicast || route.header.destination_prefix_length == 0 {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                Ipv4Net::new(*address, route.header.destination_prefix_length).ok()
            }
            _ => None,
        })
}
