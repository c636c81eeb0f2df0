//! `${NAME}` in the strings of a configuration, and where its value comes from.
//!
//! A name is looked for in `--set`, in the environment (as `LRPNS_NAME`), in the env file and in the table `[vars]`,
//! in this order; the first that has it counts.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::errors::{ConfigErrors, Place, Problem, Source, nearest, quoted};
use super::values::ValueError;
use super::{LARGEST, Origin, Text, read_text};

/// What `${NAME}` may stand for, apart from the file's own `[vars]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vars {
    /// `--set NAME=VALUE`, in the order given; the last one of a name counts.
    pub set: Vec<(String, String)>,
    /// The environment; only names that begin with `LRPNS_` are looked at (and PROVIDER, by the built-in example).
    pub env: BTreeMap<String, String>,
    /// `--env-file`: its path and what is in it.
    pub env_file: Option<(PathBuf, String)>,
    /// Errors must not quote that file.
    pub private: bool,
}

impl Vars {
    /// The variables of this process: the flags `--set` and `--env-file` and the environment.
    ///
    /// # Errors
    /// [`ConfigErrors`] lists every flag that is malformed, an env file that can't be read, and every `LRPNS_` variable
    /// that is not UTF-8. What is inside the env file is checked later, together with the configuration.
    pub fn from_process(set: &[String], env_file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let mut vars = Vars::default();
        for flag in set {
            match parse_set(flag) {
                Ok(pair) => vars.set.push(pair),
                Err(error) => problems.push(error.problem(Place::Flag {
                    name: "--set".to_owned(),
                })),
            }
        }
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str() else { continue };
            match value.into_string() {
                Ok(value) => {
                    vars.env.insert(name.to_owned(), value);
                }
                Err(_) if name.starts_with(PREFIX) => problems.push(Problem {
                    place: Place::Flag {
                        name: name.to_owned(),
                    },
                    message: "the variable's value is not UTF-8".to_owned(),
                    label: String::new(),
                    expected: "text in UTF-8".to_owned(),
                    example: format!("{name}=world"),
                }),
                Err(_) => {}
            }
        }
        if let Some(path) = env_file {
            match read_text(path, LARGEST) {
                Ok(Text { text, private }) => {
                    vars.env_file = Some((path.to_owned(), text));
                    vars.private = private;
                }
                Err(problem) if problem.is_of_trust() => problems.push(*problem),
                Err(problem) => problems.push(Problem {
                    example: "--env-file web.env, with lines such as PROVIDER=world".to_owned(),
                    ..*problem
                }),
            }
        }
        if problems.is_empty() {
            Ok(vars)
        } else {
            Err(ConfigErrors::new(problems))
        }
    }
}

impl Vars {
    /// `errors` without a word of an env file that must not be quoted.
    pub(super) fn hidden(&self, errors: ConfigErrors) -> ConfigErrors {
        match &self.env_file {
            Some((path, _)) if self.private => errors.without_lines_of(path),
            _ => errors,
        }
    }
}

/// What a name of the environment begins with.
const PREFIX: &str = "LRPNS_";

