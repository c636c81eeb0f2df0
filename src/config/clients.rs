//! Who may connect to an app: what the relay asks for each client. The sidecar's rules ask the same where they see the
//! client, which by relay they don't.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The clients of one app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Admission {
    /// The first and the last of each range: in order, all of IPv4 before any of IPv6, and none in another.
    allow: Vec<(IpAddr, IpAddr)>,
    rate: Option<Rate>,
}

/// What `allow` is when it was left out: all of IPv4 and of IPv6.
#[must_use]
pub fn everybody() -> Vec<IpNet> {
    vec![Ipv4Net::default().into(), Ipv6Net::default().into()]
}

/// How many new connections, or flows of UDP, there may be in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// So many, all at once too; then as many again, evenly, in each time of this length.
    pub count: u32,
    /// The time, in seconds.
    pub seconds: u32,
    /// For each client by itself, not for all together.
    pub per_client: bool,
}

impl Rate {
    /// The time as nft and the configuration call it: `second`, `minute` or `hour`.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        match self.seconds {
            1 => "second",
            60 => "minute",
            _ => "hour",
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per_client = if self.per_client { " per client" } else { "" };
        write!(f, "{}/{}{per_client}", self.count, self.unit())
    }
}

/// No more clients are counted by themselves; all others are counted together, as one.
const MOST_CLIENTS: usize = 65_536;
/// How often those are forgotten whose count has run out, at most.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// An [`Admission`] at work: it counts.
///
/// A count is one moment, up to which a client has used what it may (the "generic cell rate algorithm" of ATM Forum
/// TM 4.0, which is a token bucket that is never filled by a clock): each connection moves it on by the time that one is
/// worth, and it may be ahead of now by the time of a whole count.
#[derive(Debug)]
pub struct Gate {
    admission: Admission,
    clients: RefCell<HashMap<IpAddr, Instant>>,
    /// The count of all clients together, or of those that there was no room for.
    together: Cell<Instant>,
    forgotten: Cell<Instant>,
}

impl Gate {
    /// With nothing counted.
    #[must_use]
    pub fn new(admission: Admission) -> Self {
        let now = Instant::now();
        Self {
            admission,
            clients: RefCell::default(),
            together: Cell::new(now),
            forgotten: Cell::new(now),
        }
    }

    /// Whether a client is one of the app's at all.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        self.admission.admits(client)
    }

    /// Whether it may begin something more at this moment; counts it if so.
    #[must_use]
    pub fn may_begin(&self, client: IpAddr, now: Instant) -> bool {
        let Some(rate) = self.admission.rate else {
            return true;
        };
        let whole = Duration::from_secs(rate.seconds.into());
        let next = |used: Instant| {
            let next = used.max(now) + whole / rate.count.max(1);
            (next <= now + whole).then_some(next)
        };
        let mut clients = self.clients.borrow_mut();
        if rate.per_client && clients.len() >= MOST_CLIENTS {
            let last = self.forgotten.replace(now);
            if now - last >= FORGET_EVERY {
                clients.retain(|_, used| *used > now);
            } else {
                self.forgotten.set(last);
            }
        }
        let room = clients.len() < MOST_CLIENTS;
        if rate.per_client && (room || clients.contains_key(&client)) {
            let used = clients.entry(client).or_insert(now);
            let next = next(*used);
            *used = next.unwrap_or(*used);
            next.is_some()
        } else {
            let next = next(self.together.get());
            self.together.set(next.unwrap_or(self.together.get()));
            next.is_some()
        }
    }
}

impl Admission {
    /// Clients in any of these ranges, as often as `rate` says.
    #[must_use]
    pub fn of(allow: &[IpNet], rate: Option<Rate>) -> Self {
        let mut allow: Vec<_> = IpNet::aggregate(&allow.to_vec())
            .into_iter()
            .map(|net| (net.network(), net.broadcast()))
            .collect();
        allow.sort_unstable();
        Self { allow, rate }
    }

