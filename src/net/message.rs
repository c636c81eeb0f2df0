//! The rtnetlink messages: pure, one function for each thing that is asked of the kernel.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge,
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    DefaultNla, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};

use crate::plan::Mac;

/// A request as the kernel reads it.
pub(super) fn bytes<I: NetlinkSerializable>(request: I, flags: u16) -> Vec<u8>
where
    NetlinkPayload<I>: From<I>,
{
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// A veth's one end.
pub(super) struct VethEnd<'a> {
    pub name: &'a str,
    pub mac: Mac,
}

/// A bridge without a spanning tree and without snooping: its ports forward as soon as they have a carrier.
pub(super) fn new_bridge(name: &str, mac: Mac) -> RouteNetlinkMessage {
    let mut link = named(name, mac);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::MulticastSnooping(false),
        ])),
    ]));
    RouteNetlinkMessage::NewLink(link)
}

/// A veth pair, both ends born where they belong: moving one later costs some 14 ms of `synchronize_net`.
/// `netns` is looked up in the sender's descriptors, whatever namespace the socket is of (`get_net_ns_by_fd`,
/// net/core/net_namespace.c). The near end may be enslaved at once; alias, port flags and address generation are taken
/// from a later message only (`rtnl_newlink_create`, net/core/rtnetlink.c).
pub(super) fn new_veth(
    near: &VethEnd<'_>,
    master: Option<u32>,
    far: &VethEnd<'_>,
    netns: BorrowedFd<'_>,
) -> RouteNetlinkMessage {
    let mut peer = named(far.name, far.mac);
    peer.attributes
        .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut link = named(near.name, near.mac);
    if let Some(master) = master {
        link.attributes.push(LinkAttribute::Controller(master));
    }
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    RouteNetlinkMessage::NewLink(link)
}

/// What makes a bridge's port a cell: nothing passes from port to port (`isolated`), nothing is flooded into it, nothing
/// is learned from it, and it takes frames of no other source address than the forwarding database has for it
/// (`locked`, since Linux 5.18; older kernels skip the attribute).
pub(super) fn port_flags(index: u32) -> RouteNetlinkMessage {
    let mut link = indexed(index);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::Isolated(true),
            InfoBridgePort::Locked(true),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(false),
            InfoBridgePort::BroadcastFlood(false),
        ])),
    ]));
    // RTM_SETLINK takes no port data; RTM_NEWLINK of a link that is there does (`rtnl_changelink`).
    RouteNetlinkMessage::NewLink(link)
}

/// No link-local address: the kernel would announce it by multicast.
pub(super) fn no_ipv6_addresses(index: u32) -> RouteNetlinkMessage {
    let mut link = indexed(index);
    link.attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
        )]));
    RouteNetlinkMessage::SetLink(link)
}

pub(super) fn alias(index: u32, alias: &str) -> RouteNetlinkMessage {
    let mut link = indexed(index);
    link.attributes
        .push(LinkAttribute::IfAlias(alias.to_owned()));
    RouteNetlinkMessage::SetLink(link)
}

/// Settings of the link by IPv4, by their numbers: those that are 0, too, which the crate would leave out.
pub(super) fn ipv4_settings<const N: usize>(
    index: u32,
    settings: [(u16, u32); N],
) -> RouteNetlinkMessage {
    const IFLA_INET_CONF: u16 = 1;
    const LENGTH: u16 = 8;
    let mut nested = vec![];
    for (number, value) in settings {
        nested.extend(LENGTH.to_ne_bytes());
        nested.extend(number.to_ne_bytes());
        nested.extend(value.to_ne_bytes());
    }
    let nla = DefaultNla::new(IFLA_INET_CONF | libc::NLA_F_NESTED as u16, nested);
    let mut link = indexed(index);
    link.attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![
            AfSpecInet::Other(nla),
        ])]));
    RouteNetlinkMessage::SetLink(link)
}

/// Sets the link up; `arp` says whether it may ask for and answer to link-layer addresses.
pub(super) fn up(index: u32, arp: bool) -> RouteNetlinkMessage {
    let mut link = indexed(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    if !arp {
        link.header.flags |= LinkFlags::Noarp;
        link.header.change_mask |= LinkFlags::Noarp;
    }
    RouteNetlinkMessage::SetLink(link)
}

pub(super) fn link_by_name(name: &str) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.push(without_statistics());
    RouteNetlinkMessage::GetLink(link)
}

pub(super) fn link_by_index(index: u32) -> RouteNetlinkMessage {
    let mut link = indexed(index);
    link.attributes.push(without_statistics());
    RouteNetlinkMessage::GetLink(link)
}

pub(super) fn delete_link(index: u32) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelLink(indexed(index))
}

pub(super) fn links() -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(without_statistics());
    RouteNetlinkMessage::GetLink(link)
}

/// An address and no route: neither to the prefix (`IFA_F_NOPREFIXROUTE`) nor to a broadcast address, which for a /31
/// would be the peer. It can be used at once: nobody else is asked whether they have it (`IFA_F_NODAD`, RFC 4862, 5.4).
pub(super) fn new_address(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewAddress(given(index, address, prefix))
}

/// Takes back what [`new_address`] has given, and the kernel's route to it.
pub(super) fn delete_address(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelAddress(given(index, address, prefix))
}

fn given(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    let flags = if address.is_ipv6() {
        AddressFlags::Noprefixroute | AddressFlags::Nodad
    } else {
        AddressFlags::Noprefixroute
    };
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(flags),
    ];
    message
}

