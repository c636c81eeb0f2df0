//! The picture for a browser: the same rows as in the terminal, drawn.
#![forbid(unsafe_code)]

use svg::Document;
use svg::node::element::{Definitions, Line, Marker, Path, Rectangle, Style, Text};

use super::{Edge, Picture};

/// How high a row is.
const ROW: usize = 26;
/// How wide a character is, at most: the font has one width.
const CHARACTER: usize = 8;
/// Between two boxes, and around everything.
const GAP: usize = 24;

const STYLE: &str = "\
text { font: 13px monospace; fill: #1b1f24 } \
.name { font-weight: bold } \
.few { fill: #57606a } \
.refused { fill: #b3261e } \
rect { fill: #f6f8fa; stroke: #57606a } \
.sidecar { fill: #fff4d6; stroke: #9a6700 } \
line { stroke: #1a7f37; stroke-width: 1.5 } \
.out { stroke: #0969da } \
.closed { stroke: #b3261e; stroke-dasharray: 4 3 }";

/// What stands at the left of the sidecar, at its right, and how both are drawn.
fn labels(edge: &Edge) -> (String, String, &'static str) {
    match edge {
        Edge::In {
            who,
            listen,
            via,
            port,
            closed,
        } => {
            let (via, class) = match closed {
                true => ("closed", "closed"),
                false => (via.as_str(), "in"),
            };
            (format!("{who} → {listen} ({via})"), port.clone(), class)
        }
        Edge::From { app, port } => (app.clone(), port.clone(), "in"),
        Edge::Out { to, via } => (format!("{to} ({via})"), String::new(), "out"),
    }
}

fn width(texts: impl Iterator<Item = usize>) -> usize {
    texts.max().unwrap_or(0) * CHARACTER
}

fn text(x: usize, y: usize, class: &str, said: &str) -> Text {
    Text::new(said).set("x", x).set("y", y).set("class", class)
}

fn arrow(from: usize, to: usize, y: usize, class: &str) -> Line {
    let head = if class == "closed" {
        "none"
    } else {
        "url(#head)"
    };
    Line::new()
        .set("x1", from)
        .set("x2", to)
        .set("y1", y)
        .set("y2", y)
        .set("class", class)
        .set("marker-end", head)
}

/// Draws it, under a title.
#[must_use]
pub fn draw(title: &str, picture: &Picture) -> String {
    let count = |text: &str| text.chars().count();
    let edges = || picture.apps.iter().flat_map(|app| &app.edges).map(labels);
    let left = width(edges().map(|(left, ..)| count(&left) + 2)).max(10 * CHARACTER);
    let ports = width(edges().map(|(_, port, _)| count(&port))).max(4 * CHARACTER) + GAP;
    let inside = picture.sidecar.iter().chain(&picture.refused);
    let sidecar = width(inside.map(|line| count(line))).max(8 * CHARACTER) + GAP;
    let lines = picture.apps.iter().flat_map(|app| app.lines.iter());
    let names = picture.apps.iter().map(|app| count(&app.name));
    let app = width(lines.map(|line| count(line)).chain(names)) + GAP;
    let (at_sidecar, top) = (GAP + left + GAP, 2 * GAP + ROW);
    let at_app = at_sidecar + sidecar + ports + 2 * GAP;

    let mut drawn = vec![];
    let mut arrows: Vec<Box<dyn svg::Node>> = vec![];
    let mut y = top;
    for shown in &picture.apps {
        let rows = shown.edges.len().max(shown.lines.len() + 1);
        let height = rows * ROW + 8;
        let frame = Rectangle::new()
            .set("x", at_app)
            .set("y", y)
            .set("width", app)
            .set("height", height)
            .set("rx", 4);
        arrows.push(Box::new(frame));
        drawn.push(text(at_app + 10, y + 18, "name", &shown.name));
        for (at, line) in (1..).zip(&shown.lines) {
            drawn.push(text(at_app + 10, y + 18 + at * ROW, "few", line));
        }
        for (at, edge) in shown.edges.iter().enumerate() {
            let (who, port, class) = labels(edge);
            let middle = y + 22 + at * ROW;
            let (outer, inner) = ((GAP, at_sidecar), (at_sidecar + sidecar, at_app));
            for (from, to) in [outer, inner] {
                let (from, to) = if class == "out" {
                    (to, from)
                } else {
                    (from, to)
                };
                arrows.push(Box::new(arrow(from, to, middle, class)));
            }
            // Beside the head of an arrow that ends there.
            let beside = if class == "out" { 12 } else { 0 };
            drawn.push(text(GAP + beside, middle - 5, "", &who));
            drawn.push(text(at_sidecar + sidecar + 10, middle - 5, "", &port));
        }
        y += height + GAP;
    }
    let bottom = (y - GAP).max(top + (picture.sidecar.len() + picture.refused.len() + 1) * ROW + 8);
    let frame = Rectangle::new()
        .set("x", at_sidecar)
        .set("y", top)
        .set("width", sidecar)
        .set("height", bottom - top)
        .set("rx", 4)
        .set("class", "sidecar");
    arrows.push(Box::new(frame));
    drawn.push(text(at_sidecar + 10, top + 18, "name", "sidecar"));
    for (at, line) in (1..).zip(&picture.sidecar) {
        drawn.push(text(at_sidecar + 10, top + 18 + at * ROW, "few", line));
    }
    for (at, line) in (1 + picture.sidecar.len()..).zip(&picture.refused) {
        drawn.push(text(at_sidecar + 10, top + 18 + at * ROW, "refused", line));
    }
    drawn.push(text(GAP, GAP + 10, "name", title));

    let head = Marker::new()
        .set("id", "head")
        .set("viewBox", "0 0 8 8")
        .set("refX", 8)
        .set("refY", 4)
        .set("markerWidth", 7)
        .set("markerHeight", 7)
        .set("orient", "auto")
        .add(Path::new().set("d", "M0,0 L8,4 L0,8 z"));
    let (right, height) = (at_app + app + GAP, bottom + GAP);
    let mut document = Document::new()
        .set("viewBox", (0, 0, right, height))
        .set("width", right)
        .set("height", height)
        .add(Style::new(STYLE))
        .add(Definitions::new().add(head))
        .add(
            Rectangle::new()
                .set("width", right)
                .set("height", height)
                .set("style", "fill: #ffffff; stroke: none"),
        );
    for shape in arrows {
        document = document.add(shape);
    }
    for said in drawn {
        document = document.add(said);
    }
    document.to_string() + "\n"
}
