//! Whose refused packets get a line: a source has some at once, and all sources together have some. The rest is counted, and
//! told of every ten seconds, so that a flood costs neither memory nor the log.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

/// How many sources have a bucket of their own; the rest share one.
const MOST_SOURCES: usize = 1 << 12;
/// How many lines a source may fill at once…
pub(super) const BURST: u32 = 10;
/// …and all sources together…
const BURST_OF_ALL: u32 = 200;
/// …and how many each second in the long run.
const PER_SECOND: u32 = 1;
/// As [`PER_SECOND`], of all sources together.
const PER_SECOND_OF_ALL: u32 = 50;
/// How many sources are named when it is told what has no line.
const NAMED: usize = 5;
/// How often that is told, in milliseconds.
const TOLD_EVERY: u64 = 10_000;

/// Fills by so many lines a second, up to so many.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In thousandths of a line.
    level: u32,
    /// When it was filled last, monotonic, in milliseconds.
    at: u64,
    /// What found it empty.
    suppressed: u64,
}

impl Bucket {
    fn full(lines: u32, at: u64) -> Self {
        Self {
            level: lines * 1000,
            at,
            suppressed: 0,
        }
    }

    fn take(&mut self, now: u64, per_second: u32, most: u32) -> bool {
        let more = now
            .saturating_sub(self.at)
            .saturating_mul(per_second.into());
        let level = u64::from(self.level).saturating_add(more);
        self.level = level.min(u64::from(most) * 1000) as u32;
        self.at = now;
        let enough = self.level >= 1000;
        if enough {
            self.level -= 1000;
        }
        enough
    }
}

/// See the module. Times are monotonic, in milliseconds.
#[derive(Debug)]
pub struct Lines {
    sources: HashMap<IpAddr, Bucket>,
    others: Bucket,
    all: Bucket,
    /// When it was told last what has no line.
    told: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            sources: HashMap::new(),
            others: Bucket::full(BURST, 0),
            all: Bucket::full(BURST_OF_ALL, 0),
            told: 0,
        }
    }
}

impl Lines {
    /// Whether what `source` was refused gets a line; else it is counted.
    pub fn take(&mut self, source: IpAddr, at: u64) -> bool {
        let room = self.sources.len() < MOST_SOURCES;
        let bucket = match self.sources.entry(source) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if room => new.insert(Bucket::full(BURST, at)),
            Entry::Vacant(_) => &mut self.others,
        };
        // The second is only asked when the first has some.
        let has = bucket.take(at, PER_SECOND, BURST)
            && self.all.take(at, PER_SECOND_OF_ALL, BURST_OF_ALL);
        bucket.suppressed += u64::from(!has);
        has
    }

    /// Whether there is something that [`Lines::left_out`] will tell, or forget.
    #[must_use]
    pub fn owes(&self) -> bool {
        !self.sources.is_empty() || self.others.suppressed > 0
    }

    /// How much had no line in the last ten seconds, by source, and, without one, of the rest; nothing before they are
    /// over. Sources that were quiet for that long are forgotten.
    pub fn left_out(&mut self, at: u64) -> Vec<(Option<IpAddr>, u64)> {
        if at.saturating_sub(self.told) < TOLD_EVERY {
            return vec![];
        }
        self.told = at;
        let mut left: Vec<(u64, IpAddr)> = vec![];
        self.sources.retain(|source, bucket| {
            let suppressed = std::mem::take(&mut bucket.suppressed);
            if suppressed > 0 {
                left.push((suppressed, *source));
            }
            suppressed > 0 || at.saturating_sub(bucket.at) < TOLD_EVERY
        });
        left.sort_unstable_by(|one, other| other.cmp(one));
        let unnamed = left.iter().skip(NAMED).map(|(packets, _)| packets);
        let rest = std::mem::take(&mut self.others.suppressed) + unnamed.sum::<u64>();
        let named = left.iter().take(NAMED);
        let named = named.map(|(packets, source)| (Some(*source), *packets));
        named.chain((rest > 0).then_some((None, rest))).collect()
    }
}
