//! Token buckets of one tenant.
//!
//! A bucket that is full is as good as none, so it is forgotten: what counts against the tenant's bound are buckets that
//! something was taken from lately.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use beamline_model::Limit;

use super::{
    expiring::Expiring,
    room::{self, Room},
};

/// The most bytes of a bucket's name and key together.
const MAX_KEY: usize = 256;
const MAX_TOKENS: u32 = 1_000_000;
/// A bucket larger than this limits nothing.
const MAX_BURST: u32 = 100_000;
/// A day: of a period, and until an empty bucket is full. So long is a bucket remembered.
const MAX_PERIOD_MS: u32 = 86_400_000;
/// What a bucket counts in the node's memory beside its names: its places in both tables, which grow by doubling, and its
/// allocation.
const BUCKET_COST: u64 = 256;

/// How a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) tokens: u32,
    pub(crate) period_ms: u32,
    pub(crate) burst: u32,
}

/// What became of a take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many whole tokens are left.
    Allowed(u32),
    /// They will be there after so long.
    RetryAfter(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BucketError {
    InvalidKey,
    InvalidRate,
    /// This limit is used up.
    TooManyKeys(Limit),
}

/// What was in a bucket, and when.
#[derive(Clone, Copy)]
struct Level {
    tokens: f64,
    at: Duration,
}

pub(crate) struct Buckets {
    levels: Expiring<Level>,
    node: &'static Room,
    count: AtomicU64,
    /// Bytes taken from `node`.
    used: AtomicU64,
}

impl Rate {
    fn is_valid(self) -> bool {
        (1..=MAX_TOKENS).contains(&self.tokens)
            && (1..=MAX_PERIOD_MS).contains(&self.period_ms)
            && (1..=MAX_BURST).contains(&self.burst)
            && u64::from(self.burst) * u64::from(self.period_ms)
                <= u64::from(self.tokens) * u64::from(MAX_PERIOD_MS)
    }

    /// Until so many tokens have come.
    fn time_for(self, tokens: f64) -> Duration {
        Duration::from_secs_f64(tokens * f64::from(self.period_ms) / f64::from(self.tokens) / 1000.0)
    }

    /// What a bucket has now that had `level`.
    fn filled(self, level: Level, now: Duration) -> f64 {
        let passed = now.saturating_sub(level.at).as_secs_f64() * 1000.0;
        let came = passed * f64::from(self.tokens) / f64::from(self.period_ms);
        (level.tokens + came).min(self.burst.into())
    }
}

impl Buckets {
    /// None yet. The memory of those that will be is taken from `node`.
    pub(crate) fn within(node: &'static Room) -> Self {
        Self { levels: Expiring::new(), node, count: AtomicU64::new(0), used: AtomicU64::new(0) }
    }

    /// Takes `tokens` from a key's bucket, where the tenant may have `most` buckets that are not full.
    pub(crate) fn take(
        &self,
        (bucket, key): (&str, &str),
        tokens: u32,
        rate: Rate,
        now: Duration,
        most: u64,
    ) -> Result<Taken, BucketError> {
        /// What rounding may lose of a token.
        const GRAIN: f64 = 1e-6;
        if bucket.len() + key.len() > MAX_KEY {
            return Err(BucketError::InvalidKey);
        }
        if !rate.is_valid() || tokens > rate.burst {
            return Err(BucketError::InvalidRate);
        }
        // By length, so that no two pairs are one name.
        let name = format!("{}:{bucket}{key}", bucket.len());
        loop {
            let mut shard = self.levels.shard(&name);
            shard.drop_expired(now, &mut |name, _| self.forget(name));
            let held = shard.get(&name, now).map(|(level, _)| *level);
            let filled = held.map_or_else(|| f64::from(rate.burst), |level| rate.filled(level, now));
            let left = filled - f64::from(tokens) + GRAIN;
            if left < 0.0 {
                let wait = rate.time_for(-left);
                return Ok(Taken::RetryAfter(Duration::from_millis(ceil_ms(wait))));
            }
            let left = (left - GRAIN).max(0.0);
            // What is taken from counts; what is full does not.
            if held.is_none()
                && let Err(limit) = self.remember(&name, most)
            {
                drop(shard);
                if self.levels.drop_expired(now, |name, _| self.forget(name)) {
                    continue;
                }
                return Err(BucketError::TooManyKeys(limit));
            }
            // Calls come here out of order; a moment that was counted is not counted again.
            let at = held.map_or(now, |level| now.max(level.at));
            let full_at = at + rate.time_for(f64::from(rate.burst) - left);
            let before = shard.insert(&name, Level { tokens: left, at }, Some(full_at));
            if held.is_none() && before.is_some() {
                // It was full again, and not forgotten yet.
                self.forget(&name);
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to a million"
            )]
            return Ok(Taken::Allowed((left + GRAIN) as u32));
        }
    }

    /// Takes room for one bucket more.
    ///
    /// # Errors
    /// The limit that leaves none.
    fn remember(&self, name: &str, most: u64) -> Result<(), Limit> {
        if !room::take(&self.count, 1, 0, most) {
            return Err(Limit::BucketKeys);
        }
        if !self.node.take(cost(name), 0) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(Limit::Kept);
        }
        self.used.fetch_add(cost(name), Ordering::Relaxed);
        Ok(())
    }

    /// Forgets all that are full.
    pub(crate) fn sweep(&self, now: Duration) {
        self.levels.sweep(now, |name, _| self.forget(name));
    }

    fn forget(&self, name: &str) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.used.fetch_sub(cost(name), Ordering::Relaxed);
        self.node.give_back(cost(name));
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        self.node.give_back(*self.used.get_mut());
    }
}

