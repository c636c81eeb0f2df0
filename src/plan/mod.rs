//! One stack, decided: every name, address, port and id.
//!
//! A [`Plan`] is made by [`crate::plan::resolve`] from a [`crate::config::Config`] and the facts of the machine, is never
//! changed afterwards, and is all that the later steps see.
#![forbid(unsafe_code)]

pub mod change;
mod egress;
pub mod limits;
pub mod neighbour;
pub mod reach;
pub mod resolve;
mod seat;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use caps::Capability;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use self::limits::Placement;
use crate::config::clients::{self, Rate};
use crate::config::order;
use crate::config::{
    After, Connect, Egress, Health, Limits, Origin, Protocol, RecordTo, Replace, Restart,
    RestartLimit, Rootfs, Secret, Source, Stop, Tmpfs, TrafficLog, UnixGrant, Volume,
};
use crate::confine::privileges::{HOST_IDS, Ids, OVER_A_RANGE};
use crate::names::{IfName, PartName, StackName};

#[cfg(test)]
pub(crate) use seat::tests::plan as example;
pub use seat::{CannotRoll, Spare, Turn};

pub use egress::{Door, EgressPlan, EgressVia, MOST_DOORS};

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut fields = text.split(':');
        for byte in &mut bytes {
            *byte = fields
                .next()
                .and_then(|f| u8::from_str_radix(f, 16).ok())
                .ok_or_else(|| {
                    format!("`{text}` is no link-layer address, such as 02:00:00:00:00:01")
                })?;
        }
        Ok(Mac(bytes))
    }
}

/// Who runs the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The superuser: parts get host ids of a range of their own, ports may be published by DNAT.
    Root,
    /// An ordinary user: one id is mapped, ports are published by the relay.
    Rootless,
}

impl Mode {
    /// As people and documents have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Root => "root",
            Mode::Rootless => "rootless",
        }
    }

    /// As it is said in a sentence.
    #[must_use]
    pub fn by(self) -> &'static str {
        match self {
            Mode::Root => "as root",
            Mode::Rootless => "without root",
        }
    }
}

/// Where the log goes beside memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecordPlan {
    /// `log.to`: what `auto` comes to is found out by the supervisor.
    pub to: RecordTo,
    /// The stack's own directory.
    pub dir: PathBuf,
    /// What its files may take together, in bytes.
    pub size: u64,
    /// How old a line may get, in seconds.
    pub age: u64,
}

/// The first of an ordinary user's further ids (subuid(5)): over a range an app's 0 is the user, and these are its 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subordinate {
    /// Of /etc/subuid.
    pub uid: u32,
    /// Of /etc/subgid.
    pub gid: u32,
}

/// One stack, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The stack's name.
    pub stack: StackName,
    /// Who runs it.
    pub mode: Mode,
    /// The uid of who runs it; rootless, every part is this uid outside.
    pub owner: u32,
    /// An ordinary user's further ids, if an app has a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subordinate: Option<Subordinate>,
    /// Eight hexadecimal digits that tell this run from any other: host objects linger for some 40 ms after their
    /// namespace has gone, so their names must not come back at once.
    pub run: String,
    /// The stack's directory below /run or $XDG_RUNTIME_DIR.
    pub state_dir: PathBuf,
    /// Where systemd's credentials are, if an app has one for a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// The file it came from, `None` for the built-in example and `lrpns run`.
    pub config: Option<PathBuf>,
    /// The bridge in the sidecar's namespace.
    pub bridge: BridgePlan,
    /// The one link between host and sidecar.
    pub uplink: UplinkPlan,
    /// What the sidecar says of the traffic.
    pub log: TrafficLog,
    /// The sidecar's ids.
    pub sidecar: IdMap,
    /// The relay's ids.
    pub relay: IdMap,
    /// How what apps connect to leaves this machine; `None` where no app has any `egress`.
    #[serde(default)]
    pub egress: Option<EgressPlan>,
    /// Whether the sidecar gives NET_ADMIN up once its rules are loaded.
    #[serde(default)]
    pub seal: bool,
    /// The user's own rules for the sidecar, beside those that come of the rest.
    #[serde(default)]
    pub rules: Option<ExtraRules>,
    /// Where the log goes beside memory.
    #[serde(default)]
    pub record: RecordPlan,
    /// What the sidecar may use.
    pub sidecar_limits: Limits,
    /// What the relay may use.
    pub relay_limits: Limits,
    /// The apps, in the file's order; never empty.
    pub apps: Vec<AppPlan>,
    /// What holds the limits.
    pub cgroup: Placement,
    /// Where each configured value came from.
    pub origins: BTreeMap<String, Origin>,
}

