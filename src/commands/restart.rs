//! `lrpns restart`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use super::{ask, hear, next_reply, reply_or_end};
use crate::commands::failure::Failure;
use crate::control::{Reply, Request};
use crate::names::StackName;

/// Replaces apps, one after the other; or every app that can be.
pub fn replace(stack: &StackName, parts: Vec<String>) -> Result<ExitCode, Failure> {
    let requests: Vec<Option<String>> = match parts.is_empty() {
        true => vec![None],
        false => parts.into_iter().map(Some).collect(),
    };
    for part in requests {
        let client = ask(stack, &Request::Replace { part })?;
        loop {
            match reply_or_end(&client, stack)? {
                Some((Reply::Waits(what), _)) => eprintln!("{stack}: {what}"),
                Some((Reply::Done, _)) => break,
                Some(_) => {}
                None => return Err(Failure::failed(format!("{stack} ended meanwhile"))),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
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
