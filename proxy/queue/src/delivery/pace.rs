//! Keeps deliveries to an upstream to a rate: a bucket that fills with time and gives one delivery at a time.
//!
//! It holds what a tenth of a second brings, and one delivery at least. So in `t` seconds no more begin than that and
//! `t` times the rate.

use crate::rate::Rate;

/// Of a delivery, so that a millisecond brings a whole number of them.
const THOUSANDTHS: u64 = 1000;

#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    /// In thousandths of a delivery.
    level: u64,
    /// As of when, in monotonic milliseconds.
    at: i64,
}

impl Pace {
    /// A full bucket.
    pub(super) fn new(rate: Rate, now: i64) -> Self {
        let mut pace = Self { rate, level: u64::MAX, at: now };
        pace.fill(now);
        pace
    }

    /// Another rate from now on; what was taken stays taken.
    pub(super) fn change(&mut self, rate: Rate, now: i64) {
        self.fill(now);
        self.rate = rate;
        self.fill(now);
    }

    fn fill(&mut self, now: i64) {
        let passed = u64::try_from(now.saturating_sub(self.at)).unwrap_or(0);
        let brought = passed.saturating_mul(self.rate.per_second().into());
        let most = THOUSANDTHS * u64::from(self.rate.per_second().div_ceil(10));
        self.level = self.level.saturating_add(brought).min(most);
        self.at = self.at.max(now);
    }

    /// When the next delivery may begin.
    pub(super) fn open_at(&self) -> i64 {
        let lacking = THOUSANDTHS.saturating_sub(self.level);
        let wait = lacking.div_ceil(self.rate.per_second().into());
        self.at.saturating_add(i64::try_from(wait).expect("a second at most"))
    }

    /// A delivery begins.
    pub(super) fn take(&mut self, now: i64) {
        self.fill(now);
        self.level = self.level.saturating_sub(THOUSANDTHS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many begin from `from` until `until`, where there is always one that wants to.
    fn begun(pace: &mut Pace, from: i64, until: i64) -> usize {
        (from..until)
            .map(|now| {
                let mut begun = 0;
                while pace.open_at() <= now {
                    pace.take(now);
                    begun += 1;
                }
                begun
            })
            .sum()
    }

    #[test]
    fn no_more_begin_than_the_rate_and_a_tenth_of_a_second() {
        for (rate, burst) in [(1, 1), (5, 1), (25, 3), (400, 40), (10_000, 1000)] {
            let mut pace = Pace::new(rate.try_into().unwrap(), 0);
            assert_eq!(begun(&mut pace, 0, 1), burst, "{rate}/s");
            let more = begun(&mut pace, 1, 10_001);
            assert_eq!(more, 10 * rate as usize, "{rate}/s");
            // An hour of rest brings no more than the bucket holds.
            assert_eq!(begun(&mut pace, 3_600_000, 3_600_001), burst, "{rate}/s");
        }
    }

    #[test]
    fn another_rate_counts_from_its_change_on() {
        let mut pace = Pace::new(1.try_into().unwrap(), 0);
        assert_eq!(begun(&mut pace, 0, 5000), 5);
        pace.change(100.try_into().unwrap(), 5000);
        assert_eq!(begun(&mut pace, 5000, 6000), 100);
        pace.change(1.try_into().unwrap(), 6000);
        assert!(begun(&mut pace, 6000, 9000) <= 4);
    }
}