/// Takes `NAME=VALUE`, as given to `--set`, apart.
///
/// # Errors
/// [`ValueError`] says what is wrong with it.
pub fn parse_set(flag: &str) -> Result<(String, String), ValueError> {
    const EXPECTED: &str = "NAME=VALUE; NAME has letters, digits and `_`, and begins with no digit";
    const EXAMPLE: &str = "--set PROVIDER=lrpns";
    let bad = |message: String| ValueError::form(message, EXPECTED, EXAMPLE);
    let (name, value) = flag
        .split_once('=')
        .ok_or_else(|| bad(format!("{} has no `=`", quoted(flag))))?;
    if !is_name(name) {
        return Err(bad(format!("{} is no variable's name", quoted(name))));
    }
    if value.contains('\0') {
        return Err(bad(format!("the value of `{name}` has a NUL character")));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Whether `name` can be a variable's name: letters, digits and `_`, no digit first.
pub(super) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Every source of values in one place, as one configuration sees them.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// A name to its value and origin; sources are in the order in which they count.
    sources: Vec<BTreeMap<String, (String, Origin)>>,
    /// Names of the env file whose values can't be told, and why.
    broken: BTreeMap<String, String>,
    /// The table `[vars]`, to be told from the rest because its own values can't use it.
    table: BTreeMap<String, (String, Origin)>,
    /// How many bytes all strings have come to.
    filled: Cell<usize>,
}

impl Lookup {
    /// `plain` are the names that the environment may give without `LRPNS_` too.
    pub(super) fn new(vars: &Vars, plain: &[&str], problems: &mut Vec<Problem>) -> Self {
        let set = vars.set.iter().map(|(name, value)| {
            let origin = Origin::Flag {
                name: format!("--set {name}"),
            };
            (name.clone(), (value.clone(), origin))
        });
        let of_env = |variable: &str, value: &str| {
            let origin = Origin::Environment {
                name: variable.to_owned(),
            };
            (value.to_owned(), origin)
        };
        let env = vars.env.iter().filter_map(|(variable, value)| {
            let name = variable.strip_prefix(PREFIX)?;
            Some((name.to_owned(), of_env(variable, value)))
        });
        let plain = plain.iter().filter_map(|name| {
            let value = vars.env.get(*name)?;
            Some(((*name).to_owned(), of_env(name, value)))
        });
        let mut sources = vec![set.collect(), env.collect()];
        let file = match &vars.env_file {
            Some((path, text)) => read_env_file(&Source::new(path, text), &sources, problems),
            None => EnvFile::default(),
        };
        sources.extend([file.values, plain.collect()]);
        Self {
            sources,
            broken: file.broken,
            table: BTreeMap::new(),
            filled: Cell::new(0),
        }
    }

    /// Adds a value of the table `[vars]`.
    pub(super) fn add(&mut self, name: String, value: String, origin: Origin) {
        self.table.insert(name, (value, origin));
    }

    /// Every name of the table, with the value that counts.
    pub(super) fn table(&self) -> BTreeMap<String, String> {
        let found = self.table.keys().filter_map(|name| {
            let (value, _) = self.find(name)?;
            Some((name.clone(), value.clone()))
        });
        found.collect()
    }

    fn find(&self, name: &str) -> Option<&(String, Origin)> {
        self.sources
            .iter()
            .find_map(|source| source.get(name))
            .or_else(|| self.table.get(name))
    }

    /// Fills in the variables of `text`. The origin is that of the first one, if it came from outside the file.
    pub(super) fn expand(&self, text: &str) -> Result<(String, Option<Origin>), Vec<Unfilled>> {
        let mut out = String::with_capacity(text.len());
        let mut origin = None;
        let mut wrong = Vec::new();
        for piece in pieces(text) {
            if out.len() > LONGEST.max(text.len()) {
                break;
            }
            match piece {
                Piece::Literal(words) => out.push_str(words),
                Piece::Broken { span, why } => wrong.push(Unfilled {
                    span,
                    message: why.to_owned(),
                    expected: "`${NAME}`, `${NAME:-default}`, or `$$` for a dollar sign".to_owned(),
                    example: "\"${PROVIDER:-world}\"".to_owned(),
                }),
                Piece::Variable {
                    name,
                    default,
                    span,
                } => match (self.find(name), default) {
                    // As in a shell, `:-` also replaces a value that is set but empty.
                    (Some((value, _)), Some(default)) if value.is_empty() => out.push_str(default),
                    (Some((value, from)), _) => {
                        out.push_str(value);
                        origin.get_or_insert_with(|| from.clone());
                    }
                    (None, Some(default)) if !self.broken.contains_key(name) => {
                        out.push_str(default);
                    }
                    (None, _) => wrong.push(self.unset(name, span)),
                },
            }
        }
        if wrong.is_empty() && out.len() > LONGEST.max(text.len()) {
            wrong.push(Unfilled::too_long(
                0..text.len(),
                format!("its variables make this string longer than {LONGEST} bytes"),
            ));
        }
        let filled = self.filled.get().saturating_add(out.len());
        self.filled.set(filled);
        if wrong.is_empty() && filled > LONGEST_IN_ALL && out.len() > text.len() {
            wrong.push(Unfilled::too_long(
                0..text.len(),
                format!(
                    "with this string, variables make more than {LONGEST_IN_ALL} bytes of the file"
                ),
            ));
        }
        if wrong.is_empty() {
            Ok((out, origin))
        } else {
            Err(wrong)
        }
    }

    fn unset(&self, name: &str, span: Range<usize>) -> Unfilled {
        if let Some(why) = self.broken.get(name) {
            return Unfilled {
                span,
                message: format!("the variable `{name}` has no value: {why}"),
                expected: LINE.to_owned(),
                example: format!("{name}='pa$$word'"),
            };
        }
        let known = self.sources.iter().chain([&self.table]);
        let known = known.flat_map(|source| source.keys().map(String::as_str));
        let near = nearest(name, known).map_or(String::new(), |near| {
            format!("; the nearest name that is set is `{near}`")
        });
        Unfilled {
            span,
            message: format!("the variable `{name}` is not set{near}"),
            expected: format!(
                "a value from --set, the environment (LRPNS_{name}), --env-file or [vars], or a default"
            ),
            example: format!("--set {name}=VALUE, or `${{{name}:-default}}`"),
        }
    }
}

/// The longest text that variables may make of one string: the kernel takes no longer argument (`MAX_ARG_STRLEN`,
/// execve(2)).
const LONGEST: usize = 128 << 10;
/// The longest that they may make of all strings of a configuration together: more than execve(2) takes for one app.
const LONGEST_IN_ALL: usize = 8 << 20;

/// A variable that could not be filled in.
#[derive(Debug)]
pub(super) struct Unfilled {
    /// Its bytes in the string.
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) expected: String,
    pub(super) example: String,
}

