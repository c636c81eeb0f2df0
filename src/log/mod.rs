//! A stack's log: kept in memory, bounded, shown as text or as JSON.
//!
//! The supervisor makes a [`LineSplitter`] for each pipe of a part, pushes what comes out into the stack's [`LogBuf`], and
//! answers `lrpns logs` from it. What an app writes is hostile until shown otherwise: no rendering lets a byte of it
//! reach a terminal as anything but text.
#![forbid(unsafe_code)]

pub mod budget;
pub mod files;
pub mod journald;
pub mod record;
pub mod screen;
pub mod streams;

use std::collections::VecDeque;
use std::fmt::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::text::is_hostile;
use crate::traffic::line::{Fields, Names};
use crate::traffic::{Record, wire};

/// The longest piece of a line, in bytes as they came from the pipe; longer lines are cut.
const MAX_PIECE: usize = 16 * 1024;

/// What a splitter holds at most: a piece, the CR of its line's end, and one byte that shows that the line goes on.
const HELD: usize = MAX_PIECE + 2;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The part's standard output.
    Out,
    /// The part's standard error.
    Err,
    /// The supervisor, about the part: started, ended, restarted.
    Event,
    /// The sidecar, about connections and packets.
    Traffic,
}

impl Stream {
    /// As documents have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Out => "out",
            Stream::Err => "err",
            Stream::Event => "event",
            Stream::Traffic => "traffic",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Out, Self::Err, Self::Event, Self::Traffic];
        all.into_iter().find(|stream| stream.as_str() == name)
    }
}

/// One line of the log. Its fields are the keys of the JSON form, which are stable:
///
/// | key | value |
/// |---|---|
/// | `time` | when the line was complete, RFC 3339, UTC |
/// | `part` | the part's name |
/// | `stream` | `out`, `err`, `event` or `traffic` |
/// | `text` | the line without its end, bytes that are no UTF-8 replaced by U+FFFD |
/// | `traffic` | [`Fields`]; left out in lines of other streams |
/// | `continues` | `true` if the next line of the same part and stream belongs to this one; left out otherwise |
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When the line was complete.
    pub time: Timestamp,
    /// The part's name.
    pub part: String,
    /// Where it came from.
    pub stream: Stream,
    /// The line without its end.
    pub text: String,
    /// Whether it was cut, and the next line of this part and stream goes on with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// Of [`Stream::Traffic`]: the same as `text`, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Box<Fields>>,
}

impl LogLine {
    /// What the line takes of [`LogBuf`]'s bound, in bytes.
    fn size(&self) -> usize {
        size_of::<Self>() + self.part.len() + self.text.len()
    }

    /// As a person reads it: `2026-11-22T17:40:00.123Z app | text`, without a line end.
    ///
    /// What could move the cursor, change colours or reorder the text is shown as an escape: control characters other
    /// than tab, line separators, and the marks of bidirectional text. A backslash stands for itself, so only
    /// [`json`](Self::json) is exact. `colour` gives each part a colour of its own.
    #[must_use]
    pub fn human(&self, colour: bool) -> String {
        let style = if colour {
            part_style(&self.part)
        } else {
            Style::new()
        };
        let goes_on = if self.continues { "\\" } else { "" };
        format!(
            "{:.3} {style}{} |{style:#} {}{goes_on}",
            self.time,
            Visible(&self.part),
            Visible(&self.text)
        )
    }

    /// As one line of JSON, without a line end. The keys are in the table of [`LogLine`]; it is exact, and what
    /// [`human`](Self::human) escapes is escaped here as well, as `\uXXXX`.
    #[must_use]
    pub fn json(&self) -> String {
        let plain = serde_json::to_string(self).expect("strings and times are JSON");
        let mut safe = String::with_capacity(plain.len());
        for c in plain.chars() {
            if is_hostile(c) {
                write!(safe, "\\u{:04x}", u32::from(c)).expect("a String takes everything");
            } else {
                safe.push(c);
            }
        }
        safe
    }
}

/// The same part has the same colour in every run.
fn part_style(part: &str) -> Style {
    const COLOURS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Green,
        AnsiColor::Magenta,
        AnsiColor::Blue,
        AnsiColor::Yellow,
        AnsiColor::BrightCyan,
    ];
    let sum: usize = part.bytes().map(usize::from).sum();
    COLOURS[sum % COLOURS.len()].on_default()
}