/// Of every family.
pub(super) fn addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// A permanent neighbour: never asked for, never forgotten, not to be overwritten by an answer nobody asked for, and not
/// counted against the machine's `gc_thresh3`.
pub(super) fn new_neighbour(index: u32, address: IpAddr, mac: Mac) -> RouteNetlinkMessage {
    let mut message = neighbour(index, address);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    RouteNetlinkMessage::NewNeighbour(message)
}

pub(super) fn delete_neighbour(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelNeighbour(neighbour(index, address))
}

/// A static entry of the bridge's forwarding database: NOARP, since PERMANENT would mean "an address of the bridge's own"
/// (`fdb_add_entry`, net/bridge/br_fdb.c).
pub(super) fn new_fdb_entry(port: u32, mac: Mac) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// A route to a neighbour.
pub(super) fn new_host_route(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(host_route(index, address))
}

pub(super) fn delete_host_route(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelRoute(host_route(index, address))
}

/// What no narrower route leads to is refused here and not sent along the default route.
pub(super) fn new_unreachable_route(net: IpNet) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(route_to(net, RouteType::Unreachable, RouteScope::Universe))
}

pub(super) fn new_default_route(index: u32, gateway: IpAddr) -> RouteNetlinkMessage {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNet::V4(Default::default()),
        IpAddr::V6(_) => IpNet::V6(Default::default()),
    };
    new_route_by(index, everywhere, gateway)
}

/// A route to `net` by a neighbour.
pub(super) fn new_route_by(index: u32, net: IpNet, gateway: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::NewRoute(route_by(index, net, gateway))
}

pub(super) fn delete_route_by(index: u32, net: IpNet, gateway: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::DelRoute(route_by(index, net, gateway))
}

fn route_by(index: u32, net: IpNet, gateway: IpAddr) -> RouteMessage {
    let mut route = if net.prefix_len() == 0 {
        route(gateway, RouteType::Unicast, RouteScope::Universe)
    } else {
        route_to(net, RouteType::Unicast, RouteScope::Universe)
    };
    route.attributes.extend([
        RouteAttribute::Gateway(route_address(gateway)),
        RouteAttribute::Oif(index),
    ]);
    route
}

/// Every address of `net` is one of this namespace's own.
pub(super) fn new_local_route(net: IpNet, index: u32) -> RouteNetlinkMessage {
    let mut route = route_to(net, RouteType::Local, RouteScope::Host);
    route.header.table = libc::RT_TABLE_LOCAL;
    route.attributes.push(RouteAttribute::Oif(index));
    RouteNetlinkMessage::NewRoute(route)
}

/// But not these.
pub(super) fn new_throw_from_local(net: IpNet) -> RouteNetlinkMessage {
    let mut route = route_to(net, RouteType::Throw, RouteScope::Universe);
    route.header.table = libc::RT_TABLE_LOCAL;
    RouteNetlinkMessage::NewRoute(route)
}

/// Ways to `net` are looked for in the main table, after the rules of lower priority.
pub(super) fn new_rule_to_main(net: IpNet, priority: u32) -> RouteNetlinkMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family(net.addr());
    rule.header.dst_len = net.prefix_len();
    rule.header.table = RouteHeader::RT_TABLE_MAIN;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Destination(net.network()),
        RuleAttribute::Priority(priority),
    ];
    RouteNetlinkMessage::NewRule(rule)
}

/// Whoever has a source of `net` is told that there is no way.
pub(super) fn new_rule_unreachable_from(net: IpNet, priority: u32) -> RouteNetlinkMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family(net.addr());
    rule.header.src_len = net.prefix_len();
    rule.header.action = RuleAction::Unreachable;
    rule.attributes = vec![
        RuleAttribute::Source(net.network()),
        RuleAttribute::Priority(priority),
    ];
    RouteNetlinkMessage::NewRule(rule)
}

/// What `RTM_GETROUTE` asks of one packet: its target, and of one that has come in its source and by which link.
pub(super) fn route_of(target: IpAddr, came: Option<(IpAddr, u32)>) -> RouteMessage {
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let mut route = RouteMessage::default();
    route.header.address_family = family(target);
    route.header.destination_prefix_length = bits(target);
    route.attributes = vec![RouteAttribute::Destination(route_address(target))];
    if let Some((source, link)) = came {
        route.header.source_prefix_length = bits(source);
        route.attributes.extend([
            RouteAttribute::Source(route_address(source)),
            RouteAttribute::Iif(link),
        ]);
    }
    route
}

pub(super) fn routes(family: AddressFamily) -> RouteNetlinkMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    RouteNetlinkMessage::GetRoute(route)
}

/// One queue each way: a veth would have one for every possible CPU, each a directory in sysfs that takes time to make,
/// and none of use, since a veth sends on the sender's CPU without a lock.
fn named(name: &str, mac: Mac) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
    ];
    link
}

fn indexed(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

fn host_route(index: u32, address: IpAddr) -> RouteMessage {
    let mut route = route_to(address.into(), RouteType::Unicast, RouteScope::Link);
    route.attributes.push(RouteAttribute::Oif(index));
    route
}

fn route_to(net: IpNet, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let net = net.trunc();
    let mut route = route(net.addr(), kind, scope);
    route.header.destination_prefix_length = net.prefix_len();
    route
        .attributes
        .push(RouteAttribute::Destination(route_address(net.addr())));
    route
}

/// Of the family of `address`.
fn route(address: IpAddr, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family(address);
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = kind;
    route.header.scope = scope;
    route
}