/// Whether errors may quote a file. It depends on who asks, so two plans never differ by it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quoting {
    /// They may.
    #[default]
    Allowed,
    /// The user that sudo names could not have read it.
    Private,
}

impl Quoting {
    /// Whether they may.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed)
    }
}

impl PartialEq for Quoting {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Quoting {}

/// The file of `sidecar.rules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraRules {
    /// Where it is.
    pub file: PathBuf,
    /// What it says, in nft's language.
    pub text: String,
    /// Who may see it.
    #[serde(default, skip_serializing_if = "Quoting::is_allowed")]
    pub quoting: Quoting,
    /// What `$NAME` stands for in it; only those that it uses.
    pub defines: BTreeMap<String, String>,
}

impl ExtraRules {
    /// Whether nft would make the same of both.
    #[must_use]
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        (&self.file, &self.text, &self.defines) == (&other.file, &other.text, &other.defines)
    }
}

/// One chain, rule, set or list of elements in the kernel's own bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraObject {
    /// `NFT_MSG_NEWCHAIN` and so on (linux/netfilter/nf_tables.h).
    pub kind: i32,
    /// Its name for people, such as `rule before/block`.
    pub label: String,
    /// Its netlink attributes, without the table's name.
    #[serde(with = "hexadecimal")]
    pub attributes: Vec<u8>,
}

/// Bytes in JSON, at two characters each.
pub(crate) mod hexadecimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for digit in bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
        to.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = || D::Error::custom("no pairs of hexadecimal digits");
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(wrong);
        let mut bytes = Vec::with_capacity(text.len() / 2);
        for pair in text.as_bytes().chunks(2) {
            let &[high, low] = pair else {
                return Err(wrong());
            };
            bytes.push((digit(high)? << 4 | digit(low)?) as u8);
        }
        Ok(bytes)
    }
}

/// The ids of one part. What an app runs as is the same inside whoever runs the stack; outside it is the last of `count`
/// ids. Where there are two, the first is 0 inside, the stage before it drops everything, and so what the app can't change
/// belongs to another than itself. A whole range is mapped in order, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The first id outside; rootless, of the supervisor's user namespace.
    pub host_id: u32,
    /// How many ids outside are its own: 1, 2 or [`RANGE`].
    pub count: u32,
    /// The uid inside that the part runs as.
    #[serde(default)]
    pub uid: u32,
    /// The gid inside that the part runs as.
    #[serde(default)]
    pub gid: u32,
}

/// The id inside that an app runs as: the first of an ordinary user on most systems.
pub const APP_ID: u32 = 1000;

/// The name of that user and its group in a root made from the host's.
pub const APP_NAME: &str = "app";

/// How many ids a whole range is: as many as there are users below nobody, and nobody.
pub const RANGE: u32 = 0x1_0000;

impl IdMap {
    /// Who the part runs as.
    #[must_use]
    pub fn inside(&self) -> Ids {
        Ids {
            uid: self.uid,
            gid: self.gid,
        }
    }

    /// Who its stage begins as: 0, if that is mapped.
    #[must_use]
    pub fn first(&self) -> Ids {
        if self.count == 1 {
            self.inside()
        } else {
            Ids::ROOT
        }
    }

    /// The lines of `/proc/PID/uid_map` and of `gid_map` (user_namespaces(7)): inside, outside, how many.
    #[must_use]
    pub fn lines(&self) -> [Vec<[u32; 3]>; 2] {
        [self.uid, self.gid].map(|id| {
            if self.is_range() && self.host_id == 0 {
                // An ordinary user's own id and the further ones are two ranges, over which none may reach.
                return vec![[0, 0, 1], [1, 1, self.count - 1]];
            }
            if self.is_range() {
                return vec![[0, self.host_id, self.count]];
            }
            let stage = [0, self.host_id, 1];
            let own = [id, self.host_user(), 1];
            if self.count == 1 || id == 0 {
                vec![own]
            } else {
                vec![stage, own]
            }
        })
    }

    /// The uids alone as the host's user namespace has them, where the supervisor is in one of its `user`'s: 0 is that user there,
    /// and from 1 on are those that the user has besides.
    fn host_lines(&self, user: Option<u32>, besides: Option<Subordinate>) -> Vec<[u32; 3]> {
        let Some(user) = user else {
            let [lines, _] = self.lines();
            return lines;
        };
        match besides.filter(|_| self.is_range()) {
            Some(besides) => vec![[0, user, 1], [1, besides.uid, self.count - 1]],
            None => vec![[self.uid, user, 1]],
        }
    }

