//! The traffic log: what the sidecar sees of connections and refused packets, and how it gets from there to a line.
//!
//! # Theory of operation
//!
//! The rules log by NFLOG ([`crate::firewall::logging`]): the packets that begin and end a connection, and those that are
//! refused. Conntrack tells which connections it forgets. In the sidecar [`watch`] reads both ([`kernel`], [`packet`]) and
//! [`track`] makes [`Record`]s of it: it knows the connections that are open, and how many lines a source may fill. Records
//! go to the supervisor in messages of bounded size ([`wire`]) over a socket of their own; when nobody reads them the
//! sidecar goes on, and counts what is lost. The supervisor keeps records as they are and makes a line of one when somebody
//! reads it ([`mod@line`]): there may be ten thousand a second.
//!
//! Whoever has broken into the sidecar can write records that are not true, and can't do more than that: they are numbers,
//! addresses and short names of known characters, and the log of the apps has memory of its own.
#![forbid(unsafe_code)]

pub mod kernel;
pub mod line;
pub mod packet;
pub mod pcapng;
pub mod refused;
pub mod track;
pub mod watch;
pub mod wire;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What the sidecar is told when it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether packets that are let through are logged as well.
    pub packets: bool,
    /// Whether there are connections from before it.
    pub again: bool,
    /// The apps, in the plan's order: totals are kept for each.
    pub apps: Vec<Vec<IpAddr>>,
}

/// Something that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When, in nanoseconds since 1970.
    pub time: i64,
    /// What.
    pub event: Event,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection began.
    Open(Flow),
    /// A connection ended.
    End {
        /// Which.
        flow: Flow,
        /// Bytes of payload from the client, and to it, where they are known.
        bytes: [Option<u64>; 2],
        /// How long it was open, in nanoseconds, if its beginning was seen.
        duration: Option<u64>,
        /// How it ended.
        how: How,
    },
    /// A packet was refused, or let through.
    Packet {
        /// By which rule.
        rule: Name,
        /// By which link it came.
        link: Name,
        /// Whether it was let through.
        accepted: bool,
        /// Its head.
        packet: Packet,
    },
    /// Refused packets that have no line of their own.
    Suppressed {
        /// Whose they were; `None` for those of several.
        source: Option<IpAddr>,
        /// How many.
        packets: u64,
    },
    /// Something can't be told because nobody read it in time.
    Lost {
        /// By whom.
        by: LostBy,
        /// How many packets, or records.
        count: u64,
    },
}

/// A connection, as the forward hook sees it: behind the translation of the target, before that of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The protocol's number.
    pub protocol: u8,
    /// Who began it.
    pub client: SocketAddr,
    /// Who it is with.
    pub server: SocketAddr,
}

impl std::hash::Hash for Flow {
    /// All at once: a hasher that is fed byte by byte takes several times as long, and this is what the log costs.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 37];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        for side in [self.client, self.server] {
            match side.ip() {
                IpAddr::V4(address) => put(&address.octets()),
                IpAddr::V6(address) => put(&address.octets()),
            }
            put(&side.port().to_ne_bytes());
        }
        put(&[self.protocol]);
        state.write(&bytes[..at]);
    }
}

pub use packet::Packet;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// In order, and the client was the first to say so.
    ClosedByClient,
    /// In order, and the app was the first to say so.
    ClosedByApp,
    /// By a reset from the client.
    ResetByClient,
    /// By a reset from the app.
    ResetByApp,
    /// By a reset from the app before it was open.
    RefusedByApp,
    /// There was no answer.
    Unanswered,
    /// Nothing was said any more for as long as conntrack waits.
    TimedOut,
    /// Its ports are used by another connection already, and its end was not seen.
    Unknown,
}

/// Where something was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostBy {
    /// The kernel's queue for the sidecar was full.
    Kernel,
    /// The sidecar's queue for the supervisor was full.
    Sidecar,
    /// More connections were open at once than the sidecar remembers.
    Table,
}

