//! Imports point down the table in `src/ARCHITECTURE.md`, never up, and only where the table says so.
//!
//! The table is the fenced block there that begins with ```` ```layers ````: one module a line, from top to bottom, with
//! what it may import after a colon (`*` for everything below it). A module stands for all files in its folder. Imports
//! are found by eye, not by compiler: every `crate::NAME` in a file that is not in a comment, and in `main.rs` every
//! `lrpns::NAME`.
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

/// The modules that a source text names, by the path of the crate's root. `use crate::{a, b::c}` counts too.
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
        if word_before {
            continue;
        }
        let rest = code[start + root.len() + 2..].trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.extend(first_name(&std::mem::take(&mut item))),
                    _ if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            found.extend(first_name(&item));
        } else {
            found.extend(first_name(rest));
        }
    }
    found
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

/// All source files, with the module each belongs to.
fn files(dir: &Path, module: Option<&str>, into: &mut Vec<(String, PathBuf)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files(&path, Some(module.unwrap_or(&name)), into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push((module.unwrap_or(&name).to_owned(), path));
        }
    }
}

/// Everything in `src` that the table does not allow.
fn violations(table: &Table, sources: &[(String, String, String)]) -> Vec<String> {
    let mut bad = Vec::new();
    let mut seen = BTreeSet::new();
    for (module, file, text) in sources {
        if module == "lib" {
            continue;
        }
        let Some((_, allowed)) = table.get(module) else {
            bad.push(format!("{file}: the table has no line for `{module}`"));
            continue;
        };
        seen.insert(module.clone());
        let root = if module == "main" { "lrpns" } else { "crate" };
        for import in imports(text, root) {
            // What is not a module is a macro or an item of the crate's root.
            if import != *module && table.contains_key(&import) && !allowed.contains(&import) {
                bad.push(format!(
                    "{file}: `{module}` imports `{import}`, which the table does not allow"
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
    let mut paths = Vec::new();
    files(&source_dir(), None, &mut paths);
    let sources: Vec<_> = paths
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
        .collect();
    let bad = violations(&table, &sources);
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
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
