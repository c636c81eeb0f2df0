//! What lies between the plan of a running stack and the one that it is to have. Pure.
//!
//! Whatever is in a plan is in one of three lists: what changes while everything runs, what a part is made of and so starts
//! it again, and what can't change without taking the stack down. What is in no list can't: a key that somebody adds to
//! the plan is refused here until somebody has thought about it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::TrafficLog;
use crate::confine;
use crate::plan::{AppPlan, Plan};

/// Of an app: what is rules, sockets, or the supervisor's own business.
const LIVE: [&str; 4] = ["publish", "allow", "rate", "restart"];
/// Of an app: what its process is made of.
const MADE_OF: [&str; 8] = [
    "rootfs", "command", "env", "tmpfs", "volumes", "limits", "seccomp", "listen",
];
/// Of the stack: what the sidecar's process is made of.
const SIDECAR_MADE_OF: [&str; 2] = ["seal", "log"];
/// What says where a plan came from, and what follows from the rest.
const NO_CHANGE: [&str; 4] = ["origins", "config", "closing", "address6"];

/// A part that has to be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartChange {
    /// Its name.
    pub part: String,
    /// The keys that have changed.
    pub because: Vec<String>,
}

/// What there is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The keys that change while everything runs.
    pub live: Vec<String>,
    /// The parts to start again.
    pub restart: Vec<PartChange>,
    /// Apps that join.
    pub added: Vec<String>,
    /// Apps that leave.
    pub removed: Vec<String>,
    /// Ports of the host that are published now.
    pub opened: Vec<String>,
    /// Ports of the host that are no longer.
    pub closed: Vec<String>,
}

impl Change {
    /// Whether both plans are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
            && self.restart.is_empty()
            && self.added.is_empty()
            && self.removed.is_empty()
    }
}

/// The keys that can't change while the stack runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} can't be changed while the stack runs", .keys.join(", "))]
pub struct NotLive {
    /// By the names that the configuration has for them.
    pub keys: Vec<String>,
}

/// What changes from `old` to `new`, which should be made by [`crate::resolve::again`].
///
/// # Errors
/// [`NotLive`] names every key that can't be changed.
pub fn between(old: &Plan, new: &Plan) -> Result<Change, NotLive> {
    let mut change = Change::default();
    let mut refused = vec![];
    let mut sidecar = vec![];
    for key in differing(&object(old), &object(new)) {
        match key.as_str() {
            "apps" => {}
            key if NO_CHANGE.contains(&key) => {}
            // By the host, it comes of the apps' own.
            "egress" if old.egress_relay().is_none() && new.egress_relay().is_none() => {}
            "egress" => refused.push("app.egress (by relay)".to_owned()),
            key if SIDECAR_MADE_OF.contains(&key) => sidecar.push(format!("sidecar.{key}")),
            "bridge" => {
                if old.bridge.subnet != new.bridge.subnet {
                    refused.push("network.subnet".to_owned());
                }
                if old.bridge.address != new.bridge.address {
                    refused.push("sidecar.address".to_owned());
                }
                if old.bridge.prefix6 != new.bridge.prefix6 {
                    refused.push("network.ipv6".to_owned());
                }
                if refused.is_empty() {
                    refused.push("name".to_owned());
                }
            }
            // Its addresses follow from the prefix, of which `bridge` tells.
            "uplink" if old.bridge.prefix6 != new.bridge.prefix6 => {}
            "uplink" if old.egress_relay().is_none() && new.egress_relay().is_some() => {}
            "uplink" => refused.push(
                "app.publish (by the relay, to an app that sees its clients, where no port is so yet)"
                    .to_owned(),
            ),
            "rules" => change.live.push("sidecar.rules".to_owned()),
            "stack" => refused.push("name".to_owned()),
            other => refused.push(other.to_owned()),
        }
    }
    let of_one = old.apps.len() == 1 && old.apps[0].name.as_str() == "app";
    for app in &old.apps {
        let key = |key: &str| match of_one {
            true => format!("app.{key}"),
            false => format!("app.{}.{key}", app.name),
        };
        match new.app(&app.name) {
            None => {
                change.removed.push(app.name.to_string());
                if new.log > TrafficLog::Off {
                    sidecar.push(format!("app.{}", app.name));
                }
            }
            Some(after) => app_change(app, after, &key, &mut change, &mut refused),
        }
    }
    for app in &new.apps {
        if old.app(&app.name).is_none() {
            change.added.push(app.name.to_string());
            // Whose the traffic is it knows from its start.
            if new.log > TrafficLog::Off {
                sidecar.push(format!("app.{}", app.name));
            }
        }
    }
    // Carrier and dialer are made with all that is granted.
    let granted = |plan: &Plan| plan.granted().copied().collect::<BTreeSet<_>>();
    let by_relay = old.egress_relay().is_some() && new.egress_relay().is_some();
    if by_relay && granted(old) != granted(new) {
        refused.push("app.egress (by relay)".to_owned());
    }
    if !sidecar.is_empty() {
        change.restart.push(PartChange {
            part: "sidecar".to_owned(),
            because: sidecar,
        });
    }
    let ports = |plan: &Plan| -> BTreeSet<String> {
        plan.published()
            .map(|(_, publish)| format!("{}/{}", publish.listen, publish.protocol))
            .collect()
    };
    let (before, after) = (ports(old), ports(new));
    change.opened = after.difference(&before).cloned().collect();
    change.closed = before.difference(&after).cloned().collect();
    if refused.is_empty() {
        Ok(change)
    } else {
        Err(NotLive { keys: refused })
    }
}

fn app_change(
    old: &AppPlan,
    new: &AppPlan,
    key: &dyn Fn(&str) -> String,
    change: &mut Change,
    refused: &mut Vec<String>,
) {
    let mut because = vec![];
    let (had, has) = (confine::App::of(old), confine::App::of(new));
    let more = |had: &[u16], has: &[u16]| has.iter().any(|port| !had.contains(port));
    // Landlock gives nothing back to a process that is there.
    if more(&had.bind, &has.bind) {
        because.push(key("publish"));
    }
    if more(&had.connect, &has.connect) && old.egress != new.egress {
        because.push(key("egress"));
    }
    // Routes and the list of resolvers are made once.
    let same_way = old.routes() == new.routes() && old.resolvers().eq(new.resolvers());
    for name in differing(&object(old), &object(new)) {
        match name.as_str() {
            name if NO_CHANGE.contains(&name) => {}
            "egress" if !same_way => {
                refused.push(format!("{} (to other addresses)", key("egress")))
            }
            name if because.contains(&key(name)) => {}
            "egress" => change.live.push(key("egress")),
            name if LIVE.contains(&name) => change.live.push(key(name)),
            "env" => {
                let mut names: BTreeSet<&String> = old.env.keys().collect();
                names.extend(new.env.keys());
                names.retain(|name| old.env.get(*name) != new.env.get(*name));
                because.extend(names.iter().map(|name| key(&format!("env.{name}"))));
            }
            name if MADE_OF.contains(&name) => because.push(key(name)),
            other => refused.push(key(other)),
        }
    }
    if !because.is_empty() {
        change.restart.push(PartChange {
            part: old.name.to_string(),
            because,
        });
    }
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// The keys whose values differ.
fn differing(one: &Map<String, Value>, other: &Map<String, Value>) -> BTreeSet<String> {
    one.keys()
        .chain(other.keys())
        .filter(|key| one.get(*key) != other.get(*key))
        .cloned()
        .collect()
}
