//! What the configuration means on this machine: every name, address, port, id and default is chosen here.
//!
//! Pure but for the facts that it is given: the same [`Config`] and [`Host`] give the same [`Plan`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::accounts::{Accounts, LAST_SYSTEM_ID, User};
use crate::config::{
    self, Account, Config, IdCount, Limits, Origin, Protocol, Replace, Rootfs, RulesFile, Source,
    Tmpfs, Via, Volume, nearest,
};
use crate::confine::privileges::{HOST_IDS, Ids};
use crate::confine::seccomp;
use crate::firewall::Forwarding;
use crate::host::Host;
use crate::names::{IfName, PartName, StackName};
use crate::net;
use crate::plan::limits;
use crate::plan::neighbour::Neighbour;
use crate::plan::{
    APP_ID, APP_NAME, AppPlan, BridgePlan, DEFAULT_PATH, EgressPlan, EgressVia, ExtraRules, IdMap,
    Mode, Plan, PublishPlan, RANGE, RecordPlan, SUPERVISOR_ID, Spare, Transport, Turn, UplinkEnd,
    UplinkPlan,
};

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

/// Host ids of stacks run by root.
const FIRST_ID: u32 = HOST_IDS.start;
const IDS_PER_STACK: u32 = RANGE;
const ID_SLOTS: u32 = (HOST_IDS.end - HOST_IDS.start) / IDS_PER_STACK;

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

/// As [`plan`], for a stack that runs: what is not configured stays what was chosen when it was brought up, and what no
/// configuration can say (names, ids, the uplink) is `running`'s.
///
/// # Errors
/// As [`plan`].
pub fn again(config: &Config, host: &Host, running: &Plan) -> Result<Plan, PlanError> {
    let mut config = config.clone();
    let mut kept = vec![];
    let app_key = |app: &config::App, key: &str| format!("{}.{key}", app.name);
    if config.network.subnet.is_none() {
        config.network.subnet = Some(running.bridge.subnet);
        kept.push("network.subnet".to_owned());
    }
    if config.sidecar.address.is_none() {
        config.sidecar.address = Some(running.bridge.address);
        kept.push("sidecar.address".to_owned());
    }
    for app in &mut config.apps {
        if let (None, Some(before)) = (app.address, running.app(&app.name)) {
            app.address = Some(before.home4());
            kept.push(app_key(app, "address"));
        }
    }
    let ends_at = uplink_end(&config, host, Some(running));
    let away = running.apps.iter().filter(|app| app.away);
    let away: Vec<Ipv4Addr> = away.map(|app| app.address).collect();
    let mut plan = decide(&config, host, EntryPorts::of(running), ends_at, &away)?;
    for key in kept {
        if let Some(origin) = running.origins.get(&key) {
            plan.origins.insert(key, origin.clone());
        }
    }
    plan.run.clone_from(&running.run);
    // They are the service's.
    if running.credentials.is_some() {
        plan.credentials.clone_from(&running.credentials);
    }
    // Who asks may have another home than who brought it up.
    if config.record.dir.is_none() && !running.origins.contains_key("log.dir") {
        plan.record.dir.clone_from(&running.record.dir);
    }
    plan.uplink = UplinkPlan {
        ends_at,
        ..running.uplink.clone()
    };
    let six = |end| plan.bridge.prefix6.map(|_| net::uplink6(end));
    plan.uplink.host_address6 = six(running.uplink.host_address);
    plan.uplink.sidecar_address6 = six(running.uplink.sidecar_address);
    // A closing port's connections need the rules of a family and protocol for it, which another port may have.
    let way = |publish: &PublishPlan| {
        let family = publish.listen.is_ipv6();
        (
            publish.protocol,
            family,
            publish.entry_port,
            publish.app_port,
        )
    };
    let same_prefix = plan.bridge.prefix6 == running.bridge.prefix6;
    plan.cgroup.clone_from(&running.cgroup);
    (plan.sidecar, plan.relay) = (running.sidecar, running.relay);
    // What was decided for the host as it was then works still.
    if let (Some(egress), Some(before)) = (&mut plan.egress, &running.egress) {
        egress.clone_from(before);
    }
    let mut new = vec![];
    for (app, configured) in plan.apps.iter_mut().zip(&config.apps) {
        debug_assert_eq!(app.name, configured.name, "in the file's order");
        let Some(before) = running.app(&app.name) else {
            new.push(app.name.clone());
            continue;
        };
        // Where they are on the host it keeps.
        if before.ids.is_range() == app.ids.is_range() {
            app.ids = IdMap {
                host_id: before.ids.host_id,
                count: before.ids.count,
                ..app.ids
            };
        }
        if same_prefix {
            app.address6 = before.address6;
        }
        app.port_link.clone_from(&before.port_link);
        for publish in &mut app.publish {
            let same = before
                .publish
                .iter()
                .find(|other| other.outside() == publish.outside());
            // What `auto` came to may have changed with the host; it works all the same.
            if let (Some(same), Via::Auto | Via::Socket) = (same, configured.via) {
                publish.via = same.via;
                publish.why.clone_from(&same.why);
            }
        }
        // A flow of UDP has no end that it could live on to.
        app.closing = before
            .reachable()
            .filter(|publish| publish.protocol == Protocol::Tcp)
            .cloned()
            .collect();
        let open: Vec<_> = app.publish.iter().map(way).collect();
        app.closing
            .retain(|publish| publish.listen.is_ipv4() || same_prefix);
        app.closing.retain(|publish| !open.contains(&way(publish)));
    }
    for (index, name) in new.iter().enumerate() {
        join(name, &new[..index], &mut plan, running, &host.others);
    }
    // The order of a file means nothing to a stack that runs.
    spares(&mut plan, Some(running));
    plan.seat_as(running);
    let place = |app: &AppPlan| {
        running
            .apps
            .iter()
            .position(|before| before.name == app.name)
    };
    plan.apps
        .sort_by_key(|app| place(app).unwrap_or(usize::MAX));
    Ok(plan)
}