impl Unfilled {
    fn too_long(span: Range<usize>, message: String) -> Self {
        Self {
            span,
            message,
            expected: "values that the kernel takes as arguments and environment of a program"
                .to_owned(),
            example: "volumes = [\"./big:/big:ro\"], and the file's path in the variable"
                .to_owned(),
        }
    }
}

/// Every name that `text` uses.
pub(super) fn used_names(text: &str) -> impl Iterator<Item = &str> {
    pieces(text).into_iter().filter_map(|piece| match piece {
        Piece::Variable { name, .. } => Some(name),
        _ => None,
    })
}

enum Piece<'t> {
    Literal(&'t str),
    Variable {
        name: &'t str,
        default: Option<&'t str>,
        span: Range<usize>,
    },
    Broken {
        span: Range<usize>,
        why: &'static str,
    },
}

/// Cuts `text` at its variables. A `$` that neither `{` nor `$` follows is itself.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(dollar) = text[at..].find('$').map(|i| at + i) {
        found.push(Piece::Literal(&text[at..dollar]));
        let rest = &text[dollar + 1..];
        if let Some(inside) = rest.strip_prefix('{') {
            let Some(end) = inside.find('}') else {
                found.push(Piece::Broken {
                    span: dollar..text.len(),
                    why: "`${` without its `}`",
                });
                return found;
            };
            let after = dollar + 2 + end + 1;
            found.push(variable(&inside[..end], dollar..after));
            at = after;
        } else {
            found.push(Piece::Literal("$"));
            at = dollar + if rest.starts_with('$') { 2 } else { 1 };
        }
    }
    found.push(Piece::Literal(&text[at..]));
    found
}

/// What stands between `${` and `}`.
fn variable(inside: &str, span: Range<usize>) -> Piece<'_> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_name(name) {
        let why = "not a variable's name: letters, digits and `_`, no digit first";
        return Piece::Broken { span, why };
    }
    if default.is_some_and(|default| default.contains("${")) {
        let why = "a default can't use a variable";
        return Piece::Broken { span, why };
    }
    Piece::Variable {
        name,
        default,
        span,
    }
}

const LINE: &str = "NAME=VALUE, a comment (`# ...`) or an empty line";
const LINE_EXAMPLE: &str = "PROVIDER=\"my world\"";

/// What an env file gives: values, and why a name of it has none.
#[derive(Debug, Default)]
struct EnvFile {
    values: BTreeMap<String, (String, Origin)>,
    broken: BTreeMap<String, String>,
}

