//! `lrpns top`: the processes of each part, as `/proc` has them now.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use super::status::table;
use super::target::Meant;
use super::{print, status_now};
use crate::commands::failure::Failure;
use crate::control::{PartStatus, usage};
use crate::text::harmless;

/// How much of a command line is shown, in bytes.
const LONGEST: usize = 100;

/// Lists the processes of a stack, or of one part of it.
pub(super) fn top(meant: &Meant) -> Result<ExitCode, Failure> {
    let Meant { stack, part } = meant;
    let status = status_now(stack)?;
    let wanted: Vec<&PartStatus> = { status.parts.iter() }
        .filter(|of| part.as_ref().is_none_or(|part| *part == of.name))
        .collect();
    if let (Some(part), []) = (part, wanted.as_slice()) {
        return Err(super::status::no_such_part(&status, part));
    }
    let mut table = table(&["PART", "PID", "UID", "S", "CPU", "MEMORY", "COMMAND"]);
    for part in wanted {
        for process in part
            .init
            .map(usage::tree)
            .unwrap_or_default()
            .into_iter()
            .filter_map(look)
        {
            table.add_row([
                part.name.clone(),
                process.pid.to_string(),
                process.uid.to_string(),
                process.state.to_string(),
                format!("{:.2}s", process.cpu),
                process.memory,
                process.command,
            ]);
        }
    }
    print(&format!("{table}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// A process, as it is shown.
struct Process {
    pid: i32,
    uid: u32,
    state: char,
    /// Seconds of processor time.
    cpu: f64,
    memory: String,
    command: String,
}

/// By proc_pid_stat(5) and proc_pid_status(5).
fn look(pid: i32) -> Option<Process> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let stat = read("stat").ok()?;
    // What is in brackets before it is the program's name, which may have brackets of its own.
    let (name, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let status = read("status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let kibibytes: u64 = field("VmRSS:")
        .and_then(|size| size.strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let command = match line.trim() {
        // It has none, or has ended.
        "" => format!("[{}]", name.split_once('(').map_or("", |(_, name)| name)),
        line => line.to_owned(),
    };
    Some(Process {
        pid,
        uid: field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        cpu: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        memory: crate::text::size(kibibytes << 10),
        command: harmless(&command, LONGEST),
    })
}
