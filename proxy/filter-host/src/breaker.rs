//! The breaker of one module of one tenant: out after repeated failures, back by itself.
//!
//! A filter that only ever fails costs its tenant's requests the time of every failing call, and the node the work.
//! So after enough failures in a window it is left out: its calls fail at once, as its `on_error` says.
//!
//! - closed: every call runs. [`Settings::failures`] of them failing within [`Settings::window`], and these being at
//!   least [`Settings::percent`] of the calls since the first of them, open it; but not before [`Settings::settle`] has
//!   gone by since then, so that calls that happen to fail together don't decide alone.
//! - open: no call runs until the back-off ends.
//! - half-open: one call runs as the trial. Its success closes the breaker, its failure opens it for twice as long. A
//!   trial that ends undecided (its client went away) makes room for the next.
//!
//! What was begun before it opened decides nothing afterwards. [`Machine`] is pure: time comes with each call.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Failures within the window that open it.
    failures: u32,
    /// The share of the window's calls that these must be at least.
    percent: u64,
    /// How long after the first of these it opens at the soonest.
    settle: Duration,
    /// How long failures count, from the first on.
    window: Duration,
    /// How long it stays open the first time.
    backoff: Duration,
    /// The most that doubling leads to. One that opens again within this time of its last closing goes on doubling.
    backoff_max: Duration,
    /// After this, a trial that was not heard of again no longer bars the next.
    trial_lease: Duration,
}

/// A module's breaker. The documentation of limits repeats these figures.
pub(crate) const SETTINGS: Settings = Settings {
    failures: 20,
    percent: 50,
    settle: Duration::from_secs(1),
    window: Duration::from_secs(10),
    backoff: Duration::from_secs(1),
    backoff_max: Duration::from_secs(60),
    trial_lease: Duration::from_secs(10),
};

/// Failures of one window that are told one by one; the rest is counted.
const TOLD: u32 = 10;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Runs,
    Trial,
    /// It is left out, as all are for this long.
    LeftOut(Duration),
}

/// What an outcome changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// It opened: the filter is left out.
    Opened {
        /// For how long.
        backoff: Duration,
        /// Failures that led to it.
        failures: u32,
    },
    /// It closed: the filter runs again.
    Closed,
}

/// Where a breaker stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// The filter runs.
    Closed,
    /// It is left out for so long.
    Open(Duration),
    /// One call is tried, or the next will be.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `since` the first failure that counts; none after the window's end.
    Closed {
        since: Option<Duration>,
        calls: u32,
        failures: u32,
    },
    Open {
        until: Duration,
    },
    Trial {
        until: Duration,
    },
}

#[derive(Debug)]
struct Machine {
    settings: Settings,
    state: State,
    /// How often it opened since it last stayed closed.
    opened: u32,
    /// When it last closed.
    closed_at: Option<Duration>,
}

const CALM: State = State::Closed { since: None, calls: 0, failures: 0 };

impl Machine {
    fn new(settings: Settings) -> Self {
        Self { settings, state: CALM, opened: 0, closed_at: None }
    }

    fn admit(&mut self, now: Duration) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Runs,
            State::Open { until } | State::Trial { until } if now < until => Admission::LeftOut(until - now),
            State::Open { .. } | State::Trial { .. } => {
                self.state = State::Trial { until: now + self.settings.trial_lease };
                Admission::Trial
            }
        }
    }

    /// The failures of the window, this one with them; none where it does not count.
    fn failed(&mut self, trial: bool, now: Duration) -> (u32, Option<BreakerChange>) {
        if trial {
            return match self.state {
                State::Trial { .. } => (1, Some(self.open(now, 1))),
                _ => (1, None),
            };
        }
        let State::Closed { since, calls, failures } = self.state else { return (u32::MAX, None) };
        let (since, calls, failures) = match since {
            Some(since) if now.saturating_sub(since) < self.settings.window => {
                (since, calls.saturating_add(1), failures.saturating_add(1))
            }
            _ => (now, 1, 1),
        };
        self.state = State::Closed { since: Some(since), calls, failures };
        let enough = failures >= self.settings.failures
            && u64::from(failures) * 100 >= u64::from(calls) * self.settings.percent
            && now.saturating_sub(since) >= self.settings.settle;
        (failures, enough.then(|| self.open(now, failures)))
    }

    fn succeeded(&mut self, trial: bool, now: Duration) -> Option<BreakerChange> {
        match &mut self.state {
            State::Trial { .. } if trial => {
                self.state = CALM;
                self.closed_at = Some(now);
                Some(BreakerChange::Closed)
            }
            State::Closed { since: Some(since), calls, .. } => {
                if now.saturating_sub(*since) < self.settings.window {
                    *calls = calls.saturating_add(1);
                } else {
                    self.state = CALM;
                }
                None
            }
            _ => None,
        }
    }

    /// A trial that decided nothing: the next call may be one at once.
    fn undecided(&mut self, now: Duration) {
        if let State::Trial { .. } = self.state {
            self.state = State::Open { until: now };
        }
    }

    fn open(&mut self, now: Duration, failures: u32) -> BreakerChange {
        let Settings { backoff, backoff_max, .. } = self.settings;
        if self.closed_at.is_some_and(|at| now.saturating_sub(at) >= backoff_max) {
            self.opened = 0;
        }
        let factor = 1_u32.checked_shl(self.opened).unwrap_or(u32::MAX);
        let backoff = backoff.saturating_mul(factor).min(backoff_max);
        self.opened = self.opened.saturating_add(1);
        self.closed_at = None;
        self.state = State::Open { until: now + backoff };
        BreakerChange::Opened { backoff, failures }
    }

    /// Whether a success changes nothing, and every call runs.
    fn is_calm(&self) -> bool {
        self.state == CALM
    }

    fn shown(&self, now: Duration) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open(until - now),
            State::Open { .. } | State::Trial { .. } => BreakerState::HalfOpen,
        }
    }
}

