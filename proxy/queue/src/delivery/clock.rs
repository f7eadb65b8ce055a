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
    damped: Option<Damped>,
    /// What the wall clock was ahead of the monotonic one by before it last went back.
    before_back: Option<i64>,
    /// When it was first looked at, in monotonic time.
    start: Option<i64>,
}

/// While a wall clock that jumped ahead is not believed.
#[derive(Clone, Copy, Debug)]
struct Damped {
    /// In monotonic time.
    until: i64,
    /// What it was ahead of the monotonic one before it jumped.
    offset: i64,
    /// Where it jumped to: what is stamped with less was stamped before.
    landed: u64,
}

impl JumpGuard {
    /// Takes note of the time; call it with each event.
    pub(super) fn observe(&mut self, now: Now) {
        let offset = i64::try_from(now.wall).unwrap_or(i64::MAX).saturating_sub(now.mono);
        self.start.get_or_insert(now.mono);
        let before = self.offset.replace(offset);
        if let Some(before) = before
            && before.saturating_sub(offset) > JUMP_MS
        {
            self.before_back = Some(before);
        }
        if let Some(before) = before
            && offset.saturating_sub(before) > JUMP_MS
        {
            tracing::warn!(
                ahead_ms = offset.saturating_sub(before),
                "the wall clock jumped ahead: no record expires for 10 minutes"
            );
            let offset = self.damped.map_or(before, |damped| damped.offset);
            self.damped = Some(Damped { until: now.mono + DAMPING_MS, offset, landed: now.wall });
        }
        self.damped = self.damped.filter(|damped| damped.until > now.mono);
    }

    /// Until when the wall clock is not believed, in monotonic time.
    pub(super) fn damped_until(&self) -> Option<i64> {
        self.damped.map(|damped| damped.until)
    }

    /// When, in monotonic time, something is due at `wall_ms` that was accepted at `stamped_ms`. What was accepted before a
    /// jump is due as if there had been none: after one ahead for as long as the clock is not believed, after one back
    /// until it has caught up. Where the clock went back before anyone looked, it is as if it had been accepted at the start.
    pub(super) fn mono_at(&self, wall_ms: u64, stamped_ms: u64, now: Now) -> i64 {
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let is_ahead = signed(stamped_ms).saturating_sub(signed(now.wall)) > JUMP_MS;
        match (self.damped, self.before_back, self.start) {
            (Some(damped), _, _) if stamped_ms < damped.landed => {
                signed(wall_ms).saturating_sub(damped.offset)
            }
            (_, Some(before), _) if is_ahead => signed(wall_ms).saturating_sub(before),
            (_, None, Some(start)) if is_ahead => {
                start.saturating_add(signed(wall_ms.saturating_sub(stamped_ms)))
            }
            _ => now.mono_at(wall_ms),
        }
    }

    /// Whether `wall_ms` is past, as far as the wall clock is believed.
    pub(super) fn is_past(&self, wall_ms: u64, now: Now) -> bool {
        self.damped.is_none() && wall_ms <= now.wall
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
    fn what_was_accepted_before_a_jump_is_due_as_if_there_had_been_none() {
        let mut guard = JumpGuard::default();
        guard.observe(Now { mono: 0, wall: 1_000_000 });
        let (due, accepted) = (1_600_000, 1_000_000);
        assert_eq!(guard.mono_at(due, accepted, Now { mono: 5, wall: 1_000_005 }), 600_000);
        let jumped = Now { mono: 1000, wall: 9_000_000 };
        guard.observe(jumped);
        assert_eq!(guard.mono_at(due, accepted, jumped), 600_000);
        assert_eq!(
            guard.mono_at(9_600_000, 9_000_001, jumped),
            601_000,
            "what came since goes by the new time"
        );
        // A second jump, and then the clock is put right.
        guard.observe(Now { mono: 2000, wall: 20_000_000 });
        guard.observe(Now { mono: 3000, wall: 1_003_000 });
        assert_eq!(guard.mono_at(due, accepted, Now { mono: 3000, wall: 1_003_000 }), 600_000);
        let mut guard = JumpGuard::default();
        guard.observe(Now { mono: 0, wall: 1_000_000 });
        guard.observe(jumped);
        let later = Now { mono: 1000 + DAMPING_MS, wall: 9_000_000 + 600_000 };
        guard.observe(later);
        let believed = later.mono_at(due);
        assert_eq!(guard.mono_at(due, accepted, later), believed, "in the end the clock is believed");

        let mut guard = JumpGuard::default();
        guard.observe(Now { mono: 0, wall: 9_000_000 });
        let back = Now { mono: 10_000, wall: 1_010_000 };
        guard.observe(back);
        assert_eq!(guard.mono_at(9_600_000, 9_000_000, back), 600_000, "one back moves nothing");
        assert_eq!(guard.mono_at(1_600_000, 1_000_001, back), 600_000);

        let mut guard = JumpGuard::default();
        guard.observe(Now { mono: 7, wall: 1_000_000 });
        let later = Now { mono: 10_007, wall: 1_010_000 };
        assert_eq!(guard.mono_at(9_600_000, 9_000_000, later), 600_007, "one back while nobody looked");
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
