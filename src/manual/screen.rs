//! A page for a terminal, or plain for a pipe: the styles are escape sequences, which `anstream` takes out where nobody
//! wants them.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style as Ansi};

use super::page::{Block, Span, Style};

/// How far below its heading text begins.
const INDENT: usize = 4;

/// Lays blocks out in lines of at most `width` characters, but for code and words that are longer.
#[must_use]
pub fn render(blocks: &[Block], width: usize) -> String {
    let mut text = String::new();
    put_blocks(&mut text, blocks, INDENT, width);
    text
}

fn put_blocks(text: &mut String, blocks: &[Block], indent: usize, width: usize) {
    for block in blocks {
        if !text.is_empty() && !text.ends_with("\n\n") {
            text.push('\n');
        }
        match block {
            Block::Heading(level, spans) => {
                let indent = if *level > 2 { INDENT / 2 } else { 0 };
                let bold: Vec<Span> = spans
                    .iter()
                    .map(|span| Span {
                        style: Style::Strong,
                        ..span.clone()
                    })
                    .collect();
                put(text, &bold, "", indent, width);
            }
            Block::Paragraph(spans) => put(text, spans, "", indent, width),
            Block::Code(code) => {
                for line in code.lines() {
                    let line = format!("{:indent$}    {line}", "");
                    text.push_str(line.trim_end());
                    text.push('\n');
                }
            }
            Block::List(first, items) => {
                for (i, item) in items.iter().enumerate() {
                    let mark = match first {
                        Some(first) => format!("{}. ", first + i as u64),
                        None => "- ".to_owned(),
                    };
                    let within = indent + mark.len();
                    if let Some((Block::Paragraph(spans), rest)) = item.split_first() {
                        put(text, spans, &mark, indent, width);
                        put_blocks(text, rest, within, width);
                    } else {
                        put_blocks(text, item, within, width);
                    }
                }
            }
            // The first cell is what a row is about; the others say it, each behind its heading where there are more.
            Block::Table(head, rows) => {
                for row in rows {
                    let Some((about, rest)) = row.split_first() else {
                        continue;
                    };
                    put(text, about, "", indent, width);
                    for (cell, heading) in rest.iter().zip(head.iter().skip(1)) {
                        let heading = match rest.len() {
                            1 => String::new(),
                            _ => format!("{}: ", super::page::plain(heading)),
                        };
                        put(text, cell, &heading, indent + INDENT, width);
                    }
                }
            }
        }
    }
}

fn ansi(style: Style) -> Ansi {
    match style {
        Style::Plain => Ansi::new(),
        Style::Code => AnsiColor::Cyan.on_default(),
        Style::Strong => Ansi::new().bold(),
    }
}

/// Puts spans in lines, the first behind `mark`, all others as far in as the text behind it.
fn put(text: &mut String, spans: &[Span], mark: &str, indent: usize, width: usize) {
    let within = indent + mark.chars().count();
    let _ = write!(text, "{:indent$}{mark}", "");
    let mut column = within;
    let mut at_start = true;
    for word in words(spans) {
        let length: usize = word.iter().map(|(piece, _)| piece.chars().count()).sum();
        if !at_start {
            if column + 1 + length > width {
                let _ = write!(text, "\n{:within$}", "");
                column = within;
            } else {
                text.push(' ');
                column += 1;
            }
        }
        at_start = false;
        for (piece, style) in word {
            let style = ansi(style);
            let _ = write!(text, "{style}{piece}{style:#}");
        }
        column += length;
    }
    text.push('\n');
}

/// The words of spans. A word may have several styles: `code`, and the comma behind it.
fn words(spans: &[Span]) -> Vec<Vec<(&str, Style)>> {
    let mut words = vec![vec![]];
    for span in spans {
        for (i, piece) in span.text.split(' ').enumerate() {
            if i > 0 {
                words.push(vec![]);
            }
            if let Some(word) = words.last_mut().filter(|_| !piece.is_empty()) {
                word.push((piece, span.style));
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::super::markdown::parse;
    use super::*;

    #[test]
    fn a_page_is_laid_out() {
        let page = "# T\n\nsome text that is longer than a line\n\n```sh\nkept  as it is, however long\n```\n\n\
                    - one two three four\n- five\n\n| key | is |\n|---|---|\n| `a` | b |\n";
        let shown = anstream::adapter::strip_str(&render(&parse(page, &[]), 24)).to_string();
        assert_eq!(
            shown,
            "T\n\n    some text that is\n    longer than a line\n\n        kept  as it is, however long\n\n    - one two three four\n\
             \x20   - five\n\n    a\n        b\n"
        );
    }

    #[test]
    fn no_line_of_the_manual_is_wider_than_asked_but_code() {
        for topic in super::super::TOPICS {
            let blocks: Vec<Block> = topic
                .page()
                .unwrap()
                .into_iter()
                .filter(|block| !matches!(block, Block::Code(_)))
                .collect();
            let shown = anstream::adapter::strip_str(&render(&blocks, 80)).to_string();
            for line in shown.lines() {
                let one_word = !line.trim_start().contains(' ');
                assert!(
                    line.chars().count() <= 80 || one_word,
                    "{}: {line}",
                    topic.name
                );
            }
        }
    }
}
