//! A page's Markdown, read. The build script does so, for the parser's tables are a fifth of all that the program would have
//! to relocate each time that it is executed, which is five times a start.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag};

use super::page::{Block, Span, Style, plain};

/// The blocks of a page. What a link to one of `topics` leads to is said as what `lrpns help` takes.
#[must_use]
pub fn parse(markdown: &str, topics: &[String]) -> Vec<Block> {
    let mut reader = Reader {
        events: Parser::new_ext(markdown, Options::ENABLE_TABLES),
        topics,
    };
    reader.blocks()
}

struct Reader<'a> {
    events: Parser<'a>,
    topics: &'a [String],
}

impl Reader<'_> {
    /// Blocks up to the end of what they are in.
    fn blocks(&mut self) -> Vec<Block> {
        let mut blocks = vec![];
        // Text of an item of a list without blank lines stands there without a paragraph around it.
        let mut loose: Vec<Span> = vec![];
        while let Some(event) = self.events.next() {
            let block = match event {
                Event::Start(Tag::Heading { level, .. }) => {
                    Block::Heading(level as u8, self.spans())
                }
                Event::Start(Tag::Paragraph) => Block::Paragraph(self.spans()),
                Event::Start(Tag::CodeBlock(kind)) => {
                    debug_assert!(!matches!(kind, CodeBlockKind::Fenced(name) if name.is_empty()));
                    Block::Code(self.text())
                }
                Event::Start(Tag::List(first)) => Block::List(first, self.items()),
                Event::Start(Tag::Table(_)) => self.table(),
                Event::Start(Tag::HtmlBlock) => {
                    self.text();
                    continue;
                }
                Event::End(_) => break,
                other => {
                    self.span(other, Style::Plain, &mut loose);
                    continue;
                }
            };
            if !loose.is_empty() {
                blocks.push(Block::Paragraph(std::mem::take(&mut loose)));
            }
            blocks.push(block);
        }
        if !loose.is_empty() {
            blocks.push(Block::Paragraph(loose));
        }
        blocks
    }

    fn items(&mut self) -> Vec<Vec<Block>> {
        let mut items = vec![];
        while let Some(Event::Start(Tag::Item)) = self.events.next() {
            items.push(self.blocks());
        }
        items
    }

    fn table(&mut self) -> Block {
        let (mut head, mut rows) = (vec![], vec![]);
        while let Some(Event::Start(tag)) = self.events.next() {
            let mut cells = vec![];
            while let Some(Event::Start(Tag::TableCell)) = self.events.next() {
                cells.push(self.spans());
            }
            if tag == Tag::TableHead {
                head = cells;
            } else {
                rows.push(cells);
            }
        }
        Block::Table(head, rows)
    }

    /// The text up to the end of what it is in.
    fn text(&mut self) -> String {
        let mut text = String::new();
        for event in self.events.by_ref() {
            match event {
                Event::Text(piece) | Event::Html(piece) => text += &piece,
                Event::End(_) => break,
                _ => {}
            }
        }
        text
    }

    /// The spans up to the end of what they are in.
    fn spans(&mut self) -> Vec<Span> {
        let mut spans = vec![];
        while let Some(event) = self.events.next() {
            if let Event::End(_) = event {
                break;
            }
            self.span(event, Style::Plain, &mut spans);
        }
        spans
    }

    /// Adds what an event says within a line.
    fn span(&mut self, event: Event<'_>, style: Style, into: &mut Vec<Span>) {
        let (text, style) = match event {
            Event::Text(text) => (text.into_string(), style),
            Event::Code(text) => (text.into_string(), Style::Code),
            Event::SoftBreak | Event::HardBreak => (" ".to_owned(), style),
            Event::Start(tag) => {
                let within = if tag == Tag::Strong {
                    Style::Strong
                } else {
                    style
                };
                let end = tag.to_end();
                let from = into.len();
                while let Some(event) = self.events.next() {
                    if event == Event::End(end) {
                        break;
                    }
                    self.span(event, within, into);
                }
                let Tag::Link { dest_url, .. } = tag else {
                    return;
                };
                match self.also(&dest_url, &plain(&into[from..])) {
                    Some(also) => (also, Style::Plain),
                    None => return,
                }
            }
            // Comments in HTML say which test runs a block.
            _ => return,
        };
        into.push(Span { text, style });
    }

    /// What to say of where a link leads, where it can't be followed by hand.
    fn also(&self, target: &str, text: &str) -> Option<String> {
        let file = target.split('#').next().unwrap_or_default();
        if target.contains("://") {
            return (target != text).then(|| format!(" ({target})"));
        }
        let name = file.strip_suffix(".md")?;
        let is_topic = self.topics.iter().any(|topic| topic == name);
        is_topic.then(|| format!(" (lrpns help {name})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str, style: Style) -> Span {
        Span {
            text: text.to_owned(),
            style,
        }
    }

    #[test]
    fn a_page_is_read() {
        let topics = ["publishing".to_owned()];
        let page = parse(
            "# Title\n\nSome `code` and **more\ntext**, see [IPv6](publishing.md#ipv6).\n\n<!-- who runs it -->\n```sh\na  b\n```\n\n\
             - one\n  goes on\n- two\n\n  more\n\n| key | is |\n|---|---|\n| `a` | b \\| c |\n",
            &topics,
        );
        use Style::{Code, Plain, Strong};
        assert_eq!(page[0], Block::Heading(1, vec![span("Title", Plain)]));
        let Block::Paragraph(spans) = &page[1] else {
            panic!("{page:?}");
        };
        assert_eq!(
            plain(spans),
            "Some code and more text, see IPv6 (lrpns help publishing)."
        );
        assert_eq!(spans[1], span("code", Code));
        assert!(spans.contains(&span("more", Strong)));
        assert_eq!(page[2], Block::Code("a  b\n".to_owned()));
        let Block::List(None, items) = &page[3] else {
            panic!("{page:?}");
        };
        assert_eq!(items.len(), 2);
        assert_eq!(items[1].len(), 2);
        let Block::Table(head, rows) = &page[4] else {
            panic!("{page:?}");
        };
        let cells = |row: &[Vec<Span>]| row.iter().map(|cell| plain(cell)).collect::<Vec<_>>();
        assert_eq!(cells(head), ["key", "is"]);
        assert_eq!(rows.len(), 1);
        assert_eq!(cells(&rows[0]), ["a", "b | c"]);
        assert_eq!(rows[0][0][0].style, Code);
        assert_eq!(page.len(), 5);
    }
}
