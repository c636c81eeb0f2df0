//! `lrpns logs`.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, VecDeque};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;
use regex_lite::Regex;
use rustix::event::{PollFd, PollFlags};

use super::{advice, ask, cannot_print, ended, hear, next_reply, written};
use crate::commands::failure::Failure;
use crate::config::RecordTo;
use crate::control::evidence::Ended;
use crate::control::{Client, Reply, Request};
use crate::host::Host;
use crate::log::files::{self, About};
use crate::log::journald;
use crate::log::{Filter, LogLine, Stream, TrafficBuf};
use crate::names::StackName;
use crate::plan::RecordPlan;
use crate::state::Liveness;
use crate::supervise;
use crate::text::harmless;

/// More than that is told of nothing that was passed over, in bytes.
const NAME_AND_WHY: usize = 512;

/// What is wanted of a log.
pub struct Wanted {
    /// Lines of these parts; of all, if there is none.
    pub parts: Vec<String>,
    /// Lines of this stream; of all, if none is said.
    pub stream: Option<Stream>,
    /// What comes before all of it, of a stack that runs.
    pub first: Vec<LogLine>,
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
    /// Whether it lets everything through.
    fn is_all(&self) -> bool {
        self.since.is_none() && self.until.is_none() && self.grep.is_none()
    }

    /// Whether it lets a line through.
    pub fn wants(&self, line: &LogLine) -> bool {
        self.since.is_none_or(|since| line.time >= since)
            && self.until.is_none_or(|until| line.time <= until)
            && self.grep.as_ref().is_none_or(|re| re.is_match(&line.text))
    }
}

impl Wanted {
    /// Whether somebody reads all there is, so that what to do about it goes with it.
    fn is_whole(&self) -> bool {
        self.stream.is_none() && self.sieve.is_all() && !self.json
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
        written(anstream::stdout(), &(text + "\n"))
    }
}

/// Prints what has become of a stack's parts: the log's events, after their first starts, of which the log says nothing.
pub fn events(stack: &StackName, mut wanted: Wanted) -> Result<ExitCode, Failure> {
    let lives = matches!(Host::state_root().liveness(stack), Ok(Liveness::Alive));
    if lives && !wanted.previous {
        let status = super::status_now(stack)?;
        let parts = wanted.parts.as_slice();
        let is_wanted = |name: &String| parts.is_empty() || parts.contains(name);
        let mut first: Vec<LogLine> = { status.parts.iter() }
            .filter(|part| part.restarts == 0 && part.pid.is_some() && is_wanted(&part.name))
            .map(|part| LogLine {
                time: part.since,
                part: part.name.clone(),
                stream: Stream::Event,
                text: "started".to_owned(),
                continues: false,
                traffic: None,
            })
            .collect();
        first.sort_by_key(|line| line.time);
        wanted.first = first;
    }
    wanted.stream = Some(Stream::Event);
    logs(stack, wanted)
}

