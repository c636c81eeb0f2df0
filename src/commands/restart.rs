//! `lrpns restart`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use super::{as_saved, ask, hear, next_reply, reply_or_end, status_of};
use crate::commands::failure::Failure;
use crate::control::{Reply, Request};
use crate::host::Host;
use crate::names::StackName;
use crate::state::{Staged, StateError};

/// Replaces apps, one after the other; or every app that can be.
pub fn replace(stack: &StackName, parts: Vec<String>) -> Result<ExitCode, Failure> {
    let requests: Vec<Option<String>> = match parts.is_empty() {
        true => vec![None],
        false => parts.into_iter().map(Some).collect(),
    };
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
