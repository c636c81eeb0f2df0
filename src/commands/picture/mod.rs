//! The picture of a stack: who may reach whom, from left to right through the sidecar. It is made of a plan, and of what is
//! known of a running stack if it runs; `plan`, `status` and `graph` show it.
#![forbid(unsafe_code)]

mod svg;
mod terminal;

use crate::control::Status;
use crate::plan::reach::{self, Range};
use crate::plan::{AppPlan, EgressVia, Plan, Transport};

pub use svg::draw as svg;
pub use terminal::{WIDTH, draw, wrapped};

/// What is drawn.
pub struct Picture {
    /// The sidecar's addresses.
    pub sidecar: Vec<String>,
    /// What it has refused, and what the relay has.
    pub refused: Vec<String>,
    /// The apps, in the plan's order.
    pub apps: Vec<App>,
}

/// A box at the right.
pub struct App {
    /// Its name.
    pub name: String,
    /// What stands below it: addresses, and how it is.
    pub lines: Vec<String>,
    /// What leads to it and from it.
    pub edges: Vec<Edge>,
}

/// What may be connected to, and by whom.
pub enum Edge {
    /// An app, by clients.
    In {
        /// Who may.
        who: String,
        /// The host's address and ports.
        listen: String,
        /// How it comes from there to the sidecar, and how many were refused on that way, where it is known.
        via: String,
        /// The app's port.
        port: String,
        /// Nobody new is let in for now.
        closed: bool,
    },
    /// An app, by another one.
    From {
        /// The other one.
        app: String,
        /// The port.
        port: String,
    },
    /// What is outside, by an app.
    Out {
        /// Where to.
        to: String,
        /// How it leaves.
        via: &'static str,
    },
}

impl Picture {
    /// Of a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let bridge = &plan.bridge;
        let mut sidecar = vec![bridge.address.to_string()];
        sidecar.extend(bridge.address6.map(|address| address.to_string()));
        let reach = reach::reach(plan);
        let ranges = reach::ranges(plan);
        let apps = plan.apps.iter().map(|app| {
            let own = ranges.iter().filter(|range| range.app.name == app.name);
            let mut edges: Vec<Edge> = own.map(|range| entry(app, range)).collect();
            for other in &plan.apps {
                let links = reach.iter().filter(|link| {
                    link.from == other.name.as_str() && link.to == app.name.as_str()
                });
                edges.extend(links.flat_map(|link| &link.ports).map(|port| Edge::From {
                    app: other.name.to_string(),
                    port: port.clone(),
                }));
            }
            edges.extend(app.egress.iter().map(|egress| Edge::Out {
                to: egress.to_string(),
                via: match plan.egress.as_ref().map(|egress| egress.via) {
                    Some(EgressVia::Nat) => "nat",
                    Some(EgressVia::Relay) | None => "relay",
                },
            }));
            let mut lines = vec![app.address.to_string()];
            lines.extend(app.address6.map(|address| address.to_string()));
            App {
                name: app.name.to_string(),
                lines,
                edges,
            }
        });
        Self {
            sidecar,
            refused: vec![],
            apps: apps.collect(),
        }
    }

    /// Of a running stack.
    #[must_use]
    pub fn running(status: &Status) -> Self {
        let mut picture = Self::of(&status.plan);
        for app in &mut picture.apps {
            let part = status.parts.iter().find(|part| part.name == app.name);
            let state = part.map_or_else(
                || "ended".to_owned(),
                |part| part.shown(status.plan.app_named(&app.name)),
            );
            app.lines.push(state);
            let shut = status.starting
                || status.gated
                || status.closed.iter().any(|name| name.as_str() == app.name);
            for edge in &mut app.edges {
                if let Edge::In { closed, .. } = edge {
                    *closed = shut;
                }
            }
        }
        picture
    }
}

impl Picture {
    /// The same with what was counted: of each app its connections, and what was refused.
    #[must_use]
    pub fn counted(status: &Status) -> Self {
        let mut picture = Self::running(status);
        if let Some(traffic) = &status.traffic {
            picture.refused.push(format!("{} refused", traffic.refused));
        }
        if let Some(refused) = &status.refused_by_relay {
            let all = refused.all.by_rule().map(|(_, packets)| packets);
            let sum = all.into_iter().fold(0, u64::saturating_add);
            picture.refused.push(format!("{sum} by relay"));
        }
        for app in &mut picture.apps {
            app.counted(status);
        }
        picture
    }
}

impl App {
    /// Its connections; and what was refused on the way to it, at its edge if it has one only, and on the way from it.
    fn counted(&mut self, status: &Status) {
        let mut traffic = status.traffic.iter().flat_map(|traffic| &traffic.apps);
        let its = traffic.find(|of| of.name.as_deref() == Some(self.name.as_str()));
        if let Some(its) = its {
            self.lines.push(format!("{} open", its.open));
            self.lines.push(format!("{} accepted", its.accepted));
        }
        let (to, from) = its.map_or((0, 0), |its| (its.refused, its.refused_from));
        let by_relay = status.refused_by_relay.as_ref();
        let by_relay = by_relay.and_then(|refused| refused.apps.get(&self.name));
        let to = to.saturating_add(by_relay.copied().unwrap_or_default());
        let mut ways: Vec<&mut String> = { self.edges.iter_mut() }
            .filter_map(|edge| match edge {
                Edge::In { via, .. } => Some(via),
                _ => None,
            })
            .collect();
        match ways.as_mut_slice() {
            _ if to == 0 => {}
            [via] => **via += &format!(", {to} refused"),
            _ => self.lines.push(format!("{to} refused")),
        }
        if from > 0 {
            self.lines.push(format!("{from} refused from it"));
        }
    }
}

/// A published port, or ports in a row.
fn entry(app: &AppPlan, range: &Range<'_>) -> Edge {
    let who = match (range.first.listen.ip().is_loopback(), app.allow.as_slice()) {
        (true, _) => "this host".to_owned(),
        _ if !app.is_selective() => "anyone".to_owned(),
        (_, [one]) => one.to_string(),
        (_, several) => format!("{} networks", several.len()),
    };
    Edge::In {
        who,
        listen: range.listen(),
        via: match range.first.via {
            Transport::Dnat => "dnat".to_owned(),
            Transport::Relay => "relay".to_owned(),
        },
        port: range.app_ports(),
        closed: false,
    }
}
