//! How much of the supervisor's time one part may take with what it writes.
//!
//! # Theory of operation
//!
//! A line costs the supervisor about a microsecond, whatever its length: an app that writes nothing but line ends spends a
//! four-hundredth of a processor and costs the supervisor most of one. So each part has a [`Budget`] of lines and of bytes
//! a second, with a generous reserve for a burst (a [`Bucket`] each). What exceeds it is not made into lines: it is
//! counted, and the log says how much was left out. Counting costs a pass over the bytes; reading itself is bounded by the
//! pause that [`Budget::pause`] asks for, during which the app's pipe fills and the app waits.
//!
//! The budget belongs to the part, not to a pipe or a process: both streams share it, and a restart does not renew it.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Lines that a part may write each second, for good.
pub const LINES: u64 = 10_000;
/// Bytes that a part may write each second, for good.
pub const BYTES: u64 = 8 << 20;
/// How many seconds' worth may come at once after a quiet time.
pub const RESERVE: u64 = 20;
/// The reserve of bytes: smaller, since the log keeps no more than a part of it.
const BYTES_AT_ONCE: u64 = 64 << 20;
/// How often at most the log says what was left out.
pub const SAID_EVERY: Duration = Duration::from_secs(1);
/// How often each second a part may have its pipes read: a byte at a time costs as much as a chunk.
const READS: u64 = 1_000;
/// How long nothing more is read once the budget is exceeded.
const PAUSE: Duration = Duration::from_millis(5);

/// A token bucket: refilled continuously, up to a limit.
#[derive(Debug, Clone)]
pub struct Bucket {
    a_second: u64,
    most: u64,
    /// What is left, in billionths of a token: so no refill is lost to rounding, however often it is asked.
    left: u128,
    at: Instant,
}

/// A [`Bucket`] that remembers what was more than it had.
#[derive(Debug)]
pub struct Rationed {
    bucket: Bucket,
    left_out: u64,
}

impl Rationed {
    /// By this bucket.
    #[must_use]
    pub fn by(bucket: Bucket) -> Self {
        let left_out = 0;
        Self { bucket, left_out }
    }

    /// How many of so many there is enough for; and how many there was not enough for since that was last said, if it is
    /// to be said before these.
    pub fn take(&mut self, all: u64, now: Instant) -> (u64, Option<u64>) {
        let taken = self.bucket.take(all, now);
        self.left_out += all - taken;
        let says = taken > 0 && self.left_out > 0;
        (taken, says.then(|| std::mem::take(&mut self.left_out)))
    }
}