    /// [`IdMap::lines`] as they are written.
    #[must_use]
    pub fn maps(&self) -> [String; 2] {
        self.lines().map(|lines| {
            let lines = lines.iter();
            let text =
                |[inside, outside, count]: &[u32; 3]| format!("{inside} {outside} {count}\n");
            lines.map(text).collect()
        })
    }

    /// What it runs as, seen from outside.
    #[must_use]
    pub fn host_user(&self) -> u32 {
        if self.is_range() {
            self.host_id + self.uid
        } else {
            self.host_id + self.count - 1
        }
    }

    /// Whether it is a whole range.
    #[must_use]
    pub fn is_range(&self) -> bool {
        self.count == RANGE
    }

    /// What the part holds over its ids.
    #[must_use]
    pub fn capabilities(&self) -> &'static [Capability] {
        if self.is_range() { &OVER_A_RANGE } else { &[] }
    }
}

/// Whether an id of the host's is one of those that such lines map.
#[must_use]
pub fn maps_to(lines: &[[u32; 3]], id: u32) -> bool {
    let mut lines = lines.iter();
    lines.any(|[_, outside, count]| (*outside..outside + count).contains(&id))
}

/// What an id inside is on the host by such lines.
fn on_host(lines: &[[u32; 3]], id: u32) -> Option<u32> {
    lines.iter().find_map(|[inside, outside, count]| {
        let after = id.checked_sub(*inside)?;
        (after < *count).then(|| outside + after)
    })
}

/// The bridge: in the sidecar's namespace, with the sidecar's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgePlan {
    /// Its name, after the stack.
    pub name: IfName,
    /// The sidecar's address.
    pub address: Ipv4Addr,
    /// The stack's subnet.
    pub subnet: Ipv4Net,
    /// The sidecar's IPv6 address, the prefix's first; `None` where IPv6 is off.
    pub address6: Option<Ipv6Addr>,
    /// The stack's IPv6 prefix; `None` where IPv6 is off.
    pub prefix6: Option<Ipv6Net>,
    /// Its link-layer address, fixed, so that neighbours can be permanent.
    pub mac: Mac,
}

/// The veth pair between the host's namespace and the sidecar's: a /31 (RFC 3021), with IPv6 a /127 too (RFC 6164).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkPlan {
    /// Whose namespace the host's end is in.
    pub ends_at: UplinkEnd,
    /// The end in the host's namespace; its name is unique to this run.
    pub host_link: IfName,
    /// The host's address.
    pub host_address: Ipv4Addr,
    /// The host's IPv6 address; `None` where the stack's IPv6 is off.
    pub host_address6: Option<Ipv6Addr>,
    /// The host end's link-layer address.
    pub host_mac: Mac,
    /// The end in the sidecar's namespace.
    pub sidecar_link: IfName,
    /// The sidecar's address on it.
    pub sidecar_address: Ipv4Addr,
    /// The sidecar's IPv6 address on it; `None` where the stack's IPv6 is off.
    pub sidecar_address6: Option<Ipv6Addr>,
    /// The sidecar end's link-layer address.
    pub sidecar_mac: Mac,
}

/// Whose network namespace the uplink's end is in that is not the sidecar's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkEnd {
    /// The host's, which forwards something.
    #[default]
    Host,
    /// The relay's own, in which every address is its own: so it can dial as the client that it carries, and egress by
    /// relay is asked for at the address that is meant.
    Relay,
}

