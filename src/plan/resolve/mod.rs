//! What the configuration means on this machine: every name, address, port, id and default is chosen here.
//!
//! Pure but for the facts that it is given: the same [`Config`] and [`Host`] give the same [`Plan`].
#![forbid(unsafe_code)]

mod again;
mod entries;
mod ids;
#[cfg(test)]
mod tests;
mod variables;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::config::{self, Config, IdCount, Limits, Origin, Replace, Rootfs, Tmpfs, Via};
use crate::confine::privileges::Ids;
use crate::confine::seccomp;
use crate::host::Host;
use crate::names::{IfName, StackName};
use crate::net;
use crate::plan::limits;
use crate::plan::{
    AppPlan, BridgePlan, DEFAULT_PATH, EgressPlan, IdMap, Plan, PublishPlan, RANGE, RecordPlan,
    Spare, Turn, UplinkEnd, UplinkPlan,
};

pub use again::again;
use entries::EntryPorts;
use ids::{Names, id_maps, inside, volumes};
use variables::extra_rules;
use ways::{egress_way, transport, uplink_end};

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
    /// A variable of the user's rules would mean two things.
    #[error("`${name}` in {file} is both {one} and {other}; rename the variable")]
    RulesVariable {
        /// Its name.
        name: String,
        /// The file.
        file: String,
        /// What it means.
        one: &'static str,
        /// And what else.
        other: &'static str,
    },
    /// A value that can't be put into nft's language.
    #[error(
        "`${name}` in {file} has {value:?} as its value; expected is one line without `;` and `#`, such as `{{ 192.0.2.1, 192.0.2.7 }}`"
    )]
    RulesValue {
        /// Its name.
        name: String,
        /// The file.
        file: String,
        /// Its value.
        value: String,
    },
    /// An app's egress names the stack's own subnet.
    #[error("egress \"{egress}\" of {app}: that is within the stack's own subnet")]
    EgressWithin {
        /// The app.
        app: String,
        /// What it names.
        egress: config::Egress,
        /// What would grant that, if it is an app.
        instead: Option<config::Connect>,
    },
    /// A name that the app's root doesn't know.
    #[error("{key} \"{name}\" of {app}: {} has no such {key}{}", match root {
        Rootfs::Host => "this host".to_owned(),
        Rootfs::Dir(path) => format!("the root {}", path.display()),
        Rootfs::BuiltinWebapp => "builtin:webapp".to_owned(),
    }, nearest.as_ref().map(|name| format!(", the nearest is `{name}`")).unwrap_or_default())]
    Account {
        /// The app.
        app: String,
        /// `user` or `group`.
        key: &'static str,
        /// The name.
        name: String,
        /// The root.
        root: Rootfs,
        /// What it may have been meant to be.
        nearest: Option<String>,
    },
    /// An owner among ids that are not there.
    #[error("volume {} of {app}: {option}, and the app has ids = \"one\"", path.display())]
    OwnerOfOne {
        /// The app.
        app: String,
        /// The volume's place in the app.
        path: PathBuf,
        /// `owner=USER` or `owners`.
        option: String,
    },
    /// An owner that no id of a range is.
    #[error("volume {} of {app}: owner={owner} is none of its ids, which are 0 to {}", path.display(), RANGE - 1)]
    OwnerBeyond {
        /// The app.
        app: String,
        /// The volume's place in the app.
        path: PathBuf,
        /// Who.
        owner: u32,
    },
    /// Whose files are whose is for root to say.
    #[error("volume {} of {app}: {option}, which takes root", path.display())]
    OwnersOfUser {
        /// The app.
        app: String,
        /// The volume's place in the app.
        path: PathBuf,
        /// `owner=USER` or `owners`.
        option: String,
    },
    /// A range is mapped for who begins as root.
    #[error("{app} has ids = \"range\" and a user or group that is not root's")]
    RangeWithUser {
        /// The app.
        app: String,
    },
    /// There is no range to map.
    #[error("{app} has ids = \"range\", and {why}")]
    NoRange {
        /// The app.
        app: String,
        /// What is missing.
        why: String,
        /// What helps.
        hint: String,
    },
    /// Every range of host ids is taken.
    #[error("all {slots} ranges of host ids are taken by other stacks")]
    Ids {
        /// How many there are.
        slots: u32,
    },
}

