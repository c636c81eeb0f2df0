//! What the configuration means for a stack that runs: what nobody has configured stays as it is, and so does what a
//! connection or a process has hold of.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::{Config, Protocol, Via};
use crate::host::Host;
use crate::names::{IfName, PartName};
use crate::net;
use crate::plan::neighbour::Neighbour;
use crate::plan::{AppPlan, IdMap, Mode, Plan, PublishPlan, SUPERVISOR_ID, UplinkPlan};

use super::entries::EntryPorts;
use super::ids::{IDS_PER_STACK, free_slot, slot_of, slots};
use super::ways::uplink_end;
use super::{PlanError, decide, spares};

/// As [`plan`](super::plan), for a stack that runs: what is not configured stays what was chosen when it was brought up, and what no
/// configuration can say (names, ids, the uplink) is `running`'s.
///
/// # Errors
/// As [`plan`](super::plan).
pub fn again(config: &Config, host: &Host, running: &Plan) -> Result<Plan, PlanError> {
    let (config, kept) = with_kept_addresses(config, running);
    let ends_at = uplink_end(&config, host, Some(running));
    let away = running.apps.iter().filter(|app| app.away);
    let away: Vec<Ipv4Addr> = away.map(|app| app.address).collect();
    let mut plan = decide(&config, host, EntryPorts::of(running), ends_at, &away)?;
    for key in kept {
        if let Some(origin) = running.origins.get(&key) {
            plan.origins.insert(key, origin.clone());
        }
    }
    plan.uplink = UplinkPlan {
        ends_at,
        ..running.uplink.clone()
    };
    keep_of_the_stack(&mut plan, &config, running);
    let same_prefix = plan.bridge.prefix6 == running.bridge.prefix6;
    let mut new = vec![];
    for (app, configured) in plan.apps.iter_mut().zip(&config.apps) {
        debug_assert_eq!(app.name, configured.name, "in the file's order");
        match running.app(&app.name) {
            Some(before) => keep_of_an_app(app, before, configured.via, same_prefix),
            None => new.push(app.name.clone()),
        }
    }
    for (index, name) in new.iter().enumerate() {
        join(name, &new[..index], &mut plan, running, &host.others);
    }
    // The order of a file means nothing to a stack that runs.
    spares(&mut plan, Some(running));
    plan.seat_as(running);
    let place = |app: &AppPlan| {
        let mut before = running.apps.iter();
        before.position(|before| before.name == app.name)
    };
    plan.apps
        .sort_by_key(|app| place(app).unwrap_or(usize::MAX));
    Ok(plan)
}

/// The configuration with the addresses of the stack that runs where it says none, and the keys that are so.
fn with_kept_addresses(config: &Config, running: &Plan) -> (Config, Vec<String>) {
    let mut config = config.clone();
    let mut kept = vec![];
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
            kept.push(format!("{}.address", app.name));
        }
    }
    (config, kept)
}

/// What is the whole stack's and stays.
fn keep_of_the_stack(plan: &mut Plan, config: &Config, running: &Plan) {
    plan.run.clone_from(&running.run);
    plan.cgroup.clone_from(&running.cgroup);
    (plan.sidecar, plan.relay) = (running.sidecar, running.relay);
    // They are the service's.
    if running.credentials.is_some() {
        plan.credentials.clone_from(&running.credentials);
    }
    // Who asks may have another home than who brought it up.
    if config.record.dir.is_none() && !running.origins.contains_key("log.dir") {
        plan.record.dir.clone_from(&running.record.dir);
    }
    let six = |end| plan.bridge.prefix6.map(|_| net::uplink6(end));
    plan.uplink.host_address6 = six(running.uplink.host_address);
    plan.uplink.sidecar_address6 = six(running.uplink.sidecar_address);
    // What was decided for the host as it was then works still.
    if let (Some(egress), Some(before)) = (&mut plan.egress, &running.egress) {
        egress.clone_from(before);
    }
}

/// What an app that was there before keeps; `via` is what the file says now, and `same_prefix` whether the stack has the
/// IPv6 addresses that it had.
fn keep_of_an_app(app: &mut AppPlan, before: &AppPlan, via: Via, same_prefix: bool) {
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
        let mut same = before.publish.iter();
        let same = same.find(|other| other.outside() == publish.outside());
        // What `auto` came to may have changed with the host; it works all the same.
        if let (Some(same), Via::Auto | Via::Socket) = (same, via) {
            publish.via = same.via;
            publish.why.clone_from(&same.why);
        }
    }
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
    let open: Vec<_> = app.publish.iter().map(way).collect();
    // A flow of UDP has no end that it could live on to.
    app.closing = before
        .reachable()
        .filter(|publish| publish.protocol == Protocol::Tcp)
        .filter(|publish| publish.listen.is_ipv4() || same_prefix)
        .filter(|publish| !open.contains(&way(publish)))
        .cloned()
        .collect();
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
