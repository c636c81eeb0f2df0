//! Who has a port of this host.
//!
//! bind(2) says EADDRINUSE for what are different matters to whoever reads it: a server that listens, a socket that is bound
//! and does not listen, a connection that goes out from the port, one that ended up to a minute ago and is in TIME-WAIT.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::config::Protocol;
use crate::net::listening::{Holder, LISTEN, Listening, TIME_WAIT};
use crate::text;

/// So long a name of a process is shown; the kernel keeps 15 bytes (`TASK_COMM_LEN`).
const MOST_NAME: usize = 15;

/// The command by which root sees who has a port.
#[must_use]
pub fn shown_by(port: u16, protocol: Protocol) -> String {
    let sockets = match protocol {
        Protocol::Tcp => "-tanp",
        Protocol::Udp => "-uanp",
    };
    format!("ss {sockets} 'sport = :{port}'")
}

/// What keeps `address` from being bound: a sentence, and what to do. `None` when nothing is seen that does.
#[must_use]
pub fn who_has(address: SocketAddr, protocol: Protocol) -> Option<(String, String)> {
    let all = Listening::open().ok()?;
    let all = all.holders(protocol, address.port()).ok()?;
    let holder = worst(all, address)?;
    let (name, seen) = process_of(&holder).map_or_else(
        || (format!("a process of user {}", holder.uid), false),
        |name| (name, true),
    );
    Some(told(&holder, protocol, &name, seen))
}

/// Of all that have the port, the one that explains most.
fn worst(all: Vec<Holder>, address: SocketAddr) -> Option<Holder> {
    let theirs = all
        .into_iter()
        .filter(|holder| overlap(holder.address.ip(), address.ip()));
    theirs.min_by_key(|holder| match holder.state {
        LISTEN => 0,
        // Connections that a server has accepted have its port too, and are none of the reasons.
        _ if holder.peer.port() == 0 => 1,
        TIME_WAIT => 3,
        _ => 2,
    })
}

fn overlap(theirs: IpAddr, ours: IpAddr) -> bool {
    match (theirs, ours) {
        (IpAddr::V6(theirs), IpAddr::V4(ours)) => {
            theirs.is_unspecified()
                || theirs
                    .to_ipv4_mapped()
                    .is_some_and(|theirs| theirs == ours || ours.is_unspecified())
        }
        (IpAddr::V4(_), IpAddr::V6(ours)) => ours.is_unspecified(),
        (theirs, ours) => theirs == ours || theirs.is_unspecified() || ours.is_unspecified(),
    }
}

fn told(holder: &Holder, protocol: Protocol, name: &str, seen: bool) -> (String, String) {
    let Holder { address, peer, .. } = holder;
    let port = address.port();
    let end = if seen {
        format!("end it, or publish another port than {port}")
    } else {
        format!(
            "which one it is, root sees by {}; or publish another port",
            shown_by(port, protocol)
        )
    };
    let away = "a port that connections going out may get (net.ipv4.ip_local_port_range) can be taken at any time: \
                publish one outside, or add it to net.ipv4.ip_local_reserved_ports";
    match (holder.state, peer.port()) {
        (LISTEN, _) => (format!("{name} listens on {address}"), end),
        (_, 0) => (format!("{name} has bound {address}"), end),
        (TIME_WAIT, _) => (
            format!(
                "a connection from {address} to {peer} that has ended has the port for up to a minute more (TIME-WAIT)"
            ),
            away.to_owned(),
        ),
        // No process has it any more; the kernel sends what is left.
        _ if holder.inode == 0 => (
            format!("a connection from {address} to {peer} that is ending has the port"),
            away.to_owned(),
        ),
        _ => (
            format!("{name} has a connection from {address} to {peer}"),
            away.to_owned(),
        ),
    }
}

/// `name (pid N)` of a process that has the socket; `None` where we may not look into it.
fn process_of(holder: &Holder) -> Option<String> {
    if holder.inode == 0 {
        return None;
    }
    let wanted = format!("socket:[{}]", holder.inode);
    let processes = fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let is_it =
            |path: &Path| fs::read_link(path).is_ok_and(|link| link.as_os_str() == &*wanted);
        if descriptors.flatten().any(|entry| is_it(&entry.path())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!(
                "{} (pid {pid})",
                text::harmless(name.trim_end(), MOST_NAME)
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(address: &str, peer: &str, state: u8, inode: u32) -> Holder {
        Holder {
            address: address.parse().unwrap(),
            peer: peer.parse().unwrap(),
            state,
            inode,
            uid: 33,
        }
    }

    #[test]
    fn a_listener_is_told_before_a_connection_and_another_address_not_at_all() {
        let listens = holder("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1);
        let accepted = holder("127.0.0.1:80", "127.0.0.1:9", 1, 2);
        let other = holder("192.0.2.1:80", "0.0.0.0:0", LISTEN, 3);
        let dual = holder("[::]:80", "[::]:0", LISTEN, 4);
        let waits = holder("127.0.0.1:80", "127.0.0.1:9", TIME_WAIT, 0);
        let at = |all: &[Holder], address: &str| worst(all.to_vec(), address.parse().unwrap());
        for (all, address, expected) in [
            (vec![accepted, listens], "127.0.0.1:80", Some(listens)),
            (vec![waits, accepted], "127.0.0.1:80", Some(accepted)),
            (vec![waits], "127.0.0.1:80", Some(waits)),
            (vec![other], "127.0.0.1:80", None),
            (vec![other], "0.0.0.0:80", Some(other)),
            (vec![dual], "127.0.0.1:80", Some(dual)),
            (vec![other], "[::]:80", Some(other)),
            (vec![other], "[::1]:80", None),
        ] {
            assert_eq!(at(&all, address), expected, "{address} {all:?}");
        }
    }

    #[test]
    fn a_process_is_found_by_its_socket() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (what, hint) = who_has(address, Protocol::Tcp).unwrap();
        let own = format!("(pid {}) listens on {address}", std::process::id());
        assert!(what.ends_with(&own), "{what}");
        assert!(hint.starts_with("end it"), "{hint}");
        drop(socket);
        assert_eq!(who_has(address, Protocol::Tcp), None);
    }

    #[test]
    fn each_state_has_its_sentence() {
        let said = |holder: Holder, seen| told(&holder, Protocol::Tcp, "nginx (pid 7)", seen).0;
        let (here, there) = ("127.0.0.1:50051", "192.0.2.1:443");
        assert_eq!(
            said(holder(here, "0.0.0.0:0", LISTEN, 1), true),
            "nginx (pid 7) listens on 127.0.0.1:50051"
        );
        assert_eq!(
            said(holder(here, "0.0.0.0:0", 13, 1), true),
            "nginx (pid 7) has bound 127.0.0.1:50051"
        );
        assert_eq!(
            said(holder(here, there, 1, 1), true),
            "nginx (pid 7) has a connection from 127.0.0.1:50051 to 192.0.2.1:443"
        );
        assert!(said(holder(here, there, TIME_WAIT, 0), false).ends_with("(TIME-WAIT)"));
        assert!(said(holder(here, there, 5, 0), false).contains("is ending"));
    }
}
