//! What one tenant's calls cost lately: whether its next one may begin on a data worker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

/// Long calls of one tenant under way beyond which its further calls do not begin on a data worker at all.
const LONG_CALLS_BEFORE_LANE: u32 = 4;
/// Slices that one tenant may use up on data workers in a second; beyond it its calls begin in the lane.
const LONG_SLICES_PER_SECOND: u32 = 16;

/// What one tenant's calls cost lately, over all its chains.
#[derive(Debug)]
pub(crate) struct TenantLoad {
    since: Instant,
    /// Its calls that have a seat in the slow lane. Counted by the seats themselves.
    pub(crate) long_calls: Arc<AtomicU32>,
    /// The second (since `since`) in the upper half, and in the lower the slices that were used up in it.
    long_slices: AtomicU64,
}

impl TenantLoad {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { since: Instant::now(), long_calls: Arc::default(), long_slices: AtomicU64::new(0) })
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() << 32
    }

    /// Its calls that have a seat in the slow lane.
    pub(crate) fn long_calls(&self) -> u32 {
        self.long_calls.load(Ordering::Acquire)
    }

    /// Whether a call may begin on a data worker.
    pub(crate) fn may_begin_inline(&self, long_calls: u32, now: Instant) -> bool {
        let slices = self.long_slices.load(Ordering::Relaxed);
        // No call was long in this second: the rule, told without a clock's arithmetic.
        slices == 0
            || long_calls < LONG_CALLS_BEFORE_LANE
                && (slices & !0xffff_ffff != self.second(now)
                    || slices & 0xffff_ffff < u64::from(LONG_SLICES_PER_SECOND))
    }

    pub(crate) fn used_up_a_slice(&self, now: Instant) {
        let second = self.second(now);
        // Two workers that count at once may lose one: this is a budget, not a balance.
        let slices = self.long_slices.load(Ordering::Relaxed);
        let count = if slices & !0xffff_ffff == second { slices & 0xffff_ffff } else { 0 };
        self.long_slices.store(second | (count + 1), Ordering::Relaxed);
    }
}
