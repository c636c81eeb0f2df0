//! What the kernel would do with a packet, from here or one that has come in: `ip route get TARGET [from SOURCE iif LINK]`.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::message;
use crate::sys;

/// Longer than any answer about one route.
const ANSWER: usize = 8 << 10;

/// A question about the routes of one network namespace, to be asked as often as needed. No capability is needed.
pub struct Routes(netlink_sys::Socket);

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// It is for the namespace itself.
    pub is_local: bool,
    /// It is for one machine, and another one: not for the namespace itself, nor for many.
    pub leads_away: bool,
    /// The index of the link by which it leaves.
    pub link: Option<u32>,
}

impl Routes {
    /// About the calling thread's network namespace.
    ///
    /// # Errors
    /// There is no such socket to be had.
    pub fn open() -> io::Result<Self> {
        Self::from_fd(sys::netlink::open(SockProtocol::NetlinkRoute)?)
    }

    /// By a `NETLINK_ROUTE` socket that was made inside the namespace.
    ///
    /// # Errors
    /// It is no netlink socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        sys::netlink::socket(fd).map(Self)
    }

    /// Where something goes that is sent from here.
    ///
    /// # Errors
    /// That there is no route, as the kernel says it.
    pub fn to(&self, target: IpAddr) -> io::Result<Route> {
        self.ask(message::route_of(target, None))
    }

    /// Where something goes that has come in by the link with this index.
    ///
    /// # Errors
    /// Why the kernel drops it: `EXDEV` for rp_filter and `EINVAL` for a martian, where it tells them apart (up to Linux
    /// 6.13, `inet_rtm_getroute`, net/ipv4/route.c), `EHOSTUNREACH` and `ENETUNREACH` for no route, or no forwarding.
    pub fn of(&self, source: IpAddr, target: IpAddr, link: u32) -> io::Result<Route> {
        self.ask(message::route_of(target, Some((source, link))))
    }

    fn ask(&self, route: RouteMessage) -> io::Result<Route> {
        let request = message::bytes(RouteNetlinkMessage::GetRoute(route), NLM_F_REQUEST);
        self.0.send(&request, 0)?;
        let mut answer = Vec::with_capacity(ANSWER);
        self.0.recv(&mut answer, 0)?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                let unable = match route.header.kind {
                    RouteType::BlackHole => Some(Errno::EINVAL),
                    RouteType::Unreachable => Some(Errno::EHOSTUNREACH),
                    RouteType::Prohibit => Some(Errno::EACCES),
                    _ => None,
                };
                if let Some(errno) = unable {
                    return Err(errno.into());
                }
                let link = route.attributes.iter().find_map(|it| match it {
                    RouteAttribute::Oif(link) => Some(*link),
                    _ => None,
                });
                Ok(Route {
                    is_local: route.header.kind == RouteType::Local,
                    leads_away: route.header.kind == RouteType::Unicast,
                    link,
                })
            }
            NetlinkPayload::Error(e) => Err(e.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for Routes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_addresses_lead_nowhere_else() {
        let ip = |args: &[&str]| {
            let done = std::process::Command::new("ip").args(args).status();
            assert!(done.unwrap().success(), "{args:?}");
        };
        // Of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "set", "lo", "up"]);
        ip(&[
            "link", "add", "left", "type", "veth", "peer", "name", "right",
        ]);
        ip(&["address", "add", "192.0.2.1/24", "dev", "left"]);
        ip(&["address", "add", "192.0.2.2/24", "dev", "left"]);
        ip(&[
            "-6",
            "address",
            "add",
            "2001:db8::1/64",
            "dev",
            "left",
            "nodad",
        ]);
        ip(&["link", "set", "left", "up"]);
        ip(&["link", "set", "right", "up"]);
        let routes = Routes::open().unwrap();
        let away = |address: &str| {
            let route = routes.to(address.parse().unwrap());
            route.ok().map(|route| route.leads_away)
        };
        for own in [
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.255",
            "127.0.0.5",
            "2001:db8::1",
            "::1",
        ] {
            assert_eq!(away(own), Some(false), "{own}");
        }
        assert_eq!(away("192.0.2.3"), Some(true));
        assert_eq!(away("2001:db8::2"), Some(true));
        assert_eq!(away("198.51.100.1"), None);
    }
}
