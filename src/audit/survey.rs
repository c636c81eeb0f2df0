//! Everything that there is in the network namespace that this process is in: by one dump for each kind of thing, of
//! rtnetlink(7) and its relatives, and by what /proc says.
//!
//! Nothing is judged here. What is listed is put into words that say of it what decides where packets go, and no more: so
//! two things are the same if the words are, and [`super::probes::network`] says what the words should be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_XFRM;
use serde::{Deserialize, Serialize};

use super::dump::{dump, dump_of};
use crate::firewall;
use crate::netlink::{attribute, attributes, native, text};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Every link.
    pub links: Vec<Link>,
    /// `LINK ADDRESS/PREFIX`.
    pub addresses: BTreeSet<String>,
    /// `LINK ADDRESS is MAC, STATE`.
    pub neighbours: BTreeSet<String>,
    /// Of bridges: `MAC behind LINK, STATE`.
    pub forwarding: BTreeSet<String>,
    /// See [`routes`].
    pub routes: BTreeSet<String>,
    /// See [`rules`].
    pub rules: BTreeSet<String>,
    /// Queueing disciplines that are not the one that does nothing: `LINK KIND`.
    pub queues: BTreeSet<String>,
    /// Whatever else could decide about packets.
    pub others: BTreeSet<String>,
    /// Sockets that anything from outside could reach, or that hear what passes.
    pub sockets: Vec<Socket>,
    /// Settings by link, such as `ipv4/conf/eth0`, and what is the same of all by `ipv4/conf/default`.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
}

/// One link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, such as `veth`.
    pub kind: String,
    /// Its link-layer address.
    pub mac: String,
    /// Whether it is up, asks for no neighbours, and so on (netdevice(7)).
    pub flags: u32,
    /// The link that has taken it over.
    pub master: Option<String>,
    /// The link of the same namespace that it is on top of.
    pub over: Option<u32>,
    /// Whether a program looks at what it receives (XDP).
    pub xdp: bool,
    /// How many want to have what is not for it.
    pub promiscuity: u32,
    /// Other names of it.
    pub more_names: usize,
}

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Socket {
    /// Such as `tcp6`: the file of /proc/net that has it.
    pub kind: String,
    /// Its own port, or what its kind has instead.
    pub port: u32,
    /// Whose it is, by the ids of the user namespace that this process is in.
    pub uid: u32,
}

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_PROP_LIST: u16 = 52;

/// Names of the links, by index.
type Names = BTreeMap<u32, String>;

/// Looks at everything; with `only`, at one link of a namespace that is not ours, and at those that are on top of it.
///
/// # Errors
/// What the kernel says.
pub fn survey(only: Option<&str>) -> io::Result<Survey> {
    let mut found = Survey::default();
    let mut links = links()?;
    let named = links.iter().map(|link| (link.index, link.name.clone()));
    let names: Names = named.collect();
    let wanted = |line: &String| only.is_none_or(|name| line.starts_with(&format!("{name} ")));
    found.addresses = addresses(&names)?.into_iter().filter(wanted).collect();
    let neighbours = neighbours(&links, &names)?.into_iter();
    found.neighbours = neighbours.filter(wanted).collect();
    if let Some(name) = only {
        let this = links.iter().find(|link| link.name == name);
        let index = this.map(|link| link.index);
        links.retain(|link| link.name == name || index.is_some() && link.over == index);
    }
    found.links = links;
    found.queues = queues(&names)?.into_iter().filter(wanted).collect();
    match only {
        Some(name) => found.settings = settings(&[name]),
        None => {
            found.forwarding = forwarding(&names)?;
            found.routes = routes(&names)?;
            found.rules = rules()?;
            found.others = others()?;
            found.sockets = sockets();
            let links: Vec<&str> = found.links.iter().map(|link| link.name.as_str()).collect();
            found.settings = settings(&[&links[..], &["all", "default"]].concat());
        }
    }
    Ok(found)
}

