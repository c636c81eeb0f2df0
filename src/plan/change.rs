//! What lies between the plan of a running stack and the one that it is to have. Pure.
//!
//! Whatever is in a plan is in one of three lists: what changes while everything runs, what a part is made of and so starts
//! it again, and what can't change without taking the stack down. What is in no list can't: a key that somebody adds to
//! the plan is refused here until somebody has thought about it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Connect, Egress, Protocol, Source, TrafficLog};
use crate::confine::landlock;
use crate::names::PartName;
use crate::plan::{AppPlan, Plan};

/// Of an app: what is rules, routes, sockets, or the supervisor's own business.
const LIVE: [&str; 13] = [
    "publish",
    "allow",
    "rate",
    "restart",
    "restart_limit",
    "stop",
    "replace",
    "egress",
    "connect",
    "source",
    "start_timeout",
    "after",
    "health",
];
/// Of an app: what its process is made of.
const MADE_OF: [&str; 13] = [
    "rootfs", "command", "env", "tmpfs", "volumes", "sockets", "secrets", "limits", "seccomp",
    "listen", "job", "forks", "workdir",
];
/// Of the stack: what the sidecar's process is made of.
const SIDECAR_MADE_OF: [&str; 2] = ["seal", "log"];
/// What says where a plan came from, and what follows from the rest.
const NO_CHANGE: [&str; 7] = [
    "origins",
    "config",
    "closing",
    "address6",
    "serves",
    "credentials",
    "spare",
];

const ANOTHER_STACK: &str = "a stack of another name is another stack";
const BY_RELAY: &str = "the processes that carry it are made with a socket for each port that is granted, and all that goes through them would end with them";
/// Of a key that is in no list.
const UNKNOWN: &str = "what depends on it is made once, when the stack is brought up";

/// A part that has to be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartChange {
    /// Its name.
    pub part: String,
    /// The keys that have changed.
    pub because: Vec<String>,
    /// Why that can't be done while it runs, where it isn't plain that the part is made of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// Whether another of it takes its place without a gap ([`Plan::can_roll`]); else it ends before it starts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rolling: bool,
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

/// A key that can't change while the stack runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// By the name that the configuration has for it.
    pub key: String,
    /// Why not.
    pub why: &'static str,
    /// What can be done instead, if something can.
    pub instead: Option<&'static str>,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} can't be changed while the stack runs: {}",
            self.key, self.why
        )
    }
}

/// The keys that can't change while the stack runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .keys.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct NotLive {
    /// Each with its reason.
    pub keys: Vec<Refused>,
}

impl NotLive {
    /// What can be done instead, if there is something for each.
    #[must_use]
    pub fn instead(&self) -> Option<String> {
        let all: Option<BTreeSet<&str>> = self.keys.iter().map(|key| key.instead).collect();
        let all: Vec<&str> = all?.into_iter().collect();
        Some(all.join("; "))
    }
}

fn refusal(key: impl Into<String>, why: &'static str) -> Refused {
    Refused {
        key: key.into(),
        why,
        instead: None,
    }
}