/// One app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppPlan {
    /// Its name within the stack.
    pub name: PartName,
    /// Its address, on the bridge's subnet.
    pub address: Ipv4Addr,
    /// Its IPv6 address, of the stack's prefix; `None` where IPv6 is off.
    pub address6: Option<Ipv6Addr>,
    /// The link-layer address of `eth0` in its namespace.
    pub mac: Mac,
    /// The bridge port: the other end of its veth pair, in the sidecar's namespace.
    pub port_link: IfName,
    /// Its ids.
    pub ids: IdMap,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Where its command starts.
    #[serde(default = "root_directory")]
    pub workdir: PathBuf,
    /// Its program and arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// What is writable, with the volumes that say so.
    pub tmpfs: Vec<Tmpfs>,
    /// Directories and files of the host's.
    pub volumes: Vec<Volume>,
    /// Unix sockets of the host's, or directories of them, that it may connect to.
    #[serde(default)]
    pub sockets: Vec<UnixGrant>,
    /// Files that only it reads: where each comes from, and nothing of what is in it.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// What it may use.
    pub limits: Limits,
    /// Its published ports.
    pub publish: Vec<PublishPlan>,
    /// It has no network, and is handed the listening sockets of its published ports: they are in the sidecar's network
    /// namespace, and so is its address, by which rules and log know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub via_socket: bool,
    /// How long it may take until it listens on those that are waited for ([`PublishPlan::waited`]); in milliseconds in JSON.
    #[serde(with = "crate::config::milliseconds")]
    pub start_timeout: Duration,
    /// TCP ports that it may use within itself, beside the published ones.
    pub listen: Vec<u16>,
    /// Whose address it sees.
    pub source: Source,
    /// Where it may connect to; empty for nowhere.
    pub egress: Vec<Egress>,
    /// What it may reach of other apps.
    #[serde(default)]
    pub connect: Vec<Connect>,
    /// What other apps may reach of it, each with the app that connects: it follows from their `connect`.
    #[serde(default)]
    pub serves: Vec<Connect>,
    /// Whose connections are let in: ranges of client addresses, of which none is in another.
    pub allow: Vec<IpNet>,
    /// How often clients may connect; the relay counts, and by DNAT the sidecar's rules.
    pub rate: Option<Rate>,
    /// Ports that were published until a live change: nobody gets in any more, and who was in stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closing: Vec<PublishPlan>,
    /// What comes up before it; there is no circle.
    #[serde(default)]
    pub after: Vec<After>,
    /// It runs to its end, which must be 0; [`AppPlan::start_timeout`] is how long it may take.
    #[serde(default)]
    pub job: bool,
    /// Its command goes to the background by itself: the app is what it leaves running.
    #[serde(default)]
    pub forks: bool,
    /// How it is found out whether it is well; its ports are published only while it is.
    #[serde(default)]
    pub health: Option<Health>,
    /// What happens when it ends by itself.
    pub restart: Restart,
    /// How often that is done at most.
    #[serde(default)]
    pub restart_limit: Option<RestartLimit>,
    /// How it is asked to end.
    #[serde(default)]
    pub stop: Stop,
    /// What happens when another is to come in its place.
    #[serde(default = "stop_first")]
    pub replace: Replace,
    /// The addresses that it isn't at, for another one; `None` where the subnet has none left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<Spare>,
    /// It has been replaced, and is not where the configuration has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
    /// Which of two it is, while one takes the other's place.
    #[serde(default, skip_serializing_if = "Turn::serves")]
    pub turn: Turn,
    /// Which system calls its command may make.
    pub seccomp: crate::confine::seccomp::Profile,
}

/// What a stack has of one address family; all four are of the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyPlan {
    /// The sidecar's address on the bridge.
    pub bridge: IpAddr,
    /// The stack's subnet, or its IPv6 prefix.
    pub subnet: IpNet,
    /// The host's address on the uplink.
    pub host: IpAddr,
    /// The sidecar's address on the uplink.
    pub sidecar: IpAddr,
}

impl FamilyPlan {
    /// Whether `address` is of this family.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.bridge.is_ipv6() == address.is_ipv6()
    }

    /// The app's address of this family.
    #[must_use]
    pub fn app(&self, app: &AppPlan) -> Option<IpAddr> {
        app.addresses().find(|address| self.has(*address))
    }

    /// The bits of an address: 32 or 128.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.subnet.max_prefix_len()
    }
}

impl AppPlan {
    /// All of the host's that is mounted in its root: its volumes, and its sockets as far as they are in none.
    #[must_use]
    pub fn mounted(&self) -> Vec<Volume> {
        let own = self.sockets.iter().filter(|s| !s.is_in(&self.volumes));
        let own = own.map(UnixGrant::volume);
        self.volumes.iter().cloned().chain(own).collect()
    }

    /// Whether it is given the same of the host's as `other`: root, volumes, secrets. What differs has to be opened, which takes power
    /// over the host.
    #[must_use]
    pub fn is_given_as(&self, other: &Self) -> bool {
        self.mounted() == other.mounted()
            && self.rootfs == other.rootfs
            && self.secrets == other.secrets
    }

