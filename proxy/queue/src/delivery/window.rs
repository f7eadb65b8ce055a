//! A window onto a lane's records: the earliest due ones, as many as there is room for. The rest stays on disk.

use std::collections::{BTreeMap, HashMap};

use super::backoff::Jitter;
use crate::{log::Candidate, record::Seq};

/// Candidates by the monotonic time in milliseconds that they are due, then by commit order.
#[derive(Debug, Default)]
pub(super) struct Window {
    by_due: BTreeMap<(i64, Seq), Candidate>,
    due_of: HashMap<Seq, i64>,
}

impl Window {
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.by_due.len(), self.due_of.len());
        self.by_due.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_due.is_empty()
    }

    /// Adds a candidate, or what is newer of one that is there. Returns whether something was left out: this one, or
    /// the one that was due last.
    pub(super) fn insert(&mut self, candidate: Candidate, due: i64, capacity: usize) -> bool {
        let seq = candidate.seq;
        if let Some(known_due) = self.due_of.get(&seq) {
            let known = &self.by_due[&(*known_due, seq)];
            // One that was dead and is queued again at its old place has had no new attempt, but has more time.
            if (known.attempts, known.expires_ms) >= (candidate.attempts, candidate.expires_ms) {
                return false;
            }
            self.by_due.remove(&(*known_due, seq));
        }
        self.due_of.insert(seq, due);
        self.by_due.insert((due, seq), candidate);
        if self.by_due.len() <= capacity {
            return false;
        }
        if let Some(((_, last), _)) = self.by_due.pop_last() {
            self.due_of.remove(&last);
        }
        true
    }

    /// When the first one is due.
    pub(super) fn first_due(&self) -> Option<i64> {
        self.by_due.first_key_value().map(|((due, _), _)| *due)
    }

    /// When the last one is due.
    pub(super) fn last_due(&self) -> Option<i64> {
        self.by_due.last_key_value().map(|((due, _), _)| *due)
    }

    /// Takes the first one, if it is due.
    pub(super) fn take_due(&mut self, now: i64) -> Option<Candidate> {
        let key = *self.by_due.first_key_value()?.0;
        if key.0 > now { None } else { self.take(key) }
    }

    /// Takes one to probe the upstream with, of those that are due: one that the upstream has not refused, for it may fail
    /// of itself; then one that is safe to repeat, which a failure costs nothing, unless it is to be of `any` kind: all that
    /// are safe may fail for a reason of their own. Of those that are alike, the first; or, with dice, the last or any:
    /// neighbours may fail together, and what came last has least to do with them.
    pub(super) fn take_probe(&mut self, now: i64, any: bool, dice: Option<&mut Jitter>) -> Option<Candidate> {
        let due = || self.by_due.range(..=(now, Seq(i64::MAX)));
        let rank =
            |candidate: &Candidate| (candidate.blame.map(|b| b.failures), !any && !candidate.repeat_safe);
        let best = due().map(|(_, candidate)| rank(candidate)).min()?;
        let alike = || due().filter(|(_, candidate)| rank(candidate) == best);
        let chosen = dice.map_or(0, |dice| {
            let count = alike().count();
            if dice.below(2) == 0 { count - 1 } else { dice.below(count) }
        });
        let key = *alike().nth(chosen)?.0;
        self.take(key)
    }

    fn take(&mut self, key: (i64, Seq)) -> Option<Candidate> {
        self.due_of.remove(&key.1);
        self.by_due.remove(&key)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{log::Blame, record::Lane};

    pub(in super::super) fn candidate(seq: i64, attempts: u32) -> Candidate {
        Candidate {
            seq: Seq(seq),
            accepted_ms: 0,
            lane: Lane { tenant: "acme".parse().unwrap(), upstream: "api".parse().unwrap() },
            attempts,
            due_ms: 0,
            delay_ms: 0,
            expires_ms: u64::MAX,
            repeat_safe: true,
            keyed: false,
            size: 1,
            blame: None,
        }
    }

    #[test]
    fn it_keeps_the_earliest_and_says_when_one_is_left_out() {
        let mut window = Window::default();
        for (seq, due, left_out) in [(1, 30, false), (2, 20, false), (3, 10, true), (4, 40, true)] {
            assert_eq!(window.insert(candidate(seq, 0), due, 2), left_out, "{seq}");
        }
        assert_eq!(window.take_due(9), None);
        assert_eq!(window.take_due(10).unwrap().seq, Seq(3));
        assert_eq!(window.take_due(20).unwrap().seq, Seq(2));
        assert!(window.is_empty());
    }

    #[test]
    fn an_outdated_view_does_not_replace_a_newer_one() {
        let mut window = Window::default();
        window.insert(candidate(1, 2), 50, 8);
        window.insert(candidate(1, 1), 10, 8);
        assert_eq!(window.first_due(), Some(50));
        window.insert(candidate(1, 3), 60, 8);
        assert_eq!((window.first_due(), window.len()), (Some(60), 1));
        window.insert(Candidate { expires_ms: 7, ..candidate(2, 0) }, 10, 8);
        window.insert(Candidate { expires_ms: 9, ..candidate(2, 0) }, 20, 8);
        assert_eq!(window.take_due(20).unwrap().expires_ms, 9, "what is queued again has more time");
    }

    #[test]
    fn a_probe_is_one_that_was_not_refused_and_is_safe_to_repeat_and_else_any() {
        let jitter = &mut Jitter::new(1);
        let mut window = Window::default();
        let refused = Some(Blame { failures: 1, since_ms: 0 });
        window.insert(Candidate { blame: refused, ..candidate(1, 5) }, 1, 8);
        window.insert(Candidate { repeat_safe: false, ..candidate(2, 0) }, 2, 8);
        window.insert(candidate(3, 7), 9, 8);
        window.insert(candidate(4, 0), 99, 8);
        let order: Vec<_> =
            std::iter::from_fn(|| window.take_probe(10, false, Some(jitter))).map(|c| c.seq.0).collect();
        assert_eq!(order, [3, 2, 1], "and none that is not due");
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..100 {
            let mut window = Window::default();
            for seq in 0..8 {
                window.insert(candidate(seq, 0), seq, 8);
            }
            assert_eq!(window.take_probe(10, false, None).unwrap().seq, Seq(0));
            firsts.insert(window.take_probe(10, false, Some(jitter)).unwrap().seq);
        }
        assert_eq!(firsts.len(), 7);
    }
}