/// A short name of letters, digits and `-_./`, such as a rule's or a link's. Other characters become `?`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    length: u8,
    bytes: [u8; Self::MOST],
}

impl Name {
    /// The longest, in bytes; what is longer is cut.
    pub const MOST: usize = 47;

    /// Makes one of whatever it is given.
    #[must_use]
    pub fn new(text: &[u8]) -> Self {
        let mut bytes = [0; Self::MOST];
        let length = text.len().min(Self::MOST);
        for (to, from) in bytes.iter_mut().zip(text) {
            let fine = from.is_ascii_alphanumeric() || b"-_./".contains(from);
            *to = if fine { *from } else { b'?' };
        }
        Self {
            length: length as u8,
            bytes,
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = &self.bytes[..usize::from(self.length)];
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// What was counted since the stack is up, for `lrpns status`; its fields are the keys of the JSON form, which are stable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Connections that are open. After a restart of the sidecar, those that began since.
    pub open: u64,
    /// Connections that were let through.
    pub accepted: u64,
    /// Packets that were refused.
    pub refused: u64,
    /// Bytes of payload that clients sent on connections that have ended.
    pub bytes_from_clients: u64,
    /// Bytes of payload that were sent to them.
    pub bytes_to_clients: u64,
    /// What the log lacks.
    pub lost: Losses,
    /// The same by app.
    pub apps: Vec<AppSummary>,
}

/// What the log lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Packets that the kernel could not hand to the sidecar.
    pub kernel: u64,
    /// Lines that the supervisor did not take in time.
    pub sidecar: u64,
    /// Connections that were more than the sidecar remembers.
    pub table: u64,
}

/// Of an app.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSummary {
    /// Its name; `null` for connections that are with no app.
    pub name: Option<String>,
    /// As in [`Summary`].
    pub open: u64,
    /// As in [`Summary`].
    pub accepted: u64,
    /// As in [`Summary`].
    pub bytes_from_clients: u64,
    /// As in [`Summary`].
    pub bytes_to_clients: u64,
    /// Packets to it that the sidecar refused.
    #[serde(default)]
    pub refused: u64,
    /// Packets from it that the sidecar refused.
    #[serde(default)]
    pub refused_from: u64,
}

/// The totals of a sidecar, and of those before it.
#[derive(Debug, Default)]
pub struct Sums {
    /// Whose the totals are, in their order; what is nobody's comes last.
    names: Vec<String>,
    before: Totals,
    now: Totals,
}

impl Sums {
    /// What the sidecar has told last.
    pub fn set(&mut self, totals: Totals) {
        self.now = totals;
    }

