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
    let mut found = Found::default();
    found.stack(old, new);
    found.apps(old, new);
    // Carrier and dialer are made with all that is granted.
    let granted = |plan: &Plan| plan.granted().copied().collect::<BTreeSet<_>>();
    let by_relay = old.egress_relay().is_some() && new.egress_relay().is_some();
    if by_relay && granted(old) != granted(new) {
        found
            .refused
            .push(refusal("app.egress (by relay)", BY_RELAY));
    }
    let Found {
        mut change,
        refused,
        sidecar,
    } = found;
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

/// What was found so far.
#[derive(Default)]
struct Found {
    change: Change,
    /// What can't be had.
    refused: Vec<Refused>,
    /// The keys that the sidecar has to start again for.
    sidecar: Vec<String>,
}

impl Found {
    /// Looks at what is the stack's own.
    fn stack(&mut self, old: &Plan, new: &Plan) {
        for key in differing(&object(old), &object(new)) {
            match key.as_str() {
                "apps" => {}
                key if NO_CHANGE.contains(&key) => {}
                // By the host, it comes of the apps' own.
                "egress" if old.egress_relay().is_none() && new.egress_relay().is_none() => {}
                "egress" => self.refused.push(refusal("app.egress (by relay)", BY_RELAY)),
                key if SIDECAR_MADE_OF.contains(&key) => self.sidecar.push(format!("sidecar.{key}")),
                "bridge" => self.bridge(old, new),
                // Its addresses follow from the prefix, of which `bridge` tells.
                "uplink" if old.bridge.prefix6 != new.bridge.prefix6 => {}
                "uplink" if old.egress_relay().is_none() && new.egress_relay().is_some() => {}
                "uplink" => self.refused.push(Refused {
                    key: "source = \"client\" by the relay".to_owned(),
                    why: "the uplink would have to end at the relay and not at the host, and every open connection goes through it",
                    instead: Some(
                        "via = \"dnat\" on a host that forwards, which shows an app its clients without that",
                    ),
                }),
                "rules" => self.change.live.push("sidecar.rules".to_owned()),
                "record" => self.change.live.push("log".to_owned()),
                "stack" => self.refused.push(refusal("name", ANOTHER_STACK)),
                "mode" | "owner" | "state_dir" => self.refused.push(refusal(
                    key,
                    "who runs a stack is who brought it up",
                )),
                other => self.refused.push(refusal(other, UNKNOWN)),
            }
        }
    }

    /// Looks at the network of the stack.
    fn bridge(&mut self, old: &Plan, new: &Plan) {
        let refused = &mut self.refused;
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

    /// Looks at the apps: those that stay, leave and join.
    fn apps(&mut self, old: &Plan, new: &Plan) {
        let of_one = old.apps.len() == 1 && old.apps[0].name.as_str() == "app";
        for before in &old.apps {
            let Some(after) = new.app(&before.name) else {
                self.change.removed.push(before.name.to_string());
                self.traffic_of(before, new);
                continue;
            };
            let of_app = OfApp {
                section: match of_one {
                    true => "app".to_owned(),
                    false => format!("app.{}", before.name),
                },
                old: before,
                new: after,
                because: vec![],
                why: vec![],
            };
            let (because, why) = of_app.look(self);
            if !because.is_empty() {
                self.change.restart.push(PartChange {
                    part: before.name.to_string(),
                    because,
                    why,
                    rolling: old.can_roll(before).is_ok() && new.can_roll(after).is_ok(),
                });
            }
        }
        for app in &new.apps {
            if old.app(&app.name).is_none() {
                self.change.added.push(app.name.to_string());
                self.traffic_of(app, new);
            }
        }
    }

    /// Whose the traffic is the sidecar knows from its start.
    fn traffic_of(&mut self, app: &AppPlan, new: &Plan) {
        if new.log > TrafficLog::Off {
            self.sidecar.push(format!("app.{}", app.name));
        }
    }
}

/// What changes of an app that stays.
struct OfApp<'p> {
    /// Where the configuration has it.
    section: String,
    old: &'p AppPlan,
    new: &'p AppPlan,
    /// The keys that it has to start again for…
    because: Vec<String>,
    /// …and why, where that isn't plain.
    why: Vec<String>,
}

/// What can be done in place of what an app can't be changed to.
const ANOTHER_NAME: &str =
    "give the app another name too: then one leaves and the other joins, live";