/// The machine between threads: nothing shared is written while a module does not fail.
#[derive(Debug)]
pub(crate) struct Breaker {
    since: Instant,
    calm: AtomicBool,
    // Taken only while the module fails or has just failed, for a few instructions.
    machine: Mutex<Machine>,
}

/// Leave to run one call. Dropped undecided, it counts for nothing.
#[derive(Debug)]
pub(crate) struct Leave<'b> {
    breaker: &'b Breaker,
    trial: bool,
    decided: bool,
}

/// What a failure came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    /// Whether it is to be told by itself, not only counted.
    pub(crate) told: bool,
    pub(crate) change: Option<BreakerChange>,
}

impl Breaker {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            since: Instant::now(),
            calm: AtomicBool::new(true),
            machine: Mutex::new(Machine::new(settings)),
        }
    }

    /// The machine, and the time by it.
    fn with<T>(&self, act: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        let mut machine: MutexGuard<'_, Machine> =
            self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let out = act(&mut machine, self.since.elapsed());
        self.calm.store(machine.is_calm(), Ordering::Release);
        out
    }

    /// Leave to run a call, or for how long there is none.
    pub(crate) fn admit(&self) -> Result<Leave<'_>, Duration> {
        let leave = |trial| Leave { breaker: self, trial, decided: false };
        if self.calm.load(Ordering::Acquire) {
            return Ok(leave(false));
        }
        match self.with(Machine::admit) {
            Admission::Runs => Ok(leave(false)),
            Admission::Trial => Ok(leave(true)),
            Admission::LeftOut(left) => Err(left),
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        if self.calm.load(Ordering::Acquire) {
            return BreakerState::Closed;
        }
        self.with(|machine, now| machine.shown(now))
    }
}

