//! What is wrong with a configuration: every problem with its place, what was expected and an example.
//!
//! Made by the readers of this module, consumed by the command line, which shows [`ConfigErrors::render`].

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// How many problems are shown one by one.
const SHOWN: usize = 50;
/// How much of a line a problem keeps: one line may have thousands of them.
const LINE_KEPT: usize = 300;
/// How much of that may stand before the place itself.
const BEFORE: usize = 100;

/// Everything that is wrong with one configuration: flags first, then the env file, then the file line by line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render(false))]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, in one line; control characters are escaped.
    pub message: String,
    /// A few words that stand under the marked text; may be empty.
    pub label: String,
    /// What would have been right; may be empty.
    pub expected: String,
    /// Something right that can be copied; may be empty.
    pub example: String,
}

/// Where a problem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A flag of the command line.
    Flag {
        /// The flag with its dashes.
        name: String,
    },
    /// A file as a whole.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Some text of a file.
    Text {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The character of the line, from 1.
        column: usize,
        /// The line, without its end; of a long one the part around the place.
        text: String,
        /// The bytes of the line that are meant; empty where something is missing.
        span: Range<usize>,
    },
}

impl ConfigErrors {
    /// `problems` in the order in which they are to be shown; must not be empty.
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "an error without a problem");
        Self { problems }
    }

    /// The problems, never none.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The same without a word of what is in the file at `path`.
    pub(super) fn without_lines_of(self, path: &Path) -> Self {
        let hidden = |problem: Problem| match &problem.place {
            Place::Text { path: of, .. } if of == path => problem.without_line(),
            _ => problem,
        };
        Self {
            problems: self.problems.into_iter().map(hidden).collect(),
        }
    }

    /// All problems as text for people, several lines each, without a newline at the end.
    ///
    /// `color` says whether it goes to a terminal that shows ANSI colours.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut all: Vec<String> = self
            .problems
            .iter()
            .take(SHOWN)
            .map(|problem| problem.render(&renderer))
            .collect();
        if self.problems.len() > SHOWN {
            all.push(format!(
                "and {} more problems of the same file; mend these first",
                self.problems.len() - SHOWN
            ));
        }
        all.join("\n\n")
    }
}

impl Problem {
    /// The same without a word of what is in the file: its place alone.
    pub(super) fn without_line(self) -> Self {
        match self.place {
            Place::Text {
                path, line, column, ..
            } => Self {
                place: Place::File { path },
                message: format!(
                    "line {line}, column {column}: a mistake, not shown, since the user who runs sudo may not read this file"
                ),
                label: String::new(),
                expected: String::new(),
                example: "as root itself (sudo -i), lrpns shows the line".to_owned(),
            },
            _ => self,
        }
    }

    /// Whether the file is not read since somebody else could have written it; what would be right is said already.
    pub(super) fn is_of_trust(&self) -> bool {
        self.example.contains("--trust-file")
    }

    fn render(&self, renderer: &Renderer) -> String {
        let path;
        let flagged;
        let mut group = match &self.place {
            Place::Flag { name } => {
                flagged = format!("{name}: {}", self.message);
                annotate_snippets::Group::with_title(Level::ERROR.primary_title(&flagged))
            }
            Place::File { path } => {
                flagged = format!("{}: {}", escaped(&path.to_string_lossy()), self.message);
                annotate_snippets::Group::with_title(Level::ERROR.primary_title(&flagged))
            }
            Place::Text {
                path: file,
                line,
                text,
                span,
                ..
            } => {
                path = escaped(&file.to_string_lossy());
                let mut mark = AnnotationKind::Primary.span(span.clone());
                if !self.label.is_empty() {
                    mark = mark.label(&self.label);
                }
                annotate_snippets::Group::with_title(Level::ERROR.primary_title(&self.message))
                    .element(
                        Snippet::source(text)
                            .path(&path)
                            .line_start(*line)
                            .annotation(mark),
                    )
            }
        };
        for (name, words) in [("expected", &self.expected), ("example", &self.example)] {
            if !words.is_empty() {
                group = group.element(Level::NOTE.with_name(name).message(words));
            }
        }
        renderer.render(&[group])
    }
}