/// Text that a terminal shows and does not obey.
struct Visible<'a>(&'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_hostile(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// Which lines are wanted; the default wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Lines of these parts only; of all, if there is none.
    pub parts: Vec<String>,
    /// Lines of this stream only.
    pub stream: Option<Stream>,
    /// Lines with at least this number: what [`LogBuf::end`] was when they were last asked for, to follow the log.
    pub from: u64,
}

impl Filter {
    /// Whether it wants lines of this part and stream.
    #[must_use]
    pub fn wants(&self, part: &str, stream: Stream) -> bool {
        (self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part))
            && self.stream.is_none_or(|wanted| wanted == stream)
    }
}

/// How far somebody has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The number of a piece of the traffic log…
    piece: u64,
    /// …and of a record in it.
    record: usize,
}

/// A bounded log in memory. Lines have numbers, from 0 on; the oldest go first.
#[derive(Debug)]
pub struct LogBuf {
    lines: VecDeque<LogLine>,
    size: usize,
    max: usize,
    dropped: u64,
}

impl LogBuf {
    /// An empty log that holds at most `max_bytes`, bookkeeping included.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            size: 0,
            max: max_bytes,
            dropped: 0,
        }
    }

    /// Adds a line, and drops the oldest ones until all fits again. A line that doesn't fit alone is dropped too.
    pub fn push(&mut self, line: LogLine) {
        self.size += line.size();
        self.lines.push_back(line);
        while self.size > self.max {
            let oldest = self
                .lines
                .pop_front()
                .expect("a size above zero is that of a line");
            self.size -= oldest.size();
            self.dropped += 1;
        }
    }

    /// The line of this number, if it is still there.
    #[must_use]
    pub fn at(&self, number: u64) -> Option<&LogLine> {
        let index = number.checked_sub(self.dropped)?;
        self.lines.get(usize::try_from(index).ok()?)
    }

    /// How many lines were dropped to make room; also the number of the oldest line that is left.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The number that the next line will have.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.dropped + self.lines.len() as u64
    }
}

/// How many bytes a reader of the log is given at once, about.
const READ_AT_ONCE: usize = 64 << 10;
/// How many bytes of the traffic log are forgotten at once.
const PIECE_OF_TRAFFIC: usize = wire::LARGEST;

/// The traffic log in memory, bounded, the oldest records going first. It has memory of its own: no flood of packets
/// pushes out what an app has said.
#[derive(Debug)]
pub struct TrafficBuf {
    /// Records as the sidecar wrote them, in pieces of at most [`PIECE_OF_TRAFFIC`] bytes; the oldest piece goes first.
    pieces: VecDeque<Vec<u8>>,
    size: usize,
    max: usize,
    /// How many pieces were dropped; also the number of the oldest one that is left.
    dropped: u64,
    names: Names,
}

impl TrafficBuf {
    /// The part's name that its lines have.
    pub const PART: &'static str = "traffic";

