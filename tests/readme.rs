//! README.md and the manual tell the truth: what they show is run and compared, what they name exists.
//!
//! Each section of README.md of level two, and each page of the manual, has a machine of its own, and its blocks are run there in order. In a `console` block a line
//! that begins with `$ ` is a command and what follows is its output, both streams together; `...` stands for any
//! characters, and alone on a line for any number of lines. What begins with `sudo` is run by root, everything else by an
//! ordinary user. `logs` and `status` tell of what a moment ago was not there yet, so they are asked until they say what is
//! shown, with one limit. A `toml` or `nft` block whose first line is a comment with a file's name becomes that file. A `sh`
//! block is not run, and a comment above it says who does.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use support::lab::{Lab, lrpns};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The ordinary user.
const USER: &str = "1000";
/// How long a command that looks is asked for.
const ASK_FOR: Duration = Duration::from_secs(20);
/// What the comment above a block that is not run begins with.
const NOT_RUN: &str = "<!-- not run by tests/readme.rs: ";

/// A fenced block.
struct Block {
    /// Its line, from 1.
    line: usize,
    /// What stands behind the fence.
    language: String,
    /// The line above it.
    above: String,
    text: String,
}

/// The sections of level two with their blocks.
fn sections(markdown: &str) -> Vec<(String, Vec<Block>)> {
    let mut sections: Vec<(String, Vec<Block>)> = vec![("the head".to_owned(), vec![])];
    let mut open: Option<Block> = None;
    let mut above = "";
    for (number, line) in markdown.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block {
                    line: number + 1,
                    language: language.to_owned(),
                    above: above.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => sections.last_mut().unwrap().1.extend(open.take()),
            (Some(block), None) => writeln!(block.text, "{line}").unwrap(),
            (None, None) => {
                if let Some(title) = line.strip_prefix("## ") {
                    sections.push((title.to_owned(), vec![]));
                }
            }
        }
        above = line;
    }
    assert!(open.is_none(), "a block has no end");
    sections
}

/// The commands of a `console` block with the output that is shown.
fn commands(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut commands: Vec<(&str, Vec<&str>)> = vec![];
    for line in text.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => commands.push((command, vec![])),
            None => commands
                .last_mut()
                .expect("a block begins with a command")
                .1
                .push(line),
        }
    }
    commands
}

/// Whether a line is as shown.
fn line_fits(shown: &str, line: &str) -> bool {
    let (shown, line) = (shown.trim_end(), line.trim_end());
    let Some((first, rest)) = shown.split_once("...") else {
        return shown == line;
    };
    let Some(mut line) = line.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split("...").collect();
    let last = pieces.pop().unwrap();
    for piece in pieces {
        match line.split_once(piece) {
            Some((_, behind)) => line = behind,
            None => return false,
        }
    }
    line.ends_with(last)
}

/// Whether lines are as shown.
fn fits(shown: &[&str], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((&"...", rest)) => (0..=lines.len()).any(|skipped| fits(rest, &lines[skipped..])),
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| line_fits(first, line) && fits(rest, others)),
    }
}

/// Whether a command's output is as shown. Which limits can't be enforced is this machine's matter.
fn is_shown(shown: &[&str], said: &str) -> bool {
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("limits that can't be enforced"))
        .collect();
    fits(shown, &lines)
}

/// Whether a command only looks at what a stack has come to.
fn looks(command: &str) -> bool {
    ["sudo lrpns logs ", "sudo lrpns status"]
        .iter()
        .any(|look| command.starts_with(look))
}

