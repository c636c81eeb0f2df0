//! The list of commands in groups, which clap has for flags only (`help_heading`).
//!
//! clap writes the list as always: names, wrapped descriptions, colours. Its lines are then put under a heading each, so
//! whatever is said of a command is said once, at its type.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory};

use crate::manual;

/// The headings, and which commands are under each. A test keeps it complete.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Run a stack", &["up", "run", "down"]),
    (
        "Look at it",
        &[
            "ps", "status", "top", "graph", "stats", "metrics", "logs", "events", "capture",
            "trace", "rules",
        ],
    ),
    ("Change it", &["apply", "restart", "kill", "exec"]),
    ("Check it", &["plan", "audit", "doctor"]),
    (
        "Maintain",
        &["init", "rm", "gc", "completions", "man", "help"],
    ),
];

/// The command line, whose help has the commands in groups.
#[must_use]
pub fn command() -> clap::Command {
    let command = with_topics(super::Cli::command());
    let list = command.clone().help_template("{subcommands}").render_help();
    let (plain, styled) = (list.to_string(), list.ansi().to_string());
    let headings = *command.get_styles().get_header();
    let grouped = grouped(&plain, &styled, |heading| {
        format!("{headings}{heading}:{headings:#}")
    });
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{grouped}{}\n{{options}}{{after-help}}",
        format_args!("{headings}Options:{headings:#}"),
    ))
}

/// What a command line says. Its help is made for who asks for help.
///
/// # Errors
/// What is wrong with it, or the help.
pub fn read(args: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    let read = super::Cli::command().try_get_matches_from(&args);
    match read.as_ref().map_err(clap::Error::kind) {
        Err(ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand) => {
            command().try_get_matches_from(args)
        }
        _ => read,
    }
}

/// Every command's help with the page of the manual that is about it.
fn with_topics(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|verb| {
        let Some(topic) = manual::topic_of(verb.get_name()) else {
            return verb;
        };
        let also = format!("Manual: lrpns help {}", topic.name);
        let help = match verb.get_after_help() {
            Some(help) => format!("{help}\n\n{also}"),
            None => also,
        };
        verb.after_help(help)
    })
}

/// The lines of `styled`, which are those of `plain`, with each command's under its group's heading.
fn grouped(plain: &str, styled: &str, heading: impl Fn(&str) -> String) -> String {
    let mut entries: Vec<(&str, String)> = vec![];
    for (plain, styled) in plain.lines().zip(styled.lines()) {
        // What a description goes on with is further in.
        let name = plain
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '))
            .and_then(|rest| rest.split(' ').next());
        match (name, entries.last_mut()) {
            (Some(name), _) => entries.push((name, format!("{styled}\n"))),
            (None, Some((_, text))) => *text += &format!("{styled}\n"),
            (None, None) => {}
        }
    }
    let mut text = String::new();
    for (title, names) in GROUPS {
        text += &format!("{}\n", heading(title));
        for name in names {
            let entry = entries.iter().find(|(known, _)| known == name);
            text += entry.map_or("", |(_, text)| text.as_str());
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group_and_every_name_of_a_group_is_a_command() {
        let mut command = super::super::Cli::command();
        command.build();
        let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
        let mut commands: Vec<&str> = shown.map(clap::Command::get_name).collect();
        let mut listed: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        commands.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, commands);
    }

    #[test]
    fn the_help_has_all_that_claps_own_has() {
        let own = super::super::Cli::command().render_help().to_string();
        let ours = command().render_help().to_string();
        let lines = |text: &str| {
            let mut lines: Vec<String> = text
                .lines()
                .filter(|line| !line.is_empty() && !line.ends_with(':'))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&ours), lines(&own));
        for (heading, names) in GROUPS {
            let from = ours.find(&format!("\n{heading}:\n"));
            let section = from.and_then(|from| ours[from + 1..].split("\n\n").next());
            for name in names {
                let entry = format!("\n  {name} ");
                assert!(
                    section.is_some_and(|section| section.contains(&entry)),
                    "{name} is not under {heading}:\n{ours}"
                );
            }
        }
    }
}
