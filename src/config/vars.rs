//! `${NAME}` in the strings of a configuration, and where its value comes from.
//!
//! A name is looked for in `--set`, in the environment (as `LRPNS_NAME`), in the env file and in the table `[vars]`,
//! in this order; the first that has it counts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::errors::{ConfigErrors, Place, Problem, Source, nearest, quoted};
use super::values::ValueError;
use super::{LARGEST, Origin, read_text};

/// What `${NAME}` may stand for, apart from the file's own `[vars]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vars {
    /// `--set NAME=VALUE`, in the order given; the last one of a name counts.
    pub set: Vec<(String, String)>,
    /// The environment; only names that begin with `LRPNS_` are looked at (and PROVIDER, by the built-in example).
    pub env: BTreeMap<String, String>,
    /// `--env-file`: its path and what is in it.
    pub env_file: Option<(PathBuf, String)>,
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
                Ok(text) => vars.env_file = Some((path.to_owned(), text)),
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
    /// The table `[vars]`, to be told from the rest because its own values can't use it.
    table: BTreeMap<String, (String, Origin)>,
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
        let file = match &vars.env_file {
            Some((path, text)) => read_env_file(&Source::new(path, text), problems),
            None => BTreeMap::new(),
        };
        Self {
            sources: vec![set.collect(), env.collect(), file, plain.collect()],
            table: BTreeMap::new(),
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
                    (None, Some(default)) => out.push_str(default),
                    (None, None) => wrong.push(self.unset(name, span)),
                },
            }
        }
        if wrong.is_empty() {
            Ok((out, origin))
        } else {
            Err(wrong)
        }
    }

    fn unset(&self, name: &str, span: Range<usize>) -> Unfilled {
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

/// A variable that could not be filled in.
#[derive(Debug)]
pub(super) struct Unfilled {
    /// Its bytes in the string.
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) expected: String,
    pub(super) example: String,
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

/// Reads an env file: a `NAME=VALUE` per line, a `#` at the beginning of a line is a comment. A value in double quotes
/// knows `\"`, `\\`, `\n` and `\t`, one in single quotes knows nothing; without quotes blanks around it are dropped.
fn read_env_file(
    source: &Source<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, (String, Origin)> {
    let mut found: BTreeMap<String, (String, Origin)> = BTreeMap::new();
    let mut start = 0;
    for (index, line) in source.text.split('\n').enumerate() {
        let here = start;
        start += line.len() + 1;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match read_env_line(line) {
            Ok((name, _, span)) if found.contains_key(name) => problems.push(Problem {
                place: source.place(here + span.start..here + span.end),
                message: format!("`{name}` is set twice"),
                label: String::new(),
                expected: "every name once".to_owned(),
                example: LINE_EXAMPLE.to_owned(),
            }),
            Ok((name, value, _)) => {
                let origin = Origin::File {
                    path: source.path.to_owned(),
                    line: index + 1,
                };
                found.insert(name.to_owned(), (value, origin));
            }
            Err((span, message)) => problems.push(Problem {
                place: source.place(here + span.start..here + span.end),
                message,
                label: String::new(),
                expected: LINE.to_owned(),
                example: LINE_EXAMPLE.to_owned(),
            }),
        }
    }
    found
}

/// The name, the value and where in the line the name is.
type EnvLine<'t> = (&'t str, String, Range<usize>);

fn read_env_line(line: &str) -> Result<EnvLine<'_>, (Range<usize>, String)> {
    let indent = line.len() - line.trim_start().len();
    let Some(equals) = line.find('=') else {
        let words = line.trim();
        return Err((
            indent..indent + words.len(),
            format!("{} has no `=`", quoted(words)),
        ));
    };
    let name = line[..equals].trim();
    let span = indent..indent + name.len();
    if !is_name(name) {
        return Err((span, format!("{} is no variable's name", quoted(name))));
    }
    let raw = &line[equals + 1..];
    let at = equals + 1 + (raw.len() - raw.trim_start().len());
    let raw = raw.trim();
    let value = match raw.chars().next() {
        Some(quote @ ('"' | '\'')) => unquote(&raw[1..], quote),
        _ => match raw.find(" #") {
            Some(i) => Err((
                i + 1,
                "a comment after a value without quotes: put the value in quotes or the comment on its own line",
            )),
            None => Ok(raw.to_owned()),
        },
    };
    match value {
        Ok(value) if value.contains('\0') => {
            Err((at..line.len(), "the value has a NUL character".to_owned()))
        }
        Ok(value) => Ok((name, value, span)),
        Err((offset, why)) => Err((at + offset..line.trim_end().len(), why.to_owned())),
    }
}

/// Reads up to the closing `quote`; an error says at which byte of the text, its opening quote counted.
fn unquote(text: &str, quote: char) -> Result<String, (usize, &'static str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            let rest = text[i + 1..].trim_start();
            return if rest.is_empty() || rest.starts_with('#') {
                Ok(value)
            } else {
                Err((i + 2, "something follows the closing quote"))
            };
        }
        if c != '\\' || quote == '\'' {
            value.push(c);
            continue;
        }
        value.push(match chars.next() {
            Some((_, 'n')) => '\n',
            Some((_, 't')) => '\t',
            Some((_, c @ ('"' | '\\'))) => c,
            _ => {
                return Err((
                    i + 1,
                    "only `\\\"`, `\\\\`, `\\n` and `\\t` can follow a backslash",
                ));
            }
        });
    }
    Err((0, "the value's quote is not closed"))
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
    fn an_env_file_has_names_values_quotes_and_comments() {
        let text = "# c\n\n A = b c \nB=\"x \\\"y\\\"\\n\" # c\r\nC='\\n #'\nD=\nE=a#b\nF=x=y";
        let lookup = lookup(&vars(&[], &[], text));
        let (text, _) = lookup.expand("${A}|${B}|${C}|${D}|${E}|${F}").unwrap();
        assert_eq!(text, "b c|x \"y\"\n|\\n #||a#b|x=y");
    }

    #[test]
    fn a_bad_line_of_an_env_file_is_an_error_at_its_place() {
        for (text, line, column, words) in [
            ("A", 1, 1, "has no `=`"),
            ("\n export A=b", 2, 2, "`export A` is no variable's name"),
            ("=b", 1, 1, "`` is no variable's name"),
            ("A=1\nB=2\nA=3", 3, 1, "`A` is set twice"),
            ("A=b # c", 1, 5, "a comment after a value"),
            ("A=\"b", 1, 3, "not closed"),
            ("A = 'b' c", 1, 8, "follows the closing quote"),
            ("A=\"ä\\x\"", 1, 5, "can follow a backslash"),
            ("A=\"b\\", 1, 5, "can follow a backslash"),
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
