//! Two clocks: monotonic time decides when something is due, wall time what is written down and when a record expires.

/// One moment by both clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Since some start; never goes back.
    pub(crate) mono: i64,
    /// Since the Unix epoch; may jump.
    pub(crate) wall: u64,
}

/// A wall clock that goes further ahead than this, against the monotonic one, has jumped.
const JUMP_MS: i64 = 60_000;
/// After a jump ahead nothing expires and nothing is deleted for this long: the clock may be put right again.
const DAMPING_MS: i64 = 10 * 60_000;

/// Watches the wall clock for jumps.
#[derive(Debug, Default)]
pub(super) struct JumpGuard {
    offset: Option<i64>,
    damped_until: Option<i64>,
}

impl JumpGuard {
    /// Takes note of the time; call it with each event.
    pub(super) fn observe(&mut self, now: Now) {
        let offset = i64::try_from(now.wall).unwrap_or(i64::MAX).saturating_sub(now.mono);
        if let Some(before) = self.offset.replace(offset)
            && offset.saturating_sub(before) > JUMP_MS
        {
            tracing::warn!(
                ahead_ms = offset.saturating_sub(before),
                "the wall clock jumped ahead: no record expires for 10 minutes"
            );
            self.damped_until = Some(now.mono + DAMPING_MS);
        }
        if self.damped_until.is_some_and(|until| until <= now.mono) {
            self.damped_until = None;
        }
    }

    /// Until when the wall clock is not believed, in monotonic time.
    pub(super) fn damped_until(&self) -> Option<i64> {
        self.damped_until
    }

    /// Whether `wall_ms` is past, as far as the wall clock is believed.
    pub(super) fn is_past(&self, wall_ms: u64, now: Now) -> bool {
        self.damped_until.is_none() && wall_ms <= now.wall
    }
}

impl Now {
    /// When, by the monotonic clock, the wall clock will say `wall_ms` if it doesn't jump.
    pub(super) fn mono_at(self, wall_ms: u64) -> i64 {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        self.mono.saturating_add(signed(wall_ms).saturating_sub(signed(self.wall)))
    }

    /// The wall time in `ms` from now.
    pub(super) fn wall_in(self, ms: u64) -> u64 {
        self.wall.saturating_add(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_ahead_is_not_believed_for_a_while_and_a_step_is() {
        let mut guard = JumpGuard::default();
        guard.observe(Now { mono: 0, wall: 1_000_000 });
        guard.observe(Now { mono: 1000, wall: 1_050_000 });
        assert!(guard.is_past(1_040_000, Now { mono: 1000, wall: 1_050_000 }), "under a minute is no jump");
        let jumped = Now { mono: 2000, wall: 9_000_000 };
        guard.observe(jumped);
        assert!(!guard.is_past(1, jumped));
        let later = Now { mono: 2000 + DAMPING_MS, wall: 9_000_000 + 600_000 };
        guard.observe(later);
        assert!(guard.is_past(8_000_000, later), "a clock that stays where it went is believed in the end");
    }

    #[test]
    fn a_jump_back_is_taken_as_it_is() {
        let mut guard = JumpGuard::default();
        guard.observe(Now { mono: 0, wall: 9_000_000 });
        let back = Now { mono: 1, wall: 1_000_000 };
        guard.observe(back);
        assert!(guard.is_past(1_000_000, back) && !guard.is_past(1_000_001, back));
    }
}
