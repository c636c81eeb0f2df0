//! What the configuration means on this machine: every name, address, port, id and default is chosen here.
//!
//! [`Plan`] is made by [`resolve`] from a [`crate::config::Config`] and the facts of the machine, is never changed
//! afterwards, and is all that the later steps see.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::config::{self, Config, Origin, Restart, Rootfs, Tmpfs, Via};
use crate::firewall::Forwarding;
use crate::host::Host;
use crate::names::{IfName, PartName, StackName};
use crate::net;

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

/// One stack, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The stack's name.
    pub stack: StackName,
    /// Who runs it.
    pub mode: Mode,
    /// The uid of who runs it; rootless, every part is this uid outside.
    pub owner: u32,
    /// Eight hexadecimal digits that tell this run from any other: host objects linger for some 40 ms after their
    /// namespace has gone, so their names must not come back at once.
    pub run: String,
    /// The stack's directory below /run or $XDG_RUNTIME_DIR.
    pub state_dir: PathBuf,
    /// The file it came from, `None` for the built-in example and `lrpns run`.
    pub config: Option<PathBuf>,
    /// The bridge in the sidecar's namespace.
    pub bridge: BridgePlan,
    /// The one link between host and sidecar.
    pub uplink: UplinkPlan,
    /// The sidecar's ids.
    pub sidecar: IdMap,
    /// The relay's ids.
    pub relay: IdMap,
    /// The apps, in the file's order; never empty.
    pub apps: Vec<AppPlan>,
    /// Where each configured value came from.
    pub origins: BTreeMap<String, Origin>,
}

/// The ids of one part. 0 inside is the stage, before it drops everything; an app runs as another, [`APP_ID`].
/// Rootless there is one id only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// The id outside that 0 inside stands for.
    pub host_id: u32,
    /// How many ids are mapped: 1, or 2, and then [`APP_ID`] inside is the next one outside.
    pub count: u32,
}

/// The id inside that an app runs as: the first of an ordinary user on most systems.
pub const APP_ID: u32 = 1000;

impl IdMap {
    /// The id inside that the app runs as.
    #[must_use]
    pub fn user(&self) -> u32 {
        if self.count == 1 { 0 } else { APP_ID }
    }

    /// The lines of `/proc/PID/uid_map` and `gid_map` (user_namespaces(7)).
    #[must_use]
    pub fn lines(&self) -> String {
        let stage = format!("0 {} 1\n", self.host_id);
        if self.count == 1 {
            stage
        } else {
            format!("{stage}{APP_ID} {} 1\n", self.host_user())
        }
    }

    /// The same id, seen from outside.
    #[must_use]
    pub fn host_user(&self) -> u32 {
        self.host_id + self.count - 1
    }
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
    /// Its link-layer address, fixed, so that neighbours can be permanent.
    pub mac: Mac,
}

/// The veth pair between the host's namespace and the sidecar's: a /31 (RFC 3021).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkPlan {
    /// The end in the host's namespace; its name is unique to this run.
    pub host_link: IfName,
    /// The host's address.
    pub host_address: Ipv4Addr,
    /// The host end's link-layer address.
    pub host_mac: Mac,
    /// The end in the sidecar's namespace.
    pub sidecar_link: IfName,
    /// The sidecar's address on it.
    pub sidecar_address: Ipv4Addr,
    /// The sidecar end's link-layer address.
    pub sidecar_mac: Mac,
}

