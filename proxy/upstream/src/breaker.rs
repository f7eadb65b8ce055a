//! The breaker: after repeated failures nothing is sent for a while, then one probe, then everything or nothing.
//!
//! Pure: time and randomness come with each call. Two atomics that are only read while all is well.
//!
//! - closed: everything is admitted; `threshold` failures without a success between open it.
//! - open: nothing is admitted until the back-off ends.
//! - half-open: one request is admitted as the probe. Its success closes the breaker, its failure opens it for
//!   twice as long; a probe that ends undecided (its caller went away) makes room for the next.
//!
//! What was admitted before the breaker opened decides nothing afterwards.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

/// When a breaker opens and for how long.
#[derive(Clone, Debug)]
pub struct BreakerSettings {
    /// Failures in a row that open it. Default 5.
    pub threshold: u32,
    /// How long it stays open the first time. Default 1 s.
    pub backoff: Duration,
    /// The most that doubling leads to. Default 30 s.
    pub backoff_max: Duration,
    /// After this, a probe that was not heard of again no longer bars the next. Default 30 s.
    pub probe_lease: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            threshold: 5,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            probe_lease: Duration::from_secs(30),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Breaker {
    settings: BreakerSettings,
    /// See [`Gate`].
    gate: AtomicU64,
    /// Failures since the last success, while closed.
    failures: AtomicU32,
    /// How often it opened since it was last closed.
    opened: AtomicU32,
}

/// Where the breaker stands, in one word: zero is closed; else twice the nanosecond at which the next probe may
/// go, plus one while a probe is under way.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Gate(u64);

impl Gate {
    const CLOSED: Self = Self(0);

    fn shut_until(at: Duration, probing: bool) -> Self {
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX >> 1);
        Self(nanos << 1 | u64::from(probing))
    }

    fn until(self) -> Duration {
        Duration::from_nanos(self.0 >> 1)
    }

    fn is_probing(self) -> bool {
        self.0 & 1 == 1
    }
}

/// What the breaker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// Closed, and the last outcome was a success.
    Closed,
    /// Closed after failures, or ready for a probe.
    Shaky,
    /// Nothing is admitted for this long.
    Open(Duration),
}

/// Leave to send one request. Dropped undecided, it counts for nothing.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    breaker: &'a Breaker,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Normal,
    /// The one probe; holds the gate as it set it.
    Probe(u64),
    /// Sent whatever the breaker says; its success closes.
    Forced,
    Decided,
}

impl Breaker {
    pub(crate) fn new(settings: BreakerSettings) -> Self {
        Self {
            settings,
            gate: AtomicU64::new(Gate::CLOSED.0),
            failures: AtomicU32::new(0),
            opened: AtomicU32::new(0),
        }
    }

    /// Leave to send, or none while the breaker is open. `now` is asked only where it is not closed.
    pub(crate) fn admit(&self, now: impl FnOnce() -> Duration) -> Option<Permit<'_>> {
        let gate = Gate(self.gate.load(Ordering::Acquire));
        if gate == Gate::CLOSED {
            return Some(Permit { breaker: self, role: Role::Normal });
        }
        let now = now();
        if now < gate.until() {
            return None;
        }
        let probing = Gate::shut_until(now + self.settings.probe_lease, true);
        self.gate
            .compare_exchange(gate.0, probing.0, Ordering::AcqRel, Ordering::Acquire)
            .ok()
            .map(|_| Permit { breaker: self, role: Role::Probe(probing.0) })
    }

    /// Leave to send in any case: as the probe where one is due, else beside the breaker.
    pub(crate) fn admit_forced(&self, now: impl FnOnce() -> Duration) -> Permit<'_> {
        self.admit(now).unwrap_or(Permit { breaker: self, role: Role::Forced })
    }

    pub(crate) fn state(&self, now: impl FnOnce() -> Duration) -> BreakerState {
        let gate = Gate(self.gate.load(Ordering::Acquire));
        if gate == Gate::CLOSED {
            return match self.failures.load(Ordering::Relaxed) {
                0 => BreakerState::Closed,
                _ => BreakerState::Shaky,
            };
        }
        match gate.until().checked_sub(now()) {
            None | Some(Duration::ZERO) => BreakerState::Shaky,
            // A probe's lease is no forecast: it will have decided by then.
            Some(_) if gate.is_probing() => BreakerState::Open(self.settings.backoff),
            Some(left) => BreakerState::Open(left),
        }
    }

    fn open(&self, from: Gate, now: Duration, random: u64) -> bool {
        let times = self.opened.load(Ordering::Relaxed);
        let gate = Gate::shut_until(now + self.backoff(times, random), false);
        let won = self.gate.compare_exchange(from.0, gate.0, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if won {
            self.opened.store(times.saturating_add(1), Ordering::Relaxed);
        }
        won
    }

    /// Doubling from `backoff` to `backoff_max`, then a quarter more or less, so that nodes do not probe in step.
    fn backoff(&self, times: u32, random: u64) -> Duration {
        let doubled = self.settings.backoff.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
        let base = doubled.min(self.settings.backoff_max);
        let permille = 750 + u32::try_from(random % 501).unwrap_or(0);
        base.saturating_mul(permille) / 1000
    }

    fn close(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.opened.store(0, Ordering::Relaxed);
        self.gate.store(Gate::CLOSED.0, Ordering::Release);
    }
}

impl Permit<'_> {
    /// The upstream answered. True where that closed the breaker.
    pub(crate) fn success(mut self) -> bool {
        let breaker = self.breaker;
        match std::mem::replace(&mut self.role, Role::Decided) {
            Role::Normal => {
                if breaker.failures.load(Ordering::Relaxed) != 0 {
                    breaker.failures.store(0, Ordering::Relaxed);
                }
                false
            }
            Role::Probe(_) | Role::Forced => {
                breaker.close();
                true
            }
            Role::Decided => false,
        }
    }

    /// The upstream failed. True where that opened the breaker.
    pub(crate) fn failure(mut self, now: Duration, random: u64) -> bool {
        let breaker = self.breaker;
        match std::mem::replace(&mut self.role, Role::Decided) {
            Role::Normal => {
                let failures = breaker.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                failures >= breaker.settings.threshold && breaker.open(Gate::CLOSED, now, random)
            }
            Role::Probe(gate) => breaker.open(Gate(gate), now, random),
            Role::Forced | Role::Decided => false,
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Role::Probe(gate) = self.role {
            // Undecided: the next request may be the probe at once.
            let ready = Gate::shut_until(Duration::ZERO, false);
            let _ = self.breaker.gate.compare_exchange(gate, ready.0, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

#[cfg(test)]
mod tests;