/// Where a subnet is taken from when the file names none: the half of 198.18.0.0/15 (RFC 2544) that the uplinks
/// don't use.
const SUBNET_POOL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// Decides everything: pure but for what `host` says.
///
/// # Errors
/// [`PlanError`] when something that has to be unique on this machine is used up.
pub fn plan(config: &Config, host: &Host) -> Result<Plan, PlanError> {
    let ends_at = uplink_end(config, host, None);
    let mut plan = decide(config, host, EntryPorts::new(), ends_at, &[])?;
    spares(&mut plan, None);
    Ok(plan)
}

fn decide(
    config: &Config,
    host: &Host,
    mut entries: EntryPorts,
    ends_at: UplinkEnd,
    also_taken: &[Ipv4Addr],
) -> Result<Plan, PlanError> {
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
        let twice = config.apps.iter();
        let twice = twice.filter(|app| replace(app, config) == Replace::Rolling);
        choose_subnet(config.apps.len() + twice.count(), host)
    });
    let mut taken: Vec<Ipv4Addr> = config.apps.iter().filter_map(|app| app.address).collect();
    taken.extend(config.sidecar.address);
    taken.extend(also_taken);
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
        None => {
            chosen("sidecar.address".into(), "the first free one of the subnet");
            next_free("the sidecar")?
        }
    };
    let ipv6 = config.network.ipv6;
    // The first address of a prefix is the routers' (RFC 4291, 2.6.1), so the second is the sidecar's.
    let address6 = |number: usize| {
        let first = ipv6?.network().to_bits();
        Some(Ipv6Addr::from_bits(first + 1 + number as u128))
    };
    let uplink = uplink(config, host, ends_at)?;

    let mut ids = id_maps(stack, host)?;
    let mut apps = Vec::with_capacity(config.apps.len());
    for (index, app) in config.apps.iter().enumerate() {
        let address = match app.address {
            Some(address) => address,
            None => {
                let key = format!("{}.address", app.name);
                chosen(key, "the next free one of the subnet");
                next_free(app.name.as_str())?
            }
        };
        let place = Place {
            index,
            address,
            address6: address6(index + 1),
            ids: ids(inside(app, host)?, app.ids)?,
            publish: published(app, address, (ends_at, host), &mut entries),
        };
        apps.push(app_plan(app, place, config, host)?);
    }

    let rules = config
        .sidecar
        .rules
        .as_ref()
        .map(|file| extra_rules(file, (sidecar_address, subnet), (stack, &uplink), &apps))
        .transpose()?;
    let mut plan = Plan {
        stack: stack.clone(),
        mode: host.mode,
        owner: host.uid,
        subordinate: match &host.subordinate {
            Some(Ok(further)) if apps.iter().any(|app| app.ids.is_range()) => Some(*further),
            _ => None,
        },
        run: host.run.clone(),
        state_dir: host.state.stack(stack),
        credentials: host.credentials.clone().filter(|_| {
            let mut secrets = apps.iter().flat_map(|app| &app.secrets);
            secrets.any(|secret| matches!(secret.from, config::SecretFrom::Credential(_)))
        }),
        config: config.path.clone(),
        bridge: BridgePlan {
            name: bridge_name(stack),
            address: sidecar_address,
            subnet,
            address6: address6(0),
            prefix6: ipv6,
            mac: net::mac(stack, "bridge"),
        },
        uplink,
        log: config.sidecar.log,
        sidecar: ids(Ids::ROOT, IdCount::One)?,
        relay: ids(Ids::ROOT, IdCount::One)?,
        egress: match egress_way(config, host, ends_at) {
            Some((via, why)) => Some(EgressPlan {
                via,
                why,
                ids: ids(Ids::ROOT, IdCount::One)?,
            }),
            None => None,
        },
        seal: config.sidecar.seal,
        rules,
        record: record(config, host),
        sidecar_limits: limits::SIDECAR,
        relay_limits: limits::RELAY,
        apps,
        cgroup: host.cgroups.of(stack.as_str(), &host.run),
        origins,
    };
    plan.derive_serves();
    no_egress_within(&plan)?;
    Ok(plan)
}