/// One app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppPlan {
    /// Its name within the stack.
    pub name: PartName,
    /// Its address, on the bridge's subnet.
    pub address: Ipv4Addr,
    /// The link-layer address of `eth0` in its namespace.
    pub mac: Mac,
    /// The bridge port: the other end of its veth pair, in the sidecar's namespace.
    pub port_link: IfName,
    /// Its ids.
    pub ids: IdMap,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its program and arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// What is writable.
    pub tmpfs: Vec<Tmpfs>,
    /// Its published ports.
    pub publish: Vec<PublishPlan>,
    /// What happens when it ends by itself.
    pub restart: Restart,
    /// Which system calls its command may make.
    pub seccomp: crate::seccomp::Profile,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishPlan {
    /// Address and port on the host.
    pub listen: SocketAddrV4,
    /// The port of the sidecar's uplink address that host and relay send to; the sidecar's rules take it to `app_port`.
    pub entry_port: u16,
    /// The app's port.
    pub app_port: u16,
    /// How it gets from the host to the sidecar. Loopback is relayed either way.
    pub via: Transport,
    /// Why `via` is what it is, in a few words.
    pub why: String,
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

/// What can't be decided.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No /31 of the pool is free for the uplink.
    #[error("choose the uplink's addresses: {0}")]
    Uplink(String),
    /// The subnet has fewer addresses than parts.
    #[error("the subnet {subnet} has no address left for {part}")]
    SubnetFull {
        /// The subnet.
        subnet: Ipv4Net,
        /// The part that got none.
        part: String,
    },
    /// Every range of host ids is taken.
    #[error("all {slots} ranges of host ids are taken by other stacks")]
    Ids {
        /// How many there are.
        slots: u32,
    },
}

/// Host ids of stacks run by root: 4096 ranges of 65536 from 0x70000000 on, which systemd's "Users, Groups, UIDs and
/// GIDs on systemd Systems" lists as used by nobody.
const FIRST_ID: u32 = 0x7000_0000;
const IDS_PER_STACK: u32 = 0x1_0000;
const ID_SLOTS: u32 = 4096;

/// Where a subnet is taken from when the file names none: the half of 198.18.0.0/15 (RFC 2544) that the uplinks
/// don't use.
const SUBNET_POOL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// Decides everything: pure but for what `host` says.
///
/// # Errors
/// [`PlanError`] when something that has to be unique on this machine is used up.
pub fn resolve(config: &Config, host: &Host) -> Result<Plan, PlanError> {
    let mut origins = config.origins.clone();
    let mut chosen = |key: String, how: &str| {
        origins.entry(key).or_insert_with(|| Origin::Chosen {
            how: how.to_owned(),
        });
    };
    let stack = &config.name;

    let subnet = config.network.subnet.unwrap_or_else(|| {
        chosen(
            "network.subnet".into(),
            "the smallest that fits, unused on this host",
        );
        choose_subnet(config.apps.len(), host)
    });
    let mut taken: Vec<Ipv4Addr> = config.apps.iter().filter_map(|app| app.address).collect();
    taken.extend(config.sidecar.address);
    let mut next_free = |part: &str| {
        let free = subnet.hosts().find(|address| !taken.contains(address));
        let address = free.ok_or_else(|| PlanError::SubnetFull {
            subnet,
            part: part.to_owned(),
        })?;
        taken.push(address);
        Ok(address)
    };
    let sidecar_address = match config.sidecar.address {
        Some(address) => address,
        None => next_free("the sidecar")?,
    };
    if config.sidecar.address.is_none() {
        chosen("sidecar.address".into(), "the first free one of the subnet");
    }

    let taken_uplinks: Vec<Ipv4Net> = host
        .others
        .iter()
        .filter_map(|other| Ipv4Net::new(other.uplink.host_address, 31).ok())
        .map(|net| net.trunc())
        .collect();
    let uplink_net = net::choose_uplink(stack, &host.net, &taken_uplinks)
        .map_err(|e| PlanError::Uplink(e.to_string()))?;
    let uplink_last = Ipv4Addr::from_bits(uplink_net.network().to_bits() + 1);
    let uplink = UplinkPlan {
        host_link: IfName::new(format!("lrp{}", host.run)).expect("11 bytes, letters and digits"),
        host_address: uplink_net.network(),
        host_mac: net::mac(stack, "uplink-host"),
        sidecar_link: IfName::new("uplink").expect("6 letters"),
        sidecar_address: uplink_last,
        sidecar_mac: net::mac(stack, "uplink-sidecar"),
    };

    let mut ids = id_maps(stack, host)?;
    let mut entries = EntryPorts::new();
    let mut apps = Vec::with_capacity(config.apps.len());
    for (index, app) in config.apps.iter().enumerate() {
        let address = match app.address {
            Some(address) => address,
            None => next_free(app.name.as_str())?,
        };
        apps.push(AppPlan {
            name: app.name.clone(),
            address,
            mac: net::mac(stack, app.name.as_str()),
            port_link: IfName::new(format!("port{index}"))
                .expect("at most 15 bytes for any number of apps"),
            ids: ids(2),
            rootfs: app.rootfs.clone(),
            command: app.command.clone(),
            env: environment(app),
            tmpfs: app.tmpfs.clone(),
            publish: app
                .publish
                .iter()
                .map(|publish| {
                    let (via, why) = transport(publish.address, app.via, host);
                    PublishPlan {
                        listen: SocketAddrV4::new(publish.address, publish.host_port),
                        entry_port: entries.take(publish.host_port, address, publish.app_port),
                        app_port: publish.app_port,
                        via,
                        why,
                    }
                })
                .collect(),
            restart: app.restart,
            seccomp: app.seccomp.clone(),
        });
    }
    for (plan, app) in apps.iter().zip(&config.apps) {
        if app.address.is_none() {
            chosen(
                format!("{}.address", plan.name),
                "the next free one of the subnet",
            );
        }
    }

    Ok(Plan {
        stack: stack.clone(),
        mode: host.mode,
        owner: host.uid,
        run: host.run.clone(),
        state_dir: host.state.stack(stack),
        config: config.path.clone(),
        bridge: BridgePlan {
            name: bridge_name(stack),
            address: sidecar_address,
            subnet,
            mac: net::mac(stack, "bridge"),
        },
        uplink,
        sidecar: ids(1),
        relay: ids(1),
        apps,
        origins,
    })
}

