//! What is shown of a stack that has ended: by `status`, `logs` and `ps -a`, and how it is forgotten.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use jiff::Timestamp;

use super::status::table;
use crate::commands::failure::{FAILED, Failure};
use crate::control::evidence::{self, Cause, Ended, EndedPart, Remains};
use crate::host::Host;
use crate::log::{LogBuf, LogLine, files};
use crate::names::StackName;
use crate::state::{GlobalLock, Liveness, StateRoot};
use crate::supervise;
use crate::text::harmless;

/// How many lines `status` shows.
const SHOWN: usize = 10;
/// How much of a log on disk is looked at for what was said last, in bytes of memory.
const READ: usize = 4 << 20;

/// What a stack left when it ended; `None` where there is nothing.
pub(super) fn of(state: &StateRoot, stack: &StackName) -> Option<Ended> {
    let mut ended: Ended = serde_json::from_slice(&state.left(stack)?).ok()?;
    // The supervisor wrote the document, so it may name any path as the log, which is read and removed.
    let is_its = |log: &PathBuf| log.file_name() == Some(stack.as_str().as_ref());
    ended.log = ended.log.filter(is_its);
    Some(ended)
}

/// The same of a stack that doesn't run now.
pub(super) fn instead(stack: &StackName) -> Option<Ended> {
    let state = Host::state_root();
    match state.liveness(stack) {
        Ok(Liveness::Absent) => of(&state, stack),
        _ => None,
    }
}

/// The same of the stack of that name that came before, whether there is one now or not.
pub(super) fn previous(stack: &StackName) -> Result<Ended, Failure> {
    of(&Host::state_root(), stack).ok_or_else(|| none(stack))
}

/// Writes what there is to know of a stack whose supervisor was killed, or crashed: once for each run, by whoever finds that
/// first. What it said last is known if its log is on disk; when it ended is not, so it is when it was found.
pub(super) fn note_crash(state: &StateRoot, stack: &StackName, held: &GlobalLock) {
    let Some(plan) = state.plan(stack) else {
        return;
    };
    if of(state, stack).is_some_and(|ended| ended.run == plan.run) {
        return;
    }
    // Its socket is made when it starts. The log has lines of earlier runs, too.
    let begun = std::fs::symlink_metadata(state.control(stack)).and_then(|meta| meta.modified());
    let begun = begun.ok().and_then(|time| Timestamp::try_from(time).ok());
    let dir = plan.record.dir.clone();
    let its = |line: &LogLine| begun.is_none_or(|begun| line.time >= begun);
    let mut log = LogBuf::new(READ);
    for line in files::read(&dir, its).unwrap_or_default().lines {
        log.push(line);
    }
    let remains = Remains {
        since: begun,
        log: dir.exists().then_some(dir),
        journal: supervise::in_the_journal(plan.record.to),
        lines: evidence::last_lines(&log),
        ..Remains::default()
    };
    let why = "its supervisor was killed, or crashed".to_owned();
    let document = Ended::new(&plan, remains, Cause::Killed, why, FAILED);
    let document = serde_json::to_vec(&document).unwrap_or_default();
    // What can't be written is missing, and no more: what was asked for is something else.
    let _ = state.leave(stack, &document, held);
}

/// There is no such stack.
pub(super) fn none(stack: &StackName) -> Failure {
    Failure::failed(format!("no stack {stack} has ended, as far as is known"))
        .hint("lrpns ps -a shows what has")
}

/// Removes the log on disk of a stack that has ended.
fn remove_log(dir: &Path) -> Result<bool, Failure> {
    files::remove(dir).map_err(|e| Failure::unable(format!("remove {}: {e}", dir.display())))
}

/// Where the log of a stack is that has ended.
fn log_of(state: &StateRoot, stack: &StackName) -> PathBuf {
    let log = of(state, stack).and_then(|ended| ended.log);
    log.unwrap_or_else(|| Host::logs().join(stack.as_str()))
}

