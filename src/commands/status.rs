//! `lrpns ps` and `lrpns status`.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::picture::{self, Picture, wrapped};
use super::target::Meant;
use super::{advice, ended, print, print_json, status_now};
use crate::commands::failure::{FAILED, Failure};
use crate::config::Protocol;
use crate::control::{Brief, Client, PartStatus, Reply, Request, Status};
use crate::host::Host;
use crate::names::StackName;
use crate::plan::limits::Placement;
use crate::plan::reach::{self, Document};
use crate::plan::{Mode, Plan, Transport};
use crate::protocol;
use crate::state::{Liveness, StateRoot};
use crate::text::{harmless, harmless_lines, size};
use crate::traffic::{Losses, Refusals, Summary};

/// One line of `ps`; its fields are the keys of the JSON form, which are stable.
#[derive(Serialize)]
struct Row {
    stack: StackName,
    /// `up`, `starting`, `stopping`, `crashed` or `ended`.
    state: String,
    /// Of one that has ended: the exit code…
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<u8>,
    /// …and when that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<jiff::Timestamp>,
    /// As people read it.
    #[serde(skip)]
    shown: String,
    mode: Option<Mode>,
    /// Addresses and ports of the host, ports in a row as `FIRST-LAST`, with `/udp` where it is that.
    published: Vec<String>,
    apps: Vec<String>,
    /// How each is, in the same order, as its supervisor says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    app_states: Vec<String>,
    config: Option<std::path::PathBuf>,
}

/// How many supervisors are asked at once: each is a descriptor, and this process may have 1,024 as a rule.
const AT_ONCE: usize = 100;

impl Row {
    fn new(stack: StackName, state: &str) -> Self {
        Self {
            stack,
            state: state.to_owned(),
            shown: state.to_owned(),
            exit: None,
            ended: None,
            mode: None,
            published: vec![],
            apps: vec![],
            app_states: vec![],
            config: None,
        }
    }

    /// Asks the supervisor of a stack that is up how it is; [`Row::hear`] is told. One that has just ended is not.
    fn ask(&self, state: &StateRoot) -> Option<Client> {
        if self.state != "up" {
            return None;
        }
        let client = Client::connect(&state.control(&self.stack)).ok()?;
        client.ask(&Request::Brief).ok()?;
        Some(client)
    }

    /// Takes the answer; a supervisor that has no time yet to answer is starting, and one that does not know the question is
    /// of another version.
    fn hear(&mut self, client: &Client) -> Option<Brief> {
        let answer = || -> std::io::Result<Option<Brief>> {
            if !client.has_answered_by(tokio::time::Instant::now() + ANSWERS_WITHIN)? {
                return Ok(None);
            }
            match client.reply()? {
                Some((Reply::Brief(brief), _)) => Ok(Some(*brief)),
                Some(_) => Ok(None),
                None => Err(std::io::ErrorKind::UnexpectedEof.into()),
            }
        };
        match answer() {
            Ok(None) => {
                self.is("starting");
                None
            }
            // It has just ended.
            answer => answer.ok().flatten(),
        }
    }

    fn is(&mut self, state: &str) {
        state.clone_into(&mut self.state);
        state.clone_into(&mut self.shown);
    }

    fn take(&mut self, brief: Brief) {
        if let Some(word) = &brief.word {
            self.is(word);
        }
        self.mode = Some(brief.mode);
        self.published = brief.published;
        self.apps = brief.apps;
        self.app_states = brief.app_states;
        self.config = brief.config;
    }

    /// The apps, with how they are if that is more than that they run.
    fn shown_apps(&self) -> String {
        let plain = self.app_states.iter().all(|state| state == "running");
        if plain {
            return self.apps.join(" ");
        }
        let both = self.apps.iter().zip(&self.app_states);
        let both: Vec<String> = both.map(|(app, state)| format!("{app} {state}")).collect();
        both.join(", ")
    }
}

