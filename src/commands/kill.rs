//! `lrpns kill`: a signal to the command of an app.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use nix::sys::signal::Signal;

use super::target::Meant;
use super::{ask, reply};
use crate::commands::failure::Failure;
use crate::control::Request;

/// Sends a signal to the command of one app, or of every app.
pub(super) fn kill(meant: Meant, signal: Signal) -> Result<ExitCode, Failure> {
    let Meant { stack, part } = meant;
    let to = part.clone().unwrap_or_else(|| "every app".to_owned());
    let signal_number = signal as i32;
    let client = ask(
        &stack,
        &Request::Signal {
            part,
            signal: signal_number,
        },
    )?;
    reply(&client, &stack)?;
    eprintln!("{stack}: {signal} sent to {to}");
    Ok(ExitCode::SUCCESS)
}
