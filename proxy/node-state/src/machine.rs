//! The pure part: reports in, state out, under the caller's clock.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{Phase, Reason, State};

/// Failures of one reason within [`FAILURE_WINDOW`] that make the node degraded.
pub const FAILURES_TO_ENTER: usize = 3;
/// See [`FAILURES_TO_ENTER`].
pub const FAILURE_WINDOW: Duration = Duration::from_secs(30);
/// Successes in a row that end a reason.
pub const SUCCESSES_TO_LEAVE: usize = 2;
/// The least time between two transitions of healthy and degraded.
pub const MIN_BETWEEN_TRANSITIONS: Duration = Duration::from_secs(5);

/// The most reasons that are tracked at once; reports beyond are not taken until one ends.
const MAX_REASONS: usize = 1024;

#[derive(Debug, Default)]
struct Evidence {
    failures: VecDeque<Instant>,
    successes: usize,
    active: bool,
}

#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    evidence: BTreeMap<Reason, Evidence>,
    last_transition: Option<Instant>,
    /// Why the node became degraded, or is: kept until it is healthy, so that it is never degraded for no reason.
    shown: Vec<Reason>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { phase: Phase::Starting, evidence: BTreeMap::new(), last_transition: None, shown: Vec::new() }
    }

    pub(crate) fn state(&self) -> State {
        State { phase: self.phase, reasons: self.shown.clone() }
    }

    pub(crate) fn started(&mut self) {
        if self.phase == Phase::Starting {
            self.phase = Phase::Healthy;
        }
    }

    pub(crate) fn draining(&mut self) {
        self.phase = Phase::Draining;
    }

    pub(crate) fn failed(&mut self, reason: Reason, now: Instant) {
        if self.evidence.len() >= MAX_REASONS && !self.evidence.contains_key(&reason) {
            return;
        }
        let evidence = self.evidence.entry(reason).or_default();
        evidence.successes = 0;
        evidence.failures.push_back(now);
        while evidence.failures.len() > FAILURES_TO_ENTER {
            evidence.failures.pop_front();
        }
        let recent = evidence.failures.iter().filter(|at| now.duration_since(**at) <= FAILURE_WINDOW).count();
        evidence.active |= recent >= FAILURES_TO_ENTER;
        self.tick(now);
    }

    pub(crate) fn worked(&mut self, reason: &Reason, now: Instant) {
        if let Some(evidence) = self.evidence.get_mut(reason) {
            evidence.successes += 1;
            if evidence.successes >= SUCCESSES_TO_LEAVE {
                self.evidence.remove(reason);
            }
        }
        self.tick(now);
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        let wanted = if self.evidence.values().any(|e| e.active) { Phase::Degraded } else { Phase::Healthy };
        let settled = self.last_transition.is_none_or(|at| now.duration_since(at) >= MIN_BETWEEN_TRANSITIONS);
        if matches!(self.phase, Phase::Healthy | Phase::Degraded) && wanted != self.phase && settled {
            self.phase = wanted;
            self.last_transition = Some(now);
        }
        let active: Vec<_> = self.evidence.iter().filter(|(_, e)| e.active).map(|(r, _)| r.clone()).collect();
        match self.phase {
            // What is wrong is shown with the transition, not before it.
            Phase::Starting | Phase::Healthy => self.shown.clear(),
            Phase::Degraded | Phase::Draining if !active.is_empty() => self.shown = active,
            Phase::Degraded | Phase::Draining => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> (Machine, Instant) {
        let mut machine = Machine::new();
        machine.started();
        (machine, Instant::now())
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn three_failures_within_the_window_degrade_and_two_successes_heal() {
        let (mut machine, t0) = running();
        machine.failed(Reason::QueueUnavailable, t0);
        machine.failed(Reason::QueueUnavailable, t0);
        assert_eq!(machine.state().phase, Phase::Healthy);
        machine.failed(Reason::QueueUnavailable, t0);
        assert_eq!(
            machine.state(),
            State { phase: Phase::Degraded, reasons: vec![Reason::QueueUnavailable] }
        );
        machine.worked(&Reason::QueueUnavailable, t0 + seconds(6));
        assert_eq!(machine.state().phase, Phase::Degraded);
        machine.worked(&Reason::QueueUnavailable, t0 + seconds(6));
        assert_eq!(machine.state(), State { phase: Phase::Healthy, reasons: vec![] });
    }

    #[test]
    fn slow_failures_do_not_degrade() {
        let (mut machine, t0) = running();
        for i in 0..20 {
            machine.failed(Reason::TelemetryExport, t0 + seconds(16 * i));
        }
        assert_eq!(machine.state().phase, Phase::Healthy);
    }

    #[test]
    fn a_flapping_reason_makes_at_most_one_transition_in_five_seconds() {
        let (mut machine, t0) = running();
        let mut transitions = 0;
        let mut before = machine.state().phase;
        for ms in (0..60_000).step_by(10) {
            let now = t0 + Duration::from_millis(ms);
            if ms / 50 % 2 == 0 {
                machine.failed(Reason::QueueFull, now);
            } else {
                machine.worked(&Reason::QueueFull, now);
            }
            if machine.state().phase != before {
                before = machine.state().phase;
                transitions += 1;
            }
        }
        assert!((2..=12).contains(&transitions), "{transitions}");
    }

    #[test]
    fn a_held_back_transition_happens_with_time() {
        let (mut machine, t0) = running();
        for _ in 0..3 {
            machine.failed(Reason::QueueFull, t0);
        }
        for _ in 0..2 {
            machine.worked(&Reason::QueueFull, t0 + seconds(1));
        }
        assert_eq!(machine.state().phase, Phase::Degraded);
        machine.tick(t0 + seconds(5));
        assert_eq!(machine.state().phase, Phase::Healthy);
    }

    #[test]
    fn draining_is_for_good() {
        let (mut machine, t0) = running();
        machine.draining();
        for _ in 0..3 {
            machine.failed(Reason::QueueFull, t0);
        }
        machine.started();
        assert_eq!(machine.state().phase, Phase::Draining);
        assert!(!machine.state().is_ready());
    }
}