impl OfApp<'_> {
    /// Which keys have changed that it has to start again for, and why where that isn't plain. What needs no start, and what
    /// can't be had, is noted.
    fn look(mut self, found: &mut Found) -> (Vec<String>, Vec<String>) {
        self.domain();
        self.made_at_start();
        if self.old.via_socket != self.new.via_socket {
            found.refused.push(Refused {
                key: self.key("via"),
                why: "an app's network namespace is made with links or without",
                instead: Some(ANOTHER_NAME),
            });
        } else if self.old.handed() != self.new.handed() {
            self.again(
                "publish",
                "it is handed its sockets when it starts".to_owned(),
            );
        }
        self.loopback();
        self.because.dedup();
        self.keys(found);
        (self.because, self.why)
    }

    /// A key of it, as the configuration has it.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.section)
    }

    /// It has to start again for a key.
    fn again(&mut self, key: &str, why: String) {
        self.because.push(self.key(key));
        self.why.push(why);
    }

    /// Looks at its Landlock domain, which is for good.
    fn domain(&mut self) {
        let (old, new) = (self.old, self.new);
        let (had, has) = (landlock::App::at_least(old), landlock::App::at_least(new));
        let bind = has.bind.iter().filter(|port| !had.bind.contains(port));
        let bind: Vec<u16> = bind.copied().collect();
        if !bind.is_empty() {
            let published =
                |port: &u16| new.publish.iter().any(|publish| publish.app_port == *port);
            if bind.iter().any(published) {
                self.because.push(self.key("publish"));
            }
            let serves = |from: &&Connect| {
                let ports = from.first_port..=from.last_port;
                bind.iter()
                    .any(|port| ports.contains(port) && !published(port))
            };
            let from = new.serves.iter().filter(serves);
            self.because
                .extend(from.map(|from| format!("app.{}.connect", from.app)));
            if self.because.is_empty() {
                self.because.push(self.key("listen"));
            }
            let bind = named(&bind);
            self.why.push(format!(
                "a Landlock domain can't be widened: it binds {bind}"
            ));
        }
        if had.connect.is_some() != has.connect.is_some() {
            let why = "a Landlock domain is for good, and keeps an app that has no egress from connecting";
            self.again("egress", why.to_owned());
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
                let more = named(&more);
                let why = format!("a Landlock domain can't be widened: it connects to {more}");
                self.again("connect", why);
            }
        }
    }

    /// Looks at what is written down once, at its start, and at its connections.
    fn made_at_start(&mut self) {
        let (old, new) = (self.old, self.new);
        let names = |app: &AppPlan| -> BTreeSet<PartName> {
            app.connect.iter().map(|to| to.app.clone()).collect()
        };
        if !names(new).is_subset(&names(old)) {
            let why = "its /etc/hosts is made when it starts";
            self.again("connect", why.to_owned());
        }
        if !old.resolvers().eq(new.resolvers()) {
            let why = "its /etc/resolv.conf is made when it starts";
            self.again("egress", why.to_owned());
        }
        if by_loopback(old) != by_loopback(new) {
            let why = "its open connections are with the address at which it sees their clients";
            self.again("source", why.to_owned());
        } else if old.source == Source::Client && new.source == Source::Sidecar {
            let why = "its open connections are with clients to whom it has no route then";
            self.again("source", why.to_owned());
        }
    }

    /// Looks at what takes its clients to its loopback, if that is where they come.
    fn loopback(&mut self) {
        let (old, new) = (self.old, self.new);
        let answers = |app: &AppPlan| [Protocol::Tcp, Protocol::Udp].map(|of| app.answers_on(of));
        if !by_loopback(old) || !by_loopback(new) || answers(old) == answers(new) {
            return;
        }
        let published = |app: &AppPlan| -> BTreeSet<_> {
            let all = app.publish.iter();
            all.map(|at| (at.app_port, at.protocol)).collect()
        };
        self.because.push(match published(old) != published(new) {
            true => self.key("publish"),
            false => "app.connect".to_owned(),
        });
        let why = "the rules that take its clients to its loopback are loaded when it starts";
        self.why.push(why.to_owned());
    }

    /// Looks at each key that differs.
    fn keys(&mut self, found: &mut Found) {
        let (old, new) = (self.old, self.new);
        for name in differing(&object(old), &object(new)) {
            match name.as_str() {
                name if NO_CHANGE.contains(&name) => {}
                name if self.because.contains(&self.key(name)) => {}
                "via_socket" => {}
                "address" => found.refused.push(Refused {
                    key: self.key("address"),
                    why: "it is one end of the app's open connections, and whom its neighbours know",
                    instead: Some(ANOTHER_NAME),
                }),
                "ids" => found.refused.push(Refused {
                    key: self.key(match () {
                        () if old.ids.is_range() != new.ids.is_range() => "ids",
                        () if old.ids.uid != new.ids.uid => "user",
                        () => "group",
                    }),
                    why: "who is who within a user namespace is written down once, and its links and connections are in one that belongs to it",
                    instead: Some(ANOTHER_NAME),
                }),
                name if LIVE.contains(&name) => found.change.live.push(self.key(name)),
                "env" => {
                    let mut names: BTreeSet<&String> = old.env.keys().collect();
                    names.extend(new.env.keys());
                    names.retain(|name| old.env.get(*name) != new.env.get(*name));
                    for name in names {
                        self.because.push(self.key(&format!("env.{name}")));
                    }
                }
                name if MADE_OF.contains(&name) => self.because.push(self.key(name)),
                other => found.refused.push(refusal(self.key(other), UNKNOWN)),
            }
        }
    }
}