impl Leave<'_> {
    /// The call gave a verdict.
    pub(crate) fn succeeded(mut self) -> Option<BreakerChange> {
        self.decided = true;
        if self.breaker.calm.load(Ordering::Acquire) {
            return None;
        }
        let trial = self.trial;
        self.breaker.with(|machine, now| machine.succeeded(trial, now))
    }

    /// The module failed.
    pub(crate) fn failed(mut self) -> Counted {
        self.decided = true;
        let trial = self.trial;
        let (failures, change) = self.breaker.with(|machine, now| machine.failed(trial, now));
        Counted { told: failures <= TOLD, change }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.trial && !self.decided {
            self.breaker.with(Machine::undecided);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Fails so often at this time; the last change.
    fn fail(machine: &mut Machine, times: u32, now: Duration) -> Option<BreakerChange> {
        (0..times).map(|_| machine.failed(false, now).1).last().flatten()
    }

    fn opened(backoff: u64, failures: u32) -> Option<BreakerChange> {
        Some(BreakerChange::Opened { backoff: secs(backoff), failures })
    }

    /// Opened by 20 failures, the last of them at `now`.
    fn broken(machine: &mut Machine, now: Duration) -> Option<BreakerChange> {
        fail(machine, 1, now - secs(1));
        fail(machine, 19, now)
    }

    #[test]
    fn it_opens_at_the_threshold_and_not_before() {
        let mut machine = Machine::new(SETTINGS);
        assert_eq!(fail(&mut machine, 19, secs(1)), None);
        assert_eq!(machine.admit(secs(1)), Admission::Runs);
        assert_eq!(fail(&mut machine, 1, secs(2)), opened(1, 20));
        assert_eq!(machine.admit(secs(2)), Admission::LeftOut(secs(1)));
        assert_eq!(machine.shown(secs(2)), BreakerState::Open(secs(1)));
    }

    #[test]
    fn calls_that_happen_to_fail_together_do_not_decide_alone() {
        let mut machine = Machine::new(SETTINGS);
        assert_eq!(fail(&mut machine, 64, secs(1)), None);
        for _ in 0..66 {
            machine.succeeded(false, secs(1));
        }
        assert_eq!(fail(&mut machine, 1, secs(2)), None);
        assert_eq!(fail(&mut machine, 1, secs(2)), opened(1, 66), "half of the calls by then");
    }

    #[test]
    fn failures_that_are_few_among_many_calls_do_not_open_it() {
        let mut machine = Machine::new(SETTINGS);
        for n in 0..1000 {
            assert_eq!(machine.failed(false, secs(1 + n / 200)).1, None, "{n}");
            assert_eq!(machine.succeeded(false, secs(1 + n / 200)), None);
            assert_eq!(machine.succeeded(false, secs(1 + n / 200)), None);
        }
        // Exactly half is enough.
        for (successes, expected) in [(20, opened(1, 20)), (21, None)] {
            let mut machine = Machine::new(SETTINGS);
            assert_eq!(fail(&mut machine, 1, secs(1)), None);
            for _ in 0..successes {
                machine.succeeded(false, secs(1));
            }
            assert_eq!(fail(&mut machine, 19, secs(2)), expected);
        }
    }

    #[test]
    fn failures_count_for_a_window_from_the_first_on() {
        let mut machine = Machine::new(SETTINGS);
        assert_eq!(fail(&mut machine, 19, secs(1)), None);
        assert_eq!(fail(&mut machine, 19, secs(11)), None, "a new window");
        assert_eq!(fail(&mut machine, 1, secs(20)), opened(1, 20));
        let mut calm = Machine::new(SETTINGS);
        fail(&mut calm, 5, secs(1));
        assert!(!calm.is_calm());
        calm.succeeded(false, secs(11));
        assert!(calm.is_calm());
    }

    #[test]
    fn one_trial_decides() {
        let mut machine = Machine::new(SETTINGS);
        broken(&mut machine, secs(1));
        assert_eq!(machine.admit(secs(2)), Admission::Trial);
        assert_eq!(machine.admit(secs(2)), Admission::LeftOut(secs(10)), "one at a time");
        assert_eq!(machine.shown(secs(2)), BreakerState::HalfOpen);
        // What began before it opened decides nothing.
        assert_eq!(machine.succeeded(false, secs(2)), None);
        assert_eq!(machine.failed(false, secs(2)).1, None);
        assert_eq!(machine.succeeded(true, secs(3)), Some(BreakerChange::Closed));
        assert_eq!(machine.admit(secs(3)), Admission::Runs);
        assert!(machine.is_calm());
    }

    #[test]
    fn the_backoff_doubles_to_its_maximum_and_is_forgotten_when_it_stayed_closed() {
        let mut machine = Machine::new(SETTINGS);
        assert_eq!(broken(&mut machine, secs(1)), opened(1, 20));
        let mut now = secs(1);
        for expected in [2, 4, 8, 16, 32, 60, 60] {
            now += secs(100);
            assert_eq!(machine.admit(now), Admission::Trial);
            assert_eq!(machine.failed(true, now).1, opened(expected, 1));
        }
        now += secs(100);
        assert_eq!(machine.admit(now), Admission::Trial);
        machine.succeeded(true, now);
        assert_eq!(
            broken(&mut machine, now + secs(59)),
            opened(60, 20),
            "it was closed for too short a time"
        );
        now += secs(200);
        assert_eq!(machine.admit(now), Admission::Trial);
        machine.succeeded(true, now);
        assert_eq!(broken(&mut machine, now + secs(60)), opened(1, 20));
    }

    #[test]
    fn a_trial_that_is_not_heard_of_makes_room_for_the_next() {
        let mut machine = Machine::new(SETTINGS);
        broken(&mut machine, secs(1));
        assert_eq!(machine.admit(secs(2)), Admission::Trial);
        machine.undecided(secs(3));
        assert_eq!(machine.admit(secs(3)), Admission::Trial);
        assert_eq!(machine.admit(secs(12)), Admission::LeftOut(secs(1)));
        assert_eq!(machine.admit(secs(13)), Admission::Trial, "its lease is over");
    }

    #[test]
    fn leave_that_is_dropped_undecided_counts_for_nothing() {
        let breaker = Breaker::new(Settings { settle: Duration::ZERO, backoff: Duration::ZERO, ..SETTINGS });
        for _ in 0..100 {
            drop(breaker.admit().unwrap());
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        let told = (0..20).filter(|_| breaker.admit().unwrap().failed().told).count();
        assert_eq!(told, 10, "then they are only counted");
        drop(breaker.admit().unwrap());
        assert_eq!(breaker.admit().unwrap().succeeded(), Some(BreakerChange::Closed));
    }
}