    /// Its addresses: the IPv4 one, and the IPv6 one if it has one.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address.into()).chain(self.address6.map(IpAddr::from))
    }

    /// Where it has to listen for its clients to reach it at `address`, which is one of its own.
    #[must_use]
    pub fn heard_at(&self, address: SocketAddr) -> SocketAddr {
        match (self.source, address) {
            (Source::Localhost, SocketAddr::V4(at)) => (Ipv4Addr::LOCALHOST, at.port()).into(),
            _ => address,
        }
    }

    /// The ports at which its published ports and other apps come to it, from the first to the last of each row.
    #[must_use]
    pub fn answers_on(&self, protocol: Protocol) -> Vec<(u16, u16)> {
        let published = self.publish.iter().filter(|at| at.protocol == protocol);
        let published = published.map(|at| (at.app_port, at.app_port));
        let served = self.serves.iter().filter(|to| to.protocol == protocol);
        let served = served.map(|to| (to.first_port, to.last_port));
        let mut all: Vec<(u16, u16)> = published.chain(served).collect();
        all.sort_unstable();
        let mut rows: Vec<(u16, u16)> = vec![];
        for (first, last) in all {
            match rows.last_mut() {
                Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
                _ => rows.push((first, last)),
            }
        }
        rows
    }

    /// Where the sockets listen that it is handed, each once, in the order of its published ports; none if it has a network.
    #[must_use]
    pub fn handed(&self) -> Vec<SocketAddr> {
        let mut all = vec![];
        for publish in self.publish.iter().filter(|_| self.via_socket) {
            let at = self.service(publish);
            if !all.contains(&at) {
                all.push(at);
            }
        }
        all
    }

    /// Its address of the family of what `publish` listens on, to which clients of that port are taken.
    ///
    /// # Panics
    /// Never for a plan of [`crate::plan::resolve`], which publishes at an IPv6 address only what has one.
    #[must_use]
    pub fn service(&self, publish: &PublishPlan) -> SocketAddr {
        let address = self
            .addresses()
            .find(|address| address.is_ipv6() == publish.listen.is_ipv6())
            .expect("an IPv6 address is published only where there is a prefix");
        SocketAddr::new(address, publish.app_port)
    }
}

impl UplinkPlan {
    /// Where host and relay send what comes to `publish`: the sidecar's address of the same family.
    ///
    /// # Panics
    /// As [`AppPlan::service`].
    #[must_use]
    pub fn entry(&self, publish: &PublishPlan) -> SocketAddr {
        let address = if publish.listen.is_ipv6() {
            let address = self.sidecar_address6;
            address
                .expect("an IPv6 address is published only where there is a prefix")
                .into()
        } else {
            self.sidecar_address.into()
        };
        SocketAddr::new(address, publish.entry_port)
    }
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishPlan {
    /// Address and port on the host.
    pub listen: SocketAddr,
    /// Of which protocol.
    pub protocol: Protocol,
    /// The port of the sidecar's uplink address that host and relay send to; the sidecar's rules take it to `app_port`.
    pub entry_port: u16,
    /// The app's port.
    pub app_port: u16,
    /// How it gets from the host to the sidecar. Loopback is relayed either way.
    pub via: Transport,
    /// Why `via` is what it is, in a few words.
    pub why: String,
    /// Whether the app has to listen there before the stack is up: not on a range's ports, of which a server opens one when it
    /// needs one, and on none with `wait = false`.
    pub waited: bool,
}

/// How a published port gets from the host to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// DNAT in the host's namespace.
    Dnat,
    /// The relay process.
    Relay,
}

fn stop_first() -> Replace {
    Replace::StopFirst
}

fn root_directory() -> PathBuf {
    "/".into()
}

/// The PATH of an app whose environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl AppPlan {
    /// The ports whose connections the rules let on: the published ones, and those that are closing.
    pub fn reachable(&self) -> impl Iterator<Item = &PublishPlan> {
        self.publish.iter().chain(&self.closing)
    }
}

impl PublishPlan {
    /// Which port of the host it is: no two published ports have this in common.
    #[must_use]
    pub fn outside(&self) -> (SocketAddr, Protocol) {
        (self.listen, self.protocol)
    }
}

impl AppPlan {
    /// The networks that it has a route to, by the sidecar: of what it may connect to, and everything if it sees its
    /// clients, whom it has to answer.
    #[must_use]
    pub fn routes(&self) -> BTreeSet<IpNet> {
        if self.via_socket {
            return BTreeSet::new();
        }
        if self.source == Source::Client {
            return BTreeSet::from([Ipv4Net::default().into()]);
        }
        self.egress.iter().map(|egress| egress.to).collect()
    }

