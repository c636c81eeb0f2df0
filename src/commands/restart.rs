//! `lrpns restart`.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use super::{ask, next_reply, target_name};
use crate::commands::failure::Failure;
use crate::control::Request;
use crate::host::Host;
use crate::names::StackName;

/// Starts a part again, or every app.
pub fn restart(words: Vec<String>, file: Option<&Path>) -> Result<ExitCode, Failure> {
    let alone = words.len() == 1;
    let mut words = words.into_iter();
    let (stack, part) = match (words.next(), words.next()) {
        (Some(stack), Some(part)) => (Some(stack), Some(part)),
        // One word alone is a stack if there is one of that name, else a part.
        (Some(word), None) => match StackName::new(word.as_str()) {
            Ok(name) if Host::state_root().stack(&name).is_dir() => (Some(word), None),
            _ => (None, Some(word)),
        },
        _ => (None, None),
    };
    let stack = stack
        .map(StackName::new)
        .transpose()
        .map_err(Failure::usage)?;
    let stack = target_name(stack, file)?;
    let client = ask(&stack, &Request::Restart { part: part.clone() });
    let client = client.map_err(|e| match &part {
        Some(word) if alone => e.hint(format!(
            "no stack {word} runs either, so {word} was taken for a part of {stack}; lrpns ps shows what does"
        )),
        _ => e,
    })?;
    // One answer for each part, then the end.
    let mut refused = vec![];
    let mut answers = 0;
    loop {
        match next_reply(&client, &stack) {
            Ok(Some(_)) => answers += 1,
            Ok(None) => break,
            Err(e) => refused.push(e),
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
    eprintln!(
        "{stack}: {} started again",
        part.as_deref().unwrap_or("every app")
    );
    Ok(ExitCode::SUCCESS)
}
