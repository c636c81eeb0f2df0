//! Where sockets listen in a network namespace, by sock_diag(7): /proc/net/tcp tells the same, but walks the table of all
//! connections of the machine for it, which costs milliseconds where that table is large.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::{Error, message};
use crate::config::Protocol;
use crate::sys;

/// One answer of the kernel is never longer (`NLMSG_GOODSIZE` and what `netlink_dump` makes of it, at most 32 KiB).
const ANSWER: usize = 32 << 10;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Where.
    pub address: SocketAddr,
    /// IPv6 and nothing else (`IPV6_V6ONLY`, ipv6(7)); an IPv6 wildcard takes IPv4 too, unless it was told not to.
    pub only: bool,
}

impl ListeningSocket {
    /// Whether it takes what comes to `target`.
    #[must_use]
    pub fn takes(&self, target: SocketAddr) -> bool {
        let ours = self.address.ip();
        let ip = match (ours, target.ip()) {
            (IpAddr::V6(ours), IpAddr::V4(wanted)) => {
                !self.only && (ours.is_unspecified() || ours.to_ipv4_mapped() == Some(wanted))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
            (ours, wanted) => ours.is_unspecified() || ours == wanted,
        };
        ip && self.address.port() == target.port()
    }
}

impl fmt::Display for ListeningSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        f.write_str(if self.only { " (IPv6 only)" } else { "" })
    }
}

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

    /// Which TCP sockets listen, or which UDP sockets are bound without being connected to anybody.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn of(&self, protocol: Protocol) -> Result<Vec<ListeningSocket>, Error> {
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

    /// Whether a TCP socket whose process has closed it still has something to deliver.
    ///
    /// # Errors
    /// [`Error::SockDiag`].
    pub fn is_delivering(&self) -> Result<bool, Error> {
        let states = || StateFlags::FIN_WAIT1 | StateFlags::CLOSING | StateFlags::LAST_ACK;
        let mut found = vec![];
        for (family, any) in [
            (AF_INET, SocketId::new_v4()),
            (AF_INET6, SocketId::new_v6()),
        ] {
            self.dump(family, any, (IPPROTO_TCP, states()), &mut found)
                .map_err(Error::SockDiag)?;
        }
        Ok(!found.is_empty())
    }

    fn dump(
        &self,
        family: u8,
        any: SocketId,
        (protocol, states): (u8, StateFlags),
        found: &mut Vec<ListeningSocket>,
    ) -> io::Result<()> {
        let request = InetRequest {
            family,
            protocol,
            extensions: ExtensionFlags::empty(),
            states,
            socket_id: any,
        };
        let request = SockDiagMessage::InetRequest(request);
        let request = message::bytes(request, NLM_F_REQUEST | NLM_F_DUMP);
        self.0.send(&request, 0)?;
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
                        found.push(ListeningSocket {
                            address: SocketAddr::new(id.source_address, id.source_port),
                            only: socket.nlas.contains(&Nla::SkV6Only(true)),
                        });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Listening {
        let fd = sys::netlink::open(nix::sys::socket::SockProtocol::NetlinkSockDiag).unwrap();
        Listening::from_fd(fd).unwrap()
    }

    #[test]
    fn a_bound_socket_of_udp_is_found_unless_it_is_connected() {
        let question = question();
        let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let is_there = || {
            let found = question.of(Protocol::Udp).unwrap();
            found.iter().any(|socket| socket.address == address)
        };
        assert!(is_there());
        bound.connect("127.0.0.1:9").unwrap();
        assert!(!is_there());
    }

    #[test]
    fn a_listening_socket_is_found_and_no_other() {
        let question = question();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let connected = client.local_addr().unwrap();
        let is_there = |address: SocketAddr| {
            let found = question.of(Protocol::Tcp).unwrap();
            found.iter().any(|socket| socket.address == address)
        };
        assert!(is_there(address));
        assert!(!is_there(connected));
        drop(listener);
        assert!(!is_there(address));
    }

    #[test]
    fn an_ipv6_wildcard_takes_both_families_unless_it_was_told_not_to() {
        let question = question();
        let (four, six) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for (bind, only, takes_four, takes_six) in [
            ("0.0.0.0:0", false, true, false),
            ("[::]:0", false, true, true),
            ("[::]:0", true, false, true),
            ("[::1]:0", false, false, false),
            ("127.0.0.1:0", false, false, false),
        ] {
            let address: SocketAddr = bind.parse().unwrap();
            let family = rustix::net::SocketAddrAny::from(address).address_family();
            let socket =
                rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
            if only {
                rustix::net::sockopt::set_ipv6_v6only(&socket, true).unwrap();
            }
            rustix::net::bind(&socket, &address).unwrap();
            rustix::net::listen(&socket, 1).unwrap();
            let socket = std::net::TcpListener::from(socket);
            let port = socket.local_addr().unwrap().port();
            let takes = |ip: IpAddr| {
                let target = SocketAddr::new(ip, port);
                let found = question.of(Protocol::Tcp).unwrap();
                found.iter().any(|socket| socket.takes(target))
            };
            assert_eq!(takes(four), takes_four, "{bind}, only {only}: IPv4");
            assert_eq!(takes(six), takes_six, "{bind}, only {only}: IPv6");
        }
    }
}
