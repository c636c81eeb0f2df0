//! What a shell completes: the commands and their options, and in the place of a name the stacks and parts that there are.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;

use clap::Command;
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::Shells;

use super::print;
use crate::commands::failure::Failure;
use crate::host::Host;
use crate::names::StackName;
use crate::state::StateRoot;

/// The variable by which a shell asks this program, with the shell's name as its value.
pub const VARIABLE: &str = "LRPNS_COMPLETE";

/// What takes stacks only.
const STACKS: [&str; 9] = [
    "down", "apply", "capture", "trace", "audit", "rules", "inspect", "metrics", "graph",
];
/// What takes parts as well.
const PARTS: [&str; 8] = [
    "status", "top", "stats", "logs", "events", "restart", "kill", "exec",
];
/// What takes stacks that have ended.
const ENDED: [&str; 2] = ["rm", "start"];

/// The command line with what completes its names.
#[must_use]
pub fn command() -> Command {
    let of = |verbs: &[&'static str], command: Command, complete: fn() -> Vec<Candidate>| {
        verbs.iter().fold(command, |command, verb| {
            command.mut_subcommand(verb, |verb| with(verb, complete))
        })
    };
    let command = of(&STACKS, crate::cli::command(), stacks);
    let command = of(&PARTS, command, stacks_and_parts);
    let command = of(&ENDED, command, ended);
    of(&["up", "plan"], command, installed)
}

/// A name and what it is.
type Candidate = (String, &'static str);

/// Has the names in a verb's arguments completed.
fn with(verb: Command, complete: fn() -> Vec<Candidate>) -> Command {
    let named = |complete: fn() -> Vec<Candidate>| {
        ArgValueCompleter::new(move |typed: &OsStr| {
            let typed = typed.to_string_lossy().into_owned();
            let mut all = complete();
            all.retain(|(name, _)| name.starts_with(&typed));
            all.into_iter()
                .map(|(name, what)| CompletionCandidate::new(name).help(Some(what.into())))
                .collect()
        })
    };
    verb.mut_args(|arg| match (arg.get_id().as_str(), arg.is_positional()) {
        ("stack" | "words", true) => arg.add(named(complete)),
        ("part", _) => arg.add(named(parts)),
        _ => arg,
    })
}

fn running(state: &StateRoot) -> Vec<StackName> {
    state.stacks().unwrap_or_default()
}

fn stacks() -> Vec<Candidate> {
    let stacks = running(&Host::state_root()).into_iter();
    stacks
        .map(|stack| (stack.to_string(), "a stack that runs"))
        .collect()
}

/// By stack.
fn all_parts(state: &StateRoot) -> Vec<(String, Vec<String>)> {
    let stacks = running(state).into_iter();
    let with_parts = stacks.filter_map(|stack| {
        let plan = state.plan(&stack)?;
        let parts = plan.limits().map(|(part, _)| part.to_owned()).collect();
        Some((stack.to_string(), parts))
    });
    with_parts.collect()
}

fn stacks_and_parts() -> Vec<Candidate> {
    let all = all_parts(&Host::state_root());
    let mut found = stacks();
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    for (stack, parts) in &all {
        for part in parts {
            *times.entry(part).or_default() += 1;
            found.push((format!("{stack}/{part}"), "a part of it"));
        }
    }
    let alone = times.into_iter().filter(|(_, times)| *times == 1);
    let names: Vec<&String> = all.iter().map(|(stack, _)| stack).collect();
    let alone = alone.filter(|(part, _)| !names.iter().any(|stack| stack == part));
    found.extend(alone.map(|(part, _)| (part.to_owned(), "the part of that name")));
    found
}

fn parts() -> Vec<Candidate> {
    let all = all_parts(&Host::state_root()).into_iter();
    let names = all.flat_map(|(_, parts)| parts);
    names.map(|part| (part, "a part")).collect()
}

fn ended() -> Vec<Candidate> {
    let state = Host::state_root();
    let names = state.all_ended().unwrap_or_default().into_iter();
    names
        .map(|stack| (stack.to_string(), "a stack that has ended"))
        .collect()
}

fn installed() -> Vec<Candidate> {
    let files = std::fs::read_dir("/etc/lrpns").into_iter().flatten();
    let named = files.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_str()?.strip_suffix(".toml")?;
        Some((name.to_owned(), "an installed stack"))
    });
    named.chain(stacks()).collect()
}

/// Prints what makes a shell ask this program.
pub fn register(shell: Shell) -> Result<(), Failure> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer = shells
        .completer(&name)
        .ok_or_else(|| Failure::usage(format!("{name} is not supported")))?;
    let mut script = vec![];
    completer
        .write_registration(VARIABLE, "lrpns", "lrpns", "lrpns", &mut script)
        .map_err(|e| Failure::unable(format!("write the script: {e}")))?;
    print(&String::from_utf8_lossy(&script))
}
