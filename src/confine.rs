//! What a part that only talks may talk to, by Landlock (landlock(7)): for the sidecar and the relay, on top of everything
//! else, and as far as the kernel has it.
//!
//! The relay needs this most. It has to be in the host's network namespace, where every service of loopback is in reach;
//! no capability and no filter of system calls keeps a relay that was broken into from them.
#![forbid(unsafe_code)]

use landlock::{
    ABI, Access, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use serde::{Deserialize, Serialize};

/// What is left of TCP: binding nothing if not said otherwise, connecting to these ports only. Abstract sockets and signals end at the part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpOnlyTo {
    /// The ports.
    pub ports: Vec<u16>,
    /// Binding to any port is left, too.
    pub binds: bool,
}

impl TcpOnlyTo {
    /// To the ports of these addresses: a rule of Landlock knows ports only.
    #[must_use]
    pub fn of(targets: &[std::net::SocketAddr]) -> Self {
        let mut ports: Vec<u16> = targets.iter().map(std::net::SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            ports,
            binds: false,
        }
    }

    /// What the relay keeps: it binds its sockets if it dials as its clients, whose ports may be any.
    #[must_use]
    pub fn relay(targets: &[std::net::SocketAddr], as_clients: bool) -> Self {
        Self {
            binds: as_clients,
            ..Self::of(targets)
        }
    }

    /// Puts this process and all that comes of it under it, for good. Tells, in a sentence, what this kernel could not do.
    ///
    /// # Errors
    /// What the kernel says other than that it doesn't know Landlock, or not this much of it.
    pub fn enforce(&self) -> Result<Option<String>, RulesetError> {
        let rules = self
            .ports
            .iter()
            .map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp)));
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(if self.binds {
                AccessNet::ConnectTcp.into()
            } else {
                AccessNet::from_all(ABI::V4)
            })?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(rules)?
            .restrict_self()?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => None,
            RulesetStatus::PartiallyEnforced => Some(
                "Landlock in part: this kernel knows its rules for TCP, but none for abstract sockets and signals (6.12 does)"
                    .to_owned(),
            ),
            RulesetStatus::NotEnforced => {
                Some("no Landlock: this kernel has none, or none for TCP (6.7 has)".to_owned())
            }
        })
    }
}