/// The bridge has the stack's name, cut to what a link may have.
fn bridge_name(stack: &StackName) -> IfName {
    let name: String = stack.as_str().chars().take(IfName::MAX).collect();
    // These two names are taken in every namespace of a sidecar.
    let name = if name == "lo" || name == "uplink" {
        format!("br-{name}")
    } else {
        name
    };
    IfName::new(name).expect("a stack's name has only characters that a link's may have")
}

/// The smallest subnet that fits sidecar and apps, a /29 at most.
fn choose_subnet(apps: usize, host: &Host) -> Ipv4Net {
    // Network and broadcast address, and the sidecar.
    let wanted = u32::try_from(apps).unwrap_or(u32::MAX).saturating_add(3);
    let bits = wanted.next_power_of_two().trailing_zeros().clamp(3, 16);
    let length = u8::try_from(32 - bits).expect("between 16 and 29");
    (0..1_u32 << (16 - bits))
        .map(|index| Ipv4Addr::from_bits(SUBNET_POOL.to_bits() + (index << bits)))
        .filter_map(|first| Ipv4Net::new(first, length).ok())
        .find(|subnet| {
            let overlaps = |net: &Ipv4Net| net.contains(subnet) || subnet.contains(net);
            !host.net.routes.iter().any(overlaps)
                && !host
                    .net
                    .addresses
                    .iter()
                    .any(|(_, net)| overlaps(&net.trunc()))
        })
        // Nothing on the host routes to it, so an overlap only hides clients from those very addresses.
        .unwrap_or_else(|| Ipv4Net::new(SUBNET_POOL, length).expect("length is at most 32"))
}

