//! What differs between two texts of rules, by lines, each with the block that it is in.
#![forbid(unsafe_code)]

use nftables::schema::Nftables;

use crate::firewall::{self, TextError};

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
    let same = |a: usize, b: usize| old[a] == new[b];
    let before = (0..old.len().min(new.len()))
        .take_while(|at| same(*at, *at))
        .count();
    let after = (0..old.len().min(new.len()) - before)
        .take_while(|at| same(old.len() - 1 - at, new.len() - 1 - at))
        .count();
    let (i_end, j_end) = (old.len() - after, new.len() - after);
    // length[i][j]: of the longest common subsequence from i and j on, between what is common at both ends.
    let mut length = vec![vec![0_usize; j_end - before + 1]; i_end - before + 1];
    for i in (before..i_end).rev() {
        for j in (before..j_end).rev() {
            length[i - before][j - before] = if same(i, j) {
                length[i + 1 - before][j + 1 - before] + 1
            } else {
                length[i + 1 - before][j - before].max(length[i - before][j + 1 - before])
            };
        }
    }
    let mut found = Found::default();
    found.pass(&old[..before]);
    let (mut i, mut j) = (before, before);
    while i < i_end || j < j_end {
        if i < i_end && j < j_end && same(i, j) {
            found.pass(&old[i..=i]);
            (i, j) = (i + 1, j + 1);
        } else if j == j_end
            || i < i_end && length[i + 1 - before][j - before] >= length[i - before][j + 1 - before]
        {
            found.say(Line::Removed(old[i].clone()));
            i += 1;
        } else {
            found.say(Line::Added(new[j].clone()));
            j += 1;
        }
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
    fn pass(&mut self, lines: &[String]) {
        for line in lines {
            if line.ends_with('{') {
                self.open.push(line.clone());
            } else if line.trim() == "}" {
                self.open.pop();
                self.said = self.said.min(self.open.len());
            }
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