fn cost(name: &str) -> u64 {
    name.len() as u64 + BUCKET_COST
}

fn ceil_ms(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { tokens: 10, period_ms: 1000, burst: 5 };

    fn node(bytes: u64) -> &'static Room {
        Box::leak(Box::new(Room::of(bytes)))
    }

    fn new() -> Buckets {
        Buckets::within(node(1 << 20))
    }

    #[test]
    fn all_tenants_buckets_take_no_more_memory_than_the_node_has_room_for() {
        // The names are written with their length before them.
        let node = node(2 * cost("1:bk"));
        let (first, second) = (Buckets::within(node), Buckets::within(node));
        assert_eq!(take(&first, "1", 1, 0), Ok(Taken::Allowed(4)));
        assert_eq!(take(&second, "1", 1, 0), Ok(Taken::Allowed(4)));
        assert_eq!(take(&second, "2", 1, 0), Err(BucketError::TooManyKeys(Limit::Kept)));
        assert_eq!(take(&second, "1", 1, 0), Ok(Taken::Allowed(3)), "those that are there go on");
        assert_eq!(take(&second, "2", 1, 200), Ok(Taken::Allowed(4)), "its own is full again");
        drop(first);
        assert_eq!(take(&second, "3", 1, 200), Ok(Taken::Allowed(4)));
        assert_eq!(node.used(), 2 * cost("1:bk"));
        drop(second);
        assert_eq!(node.used(), 0);
    }

    #[test]
    fn full_buckets_of_a_tenant_that_is_idle_make_room_for_others() {
        let node = node(2 * cost("1:bk"));
        let (idle, other) = (Buckets::within(node), Buckets::within(node));
        assert_eq!(take(&idle, "1", 1, 0), Ok(Taken::Allowed(4)));
        assert_eq!(take(&idle, "2", 5, 0), Ok(Taken::Allowed(0)));
        assert_eq!(take(&other, "1", 1, 100), Err(BucketError::TooManyKeys(Limit::Kept)));
        idle.sweep(at(100));
        assert_eq!(take(&other, "1", 1, 100), Ok(Taken::Allowed(4)));
        assert_eq!(take(&idle, "2", 2, 100), retry(100), "what is not full is remembered");
    }

    fn at(ms: u64) -> Duration {
        Duration::from_secs(1000) + Duration::from_millis(ms)
    }

    fn take(buckets: &Buckets, key: &str, tokens: u32, now: u64) -> Result<Taken, BucketError> {
        buckets.take(("b", key), tokens, RATE, at(now), 3)
    }

    fn retry(ms: u64) -> Result<Taken, BucketError> {
        Ok(Taken::RetryAfter(Duration::from_millis(ms)))
    }

    #[test]
    fn a_burst_goes_through_then_the_rate_counts() {
        let buckets = new();
        for left in (0..5).rev() {
            assert_eq!(take(&buckets, "k", 1, 0), Ok(Taken::Allowed(left)));
        }
        assert_eq!(take(&buckets, "k", 1, 0), retry(100));
        assert_eq!(take(&buckets, "k", 3, 50), retry(250), "all or none");
        assert_eq!(take(&buckets, "k", 1, 99), retry(1));
        assert_eq!(take(&buckets, "k", 1, 100), Ok(Taken::Allowed(0)));
        assert_eq!(take(&buckets, "k", 0, 100), Ok(Taken::Allowed(0)));
        assert_eq!(take(&buckets, "k", 5, 100 + 500), Ok(Taken::Allowed(0)), "what came by then, never more");
        assert_eq!(take(&buckets, "other", 5, 600), Ok(Taken::Allowed(0)), "a key of its own");
    }

    #[test]
    fn in_the_long_run_no_more_than_the_rate_goes_through() {
        let (buckets, mut allowed) = (new(), 0);
        for now in 0..10_000 {
            allowed += u32::from(matches!(take(&buckets, "k", 1, now), Ok(Taken::Allowed(_))));
        }
        assert!((103..=105).contains(&allowed), "{allowed} of a burst of 5 and 100 in ten seconds");
    }

    #[test]
    fn a_call_that_comes_late_makes_no_time_count_twice() {
        let buckets = new();
        assert_eq!(take(&buckets, "k", 5, 0), Ok(Taken::Allowed(0)));
        assert_eq!(take(&buckets, "k", 3, 400), Ok(Taken::Allowed(1)));
        assert_eq!(take(&buckets, "k", 1, 100), Ok(Taken::Allowed(0)), "it began before the other");
        assert_eq!(take(&buckets, "k", 1, 400), retry(100));
    }

    #[test]
    fn a_rate_may_change_and_what_is_in_the_bucket_stays() {
        let buckets = new();
        assert_eq!(take(&buckets, "k", 5, 0), Ok(Taken::Allowed(0)));
        let faster = Rate { tokens: 1000, period_ms: 1000, burst: 50 };
        let fast = |now| buckets.take(("b", "k"), 20, faster, at(now), 3);
        assert_eq!((fast(0), fast(20)), (retry(20), Ok(Taken::Allowed(0))));
    }

    #[test]
    fn what_never_fits_is_refused() {
        let buckets = new();
        assert_eq!(take(&buckets, "k", 6, 0), Err(BucketError::InvalidRate));
        assert_eq!(take(&buckets, &"k".repeat(256), 1, 0), Err(BucketError::InvalidKey));
        for rate in [
            Rate { tokens: 0, ..RATE },
            Rate { period_ms: 0, ..RATE },
            Rate { burst: 0, ..RATE },
            Rate { burst: 100_001, ..RATE },
            Rate { tokens: 1, period_ms: 86_400_000, burst: 2 },
            Rate { period_ms: 86_400_001, ..RATE },
        ] {
            assert_eq!(
                buckets.take(("b", "k"), 0, rate, at(0), 3),
                Err(BucketError::InvalidRate),
                "{rate:?}"
            );
        }
    }

    #[test]
    fn keys_are_bounded_and_full_buckets_are_forgotten() {
        let buckets = new();
        for key in ["1", "2", "3"] {
            assert_eq!(take(&buckets, key, 1, 0), Ok(Taken::Allowed(4)));
        }
        assert_eq!(take(&buckets, "4", 1, 99), Err(BucketError::TooManyKeys(Limit::BucketKeys)));
        assert_eq!(take(&buckets, "3", 1, 99), Ok(Taken::Allowed(3)), "those that are there go on");
        assert_eq!(take(&buckets, "4", 1, 100), Ok(Taken::Allowed(4)), "1 and 2 are full again");
        assert_eq!(take(&buckets, "5", 1, 100), Ok(Taken::Allowed(4)));
        assert_eq!(take(&buckets, "6", 1, 100), Err(BucketError::TooManyKeys(Limit::BucketKeys)));
        assert_eq!(buckets.count.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn the_reference_page_tells_the_bounds() {
        let page = include_str!("../../../../docs/reference/limits.md");
        let row = page.lines().find(|line| line.contains("| a token bucket |")).unwrap();
        assert!(row.contains("256 bytes") && row.contains("100,000") && row.contains("a day"), "{row}");
        assert_eq!((MAX_KEY, MAX_BURST, MAX_PERIOD_MS), (256, 100_000, 24 * 3_600_000));
    }

    #[test]
    fn a_pair_of_names_is_not_another_pair() {
        let buckets = new();
        let take = |bucket, key| buckets.take((bucket, key), 5, RATE, at(0), 3);
        assert_eq!(take("ab", "c"), Ok(Taken::Allowed(0)));
        assert_eq!(take("a", "bc"), Ok(Taken::Allowed(0)));
        assert_eq!(take("ab", "c"), retry(500));
    }
}
