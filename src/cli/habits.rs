//! What users of Docker Compose, Podman and systemctl type: understood where it means something here, else answered with the
//! line that does what they want.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use nix::sys::signal::Signal;

use super::Cli;
use crate::names::StackName;

/// The command line as it would be written here: what stands before the verb and belongs to it comes after it.
#[must_use]
pub fn rewritten(args: Vec<OsString>) -> Vec<OsString> {
    let mut before = vec![];
    let mut file: Option<OsString> = None;
    let mut rest = args.into_iter();
    let mut rewritten: Vec<OsString> = rest.next().into_iter().collect();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        if text == "-f" || text == "--file" {
            match rest.next() {
                Some(path) => file = Some(path),
                None => before.push(arg),
            }
        } else if let Some(path) = text.strip_prefix("--file=") {
            file = Some(path.into());
        } else if text.starts_with('-') {
            before.push(arg);
        } else {
            rewritten.extend(before);
            // Who has named none needs no list of verbs made.
            let takes = file.is_some() && takes_file(&text);
            let text_is_exec = text == "exec";
            rewritten.push(arg);
            if let Some(file) = file {
                rewritten.push(if takes { "--file" } else { "-f" }.into());
                rewritten.push(file);
            }
            match text_is_exec {
                true => rewritten.extend(with_dashes(rest.collect())),
                false => rewritten.extend(rest),
            }
            return rewritten;
        }
    }
    // No word is a command: clap says what is wrong with it.
    if let Some(file) = file {
        rewritten.extend(["-f".into(), file]);
    }
    rewritten.extend(before);
    rewritten
}

/// Where a socket is to be: `unix:PATH`.
pub(super) fn unix_socket(text: &str) -> Result<std::path::PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("it is written unix:PATH, such as unix:/run/lrpns-metrics.sock".to_owned()),
    }
}

/// The words after `exec`, with `--` before the command where a stack is named and there is none.
fn with_dashes(words: Vec<OsString>) -> Vec<OsString> {
    let mut place = None;
    let mut is_value = false;
    for (index, word) in words.iter().enumerate() {
        let text = word.to_string_lossy();
        match (std::mem::take(&mut is_value), place) {
            (true, _) => {}
            _ if text == "--" => return words,
            // The stack, then the first word of the command, whose options are its own.
            (_, None) if !text.starts_with('-') => place = Some(index),
            (_, Some(_)) if !text.starts_with('-') => {
                let mut words = words;
                words.insert(index, "--".into());
                return words;
            }
            _ => is_value = ["-f", "--file", "--part"].contains(&text.as_ref()),
        }
    }
    words
}

/// Whether a verb takes the file that names its stack.
fn takes_file(verb: &str) -> bool {
    let cli = Cli::command();
    let verb = cli.find_subcommand(verb);
    verb.is_some_and(|verb| {
        verb.get_arguments()
            .any(|arg| arg.get_long() == Some("file"))
    })
}

/// A stack's name; of STACK/PART it is said that a whole stack is wanted.
///
/// # Errors
/// What is wrong with it.
pub(super) fn stack(text: &str) -> Result<StackName, String> {
    match text.split_once('/') {
        Some((stack, part)) => Err(format!(
            "{part} is a part of {stack}, and this command takes a whole stack: {stack}"
        )),
        None => StackName::new(text).map_err(|e| e.to_string()),
    }
}

/// A signal by its name, with `SIG` or without, or by its number.
///
/// # Errors
/// What is wrong with it.
pub(super) fn signal(text: &str) -> Result<Signal, String> {
    let named = text.to_ascii_uppercase();
    let named = format!("SIG{}", named.strip_prefix("SIG").unwrap_or(&named));
    let number = text.parse::<i32>().ok();
    let found = match number {
        Some(number) => Signal::try_from(number).ok(),
        None => named.parse().ok(),
    };
    found.ok_or_else(|| format!("`{text}` is no signal; HUP, TERM, USR1 and KILL are some"))
}