/// The link between the sidecar and where clients come from.
fn uplink(config: &Config, host: &Host, ends_at: UplinkEnd) -> Result<UplinkPlan, PlanError> {
    let (stack, ipv6) = (&config.name, config.network.ipv6);
    let taken: Vec<Ipv4Net> = host
        .others
        .iter()
        .filter_map(|other| Ipv4Net::new(other.uplink.host_address, 31).ok())
        .map(|net| net.trunc())
        .collect();
    let net = net::choose_uplink(stack, &host.net, &taken)
        .map_err(|e| PlanError::Uplink(e.to_string()))?;
    let last = Ipv4Addr::from_bits(net.network().to_bits() + 1);
    Ok(UplinkPlan {
        ends_at,
        host_link: IfName::new(format!("lrp{}", host.run)).expect("11 bytes, letters and digits"),
        host_address: net.network(),
        host_address6: ipv6.map(|_| net::uplink6(net.network())),
        host_mac: net::mac(stack, "uplink-host"),
        sidecar_link: IfName::new("uplink").expect("6 letters"),
        sidecar_address: last,
        sidecar_address6: ipv6.map(|_| net::uplink6(last)),
        sidecar_mac: net::mac(stack, "uplink-sidecar"),
    })
}

/// What an app publishes, each port by itself.
fn published(
    app: &config::App,
    address: Ipv4Addr,
    (ends_at, host): (UplinkEnd, &Host),
    entries: &mut EntryPorts,
) -> Vec<PublishPlan> {
    let mut published = vec![];
    for publish in &app.publish {
        let (via, why) = transport(publish, app, ends_at, host);
        for (host_port, app_port) in publish.ports() {
            let listen = SocketAddr::new(publish.address, host_port);
            published.push(PublishPlan {
                listen,
                protocol: publish.protocol,
                entry_port: entries.take(listen, publish.protocol, (address, app_port)),
                app_port,
                via,
                why: why.clone(),
                waited: app.wait && publish.count == 1,
            });
        }
    }
    published
}

/// What an app has that no other part of the stack may have as well.
struct Place {
    /// Which one it is in the file.
    index: usize,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    ids: IdMap,
    publish: Vec<PublishPlan>,
}

fn app_plan(
    app: &config::App,
    place: Place,
    config: &Config,
    host: &Host,
) -> Result<AppPlan, PlanError> {
    let limits = app_limits(app.limits, host);
    let profile = match app.ids {
        IdCount::One => app.seccomp.clone(),
        IdCount::Range => seccomp::over_a_range(app.seccomp.clone()),
    };
    Ok(AppPlan {
        name: app.name.clone(),
        address: place.address,
        address6: place.address6,
        mac: net::mac(&config.name, app.name.as_str()),
        port_link: IfName::new(format!("port{}", place.index))
            .expect("at most 15 bytes for any number of apps"),
        ids: place.ids,
        rootfs: app.rootfs.clone(),
        workdir: app.workdir.clone(),
        command: app.command.clone(),
        env: environment(app, host),
        tmpfs: with_shared_memory(&app.tmpfs, &limits),
        volumes: volumes(app, host)?,
        sockets: app.sockets.clone(),
        secrets: app.secrets.clone(),
        limits,
        publish: place.publish,
        start_timeout: app.start_timeout,
        listen: app.listen.clone(),
        via_socket: app.via == Via::Socket,
        source: app.source,
        egress: app.egress.clone(),
        connect: app.connect.clone(),
        serves: vec![],
        allow: ipnet::IpNet::aggregate(&app.allow),
        rate: app.rate,
        closing: vec![],
        after: app.after.clone(),
        job: app.job,
        forks: app.forks,
        health: app.health.clone(),
        restart: app.restart,
        restart_limit: app.restart_limit,
        stop: app.stop,
        replace: replace(app, config),
        spare: None,
        away: false,
        turn: Turn::Serves,
        seccomp: match app.via {
            Via::Socket => profile.without_links(),
            _ => profile,
        },
    })
}

