//! What one tenant's calls cost lately: whether its next one may begin on a data worker.

use std::{
    cell::Cell,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    call::{SLICE, thread_cpu},
    reset::Node,
    ticker::TICK,
};

/// Calls in the lane of a tenant that owes, beyond which its further calls do not begin on a data worker.
pub(crate) const LONG_CALLS_BEFORE_LANE: u32 = 4;
/// Short calls that make up for a slice that was used up on a data worker. A tenant that owes some begins its calls there only below
/// [`LONG_CALLS_BEFORE_LANE`] and [`LONG_SLICES_OF_A_TENANT`], and one that owes for more than one slice only below
/// [`LONG_SLICES_OF_A_WORKER`], too.
pub(crate) const SHORT_FOR_LONG: u32 = 64;
/// Slices that one tenant may use up on data workers in a second while it owes.
pub(crate) const LONG_SLICES_OF_A_TENANT: u32 = 4;
/// Slices used up on one data worker in a second, by whomever, beyond which no tenant that owes for more than one begins calls there.
/// Each keeps it from others for 1 to 2 ms.
pub(crate) const LONG_SLICES_OF_A_WORKER: u32 = 8;
/// Slices that one stint counts as at most, and that a tenant owes for.
const MOST_SLICES: u32 = 64;
/// Stints of a tenant's calls whose CPU time is read, from each one on that took [`SLICE`] by the wall: the
/// machine may have stood still, or the call met no tick, for what it did in one go took long.
const WATCHED: u32 = 1024;
/// Such a stint that took so long counts as a slice, if nobody watched: else who knows when that is could do it as often as it likes.
const LONG: Duration = Duration::from_millis(2);

thread_local! {
    /// Slices that were used up on this thread.
    static USED_UP: Cell<Slices> = const { Cell::new(Slices(0)) };
}

/// A second in the upper half, and in the lower the slices that were used up in it.
#[derive(Clone, Copy, Debug, Default)]
struct Slices(u64);

impl Slices {
    /// Those of this second.
    fn in_second(self, second: u32) -> u32 {
        let (of, count) = ((self.0 >> 32) as u32, self.0 as u32);
        if of == second { count } else { 0 }
    }

    /// One that began in an earlier second, and ended after one of a later, counts in that.
    fn and(self, more: u32, second: u32) -> Self {
        let second = second.max((self.0 >> 32) as u32);
        Self(u64::from(second) << 32 | u64::from(self.in_second(second).saturating_add(more)))
    }
}

/// What one tenant's calls cost lately, over all its chains.
#[derive(Debug)]
pub(crate) struct TenantLoad {
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
    /// [`Slices`] that were used up on data workers.
    used_up: AtomicU64,
    /// Short calls that are to make up for these.
    owed: AtomicU32,
    /// Stints of its calls whose CPU time is to be read.
    watched: AtomicU32,
}

impl TenantLoad {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            long_calls: Arc::default(),
            waiting: AtomicU32::new(0),
            unseated: AtomicU32::new(0),
            pinned: AtomicU32::new(0),
            pins_refused: AtomicU64::new(0),
            reused: OnceLock::new(),
            used_up: AtomicU64::new(0),
            owed: AtomicU32::new(0),
            watched: AtomicU32::new(0),
        })
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
    fn in_lane(&self) -> u32 {
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

    /// Whether a call may begin on this data worker.
    pub(crate) fn may_begin_inline(&self, now: Instant) -> bool {
        // Of most tenants no call was ever long: told without a clock's arithmetic.
        self.owed.load(Ordering::Relaxed) == 0 || self.may_owe_more(second(now))
    }

    fn may_owe_more(&self, second: u32) -> bool {
        self.in_lane() < LONG_CALLS_BEFORE_LANE
            && self.used_up_in(second) < LONG_SLICES_OF_A_TENANT
            && (self.owed.load(Ordering::Relaxed) <= SHORT_FOR_LONG
                || USED_UP.get().in_second(second) < LONG_SLICES_OF_A_WORKER)
    }

    fn used_up_in(&self, second: u32) -> u32 {
        Slices(self.used_up.load(Ordering::Relaxed)).in_second(second)
    }

    /// A call's stint on a data worker begins.
    pub(crate) fn begins(&self, began: Instant) -> Stint<'_> {
        Stint { load: self, began, cpu: (self.watched.load(Ordering::Relaxed) > 0).then(thread_cpu) }
    }

    /// A call kept this data worker for so many slices. Two workers that count at once may lose one: this is a budget, not a balance.
    fn used_up(&self, now: Instant, slices: u32) {
        let (slices, second) = (slices.clamp(1, MOST_SLICES), second(now));
        let used_up = Slices(self.used_up.load(Ordering::Relaxed));
        self.used_up.store(used_up.and(slices, second).0, Ordering::Relaxed);
        USED_UP.set(USED_UP.get().and(slices, second));
        let owed = self.owed.load(Ordering::Relaxed) + slices * SHORT_FOR_LONG;
        self.owed.store(owed.min(MOST_SLICES * SHORT_FOR_LONG), Ordering::Relaxed);
    }

    /// A call was short, here or in the lane.
    pub(crate) fn was_short(&self) {
        let owed = self.owed.load(Ordering::Relaxed);
        // The last is owed until the second is over: its limit holds for whoever used up a slice in it.
        if owed > 1 || owed == 1 && self.used_up_in(second(Instant::now())) == 0 {
            self.owed.store(owed - 1, Ordering::Relaxed);
        }
    }
}