    /// Whether a client may connect; `client` as the socket has it.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        // A listening socket of ours takes one family: what comes to one of IPv6 as a client of IPv4 is forged.
        if matches!(client, IpAddr::V6(six) if six.to_ipv4_mapped().is_some()) {
            return false;
        }
        let after = self.allow.partition_point(|(first, _)| *first <= client);
        after
            .checked_sub(1)
            .is_some_and(|at| client <= self.allow[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_admitted_exactly_if_it_is_in_a_range() {
        let nets = [
            "192.0.2.64/26",
            "10.0.0.0/8",
            "198.51.100.7/32",
            "10.1.0.0/16",
            "2001:db8:1::/48",
            "fd00::7/128",
        ];
        let nets: Vec<IpNet> = nets.iter().map(|net| net.parse().unwrap()).collect();
        let admission = Admission::of(&nets, None);
        for (client, admitted) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("192.0.2.63", false),
            ("192.0.2.64", true),
            ("192.0.2.127", true),
            ("192.0.2.128", false),
            ("198.51.100.6", false),
            ("198.51.100.7", true),
            ("198.51.100.8", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:11.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("2001:db8::1", false),
            ("2001:db8:1::", true),
            ("2001:db8:1:ffff:ffff:ffff:ffff:ffff", true),
            ("2001:db8:2::", false),
            ("fd00::6", false),
            ("fd00::7", true),
            ("fd00::8", false),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
        ] {
            assert_eq!(
                admission.admits(client.parse().unwrap()),
                admitted,
                "{client}"
            );
        }
        let (four, six) = ("0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap());
        let (client4, client6) = ("127.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert!(Admission::of(&[four], None).admits(client4));
        assert!(!Admission::of(&[four], None).admits(client6));
        assert!(!Admission::of(&[six], None).admits(client4));
        assert!(!Admission::of(&[six], None).admits("::ffff:127.0.0.1".parse().unwrap()));
        assert!(Admission::of(&[six], None).admits(client6));
        assert!(!Admission::of(&[], None).admits([127, 0, 0, 1].into()));
    }

    fn gate(count: u32, seconds: u32, per_client: bool) -> Gate {
        Gate::new(Admission::of(
            &[],
            Some(Rate {
                count,
                seconds,
                per_client,
            }),
        ))
    }

    /// How many of a hundred may begin at `now`.
    fn begun(gate: &Gate, client: u32, now: Instant) -> usize {
        let client = IpAddr::V4(client.into());
        (0..100).filter(|_| gate.may_begin(client, now)).count()
    }

    #[test]
    fn a_whole_count_may_begin_at_once_and_then_as_many_as_time_has_passed() {
        let (gate, begin) = (gate(10, 1, true), Instant::now());
        assert_eq!(begun(&gate, 1, begin), 10);
        assert_eq!(begun(&gate, 1, begin), 0);
        assert_eq!(begun(&gate, 2, begin), 10, "another client");
        assert_eq!(begun(&gate, 1, begin + Duration::from_millis(500)), 5);
        assert_eq!(begun(&gate, 1, begin + Duration::from_secs(100)), 10);
    }

    #[test]
    fn all_clients_share_a_rate_that_is_not_per_client() {
        let (gate, begin) = (gate(10, 60, false), Instant::now());
        assert_eq!(begun(&gate, 1, begin) + begun(&gate, 2, begin), 10);
        assert_eq!(begun(&gate, 3, begin + Duration::from_secs(6)), 1);
    }

    #[test]
    fn a_flood_of_clients_is_bounded_and_resets_nobodys_count() {
        let (gate, begin) = (gate(1, 3600, true), Instant::now());
        let most = u32::try_from(MOST_CLIENTS).unwrap();
        let flood = (0..most + 1000).filter(|client| begun(&gate, *client, begin) > 0);
        // Those that are one too many are as one client.
        assert_eq!(flood.count(), MOST_CLIENTS + 1);
        assert_eq!(gate.clients.borrow().len(), MOST_CLIENTS);
        assert_eq!(begun(&gate, 7, begin + Duration::from_secs(2)), 0);
        assert_eq!(begun(&gate, most + 1, begin + Duration::from_secs(3601)), 1);
        assert_eq!(
            gate.clients.borrow().len(),
            1,
            "the others' counts have run out"
        );
    }
}
