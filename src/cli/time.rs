//! Points in time as people write them: how long ago, or a date and time in UTC.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Reads `10m`, `1h30m`, `10 min ago`, `2026-11-29T08:00:00Z`, `2026-11-29 08:00` (UTC).
///
/// # Errors
/// What would be understood.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    parse_at(text, Timestamp::now())
}

fn parse_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || {
        "write how long ago (90s, 10m, 2h, 1d), or a date and time in UTC (2026-11-29T08:00:00Z, 2026-11-29 08:00)"
            .to_owned()
    };
    let text = text.trim();
    if let Some(ago) = ago(text) {
        return now.checked_sub(ago).map_err(|_| wrong());
    }
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let civil: DateTime = text.parse().map_err(|_| wrong())?;
    let time = civil.to_zoned(TimeZone::UTC).map_err(|_| wrong())?;
    Ok(time.timestamp())
}

/// Numbers with a unit each.
fn ago(text: &str) -> Option<SignedDuration> {
    let text = text.strip_suffix("ago").unwrap_or(text);
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0_i64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, behind) = rest.split_at(letters.unwrap_or(rest.len()));
        let of_one = match unit {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 24 * 3600,
            "w" | "week" | "weeks" => 7 * 24 * 3600,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(of_one)?)?;
        rest = behind.trim_start();
    }
    Some(SignedDuration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_how_long_ago_or_a_date() {
        let now: Timestamp = "2026-11-29T08:00:00Z".parse().unwrap();
        for (text, time) in [
            ("90s", "2026-11-29T07:58:30Z"),
            ("10m", "2026-11-29T07:50:00Z"),
            ("1h30m", "2026-11-29T06:30:00Z"),
            ("10 min ago", "2026-11-29T07:50:00Z"),
            ("2 days", "2026-11-27T08:00:00Z"),
            ("0s", "2026-11-29T08:00:00Z"),
            ("2026-11-28T01:02:03.5Z", "2026-11-28T01:02:03.5Z"),
            ("2026-11-28T01:02:03+01:00", "2026-11-28T00:02:03Z"),
            ("2026-11-28 01:02", "2026-11-28T01:02:00Z"),
            ("2026-11-28", "2026-11-28T00:00:00Z"),
        ] {
            assert_eq!(parse_at(text, now), Ok(time.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "10",
            "m",
            "ago",
            "10x",
            "yesterday",
            "-10m",
            "99999999999999999d",
            "9999999999999d",
        ] {
            assert!(parse_at(text, now).is_err(), "{text}");
        }
    }
}
