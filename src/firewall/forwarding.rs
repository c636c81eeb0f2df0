//! Does the host forward, and does anybody's rule stand in the way? Facts only: nothing is changed, no remedy applied.

use std::fs;
use std::io;

use super::counters::dump;
use super::is_ours;
use super::load::{LoadError, Socket};
use crate::netlink::{
    FAMILY_HEADER, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE,
    NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_HOOK_HOOKNUM, NFTA_IMMEDIATE_DATA, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_VERDICT_CHAIN, attribute, attributes, number,
    text,
};

/// Whether a packet that is translated to the sidecar's address would get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forwarding {
    /// The host forwards, and nobody filters what it forwards.
    Open,
    /// It doesn't, or somebody may drop it.
    Closed {
        /// The first reason, with its table and chain, such as `chain FORWARD of table ip filter has policy drop`.
        why: String,
    },
}

/// Why the host's facts couldn't be read.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// A file of /proc.
    #[error("read {path}")]
    Read {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No netlink socket.
    #[error(transparent)]
    Open(LoadError),
    /// The list of chains or rules.
    #[error("list the {what} of nftables")]
    List {
        /// `chains` or `rules`.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    fn forward(self) -> (&'static str, &'static str) {
        match self {
            Self::V4 => ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward is 0"),
            Self::V6 => (
                "/proc/sys/net/ipv6/conf/all/forwarding",
                "net.ipv6.conf.all.forwarding is 0",
            ),
        }
    }

    /// Of this thread: /proc/net is of the process's first, which may live in another network namespace.
    fn legacy_tables(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// Reads what the network namespace of the calling thread does with packets of a family that are to be forwarded. Needs
/// `CAP_NET_ADMIN` there.
///
/// Careful rather than clever: a chain of somebody else that is hooked on forward, with policy drop or with any rule at
/// all, counts as closed, since what its rules make of our packets isn't for us to guess. The relay works in either
/// case.
///
/// # Errors
/// [`ForwardingError`].
pub fn forwarding(family: IpFamily) -> Result<Forwarding, ForwardingError> {
    let why = closed_by_sysctl(family)?;
    let why = why.map_or_else(|| closed_by_nftables(family), |why| Ok(Some(why)))?;
    let why = why.map_or_else(|| closed_by_legacy_iptables(family), |why| Ok(Some(why)))?;
    Ok(why.map_or(Forwarding::Open, |why| Forwarding::Closed { why }))
}

fn closed_by_sysctl(family: IpFamily) -> Result<Option<String>, ForwardingError> {
    let (path, off) = family.forward();
    let value =
        fs::read_to_string(path).map_err(|source| ForwardingError::Read { path, source })?;
    Ok((value.trim() == "0").then(|| off.to_owned()))
}

fn closed_by_legacy_iptables(family: IpFamily) -> Result<Option<String>, ForwardingError> {
    let path = family.legacy_tables();
    match fs::read_to_string(path) {
        Ok(tables) if tables.lines().any(|table| table == "filter") => {
            let program = match family {
                IpFamily::V4 => "iptables",
                IpFamily::V6 => "ip6tables",
            };
            Ok(Some(format!("table filter of legacy {program} is loaded")))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ForwardingError::Read { path, source }),
    }
}

fn closed_by_nftables(family: IpFamily) -> Result<Option<String>, ForwardingError> {
    for chain in foreign_chains(Hook::Forward)? {
        if !["inet", family.name()].contains(&chain.family) {
            continue;
        }
        let ForeignChain {
            family,
            table,
            name,
            ..
        } = &chain;
        let place = format!("chain {name} of table {family} {table}");
        if chain.drops {
            return Ok(Some(format!("{place} has policy drop")));
        }
        if chain.rules > 0 {
            return Ok(Some(format!("{place} has rules")));
        }
    }
    Ok(None)
}

/// Where in the host's way of a packet a chain is hooked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What is for the host itself: a listening socket.
    Input,
    /// What the host forwards.
    Forward,
}

/// A base chain that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChain {
    /// Of its table: `ip`, `ip6`, `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether its policy is drop.
    pub drops: bool,
    /// How many rules it has.
    pub rules: usize,
    /// The chains that its rules jump or go to.
    targets: Vec<String>,
}

