//! `lrpns restart`.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

use super::{
    answered_something_else, as_saved, ask, ask_with, hear, next_reply, reply, reply_or_end,
    status_of,
};
use crate::commands::failure::Failure;
use crate::control::{Reply, Request};
use crate::host::Host;
use crate::names::{PartName, StackName};
use crate::part::secrets::{self, SecretError};
use crate::state::{Staged, StateError};

/// Hands over what is in the secrets of apps that are to start again, as the supervisor may not read it. Which those are is what
/// root's plan says. All are read before any is handed over, so that nobody is ended who can't begin.
///
/// # Errors
/// A secret that can't be read, or the supervisor's refusal.
pub(super) fn renew(stack: &StackName, which: impl Fn(&PartName) -> bool) -> Result<(), Failure> {
    let Some(plan) = Host::state_root().plan(stack) else {
        // It doesn't run, as whoever asks for more hears next.
        return Ok(());
    };
    let apps = plan.apps.iter().filter(|app| app.turn.serves());
    let apps = apps.filter(|app| !app.secrets.is_empty() && which(&app.name));
    let read = apps.map(|app| Ok((app, secrets::read_again(app, &plan)?)));
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
        return Ok(());
    };
    let only_jobs = plan.apps.iter().all(|app| app.job);
    renew(stack, |name| {
        parts.iter().any(|part| match part {
            Some(part) => part == name.as_str(),
            None => only_jobs || plan.app(name).is_some_and(|app| !app.job),
        })
    })
}

/// Replaces apps, one after the other; or every app that can be.
pub fn replace(stack: &StackName, parts: Vec<String>) -> Result<ExitCode, Failure> {
    let requests: Vec<Option<String>> = match parts.is_empty() {
        true => vec![None],
        false => parts.into_iter().map(Some).collect(),
    };
    renew_of(stack, &requests)?;
    for part in requests {
        let replaced = replace_one(stack, part);
        // What was replaced before one that wasn't is where it is now.
        let saved = save(stack);
        replaced.and(saved)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn replace_one(stack: &StackName, part: Option<String>) -> Result<(), Failure> {
    let client = ask(stack, &Request::Replace { part })?;
    loop {
        match reply_or_end(&client, stack)? {
            Some((Reply::Waits(what), _)) => eprintln!("{stack}: {what}"),
            Some((Reply::Done, _)) => return Ok(()),
            Some(_) => {}
            None => return Err(Failure::failed(format!("{stack} ended meanwhile"))),
        }
    }
}

/// Saves where the apps are by now. Without that, should this command be killed, nothing is wrong: the next one does it.
fn save(stack: &StackName) -> Result<(), Failure> {
    let unsaved = |e: StateError| {
        let e = Failure::from(e);
        Failure {
            message: format!("{stack}: its plan could not be saved: {}", e.message),
            ..e
        }
    };
    let staged = Staged::begin(&Host::state_root().stack(stack)).map_err(unsaved)?;
    let said = status_of(stack)?.plan;
    // Another is at it, and saves it.
    if said.replaces().is_some() {
        return Ok(());
    }
    staged.commit(&as_saved(&said)?).map_err(unsaved)
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
