//! `lrpns logs`.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use super::{ask, reply};
use crate::control::{Reply, Request};
use crate::error::Failure;
use crate::logbuf::Filter;
use crate::names::StackName;

/// Prints the log, and what comes if asked to.
pub fn logs(
    stack: &StackName,
    follow: bool,
    part: Option<String>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let filter = Filter {
        part,
        ..Filter::default()
    };
    let client = ask(stack, &Request::Logs { filter, follow })?;
    let colour = std::io::stdout().is_terminal();
    let mut out = anstream::stdout();
    loop {
        let line = match reply(&client, stack) {
            Ok((Reply::Line(line), _)) => line,
            Ok(_) => return Ok(ExitCode::SUCCESS),
            // The stack went down while we followed it: that is how a log ends.
            Err(e) if follow && e.code == crate::error::FAILED => return Ok(ExitCode::SUCCESS),
            Err(e) => return Err(e),
        };
        let text = if json {
            line.json()
        } else {
            line.human(colour)
        };
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}
