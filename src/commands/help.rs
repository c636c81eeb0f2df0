//! `lrpns help [TOPIC]` and `lrpns man`: the manual.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::print;
use crate::cli;
use crate::commands::failure::Failure;
use crate::manual::{TOPICS, man, screen, topic};

/// The widest line of a page: longer ones are hard to read.
const WIDEST: usize = 100;
/// The width where nobody looks, or a terminal doesn't say.
const PLAIN: usize = 80;

/// Shows a page of the manual, the help of a command, or what there is.
pub(super) fn help(word: Option<&str>) -> Result<ExitCode, Failure> {
    let mut command = cli::command();
    let Some(word) = word else {
        let help = command.render_help().ansi().to_string();
        show(&format!("{help}\n{}", topics()))?;
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(topic) = topic(word) {
        let width = size().map_or(PLAIN, |(columns, _)| columns.min(WIDEST));
        show(&screen::render(&topic.page().map_err(unread)?, width))?;
        return Ok(ExitCode::SUCCESS);
    }
    command.build();
    if let Some(verb) = command.find_subcommand_mut(word) {
        print(&verb.render_help().ansi().to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = TOPICS.iter().map(|topic| topic.name);
    let names = names.chain(command.get_subcommands().map(clap::Command::get_name));
    let near = names
        .map(|name| (strsim::damerau_levenshtein(name, word), name))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    let hint = near.map_or_else(
        || format!("the topics are {}", list()),
        |(_, name)| format!("did you mean `lrpns help {name}`?"),
    );
    Err(Failure::usage(format!("there is no topic or command `{word}`")).hint(hint))
}

/// The list of topics, as `lrpns help` has it.
fn topics() -> String {
    let heading = *cli::command().get_styles().get_header();
    let mut text = format!("{heading}Topics:{heading:#}\n");
    for topic in TOPICS {
        let _ = writeln!(text, "  {:<14} {}", topic.name, topic.about);
    }
    text + "\n`lrpns help TOPIC` shows one.\n"
}

fn list() -> String {
    let names: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
    names.join(", ")
}

/// Columns and rows, if standard output is a terminal that knows them.
fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col >= 20).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// Prints, by way of a pager where a terminal has fewer lines.
fn show(text: &str) -> Result<(), Failure> {
    let tall = size().is_some_and(|(_, rows)| text.lines().count() >= rows);
    if tall && std::io::stdout().is_terminal() && paged(text).is_some() {
        return Ok(());
    }
    print(text)
}

/// As man(1) does: $PAGER, else less(1). `None`: there is none that can be started.
fn paged(text: &str) -> Option<()> {
    let colour = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    let text = match colour {
        true => text.to_owned(),
        false => anstream::adapter::strip_str(text).to_string(),
    };
    let pager = std::env::var("PAGER").ok().filter(|it| !it.is_empty());
    let mut child = Command::new("/bin/sh")
        .args(["-c", pager.as_deref().unwrap_or("exec less")])
        .env("LESS", std::env::var("LESS").unwrap_or("FRX".to_owned()))
        .stdin(Stdio::piped())
        .spawn()
        .ok()?;
    // A reader who has seen enough ends the pager.
    let _ = child.stdin.take()?.write_all(text.as_bytes());
    child.wait().ok()?.success().then_some(())
}

fn unread(e: serde_json::Error) -> Failure {
    Failure::unable(format!("read the manual that is compiled in: {e}"))
}

/// Prints lrpns(1), or writes every page below a directory.
pub(super) fn man(dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let pages = man::pages(&cli::command()).map_err(unread)?;
    let Some(dir) = dir else {
        let first = pages.iter().find(|(name, _)| name == "lrpns.1");
        print(first.map_or("", |(_, page)| page))?;
        return Ok(ExitCode::SUCCESS);
    };
    let unable =
        |what: &str, path: &Path, e| Failure::unable(format!("{what} {}: {e}", path.display()));
    std::fs::create_dir_all(dir).map_err(|e| unable("make", dir, e))?;
    for (name, page) in &pages {
        let path = dir.join(name);
        std::fs::write(&path, page).map_err(|e| unable("write", &path, e))?;
    }
    print(&format!("{} pages in {}\n", pages.len(), dir.display()))?;
    Ok(ExitCode::SUCCESS)
}