    /// The resolvers that it may ask: every single address that it may connect to at UDP's port 53.
    pub fn resolvers(&self) -> impl Iterator<Item = IpAddr> {
        self.egress
            .iter()
            .filter(|egress| {
                egress.is_single() && egress.covers(Protocol::Udp, egress.to.addr(), 53)
            })
            .map(|egress| egress.to.addr())
    }

    /// Whether there are clients that it doesn't let in.
    #[must_use]
    pub fn is_selective(&self) -> bool {
        self.allow != clients::everybody()
    }
}

/// The supervisor's, counted from the first id of its stack's range: parts have theirs from the first on, two each at most.
pub(crate) const SUPERVISOR_ID: u32 = 0xfff0;

/// Whether that id of the host's is some stack's supervisor's ([`Plan::supervisor`]), and nobody else's.
#[must_use]
pub fn is_supervisors(id: u32) -> bool {
    HOST_IDS.contains(&id) && id % RANGE == SUPERVISOR_ID
}

impl Plan {
    /// Who root's supervisor is on the host once the stack is up, and nobody else: the owner of the parts' user namespaces, of
    /// the log's directory, and of nothing besides. An ordinary user's stays its user.
    #[must_use]
    pub fn supervisor(&self) -> Option<Ids> {
        let id = self.sidecar.host_id - self.sidecar.host_id % RANGE + SUPERVISOR_ID;
        (self.mode == Mode::Root).then_some(Ids { uid: id, gid: id })
    }

    /// The directory that all stacks of this user have theirs in.
    #[must_use]
    pub fn stacks_dir(&self) -> &Path {
        self.state_dir.parent().unwrap_or(&self.state_dir)
    }

    /// Whether both plans ask for the same: what differs between any two runs (names, uplink, ids) aside.
    #[must_use]
    pub fn asks_for_the_same_as(&self, other: &Plan) -> bool {
        let neutral = |plan: &Plan| {
            let mut plan = plan.clone();
            plan.run.clear();
            // Whether there is IPv6 at all is the bridge's to say.
            plan.uplink = self.uplink.clone();
            plan.sidecar = self.sidecar;
            plan.relay = self.relay;
            plan.egress.clone_from(&self.egress);
            plan.origins.clear();
            plan.cgroup = Placement::default();
            for app in &mut plan.apps {
                app.ids = IdMap {
                    uid: app.ids.uid,
                    gid: app.ids.gid,
                    count: app.ids.count,
                    ..self.sidecar
                };
                app.closing.clear();
                app.address = app.home4();
                app.mac = self.bridge.mac;
                app.port_link.clone_from(&self.uplink.sidecar_link);
                (app.spare, app.away) = (None, false);
                for publish in &mut app.publish {
                    // What `auto` came to may have changed with the host; the stack works all the same.
                    publish.via = Transport::Relay;
                    publish.why.clear();
                }
            }
            plan
        };
        neutral(self) == neutral(other)
    }

    /// What the stack has of each address family: of IPv4 always, of IPv6 where it has a prefix.
    #[must_use]
    pub fn families(&self) -> Vec<FamilyPlan> {
        let (bridge, uplink) = (&self.bridge, &self.uplink);
        let mut families = vec![FamilyPlan {
            bridge: bridge.address.into(),
            subnet: bridge.subnet.into(),
            host: uplink.host_address.into(),
            sidecar: uplink.sidecar_address.into(),
        }];
        if let (Some(address), Some(prefix), Some(host), Some(sidecar)) = (
            bridge.address6,
            bridge.prefix6,
            uplink.host_address6,
            uplink.sidecar_address6,
        ) {
            families.push(FamilyPlan {
                bridge: address.into(),
                subnet: prefix.into(),
                host: host.into(),
                sidecar: sidecar.into(),
            });
        }
        families
    }

