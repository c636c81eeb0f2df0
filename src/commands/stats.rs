//! `lrpns stats`: what each part of a running stack uses.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

use super::status::table;
use super::target::Meant;
use super::{ask, believed, print, print_json, status_now, written};
use crate::commands::failure::Failure;
use crate::control::usage::{self, Usage};
use crate::control::{PartStatus, Reply, Request, Status};
use crate::names::StackName;
use crate::plan::Plan;
use crate::text::size;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(1);

/// What a stack uses; its fields are the keys of the JSON form, which are stable.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    pub(super) time: Timestamp,
    pub(super) stack: StackName,
    pub(super) parts: Vec<PartStats>,
}

/// What a part uses.
#[derive(Debug, Serialize)]
pub(super) struct PartStats {
    pub(super) name: String,
    /// In a word or two.
    pub(super) state: String,
    #[serde(flatten)]
    pub(super) usage: Usage,
    /// Processors that it has kept busy: since it was started, unless that was again, and with `-f` since the line before.
    pub(super) cpus: Option<f64>,
    /// What it may have of memory.
    pub(super) memory_limit: Option<u64>,
    /// Of an app: connections that are open, where the sidecar counts them.
    pub(super) connections: Option<u64>,
    /// Of an app: connections that were let through.
    pub(super) accepted: Option<u64>,
    #[serde(skip)]
    since: Timestamp,
}

impl Stats {
    /// Looks at a stack.
    pub(super) fn of(status: &Status) -> Self {
        let plan = &status.plan;
        Self {
            time: Timestamp::now(),
            stack: plan.stack.clone(),
            parts: status
                .parts
                .iter()
                .map(|part| part_stats(status, part))
                .collect(),
        }
    }
}

/// The link by which a part is joined to the stack, if it has a network namespace with one.
fn link(plan: &Plan, name: &str) -> Option<String> {
    match name {
        "sidecar" => Some(plan.uplink.sidecar_link.to_string()),
        _ => plan
            .app_named(name)
            .filter(|app| !app.via_socket)
            .map(|_| crate::net::APP_LINK.to_owned()),
    }
}

fn part_stats(status: &Status, part: &PartStatus) -> PartStats {
    let plan = &status.plan;
    let usage = usage::of(part, link(plan, &part.name).as_deref());
    let age = Timestamp::now().duration_since(part.since).as_secs_f64();
    let traffic = status.traffic.as_ref();
    let app = plan.app_named(&part.name);
    let traffic = traffic.filter(|_| app.is_some()).and_then(|traffic| {
        let mut apps = traffic.apps.iter();
        apps.find(|app| app.name.as_deref() == Some(&part.name))
    });
    let limit = plan.limits().find(|(name, _)| *name == part.name);
    PartStats {
        name: part.name.clone(),
        state: part.shown(app),
        // Its cgroup counts what it has used before as well.
        cpus: usage
            .cpu_seconds
            .filter(|_| age > 0.0 && part.restarts == 0)
            .map(|cpu| cpu / age),
        usage,
        memory_limit: limit.and_then(|(_, limits)| limits.memory),
        connections: traffic.map(|traffic| traffic.open),
        accepted: traffic.map(|traffic| traffic.accepted),
        since: part.since,
    }
}

/// Prints what a stack, or one part of it, uses; with `follow` every second until its end.
pub(super) fn stats(meant: &Meant, follow: bool, json: bool) -> Result<ExitCode, Failure> {
    let Meant { stack, part } = meant;
    let one = part.as_deref();
    let mut before = look(status_now(stack)?, one)?;
    let mut looked = Instant::now();
    if !follow {
        match json {
            true => print_json(&before)?,
            false => print(&describe(&before))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Nothing is asked in it: when the answer has come, the conversation is over, and with it what tells whose number it is.
    let client = super::connect(stack)?;
    let (_, supervisor) = client.supervisor().map_err(|e| {
        Failure::unable(format!("watch the supervisor of {stack}: {e}"))
            .hint("-f needs it in the same pid namespace; without -f it works from anywhere")
    })?;
    drop(client);
    let screen = !json && std::io::stdout().is_terminal();
    loop {
        let text = match json {
            true => serde_json::to_string(&before).map_err(Failure::unable)? + "\n",
            // To the upper left corner, and what is below goes (console_codes(4)).
            false if screen => format!("\x1b[H\x1b[J{}", describe(&before)),
            false => describe(&before) + "\n",
        };
        if !written(std::io::stdout(), &text)? || ends_within(&supervisor, EVERY)? {
            return Ok(ExitCode::SUCCESS);
        }
        let Some(status) = still_there(stack)? else {
            return Ok(ExitCode::SUCCESS);
        };
        let mut now = look(status, one)?;
        let passed = looked.elapsed().as_secs_f64();
        looked = Instant::now();
        for part in &mut now.parts {
            let mut parts = before.parts.iter();
            let earlier = parts.find(|other| other.name == part.name);
            // One that was started again begins anew.
            let earlier = earlier.filter(|other| other.since == part.since);
            if let (Some(earlier), Some(cpu)) = (earlier, part.usage.cpu_seconds)
                && let Some(then) = earlier.usage.cpu_seconds
            {
                part.cpus = Some(((cpu - then) / passed).max(0.0));
            }
        }
        before = now;
    }
}

/// The status, unless the stack has ended meanwhile.
fn still_there(stack: &StackName) -> Result<Option<Box<Status>>, Failure> {
    let Ok(client) = ask(stack, &Request::Look { processes: false }) else {
        return Ok(None);
    };
    match super::reply_or_end(&client, stack)? {
        Some((Reply::Status(status), _)) => Ok(Some(believed(stack, status))),
        _ => Ok(None),
    }
}

/// Waits for the end of a process for so long; whether it has ended.
fn ends_within(process: &std::os::fd::OwnedFd, time: Duration) -> Result<bool, Failure> {
    let unable = |e: &dyn std::fmt::Display| Failure::unable(format!("wait: {e}"));
    let time = Timespec::try_from(time).map_err(|e| unable(&e))?;
    let mut ready = [PollFd::new(process, PollFlags::IN)];
    match rustix::event::poll(&mut ready, Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(unable(&e)),
    }
}

fn look(status: Box<Status>, one: Option<&str>) -> Result<Stats, Failure> {
    let mut stats = Stats::of(&status);
    if let Some(name) = one {
        stats.parts.retain(|part| part.name == name);
        if stats.parts.is_empty() {
            return Err(super::status::no_such_part(&status, name));
        }
    }
    Ok(stats)
}

fn describe(stats: &Stats) -> String {
    let mut table = table(&[
        "PART",
        "STATE",
        "CPU",
        "TIME",
        "MEMORY",
        "LIMIT",
        "PROCESSES",
        "OPEN",
        "RECEIVED",
        "SENT",
    ]);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for part in &stats.parts {
        let usage = &part.usage;
        table.add_row([
            part.name.clone(),
            part.state.clone(),
            or_none(part.cpus.map(|cpus| format!("{:.1}%", cpus * 100.0))),
            or_none(usage.cpu_seconds.map(|cpu| format!("{cpu:.1}s"))),
            or_none(usage.memory.map(size)),
            or_none(part.memory_limit.map(size)),
            usage.processes.to_string(),
            or_none(part.connections.map(|open| open.to_string())),
            or_none(usage.received.map(size)),
            or_none(usage.sent.map(size)),
        ]);
    }
    format!("{table}\n")
}
