//! How long to wait after a failure: full jitter under a ceiling that doubles.

use std::time::Duration;

/// The first ceiling of both a record's and a lane's back-off.
const BASE: Duration = Duration::from_secs(1);
/// No back-off is shorter, however the dice fall.
const FLOOR: Duration = Duration::from_millis(100);
/// The highest ceiling for a record that its origin refuses.
pub(super) const RECORD_CEILING: Duration = Duration::from_secs(5 * 60);
/// The highest ceiling between probes of an upstream: its recovery is noticed that soon.
pub(super) const PROBE_CEILING: Duration = Duration::from_secs(5);
/// What a `Retry-After` is clamped to.
pub(super) const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// The longest that a `Retry-After` can hold up a whole upstream.
pub(super) const LANE_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Randomness from a seed (SplitMix64): delivery is the same for the same seed and events.
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any number below `bound`, or 0 where there is none.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    /// After the `failures`-th failure in a row, from 1: evenly between 0.1 s and the lesser of 1 s · 2^(failures − 1) and `highest`.
    pub(super) fn backoff(&mut self, failures: u32, highest: Duration) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let ceiling = (BASE * (1 << doublings)).min(highest);
        let span = u64::try_from((ceiling - FLOOR).as_millis()).expect("minutes fit");
        FLOOR + Duration::from_millis(self.next() % (span + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_backoff_stays_between_its_floor_and_its_ceiling(seed: u64, failures in 1_u32..200) {
            let backoff = Jitter::new(seed).backoff(failures, RECORD_CEILING);
            prop_assert!(backoff >= FLOOR && backoff <= RECORD_CEILING);
            if failures == 1 {
                prop_assert!(backoff <= BASE);
            }
        }
    }

    #[test]
    fn backoffs_are_spread_and_grow() {
        let mut jitter = Jitter::new(7);
        let mean = |jitter: &mut Jitter, failures| {
            (0..1000).map(|_| jitter.backoff(failures, RECORD_CEILING).as_millis()).sum::<u128>() / 1000
        };
        assert!((500..600).contains(&mean(&mut jitter, 1)));
        assert!((140_000..160_000).contains(&mean(&mut jitter, 30)));
    }
}
