//! When a part that has ended is started again, and when no more. Pure.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::RestartLimit;

/// A part that ends again and again is started again after this pause, doubled each time…
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// …up to this one…
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// …and from the first one again when it has run for this long.
const STEADY: Duration = Duration::from_secs(10);

/// How a part that ends has fared of late.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// How often it was started again since it last ran steadily.
    in_a_row: u32,
    /// When, within the window of its limit: no more than that allows.
    starts: VecDeque<Instant>,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is started again after this time.
    Again(Duration),
    /// It is not: it has been, this often.
    GiveUp(u32),
}

impl Backoff {
    /// It has ended by itself, at `now`, having run for so long.
    pub(super) fn ended(
        &mut self,
        ran: Duration,
        now: Instant,
        limit: Option<RestartLimit>,
    ) -> Next {
        if ran >= STEADY {
            self.in_a_row = 0;
        }
        let doubled = 2_u32.saturating_pow(self.in_a_row);
        let pause = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
        if let Some(limit) = limit {
            let recent = match limit.window {
                None => self.in_a_row,
                Some(window) => {
                    let old = |start: &Instant| now.saturating_duration_since(*start) >= window;
                    while self.starts.front().is_some_and(old) {
                        self.starts.pop_front();
                    }
                    u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
                }
            };
            if recent >= limit.max {
                return Next::GiveUp(recent);
            }
            if limit.window.is_some() {
                self.starts.push_back(now);
            }
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        Next::Again(pause)
    }

    /// How often it was started again without running steadily; it runs for so long by now.
    pub(super) fn in_a_row(&self, runs: Duration) -> u32 {
        if runs >= STEADY { 0 } else { self.in_a_row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    fn pauses(limit: Option<RestartLimit>, ran: &[u64], apart: u64) -> Vec<String> {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let next = ran.iter().map(|ran| {
            now += Duration::from_secs(apart);
            match backoff.ended(Duration::from_secs(*ran), now, limit) {
                Next::Again(pause) => pause.as_millis().to_string(),
                Next::GiveUp(times) => format!("gives up after {times}"),
            }
        });
        next.collect()
    }

    #[test]
    fn the_pause_grows_until_the_part_has_run_steadily() {
        let ten = [0; 10];
        let grows = [
            "100", "200", "400", "800", "1600", "3200", "6400", "10000", "10000", "10000",
        ];
        assert_eq!(pauses(None, &ten, 1), grows);
        assert_eq!(
            pauses(None, &[0, 9, 0, 10, 0], 1),
            ["100", "200", "400", "100", "200"]
        );
        assert_eq!(
            pauses(None, &[0; 100], 1).last().map(String::as_str),
            Some("10000")
        );
    }

    #[test]
    fn a_limit_is_one_in_a_row_or_within_its_window() {
        let limit = |max, window: Option<u64>| {
            let window = window.map(Duration::from_secs);
            Some(RestartLimit { max, window })
        };
        type Case<'c> = (Option<RestartLimit>, &'c [u64], u64, &'c [&'c str]);
        let cases: [Case<'_>; 6] = [
            (limit(0, None), &[0], 1, &["gives up after 0"]),
            (
                limit(2, None),
                &[0; 3],
                1,
                &["100", "200", "gives up after 2"],
            ),
            // What has run steadily begins anew…
            (
                limit(2, None),
                &[0, 0, 10, 0, 0],
                1,
                &["100", "200", "100", "200", "gives up after 2"],
            ),
            // …but not within a window.
            (
                limit(2, Some(60)),
                &[10, 10, 10],
                11,
                &["100", "100", "gives up after 2"],
            ),
            // The window moves.
            (limit(2, Some(60)), &[0, 0, 0], 30, &["100", "200", "400"]),
            (
                limit(2, Some(61)),
                &[0, 0, 0],
                30,
                &["100", "200", "gives up after 2"],
            ),
        ];
        for (limit, ran, apart, expected) in cases {
            assert_eq!(pauses(limit, ran, apart), expected, "{limit:?}");
        }
    }

    #[test]
    fn a_window_costs_no_more_than_its_limit() {
        let limit = RestartLimit {
            max: 3,
            window: Some(Duration::from_secs(3600)),
        };
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..1000 {
            backoff.ended(AT_ONCE, now, Some(limit));
        }
        assert_eq!(backoff.starts.len(), 3);
        assert_eq!(backoff.in_a_row(AT_ONCE), 3);
        assert_eq!(backoff.in_a_row(STEADY), 0);
    }
}