fn mac(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn name_of(names: &Names, index: u32) -> String {
    let known = names.get(&index).cloned();
    known.unwrap_or_else(|| format!("link {index}"))
}

fn links() -> io::Result<Vec<Link>> {
    let mut names = Names::new();
    let bodies = dump(libc::RTM_GETLINK, libc::AF_UNSPEC, 16, |_| {})?;
    let mut found = vec![];
    for body in &bodies {
        // struct ifinfomsg: index at 4, flags at 8.
        let (Some(index), Some(flags)) = (at(body, 4), at(body, 8)) else {
            continue;
        };
        let attributes = body.get(16..).unwrap_or_default();
        let name = text(attributes, IFLA_IFNAME).unwrap_or_default();
        names.insert(index, name.clone());
        let kind = attribute(attributes, IFLA_LINKINFO).and_then(|info| text(info, IFLA_INFO_KIND));
        // Of a pair whose other end is elsewhere it is a number there.
        let here = attribute(attributes, IFLA_LINK_NETNSID).is_none();
        let over = native(attributes, IFLA_LINK).filter(|over| here && *over != index);
        let xdp = attribute(attributes, IFLA_XDP)
            .and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED)?.first().copied());
        found.push((
            native(attributes, IFLA_MASTER),
            Link {
                index,
                name,
                kind: kind.unwrap_or_default(),
                mac: mac(attribute(attributes, IFLA_ADDRESS).unwrap_or_default()),
                flags,
                master: None,
                over,
                xdp: xdp.is_some_and(|attached| attached != 0),
                promiscuity: native(attributes, IFLA_PROMISCUITY).unwrap_or_default(),
                more_names: usize::from(attribute(attributes, IFLA_PROP_LIST).is_some()),
            },
        ));
    }
    let found = found.into_iter().map(|(master, link)| Link {
        master: master.map(|master| name_of(&names, master)),
        ..link
    });
    Ok(found.collect())
}

fn at(body: &[u8], offset: usize) -> Option<u32> {
    let bytes = body.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn addresses(names: &Names) -> io::Result<Vec<String>> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let mut found = vec![];
    for body in dump(libc::RTM_GETADDR, libc::AF_UNSPEC, 8, |_| {})? {
        // struct ifaddrmsg: prefix at 1, index at 4.
        let (Some(prefix), Some(index)) = (body.get(1), at(&body, 4)) else {
            continue;
        };
        let attributes = body.get(8..).unwrap_or_default();
        let address = attribute(attributes, IFA_LOCAL).or(attribute(attributes, IFA_ADDRESS));
        if let Some(address) = address.and_then(ip) {
            found.push(format!("{} {address}/{prefix}", name_of(names, index)));
        }
    }
    Ok(found)
}

/// `NUD_*` of linux/neighbour.h.
const PERMANENT: u16 = 0x80;
const NOARP: u16 = 0x40;

fn state(bits: u16) -> String {
    match bits {
        PERMANENT => "permanent".to_owned(),
        NOARP => "noarp".to_owned(),
        bits => format!("state {bits:#x}"),
    }
}

/// Without what the kernel makes by itself where nobody is asked: an entry for whoever is sent to, with the link's own
/// address, and those of groups.
fn neighbours(links: &[Link], names: &Names) -> io::Result<Vec<String>> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    const NTF_PROXY: u8 = 0x08;
    let own = |index| {
        let mut links = links.iter();
        links.find(|link| link.index == index).map(|link| &link.mac)
    };
    let mut found = vec![];
    for proxy in [0, NTF_PROXY] {
        // struct ndmsg: index at 4, state at 8, flags at 10.
        for body in dump(libc::RTM_GETNEIGH, libc::AF_UNSPEC, 12, |head| {
            head[10] = proxy
        })? {
            let (Some(index), Some(bits)) =
                (at(&body, 4), body.get(8..).and_then(|b| b.first_chunk()))
            else {
                continue;
            };
            if ![libc::AF_INET, libc::AF_INET6].contains(&i32::from(body[0])) {
                continue;
            }
            let bits = u16::from_ne_bytes(*bits);
            let attributes = body.get(12..).unwrap_or_default();
            let Some(address) = attribute(attributes, NDA_DST).and_then(ip) else {
                continue;
            };
            let name = name_of(names, index);
            if proxy != 0 {
                found.push(format!("{name} answers for {address}"));
                continue;
            }
            let at = attribute(attributes, NDA_LLADDR).unwrap_or_default();
            let is_group = at.first().is_some_and(|first| first & 1 != 0);
            let is_nothing = at.iter().all(|byte| *byte == 0);
            if bits == NOARP
                && (is_group || is_nothing || own(index).is_some_and(|own| *own == mac(at)))
            {
                continue;
            }
            found.push(format!("{name} {address} is {}, {}", mac(at), state(bits)));
        }
    }
    Ok(found)
}

