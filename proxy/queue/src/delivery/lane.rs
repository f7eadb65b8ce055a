//! One lane: the records of one upstream that wait and fly, and how the upstream fares.

use std::{collections::HashMap, time::Duration};

use super::{
    backoff::{Jitter, LANE_RETRY_AFTER, PROBE_CEILING},
    decide::Bearing,
    window::Window,
};
use crate::{log::Candidate, record::Seq};

/// Answers of trouble in a row, with no good one between, after which an upstream is taken as down. A record that was
/// refused before counts for nothing by being refused again: of a few failing keys only their first failures count, so
/// that they block only themselves.
const TROUBLES: u32 = 5;
/// Where a probe then succeeds at once it was not the upstream: the next time it takes twice as many, up to this.
const TROUBLES_MAX: u32 = 160;
/// The probe, by its number, up to which it is at once.
const AT_ONCE: u32 = 3;
/// The probe, by its number, from which on some are of any kind, safe to repeat or not: this one, and each whose number is
/// twice that of the last. So an origin that answers badly for long costs few of the records that a failure ends, and
/// those that fail by themselves keep the others waiting for a few seconds only.
const OF_ANY_KIND: u32 = 4;
/// After so many successes with no trouble between, it takes no more than at first again.
const CALM: u32 = 64;
/// How often an upstream is looked for that the tenant's revision does not have.
const LOOK_FOR_MISSING: i64 = 30_000;

/// How the upstream fares. Times are monotonic milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Up to `limit` fly at once; it doubles after as many successes, up to the cap.
    Working { limit: u32, successes: u32, troubles: u32 },
    /// One probe at a time, from `until` on. Whether it could be reached, and answered badly.
    Failing { failures: u32, until: i64, answered: bool },
    /// Not in the tenant's revision; held records are released at `until`.
    Missing { until: i64 },
}

impl Health {
    /// Nothing is known yet, or the upstream has just come back: begin with one.
    pub(super) const FRESH: Self = Self::Working { limit: 1, successes: 0, troubles: 0 };
}

/// Where the machine keeps track of this lane's next turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Turn {
    #[default]
    None,
    /// In the ring of those that can go now.
    Ready,
    /// Among the timers.
    At(i64),
}

#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) window: Window,
    pub(super) flying: HashMap<Seq, Candidate>,
    /// Landed, to be tried again, and not yet committed as such.
    pub(super) returning: HashMap<Seq, i64>,
    pub(super) health: Health,
    pub(super) probe: Option<Seq>,
    /// How many troubles in a row it takes.
    patience: u32,
    /// Successes with no trouble between.
    calm: u32,
    pub(super) turn: Turn,
    pub(super) disk: OnDisk,
}

/// What is known of the records that are not in the window.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    /// There may be some.
    pub(super) more: bool,
    /// Some may even be due before those in the window: look at once.
    pub(super) stale: bool,
    /// A load is under way.
    pub(super) loading: bool,
    /// The last load failed: not before this time again.
    pub(super) not_before: i64,
}

impl OnDisk {
    /// Whether there may be records on disk that are not in the window, or will be when a load is done.
    pub(super) fn may_hold_more(&self) -> bool {
        self.more || self.stale || self.loading
    }
}

impl LaneState {
    pub(super) fn new() -> Self {
        Self {
            window: Window::default(),
            flying: HashMap::new(),
            returning: HashMap::new(),
            health: Health::FRESH,
            probe: None,
            patience: TROUBLES,
            calm: 0,
            turn: Turn::None,
            disk: OnDisk::default(),
        }
    }

    /// Nothing waits, flies or lies on disk, and nothing is known that matters.
    pub(super) fn is_idle(&self) -> bool {
        self.window.is_empty()
            && self.flying.is_empty()
            && self.returning.is_empty()
            && !self.disk.may_hold_more()
            && !matches!(self.health, Health::Missing { .. })
    }

    pub(super) fn wants_load(&self, now: i64, capacity: usize) -> bool {
        let disk = &self.disk;
        // While probes go wrong, what comes later is looked at too: it may be better than what is in the window.
        let enough =
            if matches!(self.health, Health::Failing { .. }) { capacity / 4 * 3 } else { capacity / 4 };
        let low = disk.more && self.window.len() <= enough;
        !disk.loading && (disk.stale || low) && now >= disk.not_before
    }

    /// A load that must wait after one that failed.
    fn load_at(&self, now: i64) -> Option<i64> {
        let disk = &self.disk;
        (!disk.loading && (disk.stale || disk.more) && disk.not_before > now).then_some(disk.not_before)
    }

    /// `open_at`: when its rate lets the next delivery begin.
    fn launch_at(&self, (cap, open_at): (u32, i64)) -> Option<i64> {
        let flying = u32::try_from(self.flying.len()).unwrap_or(u32::MAX);
        match self.health {
            Health::Working { limit, .. } if flying < limit.min(cap) => {
                self.window.first_due().map(|due| due.max(open_at))
            }
            Health::Failing { until, .. } if self.probe.is_none() && flying < cap => {
                self.window.first_due().map(|due| due.max(until).max(open_at))
            }
            Health::Missing { until } => Some(until),
            Health::Working { .. } | Health::Failing { .. } => None,
        }
    }