/// Runs a command as the README's reader would; what it says.
fn say(lab: &Lab, command: &str) -> String {
    let (user, command) = match command.strip_prefix("sudo ") {
        Some(command) => ("0", command.replace("| sudo ", "| ")),
        None => (USER, command.to_owned()),
    };
    // As sudo(8) sets them: root reads the files of the user who runs it.
    let sudo = match user {
        "0" => "export SUDO_UID=1000 SUDO_GID=1000;",
        _ => "",
    };
    let script = format!(
        "exec 2>&1; {sudo} LC_ALL=C.UTF-8 PATH=$PWD/bin:$PATH; export LC_ALL; cd home\n{command}"
    );
    let output = lab.run(&[
        "setpriv",
        "--reuid",
        user,
        "--regid",
        user,
        "--clear-groups",
        "sh",
        "-c",
        &script,
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        text
    } else {
        format!("{text}\n(the command ended with {})", output.status)
    }
}

/// Runs the blocks of one section; everything that is not as shown.
fn wrong(title: &str, blocks: &[Block]) -> Vec<String> {
    let lab = Lab::new();
    // The user can't go where the checkout is.
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir bin home; cp \"$0\" bin/lrpns; chown 1000:1000 home; install -d -o 1000 /run/user/1000",
        lrpns(),
    ]);
    let mut wrong = vec![];
    for block in blocks {
        match block.language.as_str() {
            "toml" | "nft" => {
                let name = block.text.lines().next().and_then(|l| l.strip_prefix("# "));
                lab.write(
                    &format!("home/{}", name.expect("the first line names the file")),
                    &block.text,
                );
            }
            "console" => {
                for (command, shown) in commands(&block.text) {
                    let deadline = Instant::now() + ASK_FOR;
                    let mut said = say(&lab, command);
                    while looks(command) && !is_shown(&shown, &said) && Instant::now() < deadline {
                        said = say(&lab, command);
                    }
                    if !is_shown(&shown, &said) {
                        wrong.push(format!(
                            "{title}:{}\n$ {command}\n{said}\nis shown as\n{}\n",
                            block.line,
                            shown.join("\n")
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    wrong
}

/// A page and its place in the checkout.
struct Page {
    path: String,
    text: String,
}

/// README.md, and the manual's pages.
fn pages() -> Vec<Page> {
    let mut paths = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(Path::new(ROOT).join("src/manual")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            paths.push(format!("src/manual/{name}"));
        }
    }
    assert!(paths.len() > 10, "the manual was not found");
    let read = |path: String| Page {
        text: std::fs::read_to_string(Path::new(ROOT).join(&path)).unwrap(),
        path,
    };
    paths.into_iter().map(read).collect()
}

/// What is run on a machine of its own: sections of README.md, and whole pages of the manual.
fn runs() -> Vec<(String, Vec<Block>)> {
    let mut runs = vec![];
    for page in pages() {
        let sections = sections(&page.text);
        if page.path == "README.md" {
            runs.extend(
                sections
                    .into_iter()
                    .map(|(_, blocks)| (page.path.clone(), blocks)),
            );
        } else {
            let blocks = sections.into_iter().flat_map(|(_, blocks)| blocks);
            runs.push((page.path, blocks.collect()));
        }
    }
    runs
}

#[test]
fn every_command_does_what_the_readme_shows() {
    let restricted = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    if std::fs::read_to_string(restricted).is_ok_and(|text| text.trim() == "1") {
        support::skip(
            "userns",
            "AppArmor restricts unprivileged user namespaces here",
        );
        return;
    }
    let runs = runs();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = runs
            .iter()
            .filter(|(_, blocks)| blocks.iter().any(|block| block.language == "console"))
            .map(|(title, blocks)| scope.spawn(|| wrong(title, blocks)))
            .collect();
        assert!(threads.len() > 4, "the README's sections were not found");
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_block_is_run_or_says_who_runs_it() {
    for (page, block) in runs()
        .iter()
        .flat_map(|(page, blocks)| blocks.iter().map(move |block| (page, block)))
    {
        match block.language.as_str() {
            "console" | "toml" | "nft" => {}
            "sh" => assert!(
                block.above.starts_with(NOT_RUN),
                "{page}:{}: who runs this?",
                block.line
            ),
            other => panic!("{page}:{}: what is `{other}`?", block.line),
        }
    }
}

#[test]
fn every_file_that_a_page_names_exists() {
    let mut seen = 0;
    for page in pages() {
        let folder = Path::new(ROOT).join(&page.path);
        let folder = folder.parent().unwrap();
        let links = page
            .text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next())
            .filter(|target| !target.is_empty() && !target.contains("://"))
            .map(|target| folder.join(target));
        let names = page
            .text
            .split(['`', ' ', '\n', ',', ':', '(', ')', '#'])
            .filter(|word| {
                ["tests/", "src/", "scripts/"]
                    .iter()
                    .any(|d| word.starts_with(d))
            })
            .map(|name| Path::new(ROOT).join(name));
        for path in links.chain(names) {
            assert!(
                path.exists(),
                "{}: there is no {}",
                page.path,
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 30, "the files were not found");
}

/// GitHub's name for a heading.
fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_heading_that_a_page_links_to_exists() {
    let pages = pages();
    let mut seen = 0;
    for page in &pages {
        let folder = Path::new(&page.path).parent().unwrap();
        for link in page.text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            let Some((file, heading)) = target.split_once('#') else {
                continue;
            };
            let other = match file {
                "" => page,
                file => match pages
                    .iter()
                    .find(|p| Path::new(&p.path) == folder.join(file))
                {
                    Some(other) => other,
                    None => continue,
                },
            };
            let headings = other.text.lines().filter(|line| line.starts_with('#'));
            let found = headings
                .map(|line| anchor(line.trim_start_matches('#').trim()))
                .any(|name| name == heading);
            assert!(found, "{}: {target} leads nowhere", page.path);
            seen += 1;
        }
    }
    assert!(seen > 1, "the links were not found");
}

#[test]
fn the_readme_is_a_page() {
    let readme = &pages()[0];
    assert!(readme.text.lines().count() <= 200, "README.md has grown");
}

#[test]
fn a_line_that_is_not_as_shown_is_found() {
    assert!(fits(&["a ... c"], &["a b c "]));
    assert!(fits(&["...", "x", "..."], &["1", "2", "x"]));
    assert!(fits(&[], &[]));
    for (shown, lines) in [
        (&["a ... c"][..], &["a b d"][..]),
        (&["a"], &["a", "b"]),
        (&["a", "b"], &["a"]),
        (&["...", "x"], &["y"]),
        (&["ab...bc"], &["abc"]),
        (&[], &["(the command ended with exit status: 1)"]),
    ] {
        assert!(!fits(shown, lines), "{shown:?} {lines:?}");
    }
}

/// Every key of a document, but for those that are the user's own names.
fn keys(document: &serde_json::Value, into: &mut std::collections::BTreeSet<String>) {
    match document {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                into.insert(key.clone());
                if !matches!(key.as_str(), "env" | "origins") {
                    keys(value, into);
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| keys(value, into)),
        _ => {}
    }
}

#[test]
fn every_key_of_the_json_is_documented() {
    let lab = Lab::new();
    let file = lab.write(
        "all.toml",
        "name = \"all\"\n[app]\nrootfs = \"host\"\nvolumes = [\"/usr/share/common-licenses:/data:ro\"]\n\
         command = [\"sleep\", \"1000\"]\n",
    );
    lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
    let mut found = std::collections::BTreeSet::new();
    for command in [
        &["ps", "--json"][..],
        &["status", "all", "--json"],
        &["plan", "--json"],
        &["audit", "all", "--json"],
    ] {
        keys(
            &serde_json::from_str(&lab.lrpns_ok(command)).unwrap(),
            &mut found,
        );
    }
    let pages = pages();
    let section = &pages
        .iter()
        .find(|p| p.path == "src/manual/json.md")
        .unwrap()
        .text;
    let missing: Vec<&String> = found
        .iter()
        .filter(|key| !section.contains(&format!("`{key}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "src/manual/json.md says nothing of {missing:?}"
    );
    assert!(found.len() > 50, "the documents were not read: {found:?}");
}
