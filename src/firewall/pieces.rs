//! A large file of the user's rules in pieces that nft can load one after the other.
//!
//! # Theory of operation
//!
//! nft sends a file to the kernel as one message, and a netlink socket takes none that is longer than its buffer: 208 kB
//! where nobody has changed `net.core.wmem_default`, some 600 rules. In a user namespace nft can't make that larger
//! (`SO_SNDBUFFORCE`, socket(7)). What is compiled is in force nowhere, so it may as well come in several messages.
//!
//! A piece is the whole text with some rules, and some elements of named sets and maps, and blanks in the place of the
//! others: so lines and columns stay, chains and sets are declared before a rule speaks of them, and rules stay in their
//! order. Only blocks, quotes and comments are understood; what is not as expected is never left out.

use std::ops::Range;

/// A text, and what may be left out of it.
#[derive(Debug)]
pub struct Pieces<'a> {
    text: &'a str,
    /// Each rule of a chain and each element of a set, in order.
    units: Vec<Range<usize>>,
    /// Each `elements = { ... }`, and which units are in it: without any, nft doesn't take it.
    lists: Vec<(Range<usize>, Range<usize>)>,
}

/// What takes how much of a message, roughly, in bytes: a rule that looks at four things; a range in a set.
const RULE: usize = 500;
const ELEMENT: usize = 100;
/// As large is a piece, of a buffer of 208 kB. nft takes minutes to say that one of 8 MB is too large.
const PIECE: usize = 150_000;

/// What a brace has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Table,
    Chain,
    Set,
    /// `elements` of a set: where it begins, and how many units are before it.
    Elements(usize, usize),
    Other,
}

/// What stands in a chain and is no rule.
const NO_RULE: [&str; 9] = [
    "type", "policy", "hook", "device", "devices", "flags", "comment", "define", "include",
];

impl<'a> Pieces<'a> {
    /// Looks for what can be left out of `text`, one or more whole tables.
    #[must_use]
    pub fn of(text: &'a str) -> Self {
        let mut pieces = Self {
            text,
            units: vec![],
            lists: vec![],
        };
        if pieces.read().is_none() {
            pieces.units.clear();
            pieces.lists.clear();
        }
        pieces
    }

    /// Their numbers in pieces, each as large as one message mostly is; one piece of nothing, if there is nothing to count.
    #[must_use]
    pub fn split(&self) -> Vec<Range<usize>> {
        let mut pieces = vec![];
        let (mut first, mut size) = (0, 0);
        for (number, unit) in self.units.iter().enumerate() {
            let of_list = |(list, _): &(Range<usize>, Range<usize>)| list.end > unit.start;
            let list = self.lists.partition_point(|list| !of_list(list));
            let is_element = self
                .lists
                .get(list)
                .is_some_and(|(_, units)| units.contains(&number));
            size += if is_element { ELEMENT } else { RULE };
            if size > PIECE {
                pieces.push(first..number);
                (first, size) = (number, if is_element { ELEMENT } else { RULE });
            }
        }
        pieces.push(first..self.units.len());
        pieces
    }

    /// The text with those rules and elements alone, by their numbers.
    #[must_use]
    pub fn piece(&self, wanted: Range<usize>) -> String {
        let mut bytes = self.text.as_bytes().to_vec();
        let mut blank = |range: &Range<usize>| {
            for byte in &mut bytes[range.clone()] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        };
        for (_, unit) in self
            .units
            .iter()
            .enumerate()
            .filter(|(number, _)| !wanted.contains(number))
        {
            blank(unit);
        }
        for (list, units) in &self.lists {
            if units.end <= wanted.start || wanted.end <= units.start {
                blank(list);
            }
        }
        let text = String::from_utf8(bytes).expect("units begin and end between characters");
        // To read a megabyte of blanks takes nft half a second.
        let lines = text.split_inclusive('\n');
        let short = lines.map(|line| match line.trim_start() {
            "" => line.trim_matches(' '),
            _ => line,
        });
        short.collect()
    }

