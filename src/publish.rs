//! Ports on the host: bound before anything is made, listening when everything is ready.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::plan::Plan;

/// Somebody else has begun to listen since the port was bound.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {source}")]
pub struct ListenError {
    /// The host's address and port.
    pub address: SocketAddr,
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
    pub address: SocketAddr,
    /// Where the relay takes its connections: the sidecar's end of the uplink.
    pub target: SocketAddr,
    /// The socket, bound.
    pub socket: OwnedFd,
}

impl Listener {
    /// Binds, without listening yet: EADDRINUSE when somebody listens there, and from now on for everybody else who
    /// wants to.
    ///
    /// # Errors
    /// What `socket(2)` or `bind(2)` says.
    pub fn bind(address: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            },
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Connections of an earlier run that are in TIME_WAIT don't count; listening sockets still do (socket(7)).
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() {
            // `::` is all of IPv6 and nothing else: what is published at 0.0.0.0 is said by itself.
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        }
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
pub fn bind_all(plan: &Plan) -> Result<Vec<Listener>, Vec<(SocketAddr, io::Error)>> {
    let (mut bound, mut refused) = (vec![], vec![]);
    for (_, publish) in plan.published() {
        let target = plan.uplink.entry(publish);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_listens_on_is_refused() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = Listener::bind(address, address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        assert!(Listener::bind(address, address).is_ok());
    }
}