/// How long a supervisor may take to say how its apps are, before it is taken to be busy with the start.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Lists the stacks of this user; `all`, also those that have ended.
pub fn ps(all: bool, quiet: bool, json: bool) -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let mut rows = vec![];
    // Nothing was ever brought up: then there is no directory to lock either.
    let names = state.stacks()?;
    if !names.is_empty() {
        let held = state.lock()?;
        for stack in names {
            let liveness = match state.settle(&stack, &held)? {
                Liveness::Alive => "up",
                Liveness::Crashed => {
                    ended::note_crash(&state, &stack, &held);
                    "crashed"
                }
                Liveness::Absent => continue,
            };
            rows.push(Row::new(stack, liveness));
        }
    }
    // Names alone need no answer of a supervisor.
    if !quiet {
        // All of them before the first is heard: they answer beside each other.
        for some in rows.chunks_mut(AT_ONCE) {
            let asked: Vec<_> = some.iter().map(|row| row.ask(&state)).collect();
            for (row, client) in some.iter_mut().zip(asked) {
                let brief = client.and_then(|client| row.hear(&client));
                let planned = || state.plan(&row.stack).as_ref().map(Brief::of_plan);
                if let Some(brief) = brief.or_else(planned) {
                    row.take(brief);
                }
            }
        }
    }
    let lives = |stack: &StackName| rows.iter().any(|row: &Row| row.stack == *stack);
    let ended: Vec<StackName> = match all {
        true => state
            .all_ended()?
            .into_iter()
            .filter(|stack| !lives(stack))
            .collect(),
        false => vec![],
    };
    for stack in ended {
        let Some(ended) = ended::of(&state, &stack) else {
            continue;
        };
        rows.push(Row {
            shown: ended::state(&ended),
            exit: Some(ended.exit),
            ended: Some(ended.ended),
            mode: Some(ended.mode),
            published: ended.published,
            apps: ended.apps,
            config: ended.config,
            ..Row::new(stack, "ended")
        });
    }
    if quiet {
        let names: String = rows.iter().map(|row| format!("{}\n", row.stack)).collect();
        print(&names)?;
        return Ok(ExitCode::SUCCESS);
    }
    if json {
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table(&["STACK", "STATE", "PUBLISHED", "APPS", "CONFIGURATION"]);
    for row in rows {
        table.add_row(
            [
                row.stack.to_string(),
                row.shown.clone(),
                row.published.join(" "),
                row.shown_apps(),
                row.config
                    .map_or_else(|| "-".to_owned(), |path| path.display().to_string()),
            ]
            .map(|cell| harmless(&cell, usize::MAX)),
        );
    }
    print(&format!("{table}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// How a stack is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As people read it.
    Brief,
    /// With links, addresses and reasons.
    Full,
    /// As JSON.
    Json,
}

/// Shows one stack in full, or one part of it; one that has ended, and that is a failed check, or with `previous` the one
/// before.
pub(super) fn status(meant: &Meant, previous: bool, how: How) -> Result<ExitCode, Failure> {
    let json = how == How::Json;
    let Meant { stack, part } = meant;
    let part = part.as_deref();
    let ended = match previous {
        true => Some(ended::previous(stack)?),
        false => ended::instead(stack),
    };
    if let Some(ended) = ended {
        match json {
            true => print_json(&ended)?,
            false => print(&harmless_lines(&ended::describe(&ended, part)))?,
        }
        return Ok(match previous {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(FAILED),
        });
    }
    let status = status_now(stack)?;
    if let Some(part) = part {
        return part_status(&status, part, json);
    }
    if json {
        let unable = |e: serde_json::Error| Failure::unable(format!("write it as JSON: {e}"));
        let mut document = serde_json::to_value(&status).map_err(unable)?;
        document["plan"] = serde_json::to_value(Document::of(&status.plan)).map_err(unable)?;
        print_json(&document)?;
    } else {
        let mut text = describe(&status, how);
        for hint in advice::of_running(stack, &status).unwrap_or_default() {
            text += &format!("hint: {hint}\n");
        }
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What to say to who names a part that isn't there.
pub(super) fn no_such_part(status: &Status, name: &str) -> Failure {
    let names: Vec<&str> = status.parts.iter().map(|part| part.name.as_str()).collect();
    Failure::failed(format!("{} has no part `{name}`", status.plan.stack))
        .hint(format!("its parts are {}", names.join(", ")))
}

/// Shows one part.
fn part_status(status: &Status, name: &str, json: bool) -> Result<ExitCode, Failure> {
    let found = status.parts.iter().find(|part| part.name == name);
    let Some(part) = found else {
        return Err(no_such_part(status, name));
    };
    if json {
        print_json(part)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!(
        "{} of {}: {} since {:.0}\n{}\n",
        part.name,
        status.plan.stack,
        part.shown(status.plan.app_named(name)),
        part.since,
        parts_table(&status.plan, std::slice::from_ref(part)),
    );
    describe_life(&mut text, part);
    for note in &part.notes {
        text += &wrapped(&format!("{}: ", part.name), &harmless_lines(note));
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head);
    table
}

fn describe(status: &Status, how: How) -> String {
    let plan = &status.plan;
    let mode = plan.mode.as_str();
    let mut text = String::new();
    // Writing to a String can't fail.
    let is = match status.word() {
        "stopping" => "stopping, up",
        word => word,
    };
    let _ = writeln!(
        text,
        "{} is {is} since {} ({mode}, supervisor {})\n\n{}",
        plan.stack,
        format_args!("{:.0}", status.since),
        status.supervisor,
        picture::draw(&Picture::running(status))
    );
    if how == How::Full {
        describe_links(&mut text, plan);
    }
    let parts = parts_table(plan, &status.parts);
    let _ = writeln!(text, "{parts}");
    if let Some(traffic) = &status.traffic {
        describe_traffic(&mut text, traffic);
    }
    if let Some(refused) = status.refused_by_relay.as_ref().map(|refused| refused.all)
        && refused != Refusals::default()
    {
        let _ = writeln!(
            text,
            "relay   {} refused that `allow` does not name, {} by `rate`,\n        {} over their share of the relay",
            refused.not_allowed, refused.rate, refused.share
        );
    }
    for part in &status.parts {
        describe_life(&mut text, part);
    }
    describe_notes(&mut text, status);
    text
}

/// What the picture has not: links, addresses, and why each port is published as it is.
fn describe_links(text: &mut String, plan: &Plan) {
    let uplink = &plan.uplink;
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "uplink  {} {}/31 -- {}/31 {}\nbridge  {} {}/{}",
        uplink.host_link,
        uplink.host_address,
        uplink.sidecar_address,
        uplink.sidecar_link,
        plan.bridge.name,
        plan.bridge.address,
        plan.bridge.subnet.prefix_len()
    );
    if let [_, six] = plan.families().as_slice() {
        let _ = writeln!(
            text,
            "ipv6    {}/127 -- {}/127, {}/{}",
            six.host,
            six.sidecar,
            six.bridge,
            six.subnet.prefix_len()
        );
    }
    for range in reach::ranges(plan) {
        let via = match range.first.via {
            Transport::Dnat => "dnat",
            Transport::Relay => "relay",
        };
        let _ = writeln!(
            text,
            "publish {}{} -> {} {} by {via} ({})",
            range.listen(),
            match range.first.protocol {
                Protocol::Tcp => "/tcp",
                // It says so itself.
                Protocol::Udp => "",
            },
            range.app.name,
            range.service(),
            range.first.why
        );
    }
    if let Some(egress) = &plan.egress {
        let _ = writeln!(text, "{egress}");
    }
    let _ = writeln!(text);
}

fn parts_table(plan: &Plan, parts: &[PartStatus]) -> Table {
    let mut table = table(&[
        "PART",
        "STATE",
        "PID",
        "UID",
        "CAPABILITIES",
        "RESTARTS",
        "LAST EXIT",
    ]);
    for part in parts {
        table.add_row([
            &part.name,
            &part.shown(plan.app_named(&part.name)),
            &pid(part),
            &part.host_uid.to_string(),
            &capabilities(part),
            &part.restarts.to_string(),
            &part
                .last_exit
                .map_or_else(|| "-".to_owned(), |exit| exit.to_string()),
        ]);
    }
    table
}

/// What had to be left out: once, with all the parts of which it is true.
fn describe_notes(text: &mut String, status: &Status) {
    let mut said: Vec<(&str, Vec<&str>)> = vec![];
    let plan = &status.plan;
    let limits = plan.limits().map(|(_, limits)| limits);
    let of_host = plan.cgroup.complaint(limits);
    for part in &status.parts {
        for note in &part.notes {
            // Each part says it of its own limits.
            if of_host.is_some() && note.starts_with(Placement::COMPLAINT) {
                continue;
            }
            match said.iter_mut().find(|(other, _)| other == note) {
                Some((_, names)) => names.push(&part.name),
                None => said.push((note, vec![&part.name])),
            }
        }
    }
    for (note, names) in said {
        *text += &wrapped(&format!("{}: ", names.join(", ")), &harmless_lines(note));
    }
    *text += &of_host.map_or_else(String::new, |note| {
        wrapped("this host: ", &harmless_lines(&note))
    });
}

/// What health checks say, and when a part that has ended is started again.
fn describe_life(text: &mut String, part: &PartStatus) {
    if let Some(health) = &part.health {
        let state = match health.state {
            protocol::Health::Starting => "not healthy yet",
            protocol::Health::Healthy => "healthy",
            protocol::Health::Unhealthy => "unhealthy, its ports are closed",
        };
        let _ = write!(text, "{}: {state} since {:.0}", part.name, health.since);
        if health.failures > 0 {
            let _ = write!(text, ", {} checks in a row have failed", health.failures);
        }
        let output = health.output.as_deref().filter(|output| !output.is_empty());
        let _ = match output {
            Some(output) => writeln!(text, "; the last said: {output}"),
            None => writeln!(text),
        };
    }
    if let Some(next) = part.next_start {
        let _ = writeln!(text, "{}: is started again at {next:.0}", part.name);
    }
}

fn describe_traffic(text: &mut String, traffic: &Summary) {
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "traffic {} connections open, {} accepted; {} packets refused\n        {} from clients, {} to them",
        traffic.open,
        traffic.accepted,
        traffic.refused,
        bytes(traffic.bytes_from_clients),
        bytes(traffic.bytes_to_clients)
    );
    if traffic.apps.len() > 1 {
        for app in &traffic.apps {
            let _ = writeln!(
                text,
                "        {}: {} open, {} accepted, {} from clients, {} to them",
                app.name.as_deref().unwrap_or("no app"),
                app.open,
                app.accepted,
                bytes(app.bytes_from_clients),
                bytes(app.bytes_to_clients)
            );
        }
    }
    let lost = traffic.lost;
    if lost != Losses::default() {
        let _ = writeln!(
            text,
            "        the log lacks {} packets that the kernel could not hand over, {} lines\n        that were not taken in time, the ends of {} connections",
            lost.kernel, lost.sidecar, lost.table
        );
    }
}

/// As people write it, with the word where there is no unit.
fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} bytes"),
        more => size(more),
    }
}

fn pid(part: &PartStatus) -> String {
    part.pid
        .map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

/// What the part holds, from what the kernel said: all five sets, the widest first.
fn capabilities(part: &PartStatus) -> String {
    let Some(held) = &part.privileges else {
        return "-".to_owned();
    };
    let any = held.bounding | held.permitted | held.effective | held.inheritable | held.ambient;
    let names: Vec<String> = caps::all()
        .into_iter()
        .filter(|cap| any & cap.bitmask() != 0)
        .map(|cap| cap.to_string().trim_start_matches("CAP_").to_owned())
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" ")
    }
}