    /// Another sidecar begins, which knows the apps of these names in this order.
    pub fn begin<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let names: Vec<String> = names.map(str::to_owned).collect();
        let sum = self.sum();
        let of = |name: Option<&String>| {
            let index = match name {
                None => self.names.len(),
                Some(name) => self.names.iter().position(|other| other == name)?,
            };
            let app = sum.apps.get(index).copied()?;
            Some(AppTotals { open: 0, ..app })
        };
        let apps = names.iter().map(Some).chain([None]);
        let apps = apps.map(|name| of(name).unwrap_or_default()).collect();
        self.before = Totals { apps, ..sum };
        self.now = Totals::default();
        self.names = names;
    }

    /// They are a part's words: no number of them is too large.
    fn sum(&self) -> Totals {
        let (a, b) = (&self.before, &self.now);
        let count = a.apps.len().max(b.apps.len());
        let app = |index: usize| {
            let of = |totals: &Totals| totals.apps.get(index).copied().unwrap_or_default();
            let (a, b) = (of(a), of(b));
            AppTotals {
                open: a.open.saturating_add(b.open),
                opened: a.opened.saturating_add(b.opened),
                bytes: [0, 1].map(|way| a.bytes[way].saturating_add(b.bytes[way])),
                refused: [0, 1].map(|way| a.refused[way].saturating_add(b.refused[way])),
            }
        };
        Totals {
            refused: a.refused.saturating_add(b.refused),
            lost_by_kernel: a.lost_by_kernel.saturating_add(b.lost_by_kernel),
            lost_by_sidecar: a.lost_by_sidecar.saturating_add(b.lost_by_sidecar),
            lost_by_table: a.lost_by_table.saturating_add(b.lost_by_table),
            apps: (0..count).map(app).collect(),
        }
    }

    /// All of it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let sum = self.sum();
        let names = self.names.iter().cloned().map(Some).chain([None]);
        let mut apps = sum.apps.iter();
        let apps: Vec<_> = names
            .map(|name| {
                let app = apps.next().copied().unwrap_or_default();
                AppSummary {
                    name,
                    open: app.open,
                    accepted: app.opened,
                    bytes_from_clients: app.bytes[0],
                    bytes_to_clients: app.bytes[1],
                    refused: app.refused[0],
                    refused_from: app.refused[1],
                }
            })
            .filter(|app| app.name.is_some() || app.accepted > 0)
            .collect();
        let total = |of: fn(&AppSummary) -> u64| {
            apps.iter()
                .fold(0, |sum: u64, app| sum.saturating_add(of(app)))
        };
        Summary {
            open: total(|app| app.open),
            accepted: total(|app| app.accepted),
            refused: sum.refused,
            bytes_from_clients: total(|app| app.bytes_from_clients),
            bytes_to_clients: total(|app| app.bytes_to_clients),
            lost: Losses {
                kernel: sum.lost_by_kernel,
                sidecar: sum.lost_by_sidecar,
                table: sum.lost_by_table,
            },
            apps,
        }
    }
}

/// Clients that the relay has refused, by the reason: connections, and datagrams. The keys of the JSON form are stable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// They are not among those who may connect (`allow`).
    pub not_allowed: u64,
    /// The app's `rate` was reached.
    pub rate: u64,
    /// The client has its share of the relay's places.
    pub share: u64,
}

/// The same, and of whose clients they were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedByRelay {
    /// Of all apps.
    #[serde(flatten)]
    pub all: Refusals,
    /// Of each app, by its name, if there were any.
    pub apps: std::collections::BTreeMap<String, u64>,
}

impl Refusals {
    /// Each with the rule that a line of the traffic log names.
    #[must_use]
    pub fn by_rule(&self) -> [(Why, u64); 3] {
        [
            (Why::NotAllowed, self.not_allowed),
            (Why::Rate, self.rate),
            (Why::Share, self.share),
        ]
    }

    /// Both. They are a part's words: no number of them is too large.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            not_allowed: self.not_allowed.saturating_add(other.not_allowed),
            rate: self.rate.saturating_add(other.rate),
            share: self.share.saturating_add(other.share),
        }
    }
}

/// Why the relay has refused a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// See [`Refusals`].
    NotAllowed,
    /// See [`Refusals`].
    Rate,
    /// See [`Refusals`].
    Share,
}

impl Why {
    /// As a rule of a chain `relay`, which is what it is like.
    #[must_use]
    pub fn rule(self) -> &'static str {
        match self {
            Self::NotAllowed => "drop-not-allowed",
            Self::Rate => "drop-rate",
            Self::Share => "drop-share",
        }
    }

    /// What comes before that.
    pub const CHAIN: &str = "relay";
}

/// What was counted since the sidecar was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Refused packets, listed or not.
    pub refused: u64,
    /// Packets that the kernel could not hand over.
    pub lost_by_kernel: u64,
    /// Records that the supervisor did not take in time.
    pub lost_by_sidecar: u64,
    /// Connections that were not remembered.
    pub lost_by_table: u64,
    /// For each app, in the plan's order, and for what is no app's.
    pub apps: Vec<AppTotals>,
}

/// What was counted for an app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppTotals {
    /// Connections that are open.
    pub open: u64,
    /// Connections that were let through.
    pub opened: u64,
    /// Bytes of payload of ended connections, from clients and to them.
    pub bytes: [u64; 2],
    /// Packets that were refused, to it and from it.
    pub refused: [u64; 2],
}
