//! What a stack that has ended leaves to be read: why it ended, how each part did, and what was said last.
//!
//! One document a stack, written by its supervisor when nothing of the stack is left but its directory, bounded, and
//! replaced when a stack of that name ends again. Of a supervisor that is killed with SIGKILL the first command that finds
//! its directory without it writes one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::log::{LogBuf, LogLine};
use crate::names::StackName;
use crate::plan::{Mode, Plan, reach};
use crate::protocol::Exit;

/// How many lines of each part are kept…
pub const LINES: usize = 60;
/// …of how many bytes…
const BYTES: usize = 16 << 10;
/// …and of all parts together.
const BYTES_OF_ALL: usize = 256 << 10;

/// A stack that has ended. Its fields are the keys of the JSON form, which are stable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// Its name.
    pub stack: StackName,
    /// Eight hexadecimal digits that tell this run of it from any other.
    #[serde(default)]
    pub run: String,
    /// Always [`State::Ended`], which tells this document from that of a running stack.
    pub state: State,
    /// Whose it was.
    pub mode: Mode,
    /// The file that it was made from.
    pub config: Option<PathBuf>,
    /// Addresses and ports of the host.
    pub published: Vec<String>,
    /// Its apps.
    pub apps: Vec<String>,
    /// When it was up; `null` when it never was.
    pub since: Option<Timestamp>,
    /// When nothing of it was left.
    pub ended: Timestamp,
    /// Why, in words.
    pub why: String,
    /// The same for programs.
    pub cause: Cause,
    /// Who wanted it, of [`Cause::Stopped`].
    pub by: Option<By>,
    /// The exit code that a foreground `up` would have had, or that of the app whose end it was.
    pub exit: u8,
    /// Where its log is on disk; `null` where it is not.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// Whether its log is in the journal.
    #[serde(default)]
    pub journal: bool,
    /// Its parts.
    pub parts: Vec<EndedPart>,
    /// What was said last, some lines of each part, in the order of time.
    pub lines: Vec<LogLine>,
    /// What would help, where its app has ended by itself.
    #[serde(default)]
    pub hints: Vec<String>,
}

/// The one state of a stack that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has ended.
    Ended,
}

/// Why a stack has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Somebody wanted it.
    Stopped,
    /// Its last app ended, and was not to be started again.
    AppEnded,
    /// It could not be brought up.
    Failed,
    /// Its supervisor was killed, or crashed, and could say nothing: who has found that has written what there was.
    Killed,
}

/// Who wanted the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// A command on the control socket.
    Command {
        /// The user it ran as.
        uid: u32,
        /// Its process, which has ended since.
        pid: Option<i32>,
        /// Who had logged in, where that is known (`/proc/PID/loginuid`) and another.
        login: Option<u32>,
    },
    /// A signal to the supervisor.
    Signal(i32),
}

impl By {
    /// As it is called outside of the user namespace that a rootless supervisor is in: there it is user 0 itself.
    fn outside(self, plan: &Plan) -> Self {
        match self {
            By::Command { uid: 0, pid, login } => By::Command {
                uid: plan.owner,
                pid,
                login: login.filter(|login| *login != 0 && *login != plan.owner),
            },
            by => by,
        }
    }
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            By::Command { uid, login, .. } => {
                write!(f, "a command of uid {uid}")?;
                match login {
                    Some(login) => write!(f, " (logged in as uid {login})"),
                    None => Ok(()),
                }
            }
            By::Signal(signal) => write!(f, "{}", Exit::Signal(*signal)),
        }
    }
}

/// How a part has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedPart {
    /// Its name.
    pub name: String,
    /// How its command ended last; `null` where it was ended with the stack.
    pub exit: Option<Exit>,
    /// Whether the kernel killed it for want of memory.
    pub out_of_memory: bool,
    /// When it was started last; `null` where that is not known.
    pub since: Option<Timestamp>,
    /// When it ended; `null` where it was ended with the stack.
    pub ended: Option<Timestamp>,
    /// How often it was started again.
    pub restarts: u32,
}

