//! Text made so that it can be shown: what came from a part, and times.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::time::Duration;

/// Whether a character does something else to a terminal than to stand there. All are of the basic multilingual plane,
/// so four hexadecimal digits do.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    let bidirectional = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}') || bidirectional
}

/// At most `most` bytes of `text`, on one line, that a terminal shows and does not obey.
#[must_use]
pub fn harmless(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        let before = shown.len();
        if is_hostile(c) {
            write!(shown, "{}", c.escape_unicode()).expect("a String takes everything");
        } else {
            shown.push(c);
        }
        if shown.len() > most {
            shown.truncate(before);
            shown.push('…');
            break;
        }
    }
    shown
}

/// The same of any text, whose lines stay lines.
#[must_use]
pub fn harmless_lines(text: &str) -> String {
    let lines = text.split('\n').map(|line| harmless(line, usize::MAX));
    lines.collect::<Vec<_>>().join("\n")
}

/// A size as the configuration writes it: `64M`, `1.5G`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return bytes.to_string();
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{}{unit}", tenths / 10),
        // Of large numbers nobody wants to know.
        _ if tenths >= 1000 => format!("{}{unit}", tenths / 10),
        tenth => format!("{}.{tenth}{unit}", tenths / 10),
    }
}

/// A time as the configuration writes it: `500ms`, `10s`, `2m`, `7d`.
#[must_use]
pub fn duration(time: Duration) -> String {
    match time.as_millis() {
        milliseconds if !milliseconds.is_multiple_of(1000) => format!("{milliseconds}ms"),
        milliseconds if milliseconds > 0 && milliseconds.is_multiple_of(86_400_000) => {
            format!("{}d", milliseconds / 86_400_000)
        }
        milliseconds if milliseconds > 0 && milliseconds.is_multiple_of(60_000) => {
            format!("{}m", milliseconds / 60_000)
        }
        milliseconds => format!("{}s", milliseconds / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_its_largest_whole_unit() {
        for (milliseconds, text) in [
            (0, "0s"),
            (1, "1ms"),
            (1500, "1500ms"),
            (10_000, "10s"),
            (90_000, "90s"),
            (120_000, "2m"),
            (3_600_000, "60m"),
            (86_400_000, "1d"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn a_size_is_written_as_people_write_it() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1 << 10, "1K"),
            (1536, "1.5K"),
            (64 << 20, "64M"),
            ((64 << 20) + 1, "64M"),
            (100 * (1 << 20) + (1 << 19), "100M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "17179869183G"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn what_a_part_says_is_one_line_of_bounded_length_that_no_terminal_obeys() {
        assert_eq!(
            harmless("mount /proc\t: ünfein", 100),
            "mount /proc\t: ünfein"
        );
        assert_eq!(
            harmless("a\nb\x1b]0;owned\x07\u{202e}", 100),
            r"a\u{a}b\u{1b}]0;owned\u{7}\u{202e}"
        );
        assert_eq!(harmless("ääää", 5), "ää…");
        assert_eq!(harmless("\n\n", 6), r"\u{a}…");
    }
}