/// What is to be done with an app in whose place another is to come, where the file doesn't say: that there are two is
/// harmless where somebody is taken from one to the other, and nothing on disk is written by both.
fn replace(app: &config::App, config: &Config) -> Replace {
    let writes = app.volumes.iter().any(|volume| volume.writable);
    let linked = config
        .apps
        .iter()
        .any(|other| other.connect.iter().any(|to| to.app == app.name));
    let serves = !app.publish.is_empty() || linked;
    // Who connects meanwhile waits in the socket's backlog.
    let waits = app.via == Via::Socket;
    app.replace
        .unwrap_or(match serves && !writes && !app.job && !waits {
            true => Replace::Rolling,
            false => Replace::StopFirst,
        })
}

/// Gives each app that another may take the place of the addresses for that, from the subnet's end: the others are those
/// that they would be without. What `running` has stays.
fn spares(plan: &mut Plan, running: Option<&Plan>) {
    let mut taken: BTreeSet<IpAddr> = plan.apps.iter().flat_map(AppPlan::addresses).collect();
    let before = |app: &AppPlan| {
        let before = running?.app(&app.name)?;
        let spare = before.spare.filter(|_| before.home4() == app.home4())?;
        // Where nobody is, one that joins may be now.
        (before.away || !taken.contains(&spare.address.into())).then_some(spare)
    };
    let known: Vec<Option<Spare>> = plan.apps.iter().map(before).collect();
    taken.extend(
        known
            .iter()
            .flatten()
            .map(|spare| IpAddr::from(spare.address)),
    );
    taken.extend(
        known
            .iter()
            .flatten()
            .filter_map(|spare| spare.address6)
            .map(IpAddr::from),
    );
    // Who leaves may still be there.
    taken.extend(
        running
            .into_iter()
            .flat_map(|plan| plan.apps.iter().flat_map(AppPlan::everywhere)),
    );
    taken.insert(plan.bridge.address.into());
    let subnet = plan.bridge.subnet;
    let prefix6 = plan.bridge.prefix6;
    let (first, last) = (subnet.network().to_bits(), subnet.broadcast().to_bits());
    for (app, known) in plan.apps.iter_mut().zip(known) {
        if app.replace == Replace::StopFirst && known.is_none() {
            continue;
        }
        app.spare = known.or_else(|| {
            let mut free = (first + 1..last).rev().map(Ipv4Addr::from_bits);
            let address = free.find(|address| !taken.contains(&IpAddr::from(*address)))?;
            let address6 = match prefix6 {
                None => None,
                Some(prefix) => {
                    let first = prefix.network().to_bits() + 2;
                    let mut free = (first..=prefix.broadcast().to_bits()).map(Ipv6Addr::from_bits);
                    Some(free.find(|address| !taken.contains(&IpAddr::from(*address)))?)
                }
            };
            taken.insert(address.into());
            taken.extend(address6.map(IpAddr::from));
            let mac = net::mac(&plan.stack, &format!("{}.2", app.name));
            Some(Spare {
                address,
                address6,
                mac,
            })
        });
    }
}