/// One stint of a call on a data worker, from where it is polled to where it is not ready or done.
pub(crate) struct Stint<'a> {
    load: &'a TenantLoad,
    began: Instant,
    /// CPU time of the thread when it began, where the tenant's calls are watched.
    cpu: Option<Duration>,
}

impl Stint<'_> {
    /// The stint is over, with this outcome.
    pub(crate) fn over(self, now: Instant, came_to: CameTo) {
        let wall = now.saturating_duration_since(self.began);
        if self.cpu.is_some() || wall >= SLICE {
            self.measured(wall, came_to);
        } else if came_to == CameTo::ItsEnd {
            self.load.was_short();
        }
    }

    /// Of a stint that was long by the wall, or is watched.
    fn measured(self, wall: Duration, came_to: CameTo) {
        let load = self.load;
        let watched = load.watched.load(Ordering::Relaxed);
        let watched = if wall >= SLICE { WATCHED } else { watched.saturating_sub(1) };
        load.watched.store(watched, Ordering::Relaxed);
        match self.cpu.map(|before| thread_cpu().saturating_sub(before)) {
            Some(cpu) if cpu >= TICK || cpu >= SLICE && came_to == CameTo::TheLane => {
                load.used_up(self.began, ticks(cpu));
            }
            Some(cpu) if cpu < SLICE && came_to == CameTo::ItsEnd => load.was_short(),
            None if wall >= LONG || came_to == CameTo::TheLane => load.used_up(self.began, 1),
            _ => {}
        }
    }
}

/// What a stint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CameTo {
    /// The call ended.
    ItsEnd,
    /// It waits for an answer from outside.
    Waiting,
    /// It goes on in the lane: it met a tick after its slice, or is to wait or to do there what takes long.
    TheLane,
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_nanos() / TICK.as_nanos()).unwrap_or(u32::MAX)
}

