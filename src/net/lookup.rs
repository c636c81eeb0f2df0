//! What the kernel would do with a packet that has come in: `ip route get TARGET from SOURCE iif LINK`.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};

use super::Error;
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
    /// The index of the link by which it leaves.
    pub link: Option<u32>,
}

impl Routes {
    /// About the calling thread's network namespace.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        let fd = nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .map_err(|errno| Error::Open(errno.into()))?;
        Self::from_fd(fd)
    }

    /// By a `NETLINK_ROUTE` socket that was made inside the namespace.
    ///
    /// # Errors
    /// [`Error::Socket`]: it is no netlink socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        sys::netlink::socket(fd).map(Self).map_err(Error::Socket)
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
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let mut message = NetlinkMessage::new(header, RouteNetlinkMessage::GetRoute(route).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
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
