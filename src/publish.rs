//! Ports on the host: bound before anything is made, listening when everything is ready.
#![forbid(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::plan::Plan;

/// Somebody else has begun to listen since the port was bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {source}")]
pub struct ListenError {
    /// The host's address and port.
    pub address: SocketAddrV4,
    /// What the kernel said.
    pub source: io::Error,
}

/// A published port's socket on the host.
///
/// It exists whichever way the port is published: by relay it is where clients connect; by DNAT it takes what the
/// host itself sends, and it keeps everybody else from the port.
#[derive(Debug)]
pub struct Listener {
    /// The host's address and port.
    pub address: SocketAddrV4,
    /// Where the relay takes its connections: the sidecar's end of the uplink.
    pub target: SocketAddrV4,
    /// The socket, bound.
    pub socket: OwnedFd,
}

impl Listener {
    /// Binds, without listening yet: EADDRINUSE when somebody listens there, and from now on for everybody else who
    /// wants to.
    ///
    /// # Errors
    /// What `socket(2)` or `bind(2)` says.
    pub fn bind(address: SocketAddrV4, target: SocketAddrV4) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Connections of an earlier run that are in TIME_WAIT don't count; listening sockets still do (socket(7)).
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        Ok(Self {
            address,
            target,
            socket,
        })
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// [`ListenError`]; EADDRINUSE when somebody else has begun since [`Listener::bind`].
    pub fn listen(&self) -> Result<(), ListenError> {
        rustix::net::listen(&self.socket, 4096).map_err(|e| ListenError {
            address: self.address,
            source: e.into(),
        })
    }
}

/// Binds every published port of the plan; all that can't be bound are told, not only the first.
///
/// # Errors
/// Each address with what the kernel said.
pub fn bind_all(plan: &Plan) -> Result<Vec<Listener>, Vec<(SocketAddrV4, io::Error)>> {
    let (mut bound, mut refused) = (vec![], vec![]);
    for (_, publish) in plan.published() {
        let target = SocketAddrV4::new(plan.uplink.sidecar_address, publish.entry_port);
        match Listener::bind(publish.listen, target) {
            Ok(listener) => bound.push(listener),
            Err(e) => refused.push((publish.listen, e)),
        }
    }
    if refused.is_empty() {
        Ok(bound)
    } else {
        Err(refused)
    }
}

/// Where TCP sockets listen in the network namespace of process `pid`, which must be a child of ours that has not
/// been waited for (proc_pid_net(5)). An IPv6 wildcard counts as the IPv4 one: it takes both.
#[must_use]
pub fn listening_in(pid: i32) -> Vec<SocketAddrV4> {
    let mut found = vec![];
    for file in ["tcp", "tcp6"] {
        // A kernel without IPv6 has no tcp6; a process that is gone has neither, and its end is told elsewhere.
        let Ok(table) = std::fs::read_to_string(format!("/proc/{pid}/net/{file}")) else {
            continue;
        };
        found.extend(table.lines().skip(1).filter_map(listening_line));
    }
    found
}

/// One line of /proc/net/tcp or tcp6, if it is a listening socket (state 0A, TCP_LISTEN of include/net/tcp_states.h).
fn listening_line(line: &str) -> Option<SocketAddrV4> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    if state != "0A" {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match address.len() {
        // The address is printed as one number of the machine's byte order (net/ipv4/tcp_ipv4.c).
        8 => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes()),
        _ if address.bytes().all(|b| b == b'0') => Ipv4Addr::UNSPECIFIED,
        _ => return None,
    };
    Some(SocketAddrV4::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_line_gives_its_address_and_no_other_line_does() {
        let listening = "   0: 0100007F:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1";
        assert_eq!(
            listening_line(listening),
            Some("127.0.0.1:5000".parse().unwrap())
        );
        let established = listening.replace(" 0A ", " 01 ");
        assert_eq!(listening_line(&established), None);
        let any6 = "   0: 00000000000000000000000000000000:1388 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listening_line(any6), Some("0.0.0.0:5000".parse().unwrap()));
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_refused() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = taken.local_addr().unwrap() else {
            panic!("an IPv4 address was asked for");
        };
        let refused = Listener::bind(address, address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        assert!(Listener::bind(address, address).is_ok());
    }
}