/// Prints the log, and what comes if asked to.
pub fn logs(stack: &StackName, wanted: Wanted) -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let plan = state.plan(stack);
    let lives = matches!(state.liveness(stack), Ok(Liveness::Alive));
    if lives && !wanted.previous {
        let recorded = plan.and_then(|plan| Recorded::of(stack, &plan.record, &plan.run));
        of_running(stack, &wanted, recorded)?;
        if wanted.is_whole() && !wanted.follow {
            // It may have ended since, and then there is nothing to advise.
            let status = super::status_now(stack).ok();
            let hints = status.and_then(|status| advice::of_running(stack, &status).ok());
            advice::tell(&hints.unwrap_or_default());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ended = ended::of(&state, stack);
    let recorded = match (&ended, plan) {
        // Its supervisor was killed.
        (_, Some(plan)) if !lives => Recorded::of(stack, &plan.record, &plan.run),
        (Some(ended), _) if ended.log.is_none() => ended
            .journal
            .then(|| Recorded::in_the_journal(stack, &ended.run)),
        (ended, plan) => {
            let dir = plan.map(|plan| plan.record.dir);
            let dir = dir.or_else(|| ended.as_ref().and_then(|ended| ended.log.clone()));
            let on_disk = OnDisk::at(dir.unwrap_or_else(|| Host::logs().join(stack.as_str())));
            let on_disk = match lives {
                true => on_disk.and_then(OnDisk::previous),
                false => on_disk,
            };
            on_disk.map(Recorded::OnDisk)
        }
    };
    match (ended, recorded) {
        (None, None) if wanted.previous => return Err(ended::none(stack)),
        (None, None) => return Err(super::no_connection(&state, stack)),
        (Some(ended), recorded) => of_ended(stack, ended, recorded, &wanted)?,
        (None, Some(recorded)) => print_all(recorded.lines(&wanted)?, &wanted)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the log of a stack is that its supervisor doesn't have any more.
enum Recorded {
    OnDisk(OnDisk),
    InTheJournal { stack: StackName, run: String },
}

impl Recorded {
    /// Where a plan wants it, and there is one.
    fn of(stack: &StackName, record: &RecordPlan, run: &str) -> Option<Self> {
        let on_disk = || OnDisk::at(record.dir.clone()).map(Self::OnDisk);
        match record.to {
            RecordTo::Off => None,
            RecordTo::File | RecordTo::Both => on_disk(),
            RecordTo::Journal => Some(Self::in_the_journal(stack, run)),
            RecordTo::Auto => match supervise::systemd_runs() {
                true => Some(Self::in_the_journal(stack, run)),
                false => on_disk(),
            },
        }
    }

    fn in_the_journal(stack: &StackName, run: &str) -> Self {
        Self::InTheJournal {
            stack: stack.clone(),
            run: run.to_owned(),
        }
    }

    /// The lines that are wanted; older ones than of this run only if a time is asked for.
    fn lines(&self, wanted: &Wanted) -> Result<Vec<LogLine>, Failure> {
        match self {
            Self::OnDisk(on_disk) => on_disk.lines(wanted),
            Self::InTheJournal { stack, run } => {
                let run = wanted.sieve.since.is_none().then_some(run.as_str());
                let filter = wanted.filter();
                let read = journald::read(stack.as_str(), run, wanted.sieve.since, |line| {
                    filter.wants(&line.part, line.stream)
                });
                read.map_err(|e| {
                    Failure::unable(format!("read the journal: {e}"))
                        .hint(format!("its log is there: journalctl LRPNS_STACK={stack}"))
                })
            }
        }
    }
}

/// The log of a stack on disk, from a run of it on.
struct OnDisk {
    dir: PathBuf,
    about: About,
    /// When that run began…
    from: Timestamp,
    /// …and the one after it.
    to: Option<Timestamp>,
}

impl OnDisk {
    fn at(dir: PathBuf) -> Option<Self> {
        let about = files::about(&dir)?;
        let from = about.begun;
        Some(Self {
            dir,
            about,
            from,
            to: None,
        })
    }

    /// The same of the run before.
    fn previous(self) -> Option<Self> {
        Some(Self {
            from: self.about.previous?,
            to: Some(self.about.begun),
            ..self
        })
    }

    /// The lines that are wanted; older ones than of this run only if a time is asked for.
    fn lines(&self, wanted: &Wanted) -> Result<Vec<LogLine>, Failure> {
        let filter = wanted.filter();
        let from = wanted.sieve.since.unwrap_or(self.from);
        let wants = |line: &LogLine| {
            line.time >= from
                && self.to.is_none_or(|to| line.time < to)
                && filter.wants(&line.part, line.stream)
        };
        let dir = self.dir.display();
        let found = files::read(&self.dir, wants)
            .map_err(|e| Failure::unable(format!("read {dir}: {e}")))?;
        for name in &found.passed_over {
            eprintln!("passed over in {dir}: {}", harmless(name, NAME_AND_WHY));
        }
        Ok(found.lines)
    }
}

impl Wanted {
    /// What the supervisor can choose.
    fn filter(&self) -> Filter {
        Filter {
            parts: self.parts.clone(),
            stream: self.stream,
            ..Filter::default()
        }
    }
}

/// From memory, and what was forgotten there from disk.
fn of_running(
    stack: &StackName,
    wanted: &Wanted,
    recorded: Option<Recorded>,
) -> Result<(), Failure> {
    let (filter, follow) = (wanted.filter(), wanted.follow);
    let client = ask(stack, &Request::Logs { filter, follow })?;
    // It begins at once, with a line or with the end of them.
    hear(&client, stack)?;
    let mut printer = Printer::new(wanted);
    for line in &wanted.first {
        if !printer.line(line.clone())? {
            return Ok(());
        }
    }
    // With what is on disk it is to be put into one order first.
    let mut held = recorded.map(|recorded| (recorded, vec![]));
    loop {
        if !is_read(&client).map_err(cannot_print)? {
            return Ok(());
        }
        let said = next_reply(&client, stack)?;
        let goes_on = match (said, &mut held) {
            (Some((Reply::Line(line), _)), Some((_, lines))) => {
                lines.push(line);
                true
            }
            (Some((Reply::Line(line), _)), None) => printer.line(line)?,
            (None, _) if !follow => {
                return Err(Failure::failed(format!("{stack} ended meanwhile")));
            }
            // Else the stack went down while we followed it: that is how a log ends.
            (said, _) => {
                if let Some((recorded, lines)) = held.take() {
                    for line in with_older(older(&recorded, wanted)?, lines) {
                        if !printer.line(line)? {
                            return Ok(());
                        }
                    }
                }
                printer.up_to_date()? && matches!(said, Some((Reply::UpToDate, _)))
            }
        };
        if !goes_on {
            return Ok(());
        }
    }
}

/// What a running stack has recorded. The journal is asked only if somebody wants to go further back than memory may: that
/// takes a while.
fn older(recorded: &Recorded, wanted: &Wanted) -> Result<Vec<LogLine>, Failure> {
    match recorded {
        Recorded::InTheJournal { .. } if wanted.sieve.since.is_none() => Ok(vec![]),
        recorded => recorded.lines(wanted),
    }
}

/// What was said before the oldest line that is still in memory, and then that. The traffic log has memory of its own, and
/// may go further back.
fn with_older(mut on_disk: Vec<LogLine>, memory: Vec<LogLine>) -> Vec<LogLine> {
    // Not the first: a connection's beginning is told when it is known to have begun, with the time of its first packet.
    let oldest = |traffic: bool| {
        let of_that = |line: &&LogLine| (line.stream == Stream::Traffic) == traffic;
        memory.iter().filter(of_that).map(|line| line.time).min()
    };
    let (other, traffic) = (oldest(false), oldest(true));
    on_disk.retain(|line| {
        // What was left out on disk matters as long as memory does not have it.
        let oldest = if line.part == TrafficBuf::PART {
            traffic
        } else {
            other
        };
        oldest.is_none_or(|oldest| line.time < oldest)
    });
    if !on_disk.is_empty() {
        on_disk.extend(memory);
        on_disk.sort_by_key(|line| line.time);
        return on_disk;
    }
    memory
}

/// What a stack that has ended said: all of its log, or what it said last where that is not on disk.
fn of_ended(
    stack: &StackName,
    ended: Ended,
    recorded: Option<Recorded>,
    wanted: &Wanted,
) -> Result<(), Failure> {
    // Of a supervisor that was killed nobody knows its parts, but for its apps and who has said something.
    let of_parts = ended.parts.iter().map(|part| part.name.as_str());
    let apps = ended.apps.iter().map(String::as_str);
    let names: BTreeSet<&str> = of_parts.chain(apps).collect();
    let known = |part: &&String| {
        names.contains(part.as_str())
            || part.as_str() == TrafficBuf::PART
            || ended.lines.iter().any(|line| line.part == **part)
    };
    if let Some(part) = wanted.parts.iter().find(|part| !known(part)) {
        let names: Vec<&str> = names.into_iter().collect();
        let (problem, names) = match ended.parts.is_empty() {
            true => (
                format!("nothing is known of a part `{part}` of {stack}"),
                format!("its apps were {}", names.join(", ")),
            ),
            false => (
                format!("{stack} had no part `{part}`"),
                format!("its parts were {}", names.join(", ")),
            ),
        };
        return Err(Failure::failed(problem).hint(names));
    }
    let hints = match wanted.is_whole() {
        true => ended.hints,
        false => vec![],
    };
    let lines = match recorded {
        Some(recorded) => recorded.lines(wanted)?,
        None => {
            let filter = wanted.filter();
            let mut lines = ended.lines;
            lines.retain(|line| filter.wants(&line.part, line.stream));
            lines
        }
    };
    print_all(lines, wanted)?;
    advice::tell(&hints);
    Ok(())
}

fn print_all(lines: Vec<LogLine>, wanted: &Wanted) -> Result<(), Failure> {
    let mut printer = Printer::new(wanted);
    for line in lines {
        if !printer.line(line)? {
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