/// What bridges know of who is where, without groups.
fn forwarding(names: &Names) -> io::Result<BTreeSet<String>> {
    const NDA_LLADDR: u16 = 2;
    let mut found = BTreeSet::new();
    for body in dump(libc::RTM_GETNEIGH, libc::AF_BRIDGE, 12, |_| {})? {
        let (Some(index), Some(bits)) = (at(&body, 4), body.get(8..).and_then(|b| b.first_chunk()))
        else {
            continue;
        };
        let bits = u16::from_ne_bytes(*bits);
        let attributes = body.get(12..).unwrap_or_default();
        let address = attribute(attributes, NDA_LLADDR).unwrap_or_default();
        if address.first().is_some_and(|first| first & 1 == 0) {
            let (address, name) = (mac(address), name_of(names, index));
            found.insert(format!("{address} behind {name}, {}", state(bits)));
        }
    }
    Ok(found)
}

/// Such as `172.18.0.3/32 via 172.18.0.1 on eth0`, `unreachable 172.18.0.0/24`, `local 172.18.0.2/32 on eth0 in table 255`;
/// whatever else a route may have is said to be there.
fn routes(names: &Names) -> io::Result<BTreeSet<String>> {
    const RTA_DST: u16 = 1;
    const RTA_SRC: u16 = 2;
    const RTA_IIF: u16 = 3;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_TABLE: u16 = 15;
    const RTA_VIA: u16 = 18;
    const RTA_NEWDST: u16 = 19;
    const RTA_ENCAP: u16 = 22;
    const RTA_NH_ID: u16 = 30;
    const MAIN: u32 = 254;
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for body in dump(libc::RTM_GETROUTE, family, 12, |_| {})? {
            // struct rtmsg: prefix at 1, table at 4, type at 7. Another family answers for one that the kernel lacks.
            let (Some(head), true) = (body.get(..12), i32::from(body[0]) == family) else {
                continue;
            };
            let attributes = body.get(12..).unwrap_or_default();
            let nowhere: IpAddr = match family {
                libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
                _ => Ipv6Addr::UNSPECIFIED.into(),
            };
            let to = attribute(attributes, RTA_DST)
                .and_then(ip)
                .unwrap_or(nowhere);
            let kind = match head[7] {
                1 => "",
                2 => "local ",
                3 => "broadcast ",
                4 => "anycast ",
                5 => "multicast ",
                7 => "unreachable ",
                9 => "throw ",
                _ => "other ",
            };
            let mut line = format!("{kind}{to}/{}", head[1]);
            if let Some(by) = attribute(attributes, RTA_GATEWAY).and_then(ip) {
                line += &format!(" via {by}");
            }
            if let Some(link) = native(attributes, RTA_OIF) {
                line += &format!(" on {}", name_of(names, link));
            }
            let table = native(attributes, RTA_TABLE).unwrap_or_else(|| head[4].into());
            if table != MAIN {
                line += &format!(" in table {table}");
            }
            for (kind, what) in [
                (RTA_SRC, "by source"),
                (RTA_IIF, "by link"),
                (RTA_MULTIPATH, "several ways"),
                (RTA_VIA, "by another family"),
                (RTA_NEWDST, "another destination"),
                (RTA_ENCAP, "in a tunnel"),
                (RTA_NH_ID, "by a next hop"),
            ] {
                if attribute(attributes, kind).is_some() {
                    line += &format!(", {what}");
                }
            }
            found.insert(line);
        }
    }
    Ok(found)
}

/// Such as `ipv4 0 from all to 198.19.0.1/32 table 254`; with `and more` if it asks for anything else.
fn rules() -> io::Result<BTreeSet<String>> {
    const FRA_DST: u16 = 1;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
    const FRA_TABLE: u16 = 15;
    const FRA_PAD: u16 = 18;
    const FRA_PROTOCOL: u16 = 21;
    const KNOWN: [u16; 7] = [
        FRA_DST,
        FRA_SRC,
        FRA_PRIORITY,
        FRA_SUPPRESS_PREFIXLEN,
        FRA_TABLE,
        FRA_PAD,
        FRA_PROTOCOL,
    ];
    let mut found = BTreeSet::new();
    for (family, name) in [(libc::AF_INET, "ipv4"), (libc::AF_INET6, "ipv6")] {
        for body in dump(libc::RTM_GETRULE, family, 12, |_| {})? {
            // struct fib_rule_hdr: lengths at 1 and 2, table at 4, action at 7, flags at 8.
            let (Some(head), true) = (body.get(..12), i32::from(body[0]) == family) else {
                continue;
            };
            let attributes = body.get(12..).unwrap_or_default();
            let end = |kind, length: u8| match attribute(attributes, kind).and_then(ip) {
                Some(address) => format!("{address}/{length}"),
                None => "all".to_owned(),
            };
            let priority = native(attributes, FRA_PRIORITY).unwrap_or_default();
            let table = native(attributes, FRA_TABLE).unwrap_or_else(|| head[4].into());
            let (from, to) = (end(FRA_SRC, head[2]), end(FRA_DST, head[1]));
            let action = match head[7] {
                1 => format!("table {table}"),
                7 => "unreachable".to_owned(),
                other => format!("action {other}"),
            };
            let more = self::attributes(attributes).any(|(kind, _)| !KNOWN.contains(&kind));
            let more = if more || at(head, 8) != Some(0) {
                " and more"
            } else {
                ""
            };
            found.insert(format!(
                "{name} {priority} from {from} to {to} {action}{more}"
            ));
        }
    }
    Ok(found)
}

