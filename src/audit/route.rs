//! Routes and bridge ports of the network namespace that this process is in, by one rtnetlink(7) dump each.
//!
//! [`crate::net`] changes links from the supervisor's one thread, asynchronously; an agent asks one question of the
//! namespace that it has joined, and ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_ROUTE;
use serde::{Deserialize, Serialize};

use super::dump::dump;
use crate::netlink::{Attributes, attribute, messages, native, text};

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: IpAddr,
    /// How many bits of that count.
    pub prefix: u8,
    /// Through which link, by index.
    pub link: u32,
    /// RTN_UNICAST is 1, RTN_LOCAL 2, RTN_BROADCAST 3, RTN_ANYCAST 4, RTN_MULTICAST 5 (linux/rtnetlink.h).
    pub kind: u8,
    /// The table; 255 is the local one.
    pub table: u32,
    /// The link's name, where it has one.
    pub name: String,
}

/// One bridge port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The link's name.
    pub name: String,
    /// It exchanges frames with the bridge only.
    pub isolated: bool,
    /// Only frames from known addresses come in.
    pub locked: bool,
    /// It learns addresses from frames.
    pub learning: bool,
    /// It gets frames for unknown addresses.
    pub flood: bool,
}

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const IFLA_IFNAME: u16 = 3;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_LOCKED: u16 = 39;

/// Every route of every table, of both families.
///
/// # Errors
/// What the kernel says.
pub fn routes() -> io::Result<Vec<Route>> {
    let mut found = vec![];
    // struct rtmsg is 12 bytes long: family, destination's prefix, ..., table at 4, type at 7.
    let mut bodies = dump(libc::RTM_GETROUTE, libc::AF_INET, 12, |_| {})?;
    if std::path::Path::new("/proc/self/net/if_inet6").exists() {
        bodies.extend(dump(libc::RTM_GETROUTE, libc::AF_INET6, 12, |_| {})?);
    }
    for body in bodies {
        let (Some(header), Some(attributes)) = (body.get(..12), body.get(12..)) else {
            continue;
        };
        let to = attribute(attributes, RTA_DST);
        let to = if i32::from(header[0]) == libc::AF_INET6 {
            to.and_then(|bytes| bytes.first_chunk::<16>().copied())
                .map_or(Ipv6Addr::UNSPECIFIED, Ipv6Addr::from)
                .into()
        } else {
            to.and_then(|bytes| bytes.first_chunk::<4>().copied())
                .map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from)
                .into()
        };
        let link = native(attributes, RTA_OIF).unwrap_or_default();
        found.push(Route {
            to,
            prefix: header[1],
            link,
            kind: header[7],
            table: native(attributes, RTA_TABLE).unwrap_or_else(|| header[4].into()),
            name: nix::net::if_::if_indextoname(link)
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        });
    }
    Ok(found)
}

/// Every bridge port.
///
/// # Errors
/// What the kernel says.
pub fn ports() -> io::Result<Vec<Port>> {
    let mut found = vec![];
    // struct ifinfomsg is 16 bytes long.
    for body in dump(libc::RTM_GETLINK, libc::AF_BRIDGE, 16, |_| {})? {
        let attributes = body.get(16..).unwrap_or_default();
        let Some(port) = attribute(attributes, IFLA_PROTINFO) else {
            continue;
        };
        let flag = |kind| attribute(port, kind).is_some_and(|bytes| bytes.first() == Some(&1));
        found.push(Port {
            name: text(attributes, IFLA_IFNAME).unwrap_or_default(),
            isolated: flag(IFLA_BRPORT_ISOLATED),
            locked: flag(IFLA_BRPORT_LOCKED),
            learning: flag(IFLA_BRPORT_LEARNING),
            flood: flag(IFLA_BRPORT_UNICAST_FLOOD),
        });
    }
    Ok(found)
}

/// Makes a link of that name, whose other end is called something else; nothing passes it.
///
/// # Errors
/// What the kernel says.
pub fn make_link(name: &str) -> io::Result<()> {
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut request = vec![];
    // Length, set below; struct ifinfomsg is nothing but zeros.
    request.extend([0; 4]);
    request.extend(libc::RTM_NEWLINK.to_ne_bytes());
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    request.extend((flags as u16).to_ne_bytes());
    request.extend([0; 8 + 16]);
    let mut attributes = Attributes(&mut request);
    attributes.text(IFLA_IFNAME, name);
    attributes.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "veth"));
    let length = request.len() as u32;
    request[..4].copy_from_slice(&length.to_ne_bytes());
    socket.send(&request, 0)?;
    let mut buffer = Vec::with_capacity(4096);
    socket.recv(&mut buffer, 0)?;
    match messages(&buffer).next().map(|message| message.error()) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