/// What changes from `old` to `new`, which should be made by [`crate::plan::resolve::again`].
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
            "egress" => refused.push(refusal("app.egress (by relay)", BY_RELAY)),
            key if SIDECAR_MADE_OF.contains(&key) => sidecar.push(format!("sidecar.{key}")),
            "bridge" => {
                if old.bridge.subnet != new.bridge.subnet {
                    refused.push(refusal(
                        "network.subnet",
                        "every address of the stack is of it, and so is one end of every open connection",
                    ));
                }
                if old.bridge.address != new.bridge.address {
                    refused.push(refusal(
                        "sidecar.address",
                        "to the apps it is the other end of every open connection, and their one way out",
                    ));
                }
                if old.bridge.prefix6 != new.bridge.prefix6 {
                    refused.push(refusal(
                        "network.ipv6",
                        "a network namespace is made with IPv6 or without, and each of its addresses is one end of open connections",
                    ));
                }
                if refused.is_empty() {
                    refused.push(refusal("name", ANOTHER_STACK));
                }
            }
            // Its addresses follow from the prefix, of which `bridge` tells.
            "uplink" if old.bridge.prefix6 != new.bridge.prefix6 => {}
            "uplink" if old.egress_relay().is_none() && new.egress_relay().is_some() => {}
            "uplink" => refused.push(Refused {
                key: "source = \"client\" by the relay".to_owned(),
                why: "the uplink would have to end at the relay and not at the host, and every open connection goes through it",
                instead: Some(
                    "via = \"dnat\" on a host that forwards, which shows an app its clients without that",
                ),
            }),
            "rules" => change.live.push("sidecar.rules".to_owned()),
            "record" => change.live.push("log".to_owned()),
            "stack" => refused.push(refusal("name", ANOTHER_STACK)),
            "mode" | "owner" | "state_dir" => refused.push(refusal(
                key,
                "who runs a stack is who brought it up",
            )),
            other => refused.push(refusal(other, UNKNOWN)),
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
            Some(after) => {
                let (because, why) = app_change(app, after, &key, &mut change, &mut refused);
                if !because.is_empty() {
                    change.restart.push(PartChange {
                        part: app.name.to_string(),
                        because,
                        why,
                        rolling: old.can_roll(app).is_ok() && new.can_roll(after).is_ok(),
                    });
                }
            }
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
        refused.push(refusal("app.egress (by relay)", BY_RELAY));
    }
    if !sidecar.is_empty() {
        change.restart.push(PartChange {
            part: "sidecar".to_owned(),
            because: sidecar,
            why: vec![],
            rolling: false,
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

/// Which keys of an app have changed that it has to start again for, and why where that isn't plain. What needs no start, and
/// what can't be had, is noted.
fn app_change(
    old: &AppPlan,
    new: &AppPlan,
    key: &dyn Fn(&str) -> String,
    change: &mut Change,
    refused: &mut Vec<Refused>,
) -> (Vec<String>, Vec<String>) {
    let (mut because, mut why) = (vec![], vec![]);
    let (had, has) = (landlock::App::at_least(old), landlock::App::at_least(new));
    let bind = has.bind.iter().filter(|port| !had.bind.contains(port));
    let bind: Vec<u16> = bind.copied().collect();
    if !bind.is_empty() {
        let published = |port: &u16| new.publish.iter().any(|publish| publish.app_port == *port);
        if bind.iter().any(published) {
            because.push(key("publish"));
        }
        let serves = |from: &&Connect| {
            let ports = from.first_port..=from.last_port;
            bind.iter()
                .any(|port| ports.contains(port) && !published(port))
        };
        let from = new.serves.iter().filter(serves);
        because.extend(from.map(|from| format!("app.{}.connect", from.app)));
        if because.is_empty() {
            because.push(key("listen"));
        }
        let bind = named(&bind);
        why.push(format!(
            "a Landlock domain can't be widened: it binds {bind}"
        ));
    }
    if had.connect.is_some() != has.connect.is_some() {
        because.push(key("egress"));
        why.push(
            "a Landlock domain is for good, and keeps an app that has no egress from connecting"
                .to_owned(),
        );
    }
    if let (Some(had), Some(has)) = (&had.connect, &has.connect)
        && old.connect != new.connect
    {
        let more: Vec<u16> = has
            .iter()
            .filter(|port| !had.contains(port))
            .copied()
            .collect();
        if !more.is_empty() {
            because.push(key("connect"));
            let more = named(&more);
            why.push(format!(
                "a Landlock domain can't be widened: it connects to {more}"
            ));
        }
    }
    let names = |app: &AppPlan| -> BTreeSet<PartName> {
        app.connect.iter().map(|to| to.app.clone()).collect()
    };
    if !names(new).is_subset(&names(old)) {
        because.push(key("connect"));
        why.push("its /etc/hosts is made when it starts".to_owned());
    }
    if !old.resolvers().eq(new.resolvers()) {
        because.push(key("egress"));
        why.push("its /etc/resolv.conf is made when it starts".to_owned());
    }
    let by_loopback = |app: &AppPlan| app.source == Source::Localhost;
    if by_loopback(old) != by_loopback(new) {
        because.push(key("source"));
        why.push(
            "its open connections are with the address at which it sees their clients".to_owned(),
        );
    } else if old.source == Source::Client && new.source == Source::Sidecar {
        because.push(key("source"));
        why.push("its open connections are with clients to whom it has no route then".to_owned());
    }
    if old.via_socket != new.via_socket {
        refused.push(Refused {
            key: key("via"),
            why: "an app's network namespace is made with links or without",
            instead: Some(
                "give the app another name too: then one leaves and the other joins, live",
            ),
        });
    } else if old.handed() != new.handed() {
        because.push(key("publish"));
        why.push("it is handed its sockets when it starts".to_owned());
    }
    let answers = |app: &AppPlan| [Protocol::Tcp, Protocol::Udp].map(|of| app.answers_on(of));
    if by_loopback(old) && by_loopback(new) && answers(old) != answers(new) {
        let published = |app: &AppPlan| -> BTreeSet<_> {
            let all = app.publish.iter();
            all.map(|at| (at.app_port, at.protocol)).collect()
        };
        because.push(match published(old) != published(new) {
            true => key("publish"),
            false => "app.connect".to_owned(),
        });
        why.push(
            "the rules that take its clients to its loopback are loaded when it starts".to_owned(),
        );
    }
    because.dedup();
    for name in differing(&object(old), &object(new)) {
        match name.as_str() {
            name if NO_CHANGE.contains(&name) => {}
            name if because.contains(&key(name)) => {}
            "via_socket" => {}
            "address" => refused.push(Refused {
                key: key(name.as_str()),
                why: "it is one end of the app's open connections, and whom its neighbours know",
                instead: Some(
                    "give the app another name too: then one leaves and the other joins, live",
                ),
            }),
            "ids" => refused.push(Refused {
                key: match () {
                    () if old.ids.is_range() != new.ids.is_range() => key("ids"),
                    () if old.ids.uid != new.ids.uid => key("user"),
                    () => key("group"),
                },
                why: "who is who within a user namespace is written down once, and its links and connections are in one that belongs to it",
                instead: Some(
                    "give the app another name too: then one leaves and the other joins, live",
                ),
            }),
            name if LIVE.contains(&name) => change.live.push(key(name)),
            "env" => {
                let mut names: BTreeSet<&String> = old.env.keys().collect();
                names.extend(new.env.keys());
                names.retain(|name| old.env.get(*name) != new.env.get(*name));
                because.extend(names.iter().map(|name| key(&format!("env.{name}"))));
            }
            name if MADE_OF.contains(&name) => because.push(key(name)),
            other => refused.push(refusal(key(other), UNKNOWN)),
        }
    }
    (because, why)
}

/// Ports, in words.
fn named(ports: &[u16]) -> String {
    match ports {
        [] => "no TCP port".to_owned(),
        [one] => format!("TCP port {one}"),
        [one, rest @ ..] => format!("TCP port {one} and {} more", rest.len()),
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

/// The new plan with the apps that leave, as long as it isn't confirmed: nobody gets in to them any more, and who was in
/// stays. Those that either plan has keep their places.
#[must_use]
pub fn held(old: &Plan, new: Plan) -> Plan {
    let mut held = new;
    let mut apps = vec![];
    for before in &old.apps {
        let place = held.apps.iter().position(|app| app.name == before.name);
        apps.push(match place {
            Some(place) => held.apps.remove(place),
            None => {
                let closing = before.reachable().cloned();
                let closing = closing.filter(|publish| publish.protocol == Protocol::Tcp);
                AppPlan {
                    closing: closing.collect(),
                    publish: vec![],
                    ..before.clone()
                }
            }
        });
    }
    apps.append(&mut held.apps);
    Plan { apps, ..held }
}

/// The old plan with what the new one grants besides, and the apps that join, to whom nobody comes yet.
#[must_use]
pub fn wide(old: &Plan, new: &Plan) -> Plan {
    let mut wide = old.clone();
    wide.egress = wide.egress.or_else(|| new.egress.clone());
    for app in &new.apps {
        match wide.apps.iter_mut().find(|known| known.name == app.name) {
            Some(known) => also_grant(known, app),
            None => wide.apps.push(AppPlan {
                publish: vec![],
                ..app.clone()
            }),
        }
    }
    wide.derive_serves();
    wide
}

fn also_grant(app: &mut AppPlan, other: &AppPlan) {
    let new = other.egress.iter();
    let new: Vec<Egress> = new
        .filter(|egress| !app.egress.contains(egress))
        .copied()
        .collect();
    app.egress.extend(new);
    let links = other.connect.iter();
    let new: Vec<_> = links
        .filter(|link| !app.connect.contains(link))
        .cloned()
        .collect();
    app.connect.extend(new);
}

/// The new plan with every port and every grant that either has.
#[must_use]
pub fn both(old: &Plan, new: &Plan) -> Plan {
    let mut both = new.clone();
    let known: Vec<_> = new
        .published()
        .map(|(_, publish)| publish.outside())
        .collect();
    for app in &mut both.apps {
        if let Some(before) = old.app(&app.name) {
            also_grant(app, before);
        }
        let before = old.app(&app.name).map(|app| app.publish.as_slice());
        let closing = before.unwrap_or_default().iter();
        app.publish
            .extend(closing.filter(|p| !known.contains(&p.outside())).cloned());
    }
    both
}
