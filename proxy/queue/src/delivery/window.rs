//! A window onto a lane's records: the earliest due ones, as many as there is room for. The rest stays on disk.

use std::collections::{BTreeMap, HashMap};

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
            if known.attempts >= candidate.attempts {
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

    /// Takes the one that was tried least of those that are due: a probe should not be spent on what fails of itself.
    pub(super) fn take_least_tried(&mut self, now: i64) -> Option<Candidate> {
        let due = self.by_due.range(..=(now, Seq(i64::MAX)));
        let key = *due.min_by_key(|((due, seq), candidate)| (candidate.attempts, *due, *seq))?.0;
        self.take(key)
    }

    fn take(&mut self, key: (i64, Seq)) -> Option<Candidate> {
        self.due_of.remove(&key.1);
        self.by_due.remove(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Lane;

    fn candidate(seq: i64, attempts: u32) -> Candidate {
        Candidate {
            seq: Seq(seq),
            lane: Lane { tenant: "acme".parse().unwrap(), upstream: "api".parse().unwrap() },
            attempts,
            due_ms: 0,
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
    }

    #[test]
    fn a_probe_takes_what_was_tried_least() {
        let mut window = Window::default();
        window.insert(candidate(1, 5), 1, 8);
        window.insert(candidate(2, 0), 9, 8);
        window.insert(candidate(3, 0), 99, 8);
        assert_eq!(window.take_least_tried(10).unwrap().seq, Seq(2));
        assert_eq!(window.take_least_tried(10).unwrap().seq, Seq(1));
        assert_eq!(window.take_least_tried(10), None);
    }
}