/// Reads an env file as docker compose does (compose-go, `dotenv/parser.go`): `export` may come first, the last one of a
/// name counts, a value in quotes may have several lines, `#` after a blank begins a comment, `$NAME` and
/// `${NAME:-default}` are filled in except in single quotes, and `\$` or `$$` is a dollar sign.
///
/// It differs where compose would go on with something else than was meant: a name that is used in a value and not set is
/// an error and not empty, and so is what follows a closing quote.
fn read_env_file(
    source: &Source<'_>,
    outer: &[BTreeMap<String, (String, Origin)>],
    problems: &mut Vec<Problem>,
) -> EnvFile {
    let at = match source.text.starts_with('\u{feff}') {
        true => '\u{feff}'.len_utf8(),
        false => 0,
    };
    let mut reader = EnvReader {
        source,
        outer,
        problems,
        file: EnvFile::default(),
        at,
    };
    while let Some(line) = reader.next_line() {
        reader.read(line);
    }
    reader.file
}

/// An env file, as far as it was read.
struct EnvReader<'r, 't> {
    source: &'r Source<'t>,
    /// What values may name beside what stands before them.
    outer: &'r [BTreeMap<String, (String, Origin)>],
    problems: &'r mut Vec<Problem>,
    file: EnvFile,
    /// Where the next line begins.
    at: usize,
}

impl<'t> EnvReader<'_, 't> {
    /// The next line, without what ends it.
    fn next_line(&mut self) -> Option<Range<usize>> {
        let (text, at) = (self.source.text, self.at);
        if at >= text.len() {
            return None;
        }
        let end = text[at..].find('\n').map_or(text.len(), |i| at + i);
        self.at = end + 1;
        Some(at..end)
    }

    fn problem(&mut self, span: Range<usize>, message: String) {
        self.problems.push(Problem {
            place: self.source.place(span),
            message,
            label: String::new(),
            expected: LINE.to_owned(),
            example: LINE_EXAMPLE.to_owned(),
        });
    }

    /// Reads a line, and those that its value goes on in.
    fn read(&mut self, line: Range<usize>) {
        let Some((name, raw_at)) = self.name(line.clone()) else {
            return;
        };
        let text = self.source.text;
        let raw = &text[raw_at..line.end];
        let blanks = raw.find(|c: char| c != ' ' && c != '\t');
        let span = raw_at + blanks.unwrap_or(raw.len())..line.end;
        let value = match text[span.clone()].chars().next() {
            Some(quote @ ('"' | '\'')) => match self.quoted(quote, span.clone()) {
                Some(value) => value,
                None => return,
            },
            _ => {
                // The blank before a comment may be the one after `=`.
                let mut comments = raw.match_indices('#').map(|(i, _)| i);
                let comment = comments.find(|i| raw[..*i].ends_with([' ', '\t']));
                raw[..comment.unwrap_or(raw.len())].trim().to_owned()
            }
        };
        let literal = text[span.start..].starts_with('\'');
        let filled = if literal {
            Ok(value)
        } else {
            fill(&value, |name| {
                let outer = self.outer.iter().find_map(|source| source.get(name));
                let found = outer.or_else(|| self.file.values.get(name));
                found.map(|(value, _)| value.clone())
            })
        };
        self.set(name, filled, self.source.line(line.start), span);
    }

    /// The name that a line gives a value, and where what follows its `=` begins.
    fn name(&mut self, line: Range<usize>) -> Option<(&'t str, usize)> {
        let text = &self.source.text[line.clone()];
        let trimmed = text.trim();
        let name_at = line.start + (text.len() - text.trim_start().len());
        if trimmed.is_empty() || trimmed.starts_with('#') {
            return None;
        }
        let (statement, name_at) = match trimmed.strip_prefix("export") {
            Some(rest) if rest.starts_with([' ', '\t']) => {
                let blanks = rest.len() - rest.trim_start().len();
                (rest.trim_start(), name_at + "export".len() + blanks)
            }
            _ => (trimmed, name_at),
        };
        let Some(equals) = statement.find('=') else {
            // A name alone is taken from the environment, where it is looked for anyway.
            if statement.contains(char::is_whitespace) || statement.contains(['"', '\'']) {
                let message = format!("{} has no `=`", quoted(statement));
                self.problem(name_at..name_at + statement.len(), message);
            }
            return None;
        };
        let name = statement[..equals].trim_end();
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let message = format!("{} is no variable's name", quoted(name));
            self.problem(name_at..name_at + name.len(), message);
            return None;
        }
        Some((name, name_at + equals + 1))
    }

    /// A value in quotes, which begins where `span` does and may go on after it.
    fn quoted(&mut self, quote: char, span: Range<usize>) -> Option<String> {
        let text = self.source.text;
        match unquote(&text[span.start + 1..], quote) {
            Ok((value, length)) => {
                let after = span.start + 1 + length;
                let end = text[after..].find('\n').map_or(text.len(), |i| after + i);
                self.at = end + 1;
                let rest = text[after..end].trim();
                if !(rest.is_empty() || rest.starts_with('#')) {
                    let message = "something follows the closing quote".to_owned();
                    self.problem(after..end, message);
                    return None;
                }
                Some(value)
            }
            Err(why) => {
                // What follows would be read as part of the value, or as what it is not.
                self.problem(span, why.to_owned());
                self.at = text.len();
                None
            }
        }
    }

    /// Gives a name its value, if it has one.
    fn set(&mut self, name: &str, filled: Result<String, Unfit>, line: usize, span: Range<usize>) {
        match filled {
            Ok(value) if value.contains('\0') => {
                self.problem(span, "the value has a NUL character".to_owned());
            }
            Ok(value) => {
                let path = self.source.path.to_owned();
                self.file.broken.remove(name);
                self.file
                    .values
                    .insert(name.to_owned(), (value, Origin::File { path, line }));
            }
            Err(Unfit::TooLong) => {
                let message = format!("its variables make the value longer than {LONGEST} bytes");
                self.problem(span, message);
            }
            // Nobody may need it.
            Err(Unfit::Unset(unset)) => {
                let why = format!(
                    "line {line} of {} uses `{unset}`, which is not set; in single quotes `$` is a dollar sign",
                    self.source.path.display()
                );
                self.file.values.remove(name);
                self.file.broken.insert(name.to_owned(), why);
            }
        }
    }
}