/// For people.
pub(super) fn describe(ended: &Ended, part: Option<&str>) -> String {
    let mut text = String::new();
    let mode = ended.mode.as_str();
    let by = match &ended.by {
        Some(by) => format!(" by {by}"),
        None => String::new(),
    };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "{} ended at {:.0}: {}{by}",
        ended.stack, ended.ended, ended.why
    );
    let _ = match &ended.since {
        Some(since) => writeln!(text, "it was up since {since:.0} ({mode})"),
        None => writeln!(text, "it was never up ({mode})"),
    };
    if let Some(config) = &ended.config {
        let _ = writeln!(text, "from {}", config.display());
    }
    if !ended.parts.is_empty() {
        let mut parts = table(&["", "PART", "ENDED", "LAST EXIT", "RESTARTS"]);
        for part in of_one(&ended.parts, part) {
            parts.add_row([
                "",
                &harmless(&part.name, 64),
                &match part.ended {
                    Some(time) => format!("{time:.0}"),
                    None => "with the stack".to_owned(),
                },
                &exit(part),
                &part.restarts.to_string(),
            ]);
        }
        let _ = writeln!(text, "{parts}");
    }
    let lines = ended.lines.iter();
    let lines: Vec<_> = lines
        .filter(|line| part.is_none_or(|part| line.part == part))
        .collect();
    let lines = &lines[lines.len().saturating_sub(SHOWN)..];
    if !lines.is_empty() {
        let _ = writeln!(
            text,
            "what was said last; lrpns logs {} has more:",
            ended.stack
        );
        for line in lines {
            let _ = writeln!(text, "  {}", line.human(false));
        }
    }
    for hint in &ended.hints {
        let _ = writeln!(text, "hint: {hint}");
    }
    text
}

fn of_one<'a>(
    parts: &'a [EndedPart],
    name: Option<&'a str>,
) -> impl Iterator<Item = &'a EndedPart> {
    let wanted = move |part: &&EndedPart| name.is_none_or(|name| part.name == name);
    parts.iter().filter(wanted)
}

fn exit(part: &EndedPart) -> String {
    match part.exit {
        None => "-".to_owned(),
        Some(exit) if part.out_of_memory => format!("{exit}, out of memory"),
        Some(exit) => exit.to_string(),
    }
}

/// As `ps` shows it, with the exit code.
pub(super) fn state(ended: &Ended) -> String {
    match ended.cause {
        Cause::Failed => format!("failed ({})", ended.exit),
        Cause::Killed => "killed".to_owned(),
        Cause::Stopped | Cause::AppEnded => format!("ended ({})", ended.exit),
    }
}

/// Forgets a stack that has ended.
pub(super) fn remove(stack: &StackName) -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let held = state.lock()?;
    if state.settle(stack, &held)? != Liveness::Absent {
        return Err(
            Failure::failed(format!("{stack} has not ended; nothing was removed"))
                .hint(format!("lrpns down {stack} takes it down")),
        );
    }
    let removed = remove_log(&log_of(&state, stack))?;
    match state.forget(stack, &held)? || removed {
        true => eprintln!("{stack} is forgotten"),
        false => eprintln!("{stack} has left nothing: nothing to remove"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Forgets all of them; how many those were.
pub(super) fn remove_all(state: &StateRoot) -> Result<usize, Failure> {
    let mut removed = 0;
    let logged = files::stacks(&Host::logs()).into_iter();
    let logged = logged.filter_map(|name| StackName::new(name).ok());
    let names: BTreeSet<StackName> = state.all_ended()?.into_iter().chain(logged).collect();
    if names.is_empty() {
        return Ok(0);
    }
    let held = state.lock()?;
    for stack in names {
        // What runs again keeps its log, which has both.
        let lives = state.settle(&stack, &held)? != Liveness::Absent;
        let log = !lives && remove_log(&log_of(state, &stack))?;
        if state.forget(&stack, &held)? || log {
            eprintln!("{stack} is forgotten");
            removed += 1;
        }
    }
    Ok(removed)
}
