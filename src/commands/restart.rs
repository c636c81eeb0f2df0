//! `lrpns restart`.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

use super::{
    answered_something_else, as_saved, ask, ask_with, hear, next_reply, reply, reply_or_end,
    status_by,
};
use crate::commands::failure::{Failure, UNABLE};
use crate::control::{Reply, Request};
use crate::host::Host;
use crate::names::{PartName, StackName};
use crate::part::cgroup::{self, Entrance};
use crate::part::secrets::{self, SecretError};
use crate::plan::Plan;
use crate::state::{Staged, StateError};
use crate::text::harmless_lines;

/// Hands over what is in the secrets of apps that are to start again, as the supervisor may not read it. Which those are is what
/// root's plan says. All are read before any is handed over, so that nobody is ended who can't begin.
///
/// # Errors
/// A secret that can't be read, or the supervisor's refusal.
pub(super) fn renew(plan: &Plan, which: impl Fn(&PartName) -> bool) -> Result<(), Failure> {
    let stack = &plan.stack;
    let apps = plan.apps.iter().filter(|app| app.turn.serves());
    let apps = apps.filter(|app| !app.secrets.is_empty() && which(&app.name));
    let read = apps.map(|app| Ok((app, secrets::read_again(app, plan)?)));
    let read: Result<Vec<_>, SecretError> = read.collect();
    let read = read.map_err(|e| with_hint(&e))?;
    for (app, (copies, stay)) in read {
        for e in stay {
            eprintln!("{stack}: {e}; it has what was in it before");
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
        }
        let request = Request::Secrets {
            app: app.name.clone(),
            names: copies.keys().cloned().collect(),
        };
        let fds: Vec<_> = copies.values().map(AsFd::as_fd).collect();
        let client = ask_with(stack, &request, &fds)?;
        match reply(&client, stack)?.0 {
            Reply::Done => {}
            _ => return Err(answered_something_else(stack)),
        }
    }
    Ok(())
}

