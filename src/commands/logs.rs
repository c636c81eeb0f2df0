//! `lrpns logs`.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use jiff::Timestamp;
use regex_lite::Regex;
use rustix::event::{PollFd, PollFlags};

use super::{ask, cannot_print, ended, next_reply};
use crate::commands::failure::Failure;
use crate::control::evidence::Ended;
use crate::control::{Client, Reply, Request};
use crate::log::{Filter, LogLine};
use crate::names::StackName;

/// What is wanted of a log.
pub struct Wanted {
    /// Lines of these parts; of all, if there is none.
    pub parts: Vec<String>,
    /// No more than the last ones of what there is.
    pub lines: Option<usize>,
    /// Of those, which.
    pub sieve: Sieve,
    /// Go on with what comes.
    pub follow: bool,
    /// Of the stack that came before.
    pub previous: bool,
    /// One JSON document a line.
    pub json: bool,
}

/// Which lines are wanted, whosever they are: looked at here, and not by the supervisor, whose time is every part's.
#[derive(Debug, Clone, Default)]
pub struct Sieve {
    /// Not those from before.
    pub since: Option<Timestamp>,
    /// Not those from after.
    pub until: Option<Timestamp>,
    /// Only those that this matches.
    pub grep: Option<Regex>,
}

impl Sieve {
    /// Whether it lets a line through.
    pub fn wants(&self, line: &LogLine) -> bool {
        self.since.is_none_or(|since| line.time >= since)
            && self.until.is_none_or(|until| line.time <= until)
            && self.grep.as_ref().is_none_or(|re| re.is_match(&line.text))
    }
}

/// Prints lines; first those that are held back, as long as it is not known which are the last ones.
struct Printer {
    sieve: Sieve,
    json: bool,
    colour: bool,
    /// No more of those that are there already.
    last: Option<usize>,
    held: VecDeque<LogLine>,
}

/// Whether there is still somebody who reads.
type Read = bool;

impl Printer {
    fn new(wanted: &Wanted) -> Self {
        Self {
            sieve: wanted.sieve.clone(),
            json: wanted.json,
            colour: std::io::stdout().is_terminal(),
            last: wanted.lines,
            held: VecDeque::new(),
        }
    }

    fn line(&mut self, line: LogLine) -> Result<Read, Failure> {
        if !self.sieve.wants(&line) {
            return Ok(true);
        }
        let Some(last) = self.last else {
            return self.print(&line);
        };
        self.held.push_back(line);
        if self.held.len() > last {
            self.held.pop_front();
        }
        Ok(true)
    }

    /// What comes next is new.
    fn up_to_date(&mut self) -> Result<Read, Failure> {
        self.last = None;
        for line in std::mem::take(&mut self.held) {
            if !self.print(&line)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn print(&self, line: &LogLine) -> Result<Read, Failure> {
        let text = match self.json {
            true => line.json(),
            false => line.human(self.colour),
        };
        let mut out = anstream::stdout();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            // Whoever read it has seen enough.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(cannot_print(e)),
        }
    }
}

/// Prints the log, and what comes if asked to.
pub fn logs(stack: &StackName, wanted: Wanted) -> Result<ExitCode, Failure> {
    let ended = match wanted.previous {
        true => Some(ended::previous(stack)?),
        false => ended::instead(stack),
    };
    match ended {
        Some(ended) => of_ended(&ended, &wanted)?,
        None => of_running(stack, &wanted)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn of_running(stack: &StackName, wanted: &Wanted) -> Result<(), Failure> {
    let filter = Filter {
        parts: wanted.parts.clone(),
        ..Filter::default()
    };
    let follow = wanted.follow;
    let client = ask(stack, &Request::Logs { filter, follow })?;
    let mut printer = Printer::new(wanted);
    loop {
        if !is_read(&client).map_err(cannot_print)? {
            return Ok(());
        }
        let goes_on = match next_reply(&client, stack)? {
            Some((Reply::Line(line), _)) => printer.line(line)?,
            Some((Reply::UpToDate, _)) => printer.up_to_date()?,
            Some(_) => {
                printer.up_to_date()?;
                false
            }
            // The stack went down while we followed it: that is how a log ends.
            None if follow => {
                printer.up_to_date()?;
                false
            }
            None => return Err(Failure::failed(format!("{stack} ended meanwhile"))),
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// What a stack that has ended said last.
fn of_ended(ended: &Ended, wanted: &Wanted) -> Result<(), Failure> {
    for part in &wanted.parts {
        if !ended.parts.iter().any(|known| known.name == *part)
            && !ended.lines.iter().any(|line| line.part == *part)
        {
            let names: Vec<&str> = ended.parts.iter().map(|part| part.name.as_str()).collect();
            return Err(
                Failure::failed(format!("{} had no part `{part}`", ended.stack))
                    .hint(format!("its parts were {}", names.join(", "))),
            );
        }
    }
    let filter = Filter {
        parts: wanted.parts.clone(),
        ..Filter::default()
    };
    let mut printer = Printer::new(wanted);
    for line in &ended.lines {
        if filter.wants(&line.part, line.stream) && !printer.line(line.clone())? {
            return Ok(());
        }
    }
    printer.up_to_date()?;
    Ok(())
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