/// A source of id maps for this stack: each call takes that many host ids.
fn id_maps(stack: &StackName, host: &Host) -> Result<impl FnMut(u32) -> IdMap, PlanError> {
    let mut next = match host.mode {
        // One id is mapped, and every part is it.
        Mode::Rootless => None,
        Mode::Root => {
            let start = (net::fnv1a(&[stack.as_str()]) % u64::from(ID_SLOTS)) as u32;
            let taken: Vec<u32> = host
                .others
                .iter()
                .map(|other| other.sidecar.host_id / IDS_PER_STACK)
                .collect();
            let slot = (0..ID_SLOTS)
                .map(|offset| FIRST_ID / IDS_PER_STACK + (start + offset) % ID_SLOTS)
                .find(|slot| !taken.contains(slot))
                .ok_or(PlanError::Ids { slots: ID_SLOTS })?;
            Some(slot * IDS_PER_STACK)
        }
    };
    Ok(move |count| match &mut next {
        None => IdMap {
            host_id: 0,
            count: 1,
        },
        Some(next) => {
            let host_id = *next;
            *next += count;
            IdMap { host_id, count }
        }
    })
}

/// The app's environment: what the file says, and the three that programs look for.
fn environment(app: &config::App) -> BTreeMap<String, String> {
    let mut env = app.env.clone();
    for (name, value) in [
        ("PATH", crate::init::app::DEFAULT_PATH),
        ("HOME", "/"),
        ("HOSTNAME", app.name.as_str()),
    ] {
        env.entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    env
}

/// How a published address gets to the sidecar, and why so.
fn transport(address: Ipv4Addr, via: Via, host: &Host) -> (Transport, String) {
    if address.is_loopback() {
        return (Transport::Relay, "loopback is always relayed".to_owned());
    }
    match (via, &host.forwarding) {
        (Via::Relay, _) => (Transport::Relay, "as configured".to_owned()),
        (Via::Dnat, _) => (Transport::Dnat, "as configured".to_owned()),
        (Via::Auto, Forwarding::Open) => (
            Transport::Dnat,
            "the host forwards, and nothing of another owner drops it".to_owned(),
        ),
        (Via::Auto, Forwarding::Closed { why }) => (Transport::Relay, why.clone()),
    }
}

/// The ports of the sidecar's uplink address: the host's port where it is free, so that a capture reads naturally.
struct EntryPorts {
    used: BTreeMap<u16, (Ipv4Addr, u16)>,
    spare: u16,
}

impl EntryPorts {
    fn new() -> Self {
        Self {
            used: BTreeMap::new(),
            spare: 61_000,
        }
    }

    /// The entry port for `host_port` to `app`:`app_port`; two host addresses with the same way in share one.
    fn take(&mut self, host_port: u16, app: Ipv4Addr, app_port: u16) -> u16 {
        let target = (app, app_port);
        if let Some((port, _)) = self.used.iter().find(|(_, used)| **used == target) {
            return *port;
        }
        let mut port = host_port;
        while self.used.contains_key(&port) {
            port = self.spare;
            self.spare += 1;
        }
        self.used.insert(port, target);
        port
    }
}

impl Plan {
    /// Whether both plans ask for the same: what differs between any two runs (names, uplink, ids) aside.
    #[must_use]
    pub fn asks_for_the_same_as(&self, other: &Plan) -> bool {
        let neutral = |plan: &Plan| {
            let mut plan = plan.clone();
            plan.run.clear();
            plan.uplink = self.uplink.clone();
            plan.sidecar = self.sidecar;
            plan.relay = self.relay;
            plan.origins.clear();
            for app in &mut plan.apps {
                app.ids = self.sidecar;
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

    /// The uid, on the host, of a part with these ids.
    #[must_use]
    pub fn host_uid(&self, ids: IdMap) -> u32 {
        match self.mode {
            Mode::Root => ids.host_user(),
            Mode::Rootless => self.owner,
        }
    }

    /// Every published port with its app.
    pub fn published(&self) -> impl Iterator<Item = (&AppPlan, &PublishPlan)> {
        self.apps
            .iter()
            .flat_map(|app| app.publish.iter().map(move |publish| (app, publish)))
    }
}