    /// When this lane has something to do next, other than when something lands or is loaded.
    pub(super) fn next_turn(&self, now: i64, bounds: (u32, i64)) -> Option<i64> {
        match (self.launch_at(bounds), self.load_at(now)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes the record to try now, if one may be tried. It counts as flying from here on.
    pub(super) fn launch(&mut self, now: i64, bounds: (u32, i64), jitter: &mut Jitter) -> Option<Candidate> {
        if self.launch_at(bounds)? > now {
            return None;
        }
        let candidate = match self.health {
            Health::Working { .. } => self.window.take_due(now),
            Health::Failing { answered, failures, .. } => {
                let any = answered && failures >= OF_ANY_KIND && failures.is_power_of_two();
                self.window.take_probe(now, any, answered.then_some(jitter))
            }
            Health::Missing { .. } => None,
        }?;
        if matches!(self.health, Health::Failing { .. }) {
            self.probe = Some(candidate.seq);
        }
        let doubled = self.flying.insert(candidate.seq, candidate.clone());
        debug_assert!(doubled.is_none(), "a record flies once at a time");
        Some(candidate)
    }

    /// What was flying is not any more.
    pub(super) fn land(&mut self, seq: Seq) -> Option<(Candidate, bool)> {
        let was_probe = self.probe == Some(seq);
        if was_probe {
            self.probe = None;
        }
        self.flying.remove(&seq).map(|candidate| (candidate, was_probe))
    }

    /// Learns from an attempt how the upstream fares. `first`: the record was not refused before.
    pub(super) fn learn(
        &mut self,
        bearing: Bearing,
        (was_probe, first): (bool, bool),
        now: i64,
        cap: u32,
        jitter: &mut Jitter,
    ) {
        let mut failing = |failures: u32, answered: Option<Option<Duration>>| {
            let wait = jitter.backoff(failures, PROBE_CEILING);
            let wait = answered.flatten().map_or(wait, |asked| wait.max(asked.min(LANE_RETRY_AFTER)));
            let wait = i64::try_from(wait.as_millis()).expect("a minute fits");
            Health::Failing { failures, until: now + wait, answered: answered.is_some() }
        };
        match bearing {
            Bearing::Well => {
                self.calm = self.calm.saturating_add(1);
                match self.health {
                    Health::Failing { failures: ..=AT_ONCE, answered: true, .. } => {
                        self.patience = (self.patience * 2).min(TROUBLES_MAX);
                    }
                    _ if self.calm >= CALM => self.patience = TROUBLES,
                    _ => {}
                }
            }
            Bearing::Troubled { .. } | Bearing::Down | Bearing::Missing => self.calm = 0,
            Bearing::Silent => {}
        }
        self.health = match (self.health, bearing) {
            (health, Bearing::Silent) => health,
            (_, Bearing::Missing) => Health::Missing { until: now + LOOK_FOR_MISSING },
            (Health::Working { limit, successes, .. }, Bearing::Well) => {
                let (limit, successes) = if limit < cap && successes + 1 >= limit {
                    (limit.saturating_mul(2).min(cap), 0)
                } else {
                    (limit, successes.saturating_add(1))
                };
                Health::Working { limit, successes, troubles: 0 }
            }
            (Health::Failing { .. }, Bearing::Well) => Health::FRESH,
            (Health::Working { .. }, Bearing::Down) => failing(1, None),
            (Health::Working { limit, successes, troubles }, Bearing::Troubled { retry_after }) => {
                let troubles = troubles + u32::from(first);
                if first && troubles >= self.patience {
                    failing(1, Some(retry_after))
                } else {
                    Health::Working { limit, successes, troubles }
                }
            }
            (Health::Failing { failures, .. }, Bearing::Down) if was_probe => {
                failing(failures.saturating_add(1), None)
            }
            (Health::Failing { failures, .. }, Bearing::Troubled { retry_after }) if was_probe => {
                failing(failures.saturating_add(1), Some(retry_after))
            }
            // What began before the upstream failed, or went missing, says nothing new by failing too.
            (failing @ Health::Failing { .. }, _) => failing,
            (missing @ Health::Missing { .. }, _) => missing,
        };
    }

    /// Someone thinks that the upstream may be well again: whatever it waits for ends now. Returns whether it waited.
    pub(super) fn nudge(&mut self, now: i64) -> bool {
        match &mut self.health {
            Health::Failing { until, .. } | Health::Missing { until } => {
                let waited = *until > now;
                *until = now.min(*until);
                waited
            }
            Health::Working { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::window::tests::candidate, *};

    const CAP: u32 = 8;

    fn learn(lane: &mut LaneState, bearing: Bearing, was_probe: bool) {
        lane.learn(bearing, (was_probe, true), 1000, CAP, &mut Jitter::new(1));
    }

    #[test]
    fn success_ramps_one_two_four_up_to_the_cap() {
        let mut lane = LaneState::new();
        let mut limits = vec![];
        for _ in 0..16 {
            let Health::Working { limit, .. } = lane.health else { panic!("it works") };
            limits.push(limit);
            learn(&mut lane, Bearing::Well, false);
        }
        assert_eq!(limits[..8], [1, 2, 2, 4, 4, 4, 4, 8]);
        assert_eq!(limits.last(), Some(&CAP));
    }

    #[test]
    fn an_unreachable_upstream_fails_at_once_and_a_good_probe_brings_it_back() {
        let mut lane = LaneState::new();
        learn(&mut lane, Bearing::Down, false);
        let Health::Failing { failures: 1, until, answered: false } = lane.health else {
            panic!("{:?}", lane.health)
        };
        assert!(until > 1000 && until <= 2000);
        learn(&mut lane, Bearing::Down, false);
        assert_eq!(
            lane.health,
            Health::Failing { failures: 1, until, answered: false },
            "one that flew before does not count"
        );
        for failures in 2..20 {
            learn(&mut lane, Bearing::Down, true);
            let Health::Failing { failures: counted, until, .. } = lane.health else {
                panic!("{:?}", lane.health)
            };
            assert!(counted == failures && until <= 1000 + 5000, "probes come at least every 5 s");
        }
        learn(&mut lane, Bearing::Well, true);
        assert_eq!(lane.health, Health::FRESH);
    }

    #[test]
    fn trouble_counts_only_in_a_row() {
        let mut lane = LaneState::new();
        let trouble = Bearing::Troubled { retry_after: Some(Duration::from_secs(20)) };
        for _ in 0..10 {
            for _ in 1..TROUBLES {
                learn(&mut lane, trouble, false);
            }
            learn(&mut lane, Bearing::Well, false);
        }
        assert!(matches!(lane.health, Health::Working { .. }));
        for _ in 0..TROUBLES {
            learn(&mut lane, trouble, false);
        }
        let held = Health::Failing { failures: 1, until: 21_000, answered: true };
        assert_eq!(lane.health, held, "Retry-After holds the lane");
    }

    #[test]
    fn the_safe_ones_may_all_fail_and_the_others_wait_for_four_probes_or_a_few_more() {
        let mut lane = LaneState::new();
        let jitter = &mut Jitter::new(1);
        for seq in 0..200 {
            lane.window.insert(Candidate { repeat_safe: seq < 100, ..candidate(seq, 0) }, 0, 1000);
        }
        let mut tried = Vec::new();
        lane.health = Health::Failing { failures: 1, until: 0, answered: true };
        while let Health::Failing { until, .. } = lane.health {
            let candidate = lane.launch(until, (CAP, i64::MIN), jitter).expect("a probe when it is time");
            let (_, was_probe) = lane.land(candidate.seq).expect("it flew");
            let bearing = if candidate.repeat_safe { TROUBLE } else { Bearing::Well };
            lane.learn(bearing, (was_probe, true), until, CAP, jitter);
            tried.push(candidate.repeat_safe);
        }
        assert!((4..=16).contains(&tried.len()) && tried[..3] == [true; 3], "{tried:?}");
    }

    const TROUBLE: Bearing = Bearing::Troubled { retry_after: None };

    #[test]
    fn what_was_refused_before_says_nothing_of_the_upstream_by_being_refused_again() {
        let mut lane = LaneState::new();
        for _ in 0..100 {
            lane.learn(TROUBLE, (false, false), 1000, CAP, &mut Jitter::new(1));
            lane.learn(Bearing::Silent, (false, true), 1000, CAP, &mut Jitter::new(1));
        }
        assert_eq!(lane.health, Health::FRESH);
    }

    /// First refusals in a row until the lane is probed.
    fn troubles_until_failing(lane: &mut LaneState) -> u32 {
        let troubles = (1..1000).find(|_| {
            learn(lane, TROUBLE, false);
            matches!(lane.health, Health::Failing { .. })
        });
        troubles.expect("it fails in the end")
    }

    #[test]
    fn an_alarm_that_a_probe_shows_to_be_false_makes_the_next_one_come_later() {
        let mut lane = LaneState::new();
        let counts: Vec<_> = (0..7)
            .map(|_| {
                let count = troubles_until_failing(&mut lane);
                learn(&mut lane, Bearing::Well, true);
                count
            })
            .collect();
        assert_eq!(counts, [5, 10, 20, 40, 80, 160, 160]);
        (0..CALM).for_each(|_| learn(&mut lane, Bearing::Well, false));
        assert_eq!(troubles_until_failing(&mut lane), TROUBLES, "calm makes up for it");
        (0..5).for_each(|_| learn(&mut lane, TROUBLE, true));
        learn(&mut lane, Bearing::Well, true);
        assert_eq!(
            troubles_until_failing(&mut lane),
            TROUBLES,
            "an upstream that was down was no false alarm"
        );
    }
}
