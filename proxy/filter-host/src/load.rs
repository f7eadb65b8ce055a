//! What one tenant's calls cost lately: whether its next one may begin on a data worker.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::reset::Node;

/// Calls of one tenant in the lane beyond which its further calls do not begin on a data worker at all.
const LONG_CALLS_BEFORE_LANE: u32 = 4;
/// Slices that one tenant may use up on data workers in a second; beyond it its calls begin in the lane.
const LONG_SLICES_PER_SECOND: u32 = 16;

/// What one tenant's calls cost lately, over all its chains.
#[derive(Debug)]
pub(crate) struct TenantLoad {
    since: Instant,
    /// Its calls that have a seat. Counted by the seats themselves.
    pub(crate) long_calls: Arc<AtomicU32>,
    /// Of these, those that wait on data workers for an answer from outside.
    waiting: AtomicU32,
    /// Its calls that have begun, and wait for a seat before they send a request.
    unseated: AtomicU32,
    /// Instances that its requests hold.
    pub(crate) pinned: AtomicU32,
    /// Calls that were refused because there was no room for one more.
    pub(crate) pins_refused: AtomicU64,
    /// Its share of the instances that wait for their filter's next request; made with the first of them.
    reused: OnceLock<Arc<Node>>,
    /// The second (since `since`) in the upper half, and in the lower the slices that were used up in it.
    long_slices: AtomicU64,
}

impl TenantLoad {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            long_calls: Arc::default(),
            waiting: AtomicU32::new(0),
            unseated: AtomicU32::new(0),
            pinned: AtomicU32::new(0),
            pins_refused: AtomicU64::new(0),
            reused: OnceLock::new(),
            long_slices: AtomicU64::new(0),
        })
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() << 32
    }

    /// Its share of what the node has for instances that wait.
    pub(crate) fn reused(&self, node: &Node) -> &Arc<Node> {
        self.reused.get_or_init(|| node.share())
    }

    /// Its calls that have a seat.
    pub(crate) fn long_calls(&self) -> u32 {
        self.long_calls.load(Ordering::Acquire)
    }

    /// Its calls that have a seat and do not wait on a data worker.
    pub(crate) fn in_lane(&self) -> u32 {
        self.long_calls().saturating_sub(self.waiting.load(Ordering::Acquire))
    }

    /// Marks a call that waits on a data worker for an answer from outside.
    pub(crate) fn waits(&self) -> Mark<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Mark(&self.waiting)
    }

    /// Marks a call that has begun and wants a seat. None where as many do already as may: each holds an instance.
    pub(crate) fn wants_a_seat<'a>(&'a self, node: &'a Unseated) -> Option<[Mark<'a>; 2]> {
        Some([marked_within(&self.unseated, node.most_of_a_tenant)?, marked_within(&node.calls, node.most)?])
    }

    /// Whether a call may begin on a data worker.
    pub(crate) fn may_begin_inline(&self, in_lane: u32, now: Instant) -> bool {
        let slices = self.long_slices.load(Ordering::Relaxed);
        // No call of the tenant was ever long: the rule, told without a clock's arithmetic.
        slices == 0
            || in_lane < LONG_CALLS_BEFORE_LANE
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

/// Calls of all tenants that have begun, hold an instance and wait for the seat without which they send no request.
#[derive(Debug)]
pub(crate) struct Unseated {
    calls: AtomicU32,
    most: u32,
    most_of_a_tenant: u32,
}

impl Unseated {
    /// Within a pool of so many instances, of which those with seats may have three quarters: half of the rest stays free for
    /// calls that end within their slice, and it takes several tenants to use the other half up.
    pub(crate) fn within(instances: u32) -> Self {
        let of_pool = |part: u32| (instances / part).max(1);
        Self { calls: AtomicU32::new(0), most: of_pool(8), most_of_a_tenant: of_pool(32) }
    }
}

fn marked_within(count: &AtomicU32, most: u32) -> Option<Mark<'_>> {
    let before = count.fetch_add(1, Ordering::AcqRel);
    let mark = Mark(count);
    (before < most).then_some(mark)
}

/// A call's mark on a count, gone when it is dropped.
pub(crate) struct Mark<'a>(&'a AtomicU32);

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_so_many_calls_hold_an_instance_and_no_seat() {
        // Of a tenant two, of all eight.
        let (node, loads) = (Unseated::within(64), [(); 5].map(|()| TenantLoad::new()));
        let mut marks = Vec::new();
        for load in &loads[..4] {
            marks.push(load.wants_a_seat(&node).unwrap());
            marks.push(load.wants_a_seat(&node).unwrap());
            assert!(load.wants_a_seat(&node).is_none());
        }
        assert!(loads[4].wants_a_seat(&node).is_none(), "one that has none, either");
        marks.remove(0);
        assert!(loads[1].wants_a_seat(&node).is_none());
        assert!(loads[4].wants_a_seat(&node).is_some());
        drop(marks);
        assert_eq!(node.calls.load(Ordering::Acquire), 0);
    }

    #[test]
    fn who_waits_is_not_in_the_lane() {
        let load = TenantLoad::new();
        load.long_calls.store(LONG_CALLS_BEFORE_LANE, Ordering::Release);
        load.used_up_a_slice(load.since);
        assert!(!load.may_begin_inline(load.in_lane(), load.since));
        let waits = load.waits();
        assert!(load.may_begin_inline(load.in_lane(), load.since));
        drop(waits);
        assert_eq!(load.in_lane(), LONG_CALLS_BEFORE_LANE);
    }

    #[test]
    fn who_used_up_many_slices_goes_to_the_lane_until_the_second_is_over() {
        let load = TenantLoad::new();
        for _ in 0..LONG_SLICES_PER_SECOND {
            assert!(load.may_begin_inline(0, load.since));
            load.used_up_a_slice(load.since);
        }
        assert!(!load.may_begin_inline(0, load.since));
        assert!(load.may_begin_inline(0, load.since + Duration::from_secs(1)));
    }
}