    /// An empty one that takes at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize, names: Names) -> Self {
        Self {
            pieces: VecDeque::new(),
            size: 0,
            max: max_bytes,
            dropped: 0,
            names,
        }
    }

    /// From now on lines are written with these names.
    pub fn rename(&mut self, names: Names) {
        self.names = names;
    }

    /// Adds records as the sidecar writes them. There may be ten thousand a second, and seldom is one read: so they are
    /// bytes until then.
    pub fn push(&mut self, records: &[u8]) {
        self.size += records.len();
        match self.pieces.back_mut() {
            Some(last) if last.len() + records.len() <= PIECE_OF_TRAFFIC => last.extend(records),
            _ => self.pieces.push_back(records.to_vec()),
        }
        while self.size > self.max
            && let Some(oldest) = self.pieces.pop_front()
        {
            self.size -= oldest.len();
            self.dropped += 1;
        }
    }

    /// A record as a line.
    #[must_use]
    pub fn line(&self, record: &Record) -> LogLine {
        let (time, text, fields) = self.names.line(record);
        LogLine {
            time,
            part: Self::PART.to_owned(),
            stream: Stream::Traffic,
            text,
            continues: false,
            traffic: Some(Box::new(fields)),
        }
    }

    /// Whether `filter` wants any of them.
    #[must_use]
    pub fn is_wanted(filter: &Filter) -> bool {
        filter.wants(Self::PART, Stream::Traffic)
    }

    /// Where the next record will be.
    #[must_use]
    pub fn end(&self) -> Place {
        let pieces = self.dropped + self.pieces.len() as u64;
        match self.pieces.back() {
            Some(last) => Place {
                piece: pieces - 1,
                record: wire::records(last).count(),
            },
            None => Place {
                piece: pieces,
                record: 0,
            },
        }
    }

    /// The oldest place that is still there, if this one is not any more.
    #[must_use]
    pub fn gone(&self, place: Place) -> Option<Place> {
        let oldest = Place {
            piece: self.dropped,
            record: 0,
        };
        (place < oldest).then_some(oldest)
    }

    /// So many records as lines, from a place on, with the place after each.
    #[must_use]
    pub fn from(&self, place: Place, most: usize) -> Vec<(LogLine, Place)> {
        let first = usize::try_from(place.piece.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        let pieces = self.pieces.iter().enumerate().skip(first);
        let records = pieces.flat_map(|(index, bytes)| {
            let piece = self.dropped + index as u64;
            let read = if piece == place.piece {
                place.record
            } else {
                0
            };
            let records = wire::records(bytes).enumerate().skip(read);
            records.map(move |(index, record)| {
                (
                    record,
                    Place {
                        piece,
                        record: index + 1,
                    },
                )
            })
        });
        let records = records.take(most);
        records
            .map(|(record, after)| (self.line(&record), after))
            .collect()
    }
}

/// Both logs, for somebody who reads them from the beginning, at his own pace.
#[derive(Debug)]
pub struct Reader {
    filter: Filter,
    /// The number of the next line.
    line: u64,
    place: Place,
    /// Where to end; without it never, but with what there is.
    until: Option<(u64, Place)>,
}

impl Reader {
    /// From the beginning of what there is to what there is now, or to its end when it comes there.
    #[must_use]
    pub fn new(filter: Filter, log: &LogBuf, traffic: &TrafficBuf, on: bool) -> Self {
        let oldest = Place {
            piece: traffic.dropped,
            record: 0,
        };
        Self {
            line: filter.from.max(log.dropped()),
            place: oldest,
            until: (!on).then(|| (log.end(), traffic.end())),
            filter,
        }
    }

    /// What it wants.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// The next lines, at most about so many and [`READ_AT_ONCE`] bytes, in the order of time; none when all is read. What
    /// was dropped before it was read is said in its place.
    pub fn read(&mut self, log: &LogBuf, traffic: &TrafficBuf, most: usize) -> Vec<LogLine> {
        let mut lines = vec![];
        let lost = |lines: &mut Vec<LogLine>, part: &str, what: String| {
            let text = format!("{what} left out here: they were dropped before they were read");
            lines.push(LogLine {
                time: Timestamp::now(),
                part: part.to_owned(),
                stream: Stream::Event,
                text,
                continues: false,
                traffic: None,
            });
        };
        let end = self.until.map_or(u64::MAX, |(line, _)| line);
        // What was said after the end is none of it, dropped or not.
        let oldest = log.dropped().min(end);
        let missed = oldest.saturating_sub(self.line);
        if missed > 0 {
            self.line = oldest;
            let part = match self.filter.parts.as_slice() {
                [part] => part.as_str(),
                _ => "log",
            };
            lost(&mut lines, part, format!("{missed} lines are"));
        }
        let mut records = VecDeque::new();
        let last = self.until.map(|(_, place)| place);
        if TrafficBuf::is_wanted(&self.filter) && last.is_none_or(|last| self.place < last) {
            if let Some(oldest) = traffic.gone(self.place) {
                self.place = oldest;
                lost(
                    &mut lines,
                    TrafficBuf::PART,
                    "connections and packets are".to_owned(),
                );
            }
            records.extend(traffic.from(self.place, most));
            records.retain(|(_, after)| last.is_none_or(|last| *after <= last));
        }
        let mut bytes = 0;
        while lines.len() < most && bytes < READ_AT_ONCE {
            while self.line < end
                && log
                    .at(self.line)
                    .is_some_and(|line| !self.filter.wants(&line.part, line.stream))
            {
                self.line += 1;
            }
            let line = log.at(self.line).filter(|_| self.line < end);
            match (line, records.front()) {
                (None, None) => break,
                (Some(line), record) if record.is_none_or(|(r, _)| line.time <= r.time) => {
                    bytes += line.size();
                    lines.push(line.clone());
                    self.line += 1;
                }
                _ => {
                    if let Some((record, after)) = records.pop_front() {
                        bytes += record.size();
                        lines.push(record);
                        self.place = after;
                    }
                }
            }
        }
        lines
    }
}

