//! What a stack has for egress by relay: a socket for each granted port, in the namespace in which the uplink ends, and the
//! part that carries what comes to them out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ipnet::IpNet;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{Ground, Launched, StackError};
use crate::config::Protocol;
use crate::config::clients::Admission;
use crate::net::publish::carried;
use crate::part::namespaces::{Namespaces, Network};
use crate::plan::{Door, Plan};
use crate::protocol::{MAX_FDS, Role, Start, ToStage};

/// How many connections may wait for the carrier at each socket.
const BACKLOG: i32 = 1024;

/// What outlives the part's processes: connections wait at the sockets for those that come next.
pub(super) struct Way {
    namespaces: Namespaces,
    doors: Vec<Door>,
    sockets: Vec<OwnedFd>,
}

impl Way {
    /// Makes all of it; `None` where the plan has no egress by relay. `relay` is where the uplink ends.
    pub(super) async fn make(
        plan: &Plan,
        relay: &Namespaces,
    ) -> Result<Option<Arc<Self>>, StackError> {
        let Some(egress) = plan.egress_relay() else {
            return Ok(None);
        };
        let (namespaces, _) =
            Namespaces::make("egress", egress.ids, plan.supervisor(), Network::Shared).await?;
        let doors = plan.doors();
        let mut sockets = vec![];
        for some in doors.chunks(MAX_FDS) {
            let open = || some.iter().map(open).collect();
            let opened = relay.open_inside(open).await;
            sockets.extend(opened.map_err(|source| StackError::Io {
                what: "listen for egress",
                source,
            })?);
        }
        Ok(Some(Arc::new(Self {
            namespaces,
            doors,
            sockets,
        })))
    }
}

/// A socket at every address, in the network namespace that this process is in.
fn open(door: &Door) -> io::Result<OwnedFd> {
    let (family, any) = match door.ipv6 {
        true => (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        false => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    };
    let kind = match door.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if door.ipv6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(any, door.port))?;
    if door.protocol == Protocol::Tcp {
        carried(&socket)?;
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

impl Ground {
    /// Starts the part that carries what apps connect to out, if the plan has it, and waits until it is ready.
    ///
    /// # Errors
    /// [`StackError`].
    pub(super) async fn start_egress(&self) -> Result<Option<Launched>, StackError> {
        match self.egress {
            Some(_) => self.egress().await.map(Some),
            None => Ok(None),
        }
    }

    /// Starts that part, and waits until it is ready.
    ///
    /// # Errors
    /// [`StackError`].
    ///
    /// # Panics
    /// The plan has no such part.
    pub async fn egress(&self) -> Result<Launched, StackError> {
        let way = self.egress.as_ref().expect("it is a part of the plan");
        let limits = self.limits(super::PartId::Egress);
        let clients: Vec<IpNet> = (self.plan.families().iter())
            .map(|family| family.sidecar.into())
            .collect();
        let start = Start {
            hostname: format!("{}-egress", self.plan.stack),
            nproc: self.plan.cgroup.nproc(limits),
            role: Role::Egress {
                grants: self.plan.granted().copied().collect(),
                doors: way.doors.clone(),
                clients: Admission::of(&clients, None),
            },
            weaken: super::weaken(),
        };
        let container = self.spawn("egress", &way.namespaces).await?;
        let fds: Vec<_> = way.sockets.iter().map(AsFd::as_fd).collect();
        let mut batches = fds.chunks(MAX_FDS);
        let first = batches.next().unwrap_or_default();
        container
            .send(&ToStage::Start(Box::new(start)), first)
            .await?;
        for batch in batches {
            container.send(&ToStage::More, batch).await?;
        }
        Launched::ready(container).await
    }
}
