//! One dump of rtnetlink(7), or of a relative, in the network namespace that this process is in.
#![forbid(unsafe_code)]

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::messages;

/// The bodies of all that the kernel lists of a kind, by rtnetlink. `header` is the length of the kind's own header, whose first
/// byte is the family; `fill` may set more of it.
///
/// # Errors
/// What the kernel says.
pub fn dump(
    kind: u16,
    family: i32,
    header: usize,
    fill: impl FnOnce(&mut [u8]),
) -> io::Result<Vec<Vec<u8>>> {
    dump_of(NETLINK_ROUTE, kind, family, header, fill)
}

/// The same of another protocol.
///
/// # Errors
/// As [`dump`].
pub fn dump_of(
    protocol: isize,
    kind: u16,
    family: i32,
    header: usize,
    fill: impl FnOnce(&mut [u8]),
) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = netlink_sys::Socket::new(protocol)?;
    socket.bind_auto()?;
    let mut request = vec![];
    request.extend((16 + header as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.resize(16 + header, 0);
    if header > 0 {
        request[16] = family as u8;
        fill(&mut request[16..]);
    }
    socket.send(&request, 0)?;
    let mut found = vec![];
    loop {
        let mut buffer = Vec::with_capacity(64 * 1024);
        socket.recv(&mut buffer, 0)?;
        for message in messages(&buffer) {
            match message.kind {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error(message.error())),
                _ => found.push(message.body.to_vec()),
            }
        }
    }
}