/// Gives an app that is new in a stack that runs what no other app of it has: the file's order has said who is which until
/// now, and another may have been there before.
fn join(
    name: &PartName,
    joined: &[PartName],
    plan: &mut Plan,
    running: &Plan,
    other_stacks: &[Neighbour],
) {
    let others: Vec<AppPlan> = running
        .apps
        .iter()
        .chain(plan.apps.iter().filter(|app| joined.contains(&app.name)))
        .cloned()
        .collect();
    let sidecar = plan.sidecar;
    let prefix6 = plan.bridge.prefix6;
    let Some(app) = plan.apps.iter_mut().find(|app| app.name == *name) else {
        return;
    };
    if app.ids.is_range() {
        let mut taken = slots(&Neighbour::from(running));
        taken.extend(other_stacks.iter().flat_map(slots));
        taken.extend(others.iter().map(|app| slot_of(&app.ids)));
        app.ids.host_id = free_slot(&plan.stack, &taken).unwrap_or(app.ids.host_id);
    } else if plan.mode == Mode::Root {
        let first = sidecar.host_id - sidecar.host_id % IDS_PER_STACK;
        let egress = running.egress.as_ref().map(|egress| egress.ids);
        let of_parts = [sidecar, running.relay].into_iter().chain(egress);
        let taken: Vec<IdMap> = others.iter().map(|app| app.ids).chain(of_parts).collect();
        let free = (first..first + SUPERVISOR_ID).step_by(2).find(|id| {
            let end = id + app.ids.count;
            let meets = |other: &IdMap| *id < other.host_id + other.count && other.host_id < end;
            !taken.iter().any(meets)
        });
        app.ids.host_id = free.unwrap_or(app.ids.host_id);
    }
    let links: Vec<&str> = others.iter().map(|app| app.port_link.as_str()).collect();
    let names = (0..=others.len()).map(|number| format!("port{number}"));
    let free = names
        .into_iter()
        .find(|name| !links.contains(&name.as_str()));
    if let Some(link) = free.and_then(|name| IfName::new(name).ok()) {
        app.port_link = link;
    }
    if let Some(prefix) = prefix6 {
        let first = prefix.network().to_bits() + 2;
        app.address6 = (first..).map(Ipv6Addr::from_bits).find(|address| {
            let is_its = |app: &AppPlan| app.everywhere().any(|its| its == IpAddr::from(*address));
            !others.iter().any(is_its)
        });
    }
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
        None => next_free("the sidecar")?,
    };
    if config.sidecar.address.is_none() {
        chosen("sidecar.address".into(), "the first free one of the subnet");
    }

    let ipv6 = config.network.ipv6;
    // The first address of a prefix is the routers' (RFC 4291, 2.6.1), so the second is the sidecar's.
    let address6 = |number: usize| {
        let first = ipv6?.network().to_bits();
        Some(Ipv6Addr::from_bits(first + 1 + number as u128))
    };

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
        ends_at,
        host_link: IfName::new(format!("lrp{}", host.run)).expect("11 bytes, letters and digits"),
        host_address: uplink_net.network(),
        host_address6: ipv6.map(|_| net::uplink6(uplink_net.network())),
        host_mac: net::mac(stack, "uplink-host"),
        sidecar_link: IfName::new("uplink").expect("6 letters"),
        sidecar_address: uplink_last,
        sidecar_address6: ipv6.map(|_| net::uplink6(uplink_last)),
        sidecar_mac: net::mac(stack, "uplink-sidecar"),
    };

    let mut ids = id_maps(stack, host)?;
    let mut apps = Vec::with_capacity(config.apps.len());
    for (index, app) in config.apps.iter().enumerate() {
        let address = match app.address {
            Some(address) => address,
            None => next_free(app.name.as_str())?,
        };
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
        let limits = app_limits(app.limits, host);
        apps.push(AppPlan {
            name: app.name.clone(),
            address,
            address6: address6(index + 1),
            mac: net::mac(stack, app.name.as_str()),
            port_link: IfName::new(format!("port{index}"))
                .expect("at most 15 bytes for any number of apps"),
            ids: ids(inside(app, host)?, app.ids)?,
            rootfs: app.rootfs.clone(),
            workdir: app.workdir.clone(),
            command: app.command.clone(),
            env: environment(app, host),
            tmpfs: with_shared_memory(&app.tmpfs, &limits),
            volumes: volumes(app, host)?,
            sockets: app.sockets.clone(),
            secrets: app.secrets.clone(),
            limits,
            publish: published,
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
            seccomp: {
                let profile = match app.ids {
                    IdCount::One => app.seccomp.clone(),
                    IdCount::Range => seccomp::over_a_range(app.seccomp.clone()),
                };
                match app.via {
                    Via::Socket => profile.without_links(),
                    _ => profile,
                }
            },
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

/// The user's own rules, and what their variables mean. Only those are defined that they use: a name that is no word of
/// nft's (an app called `ip`) harms nobody who doesn't say it.
fn extra_rules(
    file: &RulesFile,
    (sidecar, subnet): (Ipv4Addr, Ipv4Net),
    (stack, uplink): (&StackName, &UplinkPlan),
    apps: &[AppPlan],
) -> Result<ExtraRules, PlanError> {
    let set = |elements: BTreeSet<String>| {
        let elements: Vec<String> = elements.into_iter().collect();
        match elements.as_slice() {
            [one] => one.clone(),
            several => format!("{{ {} }}", several.join(", ")),
        }
    };
    let ports: BTreeSet<u16> = apps
        .iter()
        .flat_map(|app| app.publish.iter().map(|publish| publish.app_port))
        .collect();
    let addresses = apps.iter().map(|app| app.address.to_string()).collect();
    let mut all = vec![
        ("app".to_owned(), set(addresses), "every app's address"),
        (
            "sidecar".to_owned(),
            sidecar.to_string(),
            "the sidecar's address",
        ),
        (
            "subnet".to_owned(),
            subnet.trunc().to_string(),
            "the stack's subnet",
        ),
        (
            "ports".to_owned(),
            format!(
                "{{ {} }}",
                ports
                    .iter()
                    .map(u16::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            "the apps' published ports",
        ),
        (
            "uplink".to_owned(),
            format!("\"{}\"", uplink.sidecar_link),
            "the uplink's name",
        ),
        (
            "bridge".to_owned(),
            format!("\"{}\"", bridge_name(stack)),
            "the bridge's name",
        ),
    ];
    // The one app of a stack may be called `app`, and `$app` is its address either way.
    let named = apps
        .iter()
        .filter(|app| apps.len() > 1 || app.name.as_str() != "app");
    all.extend(named.map(|app| {
        (
            app.name.to_string(),
            app.address.to_string(),
            "an app's address",
        )
    }));
    all.extend(
        file.vars
            .iter()
            .map(|(name, value)| (name.clone(), value.clone(), "a variable of [vars]")),
    );
    let used = used_variables(&file.text);
    all.retain(|(name, _, _)| used.contains(name.as_str()));
    let mut defines = BTreeMap::new();
    let shown = || file.path.display().to_string();
    for (name, value, what) in all {
        if value.contains(['\n', '\r', ';', '#']) || value.is_empty() {
            return Err(PlanError::RulesValue {
                name,
                file: shown(),
                value,
            });
        }
        if let Some((_, other)) = defines.insert(name.clone(), (value, what)) {
            return Err(PlanError::RulesVariable {
                name,
                file: shown(),
                one: other,
                other: what,
            });
        }
    }
    Ok(ExtraRules {
        file: file.path.clone(),
        text: file.text.clone(),
        quoting: match file.private {
            true => crate::plan::Quoting::Private,
            false => crate::plan::Quoting::Allowed,
        },
        defines: defines
            .into_iter()
            .map(|(name, (value, _))| (name, value))
            .collect(),
    })
}

/// The names that follow a `$`, as nft's scanner takes them: an app's name may have a `-`.
fn used_variables(text: &str) -> BTreeSet<&str> {
    let mut pieces = text.split('$');
    pieces.next();
    let name = |piece: &'_ str| {
        piece
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')))
            .unwrap_or(piece.len())
    };
    pieces.map(|piece| &piece[..name(piece)]).collect()
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

/// What names in a configuration mean in its app's root.
struct Names<'a> {
    app: &'a config::App,
    accounts: Option<&'a Accounts>,
}

impl<'a> Names<'a> {
    fn of(app: &'a config::App, host: &'a Host) -> Self {
        let accounts = host.accounts.iter().find(|(root, _)| *root == app.rootfs);
        Self {
            app,
            accounts: accounts.map(|(_, accounts)| accounts),
        }
    }

    fn unknown<'n>(
        &self,
        key: &'static str,
        name: &str,
        known: impl Iterator<Item = &'n String>,
    ) -> PlanError {
        PlanError::Account {
            app: self.app.name.to_string(),
            key,
            name: name.to_owned(),
            root: self.app.rootfs.clone(),
            nearest: nearest(name, known.map(String::as_str)).map(str::to_owned),
        }
    }

    /// Every root that is made from the host's has it.
    fn is_app(&self, name: &str) -> bool {
        name == APP_NAME && self.app.rootfs == Rootfs::Host
    }

    /// A user, and its own group.
    fn user(&self, account: &Account) -> Result<Ids, PlanError> {
        let none = Accounts::default();
        let accounts = self.accounts.unwrap_or(&none);
        let (uid, gid) = match account {
            Account::Id(uid) => match accounts.user(*uid) {
                Some((_, user)) => (*uid, user.gid),
                None => (*uid, *uid),
            },
            Account::Name(name) => match accounts.users.get(name) {
                Some(user) => (user.uid, user.gid),
                None if self.is_app(name) => (APP_ID, APP_ID),
                None => return Err(self.unknown("user", name, accounts.users.keys())),
            },
        };
        Ok(Ids { uid, gid })
    }

    /// Where the user that it is told to run as is at home, as systemd and docker have it. A person of the host's is at home
    /// nowhere in it.
    fn home(&self) -> &'a str {
        const NONE: &str = "/";
        let Some(Account::Name(name)) = &self.app.user else {
            return NONE;
        };
        let user = self.accounts.and_then(|all| all.users.get(name));
        let is_own = |user: &&User| self.app.rootfs != Rootfs::Host || user.uid <= LAST_SYSTEM_ID;
        let is_path = |home: &&str| {
            home.starts_with('/') && *home != "/nonexistent" && !home.contains(char::is_control)
        };
        let home = user.filter(is_own).map(|user| user.home.as_str());
        home.filter(is_path).unwrap_or(NONE)
    }

    fn group(&self, account: &Account) -> Result<u32, PlanError> {
        let none = Accounts::default();
        let accounts = self.accounts.unwrap_or(&none);
        Ok(match account {
            Account::Id(gid) => *gid,
            Account::Name(name) => match accounts.groups.get(name) {
                Some(group) => group.gid,
                None if self.is_app(name) => APP_ID,
                None => return Err(self.unknown("group", name, accounts.groups.keys())),
            },
        })
    }
}

/// An app's volumes, with their owners' numbers.
fn volumes(app: &config::App, host: &Host) -> Result<Vec<Volume>, PlanError> {
    let names = Names::of(app, host);
    let mut volumes = app.volumes.clone();
    for volume in &mut volumes {
        let (app_name, path) = (app.name.to_string(), volume.path.clone());
        let option = match &volume.owner_name {
            Some(Account::Id(id)) => format!("owner={id}"),
            Some(Account::Name(name)) => format!("owner={name}"),
            None if volume.owners => "owners".to_owned(),
            None => continue,
        };
        if app.ids == IdCount::One {
            return Err(PlanError::OwnerOfOne {
                app: app_name,
                path,
                option,
            });
        }
        if host.mode == Mode::Rootless {
            return Err(PlanError::OwnersOfUser {
                app: app_name,
                path,
                option,
            });
        }
        let Some(name) = volume.owner_name.take() else {
            continue;
        };
        let Ids { uid, gid } = names.user(&name)?;
        if uid >= RANGE || gid >= RANGE {
            return Err(PlanError::OwnerBeyond {
                app: app_name,
                path,
                owner: uid.max(gid),
            });
        }
        volume.owner = Some((uid, gid));
    }
    Ok(volumes)
}

/// Who an app runs as, within.
fn inside(app: &config::App, host: &Host) -> Result<Ids, PlanError> {
    let names = Names::of(app, host);
    let Ids { uid, gid: own } = match &app.user {
        None if app.ids == IdCount::Range => Ids::ROOT,
        None => Ids {
            uid: APP_ID,
            gid: APP_ID,
        },
        Some(account) => names.user(account)?,
    };
    let gid = match &app.group {
        None => own,
        Some(account) => names.group(account)?,
    };
    let is_root = (uid, gid) == (0, 0);
    if app.ids == IdCount::Range && !is_root {
        return Err(PlanError::RangeWithUser {
            app: app.name.to_string(),
        });
    }
    if app.ids == IdCount::Range && host.mode == Mode::Rootless {
        let nothing = || ("an ordinary user has one id".to_owned(), String::new());
        if let Err((why, hint)) = host
            .subordinate
            .clone()
            .ok_or_else(nothing)
            .and_then(|found| found)
        {
            return Err(PlanError::NoRange {
                app: app.name.to_string(),
                why,
                hint,
            });
        }
    }
    Ok(Ids { uid, gid })
}

fn slot_of(ids: &IdMap) -> u32 {
    ids.host_id / IDS_PER_STACK
}

/// The ranges of host ids that a stack has: one for all its parts, and one for each app with a range of its own.
fn slots(plan: &Neighbour) -> Vec<u32> {
    let ranges = plan.apps.iter().map(|app| &app.ids);
    let ranges = ranges.filter(|ids| ids.is_range());
    std::iter::once(&plan.sidecar)
        .chain(ranges)
        .map(slot_of)
        .collect()
}

/// The first id of a range that nobody has: the same each time, as long as nobody does.
fn free_slot(stack: &StackName, taken: &[u32]) -> Option<u32> {
    let start = (net::fnv1a(&[stack.as_str()]) % u64::from(ID_SLOTS)) as u32;
    (0..ID_SLOTS)
        .map(|offset| FIRST_ID / IDS_PER_STACK + (start + offset) % ID_SLOTS)
        .find(|slot| !taken.contains(slot))
        .map(|slot| slot * IDS_PER_STACK)
}

/// A source of id maps for this stack: each call is for a part that runs as these inside.
fn id_maps(
    stack: &StackName,
    host: &Host,
) -> Result<impl FnMut(Ids, IdCount) -> Result<IdMap, PlanError>, PlanError> {
    let mut taken: Vec<u32> = host.others.iter().flat_map(slots).collect();
    let mut slot = move || {
        let first = free_slot(stack, &taken).ok_or(PlanError::Ids { slots: ID_SLOTS })?;
        taken.push(first / IDS_PER_STACK);
        Ok(first)
    };
    let mut next = match host.mode {
        // One id is mapped, and every part is it.
        Mode::Rootless => None,
        Mode::Root => Some(slot()?),
    };
    Ok(move |inside: Ids, ids| {
        let (host_id, count) = match (&mut next, ids) {
            // Its 0 is the user.
            (None, IdCount::Range) => (0, RANGE),
            (None, IdCount::One) => (0, 1),
            (Some(_), IdCount::Range) => (slot()?, RANGE),
            (Some(next), IdCount::One) => {
                let (host_id, count) = (*next, if inside == Ids::ROOT { 1 } else { 2 });
                *next += count;
                (host_id, count)
            }
        };
        Ok(IdMap {
            host_id,
            count,
            uid: inside.uid,
            gid: inside.gid,
        })
    })
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

/// The host's namespace, if it forwards something for the stack; else the relay's own, where a dialled connection takes no
/// port of the host's, and shows the sidecar who the client is. To show that to an app, and for egress by relay, it has to
/// be the relay's. Where a stack that runs has it stays.
fn uplink_end(config: &Config, host: &Host, running: Option<&Plan>) -> UplinkEnd {
    if let Some(UplinkEnd::Relay) = running.map(|plan| plan.uplink.ends_at) {
        // What it is needed for may be gone; it goes on working.
        return UplinkEnd::Relay;
    }
    let any = |is: &dyn Fn(&config::App, Transport) -> bool| {
        config.apps.iter().any(|app| {
            app.publish.iter().any(|publish| {
                let (via, _) = transport(publish, app, UplinkEnd::Host, host);
                !publish.address.is_loopback() && is(app, via)
            })
        })
    };
    let relayed_as_client =
        any(&|app, via| app.source == Source::Client && via == Transport::Relay);
    let decided = || egress_way(config, host, UplinkEnd::Host).map(|(via, _)| via);
    let before = running.and_then(|plan| plan.egress.as_ref());
    let egress = before.map(|egress| egress.via).or_else(decided);
    if relayed_as_client || egress == Some(EgressVia::Relay) {
        return UplinkEnd::Relay;
    }
    let forwards = egress == Some(EgressVia::Nat) || any(&|_, via| via == Transport::Dnat);
    if forwards || running.is_some() {
        UplinkEnd::Host
    } else {
        UplinkEnd::Relay
    }
}

/// How what apps connect to leaves this machine, and why so; `None` if none of them connects to anything.
fn egress_way(config: &Config, host: &Host, ends_at: UplinkEnd) -> Option<(EgressVia, String)> {
    let mut granted = config.apps.iter().flat_map(|app| &app.egress).peekable();
    granted.peek()?;
    let by_relay = |why: &str| Some((EgressVia::Relay, why.to_owned()));
    if host.mode == Mode::Rootless {
        return by_relay("an ordinary user can't have the host forward");
    }
    let wants = |app: &config::App| app.via == Via::Relay && !app.egress.is_empty();
    if config.apps.iter().any(wants) {
        return by_relay("as configured");
    }
    // To the host itself nothing needs to be forwarded.
    let is_host = |egress: &config::Egress| egress.is_single() && host.has(egress.to.addr());
    let mut beyond = granted.filter(|egress| !is_host(egress)).peekable();
    let needs_nothing = beyond.peek().is_none();
    let closed = beyond.find_map(|egress| match host.forwards(egress.to.addr()) {
        Forwarding::Closed { why } => Some(why),
        Forwarding::Open => None,
    });
    match closed {
        Some(why) => by_relay(why),
        None if ends_at == UplinkEnd::Relay => by_relay("the uplink ends at the relay"),
        None => {
            let why = match needs_nothing {
                true => "to the host itself nothing needs to be forwarded",
                false => "the host forwards, and nothing of another owner drops it",
            };
            Some((EgressVia::Nat, why.to_owned()))
        }
    }
}

/// How a published address gets to the sidecar, and why so.
fn transport(
    publish: &config::Publish,
    app: &config::App,
    ends_at: UplinkEnd,
    host: &Host,
) -> (Transport, String) {
    let address = publish.address;
    if address.is_loopback() {
        return (Transport::Relay, "loopback is always relayed".to_owned());
    }
    let forwarding = host.forwards(address);
    let is_handed = |port| {
        let outside = (SocketAddr::new(address, port), publish.protocol);
        host.handed.contains(&outside)
    };
    // An app that is handed its sockets is behind the sidecar's rules as well; how a client gets there is the host's affair.
    let chosen = matches!(app.via, Via::Auto | Via::Socket);
    if chosen && publish.ports().any(|(port, _)| is_handed(port)) {
        let why = "a socket unit has it, and waits there when the stack is gone";
        return (Transport::Relay, why.to_owned());
    }
    match (app.via, forwarding) {
        (Via::Relay, _) => (Transport::Relay, "as configured".to_owned()),
        (Via::Dnat, _) => (Transport::Dnat, "as configured".to_owned()),
        (Via::Auto | Via::Socket, Forwarding::Open) if ends_at == UplinkEnd::Relay => {
            (Transport::Relay, "the uplink ends at the relay".to_owned())
        }
        (Via::Auto | Via::Socket, Forwarding::Open) => (
            Transport::Dnat,
            "the host forwards, and nothing of another owner drops it".to_owned(),
        ),
        (Via::Auto | Via::Socket, Forwarding::Closed { why }) => (Transport::Relay, why.clone()),
    }
}

/// An app's address and port.
type Target = (Ipv4Addr, u16);

/// The ports of the sidecar's uplink address: the host's port where it is free, so that a capture reads naturally.
struct EntryPorts {
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
    fn new() -> Self {
        Self {
            used: BTreeMap::new(),
            by_target: BTreeMap::new(),
            spare: Box::new((61_000..=u16::MAX).chain((1..61_000).rev())),
            before: HashMap::new(),
            behind: HashMap::new(),
        }
    }

    fn of(running: &Plan) -> Self {
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
    fn take(&mut self, listen: SocketAddr, protocol: Protocol, target: Target) -> u16 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_has_its_stacks_name_unless_that_is_taken() {
        for (stack, bridge) in [
            ("customerA", "customerA"),
            ("a-stack-with-a-long-name", "a-stack-with-a-"),
            ("lo", "br-lo"),
            ("uplink", "br-uplink"),
            ("port0", "br-port0"),
            ("port123456789012", "br-port12345678"),
            ("portal", "portal"),
            ("all", "br-all"),
            ("default", "br-default"),
        ] {
            let stack = StackName::new(stack).unwrap();
            assert_eq!(bridge_name(&stack).as_str(), bridge);
        }
    }
}
