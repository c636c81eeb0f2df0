//! What is chosen without asking the kernel: the uplink's addresses and every link-layer address.
//!
//! The same stack gets the same answer on every start of every build, as far as the machine allows, so that logs,
//! captures and neighbours' configurations stay readable; hence a hash that is written out here.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::facts::Facts;
use crate::config::UPLINK_POOL6;
use crate::names::StackName;
use crate::plan::Mac;

/// The network the uplinks are taken from: the upper half of the range for benchmarking (RFC 2544, RFC 6890), which is
/// not routed on the internet and which, unlike RFC 1918's networks, hardly anybody uses at home, at work or in a VPN.
pub const UPLINK_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 16);

/// How many /31 networks [`UPLINK_POOL`] has.
const UPLINKS: u32 = 1 << 15;

/// Every /31 of the pool meets something that exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "choose the uplink of stack {stack}: every /31 of {UPLINK_POOL} is taken by an address, a route or another stack"
)]
pub struct NoUplink {
    /// Whose uplink it was to be.
    pub stack: StackName,
}

/// Chooses the /31 between the host and the stack's sidecar (RFC 3021): its first address is the host's, its second the
/// sidecar's. The search starts at the stack's own place in [`UPLINK_POOL`] and takes the first network that meets
/// neither the host's addresses and routes nor `taken`, the other stacks' uplinks.
///
/// # Errors
/// [`NoUplink`]: there is none.
pub fn choose_uplink(
    stack: &StackName,
    facts: &Facts,
    taken: &[Ipv4Net],
) -> Result<Ipv4Net, NoUplink> {
    let mut free = vec![true; UPLINKS as usize];
    let addresses = facts.addresses.iter().map(|(_, net)| net);
    for net in addresses.chain(&facts.routes).chain(taken) {
        for number in numbers(net) {
            free[number as usize] = false;
        }
    }
    let start = (fnv1a(&[stack.as_str()]) % u64::from(UPLINKS)) as u32;
    (0..UPLINKS)
        .map(|step| (start + step) % UPLINKS)
        .find(|number| free[*number as usize])
        .map(uplink)
        .ok_or_else(|| NoUplink {
            stack: stack.clone(),
        })
}

/// The IPv6 address at the same end of the uplink as the IPv4 address `end`: of [`UPLINK_POOL6`], with `end` as its last 32
/// bits. So a /31 that is unique on the host makes a /127 (RFC 6164) that is.
#[must_use]
pub fn uplink6(end: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(UPLINK_POOL6.network().to_bits() | u128::from(end.to_bits()))
}

/// The link-layer address of `what` (such as `bridge` or `app web`) of `stack`: locally administered, unicast, and the
/// same every time.
#[must_use]
pub fn mac(stack: &StackName, what: &str) -> Mac {
    let [_, _, _, a, b, c, d, e] = fnv1a(&[stack.as_str(), what]).to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

fn uplink(number: u32) -> Ipv4Net {
    let first = u32::from(UPLINK_POOL.network()) + 2 * number;
    Ipv4Net::new_assert(Ipv4Addr::from(first), 31)
}

/// Which networks of the pool share an address with `net`.
fn numbers(net: &Ipv4Net) -> std::ops::Range<u32> {
    let pool = u32::from(UPLINK_POOL.network());
    let number = |address: Ipv4Addr| (u32::from(address).saturating_sub(pool) / 2).min(UPLINKS);
    if net.broadcast() < UPLINK_POOL.network() {
        return 0..0;
    }
    let last = number(net.broadcast());
    number(net.network())..(last + 1).min(UPLINKS)
}

/// FNV-1a, 64 bits; a byte that no name may have keeps `a`, `bc` and `ab`, `c` apart.
pub(crate) fn fnv1a(words: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in words {
        for byte in word.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(name: &str) -> StackName {
        StackName::new(name).unwrap()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_stack_gets_the_same_uplink_in_every_build() {
        let chosen = choose_uplink(&stack("customerA"), &Facts::default(), &[]).unwrap();
        // Written down: if this changes, every machine's addresses change with an upgrade.
        assert_eq!(chosen, net("198.19.26.112/31"));
        assert_eq!(
            mac(&stack("customerA"), "bridge").to_string(),
            "02:9e:fa:73:d4:57"
        );
    }

    fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
        one.contains(&other.network()) || other.contains(&one.network())
    }

    #[test]
    fn an_uplink_meets_no_address_no_route_and_no_other_stack() {
        let name = stack("customerA");
        let first = choose_uplink(&name, &Facts::default(), &[]).unwrap();
        let wide = Ipv4Net::new(first.network(), 24).unwrap().trunc();
        let with_address = Facts {
            addresses: vec![(
                "eth0".to_owned(),
                Ipv4Net::new(first.broadcast(), 24).unwrap(),
            )],
            ..Facts::default()
        };
        let with_route = Facts {
            routes: vec![wide],
            ..Facts::default()
        };
        for (facts, taken, forbidden) in [
            (&Facts::default(), vec![first], first),
            (&with_address, vec![], wide),
            (&with_route, vec![], wide),
        ] {
            let chosen = choose_uplink(&name, facts, &taken).unwrap();
            assert!(!overlap(&chosen, &forbidden), "{chosen} meets {forbidden}");
            assert!(UPLINK_POOL.contains(&chosen));
            assert_eq!(chosen.prefix_len(), 31);
        }
    }

    #[test]
    fn the_search_goes_round_the_pool() {
        let name = stack("customerA");
        let first = choose_uplink(&name, &Facts::default(), &[]).unwrap();
        // All but the network just below the stack's own place.
        let last = Ipv4Net::new(Ipv4Addr::from(u32::from(first.network()) - 2), 31).unwrap();
        let mut taken: Vec<Ipv4Net> = (0..UPLINKS).map(uplink).collect();
        taken.retain(|net| *net != last);
        assert_eq!(choose_uplink(&name, &Facts::default(), &taken), Ok(last));
    }

    #[test]
    fn a_full_pool_is_an_error() {
        for taken in [UPLINK_POOL, net("198.18.0.0/15"), net("128.0.0.0/1")] {
            let error = choose_uplink(&stack("a"), &Facts::default(), &[taken]).unwrap_err();
            assert!(error.to_string().contains("198.19.0.0/16"), "{error}");
        }
    }

    #[test]
    fn what_lies_outside_the_pool_takes_nothing() {
        let all = numbers(&UPLINK_POOL);
        assert_eq!(all, 0..UPLINKS);
        for outside in [
            "10.0.0.0/8",
            "198.18.0.0/16",
            "198.20.0.0/16",
            "198.18.255.255/32",
        ] {
            assert_eq!(numbers(&net(outside)).len(), 0, "{outside}");
        }
        assert_eq!(numbers(&net("198.19.0.0/32")), 0..1);
        assert_eq!(numbers(&net("198.19.255.255/32")), UPLINKS - 1..UPLINKS);
        assert_eq!(numbers(&net("198.19.0.3/30")), 0..2);
    }

    #[test]
    fn link_layer_addresses_are_local_unicast_and_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for name in ["a", "ab", "b"] {
            for what in ["bridge", "uplink", "app b", "b"] {
                let Mac(bytes) = mac(&stack(name), what);
                assert_eq!(bytes[0] & 0b11, 0b10, "{name} {what}");
                assert!(seen.insert(bytes), "{name} {what} met another");
            }
        }
    }
}