    /// Whether the stack has IPv6: a prefix was configured.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.bridge.prefix6.is_some()
    }

    /// What an app may reach of others, with the address of each: as if it were `egress`, by every family that both have.
    pub fn links<'p>(
        &'p self,
        app: &'p AppPlan,
    ) -> impl Iterator<Item = (&'p Connect, Egress)> + 'p {
        app.connect.iter().flat_map(|connect| {
            let to = self.apps.iter().filter(|to| to.name == connect.app);
            let to = to.flat_map(AppPlan::known_at);
            let to: BTreeSet<IpAddr> = to.collect();
            to.into_iter().map(move |address| {
                let egress = Egress {
                    protocol: connect.protocol,
                    to: address.into(),
                    first_port: connect.first_port,
                    last_port: connect.last_port,
                };
                (connect, egress)
            })
        })
    }

    /// The apps that an app exchanges packets with: those that it connects to, and those that connect to it.
    pub fn linked<'p>(&'p self, app: &'p AppPlan) -> impl Iterator<Item = &'p AppPlan> + 'p {
        let names: BTreeSet<&PartName> = app
            .connect
            .iter()
            .chain(&app.serves)
            .map(|connect| &connect.app)
            .collect();
        self.apps
            .iter()
            .filter(move |app| names.contains(&app.name))
    }

    /// The names that an app can look up: its own, those of what it connects to, and where it sees its clients that of the
    /// sidecar. A server that asks for the name of who connects, for its log or its list of who may, gets one at once.
    #[must_use]
    pub fn hosts(&self, app: &AppPlan) -> Vec<(IpAddr, String)> {
        let names: BTreeSet<&PartName> = app.connect.iter().map(|to| &to.app).collect();
        let others = names.into_iter().filter_map(|name| self.app(name));
        // What has no network has its loopback.
        let within = app.via_socket.then_some(Ipv4Addr::LOCALHOST.into());
        let own = app.addresses().filter(|_| !app.via_socket).chain(within);
        let own = own.map(|address| (address, app));
        let others = others.flat_map(|app| app.home().map(move |address| (address, app)));
        let names = own
            .chain(others)
            .map(|(address, app)| (address, app.name.to_string()));
        let six = self.bridge.address6.map(IpAddr::from);
        let sidecar = [IpAddr::from(self.bridge.address)].into_iter().chain(six);
        let sees = app.source == Source::Sidecar && !app.publish.is_empty();
        let sidecar = sidecar.filter(|_| sees);
        names
            .chain(sidecar.map(|address| (address, "sidecar".to_owned())))
            .collect()
    }

    /// The apps that have a link: all but those that are handed their sockets.
    pub fn linked_apps(&self) -> impl Iterator<Item = &AppPlan> {
        self.apps.iter().filter(|app| !app.via_socket)
    }

    /// The apps that are handed their sockets.
    pub fn handed_apps(&self) -> impl Iterator<Item = &AppPlan> {
        self.apps.iter().filter(|app| app.via_socket)
    }

    /// Writes down with each app who connects to it.
    pub fn derive_serves(&mut self) {
        let links: Vec<(PartName, Connect)> = self
            .apps
            .iter()
            .flat_map(|app| {
                app.connect.iter().map(|connect| {
                    let from = Connect {
                        app: app.name.clone(),
                        ..connect.clone()
                    };
                    (connect.app.clone(), from)
                })
            })
            .collect();
        for app in &mut self.apps {
            let its = links.iter().filter(|(to, _)| *to == app.name);
            app.serves = its.map(|(_, from)| from.clone()).collect();
        }
    }

    /// For each app, the places of those that it comes up after.
    #[must_use]
    pub fn after(&self) -> Vec<Vec<usize>> {
        let place = |name: &PartName| self.apps.iter().position(|app| app.name == *name);
        self.apps
            .iter()
            .map(|app| app.after.iter().filter_map(|on| place(&on.app)).collect())
            .collect()
    }

    /// The places of the apps in an order in which none comes before those that it comes up after.
    #[must_use]
    pub fn start_order(&self) -> Vec<usize> {
        order::order(&self.after())
    }

    /// Whether its apps come up one after the other, in whatever way.
    #[must_use]
    pub fn has_order(&self) -> bool {
        let mut apps = self.apps.iter();
        apps.any(|app| app.job || !app.after.is_empty())
    }

    /// Where an app has to listen until it counts as started: on its published ports that are waited for, and on those
    /// that an app which comes up after it may connect to.
    #[must_use]
    pub fn has_to_listen(&self, app: &AppPlan) -> Vec<(Protocol, SocketAddr)> {
        let published = app.publish.iter().filter(|publish| publish.waited);
        // What it is handed listens already.
        let published = published.filter(|_| !app.via_socket);
        let published =
            published.map(|publish| (publish.protocol, app.heard_at(app.service(publish))));
        let later = |other: &&AppPlan| other.after.iter().any(|after| after.app == app.name);
        let served = self.apps.iter().filter(later).flat_map(|other| {
            let its = other.connect.iter().filter(|to| to.app == app.name);
            // A server opens the ports of a range when it needs one.
            its.filter(|to| to.first_port == to.last_port)
        });
        let served = served.map(|to| {
            let at = SocketAddr::new(app.address.into(), to.first_port);
            (to.protocol, app.heard_at(at))
        });
        published.chain(served).collect()
    }

    /// The app of that name, which may be no app's; of two, the one that serves.
    #[must_use]
    pub fn app_named(&self, name: &str) -> Option<&AppPlan> {
        let its = || self.apps.iter().filter(|app| app.name.as_str() == name);
        its().find(|app| app.turn.serves()).or_else(|| its().next())
    }

    /// The app of that name.
    #[must_use]
    pub fn app(&self, name: &PartName) -> Option<&AppPlan> {
        self.app_named(name.as_str())
    }

    /// The ids of a part.
    #[must_use]
    pub fn ids_of(&self, part: &str) -> Option<IdMap> {
        match part {
            "sidecar" => Some(self.sidecar),
            "relay" => Some(self.relay),
            "egress" => self.egress.as_ref().map(|egress| egress.ids),
            app => self.app_named(app).map(|app| app.ids),
        }
    }

    /// The uids of a part with these ids as the host's user namespace has them: inside, on the host, how many.
    #[must_use]
    pub fn host_lines(&self, ids: IdMap) -> Vec<[u32; 3]> {
        let user = (self.mode == Mode::Rootless).then_some(self.owner);
        ids.host_lines(user, self.subordinate)
    }

    /// The uid, on the host, of a part with these ids.
    #[must_use]
    pub fn host_uid(&self, ids: IdMap) -> u32 {
        on_host(&self.host_lines(ids), ids.uid).unwrap_or(self.owner)
    }

    /// Whether a uid of the host's is one of a part's with these ids.
    #[must_use]
    pub fn is_of(&self, ids: IdMap, uid: u32) -> bool {
        maps_to(&self.host_lines(ids), uid)
    }

    /// For people: whose stack it is.
    #[must_use]
    pub fn title(&self) -> String {
        format!("stack {} {}", self.stack, self.mode.by())
    }

    /// Every part's name and limits.
    pub fn limits(&self) -> impl Iterator<Item = (&str, &Limits)> {
        let ours = [
            ("sidecar", &self.sidecar_limits),
            ("relay", &self.relay_limits),
        ];
        let egress = self.egress_relay().map(|_| ("egress", &limits::EGRESS));
        let apps = self.apps.iter().map(|app| (app.name.as_str(), &app.limits));
        ours.into_iter().chain(egress).chain(apps)
    }

    /// Every published port with its app.
    pub fn published(&self) -> impl Iterator<Item = (&AppPlan, &PublishPlan)> {
        self.apps
            .iter()
            .flat_map(|app| app.publish.iter().map(move |publish| (app, publish)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_seen_from_the_host_as_the_kernel_maps_them_twice() {
        let ids = |host_id, count, uid| IdMap {
            host_id,
            count,
            uid,
            gid: uid,
        };
        let besides = Some(Subordinate {
            uid: 100_000,
            gid: 200_000,
        });
        for (ids, user, besides, lines, own) in [
            // Root's.
            (ids(5000, 1, 0), None, None, vec![[0, 5000, 1]], 5000),
            (
                ids(5000, 2, 1000),
                None,
                None,
                vec![[0, 5000, 1], [1000, 5001, 1]],
                5001,
            ),
            (
                ids(0x7000_0000, RANGE, 33),
                None,
                None,
                vec![[0, 0x7000_0000, RANGE]],
                0x7000_0021,
            ),
            // An ordinary user's, who has ids besides or not.
            (
                ids(0, 1, 1000),
                Some(4321),
                None,
                vec![[1000, 4321, 1]],
                4321,
            ),
            (
                ids(0, 1, 1000),
                Some(4321),
                besides,
                vec![[1000, 4321, 1]],
                4321,
            ),
            (
                ids(0, RANGE, 0),
                Some(4321),
                besides,
                vec![[0, 4321, 1], [1, 100_000, RANGE - 1]],
                4321,
            ),
            (
                ids(0, RANGE, 33),
                Some(4321),
                besides,
                vec![[0, 4321, 1], [1, 100_000, RANGE - 1]],
                100_032,
            ),
        ] {
            assert_eq!(ids.host_lines(user, besides), lines, "{ids:?}");
            assert_eq!(on_host(&lines, ids.uid), Some(own), "{ids:?}");
            assert!(maps_to(&lines, own) && !maps_to(&lines, 4999) && !maps_to(&lines, 0));
            assert_eq!(on_host(&lines, 0xffff_fffe), None);
        }
    }
}
