//! What would help the apps of a running stack that are not well, or turn their clients away: beside what `up` says of one that
//! does not come up, what is said by `status` and `logs` of one that came up.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::cause::Case;
use super::{ask, next_reply};
use crate::commands::failure::Failure;
use crate::config::Source;
use crate::control::{PartState, PartStatus, Reply, Request, Status};
use crate::log::{Filter, LogLine, Stream};
use crate::names::StackName;
use crate::plan::{AppPlan, Plan};
use crate::protocol::Exit;
use crate::text::harmless_lines;

/// What would help an app, as far as is known: the one of that name, or the one that has spoken last.
pub(super) fn hints(
    apps: &[AppPlan],
    name: Option<&str>,
    exit: Option<Exit>,
    said: &[LogLine],
) -> Vec<String> {
    case(apps, name, exit, said).map_or_else(Vec::new, |case| case.hints())
}

/// Says them, each in a line.
pub(super) fn tell(hints: &[String]) {
    for hint in hints {
        eprintln!("hint: {}", harmless_lines(hint));
    }
}

/// What is known of it.
pub(super) fn case<'a>(
    apps: &'a [AppPlan],
    name: Option<&str>,
    exit: Option<Exit>,
    said: &[LogLine],
) -> Option<Case<'a>> {
    let of = |name: &str| apps.iter().find(|app| app.name.as_str() == name);
    let app = match name {
        Some(name) => of(name),
        None => said.iter().rev().find_map(|line| of(&line.part)),
    };
    let app = app.or(apps.first())?;
    let own = |line: &&LogLine| {
        line.part == app.name.as_str() && matches!(line.stream, Stream::Out | Stream::Err)
    };
    let said = said
        .iter()
        .filter(own)
        .map(|line| line.text.clone())
        .collect();
    Some(Case { app, exit, said })
}

/// The hints for the apps of a stack that runs, one after the other; none where all are well.
///
/// # Errors
/// Its supervisor does not answer.
pub(super) fn of_running(stack: &StackName, status: &Status) -> Result<Vec<String>, Failure> {
    let mut all = vec![];
    for part in &status.parts {
        let Some(app) = status.plan.app_named(&part.name) else {
            continue;
        };
        let exit = ended(app, part);
        if exit.is_none() && app.publish.is_empty() {
            continue;
        }
        let said = said(stack, &part.name)?;
        let apps = std::slice::from_ref(app);
        match exit {
            Some(_) => all.extend(hints(apps, Some(&part.name), exit, &said)),
            None => {
                let case = case(apps, Some(&part.name), None, &said);
                let seen = seen(&status.plan, app);
                all.extend(case.and_then(|case| case.turns_away(&seen, is_silent(status, part))));
            }
        }
    }
    Ok(all)
}

/// How an app has ended that ought to run.
fn ended(app: &AppPlan, part: &PartStatus) -> Option<Exit> {
    let exit = part.last_exit?;
    let done = app.job && exit == Exit::Status(0);
    let down = part.state == PartState::Ended || part.next_start.is_some() || part.in_a_row > 0;
    (down && !done).then_some(exit)
}

/// Where an app sees its clients, those of this host among them.
fn seen(plan: &Plan, app: &AppPlan) -> Vec<IpAddr> {
    let (four, six) = match app.source {
        Source::Localhost => return vec![],
        Source::Sidecar => (plan.bridge.address, plan.bridge.address6),
        Source::Client => (plan.uplink.host_address, plan.uplink.host_address6),
    };
    let six = six.map(IpAddr::from);
    [IpAddr::from(four)].into_iter().chain(six).collect()
}

/// Whether an app has had clients, of whom none got a byte. The first connection was our own, to see whether it answers: while
/// even that is open, the app takes none.
fn is_silent(status: &Status, part: &PartStatus) -> bool {
    let mut apps = status.traffic.iter().flat_map(|traffic| &traffic.apps);
    let own = apps.find(|app| app.name.as_deref() == Some(&part.name));
    own.is_some_and(|app| {
        let none_goes_on = app.open == 0 || app.open == app.accepted;
        app.accepted > 1 && app.bytes_to_clients == 0 && none_goes_on
    })
}

/// What it said since its supervisor has been there, as far as that is kept.
fn said(stack: &StackName, part: &str) -> Result<Vec<LogLine>, Failure> {
    let filter = Filter {
        parts: vec![part.to_owned()],
        ..Filter::default()
    };
    let client = ask(
        stack,
        &Request::Logs {
            filter,
            follow: false,
        },
    )?;
    let mut lines = vec![];
    while let Some((Reply::Line(line), _)) = next_reply(&client, stack)? {
        lines.push(line);
    }
    Ok(lines)
}