/// A line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text without the line's end.
    pub text: String,
    /// Whether the line was too long, and the next piece goes on with it.
    pub continues: bool,
}

/// Turns a pipe's bytes, in whatever chunks they come, into lines.
///
/// A line ends with LF or CR LF. It is cut after [`MAX_PIECE`] bytes, never within a UTF-8 sequence. What is not UTF-8
/// becomes U+FFFD. No more than one piece is ever held.
#[derive(Debug, Default)]
pub struct LineSplitter {
    held: Vec<u8>,
    /// The line that is under way is left out.
    leaving_out: bool,
}

impl LineSplitter {
    /// With nothing held.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a chunk and makes no lines of it: neither of what it completes nor of what it begins. How many lines that
    /// are; one that was counted when an earlier chunk began it is not counted again.
    pub fn leave_out(&mut self, chunk: &[u8]) -> u64 {
        if chunk.is_empty() {
            return 0;
        }
        self.held.clear();
        let ends = chunk.iter().filter(|b| **b == b'\n').count() as u64;
        let counted = std::mem::replace(&mut self.leaving_out, !chunk.ends_with(b"\n"));
        ends + u64::from(self.leaving_out) - u64::from(counted)
    }

    /// Takes a chunk, and gives the lines that it completes to `line`.
    pub fn push(&mut self, mut chunk: &[u8], mut line: impl FnMut(Piece)) {
        if self.leaving_out {
            let Some(end) = chunk.iter().position(|&b| b == b'\n') else {
                return;
            };
            chunk = &chunk[end + 1..];
            self.leaving_out = false;
        }
        while !chunk.is_empty() {
            let end = chunk.iter().position(|&b| b == b'\n');
            let take = end.unwrap_or(chunk.len()).min(HELD - self.held.len());
            self.held.extend_from_slice(&chunk[..take]);
            chunk = &chunk[take..];
            if end == Some(take) {
                chunk = &chunk[1..];
                self.complete(&mut line);
            } else if self.held.len() == HELD {
                line(self.cut());
            }
        }
    }

    /// Gives what is held without a line end to `line`: the pipe has ended.
    pub fn finish(&mut self, mut line: impl FnMut(Piece)) {
        if !self.held.is_empty() {
            self.complete(&mut line);
        }
    }

    fn complete(&mut self, line: &mut impl FnMut(Piece)) {
        if self.held.ends_with(b"\r") {
            self.held.pop();
        }
        while self.held.len() > MAX_PIECE {
            line(self.cut());
        }
        line(Piece {
            text: String::from_utf8_lossy(&self.held).into_owned(),
            continues: false,
        });
        self.held.clear();
    }

