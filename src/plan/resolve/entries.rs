//! The ports of the sidecar's uplink address by which what is published gets to an app.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};

use crate::config::Protocol;
use crate::plan::Plan;

/// An app's address and port.
pub(super) type Target = (Ipv4Addr, u16);

/// The ports of the sidecar's uplink address: the host's port where it is free, so that a capture reads naturally.
pub(super) struct EntryPorts {
    used: BTreeMap<(Protocol, u16), Target>,
    by_target: BTreeMap<(Protocol, Target), u16>,
    /// Where the others come from: the ports above those that programs get by themselves, then those below.
    spare: Box<dyn Iterator<Item = u16>>,
    /// What a stack that runs has: each published port keeps its own, whoever is behind it now, and none comes to mean
    /// something else while a connection may still go through it.
    before: HashMap<(SocketAddr, Protocol), u16>,
    behind: HashMap<(Protocol, u16), Vec<Target>>,
}

impl EntryPorts {
    pub(super) fn new() -> Self {
        Self {
            used: BTreeMap::new(),
            by_target: BTreeMap::new(),
            spare: Box::new((61_000..=u16::MAX).chain((1..61_000).rev())),
            before: HashMap::new(),
            behind: HashMap::new(),
        }
    }

    pub(super) fn of(running: &Plan) -> Self {
        let mut entries = Self::new();
        for app in &running.apps {
            for publish in app.reachable() {
                let port = publish.entry_port;
                entries.before.entry(publish.outside()).or_insert(port);
                let behind = entries.behind.entry((publish.protocol, port)).or_default();
                behind.push((app.home4(), publish.app_port));
            }
        }
        entries
    }

    /// The entry port for `listen` to `target`, an app's address and port; two host addresses with the same way in
    /// share one.
    pub(super) fn take(&mut self, listen: SocketAddr, protocol: Protocol, target: Target) -> u16 {
        let own = self
            .before
            .get(&(listen, protocol))
            .copied()
            .filter(|port| {
                let used = self.used.get(&(protocol, *port));
                used.is_none_or(|used| *used == target)
            });
        let port = own.or_else(|| self.by_target.get(&(protocol, target)).copied());
        let port = port.unwrap_or_else(|| {
            let (used, behind) = (&self.used, &self.behind);
            std::iter::once(listen.port())
                .chain(&mut self.spare)
                .find(|port| {
                    let behind = behind.get(&(protocol, *port));
                    !used.contains_key(&(protocol, *port))
                        && behind.is_none_or(|all| all.iter().all(|other| *other == target))
                })
                .expect("no stack publishes as many ports as there are, nor twice")
        });
        self.used.insert((protocol, port), target);
        self.by_target.entry((protocol, target)).or_insert(port);
        port
    }
}