    /// `None` if blocks don't match.
    fn read(&mut self) -> Option<()> {
        let text = self.text;
        let mut open: Vec<Block> = vec![];
        // Of the statement or element so far: where it begins, and its text as far as it tells what it is.
        let mut start = None;
        let mut head = String::new();
        let mut rest = text.char_indices().peekable();
        while let Some((at, c)) = rest.next() {
            let block = open.last().copied();
            match c {
                '#' => {
                    while rest.next_if(|(_, c)| *c != '\n').is_some() {}
                    continue;
                }
                '"' => {
                    start.get_or_insert(at);
                    rest.find(|(_, c)| *c == '"')?;
                    continue;
                }
                '\\' => {
                    start.get_or_insert(at);
                    rest.next();
                    continue;
                }
                '{' => {
                    let mut words = head.split_whitespace();
                    let first = words.next().unwrap_or_default();
                    open.push(match (block, first) {
                        (None, "table") => Block::Table,
                        (Some(Block::Table), "chain") => Block::Chain,
                        (Some(Block::Table), "set" | "map") => Block::Set,
                        (Some(Block::Set), "elements" | "elements=") => {
                            Block::Elements(start?, self.units.len())
                        }
                        _ => Block::Other,
                    });
                    // An anonymous set is part of its rule.
                    if open.last() != Some(&Block::Other) || block != Some(Block::Chain) {
                        (start, head) = (None, String::new());
                    }
                    continue;
                }
                '}' => {
                    match block? {
                        Block::Chain | Block::Elements(..) => self.end(block, start, &head, at),
                        _ => {}
                    }
                    open.pop();
                    if let Some(Block::Elements(begin, first)) = block {
                        self.lists.push((begin..at + 1, first..self.units.len()));
                    }
                    if !(block == Some(Block::Other) && open.last() == Some(&Block::Chain)) {
                        (start, head) = (None, String::new());
                    }
                    continue;
                }
                '\n' | ';' if !matches!(block, Some(Block::Elements(..) | Block::Other)) => {
                    self.end(block, start, &head, at);
                    (start, head) = (None, String::new());
                    continue;
                }
                ',' if matches!(block, Some(Block::Elements(..))) => {
                    self.end(block, start, &head, at + 1);
                    (start, head) = (None, String::new());
                    continue;
                }
                c if c.is_whitespace() => {}
                _ => {
                    start.get_or_insert(at);
                }
            }
            // The words of a rule behind its first tell nothing.
            if head.len() < 64 {
                head.push(c);
            }
        }
        open.is_empty().then_some(())
    }

    /// Takes down a rule or an element that ends here.
    fn end(&mut self, block: Option<Block>, start: Option<usize>, head: &str, end: usize) {
        let Some(start) = start else { return };
        let first = head.split_whitespace().next().unwrap_or_default();
        let is_unit = match block {
            Some(Block::Chain) => !NO_RULE.contains(&first),
            Some(Block::Elements(..)) => true,
            _ => false,
        };
        if is_unit {
            self.units.push(start..end);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "define A = { 1, 2 }\ntable inet t {\n\
        set s {\n  type ipv4_addr; elements = { 10.0.0.1, # not, this\n 10.0.0.2 comment \"a, }\" }\n}\n\
        chain c {\n  comment \"no rule\"\n  tcp dport { 1,\n 2 } drop; accept # end }\n  ip saddr $A \\\n  drop }\n\
        counter k { packets 1 bytes 2 }\n}\n";

    #[test]
    fn rules_and_elements_are_left_out_and_nothing_else_moves() {
        let pieces = Pieces::of(TEXT);
        let units: Vec<_> = pieces
            .units
            .iter()
            .map(|unit| &TEXT[unit.clone()])
            .collect();
        assert_eq!(
            units,
            [
                "10.0.0.1,",
                "10.0.0.2 comment \"a, }\" ",
                "tcp dport { 1,\n 2 } drop",
                "accept # end }",
                "ip saddr $A \\\n  drop ",
            ]
        );
        assert_eq!(pieces.piece(0..5), TEXT);
        let piece = pieces.piece(3..4);
        assert_eq!(piece.lines().count(), TEXT.lines().count());
        let column = |text: &str| text.lines().find_map(|line| line.find("accept"));
        assert_eq!(column(&piece), column(TEXT));
        assert!(
            !piece.contains("elements") && !piece.contains("10.0"),
            "{piece}"
        );
        assert!(piece.contains("define A = { 1, 2 }") && piece.contains("comment \"no rule\""));
        assert!(
            piece.contains("accept") && !piece.contains("drop"),
            "{piece}"
        );
        assert!(pieces.piece(1..2).contains("elements = {"));
    }

    #[test]
    fn a_piece_is_as_large_as_a_message() {
        let rules = "accept\n".repeat(1000);
        let elements = "1,".repeat(4000);
        let text = format!(
            "table t {{\n set s {{ elements = {{ {elements} }} }}\n chain c {{\n{rules}}}\n}}\n"
        );
        let pieces = Pieces::of(&text).split();
        assert_eq!(
            pieces,
            [
                0..1500,
                1500..3000,
                3000..4100,
                4100..4400,
                4400..4700,
                4700..5000
            ]
        );
        assert_eq!(
            Pieces::of(TEXT).split().as_slice(),
            std::slice::from_ref(&(0..5))
        );
    }

    #[test]
    fn a_text_whose_braces_do_not_match_is_left_whole() {
        for text in [
            "table t {\n chain c {\n drop\n}",
            "}\n",
            "table t { chain c { log prefix \"x } }",
        ] {
            assert_eq!(
                Pieces::of(text).split().as_slice(),
                std::slice::from_ref(&(0..0)),
                "{text}"
            );
            assert_eq!(Pieces::of(text).piece(0..0), text);
        }
    }
}