/// What a supervisor knows of its stack at the end.
#[derive(Debug, Clone, Default)]
pub struct Remains {
    /// When it was up.
    pub since: Option<Timestamp>,
    /// Who wanted the end first.
    pub by: Option<By>,
    /// Where its log is on disk.
    pub log: Option<PathBuf>,
    /// Whether its log is in the journal.
    pub journal: bool,
    /// Its parts.
    pub parts: Vec<EndedPart>,
    /// What was said last.
    pub lines: Vec<LogLine>,
}

impl Remains {
    /// Notes something of a part.
    pub fn note(&mut self, name: &str, note: impl FnOnce(&mut EndedPart)) {
        let mut parts = self.parts.iter_mut();
        let _ = parts.find(|part| part.name == name).map(note);
    }
}

/// Who asks, as the kernel says (`SO_PEERCRED`, unix(7)), while it still does.
#[must_use]
pub fn asker(uid: u32, pid: Option<i32>) -> By {
    let login = pid.and_then(|pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
        text.trim().parse().ok()
    });
    // No login: all ones.
    let login = login.filter(|login| *login != u32::MAX && *login != uid);
    By::Command { uid, pid, login }
}

impl Ended {
    /// Of what a supervisor knows and why it ended.
    #[must_use]
    pub fn new(plan: &Plan, remains: Remains, cause: Cause, why: String, exit: u8) -> Self {
        Self {
            stack: plan.stack.clone(),
            state: State::Ended,
            mode: plan.mode,
            config: plan.config.clone(),
            published: reach::ranges(plan)
                .iter()
                .map(|range| range.listen())
                .collect(),
            apps: plan.apps.iter().map(|app| app.name.to_string()).collect(),
            since: remains.since,
            ended: Timestamp::now(),
            why,
            cause,
            by: remains
                .by
                .filter(|_| cause == Cause::Stopped)
                .map(|by| by.outside(plan)),
            exit,
            log: remains.log,
            journal: remains.journal,
            run: plan.run.clone(),
            parts: remains.parts,
            lines: remains.lines,
            hints: vec![],
        }
    }
}

/// The last lines of each part, in the order of time: a part that talks much takes nothing from one that has said little.
#[must_use]
pub fn last_lines(log: &LogBuf) -> Vec<LogLine> {
    let mut taken: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut all = 0;
    let mut lines = vec![];
    for number in (log.dropped()..log.end()).rev() {
        let Some(line) = log.at(number) else { continue };
        let (count, bytes) = taken.entry(&line.part).or_default();
        let size = line.text.len();
        // The last line of a part is worth more than the bound.
        let fits = *count == 0 || (*count < LINES && *bytes + size <= BYTES);
        if !fits || all + size > BYTES_OF_ALL {
            // Nothing older of this part: what is shown has no holes.
            *count = LINES;
            continue;
        }
        *count += 1;
        *bytes += size;
        all += size;
        lines.push(line.clone());
    }
    lines.reverse();
    // An end is heard of before what was written last is read.
    lines.sort_by_key(|line| line.time);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Stream;

    fn line(part: &str, text: String) -> LogLine {
        LogLine {
            time: Timestamp::UNIX_EPOCH,
            part: part.to_owned(),
            stream: Stream::Out,
            text,
            continues: false,
            traffic: None,
        }
    }

    #[test]
    fn a_part_that_talks_much_takes_nothing_from_one_that_has_said_little() {
        let mut log = LogBuf::new(4 << 20);
        log.push(line("quiet", "alone".to_owned()));
        for number in 0..1000 {
            log.push(line("loud", number.to_string()));
        }
        let kept = last_lines(&log);
        assert_eq!(kept.len(), LINES + 1);
        assert_eq!(kept[0].text, "alone");
        assert_eq!(kept[1].text, "940");
        assert_eq!(kept[LINES].text, "999");
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_has_no_holes() {
        let mut log = LogBuf::new(64 << 20);
        for part in 0..100 {
            log.push(line(&part.to_string(), "before".to_owned()));
            log.push(line(&part.to_string(), "x".repeat(BYTES)));
            log.push(line(&part.to_string(), "y".repeat(BYTES)));
        }
        let kept = last_lines(&log);
        let bytes: usize = kept.iter().map(|line| line.text.len()).sum();
        assert!(bytes <= BYTES_OF_ALL, "{bytes}");
        assert_eq!(kept.len(), BYTES_OF_ALL / BYTES);
        assert!(kept.iter().all(|line| line.text.starts_with('y')));
    }
}