/// Whether its clients come to its own loopback.
fn by_loopback(app: &AppPlan) -> bool {
    app.source == Source::Localhost
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Replace;
    use crate::plan::{Mode, example};

    /// What changes, in one line.
    fn shown(change: &Result<Change, NotLive>) -> String {
        let change = match change {
            Ok(change) => change,
            Err(NotLive { keys }) => {
                let keys: Vec<&str> = keys.iter().map(|key| key.key.as_str()).collect();
                return format!("no: {}", keys.join(", "));
            }
        };
        let mut all = vec![];
        for part in &change.restart {
            let how = if part.rolling { "another" } else { "again" };
            all.push(format!("{how} {}: {}", part.part, part.because.join(", ")));
        }
        let words = |what: &str, words: &[String]| match words {
            [] => None,
            words => Some(format!("{what} {}", words.join(", "))),
        };
        all.extend(words("joins", &change.added));
        all.extend(words("leaves", &change.removed));
        all.extend(words("live", &change.live));
        all.extend(words("opened", &change.opened));
        all.extend(words("closed", &change.closed));
        all.join("; ")
    }

    #[test]
    fn each_key_changes_live_or_with_a_start_or_not_at_all() {
        type Edit = fn(&mut Plan, &mut Plan);
        let rows: [(Edit, &str); 28] = [
            (|_, _| {}, ""),
            // What is rules, routes or the supervisor's own business.
            (
                |_, new| new.apps[0].allow.push("10.0.0.0/8".parse().unwrap()),
                "live app.web.allow",
            ),
            (|_, new| new.apps[1].stop.timeout *= 2, "live app.db.stop"),
            (|_, new| new.record.size += 1, "live log"),
            (
                |_, new| new.apps[0].publish.clear(),
                "live app.web.publish; closed 0.0.0.0:80/tcp",
            ),
            (
                |_, new| new.apps[0].publish[0].listen.set_port(81),
                "live app.web.publish; opened 0.0.0.0:81/tcp; closed 0.0.0.0:80/tcp",
            ),
            // A port of its own that it was not let bind.
            (
                |_, new| new.apps[0].publish[0].app_port = 8081,
                "another web: app.web.publish",
            ),
            // What its process is made of.
            (
                |_, new| new.apps[0].command.push("more".to_owned()),
                "another web: app.web.command",
            ),
            (
                |old, new| {
                    for app in [&mut old.apps[0], &mut new.apps[0]] {
                        app.replace = Replace::StopFirst;
                    }
                    new.apps[0].command.push("more".to_owned());
                },
                "again web: app.web.command",
            ),
            (
                |old, new| {
                    old.apps[0].env.insert("GONE".to_owned(), "1".to_owned());
                    new.apps[0].env.insert("NEW".to_owned(), "1".to_owned());
                },
                "another web: app.web.env.GONE, app.web.env.NEW",
            ),
            (|_, new| new.seal = !new.seal, "again sidecar: sidecar.seal"),
            // Apps that come and go; a sidecar that names them in its log has to know them.
            (|_, new| drop(new.apps.pop()), "leaves db"),
            (
                |_, new| {
                    let mut more = new.apps[1].clone();
                    more.name = PartName::new("more").unwrap();
                    new.apps.push(more);
                },
                "joins more",
            ),
            (
                |old, new| {
                    old.log = TrafficLog::Connections;
                    new.log = TrafficLog::Connections;
                    new.apps.pop();
                },
                "again sidecar: app.db; leaves db",
            ),
            // A grant to another app widens what both may do.
            (
                |_, new| {
                    new.apps[0].connect[0].last_port = 5433;
                    new.derive_serves();
                },
                "another web: app.web.connect; another db: app.web.connect",
            ),
            (
                |_, new| {
                    new.apps[0].connect.clear();
                    new.derive_serves();
                },
                "live app.web.connect",
            ),
            (
                |old, new| {
                    old.apps[0].connect.clear();
                    old.derive_serves();
                    new.derive_serves();
                },
                "another web: app.web.connect; another db: app.web.connect",
            ),
            // Its connections are with clients that it could not answer then; the other way there are none such.
            (
                |old, _| old.apps[0].source = Source::Client,
                "another web: app.web.source",
            ),
            (
                |_, new| new.apps[0].source = Source::Client,
                "live app.web.source",
            ),
            (
                |_, new| new.apps[0].source = Source::Localhost,
                "another web: app.web.source",
            ),
            // What is one end of connections, or who is who.
            (
                |_, new| new.apps[0].address = "172.18.0.99".parse().unwrap(),
                "no: app.web.address",
            ),
            (|_, new| new.apps[0].ids.uid = 7, "no: app.web.user"),
            (|_, new| new.apps[0].ids.gid = 7, "no: app.web.group"),
            (|_, new| new.apps[0].via_socket = true, "no: app.web.via"),
            (
                |_, new| {
                    new.bridge.subnet = "172.19.0.0/24".parse().unwrap();
                    new.bridge.address = "172.19.0.1".parse().unwrap();
                },
                "no: network.subnet, sidecar.address",
            ),
            (|_, new| new.mode = Mode::Rootless, "no: mode"),
            // Of what is in no list nobody has thought whether it could.
            (
                |_, new| new.apps[0].port_link = new.apps[1].port_link.clone(),
                "no: app.web.port_link",
            ),
            (|_, new| new.relay_limits.pids = Some(7), "no: relay_limits"),
        ];
        for (number, (edit, wanted)) in rows.into_iter().enumerate() {
            let (mut old, mut new) = (example(), example());
            edit(&mut old, &mut new);
            let change = between(&old, &new);
            assert_eq!(shown(&change), wanted, "row {number}");
            let same = change.is_ok_and(|change| change.is_empty());
            assert_eq!(same, wanted.is_empty(), "row {number}");
        }
    }

    #[test]
    fn the_one_app_of_a_stack_has_its_keys_without_its_name() {
        let (mut old, mut new) = (example(), example());
        for plan in [&mut old, &mut new] {
            plan.apps.truncate(1);
            plan.apps[0].name = PartName::new("app").unwrap();
        }
        new.apps[0].command.push("more".to_owned());
        assert_eq!(shown(&between(&old, &new)), "another app: app.command");
    }

    #[test]
    fn until_it_is_confirmed_either_plan_has_what_it_grants_and_who_leaves_has_no_port_but_his_connections()
     {
        let old = example();
        let mut new = example();
        new.apps.remove(0);
        new.apps[0].egress.push(Egress {
            protocol: Protocol::Tcp,
            to: "203.0.113.0/24".parse().unwrap(),
            first_port: 443,
            last_port: 443,
        });
        let wide = wide(&old, &new);
        let of = |plan: &Plan, name: &str| {
            let app = plan.apps.iter().find(|app| app.name.as_str() == name);
            let app = app.map(|app| (app.publish.len(), app.closing.len(), app.egress.len()));
            app.unwrap_or_else(|| panic!("{name} is not there"))
        };
        assert_eq!((of(&wide, "web"), of(&wide, "db")), ((1, 0, 0), (0, 0, 1)));
        let held = held(&old, new.clone());
        assert_eq!((of(&held, "web"), of(&held, "db")), ((0, 1, 0), (0, 0, 1)));
        let names: Vec<&str> = held.apps.iter().map(|app| app.name.as_str()).collect();
        assert_eq!(names, ["web", "db"], "who stays keeps his place");
        let both = both(&old, &held);
        assert_eq!((of(&both, "web"), of(&both, "db")), ((1, 1, 0), (0, 0, 1)));
    }
}
