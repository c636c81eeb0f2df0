//! How many of the relay's places one client may have.
//!
//! # Theory of operation
//!
//! Places are few (descriptors), clients are many. A client is admitted while it holds fewer than [`TIMES`] times the places
//! that are free: so one alone gets three quarters of all, two that take what they can get three sevenths each, and however
//! many they are, some places are left for whoever comes next. That is the dynamic threshold of shared switch buffers
//! (Choudhury and Hahne, 1998); it knows no number of clients beforehand.
//!
//! A client is an IPv4 address or an IPv6 /64, which is what one host commonly has.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

/// See above.
const TIMES: usize = 3;

/// Who holds how many places.
#[derive(Debug, Default)]
pub struct Shares {
    held: RefCell<HashMap<IpAddr, usize>>,
}

/// A place that counts for its client until it is dropped.
#[derive(Debug)]
pub struct Held {
    shares: Rc<Shares>,
    client: IpAddr,
}

impl Shares {
    /// How many of `places` a client may have while nobody else has any.
    #[must_use]
    pub fn most(places: usize) -> usize {
        places * TIMES / (TIMES + 1)
    }

    /// One more place for `client`, of which `free` are left beside it; none if it has its share.
    #[must_use]
    pub fn take(self: &Rc<Self>, client: IpAddr, free: usize) -> Option<Held> {
        let client = whole(client);
        let mut held = self.held.borrow_mut();
        let count = held.get(&client).copied().unwrap_or(0);
        if count > 0 && count >= free.saturating_mul(TIMES) {
            return None;
        }
        held.insert(client, count + 1);
        Some(Held {
            shares: Rc::clone(self),
            client,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.shares.held.borrow_mut();
        match held.get_mut(&self.client) {
            Some(count) if *count > 1 => *count -= 1,
            // The table is no longer than there are places.
            _ => drop(held.remove(&self.client)),
        }
    }
}

fn whole(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(prefix).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what `clients` can get in turn of `places`; how many each has.
    fn greedy(places: usize, clients: &[&str]) -> Vec<usize> {
        let shares = Rc::new(Shares::default());
        let mut all = vec![];
        let mut have = vec![0; clients.len()];
        loop {
            let before = all.len();
            for (client, have) in clients.iter().zip(&mut have) {
                // The place that would be taken is not free beside itself.
                let free = (places - all.len()).saturating_sub(1);
                if let Some(held) = shares.take(client.parse().unwrap(), free) {
                    all.push(held);
                    *have += 1;
                }
            }
            if all.len() == before {
                drop(all);
                assert!(shares.held.borrow().is_empty());
                return have;
            }
        }
    }

    #[test]
    fn some_places_are_left_however_many_take_what_they_can_get() {
        for (places, clients, have) in [
            (100, &["10.0.0.1"][..], &[75][..]),
            (100, &["10.0.0.1", "10.0.0.2"], &[43, 42]),
            (4, &["10.0.0.1"], &[3]),
            (2, &["10.0.0.1"], &[1]),
            // One host has a /64, and an IPv4 address has two names.
            (100, &["2001:db8::1", "2001:db8::2"], &[38, 37]),
            (100, &["10.0.0.1", "::ffff:10.0.0.1"], &[38, 37]),
            (100, &["2001:db8::1", "2001:db8:0:1::1"], &[43, 42]),
        ] {
            assert_eq!(greedy(places, clients), have, "{places} {clients:?}");
        }
        assert_eq!(Shares::most(100), 75);
    }
}
