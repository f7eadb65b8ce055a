//! Who waits for a record to end: holders of receipts, each for as long as its request lasts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::record::RecordId;

/// Holders of receipts that can wait at once; beyond it they are answered at once.
const MOST: usize = 4096;

/// Who waits, by record.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    // Asked by the writer once for each record that ends, and by requests that wait: no other path comes by.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_record: HashMap<RecordId, watch::Sender<bool>>,
    places: usize,
}

/// One that waits for a record to end. Dropping it gives its place back.
#[derive(Debug)]
pub struct Waiter {
    of: Arc<Waiters>,
    id: RecordId,
    ended: watch::Receiver<bool>,
}

impl Waiters {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for this record from now on. None where too many wait already.
    pub(crate) fn wait_for(self: &Arc<Self>, id: RecordId) -> Option<Waiter> {
        let mut waiting = self.waiting();
        if waiting.places >= MOST {
            return None;
        }
        waiting.places += 1;
        let ended = waiting.by_record.entry(id).or_insert_with(|| watch::Sender::new(false)).subscribe();
        Some(Waiter { of: Arc::clone(self), id, ended })
    }

    /// A record ended, and its end is committed.
    pub(crate) fn ended(&self, id: RecordId) {
        if let Some(told) = self.waiting().by_record.remove(&id) {
            told.send_replace(true);
        }
    }
}

impl Waiter {
    /// Returns when the record has ended, at once where it did so since this waits.
    pub async fn ended(&mut self) {
        // The sender goes only after it told.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.of.waiting();
        waiting.places -= 1;
        // The last of a record that has not ended; of one that has, the entry is gone, or another's.
        let ended = *self.ended.borrow();
        if !ended && waiting.by_record.get(&self.id).is_some_and(|told| told.receiver_count() == 1) {
            waiting.by_record.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_and_leaves_nothing_behind() {
        let waiters = Arc::new(Waiters::default());
        let (one, other) = (RecordId::generate(1), RecordId::generate(2));
        let mut first = waiters.wait_for(one).unwrap();
        let mut second = waiters.wait_for(one).unwrap();
        let third = waiters.wait_for(other).unwrap();
        waiters.ended(one);
        tokio::join!(first.ended(), second.ended());
        drop((first, second, third));
        let waiting = waiters.waiting();
        assert!(waiting.by_record.is_empty() && waiting.places == 0, "{waiting:?}");
    }

    #[test]
    fn there_are_only_so_many_places() {
        let waiters = Arc::new(Waiters::default());
        let mut all: Vec<_> =
            (0..MOST).map(|n| waiters.wait_for(RecordId::generate(n as u64)).unwrap()).collect();
        assert!(waiters.wait_for(RecordId::generate(0)).is_none());
        all.pop();
        assert!(waiters.wait_for(RecordId::generate(0)).is_some());
    }
}
