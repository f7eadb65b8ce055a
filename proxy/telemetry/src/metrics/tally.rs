//! How often one tenant's filters failed and crossed limits. A call that goes well writes nothing here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long after one event the next one of the same filter and limit is told at the soonest.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Pairs of a filter and a reason that one tenant is shown with; of further ones the filter is left out.
const MAX_PAIRS: usize = 1000;

/// Counts by filter and by what is counted of it.
#[derive(Default)]
pub(super) struct Tally(Mutex<BTreeMap<Pair, Count>>);

type Pair = (Box<str>, &'static str);

#[derive(Clone, Copy, Default)]
struct Count {
    all: u64,
    untold: u64,
    told: Option<Instant>,
}

impl Tally {
    /// Counts one more. Gives how many there were since it was told last, where it is to be told now.
    pub(super) fn add(&self, filter: &str, what: &'static str, now: Instant) -> Option<u64> {
        add(&mut self.counts(), filter, what, now)
    }

    /// The same, of what is told alone and never shown: what was told long enough ago makes room.
    pub(super) fn add_to_tell(&self, of: &str, what: &'static str, now: Instant) -> Option<u64> {
        let mut counts = self.counts();
        if counts.len() >= MAX_PAIRS {
            counts.retain(|_, count| {
                let is_recent = |told| now.saturating_duration_since(told) < TOLD_EVERY;
                count.untold > 0 || count.told.is_some_and(is_recent)
            });
        }
        add(&mut counts, of, what, now)
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<Pair, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted, by filter and what.
    pub(super) fn all(&self) -> Vec<(Pair, u64)> {
        self.counts().iter().map(|(pair, count)| (pair.clone(), count.all)).collect()
    }
}

fn add(counts: &mut BTreeMap<Pair, Count>, filter: &str, what: &'static str, now: Instant) -> Option<u64> {
    let mut pair: Pair = (filter.into(), what);
    if counts.len() >= MAX_PAIRS && !counts.contains_key(&pair) {
        pair.0 = "".into();
    }
    let count = counts.entry(pair).or_default();
    count.all += 1;
    count.untold += 1;
    if count.told.is_some_and(|told| now.saturating_duration_since(told) < TOLD_EVERY) {
        return None;
    }
    count.told = Some(now);
    Some(std::mem::take(&mut count.untold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_told_of_at_most_so_often() {
        let (tally, now) = (Tally::default(), Instant::now());
        assert_eq!(tally.add("f", "cpu", now), Some(1));
        assert_eq!(tally.add("f", "cpu", now), None);
        assert_eq!(tally.add("f", "log", now), Some(1), "another limit");
        assert_eq!(tally.add("f", "cpu", now + TOLD_EVERY), Some(2), "those that were not told");
        assert_eq!(tally.all(), [(("f".into(), "cpu"), 3), (("f".into(), "log"), 1)]);
    }

    #[test]
    fn what_was_told_long_ago_makes_room() {
        let (tally, now) = (Tally::default(), Instant::now());
        for i in 0..MAX_PAIRS {
            tally.add_to_tell(&i.to_string(), "module_size", now);
        }
        assert_eq!(tally.add_to_tell("another", "module_size", now), Some(1));
        assert_eq!(tally.add_to_tell("one more", "module_size", now), None, "they share what is left");
        assert_eq!(tally.add_to_tell("another", "module_size", now + TOLD_EVERY), Some(1));
        assert!(tally.all().len() < 10, "{:?}", tally.all());
    }

    #[test]
    fn whatever_filters_are_called_there_are_not_too_many() {
        let (tally, now) = (Tally::default(), Instant::now());
        for i in 0..MAX_PAIRS + 5 {
            tally.add(&i.to_string(), "cpu", now);
        }
        let all = tally.all();
        assert_eq!((all.len(), all[0].clone()), (MAX_PAIRS + 1, (("".into(), "cpu"), 5)));
        tally.add("7", "cpu", now);
        assert!(tally.all().contains(&(("7".into(), "cpu"), 2)), "what is known goes on");
    }
}