/// A text with a name, to make places of its byte ranges.
#[derive(Debug)]
pub(super) struct Source<'t> {
    pub(super) path: &'t Path,
    pub(super) text: &'t str,
    /// Where each line ends, so that a long file with many mistakes is not counted through for each of them.
    ends: Vec<usize>,
}

impl<'t> Source<'t> {
    pub(super) fn new(path: &'t Path, text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(i, _)| i).collect();
        Self { path, text, ends }
    }

    /// The line of `offset`, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.ends.partition_point(|end| *end < offset) + 1
    }

    /// The place of `span`; what goes beyond the end of its first line is cut off, and a span that cuts a character
    /// in two is widened.
    pub(super) fn place(&self, span: Range<usize>) -> Place {
        let start = floor_char(self.text, span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |i| start + i);
        let text = self.text[line_start..line_end].trim_end_matches('\r');
        let start = start.min(line_start + text.len()) - line_start;
        let end = floor_char(text, span.end.saturating_sub(line_start)).max(start);
        let from = match text.len() > LINE_KEPT {
            true => floor_char(text, start.saturating_sub(BEFORE)),
            false => 0,
        };
        let to = floor_char(text, from + LINE_KEPT).max(start);
        Place::Text {
            path: self.path.to_owned(),
            line: self.line(line_start),
            column: text[..start].chars().count() + 1,
            text: text[from..to].to_owned(),
            span: start - from..end.min(to) - from,
        }
    }
}

/// The last character boundary that is not after `index`.
fn floor_char(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

/// `text` in backticks for a message: control characters escaped and at most 80 characters of it, because it may come
/// from anywhere and go to a terminal.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    let cut: String = text.chars().take(LONGEST).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("`{}{more}`", escaped(&cut))
}

/// `text` with its control characters escaped, the ones that turn the direction of writing included.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns {
            write!(out, "{}", c.escape_default()).expect("writing to a String can't go wrong");
        } else {
            out.push(c);
        }
    }
    out
}

/// The candidate that is written most like `word`, if more than half of it is the same.
pub(crate) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let start: String = word.chars().take(64).collect::<String>().to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates {
        let lower = candidate.to_lowercase();
        let distance = strsim::normalized_damerau_levenshtein(&start, &lower);
        if distance <= 0.5 {
            continue;
        }
        // The edit distance tells typos apart, the other measure orders what is equally far.
        let likeness = distance + 0.1 * strsim::jaro_winkler(&start, &lower);
        if best.is_none_or(|(most, _)| likeness > most) {
            best = Some((likeness, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_cut_at_the_end_of_its_first_line_and_never_inside_a_character() {
        let source = Source::new(Path::new("x.toml"), "ä = [\r\n1,\n]\n");
        let Place::Text {
            line,
            column,
            text,
            span,
            ..
        } = source.place(1..9)
        else {
            panic!("not a text")
        };
        assert_eq!((line, column, text.as_str(), span), (1, 1, "ä = [", 0..6));
        for start in 0..20 {
            for end in start..20 {
                let place = source.place(start..end);
                assert!(matches!(place, Place::Text { .. }));
            }
        }
    }

    #[test]
    fn what_goes_to_a_terminal_has_no_control_characters() {
        assert_eq!(quoted("a\u{1b}[2Jb"), "`a\\u{1b}[2Jb`");
        assert_eq!(quoted("\u{202e}x"), "`\\u{202e}x`");
        assert_eq!(quoted(&"x".repeat(81)).len(), 85);
    }

    #[test]
    fn the_nearest_word_is_the_one_with_the_typo() {
        let keys = ["address", "publish", "rootfs", "restart", "tmpfs"];
        assert_eq!(nearest("pubish", keys), Some("publish"));
        assert_eq!(nearest("adress", keys), Some("address"));
        assert_eq!(nearest("tpmfs", keys), Some("tmpfs"));
        assert_eq!(nearest("Restart", keys), Some("restart"));
        assert_eq!(nearest("x", []), None);
        // What has little in common is no typo.
        assert_eq!(nearest("ports", keys), None);
        assert_eq!(nearest("image", ["rate", "rootfs"]), None);
    }
}
