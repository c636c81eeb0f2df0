//! Imports point down the table in `src/ARCHITECTURE.md`, never up, and only where the table says so.
//!
//! The table is the fenced block there that begins with ```` ```layers ````: one module a line, from top to bottom, with
//! what it may import after a colon (`*` for everything below it). A module stands for all files in its folder, but for
//! those that have a line of their own: `plan/change` is a room of the wing `plan`, and what holds between wings holds
//! between a room and the rest of its wing. Imports are found by eye, not by compiler: every `crate::NAME` and
//! `crate::NAME::NAME` in a file that is not in a comment, and in `main.rs` every `lrpns::NAME`.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Module name to (its line in the table, what it may import).
type Table = BTreeMap<String, (usize, BTreeSet<String>)>;

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Parses the table; every mistake in it is a sentence of the error.
fn parse_table(markdown: &str) -> Result<Table, Vec<String>> {
    let lines: Vec<&str> = markdown
        .lines()
        .skip_while(|line| line.trim() != "```layers")
        .skip(1)
        .take_while(|line| line.trim() != "```")
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        return Err(vec!["there is no block that begins with ```layers".into()]);
    }
    let mut problems = Vec::new();
    let mut rows: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in &lines {
        match line.split_once(':') {
            Some((module, imports)) => {
                rows.push((module.trim(), imports.split_whitespace().collect()))
            }
            None => problems.push(format!("no colon in `{line}`")),
        }
    }
    let order: Vec<&str> = rows.iter().map(|(module, _)| *module).collect();
    let mut table = Table::new();
    for (i, (module, imports)) in rows.iter().enumerate() {
        let below = &order[i + 1..];
        let mut allowed = BTreeSet::new();
        for import in imports {
            if *import == "*" {
                allowed.extend(below.iter().map(ToString::to_string));
            } else if below.contains(import) {
                allowed.insert((*import).to_owned());
            } else {
                problems.push(format!(
                    "`{module}` may import `{import}`, which is not below it"
                ));
            }
        }
        if table.insert((*module).to_owned(), (i, allowed)).is_some() {
            problems.push(format!("`{module}` has two lines"));
        }
    }
    if problems.is_empty() {
        Ok(table)
    } else {
        Err(problems)
    }
}

/// The modules that a source text names, by the path of the crate's root: `wing`, or `wing/room` where two names follow.
/// `use crate::{a, b::c}` counts too, and `use crate::a::{b, c}`.
fn imports(source: &str, root: &str) -> BTreeSet<String> {
    let code: String = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for (start, _) in code.match_indices(&format!("{root}::")) {
        let word_before = code[..start]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$');
        if !word_before {
            paths(&code[start + root.len() + 2..], "", &mut found);
        }
    }
    found
}

/// Adds what each path of a `use` tree names: the wing, or what might be a room of it.
fn paths(tree: &str, wing: &str, found: &mut BTreeSet<String>) {
    for branch in branches(tree) {
        match first_name(&branch) {
            Some(name) if wing.is_empty() => {
                match branch.trim_start()[name.len()..]
                    .trim_start()
                    .strip_prefix("::")
                {
                    Some(rest) => paths(rest, &name, found),
                    None => drop(found.insert(name)),
                }
            }
            Some(name) => drop(found.insert(format!("{wing}/{name}"))),
            // A type or a constant.
            None if !wing.is_empty() => drop(found.insert(wing.to_owned())),
            None => {}
        }
    }
}

/// What a `use` tree begins with: each branch of a group in braces, or the path itself.
fn branches(tree: &str) -> Vec<String> {
    let Some(group) = tree.trim_start().strip_prefix('{') else {
        return vec![tree.to_owned()];
    };
    let (mut branches, mut branch, mut depth) = (Vec::new(), String::new(), 0);
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => branches.push(std::mem::take(&mut branch)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                branch.push(c);
            }
        }
    }
    branches.push(branch);
    branches
}

/// The first name of a path, if there is one that a module could have.
fn first_name(path: &str) -> Option<String> {
    let name: String = path
        .trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    name.starts_with(|c: char| c.is_ascii_lowercase())
        .then_some(name)
}

