//! A page as a value: what is left of its Markdown for those who lay it out. The build script includes this file.

use serde::{Deserialize, Serialize};

/// How a piece of text is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Style {
    /// As it is.
    Plain,
    /// A word of a program: a command, a key, a value.
    Code,
    /// Stressed.
    Strong,
}

/// A piece of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The text, without line breaks.
    pub text: String,
    /// How it is set.
    pub style: Style,
}

/// What stands below another on a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Block {
    /// A heading; the page's title is of level 1.
    Heading(u8, Vec<Span>),
    /// A paragraph.
    Paragraph(Vec<Span>),
    /// Lines that are kept as they are.
    Code(String),
    /// A list: the number of the first item if it has numbers, and the items.
    List(Option<u64>, Vec<Vec<Block>>),
    /// A table: its head, and its rows.
    Table(Vec<Vec<Span>>, Vec<Vec<Vec<Span>>>),
}

/// The text of spans, without their styles.
#[must_use]
pub fn plain(spans: &[Span]) -> String {
    spans.iter().map(|span| span.text.as_str()).collect()
}
