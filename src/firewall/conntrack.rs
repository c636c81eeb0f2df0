//! What the kernel remembers of flows, forgotten on purpose.
//!
//! UDP has no connections, but conntrack treats datagrams between two ports as one as long as they keep coming: a client
//! that goes on sending stays translated to where its first datagram went, whatever the rules say by now.

use std::io;

use super::load::{ANSWER, Socket};
use super::netlink::*;

// Of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_DELETE: libc::c_int = 2;
const CTA_TUPLE_ORIG: u16 = 1;
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
            socket.0.send(&request, 0)?;
            let mut buffer = Vec::with_capacity(ANSWER);
            socket.0.recv(&mut buffer, 0)?;
            let error = messages(&buffer)
                .find(|message| message.kind == libc::NLMSG_ERROR)
                .map_or(libc::EBADMSG, |message| message.error());
            match error {
                // There was none.
                0 | libc::ENOENT => {}
                number => return Err(io::Error::from_raw_os_error(number)),
            }
        }
    }
    Ok(())
}
