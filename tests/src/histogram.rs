//! A log-linear histogram of durations: constant memory, no allocation per value, each value kept to within 1.6%.

use std::time::Duration;

/// Sub-buckets per power of two; the relative error is at most one part in 64.
const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
/// Covers every `u64` number of nanoseconds.
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

/// Counts of durations.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, max: 0 }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < SUB {
        return ns as usize;
    }
    let shift = ns.ilog2() - SUB_BITS;
    (((shift as u64 + 1) << SUB_BITS) + ((ns >> shift) - SUB)) as usize
}

/// The highest number that falls in a bucket: what a percentile reports, so that it never flatters.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    let low = (SUB + (bucket & (SUB - 1))) << shift;
    low + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, value: Duration) {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max = self.max.max(ns);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.total += other.total;
        self.max = self.max.max(other.max);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest, exactly; zero where there is none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The duration that `percent` of the values don't exceed; zero where there is none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = ((self.total as f64 * percent / 100.0).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Duration::from_nanos(upper(i).min(self.max));
            }
        }
        Duration::ZERO
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |p| self.percentile(p);
        write!(
            f,
            "{} values, p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, max {:.1?}",
            self.total,
            at(50.0),
            at(90.0),
            at(99.0),
            at(99.9),
            self.max()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_in_a_bucket_that_reports_it_within_two_percent() {
        let mut seed = crate::seed::Seed::new(1);
        for _ in 0..100_000 {
            let shift = seed.within(0..64);
            let ns = seed.bits() >> shift;
            let reported = upper(bucket(ns));
            assert!(reported >= ns && (reported - ns) as f64 <= ns as f64 / 64.0 + 1.0, "{ns} → {reported}");
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut all = Histogram::default();
        (1..=1000u64).for_each(|ms| all.record(Duration::from_millis(ms)));
        let near = |p: f64, ms: u128| (ms..=ms + ms / 50).contains(&all.percentile(p).as_millis());
        assert!(near(50.0, 500) && near(99.0, 990) && near(99.9, 999), "{all:?}");
        assert_eq!(all.percentile(100.0), Duration::from_secs(1));
        assert_eq!(Histogram::default().percentile(99.0), Duration::ZERO);
    }
}
