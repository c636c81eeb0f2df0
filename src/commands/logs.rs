//! `lrpns logs`.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags};

use super::{ask, cannot_print, ended, next_reply};
use crate::commands::failure::Failure;
use crate::control::{Client, Reply, Request};
use crate::log::Filter;
use crate::names::StackName;

/// What is wanted of a log.
pub struct Wanted {
    /// Which lines.
    pub filter: Filter,
    /// Go on with what comes.
    pub follow: bool,
    /// Of the stack that came before.
    pub previous: bool,
    /// One JSON document a line.
    pub json: bool,
}

/// Prints the log, and what comes if asked to.
pub fn logs(stack: &StackName, wanted: Wanted) -> Result<ExitCode, Failure> {
    let Wanted {
        filter,
        follow,
        previous,
        json,
    } = wanted;
    let colour = std::io::stdout().is_terminal();
    let ended = match previous {
        true => Some(ended::previous(stack)?),
        false => ended::instead(stack),
    };
    if let Some(ended) = ended {
        ended::logs(&ended, &filter, json, colour)?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = ask(stack, &Request::Logs { filter, follow })?;
    let mut out = anstream::stdout();
    loop {
        if !is_read(&client).map_err(cannot_print)? {
            return Ok(ExitCode::SUCCESS);
        }
        let line = match next_reply(&client, stack)? {
            Some((Reply::Line(line), _)) => line,
            // The stack went down while we followed it: that is how a log ends.
            None if follow => return Ok(ExitCode::SUCCESS),
            None => return Err(Failure::failed(format!("{stack} ended meanwhile"))),
            Some(_) => return Ok(ExitCode::SUCCESS),
        };
        let text = if json {
            line.json()
        } else {
            line.human(colour)
        };
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => {}
            // Whoever read it has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(e) => return Err(cannot_print(e)),
        }
    }
}

/// Waits until there is more to print; `false` when nobody reads it any more, which a pipe tells of without a write.
fn is_read(client: &Client) -> std::io::Result<bool> {
    let stdout = std::io::stdout();
    loop {
        let mut ready = [
            PollFd::new(client, PollFlags::IN),
            PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
        ];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [more, gone] = ready.map(|fd| !fd.revents().is_empty());
        if more || gone {
            return Ok(!gone);
        }
    }
}
