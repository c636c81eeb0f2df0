//! What `plan` prints: the picture, then what is particular to each part, in lines of 80 columns.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use super::{full, order, rootfs, secrets_of, unix_sockets};
use crate::commands::picture::{self, Picture, WIDTH, wrapped};
use crate::config::{Limits, OnUnhealthy, RecordTo, Restart, Source as Seen};
use crate::confine::privileges::Ids;
use crate::plan::limits::Controller;
use crate::plan::reach;
use crate::plan::{AppPlan, Plan};
use crate::text::{duration, harmless, size};

/// Says what a plan comes to.
pub fn describe(plan: &Plan) -> String {
    let from = match &plan.config {
        Some(file) => file.display().to_string(),
        None => "built-in".to_owned(),
    };
    let mut out = wrapped("", &format!("{} ({from})", plan.title()));
    out.push('\n');
    out += &picture::draw(&Picture::of(plan));
    out += "What is not drawn is refused, counted and logged.\n";
    if plan.apps.len() > 1 {
        let matrix = full::matrix(plan);
        if matrix.lines().all(|line| line.chars().count() <= WIDTH) {
            out += &matrix;
        }
    }
    if plan.has_order() {
        out.push('\n');
        out += &wrapped("", &order(plan));
    }
    out += &apps(plan);
    out.push('\n');
    for (key, text) in of_stack(plan) {
        out += &line(key, &text);
    }
    out + "-v adds where values come from, system calls, links, rules; --json has it all\n"
}

/// What the apps are: what is true of several and of all of them is said once.
fn apps(plan: &Plan) -> String {
    let of_each: Vec<_> = plan.apps.iter().map(|app| of_app(app, plan)).collect();
    let several = of_each.len() > 1;
    let shared = |said: &Said| several && of_each.iter().all(|all| all.contains(said));
    let mut out = String::new();
    let mut section = |title: &str, said: &mut dyn Iterator<Item = &Said>| {
        let lines: String = said.map(|(key, text)| line(key, text)).collect();
        if !lines.is_empty() {
            out += &format!("\n{title}\n{lines}");
        }
    };
    for (app, all) in plan.apps.iter().zip(&of_each) {
        let own = &mut all.iter().filter(|said| !shared(said));
        section(&format!("app {}", app.name), own);
    }
    let first = of_each.first().into_iter().flatten();
    section("every app", &mut first.filter(|said| shared(said)));
    out
}

/// How much of a command is shown: it may be a program of its own.
const COMMAND: usize = 120;