/// Where the log goes beside memory.
fn record(config: &Config, host: &Host) -> RecordPlan {
    let config::Record { to, dir, size, age } = &config.record;
    RecordPlan {
        to: *to,
        dir: dir
            .as_ref()
            .unwrap_or(&host.logs)
            .join(config.name.as_str()),
        size: *size,
        age: age.as_secs(),
    }
}

/// Apps reach each other by `connect` alone: egress leaves by the uplink.
fn no_egress_within(plan: &Plan) -> Result<(), PlanError> {
    let families = plan.families();
    for app in &plan.apps {
        let own =
            |egress: &&config::Egress| families.iter().any(|of| of.subnet.contains(&egress.to));
        let Some(egress) = app.egress.iter().find(own) else {
            continue;
        };
        let other = plan.apps.iter().find(|other| {
            let is_it = other.addresses().any(|address| address == egress.to.addr());
            is_it && egress.is_single() && other.name != app.name
        });
        return Err(PlanError::EgressWithin {
            app: app.name.to_string(),
            egress: *egress,
            instead: other.map(|other| config::Connect {
                app: other.name.clone(),
                protocol: egress.protocol,
                first_port: egress.first_port,
                last_port: egress.last_port,
            }),
        });
    }
    Ok(())
}

/// The bridge has the stack's name, cut to what a link may have.
fn bridge_name(stack: &StackName) -> IfName {
    let name: String = stack.as_str().chars().take(IfName::MAX).collect();
    // Some are, or may be, taken in a sidecar's namespace; `all` and `default` the kernel keeps for its sysctls
    // (sysctl_dev_name_is_allowed(), include/linux/inetdevice.h).
    let taken = matches!(name.as_str(), "lo" | "uplink" | "all" | "default")
        || name
            .strip_prefix("port")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    let name = if taken {
        format!("br-{name}").chars().take(IfName::MAX).collect()
    } else {
        name
    };
    IfName::new(name).expect("a stack's name has only characters that a link's may have")
}

/// The smallest subnet that fits the sidecar and so many apps, counted twice if there may be two of them; a /29 at most.
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

/// The app's environment: what the file says, and the three that programs look for.
fn environment(app: &config::App, host: &Host) -> BTreeMap<String, String> {
    let mut env = app.env.clone();
    let home = Names::of(app, host).home();
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOME", home),
        ("HOSTNAME", app.name.as_str()),
    ] {
        env.entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    }
    env
}

/// Bytes of an app's /dev/shm: enough for semaphores (sem_open(3)) and small segments.
const SHARED_MEMORY_SIZE: u64 = 16 << 20;

/// The configured tmpfs, and one for POSIX shared memory if it is not among them. What is in it counts as the app's memory,
/// so it is no larger than half of that.
fn with_shared_memory(tmpfs: &[Tmpfs], limits: &Limits) -> Vec<Tmpfs> {
    let chosen = shared_memory(limits);
    let mut all = tmpfs.to_vec();
    if all.iter().all(|tmpfs| tmpfs.path != chosen.path) {
        all.push(chosen);
    }
    all
}

/// The tmpfs for POSIX shared memory that an app has if its file says nothing of one.
#[must_use]
pub fn shared_memory(limits: &Limits) -> Tmpfs {
    let most = limits.memory.map_or(SHARED_MEMORY_SIZE, |bytes| bytes / 2);
    Tmpfs {
        path: config::SHARED_MEMORY.into(),
        size: SHARED_MEMORY_SIZE.min(most),
    }
}

/// What the file says; where it says nothing, enough for any server that works, and less than takes the host down.
fn app_limits(limits: Limits, host: &Host) -> Limits {
    let most_of_it = Some(host.memory / 4 * 3).filter(|bytes| *bytes > 0);
    Limits {
        memory: limits.memory.or(most_of_it),
        pids: limits.pids.or(Some(limits::APP_PIDS)),
        cpu: limits.cpu,
    }
}