/// Reads up to the closing `quote`: the value, and how many bytes that took. What a backslash means is left to [`fill`]
/// where `$` follows.
fn unquote(text: &str, quote: char) -> Result<(String, usize), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Ok((value.replace("\r\n", "\n"), i + 1));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let Some((_, next)) = chars.next() else { break };
        let meant = match (next, quote) {
            (next, quote) if next == quote => Some(quote),
            (_, '\'') => None,
            ('n', _) => Some('\n'),
            ('t', _) => Some('\t'),
            ('r', _) => Some('\r'),
            ('a', _) => Some('\u{7}'),
            ('b', _) => Some('\u{8}'),
            ('f', _) => Some('\u{c}'),
            ('v', _) => Some('\u{b}'),
            ('\\', _) => Some('\\'),
            ('$', _) => {
                value.push_str("$$");
                continue;
            }
            _ => None,
        };
        match meant {
            Some(c) => value.push(c),
            // What means nothing is itself.
            None => value.extend(['\\', next]),
        }
    }
    Err("the value's quote is not closed")
}

/// Why a value of the env file can't be had.
enum Unfit {
    /// The name that is not set.
    Unset(String),
    TooLong,
}

/// Fills in `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME-default}`. A `$` that nothing of the kind follows is itself.
fn fill(text: &str, find: impl Fn(&str) -> Option<String>) -> Result<String, Unfit> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        if out.len() > LONGEST.max(text.len()) {
            return Err(Unfit::TooLong);
        }
        let (before, after) = (&rest[..dollar], &rest[dollar + 1..]);
        if let Some(before) = before.strip_suffix('\\') {
            out.push_str(before);
            out.push('$');
            rest = after;
            continue;
        }
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let braced = after
            .strip_prefix('{')
            .and_then(|inside| inside.split_once('}'));
        let bare = after
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(after.len());
        let (name, default, next) = match braced {
            Some((inside, next)) => {
                let (name, default) = match inside.split_once('-') {
                    Some((name, default)) => (name, Some(default)),
                    None => (inside, None),
                };
                (name, default, next)
            }
            None => (&after[..bare], None, &after[bare..]),
        };
        let (name, empty_too) = match name.strip_suffix(':') {
            Some(name) if default.is_some() => (name, true),
            _ => (name, false),
        };
        if !is_name(name) {
            out.push('$');
            rest = after;
            continue;
        }
        match (find(name), default) {
            (Some(value), Some(default)) if value.is_empty() && empty_too => out.push_str(default),
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(Unfit::Unset(name.to_owned())),
        }
        rest = next;
    }
    out.push_str(rest);
    match out.len() > LONGEST.max(text.len()) {
        true => Err(Unfit::TooLong),
        false => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(vars: &Vars) -> Lookup {
        let mut problems = Vec::new();
        let lookup = Lookup::new(vars, &[], &mut problems);
        assert_eq!(problems, []);
        lookup
    }

    fn vars(set: &[(&str, &str)], env: &[(&str, &str)], file: &str) -> Vars {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Vars {
            set: set.iter().map(own).collect(),
            env: env.iter().map(own).collect(),
            env_file: Some(("x.env".into(), file.to_owned())),
            private: false,
        }
    }

    #[test]
    fn set_counts_before_environment_before_env_file_before_table() {
        let file = "A=file\nB=file\nC=file\n";
        let env = [("LRPNS_A", "env"), ("LRPNS_B", "env"), ("D", "plain")];
        let mut lookup = lookup(&vars(&[("A", "old"), ("A", "set")], &env, file));
        for name in ["A", "B", "C", "D"] {
            lookup.add(name.to_owned(), "table".to_owned(), Origin::Default);
        }
        let (text, origin) = lookup.expand("${A} ${B} ${C} ${D}").unwrap();
        assert_eq!(text, "set env file table");
        let name = "--set A".to_owned();
        assert_eq!(origin, Some(Origin::Flag { name }));
        let (_, origin) = lookup.expand("${B}").unwrap();
        let name = "LRPNS_B".to_owned();
        assert_eq!(origin, Some(Origin::Environment { name }));
        let (_, origin) = lookup.expand("${C}").unwrap();
        let path = "x.env".into();
        assert_eq!(origin, Some(Origin::File { path, line: 3 }));
    }

    #[test]
    fn dollars_defaults_and_empty_values_are_as_documented() {
        let lookup = lookup(&vars(&[("A", "a${B}"), ("E", "")], &[], ""));
        for (text, expanded) in [
            ("$$", "$"),
            ("$${A}", "${A}"),
            ("$$$$", "$$"),
            ("cost: 5$", "cost: 5$"),
            ("echo $HOME", "echo $HOME"),
            ("${A}", "a${B}"),
            ("${B:-x y}", "x y"),
            ("${B:-}", ""),
            ("${B:-a:-b$c}", "a:-b$c"),
            ("[${E}]", "[]"),
            ("${E:-x}", "x"),
            ("ä${A}ü", "äa${B}ü"),
        ] {
            assert_eq!(lookup.expand(text).unwrap().0, expanded, "{text}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_filled_in_is_an_error_at_its_place() {
        let lookup = lookup(&vars(&[("PROVIDER", "x")], &[], ""));
        for (text, span, words) in [
            (
                "a ${PROVIDR}",
                2..12,
                "nearest name that is set is `PROVIDER`",
            ),
            ("${", 0..2, "without its `}`"),
            ("${A:-${PROVIDER}}", 0..16, "a default can't use"),
            ("${}", 0..3, "not a variable's name"),
            ("${1A}", 0..5, "not a variable's name"),
            ("${A-x}", 0..6, "not a variable's name"),
            ("x$${A}${B C}", 6..12, "not a variable's name"),
        ] {
            let wrong = lookup.expand(text).unwrap_err();
            assert_eq!(wrong.len(), 1, "{text}");
            assert_eq!(wrong[0].span, span, "{text}");
            assert!(wrong[0].message.contains(words), "{}", wrong[0].message);
        }
        assert_eq!(lookup.expand("${A} ${B} ${PROVIDER}").unwrap_err().len(), 2);
    }

    #[test]
    fn an_env_file_is_read_as_docker_compose_reads_it() {
        for (text, value) in [
            ("A=b", "b"),
            ("\u{feff}A=b", "b"),
            ("export A=b", "b"),
            ("\texport\tA = b c ", "b c"),
            ("exportA=x\nA=b", "b"),
            ("A=b\r\n", "b"),
            ("A=", ""),
            ("A=b#c", "b#c"),
            ("A=b # c", "b"),
            ("A=b\t# c", "b"),
            ("A= # c", ""),
            ("A=#c", "#c"),
            ("A=b=c", "b=c"),
            ("A=1\nA=2", "2"),
            ("A.B=x\n1=2\nd-e=f\nA=b", "b"),
            ("FOO\nA=b", "b"),
            ("A=\"b # c\" # d", "b # c"),
            ("A='b\nc'\nB=x", "b\nc"),
            ("A=\"b\r\nc\"", "b\nc"),
            (r#"A="a\tb\nc\\d\"e\$f\g""#, "a\tb\nc\\d\"e$f\\g"),
            (r"A='a\n$B ${C} # \'d\''", r"a\n$B ${C} # 'd'"),
            ("A={\"a\": 1}", "{\"a\": 1}"),
            // Variables.
            ("B=x\nA=a${B}c$B", "axcx"),
            ("B=x\nA=\"a${B}c\"", "axc"),
            ("A=${B:-d}${E-e}", "de"),
            ("B=\nA=[${B:-d}${B-e}]", "[d]"),
            (r"A=\$B$$C", "$B$C"),
            ("A=5$ $1 ${} $", "5$ $1 ${} $"),
            ("A=${SET}", "set"),
        ] {
            let lookup = lookup(&vars(&[("SET", "set")], &[], text));
            let (found, _) = lookup.expand("${A}").unwrap();
            assert_eq!(found, value, "{text:?}");
        }
    }

    #[test]
    fn a_value_that_uses_what_is_not_set_is_an_error_for_who_needs_it_only() {
        let lookup = lookup(&vars(&[], &[], "A=pa$word\nB=x\n"));
        assert_eq!(lookup.expand("${B}").unwrap().0, "x");
        for text in ["${A}", "${A:-default}"] {
            let wrong = lookup.expand(text).unwrap_err();
            let said = &wrong[0].message;
            assert!(said.contains("line 1 of x.env uses `word`"), "{said}");
        }
    }

    #[test]
    fn a_bad_line_of_an_env_file_is_an_error_at_its_place() {
        for (text, line, column, words) in [
            ("A b", 1, 1, "has no `=`"),
            ("\n \"A\"", 2, 2, "has no `=`"),
            ("=b", 1, 1, "`` is no variable's name"),
            ("A B=c", 1, 1, "`A B` is no variable's name"),
            ("A=\"b", 1, 3, "not closed"),
            ("B='x\ny'\nA='b\nc=d", 3, 3, "not closed"),
            ("A = 'b' c", 1, 8, "follows the closing quote"),
            ("A=\"b\\", 1, 3, "not closed"),
        ] {
            let mut problems = Vec::new();
            Lookup::new(&vars(&[], &[], text), &[], &mut problems);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            let Place::Text {
                line: l, column: c, ..
            } = problems[0].place
            else {
                panic!("{problems:?}")
            };
            assert_eq!((l, c), (line, column), "{text}");
            assert!(problems[0].message.contains(words), "{problems:?}");
        }
    }

    #[test]
    fn a_set_flag_is_a_name_and_a_value() {
        let pair = |a: &str, b: &str| Ok((a.to_owned(), b.to_owned()));
        assert_eq!(parse_set("A=b=c"), pair("A", "b=c"));
        assert_eq!(parse_set("A="), pair("A", ""));
        for bad in ["A", "", "=x", "1=x", "a b=x", "A=\0", "ä=x"] {
            assert!(parse_set(bad).is_err(), "{bad:?} was taken");
        }
    }
}