/// Of what, and what.
type Said = (&'static str, String);

fn line(key: &str, text: &str) -> String {
    wrapped(&format!("  {key:<9} "), text)
}

/// What the stack has beside its apps.
fn of_stack(plan: &Plan) -> Vec<Said> {
    let holds = match plan.seal {
        true => "NET_ADMIN over its own netns until its rules are loaded",
        false => "NET_ADMIN over its own netns, nothing else",
    };
    let relay = if plan.has_relay() {
        "; the relay nothing"
    } else {
        ""
    };
    let mut all = vec![("sidecar", format!("holds {holds}{relay}"))];
    if let Some(rules) = &plan.rules {
        all.push(("rules", format!("also those of {}", rules.file.display())));
    }
    if let Some(egress) = &plan.egress {
        all.push(("ways out", egress.to_string()));
    }
    let mut ways: Vec<String> = vec![];
    for range in reach::ranges(plan) {
        let way = format!("{} {}", range.first.listen.ip(), range.first.why);
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    if !ways.is_empty() {
        all.push(("ways in", ways.join("; ")));
    }
    let six = match plan.bridge.prefix6 {
        Some(prefix) => prefix.to_string(),
        None => "no IPv6".to_owned(),
    };
    all.push(("network", format!("{}, {six}", plan.bridge.subnet)));
    all.push(("log", record(plan)));
    let limits = plan.limits().map(|(_, limits)| limits);
    if let Some(complaint) = plan.cgroup.complaint(limits) {
        all.push(("this host", complaint));
    }
    all
}

fn record(plan: &Plan) -> String {
    let record = &plan.record;
    let files = format!(
        "{} (at most {}, {})",
        record.dir.display(),
        size(record.size),
        duration(Duration::from_secs(record.age))
    );
    match record.to {
        RecordTo::Off => "in memory only".to_owned(),
        RecordTo::File => files,
        RecordTo::Journal => "the journal".to_owned(),
        RecordTo::Both => format!("the journal, and {files}"),
        RecordTo::Auto => format!("the journal, or without systemd {files}"),
    }
}

/// `memory 64M, 512 processes, 1 processor`.
fn limits(limits: &Limits) -> String {
    let all = Controller::ALL.into_iter().filter_map(|limit| match limit {
        Controller::Memory => limits.memory.map(|bytes| format!("memory {}", size(bytes))),
        Controller::Pids => limits.pids.map(|pids| format!("{pids} processes")),
        Controller::Cpu => limits.cpu.map(|cpu| format!("{} cpu", f64::from(cpu))),
    });
    let all: Vec<String> = all.collect();
    match all.is_empty() {
        true => "no limits".to_owned(),
        false => all.join(", "),
    }
}

/// What an app is, and is not as others are.
fn of_app(app: &AppPlan, plan: &Plan) -> Vec<Said> {
    let command = app.command.join(" ");
    let mut command = harmless(&command.replace('\n', " "), COMMAND);
    if app.workdir != Path::new("/") {
        command += &format!("  (in {})", app.workdir.display());
    }
    let who = match app.ids.inside() {
        Ids { uid, gid } if uid == gid => uid.to_string(),
        Ids { uid, gid } => format!("{uid}, group {gid}"),
    };
    let holds = match app.ids.is_range() {
        true => "with what root has over 65536 ids of its own",
        false => "without capabilities",
    };
    let [calls, more, _] = app.seccomp.names();
    let mut all = vec![
        ("command", command),
        ("runs as", format!("{who} within, {holds}")),
        ("files", files(app)),
        ("limits", limits(&app.limits)),
        (
            "seccomp",
            format!(
                "{}: {} system calls, {} more by their arguments",
                app.seccomp.name,
                calls.len(),
                more.len()
            ),
        ),
    ];
    if !app.env.is_empty() {
        // Values may be secrets; `--json` has them.
        let names: Vec<&str> = app.env.keys().map(String::as_str).collect();
        all.push(("variables", names.join(" ")));
    }
    let secrets = secrets_of(app, plan).into_iter();
    all.extend(secrets.map(|said| ("secret", said)));
    all.extend(unix_sockets(app).into_iter().map(|said| ("sockets", said)));
    all.extend(of_traffic(app));
    all.extend(of_life(app));
    all
}

fn files(app: &AppPlan) -> String {
    let mut files = format!("{}, read-only", rootfs(&app.rootfs));
    let writable = app.tmpfs.iter();
    let writable: Vec<String> = writable
        .map(|tmpfs| format!("{} {}", tmpfs.path.display(), size(tmpfs.size)))
        .collect();
    if !writable.is_empty() {
        files += &format!("; in memory {}", writable.join(", "));
    }
    for volume in &app.volumes {
        let how = match (volume.writable, volume.exec) {
            (true, true) => "writable, exec",
            (true, false) => "writable",
            (false, true) => "read-only, exec",
            (false, false) => "read-only",
        };
        let owners = if volume.owners {
            ", with its owners"
        } else {
            ""
        };
        files += &format!(
            "; {} is {} ({how}{owners})",
            volume.path.display(),
            volume.host.display()
        );
    }
    files
}

fn of_traffic(app: &AppPlan) -> Vec<Said> {
    let mut all = vec![];
    if app.via_socket {
        let none = "none; it is handed the listening sockets of its ports";
        all.push(("network", none.to_owned()));
    }
    if app.is_selective() {
        let allow: Vec<String> = app.allow.iter().map(ToString::to_string).collect();
        all.push(("clients", format!("of {} only", allow.join(", "))));
    }
    if let Some(rate) = app.rate {
        all.push(("rate", format!("new connections: {rate}")));
    }
    match app.source {
        Seen::Sidecar => {}
        Seen::Client => all.push(("sees", "its clients' own addresses".to_owned())),
        Seen::Localhost => all.push((
            "sees",
            "127.0.0.1 for every client, and is reached there".to_owned(),
        )),
    }
    all
}

fn of_life(app: &AppPlan) -> Vec<Said> {
    let mut all = vec![];
    if !app.after.is_empty() {
        let list: Vec<String> = app.after.iter().map(ToString::to_string).collect();
        all.push(("after", list.join(", ")));
    }
    if let Some(health) = &app.health {
        let then = match health.on_unhealthy {
            OnUnhealthy::Nothing => "",
            OnUnhealthy::Restart => "; started again when it is not",
        };
        all.push((
            "healthy",
            format!(
                "by {}, every {}{then}",
                health.check,
                duration(health.interval)
            ),
        ));
    }
    let limit = app.restart_limit.map(|limit| format!(", at most {limit}"));
    let again = match app.restart {
        Restart::No => "not started again",
        Restart::OnFailure => "started again when it fails",
        Restart::Always => "started again",
    };
    let end = match app.job {
        true => {
            let within = duration(app.start_timeout);
            format!("a job: has to end with 0 within {within}")
        }
        false => format!("{again}{}", limit.unwrap_or_default()),
    };
    let stop = format!(
        "{end}; asked to by {}, killed after {}",
        app.stop.signal,
        duration(app.stop.timeout)
    );
    all.push(("its end", stop));
    all
}
