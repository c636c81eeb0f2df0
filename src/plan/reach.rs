//! Who may reach whom by a plan, and at which ports.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::config::Protocol;
use crate::plan::{AppPlan, Plan, PublishPlan, UplinkPlan};

/// A plan as all see it: in `plan.json`, by `plan --json` and in `status --json`.
#[derive(Serialize)]
pub struct Document<'p> {
    #[serde(flatten)]
    plan: &'p Plan,
    reach: Vec<Reach>,
}

impl<'p> Document<'p> {
    /// Of this plan.
    #[must_use]
    pub fn of(plan: &'p Plan) -> Self {
        Self {
            plan,
            reach: reach(plan),
        }
    }
}

/// Who may connect to what.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// An app, or `clients`: those that the app's `allow` lets in.
    pub from: String,
    /// An app, or what `egress` lists.
    pub to: String,
    /// As in `connect`: `5432`, `7000-7010/udp`; for `egress`, `to` says it.
    pub ports: Vec<String>,
}

/// Every pair between which connections may be made; between all others none may.
#[must_use]
pub fn reach(plan: &Plan) -> Vec<Reach> {
    let mut all = vec![];
    for app in &plan.apps {
        let ranges = ranges(plan);
        let own = ranges.iter().filter(|range| range.app.name == app.name);
        let mut ports: Vec<String> = vec![];
        for range in own {
            let port = match range.first.protocol {
                Protocol::Tcp => range.app_ports(),
                Protocol::Udp => format!("{}/udp", range.app_ports()),
            };
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        if !ports.is_empty() {
            all.push(Reach {
                from: "clients".to_owned(),
                to: app.name.to_string(),
                ports,
            });
        }
    }
    for app in &plan.apps {
        for other in &plan.apps {
            let its = app.connect.iter().filter(|to| to.app == other.name);
            let ports: Vec<String> = its
                .map(|to| to.to_string())
                .map(|to| {
                    to.split_once(':')
                        .map_or(to.clone(), |(_, port)| port.to_owned())
                })
                .collect();
            if !ports.is_empty() {
                all.push(Reach {
                    from: app.name.to_string(),
                    to: other.name.to_string(),
                    ports,
                });
            }
        }
        all.extend(app.egress.iter().map(|egress| Reach {
            from: app.name.to_string(),
            to: egress.to_string(),
            ports: vec![],
        }));
    }
    all
}

/// Published ports in a row that differ in their numbers only.
#[derive(Debug, Clone, Copy)]
pub struct Range<'a> {
    /// Whose they are.
    pub app: &'a AppPlan,
    /// The first one.
    pub first: &'a PublishPlan,
    /// The last one.
    pub last: &'a PublishPlan,
}

impl Range<'_> {
    /// The host's address and ports, with the protocol unless it is TCP.
    #[must_use]
    pub fn listen(&self) -> String {
        let protocol = match self.first.protocol {
            Protocol::Tcp => "",
            Protocol::Udp => "/udp",
        };
        let last = self.last.listen.port();
        format!(
            "{}{}{protocol}",
            self.first.listen,
            to(self.first.listen.port(), last)
        )
    }

    /// The app's ports.
    #[must_use]
    pub fn app_ports(&self) -> String {
        let (first, last) = (self.first.app_port, self.last.app_port);
        format!("{first}{}", to(first, last))
    }

    /// The app's address and ports.
    #[must_use]
    pub fn service(&self) -> String {
        let first = self.app.service(self.first);
        format!("{first}{}", to(first.port(), self.last.app_port))
    }

    /// The sidecar's uplink address and ports.
    #[must_use]
    pub fn entry(&self, uplink: &UplinkPlan) -> String {
        let first = uplink.entry(self.first);
        format!("{first}{}", to(first.port(), self.last.entry_port))
    }
}

fn to(first: u16, last: u16) -> String {
    if first == last {
        String::new()
    } else {
        format!("-{last}")
    }
}

/// Every published port of the plan, those in a row as one.
#[must_use]
pub fn ranges(plan: &Plan) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = vec![];
    for (app, publish) in plan.published() {
        let next = |port: u16| port.checked_add(1);
        match ranges.last_mut() {
            Some(range)
                if range.app.name == app.name
                    && range.last.listen.ip() == publish.listen.ip()
                    && range.last.protocol == publish.protocol
                    && range.last.via == publish.via
                    && range.last.why == publish.why
                    && next(range.last.listen.port()) == Some(publish.listen.port())
                    && next(range.last.entry_port) == Some(publish.entry_port)
                    && next(range.last.app_port) == Some(publish.app_port) =>
            {
                range.last = publish;
            }
            _ => ranges.push(Range {
                app,
                first: publish,
                last: publish,
            }),
        }
    }
    ranges
}