fn queues(names: &Names) -> io::Result<Vec<String>> {
    const TCA_KIND: u16 = 1;
    let mut found = vec![];
    // struct tcmsg: index at 4.
    for body in dump(libc::RTM_GETQDISC, libc::AF_UNSPEC, 20, |_| {})? {
        let kind = text(body.get(20..).unwrap_or_default(), TCA_KIND).unwrap_or_default();
        if let Some(index) = at(&body, 4)
            // What a link has that was never up, and what ours have.
            && !["noop", "noqueue"].contains(&kind.as_str())
        {
            found.push(format!("{} {kind}", name_of(names, index)));
        }
    }
    Ok(found)
}

/// Tables of nftables and of iptables before it, IPsec's policies and states, next hops.
fn others() -> io::Result<BTreeSet<String>> {
    const RTM_GETNEXTHOP: u16 = 106;
    const XFRM_MSG_GETSA: u16 = 0x12;
    const XFRM_MSG_GETPOLICY: u16 = 0x15;
    let mut found = BTreeSet::new();
    let socket = firewall::Socket::open().map_err(io::Error::other)?;
    for table in firewall::tables(&socket)? {
        found.insert(format!("table {table}"));
    }
    for file in ["ip_tables_names", "ip6_tables_names", "arp_tables_names"] {
        let names = std::fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        found.extend(names.lines().map(|name| format!("{file}: {name}")));
    }
    // A kernel that lacks them has none.
    let hops = dump(RTM_GETNEXTHOP, libc::AF_UNSPEC, 8, |_| {});
    found.extend(hops.into_iter().flatten().map(|_| "a next hop".to_owned()));
    for (kind, what) in [
        (XFRM_MSG_GETPOLICY, "a policy of IPsec"),
        (XFRM_MSG_GETSA, "a state of IPsec"),
    ] {
        let all = dump_of(NETLINK_XFRM, kind, libc::AF_UNSPEC, 0, |_| {});
        found.extend(all.into_iter().flatten().map(|_| what.to_owned()));
    }
    Ok(found)
}

/// What /proc/net tells of sockets. Those of TCP that are only connected are left out: the rules decide about them.
fn sockets() -> Vec<Socket> {
    const LISTEN: &str = "0A";
    let mut found = vec![];
    for file in [
        "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "icmp", "icmp6", "raw", "raw6",
    ] {
        let text = std::fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(uid)) =
                (fields.get(1), fields.get(3), fields.get(7))
            else {
                continue;
            };
            let hears = *state == LISTEN || !file.starts_with("tcp");
            let port = local
                .rsplit_once(':')
                .map(|(_, port)| u32::from_str_radix(port, 16));
            if let (true, Some(Ok(port)), Ok(uid)) = (hears, port, uid.parse()) {
                let kind = file.to_owned();
                found.push(Socket { kind, port, uid });
            }
        }
    }
    let packet = std::fs::read_to_string("/proc/self/net/packet").unwrap_or_default();
    for line in packet.lines().skip(1) {
        // sk RefCnt Type Proto Iface R Rmem User Inode
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let (Some(Ok(port)), Some(Ok(uid))) = (
            fields.get(4).map(|f| f.parse()),
            fields.get(7).map(|f| f.parse()),
        ) {
            let kind = "packet".to_owned();
            found.push(Socket { kind, port, uid });
        }
    }
    found.sort();
    found
}

fn settings(links: &[&str]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        for link in links {
            let place = format!("{family}/conf/{link}");
            let directory = format!("/proc/sys/net/{place}");
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let values = entries.filter_map(|entry| {
                let value = std::fs::read_to_string(entry.path()).ok()?;
                Some((
                    entry.file_name().into_string().ok()?,
                    value.trim().to_owned(),
                ))
            });
            let values: BTreeMap<String, String> = values.collect();
            if !values.is_empty() {
                found.insert(place, values);
            }
        }
    }
    found
}