/// What does here what an unknown command does elsewhere.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "attach",
        "lrpns logs -f STACK follows what it says; lrpns exec STACK/APP -- sh is a shell in an app",
    ),
    (
        "build",
        "lrpns builds no images: rootfs = \"dir:PATH\" takes a directory, and scripts/rootfs makes some",
    ),
    (
        "cat",
        "lrpns plan STACK shows what a file means, and where each value came from",
    ),
    (
        "commit",
        "lrpns makes no images; an app's root is read-only",
    ),
    (
        "compose",
        "leave `compose` out: lrpns up -d, lrpns ps, lrpns logs -f, lrpns down",
    ),
    (
        "container",
        "leave `container` out: lrpns ps, lrpns logs STACK, lrpns rm STACK",
    ),
    (
        "cp",
        "lrpns exec STACK/APP -- cat PATH > FILE copies a file out; volumes bring files in",
    ),
    (
        "create",
        "lrpns init writes a file, lrpns plan shows what it means, lrpns up -d starts it",
    ),
    (
        "daemon-reload",
        "there is no daemon; systemctl daemon-reload is for units",
    ),
    (
        "delete",
        "lrpns down STACK takes a stack down, lrpns rm STACK forgets one that has ended",
    ),
    (
        "diff",
        "lrpns apply --dry-run STACK shows what a changed file would change; an app's root is read-only",
    ),
    ("disable", "systemctl disable --now lrpns@STACK"),
    (
        "edit",
        "edit the file that lrpns ps names, then lrpns apply STACK",
    ),
    (
        "enable",
        "systemctl enable --now lrpns@STACK, with the file in /etc/lrpns/STACK.toml",
    ),
    ("info", "lrpns doctor shows what this machine can do"),
    (
        "is-active",
        "lrpns status STACK exits with 0 if it runs; lrpns ps --json lists what does",
    ),
    (
        "journalctl",
        "lrpns logs STACK; in the journal: journalctl LRPNS_STACK=STACK",
    ),
    ("list-units", "lrpns ps"),
    ("login", "lrpns pulls from no registry with a login"),
    (
        "network",
        "each stack has a network of its own: lrpns status STACK, lrpns plan STACK",
    ),
    (
        "pause",
        "lrpns kill -s STOP STACK/APP stops an app's command, lrpns kill -s CONT STACK/APP lets it go on",
    ),
    ("port", "lrpns ps lists what is published"),
    (
        "prune",
        "lrpns gc removes what a crash left, lrpns gc --all also what is known of stacks that have ended",
    ),
    ("push", "lrpns makes no images"),
    (
        "reload",
        "lrpns apply STACK brings a running stack to its changed file; lrpns kill -s HUP STACK/APP has an app reload its own",
    ),
    (
        "remove",
        "lrpns down STACK takes a stack down, lrpns rm STACK forgets one that has ended",
    ),
    (
        "rename",
        "the name is in the file: lrpns down STACK, change `name`, lrpns up -d",
    ),
    ("save", "lrpns makes no images"),
    (
        "scale",
        "an app runs once; name several: [app.web1], [app.web2]",
    ),
    ("shell", "lrpns exec STACK/APP -- sh"),
    ("show", "lrpns status STACK, with --json for programs"),
    ("ssh", "lrpns exec STACK/APP -- sh"),
    (
        "system",
        "lrpns gc removes what a crash left; lrpns doctor shows what this machine can do",
    ),
    ("try-restart", "lrpns restart STACK/APP"),
    ("unpause", "lrpns kill -s CONT STACK/APP"),
    (
        "update",
        "change `limits` in the file, then lrpns apply STACK",
    ),
    ("version", "lrpns --version"),
    (
        "volume",
        "volumes are directories of the host: volumes = [\"/srv/data:/data:rw\"]",
    ),
    (
        "wait",
        "lrpns up without -d ends with the stack; lrpns status STACK shows how one has ended",
    ),
    (
        "watch",
        "lrpns logs -f STACK; lrpns apply STACK after a change",
    ),
];

/// The line that does what somebody wants who has typed what is no command here.
#[must_use]
pub fn answer(e: &clap::Error) -> Option<String> {
    if e.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(typed)) = e.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let (name, line) = ELSEWHERE.iter().find(|(name, _)| name == typed)?;
    Some(format!("there is no command `{name}`\nhint: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(words: &str) -> String {
        let args = words.split(' ').map(OsString::from).collect();
        let rewritten = rewritten(args);
        let words: Vec<&str> = rewritten.iter().filter_map(|arg| arg.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn a_file_before_the_verb_is_the_verbs() {
        for (typed, meant) in [
            ("lrpns -f a.toml up -d", "lrpns up --file a.toml -d"),
            (
                "lrpns --file a.toml logs -f web",
                "lrpns logs --file a.toml -f web",
            ),
            ("lrpns --file=a.toml down", "lrpns down --file a.toml"),
            (
                "lrpns --trust-file -f a.toml up",
                "lrpns --trust-file up --file a.toml",
            ),
            (
                "lrpns -f a.toml exec -- cat -f x",
                "lrpns exec --file a.toml -- cat -f x",
            ),
            ("lrpns exec -it web ls -l", "lrpns exec -it web -- ls -l"),
            (
                "lrpns exec --part app web ls",
                "lrpns exec --part app web -- ls",
            ),
            (
                "lrpns exec -f a.toml web sh -c x -- y",
                "lrpns exec -f a.toml web -- sh -c x -- y",
            ),
            ("lrpns exec -- ls", "lrpns exec -- ls"),
            (
                "lrpns exec web --part app ls",
                "lrpns exec web --part app -- ls",
            ),
            ("lrpns exec web", "lrpns exec web"),
            // These take none, which clap tells.
            ("lrpns -f a.toml doctor", "lrpns doctor -f a.toml"),
            ("lrpns -f a.toml", "lrpns -f a.toml"),
            // As it was.
            ("lrpns logs -f web", "lrpns logs -f web"),
            ("lrpns --version", "lrpns --version"),
            ("lrpns", "lrpns"),
            ("lrpns -f", "lrpns -f"),
        ] {
            assert_eq!(after(typed), meant);
        }
    }

    #[test]
    fn a_signal_has_a_name_with_sig_or_without_or_a_number() {
        for text in ["HUP", "SIGHUP", "hup", "1"] {
            assert_eq!(signal(text), Ok(Signal::SIGHUP), "{text}");
        }
        for text in ["", "0", "99", "HANGUP", "-1"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_answer_is_for_what_is_a_command_and_each_names_one() {
        let mut cli = Cli::command();
        cli.build();
        for (name, line) in ELSEWHERE.iter().copied() {
            assert!(cli.find_subcommand(name).is_none(), "{name}");
            for verb in line.split("lrpns ").skip(1) {
                let word = verb.split([' ', ',', ';', ':']).next().unwrap_or_default();
                let is_said_of_us = ["builds", "makes", "pulls", "--version"].contains(&word);
                let known = is_said_of_us || cli.find_subcommand(word).is_some();
                assert!(known, "{name}: {word}");
            }
            let e = Cli::command()
                .try_get_matches_from(["lrpns", name])
                .unwrap_err();
            assert!(answer(&e).unwrap().contains(line));
        }
        let e = Cli::command()
            .try_get_matches_from(["lrpns", "frobnicate"])
            .unwrap_err();
        assert_eq!(answer(&e), None);
    }
}
