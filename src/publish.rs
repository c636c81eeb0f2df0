//! Ports on the host: bound before anything is made, listening when everything is ready.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::plan::{Plan, PublishPlan};

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
#[derive(Debug, Clone)]
pub struct Listener {
    /// The host's address and port.
    pub address: SocketAddr,
    /// Where the relay takes its connections: the sidecar's end of the uplink.
    pub target: SocketAddr,
    /// The socket, bound.
    pub socket: Arc<OwnedFd>,
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
            socket: Arc::new(socket),
        })
    }

    /// Begins to listen, also again after [`Listener::close`].
    ///
    /// # Errors
    /// [`ListenError`]; EADDRINUSE when somebody else has begun since [`Listener::bind`].
    pub fn listen(&self) -> Result<(), ListenError> {
        rustix::net::listen(&*self.socket, 4096).map_err(|e| ListenError {
            address: self.address,
            source: e.into(),
        })
    }

    /// Refuses connections from now on; the socket stays bound, as before it listened.
    pub fn close(&self) {
        // A socket that doesn't listen yet is closed already.
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Read);
    }
}

/// Binds every published port of the plan; all that can't be bound are told, not only the first.
///
/// # Errors
/// Each address with what the kernel said.
pub fn bind_all(plan: &Plan) -> Result<Vec<Listener>, Vec<(SocketAddr, io::Error)>> {
    bind_new(plan, None)
}

/// As [`bind_all`], without those that `running` has bound.
///
/// # Errors
/// As [`bind_all`].
pub fn bind_new(
    plan: &Plan,
    running: Option<&Plan>,
) -> Result<Vec<Listener>, Vec<(SocketAddr, io::Error)>> {
    let (mut bound, mut refused) = (vec![], vec![]);
    for publish in new_ports(plan, running) {
        match Listener::bind(publish.listen, target(plan, publish)) {
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

/// The published ports of `plan` that `running` has not.
pub fn new_ports<'p>(
    plan: &'p Plan,
    running: Option<&Plan>,
) -> impl Iterator<Item = &'p PublishPlan> {
    let had: Vec<_> = running
        .into_iter()
        .flat_map(|running| running.published().map(|(_, publish)| publish.outside()))
        .collect();
    plan.published()
        .map(|(_, publish)| publish)
        .filter(move |publish| !had.contains(&publish.outside()))
}

/// Where a published port's connections enter the sidecar.
#[must_use]
pub fn target(plan: &Plan, publish: &PublishPlan) -> SocketAddr {
    plan.uplink.entry(publish)
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
