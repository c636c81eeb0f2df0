//! Man pages: lrpns(1), a page for each command (lrpns-up(1)), and one for each topic in section 7, but the configuration's,
//! which is lrpns.toml(5).

use roff::{Inline, Roff, bold, italic, roman};

use super::page::{Block, Span, Style};
use super::{TOPICS, Topic};

/// A man page: its file's name, and what is in it.
pub type Page = (String, String);

/// All pages, sorted by name.
///
/// # Errors
/// Those of [`Topic::page`].
pub fn pages(command: &clap::Command) -> Result<Vec<Page>, serde_json::Error> {
    let mut pages = vec![(
        "lrpns.1".to_owned(),
        of_command(command.clone(), "lrpns", None),
    )];
    for verb in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        let name = format!("lrpns-{}", verb.get_name());
        let page = of_command(verb.clone(), &name, Some(verb.get_name()));
        pages.push((format!("{name}.1"), page));
    }
    for topic in TOPICS {
        let (name, section) = place(topic);
        let page = of_topic(topic, &topic.page()?, &name, section);
        pages.push((format!("{name}.{section}"), page));
    }
    pages.sort();
    Ok(pages)
}

/// Where a topic's page is: name and section.
fn place(topic: &Topic) -> (String, &'static str) {
    match topic.name {
        "configuration" => ("lrpns.toml".to_owned(), "5"),
        name => (format!("lrpns-{name}"), "7"),
    }
}

fn of_command(command: clap::Command, name: &str, verb: Option<&str>) -> String {
    // clap takes 'static names; the leaked ones are some hundred bytes, once, in a command that then ends.
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let version = command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
    let version: &'static str = Box::leak(version.to_owned().into_boxed_str());
    let mut command = command.name(name).version(version);
    if let Some(verb) = verb {
        command = command.bin_name(format!("lrpns {verb}"));
    }
    // Its own list of commands refers to pages that clap would name otherwise.
    let mut page = vec![];
    let man = clap_mangen::Man::new(command.disable_help_subcommand(true));
    // Writing to memory can't fail.
    let _ = man.render(&mut page);
    let mut see_also = Roff::new();
    see_also.control("SH", ["SEE ALSO"]);
    let mut others: Vec<Inline> = vec![];
    for topic in TOPICS {
        let of_this = verb.is_none_or(|verb| topic.commands.contains(&verb));
        if of_this {
            let (name, section) = place(topic);
            refer(&mut others, &name, section);
        }
    }
    if verb.is_some() {
        refer(&mut others, "lrpns", "1");
    }
    see_also.text(others);
    let page = String::from_utf8_lossy(&page);
    // Its title has the version where a date belongs; before it are strings that the page uses.
    let (strings, rest) = page.split_once(".TH ").unwrap_or_default();
    let body = rest.split_once('\n').map_or("", |(_, body)| body);
    // A break beside an empty line is one too many for mandoc(1).
    let body = body.replace("\n.br\n\n.br\n", "\n\n");
    format!("{strings}{}{body}{}", title(name, "1"), see_also.to_roff())
}

/// Adds a reference to another page.
fn refer(line: &mut Vec<Inline>, name: &str, section: &str) {
    if !line.is_empty() {
        line.push(roman(", "));
    }
    line.push(bold(name));
    line.push(roman(format!("({section})")));
}

fn of_topic(topic: &Topic, page: &[Block], name: &str, section: &str) -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {}", topic.about))]);
    roff.control("SH", ["DESCRIPTION"]);
    put_blocks(&mut roff, page, true);
    roff.control("SH", ["SEE ALSO"]);
    let mut others = vec![];
    refer(&mut others, "lrpns", "1");
    for command in topic.commands {
        refer(&mut others, &format!("lrpns-{command}"), "1");
    }
    roff.text(others);
    title(name, section) + &roff.to_roff()
}

/// The day of the version, as man pages have it in their last line.
const DATE: &str = "2026-11-29";

/// The first line of a page.
fn title(name: &str, section: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let name = name.to_uppercase();
    format!(".TH \"{name}\" \"{section}\" \"{DATE}\" \"lrpns {version}\"\n")
}

/// Puts blocks; `at_start`: behind a heading or a tag, where a paragraph needs no request of its own.
fn put_blocks(roff: &mut Roff, blocks: &[Block], mut at_start: bool) {
    for block in blocks {
        match block {
            // The title stands in NAME.
            Block::Heading(1, _) => continue,
            Block::Heading(_, spans) => {
                let title = super::page::plain(spans);
                roff.control("SH", [title.to_uppercase().as_str()]);
                at_start = true;
                continue;
            }
            Block::Paragraph(spans) => {
                if !at_start {
                    roff.control("PP", []);
                }
                roff.text(inlines(spans));
            }
            Block::Code(code) => {
                roff.control("PP", []);
                roff.control("RS", ["4"]);
                roff.control("nf", []);
                for line in code.lines() {
                    // An empty line is one in a text of roff, too, but mandoc(1) would rather have a request.
                    if line.is_empty() {
                        roff.control("sp", []);
                    } else {
                        roff.text([roman(line)]);
                    }
                }
                roff.control("fi", []);
                roff.control("RE", []);
            }
            Block::List(first, items) => {
                for (i, item) in items.iter().enumerate() {
                    let mark = match first {
                        Some(first) => format!("{}.", first + i as u64),
                        None => "*".to_owned(),
                    };
                    roff.control("IP", [mark.as_str(), "4"]);
                    put_item(roff, item);
                }
            }
            Block::Table(head, rows) => {
                for row in rows {
                    let Some((about, rest)) = row.split_first() else {
                        continue;
                    };
                    roff.control("TP", []);
                    roff.text(inlines(about));
                    for (i, (cell, heading)) in rest.iter().zip(head.iter().skip(1)).enumerate() {
                        if i > 0 {
                            roff.control("br", []);
                        }
                        let mut line = vec![];
                        if rest.len() > 1 {
                            line.push(italic(format!("{}: ", super::page::plain(heading))));
                        }
                        line.extend(inlines(cell));
                        roff.text(line);
                    }
                }
            }
        }
        at_start = false;
    }
}

fn put_item(roff: &mut Roff, item: &[Block]) {
    for (i, block) in item.iter().enumerate() {
        match block {
            // In an item a paragraph keeps its place.
            Block::Paragraph(spans) => {
                if i > 0 {
                    roff.control("IP", []);
                }
                roff.text(inlines(spans));
            }
            other => {
                roff.control("RS", []);
                put_blocks(roff, std::slice::from_ref(other), true);
                roff.control("RE", []);
            }
        }
    }
}

fn inlines(spans: &[Span]) -> Vec<Inline> {
    spans
        .iter()
        .map(|span| match span.style {
            Style::Plain => roman(span.text.as_str()),
            Style::Code | Style::Strong => bold(span.text.as_str()),
        })
        .collect()
}
