//! Which stack, and which of its parts, a word of the command line means: the same in every verb.
//!
//! STACK, STACK/PART, or PART alone where one stack only has it. A word is the name of a stack that runs or is installed
//! in /etc/lrpns, else of a part of a stack that runs, else of a stack that has ended, else of a part of one.
#![forbid(unsafe_code)]

use std::path::Path;

use super::{Named, configuration, ended};
use crate::cli::Source;
use crate::commands::failure::Failure;
use crate::config::Config;
use crate::host::Host;
use crate::log::TrafficBuf;
use crate::names::StackName;
use crate::state::StateRoot;

/// What a word means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meant {
    /// The stack, which need not run.
    pub(super) stack: StackName,
    /// A part, which it need not have.
    pub(super) part: Option<String>,
}

/// What one word means; left out, it is the file's stack, or the built-in example's.
pub(super) fn one(word: Option<&str>, file: Option<&Path>) -> Result<Meant, Failure> {
    let of_the_file = match (word, file) {
        (Some(_), None) => None,
        _ => Some(of_file(file)?),
    };
    match (word, &of_the_file) {
        (Some(word), None) => find(word),
        (Some(word), Some(config)) => within(word, config, file),
        (None, config) => {
            let config = config.as_ref().map(|config| config.name.clone());
            // It was read above.
            let stack = config.ok_or_else(|| Failure::usage("name a stack"))?;
            Ok(Meant { stack, part: None })
        }
    }
}

/// What several words mean: a stack, and parts of it.
pub(super) fn several(
    words: &[String],
    file: Option<&Path>,
) -> Result<(StackName, Vec<String>), Failure> {
    let mut words = words.iter();
    let Meant { stack, part } = one(words.next().map(String::as_str), file)?;
    let mut parts = Vec::from_iter(part);
    for word in words {
        match word.split_once('/') {
            Some((other, part)) if other == stack.as_str() => parts.push(part.to_owned()),
            Some((other, _)) => {
                return Err(Failure::usage(format!(
                    "{word} is of another stack than {stack}; nothing was done"
                ))
                .hint(format!("one command is for one stack: {stack}, or {other}")));
            }
            None => parts.push(word.clone()),
        }
    }
    Ok((stack, parts))
}

/// The stack that a word means, for a verb that takes stacks only; `for_a_part` is what does something like it for a part.
pub(super) fn whole(
    word: Option<&str>,
    file: Option<&Path>,
    verb: &str,
    for_a_part: Option<&str>,
) -> Result<StackName, Failure> {
    let Meant { stack, part } = one(word, file)?;
    let Some(part) = part else {
        return Ok(stack);
    };
    let mut hint = format!("lrpns {verb} {stack} is for all of it");
    if let Some(other) = for_a_part {
        hint += &format!("; lrpns {other} {stack}/{part} is for that part");
    }
    Err(Failure::usage(format!(
        "{part} is a part of {stack}, and lrpns {verb} takes a whole stack; nothing was done"
    ))
    .hint(hint))
}

/// Refuses to start apps by name, which a stack's are not.
pub(super) fn one_stack_only(source: &Source, more: &[String]) -> Result<(), Failure> {
    if more.is_empty() {
        return Ok(());
    }
    let names = source.stack.iter().map(StackName::as_str);
    let names: Vec<&str> = names.chain(more.iter().map(String::as_str)).collect();
    Err(Failure::usage(format!(
        "lrpns up takes one stack, and {} are {}; nothing was done",
        names.join(", "),
        names.len()
    ))
    .hint(
        "a stack's apps start together, in the order of `after`: lrpns up -d; lrpns restart STACK/APP starts one again",
    ))
}

/// The configuration that names the stack.
fn of_file(file: Option<&Path>) -> Result<Config, Failure> {
    let source = Source {
        stack: None,
        file: file.map(Path::to_owned),
        demo: false,
        set: vec![],
        env_file: None,
    };
    configuration(&source, Named::Too)
}

/// What a word means where a file names the stack.
fn within(word: &str, config: &Config, file: Option<&Path>) -> Result<Meant, Failure> {
    let stack = config.name.clone();
    let (of, part) = match word.split_once('/') {
        Some((of, part)) => (of, Some(part)),
        None if is_part_of(word, config) => (stack.as_str(), Some(word)),
        None => (word, None),
    };
    if of != stack.as_str() {
        let file = file.map(|file| file.display().to_string());
        let file = file.unwrap_or_else(|| "the file".to_owned());
        return Err(
            Failure::usage(format!("{file} is for the stack {stack}, not for {of}"))
                .hint(format!("-f {file} alone is enough")),
        );
    }
    let part = part.map(str::to_owned);
    Ok(Meant { stack, part })
}

/// The parts that are no apps.
const OURS: [&str; 4] = ["sidecar", "relay", "egress", TrafficBuf::PART];

fn is_part_of(word: &str, config: &Config) -> bool {
    let mut apps = config.apps.iter();
    word != config.name.as_str()
        && (OURS.contains(&word) || apps.any(|app| app.name.as_str() == word))
}

/// What a word means where there is no file to go by.
fn find(word: &str) -> Result<Meant, Failure> {
    let stack = |name: &str| StackName::new(name).map_err(Failure::usage);
    if let Some((name, part)) = word.split_once('/') {
        let part = Some(part.to_owned()).filter(|part| !part.is_empty());
        let stack = stack(name)?;
        return Ok(Meant { stack, part });
    }
    let state = Host::state_root();
    let name = stack(word);
    let whole = |name: &StackName| Meant {
        stack: name.clone(),
        part: None,
    };
    if let Ok(name) = &name
        && (state.stack(name).is_dir() || super::installed(name).exists())
    {
        return Ok(whole(name));
    }
    if let Some(meant) = alone(word, having(&state, word)?)? {
        return Ok(meant);
    }
    let name = name?;
    if state.left(&name).is_some() {
        return Ok(whole(&name));
    }
    let had = state.all_ended()?.into_iter().filter(|stack| {
        let ended = ended::of(&state, stack);
        ended.is_some_and(|ended| ended.parts.iter().any(|part| part.name == word))
    });
    Ok(alone(word, had.collect())?.unwrap_or_else(|| whole(&name)))
}

/// The stacks that run and have this part.
fn having(state: &StateRoot, word: &str) -> Result<Vec<StackName>, Failure> {
    let mut stacks = state.stacks()?;
    stacks.retain(|stack| {
        let plan = state.plan(stack);
        plan.is_some_and(|plan| {
            word == TrafficBuf::PART || plan.limits().any(|(part, _)| part == word)
        })
    });
    Ok(stacks)
}

/// The part of this name of the one stack that has it.
fn alone(word: &str, stacks: Vec<StackName>) -> Result<Option<Meant>, Failure> {
    match stacks.as_slice() {
        [] => Ok(None),
        [stack] => Ok(Some(Meant {
            stack: stack.clone(),
            part: Some(word.to_owned()),
        })),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|stack| format!("{stack}/{word}"))
                .collect();
            Err(Failure::usage(format!(
                "{word} is a part of {} stacks; nothing was done",
                several.len()
            ))
            .hint(format!("name one: {}", names.join(", "))))
        }
    }
}
