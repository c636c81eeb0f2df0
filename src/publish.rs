//! Ports on the host: bound before anything is made, listening when everything is ready.
#![forbid(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

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

/// Where TCP sockets listen in the network namespace of `diag`, a NETLINK_SOCK_DIAG socket. An IPv6 wildcard counts as
/// the IPv4 one: it takes both.
///
/// `/proc/PID/net/tcp` says the same, but walks through every bucket of the table of connections, which all namespaces
/// share: 5 ms on a small machine, more on a large one, and twice, for tcp6. This asks for the state LISTEN alone, and
/// those sockets have a table of their own (sock_diag(7), net/ipv4/inet_diag.c).
///
/// # Errors
/// What the kernel says; ENOENT when it has no `CONFIG_INET_DIAG`.
pub fn listening(diag: BorrowedFd<'_>) -> io::Result<Vec<SocketAddrV4>> {
    let mut found = vec![];
    for family in [libc::AF_INET, libc::AF_INET6] {
        rustix::net::send(diag, &listen_request(family), SendFlags::empty())?;
        let mut answer = vec![0; 32 << 10];
        let mut done = false;
        while !done {
            let (got, _) = rustix::net::recv(diag, &mut answer[..], RecvFlags::empty())?;
            done = listen_answer(&answer[..got], &mut found)?;
        }
    }
    Ok(found)
}

/// `struct nlmsghdr` (linux/netlink.h) and `struct inet_diag_req_v2` (linux/inet_diag.h): a dump of TCP sockets in the
/// state LISTEN.
fn listen_request(family: i32) -> [u8; 72] {
    let mut request = [0; 72];
    request[0..4].copy_from_slice(&72_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request[16] = family.to_le_bytes()[0];
    request[17] = libc::IPPROTO_TCP.to_le_bytes()[0];
    request[20..24].copy_from_slice(&(1_u32 << TCP_LISTEN).to_ne_bytes());
    request
}

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// linux/netlink.h: `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;

/// The sockets of one datagram of an answer; whether it was the last.
fn listen_answer(mut datagram: &[u8], found: &mut Vec<SocketAddrV4>) -> io::Result<bool> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    while let Some((head, _)) = datagram.split_at_checked(16) {
        let len = u32::from_ne_bytes(head[0..4].try_into().expect("4 bytes")) as usize;
        let kind = i32::from(u16::from_ne_bytes(head[4..6].try_into().expect("2 bytes")));
        let body = datagram.get(16..len).ok_or_else(bad)?;
        match kind {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = body.first_chunk().copied().ok_or_else(bad)?;
                return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(code)));
            }
            // struct inet_diag_msg: the family, three bytes of state, then the port and, after the other port, the address.
            _ => found.extend(listen_socket(body.get(..24).ok_or_else(bad)?)),
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn listen_socket(message: &[u8]) -> Option<SocketAddrV4> {
    let port = u16::from_be_bytes([message[4], message[5]]);
    let address = &message[8..24];
    let address = if i32::from(message[0]) == libc::AF_INET {
        Ipv4Addr::new(address[0], address[1], address[2], address[3])
    } else if address.iter().all(|byte| *byte == 0) {
        Ipv4Addr::UNSPECIFIED
    } else {
        return None;
    };
    Some(SocketAddrV4::new(address, port))
}

/// As [`listening`], for a kernel that can't be asked like that. `pid` is in the network namespace, and must be a child of
/// ours that has not been waited for (proc_pid_net(5)).
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
    fn the_kernel_tells_who_listens_and_agrees_with_proc() {
        let four = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // IPv6 may be off here.
        let six = std::net::TcpListener::bind("[::]:0").ok();
        let connected = std::net::TcpStream::connect(four.local_addr().unwrap()).unwrap();
        let diag = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(rustix::net::netlink::SOCK_DIAG),
        )
        .unwrap();
        use std::os::fd::AsFd;
        let own = i32::try_from(std::process::id()).unwrap();
        for told in [listening(diag.as_fd()).unwrap(), listening_in(own)] {
            let port = four.local_addr().unwrap().port();
            assert!(told.contains(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)));
            if let Some(six) = &six {
                let port = six.local_addr().unwrap().port();
                assert!(told.contains(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)));
            }
            let port = connected.local_addr().unwrap().port();
            assert!(told.iter().all(|socket| socket.port() != port));
        }
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_an_error() {
        let mut found = vec![];
        assert!(listen_answer(&[0; 16], &mut found).is_err());
        let mut long = [0; 16];
        long[0] = 17;
        assert!(listen_answer(&long, &mut found).is_err());
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