fn with_hint(e: &SecretError) -> Failure {
    let failure = Failure::failed(e.to_string());
    match e.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The same for what is asked for by names, or for every app that does more than a job.
fn renew_of(stack: &StackName, parts: &[Option<String>]) -> Result<(), Failure> {
    let Some(plan) = Host::state_root().plan(stack) else {
        // It doesn't run, as whoever asks for more hears next.
        return Ok(());
    };
    let only_jobs = plan.apps.iter().all(|app| app.job);
    renew(&plan, |name| {
        parts.iter().any(|part| match part {
            Some(part) => part == name.as_str(),
            None => only_jobs || plan.app(name).is_some_and(|app| !app.job),
        })
    })
}

/// Replaces apps, one after the other; or every app that can be.
pub fn replace(stack: &StackName, parts: Vec<String>) -> Result<ExitCode, Failure> {
    let plan = plan_of(stack)?;
    let mut parts: Vec<Option<String>> = parts.into_iter().map(Some).collect();
    if parts.is_empty() {
        let all = plan
            .start_order()
            .into_iter()
            .map(|place| &plan.apps[place]);
        let can = all.filter(|app| plan.can_roll(app).is_ok());
        parts.extend(can.map(|app| Some(app.name.to_string())));
    }
    if parts.is_empty() {
        // The supervisor says why.
        parts.push(None);
    }
    renew_of(stack, &parts)?;
    for part in parts {
        replace_one(stack, part)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a stack is by the word of its supervisor.
fn plan_of(stack: &StackName) -> Result<Plan, Failure> {
    Ok(status_by(stack, &Request::Look { processes: false })?.plan)
}

/// Replaces an app. The cgroup of the other one is made here, and what is left of one is removed, since cgroups are root's; for
/// as long nobody else changes the stack. Should this process be killed, what is left of a cgroup goes with the stack, or with
/// the next replacement, and so does what is not saved.
fn replace_one(stack: &StackName, part: Option<String>) -> Result<(), Failure> {
    // Of somebody else who is at it the supervisor knows.
    let staged = Staged::try_begin(&Host::state_root().stack(stack))?;
    let mut room = None;
    if let (Some(_), Some(part)) = (&staged, &part) {
        let said = plan_of(stack)?;
        // Of an app that there is not, or is there twice, the supervisor knows as well.
        let app = said.app_named(part).map(|app| app.name.clone());
        if let (Some(name), None) = (app, said.replaces()) {
            let plan = as_saved(stack, &said)?;
            if let Some(app) = plan.app(&name).filter(|app| plan.can_roll(app).is_ok()) {
                room = cgroup::add(&plan.cgroup, &app.others_name(), &app.limits)
                    .map_err(Failure::unable)?;
            }
        }
    }
    let replaced = ask_to_replace(stack, part.clone(), room);
    // What was replaced is where it is now, and what wasn't leaves something as well.
    let saved = staged.map_or(Ok(()), |staged| save(stack, part, staged));
    replaced.and(saved)
}

fn ask_to_replace(
    stack: &StackName,
    part: Option<String>,
    room: Option<Entrance>,
) -> Result<(), Failure> {
    let fds = room.iter().flat_map(Entrance::fds).collect::<Vec<_>>();
    let client = ask_with(stack, &Request::Replace { part }, &fds)?;
    loop {
        match reply_or_end(&client, stack)? {
            Some((Reply::Waits(what), _)) => eprintln!("{stack}: {}", harmless_lines(&what)),
            Some((Reply::Done, _)) => return Ok(()),
            Some(_) => {}
            None => return Err(Failure::failed(format!("{stack} ended meanwhile"))),
        }
    }
}

/// Saves where the apps are by now, and removes the cgroup that one of them is in no more.
fn save(stack: &StackName, part: Option<String>, staged: Staged) -> Result<(), Failure> {
    let unsaved = |e: StateError| {
        let e = Failure::from(e);
        Failure {
            message: format!("{stack}: its plan could not be saved: {}", e.message),
            ..e
        }
    };
    let said = plan_of(stack)?;
    // It has gone on without us, and is at it still.
    if said.replaces().is_some() {
        return Ok(());
    }
    let plan = as_saved(stack, &said)?;
    staged.commit(&plan).map_err(unsaved)?;
    let app = part.and_then(|part| plan.app_named(&part));
    app.map_or(Ok(()), |app| {
        cgroup::take(&plan.cgroup, &app.others_name()).map_err(Failure::unable)
    })
}

/// Starts parts again, or every app.
pub fn restart(stack: &StackName, parts: Vec<String>) -> Result<ExitCode, Failure> {
    let said = match parts.is_empty() {
        true => "every app".to_owned(),
        false => parts.join(", "),
    };
    let requests: Vec<Option<String>> = match parts.is_empty() {
        true => vec![None],
        false => parts.into_iter().map(Some).collect(),
    };
    renew_of(stack, &requests)?;
    // All of them at the same time.
    let clients = requests
        .into_iter()
        .map(|part| ask(stack, &Request::Restart { part }))
        .collect::<Result<Vec<_>, _>>()?;
    // One answer for each part, then the end.
    let mut refused = vec![];
    let mut answers = 0;
    for client in &clients {
        loop {
            hear(client, stack)?;
            match next_reply(client, stack) {
                Ok(Some(_)) => answers += 1,
                Ok(None) => break,
                // Nothing more is to be had of that one.
                Err(e) if e.code == UNABLE => return Err(e),
                Err(e) => refused.push(e),
            }
        }
    }
    let first = refused.first().cloned();
    if let Some(failure) = first {
        let all: Vec<String> = refused.into_iter().map(|e| e.message).collect();
        return Err(Failure {
            message: all.join("\n"),
            ..failure
        });
    }
    if answers == 0 {
        return Err(Failure::failed(format!("{stack} ended meanwhile")));
    }
    eprintln!("{stack}: {said} started again");
    Ok(ExitCode::SUCCESS)
}