/// The line of the table that a path falls under: its own, or its wing's.
fn line_of<'a>(table: &'a Table, path: &'a str) -> Option<&'a str> {
    let wing = path.split('/').next().unwrap_or(path);
    [path, wing]
        .into_iter()
        .find(|name| table.contains_key(*name))
}

/// All source files, with the path of the module each is: `wing`, or `wing/room`.
fn files(dir: &Path, wing: Option<&str>, into: &mut Vec<(String, PathBuf)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = match wing {
            None => name,
            Some(wing) if wing.contains('/') || name == "mod" => wing.to_owned(),
            Some(wing) => format!("{wing}/{name}"),
        };
        if path.is_dir() {
            files(&path, Some(&module), into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push((module, path));
        }
    }
}

/// Of each: module, path beneath `src`, text.
fn sources() -> Vec<(String, String, String)> {
    let mut paths = Vec::new();
    files(&source_dir(), None, &mut paths);
    paths
        .into_iter()
        .map(|(module, path)| {
            let text = fs::read_to_string(&path).unwrap();
            (
                module,
                path.strip_prefix(source_dir())
                    .unwrap()
                    .display()
                    .to_string(),
                text,
            )
        })
        .collect()
}

/// Everything in `src` that the table does not allow.
fn violations(table: &Table, sources: &[(String, String, String)]) -> Vec<String> {
    let mut bad = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, file, text) in sources {
        if module == "lib" {
            continue;
        }
        let Some(line) = line_of(table, module) else {
            bad.push(format!("{file}: the table has no line for `{module}`"));
            continue;
        };
        let (_, allowed) = &table[line];
        seen.insert(line.to_owned());
        let root = if module == "main" { "lrpns" } else { "crate" };
        for import in imports(text, root) {
            // What has no line is a macro or an item of the crate's root.
            let Some(import) = line_of(table, &import) else {
                continue;
            };
            if import != line && !allowed.contains(import) {
                bad.push(format!(
                    "{file}: `{line}` imports `{import}`, which the table does not allow"
                ));
            }
        }
    }
    bad.extend(
        table
            .keys()
            .filter(|module| !seen.contains(*module))
            .map(|m| format!("the table has `{m}`, src has not")),
    );
    bad
}

