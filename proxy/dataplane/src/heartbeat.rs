//! Whether every worker still turns: what `/livez` answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A worker that has not turned for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// The workers' last signs of life. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    start: Instant,
    beats: Arc<[AtomicU64]>,
}

impl Heartbeats {
    /// For `workers` workers, all alive now.
    pub fn new(workers: usize) -> Self {
        Self { start: Instant::now(), beats: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Worker `index` turns.
    pub(crate) fn beat(&self, index: usize) {
        if let Some(beat) = self.beats.get(index) {
            beat.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Worker `index` has nothing left to do, as when the node drains: its silence is no sign of trouble.
    pub(crate) fn ended(&self, index: usize) {
        if let Some(beat) = self.beats.get(index) {
            beat.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Which worker is stuck, if one is.
    pub fn check(&self) -> Result<(), String> {
        let now = self.now();
        for (index, beat) in self.beats.iter().enumerate() {
            let age = Duration::from_millis(now.saturating_sub(beat.load(Ordering::Relaxed)));
            if age > STUCK_AFTER {
                return Err(format!("worker {index} has not turned for {age:?} (allowed: {STUCK_AFTER:?})"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_turn_is_named_until_it_turns_or_has_ended() {
        let Some(start) = Instant::now().checked_sub(2 * STUCK_AFTER) else { return };
        let beats = Heartbeats { start, ..Heartbeats::new(2) };
        beats.beat(0);
        let stuck = beats.check().unwrap_err();
        assert!(stuck.starts_with("worker 1 has not turned for 4"), "{stuck}");
        beats.beat(1);
        assert_eq!(beats.check(), Ok(()));
        let beats = Heartbeats { start, ..Heartbeats::new(1) };
        beats.ended(0);
        assert_eq!(beats.check(), Ok(()), "nothing is awaited of it");
    }
}
