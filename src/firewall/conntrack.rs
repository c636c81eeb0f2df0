//! What the kernel remembers of flows, forgotten on purpose.
//!
//! UDP has no connections, but conntrack treats datagrams between two ports as one as long as they keep coming: a client
//! that goes on sending stays translated to where its first datagram went, whatever the rules say by now.
//!
//! And what belongs to a connection is let through as such: once what it was made by is granted no more, it has to be
//! forgotten, or its far end could go on talking.

use std::io;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::counters;
use super::load::{ANSWER, Socket};
use crate::config::{Egress, Protocol};
use crate::netlink::*;
use crate::plan::Plan;

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET: libc::c_int = 1;
const IPCTNL_MSG_CT_DELETE: libc::c_int = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Of net/netfilter/nf_conntrack_netlink.c, and of its users: which attributes of a tuple count.
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// Forgets every flow of UDP that was sent to one of these ports, in the network namespace in which `socket` was opened.
///
/// # Errors
/// What `sendmsg(2)` or the kernel says; EINVAL from one older than 5.8, which can't choose.
pub fn forget_udp(socket: &Socket, ports: &[u16]) -> io::Result<()> {
    for port in ports {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = vec![];
            let kind = libc::NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
            message(
                &mut request,
                (kind, libc::NLM_F_ACK, 0),
                (family, 0),
                |out| {
                    out.nest(CTA_TUPLE_ORIG, |tuple| {
                        tuple.nest(CTA_TUPLE_PROTO, |proto| {
                            proto.bytes(CTA_PROTO_NUM, &[libc::IPPROTO_UDP as u8]);
                            proto.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                        });
                    });
                    out.nest(CTA_FILTER, |filter| {
                        let flags = BY_PROTOCOL_AND_PORT.to_ne_bytes();
                        filter.bytes(CTA_FILTER_ORIG_FLAGS, &flags);
                        filter.bytes(CTA_FILTER_REPLY_FLAGS, &[0; 4]);
                    });
                },
            );
            ask_to_forget(socket, &request)?;
        }
    }
    Ok(())
}

/// Sends a request to forget, and hears how it went; that there is nothing to forget is success.
fn ask_to_forget(socket: &Socket, request: &[u8]) -> io::Result<()> {
    socket.0.send(request, 0)?;
    let mut buffer = Vec::with_capacity(ANSWER);
    socket.0.recv(&mut buffer, 0)?;
    let error = messages(&buffer)
        .find(|message| message.kind == libc::NLMSG_ERROR)
        .map_or(libc::EBADMSG, |message| message.error());
    match error {
        0 | libc::ENOENT => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// How many connections conntrack knows in one network namespace, and how many it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Those that there are.
    pub now: u32,
    /// `net.netfilter.nf_conntrack_max`, the same for every namespace.
    pub most: u32,
}

impl Fill {
    /// Asks the kernel about the network namespace in which `socket` was opened; needs NET_ADMIN over it.
    ///
    /// # Errors
    /// What `sendmsg(2)`, `recvmsg(2)` or the kernel says.
    pub fn ask(socket: &Socket) -> io::Result<Self> {
        const IPCTNL_MSG_CT_GET_STATS: libc::c_int = 5;
        const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
        const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;
        let mut request = vec![];
        let kind = libc::NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS;
        message(&mut request, (kind, 0, 0), (libc::AF_UNSPEC, 0), |_| ());
        socket.0.send(&request, 0)?;
        let mut buffer = Vec::with_capacity(ANSWER);
        socket.0.recv(&mut buffer, 0)?;
        let answer = messages(&buffer).next();
        let answer = answer.ok_or(io::ErrorKind::InvalidData)?;
        if answer.kind == libc::NLMSG_ERROR {
            return Err(io::Error::from_raw_os_error(answer.error()));
        }
        let attributes = counters::attributes_of(answer.body);
        let told = |kind| number(attributes, kind).ok_or(io::ErrorKind::InvalidData);
        Ok(Self {
            now: told(CTA_STATS_GLOBAL_ENTRIES)?,
            most: told(CTA_STATS_GLOBAL_MAX_ENTRIES)?,
        })
    }
}

/// Who may connect to what: what is not in `to` is not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// The addresses that connections come from.
    pub from: Vec<IpAddr>,
    /// What they may go to.
    pub to: Vec<Egress>,
}

/// What each app may connect to, as it is seen in the sidecar.
#[must_use]
pub fn grants(plan: &Plan) -> Vec<Grants> {
    let apps = plan.apps.iter();
    apps.map(|app| Grants {
        from: app.addresses().collect(),
        to: {
            let links = plan.links(app).map(|(_, link)| link);
            app.egress.iter().copied().chain(links).collect()
        },
    })
    .collect()
}

/// The same as it is seen in the host's namespace, where all of it comes from the sidecar.
#[must_use]
pub fn host_grants(plan: &Plan) -> Vec<Grants> {
    let families = plan.families().into_iter();
    vec![Grants {
        from: families.map(|family| family.sidecar).collect(),
        to: plan
            .apps
            .iter()
            .flat_map(|app| app.egress.clone())
            .collect(),
    }]
}

/// Forgets every connection that one of these has made to what it may not connect to, in the network namespace in which
/// `socket` was opened: what comes to one that is forgotten belongs to nothing, and the rules drop it. Afterwards no such
/// connection comes back: the rules mustn't let a packet of it out any more.
///
/// # Errors
/// What `sendmsg(2)`, `recvmsg(2)` or the kernel says.
pub fn forget_ungranted(socket: &Socket, grants: &[Grants]) -> io::Result<()> {
    let kind = libc::NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    // All first: a list is under way as long as its end has not been read.
    let all = counters::dump_of(socket, kind, libc::AF_UNSPEC, |_| ())?;
    for connection in all {
        let (Some(family), attributes) = (connection.first(), counters::attributes_of(&connection))
        else {
            continue;
        };
        let Some(tuple) = attribute(attributes, CTA_TUPLE_ORIG) else {
            continue;
        };
        let Some(way) = Way::of(tuple) else { continue };
        let mut its = grants
            .iter()
            .filter(|grants| grants.from.contains(&way.from));
        if its.next().is_none_or(|grants| grants.cover(&way)) {
            continue;
        }
        let mut request = vec![];
        let kind = libc::NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
        message(
            &mut request,
            (kind, libc::NLM_F_ACK, 0),
            (libc::c_int::from(*family), 0),
            |out| {
                out.nest(CTA_TUPLE_ORIG, |out| out.0.extend(tuple));
                // One that has been made anew meanwhile, of the same addresses and ports, has another.
                if let Some(id) = attribute(attributes, CTA_ID) {
                    out.bytes(CTA_ID, id);
                }
            },
        );
        ask_to_forget(socket, &request)?;
    }
    Ok(())
}

impl Grants {
    fn cover(&self, way: &Way) -> bool {
        let protocol = match libc::c_int::from(way.protocol) {
            libc::IPPROTO_TCP => Protocol::Tcp,
            libc::IPPROTO_UDP => Protocol::Udp,
            _ => return false,
        };
        let mut to = self.to.iter();
        to.any(|egress| egress.covers(protocol, way.to, way.port))
    }
}

/// Who has begun a connection, and to whom.
struct Way {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    port: u16,
}

impl Way {
    fn of(tuple: &[u8]) -> Option<Self> {
        let (protocol, (from, _)) = end(tuple, SOURCE)?;
        let (_, (to, port)) = end(tuple, DESTINATION)?;
        Some(Self {
            from,
            to,
            protocol,
            port,
        })
    }
}
