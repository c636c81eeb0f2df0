//! The picture in a terminal: 80 columns, with the characters for it where the locale has them.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::{App, Edge, Picture};

/// How wide a terminal is at least.
pub const WIDTH: usize = 80;
/// What stands left of everything.
const INDENT: usize = 1;
/// What an app's box takes at most beside its borders.
const WIDEST_APP: usize = 20;

/// What the left takes at least: two characters of who it is, and of the host's address; the rest are lines and arrows.
const NARROWEST_LEFT: usize = 2 + 4 + 2 + 3 + "closed".len() + 2;

/// One line of an app: what is at the left of the sidecar, what is between it and the app.
#[derive(Default)]
struct Row {
    /// Who, and how far they are led; empty where nobody is.
    left: Left,
    /// The port at the right of the sidecar.
    port: String,
    /// Which way.
    way: Way,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Way {
    #[default]
    None,
    In,
    Closed,
    Out,
}

#[derive(Default)]
struct Left {
    who: String,
    listen: String,
    via: String,
}

impl Row {
    fn of(edge: &Edge) -> Self {
        match edge {
            Edge::In {
                who,
                listen,
                via,
                port,
                closed,
            } => Self {
                left: Left {
                    who: who.clone(),
                    listen: listen.clone(),
                    via: via.clone(),
                },
                port: port.clone(),
                way: if *closed { Way::Closed } else { Way::In },
            },
            Edge::From { app, port } => Self {
                left: Left {
                    who: app.clone(),
                    ..Left::default()
                },
                port: port.clone(),
                way: Way::In,
            },
            Edge::Out { to, via } => Self {
                left: Left {
                    listen: to.clone(),
                    via: (*via).to_owned(),
                    ..Left::default()
                },
                way: Way::Out,
                ..Self::default()
            },
        }
    }

    /// From the left margin to the sidecar, `width` columns.
    fn left(&self, who: usize, width: usize) -> String {
        let Left {
            who: name,
            listen,
            via,
        } = &self.left;
        match self.way {
            Way::None => " ".repeat(width),
            Way::Out => {
                let room = width.saturating_sub(via.len() + 6);
                let to = shortened(listen, room);
                let line = "─".repeat(room - columns(&to));
                format!("{to} ◄──{line}{via}──")
            }
            // An app, which is drawn at the right: its way leads through the sidecar as well.
            Way::In | Way::Closed if listen.is_empty() => {
                let room = width.saturating_sub(3);
                let name = shortened(name, room);
                format!("{name} {}─►", "─".repeat(room - columns(&name)))
            }
            Way::In | Way::Closed => {
                let (via, end) = match self.way {
                    Way::Closed => ("closed", "─╳"),
                    _ => (via.as_str(), "─►"),
                };
                let name = shortened(name, who);
                let room = width.saturating_sub(who + 4 + 3 + via.len() + 2);
                let listen = shortened(listen, room);
                let line = "─".repeat(room - columns(&listen));
                format!("{name:who$} ──► {listen} {line}─{via}{end}")
            }
        }
    }

