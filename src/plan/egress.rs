//! How what apps connect to leaves this machine.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{IdMap, Plan, PublishPlan, UplinkEnd};
use crate::config::{Egress, Protocol, TrafficLog};
use crate::confine::seccomp::Carries;

/// How it leaves, and why so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPlan {
    /// By what.
    pub via: EgressVia,
    /// Why `via` is what it is, in a few words.
    pub why: String,
    /// The ids of the carrier and the dialer, where there are.
    pub ids: IdMap,
}

/// By what it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressVia {
    /// The host forwards and translates.
    Nat,
    /// Two processes without privilege, which connect as any program of the host does.
    Relay,
}

impl fmt::Display for EgressPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via = match self.via {
            EgressVia::Nat => "nat",
            EgressVia::Relay => "relay",
        };
        write!(f, "egress by {via}, {}", self.why)
    }
}

/// A socket by which a granted port is asked for, at whatever address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Door {
    /// What it speaks.
    pub protocol: Protocol,
    /// Of IPv6.
    pub ipv6: bool,
    /// The port.
    pub port: u16,
}

/// No stack has more [`Door`]s: each is a socket that is open all the time.
pub const MOST_DOORS: usize = 1024;

impl Plan {
    /// Every destination of every app.
    pub fn granted(&self) -> impl Iterator<Item = &Egress> {
        self.apps.iter().flat_map(|app| &app.egress)
    }

    /// What there is for egress by relay, if that is how it leaves.
    #[must_use]
    pub fn egress_relay(&self) -> Option<&EgressPlan> {
        let by_relay = |egress: &&EgressPlan| egress.via == EgressVia::Relay;
        self.egress.as_ref().filter(by_relay)
    }

    /// Why the supervisor stays in the host's network namespace once the stack is up; `None` is root's that leaves it for an empty
    /// one. What dials on the host is started by it, and so is where it is: a process with no capability enters none (setns(2)).
    #[must_use]
    pub fn supervisor_stays(&self) -> Option<&'static str> {
        match () {
            () if self.supervisor().is_none() => Some("it is its user's, who may connect anyway"),
            () if self.uplink.ends_at == UplinkEnd::Host => {
                Some("the host forwards, and relays dial there")
            }
            () if self.egress_relay().is_some() => Some("egress by relay dials there"),
            () => None,
        }
    }

    /// Whether datagrams of one flow may pass the sidecar as one packet: rules of ours ask each flow once, and look into no
    /// datagram; rules of the user's, and a log of each packet, would see the first only.
    #[must_use]
    pub fn joins_datagrams(&self) -> bool {
        self.rules.is_none() && self.log < TrafficLog::Packets
    }

    /// Whether there is a relay: with nothing published it has nothing to do, but keeps its namespace in sight, in
    /// which the uplink ends.
    #[must_use]
    pub fn has_relay(&self) -> bool {
        self.published().next().is_some() || self.uplink.ends_at == UplinkEnd::Relay
    }

    /// What the relay carries.
    #[must_use]
    pub fn carries(&self) -> Carries {
        let any = |is: fn(&PublishPlan) -> bool| self.published().any(|(_, publish)| is(publish));
        Carries {
            udp: any(|publish| publish.protocol == Protocol::Udp),
            ipv6: any(|publish| publish.listen.is_ipv6()),
            as_clients: self.uplink.ends_at == UplinkEnd::Relay,
        }
    }

    /// The sockets by which the granted ports are asked for; none unless egress is by relay.
    #[must_use]
    pub fn doors(&self) -> Vec<Door> {
        if self.egress_relay().is_none() {
            return vec![];
        }
        let of = |egress: &Egress| {
            let (protocol, ipv6) = (egress.protocol, egress.to.addr().is_ipv6());
            let ports = egress.first_port..=egress.last_port;
            ports.map(move |port| Door {
                protocol,
                ipv6,
                port,
            })
        };
        let doors: BTreeSet<Door> = self.granted().flat_map(of).collect();
        doors.into_iter().collect()
    }
}
