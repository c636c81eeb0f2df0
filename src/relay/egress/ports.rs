//! Ports to dial from where a destination is dialled so often that the kernel would run out of them.
//!
//! # Theory of operation
//!
//! Who closes a connection first has its port in TIME-WAIT for a minute. Of the 28,232 ports that Linux chooses from that leaves 470
//! new connections a second to one destination, and far fewer in fact: each looks through all of them (`__inet_hash_connect()`,
//! net/ipv4/inet_hashtables.c). In a network namespace of ours `tcp_tw_reuse` would end that; the dialer's is the host's.
//!
//! A socket that was bound to its port is its owner's to answer for: where both ends have timestamps (RFC 7323) it takes a connection
//! in TIME-WAIT over, whatever that setting is (`tcp_twsk_unique()`, net/ipv4/tcp_ipv4.c, with `twp` NULL), as the far end does, by
//! RFC 6191. So the dialer has some ports for that, chosen by the kernel when it starts, in turn. It may bind to no others, and
//! listen nowhere.
//!
//! Who is dialled seldom is dialled from a port that the kernel chooses, which nobody can guess (RFC 6056).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

/// So many: as many new connections a tenth of a second there may be to one destination. To choose them takes some 2 ms.
const PORTS: usize = 512;
/// Before it is used again for the same destination, the far end has seen another millisecond of its timestamps, and whom it was used
/// for is most likely gone.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// So often in a minute a destination is dialled from ports that the kernel chooses: most ports are for others.
const OFTEN: u32 = 2_000;
const MINUTE: Duration = Duration::from_mins(1);
/// No more destinations are counted at a time.
const DESTINATIONS: usize = 64;

/// The ports, and who is dialled often.
#[derive(Default)]
pub struct Ports {
    ports: Vec<u16>,
    dialled: HashMap<SocketAddr, Dialled>,
}

/// How often one destination was dialled.
struct Dialled {
    /// The begin of a minute…
    since: Instant,
    /// …so often in it…
    times: u32,
    /// …and whether so in that before it.
    often: bool,
    /// When each port was last used, in the order of the ports.
    used: Vec<Option<Instant>>,
    next: usize,
}

impl Ports {
    /// Has the kernel choose them, of those that it chooses from. Should be called before it is decided what may be bound to.
    ///
    /// # Errors
    /// What `socket(2)`, `bind(2)` and `getsockname(2)` say.
    pub fn choose() -> io::Result<Self> {
        let mut ports = Vec::with_capacity(PORTS);
        for _ in 0..PORTS {
            let one = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            setsockopt(&one, sockopt::ReuseAddr, &true)?;
            bind(one.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0))?;
            ports.push(getsockname::<SockaddrIn>(one.as_raw_fd())?.port());
        }
        ports.sort_unstable();
        ports.dedup();
        Ok(Self::of(ports))
    }

    fn of(ports: Vec<u16>) -> Self {
        Self {
            ports,
            dialled: HashMap::new(),
        }
    }

    /// What they are.
    #[must_use]
    pub fn all(&self) -> &[u16] {
        &self.ports
    }

    /// Where to dial this destination from; `None` if the kernel is to choose.
    pub(super) fn for_next(&mut self, to: SocketAddr, now: Instant) -> Option<SocketAddr> {
        if !self.dialled.contains_key(&to) && self.dialled.len() >= DESTINATIONS {
            let is_of_now = |dialled: &Dialled| now.duration_since(dialled.since) < MINUTE;
            self.dialled.retain(|_, dialled| is_of_now(dialled));
            if self.dialled.len() >= DESTINATIONS {
                return None;
            }
        }
        let dialled = self.dialled.entry(to).or_insert_with(|| Dialled {
            since: now,
            times: 0,
            often: false,
            used: vec![],
            next: 0,
        });
        if !dialled.count(now) {
            return None;
        }
        let port = dialled.port(&self.ports, now)?.ok()?;
        Some(any(to, port))
    }

    /// The same where the kernel has none left to choose: such a destination is dialled often. Where all were used just now,
    /// how long until one may be used again; `None` if there is none here either.
    pub(super) fn in_need(
        &mut self,
        to: SocketAddr,
        now: Instant,
    ) -> Option<Result<SocketAddr, Duration>> {
        let dialled = self.dialled.get_mut(&to)?;
        dialled.times = dialled.times.max(OFTEN);
        let port = dialled.port(&self.ports, now)?;
        Some(port.map(|port| any(to, port)))
    }
}