    /// The first bytes of a line that is too long.
    fn cut(&mut self) -> Piece {
        let is_start = |b: u8| b & 0b1100_0000 != 0b1000_0000;
        // a sequence has at most four bytes (RFC 3629): with none starting in the last four, it is no UTF-8
        let at = (MAX_PIECE - 3..=MAX_PIECE)
            .rev()
            .find(|&i| is_start(self.held[i]))
            .unwrap_or(MAX_PIECE);
        let text = String::from_utf8_lossy(&self.held[..at]).into_owned();
        self.held.drain(..at);
        Piece {
            text,
            continues: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(part: &str, stream: Stream, text: &str) -> LogLine {
        LogLine {
            time: "2026-11-22T17:40:00.1239Z".parse().unwrap(),
            part: part.to_owned(),
            stream,
            text: text.to_owned(),
            continues: false,
            traffic: None,
        }
    }

    fn texts(log: &LogBuf, filter: &Filter) -> Vec<String> {
        let numbers = filter.from.max(log.dropped())..log.end();
        let lines = numbers.map(|number| log.at(number).unwrap());
        lines
            .filter(|line| filter.wants(&line.part, line.stream))
            .map(|line| line.text.clone())
            .collect()
    }

    /// What comes out for `bytes` in chunks of `step`.
    fn split(bytes: &[u8], step: usize) -> Vec<Piece> {
        let mut splitter = LineSplitter::new();
        let mut pieces = Vec::new();
        for chunk in bytes.chunks(step) {
            splitter.push(chunk, |p| pieces.push(p));
        }
        splitter.finish(|p| pieces.push(p));
        pieces
    }

    fn whole(text: &str) -> Piece {
        Piece {
            text: text.to_owned(),
            continues: false,
        }
    }

    #[test]
    fn the_oldest_lines_go_first_and_are_counted() {
        let one = line("app", Stream::Out, "0").size();
        let mut log = LogBuf::new(3 * one);
        for i in 0..5 {
            log.push(line("app", Stream::Out, &i.to_string()));
        }
        assert_eq!(texts(&log, &Filter::default()), ["2", "3", "4"]);
        assert_eq!((log.dropped(), log.end(), log.size), (2, 5, 3 * one));
    }

    #[test]
    fn a_line_larger_than_the_log_leaves_it_empty() {
        let mut log = LogBuf::new(1000);
        log.push(line("app", Stream::Out, "small"));
        log.push(line("app", Stream::Out, &"x".repeat(1000)));
        assert_eq!(texts(&log, &Filter::default()), [""; 0]);
        assert_eq!((log.dropped(), log.size), (2, 0));
    }

    #[test]
    fn a_filter_chooses_part_stream_and_new_lines() {
        let mut log = LogBuf::new(1 << 20);
        log.push(line("app", Stream::Out, "a"));
        log.push(line("sidecar", Stream::Out, "b"));
        let seen = log.end();
        log.push(line("app", Stream::Err, "c"));
        log.push(line("app", Stream::Out, "d"));
        let filter = |part: Option<&str>, stream, from| Filter {
            parts: part.into_iter().map(str::to_owned).collect(),
            stream,
            from,
        };
        assert_eq!(texts(&log, &filter(Some("app"), None, 0)), ["a", "c", "d"]);
        assert_eq!(
            texts(&log, &filter(None, Some(Stream::Out), 0)),
            ["a", "b", "d"]
        );
        assert_eq!(texts(&log, &filter(Some("app"), None, seen)), ["c", "d"]);
        assert_eq!(texts(&log, &filter(None, None, u64::MAX)), [""; 0]);
    }

    #[test]
    fn who_reads_to_the_end_comes_to_it_however_fast_lines_come_and_go() {
        let one = line("app", Stream::Out, "0").size();
        let mut log = LogBuf::new(4 * one);
        let traffic = TrafficBuf::new(1 << 10, Names::default());
        let say = |log: &mut LogBuf, from: u32| {
            for number in from..from + 4 {
                log.push(line("app", Stream::Out, &(number % 10).to_string()));
            }
        };
        say(&mut log, 0);
        let mut reader = Reader::new(Filter::default(), &log, &traffic, false);
        let mut told = vec![];
        for round in 1..=3 {
            let read = reader.read(&log, &traffic, 2);
            told.push(read.into_iter().map(|line| line.text).collect::<Vec<_>>());
            say(&mut log, 4 * round);
        }
        let left_out = "2 lines are left out here: they were dropped before they were read";
        assert_eq!(told, [vec!["0", "1"], vec![left_out], vec![]]);
    }

    #[test]
    fn following_goes_on_after_lines_were_dropped() {
        let one = line("app", Stream::Out, "0").size();
        let mut log = LogBuf::new(2 * one);
        let mut filter = Filter::default();
        let mut seen = Vec::new();
        for i in 0..6 {
            log.push(line("app", Stream::Out, &i.to_string()));
            if i != 2 {
                seen.extend(texts(&log, &filter));
                filter.from = log.end();
            }
        }
        assert_eq!(seen, ["0", "1", "2", "3", "4", "5"]);
    }

    #[test]
    fn people_see_time_part_and_text() {
        let plain = line("app", Stream::Out, "Hello\twörld");
        assert_eq!(
            plain.human(false),
            "2026-11-22T17:40:00.123Z app | Hello\twörld"
        );
        let coloured = plain.human(true);
        assert!(coloured.contains("\x1b["), "{coloured:?}");
        assert!(coloured.ends_with("\x1b[0m Hello\twörld"), "{coloured:?}");
        let cut = LogLine {
            continues: true,
            ..plain
        };
        assert!(cut.human(false).ends_with("wörld\\"));
    }

    #[test]
    fn no_rendering_lets_an_escape_through() {
        let hostile = "\x1b]0;owned\x07\r\n\x08\x00\x7f\u{9b}31m\u{202e}\u{2066}\u{2028}\u{200f}";
        let line = line(hostile, Stream::Err, hostile);
        for shown in [line.human(false), line.json()] {
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            assert!(
                !shown.contains(['\u{202e}', '\u{2066}', '\u{2028}', '\u{200f}']),
                "{shown:?}"
            );
        }
        assert!(line.human(false).contains(r"\u{1b}]0;owned\u{7}\u{d}\u{a}"));
        let back: LogLine = serde_json::from_str(&line.json()).unwrap();
        assert_eq!(back, line);
    }

    #[test]
    fn json_has_the_documented_keys() {
        let mut line = line("app", Stream::Event, "a\t\"b\"");
        assert_eq!(
            line.json(),
            r#"{"time":"2026-11-22T17:40:00.1239Z","part":"app","stream":"event","text":"a\t\"b\""}"#
        );
        line.continues = true;
        assert!(line.json().ends_with(r#","continues":true}"#));
    }

    #[test]
    fn lines_do_not_depend_on_chunks() {
        let bytes = "one\n\ntwo\r\nth\rree\nvier\u{fc}nf\u{1f980}".as_bytes();
        for step in 1..=bytes.len() {
            let expected = ["one", "", "two", "th\rree", "vier\u{fc}nf\u{1f980}"].map(whole);
            assert_eq!(split(bytes, step), expected, "chunks of {step}");
        }
    }

    #[test]
    fn lines_that_are_left_out_are_left_out_whole_and_counted_once() {
        let mut splitter = LineSplitter::new();
        let mut pieces = vec![];
        splitter.push(b"one\ntw", |piece| pieces.push(piece));
        assert_eq!(splitter.leave_out(b"o\nthree\nfo"), 3);
        assert_eq!(splitter.leave_out(b"u"), 0);
        assert_eq!(splitter.leave_out(b""), 0);
        splitter.push(b"r", |piece| pieces.push(piece));
        splitter.push(b"\nfive\n", |piece| pieces.push(piece));
        assert_eq!(splitter.leave_out(b"six\n"), 1);
        splitter.push(b"seven", |piece| pieces.push(piece));
        splitter.finish(|piece| pieces.push(piece));
        assert_eq!(pieces, ["one", "five", "seven"].map(whole));
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(split(b"a\xff\xfeb\n", 2), [whole("a\u{fffd}\u{fffd}b")]);
    }

    #[test]
    fn a_line_is_cut_only_when_it_is_too_long() {
        for step in [1, 1000, MAX_PIECE, 10 * MAX_PIECE] {
            let fits = "x".repeat(MAX_PIECE);
            assert_eq!(
                split(format!("{fits}\r\n").as_bytes(), step),
                [whole(&fits)]
            );
            assert_eq!(split(fits.as_bytes(), step), [whole(&fits)]);
            let pieces = split(format!("{fits}{fits}y\nz").as_bytes(), step);
            let cut = Piece {
                continues: true,
                ..whole(&fits)
            };
            assert_eq!(pieces, [cut.clone(), cut, whole("y"), whole("z")]);
        }
    }

    #[test]
    fn a_cut_keeps_characters_whole() {
        for lead in 0..4 {
            let long = "x".repeat(lead) + &"\u{1f980}".repeat(10_000);
            for step in [1, 4096, 100_000] {
                let pieces = split(long.as_bytes(), step);
                assert!(pieces.iter().all(|p| p.text.len() <= MAX_PIECE));
                let joined: String = pieces.into_iter().map(|p| p.text).collect();
                assert!(joined == long, "lead {lead}, chunks of {step}");
            }
        }
    }

    #[test]
    fn endless_bytes_that_are_no_text_are_cut_too() {
        let pieces = split(&[0x80; 3 * MAX_PIECE], 777);
        assert_eq!(pieces.len(), 3);
        assert!(pieces[..2].iter().all(|p| p.continues));
    }
}