    /// From the sidecar to the app.
    fn right(&self, width: usize) -> String {
        match self.way {
            Way::None => " ".repeat(width + 5),
            Way::In => format!("─ {:─<1$}►", self.port.clone() + " ", width + 2),
            Way::Closed => format!("─ {:─<1$}╳", self.port.clone() + " ", width + 2),
            Way::Out => format!("◄{}", "─".repeat(width + 4)),
        }
    }
}

/// Draws it.
#[must_use]
pub fn draw(picture: &Picture) -> String {
    let rows: Vec<Vec<Row>> = picture
        .apps
        .iter()
        .map(|app| app.edges.iter().map(Row::of).collect())
        .collect();
    let all = || rows.iter().flatten();
    let widest = |of: &dyn Fn(&Row) -> usize| all().map(of).max().unwrap_or(0);
    let port = widest(&|row| columns(&row.port));
    let app = picture.apps.iter().map(inner).max().unwrap_or(0);
    let inside = picture.sidecar.iter().chain(&picture.refused);
    let addresses = inside.map(|line| columns(line));
    let sidecar = addresses.max().unwrap_or(0).max("sidecar".len()) + 2;
    let who = widest(&|row| match row.left.listen.is_empty() {
        true => 0,
        false => columns(&row.left.who),
    });
    let wanted = widest(&|row| match row.way {
        Way::None => 0,
        Way::Out => columns(&row.left.listen) + row.left.via.len() + 6,
        _ if row.left.listen.is_empty() => columns(&row.left.who) + 3,
        _ => who + 4 + columns(&row.left.listen) + 6 + row.left.via.len().max("closed".len()),
    });
    let taken = INDENT + (sidecar + 2) + (port + 5) + (app + 4);
    let left = wanted.clamp(
        NARROWEST_LEFT,
        WIDTH.saturating_sub(taken).max(NARROWEST_LEFT),
    );
    let who = who.min(left - (NARROWEST_LEFT - 2));

    let mut lines: Vec<(String, String, String)> = vec![];
    for (app_drawn, rows) in picture.apps.iter().zip(&rows) {
        let blank = || (" ".repeat(left), " ".repeat(port + 5));
        let (a, b) = blank();
        let name = shortened(&app_drawn.name, app);
        let head = format!(
            "┌ {name} {}┐",
            "─".repeat(app.saturating_sub(columns(&name)))
        );
        lines.push((a, b, head));
        let height = rows.len().max(app_drawn.lines.len());
        for at in 0..height {
            let (a, b) = match rows.get(at) {
                Some(row) => (row.left(who, left), row.right(port)),
                None => blank(),
            };
            let text = app_drawn.lines.get(at).map_or("", String::as_str);
            let text = shortened(text, app);
            let fill = " ".repeat(app - columns(&text));
            lines.push((a, b, format!("│ {text}{fill} │")));
        }
        let (a, b) = blank();
        lines.push((a, b, format!("└{}┘", "─".repeat(app + 2))));
    }
    let mut inside = vec!["sidecar".to_owned()];
    inside.extend(picture.sidecar.iter().chain(&picture.refused).cloned());
    while lines.len() < inside.len() + 2 {
        let blank = " ".repeat(left);
        lines.push((blank, " ".repeat(port + 5 + app + 4), String::new()));
    }
    let mut out = String::new();
    for (at, (a, b, c)) in lines.iter().enumerate() {
        let middle = match at {
            0 => format!("┌{}┐", "─".repeat(sidecar)),
            _ if at + 1 == lines.len() => format!("└{}┘", "─".repeat(sidecar)),
            _ => {
                let text = inside.get(at - 1).map_or("", String::as_str);
                format!("│ {text:width$} │", width = sidecar - 2)
            }
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            out,
            "{}",
            format!("{:INDENT$}{a}{middle}{b}{c}", "").trim_end()
        );
    }
    written(&out)
}

/// How wide a box is within.
fn inner(app: &App) -> usize {
    let lines = app.lines.iter().map(|line| columns(line));
    lines
        .chain([columns(&app.name)])
        .max()
        .unwrap_or(0)
        .min(WIDEST_APP)
}

/// All that is drawn is one column wide.
fn columns(text: &str) -> usize {
    text.chars().count()
}

/// What has no room loses its middle.
fn shortened(text: &str, room: usize) -> String {
    let length = columns(text);
    if length <= room {
        return text.to_owned();
    }
    let head = room.saturating_sub(1) / 2;
    let tail = room.saturating_sub(1) - head;
    let first: String = text.chars().take(head).collect();
    let last: String = text.chars().skip(length - tail).collect();
    format!("{first}…{last}")
}

/// As the locale can have it (locale(7)).
fn written(text: &str) -> String {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let utf8 = set.is_some_and(|value| {
        let value = value.to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    });
    match utf8 {
        true => text.to_owned(),
        false => text.chars().map(plain).collect(),
    }
}

fn plain(c: char) -> char {
    match c {
        '─' => '-',
        '│' => '|',
        '┌' | '┐' | '└' | '┘' => '+',
        '►' => '>',
        '◄' => '<',
        '╳' => 'X',
        '…' => '~',
        other => other,
    }
}

/// Text in lines of at most [`WIDTH`] columns; `indent` stands before the first, and as many blanks before the others.
#[must_use]
pub fn wrapped(indent: &str, text: &str) -> String {
    let mut out = String::new();
    let mut line = indent.to_owned();
    let mut begun = false;
    for word in text.split_whitespace() {
        if begun && columns(&line) + 1 + columns(word) > WIDTH {
            out += line.trim_end();
            out.push('\n');
            line = " ".repeat(columns(indent));
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line += word;
        begun = true;
    }
    out + line.trim_end() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(who: &str, listen: &str) -> Edge {
        Edge::In {
            who: who.to_owned(),
            listen: listen.to_owned(),
            via: "relay".to_owned(),
            port: "5000".to_owned(),
            closed: false,
        }
    }

    fn app(name: &str, edges: Vec<Edge>) -> App {
        App {
            name: name.to_owned(),
            lines: vec!["172.18.0.23".to_owned()],
            edges,
        }
    }

    #[test]
    fn it_is_80_columns_wide_whatever_has_to_go_in() {
        let long = "[2001:db8:1111:2222:3333:4444:5555:6666]:10000-65535/udp";
        let picture = Picture {
            sidecar: vec!["172.18.0.33".to_owned(), "fd00:18::1".to_owned()],
            refused: vec!["12 refused".to_owned()],
            apps: vec![
                app(
                    &"w".repeat(40),
                    vec![
                        entry("anyone", "0.0.0.0:80"),
                        entry("2001:db8:1::/48", long),
                    ],
                ),
                app(
                    "db",
                    vec![
                        Edge::From {
                            app: "web".to_owned(),
                            port: "5432".to_owned(),
                        },
                        Edge::Out {
                            to: format!("tcp {long}"),
                            via: "nat",
                        },
                    ],
                ),
                app("alone", vec![]),
            ],
        };
        let drawn = draw(&picture);
        let ends: Vec<usize> = drawn.lines().map(columns).collect();
        assert!(ends.iter().all(|end| *end == ends[0]), "{drawn}");
        assert!(ends[0] <= WIDTH, "{drawn}");
        for name in ["db", "alone", "fd00:18::1", "5432", "nat"] {
            assert!(drawn.contains(name), "{name}: {drawn}");
        }
    }

    #[test]
    fn text_is_wrapped_at_words() {
        let text = wrapped("  log ", &"word ".repeat(30));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.starts_with("  log word"), "{text}");
        assert!(
            text.lines()
                .nth(1)
                .unwrap_or_default()
                .starts_with("      word"),
            "{text}"
        );
        assert_eq!(wrapped("x", ""), "x\n");
    }
}
