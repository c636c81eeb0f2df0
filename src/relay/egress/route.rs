//! What kind of address one is in this network namespace, as the kernel's own routing has it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType};

/// A socket that asks; it needs no capability.
pub(super) struct Routes(OwnedFd);

impl Routes {
    /// One of the network namespace that this process is in.
    pub(super) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is 0, which is what no protocol at all means too.
        Ok(Self(rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?))
    }

    /// Whether what is sent to `address` leaves this machine for another one: not if it is this machine's own, of a
    /// broadcast, or of nobody.
    ///
    /// # Errors
    /// What the kernel says, ENETUNREACH where there is no way.
    pub(super) fn lead_away(&self, address: IpAddr) -> io::Result<bool> {
        let mut route = RouteMessage::default();
        let (family, bits, address) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
        };
        route.header.address_family = family;
        route.header.destination_prefix_length = bits;
        route.attributes.push(RouteAttribute::Destination(address));
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let mut message = NetlinkMessage::new(
            header,
            NetlinkPayload::from(RouteNetlinkMessage::GetRoute(route)),
        );
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        rustix::net::send(self.0.as_fd(), &bytes, SendFlags::empty())?;
        // The kernel has answered when send(2) returns.
        let mut answer = vec![0; 4096];
        let (length, _) = rustix::net::recv(self.0.as_fd(), &mut answer[..], RecvFlags::DONTWAIT)?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                Ok(route.header.kind == RouteType::Unicast)
            }
            NetlinkPayload::Error(e) => Err(e.to_io()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
        let away = |address: &str| routes.lead_away(address.parse().unwrap()).ok();
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