/// Of the time in which this process runs.
fn second(now: Instant) -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u32::try_from(now.saturating_duration_since(start).as_secs()).unwrap_or(u32::MAX)
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
    use super::*;

    /// After the first second has begun.
    fn now() -> Instant {
        second(Instant::now());
        Instant::now()
    }

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
        let (load, now) = (TenantLoad::new(), now());
        load.long_calls.store(LONG_CALLS_BEFORE_LANE, Ordering::Release);
        load.used_up(now, 1);
        assert!(!load.may_begin_inline(now));
        let waits = load.waits();
        assert!(load.may_begin_inline(now));
        drop(waits);
        assert_eq!(load.in_lane(), LONG_CALLS_BEFORE_LANE);
    }

    #[test]
    fn who_used_up_slices_goes_to_the_lane_until_the_second_is_over() {
        let (load, now) = (TenantLoad::new(), now());
        for _ in 0..LONG_SLICES_OF_A_TENANT {
            assert!(load.may_begin_inline(now));
            load.used_up(now, 1);
        }
        assert!(!load.may_begin_inline(now));
        assert!(load.may_begin_inline(now + Duration::from_secs(1)));
    }

    #[test]
    fn short_calls_make_up_for_slices_but_not_within_the_second() {
        let (load, now) = (TenantLoad::new(), now());
        let many = || (0..2 * LONG_SLICES_OF_A_TENANT * SHORT_FOR_LONG).for_each(|_| load.was_short());
        load.used_up(now, LONG_SLICES_OF_A_TENANT);
        many();
        assert!(!load.may_begin_inline(now) || second(Instant::now()) > second(now));
        // On a thread of its own, whose worker's count is an hour ahead then.
        let later = now + Duration::from_secs(3600);
        let is_refused = std::thread::scope(|scope| {
            let used = scope.spawn(|| {
                load.used_up(later, LONG_SLICES_OF_A_TENANT);
                !load.may_begin_inline(later)
            });
            used.join().unwrap()
        });
        assert!(is_refused);
        many();
        assert_eq!(load.owed.load(Ordering::Relaxed), 0, "this second is another");
    }

    /// A stint that took so much by the wall, and CPU time where that is read.
    fn stint(load: &TenantLoad, wall: Duration, cpu: Duration, came_to: CameTo) {
        let mut stint = load.begins(now());
        stint.cpu = stint.cpu.map(|_| thread_cpu().saturating_sub(cpu));
        let began = stint.began;
        stint.over(began + wall, came_to);
    }

    #[test]
    fn who_keeps_a_worker_for_long_without_a_tick_owes_for_all_of_it_and_for_a_machine_that_stood_still_once()
    {
        // Its thread has used some time, so that a stint may have.
        let began = thread_cpu();
        while thread_cpu() < began + Duration::from_millis(100) {}
        let load = TenantLoad::new();
        let slices = |n: u32| n * SHORT_FOR_LONG;
        let stands = || (load.owed.load(Ordering::Relaxed), load.watched.load(Ordering::Relaxed));
        stint(&load, Duration::ZERO, Duration::ZERO, CameTo::ItsEnd);
        assert_eq!(stands(), (0, 0));
        // Whether this one was the machine's or the call's own doing is not known.
        stint(&load, SLICE, Duration::ZERO, CameTo::ItsEnd);
        assert_eq!(stands(), (0, WATCHED));
        // The machine's. Where it was not watched, it would count once.
        stint(&load, Duration::from_secs(1), Duration::ZERO, CameTo::ItsEnd);
        assert_eq!(stands(), (0, WATCHED));
        stint(&load, Duration::ZERO, Duration::ZERO, CameTo::ItsEnd);
        assert_eq!(stands(), (0, WATCHED - 1));
        let other = TenantLoad::new();
        stint(&other, Duration::from_secs(1), Duration::ZERO, CameTo::ItsEnd);
        assert_eq!(other.owed.load(Ordering::Relaxed), slices(1));
        // Its own, whether it ended, waits, or goes on elsewhere.
        stint(&load, 3 * TICK, 3 * TICK, CameTo::ItsEnd);
        assert_eq!(stands(), (slices(3), WATCHED));
        stint(&load, 20 * TICK, 20 * TICK, CameTo::Waiting);
        assert_eq!(stands(), (slices(23), WATCHED));
        stint(&load, 29 * TICK, 29 * TICK, CameTo::TheLane);
        stint(&load, SLICE, SLICE, CameTo::TheLane);
        assert_eq!(stands(), (slices(53), WATCHED));
        stint(&load, 80 * TICK, 80 * TICK, CameTo::Waiting);
        assert_eq!(stands(), (slices(MOST_SLICES), WATCHED));
        // Not short, and not long.
        stint(&load, SLICE, SLICE, CameTo::ItsEnd);
        assert_eq!(stands(), (slices(MOST_SLICES), WATCHED));
        // Waiting is not short either: the call goes on.
        stint(&load, Duration::ZERO, Duration::ZERO, CameTo::Waiting);
        assert_eq!(stands(), (slices(MOST_SLICES), WATCHED - 1));
        stint(&load, Duration::ZERO, Duration::ZERO, CameTo::ItsEnd);
        assert_eq!(stands(), (slices(MOST_SLICES) - 1, WATCHED - 2));
        for _ in 0..WATCHED {
            stint(&load, Duration::ZERO, Duration::ZERO, CameTo::ItsEnd);
        }
        assert_eq!(stands().1, 0, "that was enough");
    }

    #[test]
    fn who_goes_to_the_lane_early_owes_nothing() {
        let load = TenantLoad::new();
        let owed = || load.owed.load(Ordering::Relaxed);
        stint(&load, Duration::ZERO, Duration::ZERO, CameTo::TheLane);
        assert_eq!(owed(), 0);
        stint(&load, Duration::from_secs(1), Duration::ZERO, CameTo::TheLane);
        assert_eq!(owed(), SHORT_FOR_LONG, "one slice, however long the machine took");
        // Now that it is watched, it is known that this was not its own.
        stint(&load, Duration::from_secs(1), Duration::ZERO, CameTo::TheLane);
        assert_eq!(owed(), SHORT_FOR_LONG);
    }

    #[test]
    fn many_tenants_together_use_up_few_slices_of_a_worker_and_who_owes_little_is_not_among_them() {
        let now = now();
        let loads: Vec<_> = (0..100).map(|_| TenantLoad::new()).collect();
        // Each may find out for itself that it is one whose calls are long.
        for load in &loads {
            for _ in 0..2 {
                assert!(load.may_begin_inline(now));
                load.used_up(now, 1);
            }
        }
        let next = now + Duration::from_secs(1);
        let begun = || {
            let mut begun = 0;
            for load in loads.iter().cycle().take(1_000) {
                if load.may_begin_inline(next) {
                    load.used_up(next, 1);
                    begun += 1;
                }
            }
            begun
        };
        assert_eq!(begun(), LONG_SLICES_OF_A_WORKER);
        let little = TenantLoad::new();
        for _ in 0..2 {
            assert!(little.may_begin_inline(next));
            little.used_up(next, 1);
        }
        assert!(!little.may_begin_inline(next), "that is no longer little");
        // Another worker has a budget of its own, if the tenants have.
        let there = std::thread::scope(|scope| scope.spawn(begun).join().unwrap());
        assert_eq!(there, LONG_SLICES_OF_A_WORKER);
    }
}