#[test]
fn imports_point_down_the_table() {
    let path = source_dir().join("ARCHITECTURE.md");
    let markdown = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let table =
        parse_table(&markdown).unwrap_or_else(|e| panic!("{}:\n{}", path.display(), e.join("\n")));
    let bad = violations(&table, &sources());
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

/// What a file that only decides has no use for: whatever reads or changes something beside its arguments.
const OUTSIDE: [&str; 13] = [
    "std::fs",
    "std::env",
    "std::io",
    "std::process",
    "std::os",
    "File::",
    "Command::new",
    "Instant::now",
    "SystemTime",
    "tokio",
    "rustix",
    "nix::",
    "Stream::connect",
];

/// Every use of these in a file of the plan's, but in its tests.
fn outside(sources: &[(String, String, String)]) -> Vec<String> {
    let files = sources
        .iter()
        .filter(|(_, path, _)| path.starts_with("plan/"));
    let uses = files.flat_map(|(_, path, text)| {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = code.lines().map(|line| line.split("//").next().unwrap());
        code.flat_map(move |line| {
            let found = OUTSIDE.iter().filter(|what| line.contains(**what));
            found.map(move |what| format!("{path}: {what}"))
        })
        .collect::<Vec<_>>()
    });
    uses.collect()
}

#[test]
fn a_plan_is_decided_without_looking_at_anything_else() {
    assert_eq!(outside(&sources()), [""; 0]);
    let source = |path: &str, text: &str| (String::new(), path.to_owned(), text.to_owned());
    let loud = source("plan/a.rs", "let a = std::fs::read(\"/etc/passwd\");");
    assert_eq!(outside(&[loud]), ["plan/a.rs: std::fs"]);
    for quiet in [
        source("host/a.rs", "use std::fs;"),
        source(
            "plan/a.rs",
            "// std::fs\n#[cfg(test)]\nmod tests { use std::fs; }",
        ),
    ] {
        assert_eq!(outside(&[quiet]), [""; 0]);
    }
    // Nor by way of somebody who does: of the wings, it sees values and facts.
    let table = fs::read_to_string(source_dir().join("ARCHITECTURE.md")).unwrap();
    let table = parse_table(&table).unwrap();
    for writer in [
        "part",
        "part/cgroup",
        "stack",
        "state",
        "host",
        "net",
        "firewall",
    ] {
        assert!(!table["plan"].1.contains(writer), "plan imports {writer}");
    }
}

/// Which files let time pass: all that sleep, or poll nothing for a while.
fn waiting(sources: &[(String, String, String)]) -> BTreeSet<String> {
    let waits = |text: &str| {
        let lines = text.lines().map(str::trim_start);
        lines
            .filter(|line| !line.starts_with("//"))
            .any(|line| line.contains("sleep(") || line.contains("poll(&mut [],"))
    };
    sources
        .iter()
        .filter(|(_, _, text)| waits(text.split("#[cfg(test)]\nmod tests {").next().unwrap()))
        .map(|(_, path, _)| path.trim_end_matches(".rs").to_owned())
        .collect()
}

#[test]
fn what_lets_time_pass_says_for_what() {
    let map = fs::read_to_string(source_dir().join("ARCHITECTURE.md")).unwrap();
    let said: BTreeSet<String> = map
        .lines()
        .skip_while(|line| line.trim() != "```waits")
        .skip(1)
        .take_while(|line| line.trim() != "```")
        .map(|line| line.split_once(": ").unwrap().0.to_owned())
        .collect();
    assert_eq!(waiting(&sources()), said);
    let quiet = "// sleep(1)\nlet a = 1;\n#[cfg(test)]\nmod tests { fn f() { sleep(1) } }";
    let source = |text: &str| (String::new(), "a/b.rs".to_owned(), text.to_owned());
    assert_eq!(waiting(&[source(quiet)]), BTreeSet::new());
    for loud in ["time::sleep(A).await;", "poll(&mut [], Some(&A));"] {
        assert_eq!(waiting(&[source(loud)]), ["a/b".to_owned()].into());
    }
}

#[test]
fn an_import_that_points_up_is_found() {
    let table = parse_table("```layers\nmain: *\ntop: low\nlow:\n```\n").unwrap();
    let source =
        |module: &str, text: &str| (module.to_owned(), format!("{module}.rs"), text.to_owned());
    let fine = [
        source("main", "use lrpns::top;"),
        source("top", "use crate::low::Thing;\n// crate::main\n"),
        source("low", "use crate::low::Other;"),
    ];
    assert_eq!(violations(&table, &fine), [""; 0]);
    for up in [
        "use crate::top;",
        "fn f() { crate::top::go() }",
        "use crate::{\n    low::{A, b},\n    top::C,\n};",
    ] {
        let mut sources = fine.to_vec();
        sources[2].2 = up.to_owned();
        assert_eq!(violations(&table, &sources).len(), 1, "{up}");
    }
    let rooms =
        parse_table("```layers\ntop: low low/room\nlow: low/room\nlow/room:\n```\n").unwrap();
    let mut sources = vec![
        source("top", "use crate::low::{room::Thing, other};"),
        source("low", "use crate::low::room;"),
        source("low/other", "use crate::low::room::{a, b};"),
        source("low/room", "use crate::low::room::Thing;"),
    ];
    assert_eq!(violations(&rooms, &sources), [""; 0]);
    for up in [
        "use crate::low::other;",
        "use crate::{low, top::go};",
        "use crate::low::{room, Item};",
    ] {
        sources[3].2 = up.to_owned();
        assert_ne!(violations(&rooms, &sources), [""; 0], "{up}");
    }
    let mut sources = fine.to_vec();
    sources.push(source("new", ""));
    assert_eq!(
        violations(&table, &sources),
        ["new.rs: the table has no line for `new`"]
    );
    assert_eq!(
        violations(&table, &fine[..2]),
        ["the table has `low`, src has not"]
    );
}

#[test]
fn a_table_that_points_up_is_refused() {
    assert!(parse_table("no table").is_err());
    assert!(parse_table("```layers\nlow:\ntop: low\n```").is_err());
    assert!(parse_table("```layers\na: b\nb: a\n```").is_err());
}