/// This port at all addresses of the family.
fn any(to: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, port)
}

impl Dialled {
    /// Counts one more; whether it is dialled often.
    fn count(&mut self, now: Instant) -> bool {
        let age = now.duration_since(self.since);
        if age >= MINUTE {
            self.often = age < 2 * MINUTE && self.times >= OFTEN;
            (self.since, self.times) = (now, 0);
        }
        self.times = self.times.saturating_add(1);
        self.often || self.times > OFTEN
    }

    /// The port whose turn it is; if it was used just now, how long until it may be used again.
    fn port(&mut self, ports: &[u16], now: Instant) -> Option<Result<u16, Duration>> {
        self.used.resize(ports.len(), None);
        let port = *ports.get(self.next)?;
        let used = self.used.get_mut(self.next)?;
        let age = used.map(|used| now.duration_since(used));
        if let Some(age) = age.filter(|age| *age < AGAIN_AFTER) {
            return Some(Err(AGAIN_AFTER.saturating_sub(age)));
        }
        *used = Some(now);
        self.next = (self.next + 1) % ports.len();
        Some(Ok(port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 443))
    }

    #[test]
    fn who_is_dialled_often_is_dialled_from_each_port_in_turn() {
        let mut ports = Ports::of(vec![40001, 40003, 40005]);
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        for _ in 0..OFTEN {
            assert_eq!(ports.for_next(to(1), at(0)), None);
        }
        let mut next = |last, ms| ports.for_next(to(last), at(ms)).map(|from| from.port());
        assert_eq!(next(1, 1), Some(40001));
        assert_eq!(next(1, 1), Some(40003));
        // Another is counted by itself.
        assert_eq!(next(2, 1), None);
        assert_eq!(next(1, 2), Some(40005));
        // None was used long enough ago.
        assert_eq!(next(1, 3), None);
        assert_eq!(next(1, 101), Some(40001));
        // In the next minute too, and not in one after a minute in which it was not.
        assert_eq!(next(1, 60_001), Some(40003));
        assert_eq!(next(1, 120_002), None);
    }

    #[test]
    fn where_the_kernel_has_no_port_left_it_is_dialled_from_them_at_once() {
        let mut ports = Ports::of(vec![40001]);
        let begun = Instant::now();
        assert_eq!(ports.in_need(to(1), begun), None);
        assert_eq!(ports.for_next(to(1), begun), None);
        let from: SocketAddr = "0.0.0.0:40001".parse().unwrap();
        assert_eq!(ports.in_need(to(1), begun), Some(Ok(from)));
        // Who comes too soon waits for it.
        let soon = begun + Duration::from_millis(30);
        let rest = Duration::from_millis(70);
        assert_eq!(ports.in_need(to(1), soon), Some(Err(rest)));
        let later = begun + AGAIN_AFTER;
        let from = ports.for_next(to(1), later);
        assert_eq!(from.map(|from| from.port()), Some(40001));
    }

    #[test]
    fn more_destinations_than_are_counted_are_dialled_as_ever() {
        let mut ports = Ports::of(vec![40001]);
        let begun = Instant::now();
        for last in 0..=200 {
            assert_eq!(ports.for_next(to(last), begun), None);
        }
        assert_eq!(ports.dialled.len(), DESTINATIONS);
        let later = begun + MINUTE;
        assert_eq!(ports.for_next(to(201), later), None);
        assert_eq!(ports.dialled.len(), 1);
        let six: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        for _ in 0..OFTEN {
            ports.for_next(six, later);
        }
        let from = ports.for_next(six, later).unwrap();
        assert_eq!(from, "[::]:40001".parse().unwrap());
    }

    #[test]
    fn the_ports_are_of_those_that_the_kernel_chooses_from() {
        let ports = Ports::choose().unwrap();
        assert!(ports.all().len() > PORTS / 2, "{}", ports.all().len());
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let ends: Vec<u16> = range
            .split_whitespace()
            .map(|end| end.parse().unwrap())
            .collect();
        let within = |port: &u16| (ends[0]..=ends[1]).contains(port);
        assert!(ports.all().iter().all(within), "{range} {:?}", ports.all());
    }
}