/// Billionths in a whole.
const WHOLE: u128 = 1_000_000_000;

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(a_second: u64, most: u64, now: Instant) -> Self {
        Self {
            a_second,
            most,
            left: u128::from(most) * WHOLE,
            at: now,
        }
    }

    /// How much may be taken now.
    pub fn left(&mut self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        let refill = passed.saturating_mul(self.a_second.into());
        self.left = self
            .left
            .saturating_add(refill)
            .min(u128::from(self.most) * WHOLE);
        u64::try_from(self.left / WHOLE).unwrap_or(u64::MAX)
    }

    /// Takes up to `wanted`; how much there was.
    pub fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        let taken = self.left(now).min(wanted);
        self.left -= u128::from(taken) * WHOLE;
        taken
    }

    /// How long it takes until there is at least one.
    pub fn until_one(&mut self, now: Instant) -> Duration {
        if self.left(now) >= 1 {
            return Duration::ZERO;
        }
        let missing = WHOLE - self.left;
        let nanos = missing.div_ceil(u128::from(self.a_second.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What one part may have the supervisor make lines of, and what exceeded that.
#[derive(Debug)]
pub struct Budget {
    lines: Bucket,
    bytes: Bucket,
    reads: Bucket,
    left_out: LeftOut,
    total: LeftOut,
    said: Option<Instant>,
}

/// What was not made into lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Lines, also those that were left out in part.
    pub lines: u64,
    /// Bytes, line ends included.
    pub bytes: u64,
}

impl Budget {
    /// A full one.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            lines: Bucket::new(LINES, LINES * RESERVE, now),
            bytes: Bucket::new(BYTES, BYTES_AT_ONCE, now),
            reads: Bucket::new(READS, READS * RESERVE, now),
            left_out: LeftOut::default(),
            total: LeftOut::default(),
            said: None,
        }
    }

    /// How many bytes of `chunk` may be made into lines, which are taken from the budget.
    pub fn allows(&mut self, chunk: &[u8], now: Instant) -> usize {
        let bytes = usize::try_from(self.bytes.left(now)).unwrap_or(usize::MAX);
        let lines = self.lines.left(now);
        let affordable = &chunk[..chunk.len().min(bytes)];
        let mut ends = 0;
        let mut within = affordable.len();
        if lines == 0 {
            return 0;
        }
        for (index, _) in affordable.iter().enumerate().filter(|(_, b)| **b == b'\n') {
            ends += 1;
            if ends == lines {
                within = index + 1;
                break;
            }
        }
        self.bytes.take(within as u64, now);
        self.lines.take(ends, now);
        within
    }

    /// Counts what exceeded it.
    pub fn leave_out(&mut self, left_out: LeftOut) {
        for sum in [&mut self.left_out, &mut self.total] {
            sum.lines += left_out.lines;
            sum.bytes += left_out.bytes;
        }
    }

    /// What exceeded it since the stack came up.
    #[must_use]
    pub fn total(&self) -> LeftOut {
        self.total
    }

    /// How long to read nothing after a read, once the budget is exceeded.
    #[must_use]
    pub fn pause(&mut self, now: Instant) -> Option<Duration> {
        let spent = self.reads.take(1, now) == 0;
        (spent || self.left_out.bytes > 0).then_some(PAUSE)
    }

    /// How long until what was left out may be said; nothing when there is nothing to say.
    #[must_use]
    pub fn says_within(&self, now: Instant) -> Option<Duration> {
        let next = self.said.map_or(now, |said| said + SAID_EVERY);
        (self.left_out.bytes > 0).then(|| next.saturating_duration_since(now))
    }

    /// What was left out since it was last said, as a sentence, no more often than [`SAID_EVERY`]; at once if it is the
    /// `last` chance.
    pub fn say(&mut self, last: bool, now: Instant) -> Option<String> {
        let wait = self.says_within(now)?;
        if !wait.is_zero() && !last {
            return None;
        }
        self.said = Some(now);
        let LeftOut { lines, bytes } = std::mem::take(&mut self.left_out);
        Some(format!(
            "left out {lines} lines, {bytes} bytes: more than {LINES} lines or {BYTES} bytes a second"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, millis: u64) -> Instant {
        begin + Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_is_refilled_to_its_limit_and_loses_nothing_to_rounding() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(1000, 5, begin);
        assert_eq!(bucket.take(7, begin), 5);
        assert_eq!(bucket.until_one(begin), Duration::from_millis(1));
        // Asked ten times within a millisecond.
        for tenth in 1..=10 {
            bucket.left(begin + Duration::from_micros(100 * tenth));
        }
        assert_eq!(bucket.take(7, at(begin, 1)), 1);
        assert_eq!(bucket.left(at(begin, 60_000)), 5);
        // A clock that went back refills nothing, and doesn't panic.
        assert_eq!(bucket.left(begin), 5);
    }

    #[test]
    fn a_budget_allows_whole_lines_and_no_more_bytes_than_it_has() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        assert_eq!(budget.allows(b"one\ntwo\nthr", begin), 11);
        budget.lines = Bucket::new(LINES, 2, begin);
        assert_eq!(budget.allows(b"one\ntwo\nthree\n", begin), 8);
        assert_eq!(budget.allows(b"three\n", begin), 0);
        assert_eq!(budget.allows(b"thr", begin), 0);
        budget.lines = Bucket::new(LINES, 2, begin);
        budget.bytes = Bucket::new(BYTES, 5, begin);
        assert_eq!(budget.allows(b"one\ntwo\n", begin), 5);
        assert_eq!(budget.allows(b"o\n", begin), 0);
        // A tenth of a second later there is a tenth of what comes each second.
        let later = at(begin, 100);
        budget.lines = Bucket::new(LINES, LINES, begin);
        budget.lines.take(LINES, begin);
        budget.bytes = Bucket::new(BYTES, BYTES, begin);
        assert_eq!(budget.allows(&[b'\n'; 16 << 10], later), 1000);
    }

    #[test]
    fn what_was_left_out_is_said_once_a_second_and_at_the_end() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        assert_eq!(budget.pause(begin), None);
        assert_eq!(budget.say(true, begin), None);
        let three = LeftOut { lines: 3, bytes: 9 };
        budget.leave_out(three);
        assert_eq!(budget.pause(begin), Some(PAUSE));
        let said = budget.say(false, begin).unwrap();
        assert!(
            said.starts_with("left out 3 lines, 9 bytes: more than"),
            "{said}"
        );
        budget.leave_out(three);
        budget.leave_out(three);
        assert_eq!(budget.say(false, at(begin, 999)), None);
        assert_eq!(
            budget.says_within(at(begin, 999)),
            Some(Duration::from_millis(1))
        );
        let said = budget.say(false, at(begin, 1000)).unwrap();
        assert!(said.starts_with("left out 6 lines, 18 bytes"), "{said}");
        budget.leave_out(three);
        assert!(budget.say(true, at(begin, 1001)).is_some());
    }

    #[test]
    fn who_writes_byte_by_byte_is_read_a_thousand_times_a_second() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        let at_once = (0..).take_while(|_| budget.pause(begin).is_none()).count();
        assert_eq!(at_once as u64, READS * RESERVE);
        assert_eq!(budget.pause(at(begin, 1)), None);
        assert_eq!(budget.pause(at(begin, 1)), Some(PAUSE));
    }
}
