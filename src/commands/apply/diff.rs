//! What differs between two texts of rules, by lines, each with the block that it is in.
#![forbid(unsafe_code)]

use nftables::schema::Nftables;

use crate::firewall::{self, TextError};
use crate::plan::Plan;

/// A line that only one of two rulesets has, or, to say where that is, both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The beginning of a block.
    Within(String),
    /// Only the old one.
    Removed(String),
    /// Only the new one.
    Added(String),
}

/// The difference of two rulesets in nft's language; an element of a set counts as a line.
///
/// # Errors
/// As [`firewall::to_text`].
pub fn rules(old: &Nftables<'_>, new: &Nftables<'_>) -> Result<Vec<Line>, TextError> {
    Ok(lines(
        &by_elements(&firewall::to_text(old)?),
        &by_elements(&firewall::to_text(new)?),
    ))
}

/// The difference of what two plans have for the sidecar, with the user's own rules as they are written.
///
/// # Errors
/// As [`firewall::to_text`].
pub fn sidecar(old: &Plan, new: &Plan) -> Result<Vec<Line>, TextError> {
    let text = |plan: &Plan| {
        let ours = firewall::to_text(&firewall::sidecar_rules(plan))?;
        let extra = plan.rules.as_ref().map(crate::commands::rules::extra);
        Ok(by_elements(&(ours + &extra.unwrap_or_default())))
    };
    Ok(lines(&text(old)?, &text(new)?))
}

/// One element a line.
fn by_elements(text: &str) -> Vec<String> {
    let mut lines = vec![];
    // Of a list that goes on over several lines.
    let mut list: Option<&str> = None;
    for line in text.lines() {
        let (head, elements) = match (list, line.split_once("elements = {")) {
            (Some(head), _) => (head, line),
            (None, Some((head, elements))) => (head, elements),
            (None, None) => {
                lines.push(line.to_owned());
                continue;
            }
        };
        list = (!elements.contains('}')).then_some(head);
        for element in elements.split([',', '}']).map(str::trim) {
            if !element.is_empty() {
                lines.push(format!("{head}element {element}"));
            }
        }
    }
    lines
}

fn lines(old: &[String], new: &[String]) -> Vec<Line> {
    let both = firewall::common(old.len(), new.len(), |i, j| old[i] == new[j]);
    let mut found = Found::default();
    let (mut i, mut j) = (0, 0);
    for (next_i, next_j) in both.into_iter().chain([(old.len(), new.len())]) {
        for line in &old[i..next_i] {
            found.say(Line::Removed(line.clone()));
        }
        for line in &new[j..next_j] {
            found.say(Line::Added(line.clone()));
        }
        if let Some(line) = old.get(next_i) {
            found.pass(line);
        }
        (i, j) = (next_i + 1, next_j + 1);
    }
    found.lines
}

/// The difference so far, and the blocks that are open, of which those that were said come first.
#[derive(Default)]
struct Found {
    lines: Vec<Line>,
    open: Vec<String>,
    said: usize,
}

impl Found {
    fn pass(&mut self, line: &str) {
        if line.ends_with('{') {
            self.open.push(line.to_owned());
        } else if line.trim() == "}" {
            self.open.pop();
            self.said = self.said.min(self.open.len());
        }
    }

    fn say(&mut self, line: Line) {
        let within = self.open[self.said..].iter().cloned().map(Line::Within);
        self.lines.extend(within);
        self.said = self.open.len();
        self.lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        by_elements(text)
    }

    #[test]
    fn a_difference_says_in_which_block_each_line_is_and_nothing_that_stays() {
        let old = "table inet t {\n\tset s {\n\t\telements = { 1,\n\t\t\t 2 }\n\t}\n\tchain c {\n\t\ta\n\t\tb\n\t}\n}";
        let new = "table inet t {\n\tset s {\n\t\telements = { 2, 3 }\n\t}\n\tchain c {\n\t\ta\n\t\tx\n\t\tb\n\t}\n}";
        let text = |lines: Vec<Line>| -> Vec<String> {
            lines
                .into_iter()
                .map(|line| match line {
                    Line::Within(line) => format!(" {}", line.trim()),
                    Line::Removed(line) => format!("-{}", line.trim()),
                    Line::Added(line) => format!("+{}", line.trim()),
                })
                .collect()
        };
        assert_eq!(
            text(lines(&of(old), &of(new))),
            [
                " table inet t {",
                " set s {",
                "-element 1",
                "+element 3",
                " chain c {",
                "+x"
            ]
        );
        assert_eq!(lines(&of(old), &of(old)), []);
        assert_eq!(text(lines(&of(""), &of("a\nb"))), ["+a", "+b"]);
    }
}
