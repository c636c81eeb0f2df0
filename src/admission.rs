//! Who may connect to an app: what the relay asks for each client. The sidecar's rules ask the same where they see the
//! client, which by relay they don't.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The clients of one app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Admission {
    /// In order, and none in another.
    allow: Vec<(Ipv4Addr, Ipv4Addr)>,
}

impl Admission {
    /// Clients in any of these ranges.
    #[must_use]
    pub fn of(allow: &[Ipv4Net]) -> Self {
        let mut allow: Vec<_> = Ipv4Net::aggregate(&allow.to_vec())
            .into_iter()
            .map(|net| (net.network(), net.broadcast()))
            .collect();
        allow.sort_unstable();
        Self { allow }
    }

    /// Whether a client may connect; `client` as the socket has it, so that an IPv4 address may be written as an IPv6 one.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        let IpAddr::V4(client) = client.to_canonical() else {
            return false;
        };
        let after = self.allow.partition_point(|(first, _)| *first <= client);
        after
            .checked_sub(1)
            .is_some_and(|at| client <= self.allow[at].1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_admitted_exactly_if_it_is_in_a_range() {
        let nets = [
            "192.0.2.64/26",
            "10.0.0.0/8",
            "198.51.100.7/32",
            "10.1.0.0/16",
        ];
        let nets: Vec<Ipv4Net> = nets.iter().map(|net| net.parse().unwrap()).collect();
        let admission = Admission::of(&nets);
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
            ("::ffff:10.0.0.1", true),
            ("::ffff:11.0.0.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(
                admission.admits(client.parse().unwrap()),
                admitted,
                "{client}"
            );
        }
        assert!(Admission::of(&["0.0.0.0/0".parse().unwrap()]).admits([127, 0, 0, 1].into()));
        assert!(!Admission::of(&[]).admits([127, 0, 0, 1].into()));
    }
}