impl ForeignChain {
    /// Whether a rule of it goes to a chain whose name begins with `prefix`.
    #[must_use]
    pub fn calls(&self, prefix: &str) -> bool {
        self.targets.iter().any(|name| name.starts_with(prefix))
    }
}

/// The base chains of others at a hook of the calling thread's network namespace. Needs `CAP_NET_ADMIN` there.
///
/// # Errors
/// [`ForwardingError`].
pub fn foreign_chains(hook: Hook) -> Result<Vec<ForeignChain>, ForwardingError> {
    let socket = Socket::open().map_err(ForwardingError::Open)?;
    let chains = dump(
        &socket,
        libc::NFT_MSG_GETCHAIN,
        libc::NFPROTO_UNSPEC,
        |_| (),
    )
    .map_err(|source| ForwardingError::List {
        what: "chains",
        source,
    })?;
    let mut foreign: Vec<(u8, ForeignChain)> = chains
        .iter()
        .filter_map(|chain| foreign_chain(chain, hook))
        .collect();
    for (family, chain) in &mut foreign {
        let rules = rules(&socket, *family, chain)?;
        chain.rules = rules.len();
        chain.targets = rules.iter().flat_map(|rule| targets(rule)).collect();
    }
    Ok(foreign.into_iter().map(|(_, chain)| chain).collect())
}

fn foreign_chain(body: &[u8], wanted: Hook) -> Option<(u8, ForeignChain)> {
    let ([family, ..], chain) = body.split_first_chunk::<FAMILY_HEADER>()?;
    let table = text(chain, NFTA_CHAIN_TABLE)?;
    // Only base chains have a hook.
    let hook = number(attribute(chain, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?;
    let wanted = match wanted {
        Hook::Input => libc::NF_INET_LOCAL_IN,
        Hook::Forward => libc::NF_INET_FORWARD,
    };
    (!is_ours(&table) && hook == wanted as u32).then_some(())?;
    let name = match i32::from(*family) {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV6 => "ip6",
        libc::NFPROTO_IPV4 => "ip",
        // Hooks of bridges and links have numbers of their own.
        _ => return None,
    };
    Some((
        *family,
        ForeignChain {
            family: name,
            table,
            name: text(chain, NFTA_CHAIN_NAME)?,
            // A policy that isn't told is taken for the worse one.
            drops: number(chain, NFTA_CHAIN_POLICY) != Some(libc::NF_ACCEPT as u32),
            rules: 0,
            targets: vec![],
        },
    ))
}

fn rules(
    socket: &Socket,
    family: u8,
    chain: &ForeignChain,
) -> Result<Vec<Vec<u8>>, ForwardingError> {
    dump(socket, libc::NFT_MSG_GETRULE, family.into(), |request| {
        request.text(NFTA_RULE_TABLE, &chain.table);
        request.text(NFTA_RULE_CHAIN, &chain.name);
    })
    .map_err(|source| ForwardingError::List {
        what: "rules",
        source,
    })
}

/// The chains that a rule jumps or goes to: the names in its verdicts.
fn targets(rule: &[u8]) -> Vec<String> {
    let Some((_, rule)) = rule.split_first_chunk::<FAMILY_HEADER>() else {
        return vec![];
    };
    let expressions = attribute(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    attributes(expressions)
        .filter_map(|(_, element)| {
            let data = attribute(element, NFTA_EXPR_DATA)?;
            let value = attribute(data, NFTA_IMMEDIATE_DATA)?;
            text(attribute(value, NFTA_DATA_VERDICT)?, NFTA_VERDICT_CHAIN)
        })
        .collect()
}
