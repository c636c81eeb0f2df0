//! `lrpns trace`: why does this packet not arrive?
//!
//! # Theory of operation
//!
//! It takes a packet of that client, so this waits for one. Before that it marks, by a temporary table each
//! ([`crate::firewall::trace`]), in the host's network namespace, in the relay's where it has one, and in the
//! sidecar's: what the client sends to the port, what the relay makes of it, and what is answered. The kernel then
//! tells each rule that the packets meet, whoever made it, and by the table's own empty chains how far they came. What
//! netfilter didn't decide (no forwarding, no route, nobody listens, the relay's `allow` and `rate`) is found by where
//! the trace ends and by who answers (`judge`).
//!
//! Short-lived children open the sockets (`place`), and this process gives up all privileges before it waits. A packet by
//! relay has another source than its client's, unless the app sees its clients: then the next one that the relay sends is
//! taken for it, which on a busy stack may be somebody else's.
#![forbid(unsafe_code)]

mod asked;
mod judge;
mod place;
mod seen;
#[cfg(test)]
mod tests;
mod trail;

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::opener::part_of;
use super::{print, print_json, status_of};
use crate::commands::failure::Failure;
use crate::config::Protocol;
use crate::confine::privileges;
use crate::control::PartState;
use crate::names::StackName;
use crate::plan::Mode;
use asked::{Kernel, Listeners};
use judge::{Case, Outcome};
use place::Place;
use seen::{Sight, Site};

/// How long the rest of a packet's way may take once it has been seen.
const AFTER: Duration = Duration::from_millis(1500);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who doesn't get through.
    pub client: IpAddr,
    /// To which port of the host.
    pub port: u16,
    /// By which transport protocol.
    pub protocol: Protocol,
    /// How long to wait for a packet.
    pub within: Duration,
}

/// Waits for a packet and says what became of it; exit code 1 unless it arrived.
pub fn trace(stack: &StackName, question: &Question, json: bool) -> Result<ExitCode, Failure> {
    let unable =
        |what: &str, e: &dyn std::fmt::Display| Failure::unable(format!("{stack}: {what}: {e}"));
    let status = status_of(stack)?;
    let running = status.parts.iter().filter(|part| match part.name.as_str() {
        "relay" => part.state == PartState::Running,
        _ => part.init.is_some(),
    });
    let running = running.map(|part| part.name.clone()).collect();
    let case = Case::new(question, &status.plan, running);
    let mut listeners = Listeners::default();
    let mut places = vec![];
    if status.plan.mode == Mode::Root {
        let host = Place::open(Site::Host, None, &case.marks(Site::Host));
        places.push(host.map_err(|e| unable("trace in the host", &e))?);
        let listening = place::listening(None);
        listeners.host = Some(listening.map_err(|e| unable("ask who listens in the host", &e))?);
    }
    let mut inside = vec![(Site::Sidecar, "trace in the sidecar")];
    if case.relay_is_apart() {
        inside.insert(0, (Site::Relay, "trace in the relay's namespace"));
    }
    for (site, what) in inside {
        let (part, _) = part_of(stack, site.name())?;
        let opened = Place::open(site, Some(&part), &case.marks(site));
        places.push(opened.map_err(|e| unable(what, &e))?);
    }
    let apps: Vec<_> = case.apps().map(|app| app.name.as_str()).collect();
    for app in apps {
        // One that doesn't run is no failure, but an answer.
        if let Ok((part, _)) = part_of(stack, app) {
            let what = format!("ask who listens in {app}");
            let listening = place::listening(Some(&part)).map_err(|e| unable(&what, &e))?;
            listeners.apps.push((app.to_owned(), listening));
        }
    }
    privileges::keep_nothing().map_err(|e| unable("give up privileges", &e))?;

    eprintln!(
        "waiting {} s for a packet of {} to {} port {}: try now",
        question.within.as_secs(),
        question.client,
        question.protocol,
        question.port
    );
    watch(&case, &mut places, &listeners, question.within)
        .map_err(|e| unable("hear of a packet", &e))?;

    let kernel = Kernel {
        places: &places,
        listeners: &listeners,
    };
    let answer = case.answer(&sights(&places), &kernel);
    if json {
        print_json(&answer)?;
    } else {
        print(&answer.text())?;
    }
    let arrived = answer.outcome == Outcome::Arrives;
    Ok(ExitCode::from(u8::from(!arrived)))
}

fn sights(places: &[Place]) -> Vec<&Sight> {
    places.iter().map(|place| &place.sight).collect()
}

/// Waits for a packet, and then for the rest of its way.
fn watch(
    case: &Case<'_>,
    places: &mut [Place],
    listeners: &Listeners,
    within: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut deadline = Instant::now() + within;
    let mut has_begun = false;
    let mut order = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let wait = Timespec::try_from(left)?;
        let mut ready: Vec<_> = places
            .iter()
            .map(|place| PollFd::new(&place.tracer, PollFlags::IN))
            .collect();
        match rustix::event::poll(&mut ready, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        drop(ready);
        // The host first: what comes to the sidecar comes from there.
        for place in &mut *places {
            place.take(&mut order)?;
        }
        let sights = sights(places);
        if !has_begun && case.has_begun(&sights) {
            has_begun = true;
            deadline = Instant::now() + AFTER;
        }
        let kernel = Kernel { places, listeners };
        if case.is_over(&sights, &kernel) {
            return Ok(());
        }
    }
}
