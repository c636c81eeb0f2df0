//! What an app could change with a socket of NETLINK_ROUTE, which `default` leaves it so that it can list its own links
//! (getifaddrs(3)): nothing.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::Outcome;
use crate::netlink::messages;

/// `RTM_BASE` of linux/rtnetlink.h. From there on each object has four numbers: new, del, get, set.
const FIRST: u16 = 16;
/// Beyond the last of any kernel so far (`RTM_MAX` is 123 in Linux 6.18).
const LAST: u16 = 191;
/// Families with handlers of their own: unspecified, IPv4, bridge, IPv6, Phonet, MPLS.
const FAMILIES: [u8; 6] = [0, 2, 7, 10, 35, 28];

/// Whether a message asks and changes nothing (`rtnl_msgtype_kind()`, include/net/rtnetlink.h).
fn only_asks(kind: u16) -> bool {
    (kind - FIRST) % 4 == 2
}

/// A request that takes the link of index 1, the loopback, down if it is RTM_NEWLINK or RTM_SETLINK and the kernel obeys
/// (struct ifinfomsg); of the others it is a beginning. Privileges are asked about before anything of it is read.
fn request(kind: u16, family: u8) -> Vec<u8> {
    const LENGTH: usize = 96;
    const UP: u32 = libc::IFF_UP as u32;
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend((LENGTH as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    for word in [1, 0, UP] {
        bytes.extend(u32::to_ne_bytes(word));
    }
    bytes.resize(LENGTH, 0);
    bytes
}

/// Sends every request that is no question, to every family, and tries to speak to others than the kernel.
pub fn attack() -> Outcome {
    match try_attack() {
        Ok(outcome) => outcome,
        Err(e) => Outcome::unknown(format!("rtnetlink: {e}")),
    }
}

fn try_attack() -> io::Result<Outcome> {
    let mut socket = match Socket::new(NETLINK_ROUTE) {
        Ok(socket) => socket,
        Err(e) => return Ok(Outcome::pass(format!("no socket: {e}"))),
    };
    let own = socket.bind_auto()?;
    let mut refused = 0;
    for kind in (FIRST..=LAST).filter(|kind| !only_asks(*kind)) {
        for family in FAMILIES {
            socket.send(&request(kind, family), 0)?;
            let mut buffer = Vec::with_capacity(4096);
            // The kernel answers before send(2) returns.
            socket.recv(&mut buffer, libc::MSG_DONTWAIT)?;
            let answer = messages(&buffer).find(|message| message.kind == libc::NLMSG_ERROR);
            match answer.map(|message| message.error()) {
                // A kernel that has no such message says the latter.
                Some(libc::EPERM | libc::EOPNOTSUPP) => refused += 1,
                Some(0) => return Ok(Outcome::fail(format!("message {kind} was obeyed"))),
                other => {
                    return Ok(Outcome::fail(format!(
                        "message {kind} of family {family}: errno {other:?}: the kernel looked at it"
                    )));
                }
            }
        }
    }
    // Other processes' sockets, those of the supervisor among them, believe what comes from the kernel.
    let others = [
        ("a group", SocketAddr::new(0, 1)),
        ("another socket", SocketAddr::new(own.port_number() ^ 1, 0)),
    ];
    for (whom, address) in others {
        match socket.send_to(&request(FIRST, 0), &address, 0) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => return Ok(Outcome::fail(format!("a message to {whom}: {e}"))),
            Ok(_) => return Ok(Outcome::fail(format!("a message to {whom} was taken"))),
        }
    }
    if socket.set_listen_all_namespaces(true).is_ok() {
        return Ok(Outcome::fail("it may listen to other network namespaces"));
    }
    Ok(Outcome::pass(format!(
        "{refused} requests: EPERM or EOPNOTSUPP; a message to others: EPERM"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_told_from_requests() {
        for (kind, asks) in [
            (libc::RTM_NEWLINK, false),
            (libc::RTM_DELLINK, false),
            (libc::RTM_GETLINK, true),
            (libc::RTM_SETLINK, false),
            (libc::RTM_NEWADDR, false),
            (libc::RTM_GETADDR, true),
            (libc::RTM_GETROUTE, true),
            (libc::RTM_DELRULE, false),
            (libc::RTM_GETNSID, true),
        ] {
            assert_eq!(only_asks(kind), asks, "{kind}");
        }
    }
}
