//! Where sockets listen in a network namespace, by sock_diag(7): /proc/net/tcp tells the same, but walks the table of all
//! connections of the machine for it, which costs milliseconds where that table is large.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rtnetlink::packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};

use super::Error;
use crate::config::Protocol;
use crate::sys;

/// One answer of the kernel is never longer (`NLMSG_GOODSIZE` and what `netlink_dump` makes of it, at most 32 KiB).
const ANSWER: usize = 32 << 10;

/// A question about one namespace, to be asked as often as needed.
pub struct Listening(netlink_sys::Socket);

impl Listening {
    /// By a `NETLINK_SOCK_DIAG` socket that was made inside the namespace. No capability is needed.
    ///
    /// # Errors
    /// [`Error::Socket`]: it is no netlink socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        sys::netlink::socket(fd).map(Self).map_err(Error::Socket)
    }

    /// Where TCP sockets listen, or UDP sockets are bound without being connected to anybody. An IPv6 wildcard counts as
    /// the IPv4 one: it takes both, unless it was told not to.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn of(&self, protocol: Protocol) -> Result<Vec<SocketAddrV4>, Error> {
        let mut found = vec![];
        let kind = || match protocol {
            Protocol::Tcp => (IPPROTO_TCP, StateFlags::LISTEN),
            // What a socket of UDP is when it isn't TCP_ESTABLISHED (net/ipv4/udp.c).
            Protocol::Udp => (IPPROTO_UDP, StateFlags::CLOSE),
        };
        for (family, any) in [
            (AF_INET, SocketId::new_v4()),
            (AF_INET6, SocketId::new_v6()),
        ] {
            self.dump(family, any, kind(), &mut found)
                .map_err(Error::SockDiag)?;
        }
        Ok(found)
    }

    fn dump(
        &self,
        family: u8,
        any: SocketId,
        (protocol, states): (u8, StateFlags),
        found: &mut Vec<SocketAddrV4>,
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states,
            socket_id: any,
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answer = Vec::with_capacity(ANSWER);
        loop {
            answer.clear();
            self.0.recv(&mut answer, 0)?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                match message.payload {
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                        let id = &socket.header.socket_id;
                        found.extend(
                            reachable(id.source_address)
                                .map(|a| SocketAddrV4::new(a, id.source_port)),
                        );
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(e) => {
                        // A kernel without IPv6 has no sockets of it.
                        let e = e.to_io();
                        return if family == AF_INET6 && e.kind() == io::ErrorKind::NotFound {
                            Ok(())
                        } else {
                            Err(e)
                        };
                    }
                    _ => {}
                }
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn reachable(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) if address.is_unspecified() => Some(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn question() -> Listening {
        let fd = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Netlink,
            nix::sys::socket::SockType::Raw,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            nix::sys::socket::SockProtocol::NetlinkSockDiag,
        )
        .unwrap();
        Listening::from_fd(fd).unwrap()
    }

    #[test]
    fn a_bound_socket_of_udp_is_found_unless_it_is_connected() {
        let question = question();
        let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = bound.local_addr().unwrap() else {
            panic!("an IPv4 address was asked for");
        };
        assert!(question.of(Protocol::Udp).unwrap().contains(&address));
        bound.connect("127.0.0.1:9").unwrap();
        assert!(!question.of(Protocol::Udp).unwrap().contains(&address));
    }

    #[test]
    fn a_listening_socket_is_found_and_no_other() {
        let question = question();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else {
            panic!("an IPv4 address was asked for");
        };
        let client = std::net::TcpStream::connect(address).unwrap();
        let std::net::SocketAddr::V4(connected) = client.local_addr().unwrap() else {
            panic!("an IPv4 address was asked for");
        };
        let found = question.of(Protocol::Tcp).unwrap();
        assert!(found.contains(&address), "{found:?}");
        assert!(!found.contains(&connected), "{found:?}");
        drop(listener);
        assert!(!question.of(Protocol::Tcp).unwrap().contains(&address));
    }
}
