//! Which ordering keys have a backlog: a shared index that is asked before a request is sent past its predecessors.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::record::Lane;

const SHARDS: usize = 64;

#[derive(Clone, Copy, Default)]
struct Open {
    /// Being enqueued.
    pending: u64,
    /// In the log: open, or dead and pausing its key.
    committed: u64,
}

/// Counts the records that others have to wait for by a hash of lane and key. Two keys of one hash would only make each other queue.
///
/// Request threads take a shard's lock for one look-up, and only for requests that have an ordering key.
pub(crate) struct KeyIndex {
    hasher: RandomState,
    shards: [Mutex<HashMap<u64, Open>>; SHARDS],
}

/// One record that is being enqueued: counts as backlog until it is committed or dropped.
pub(crate) struct PendingKey {
    index: Arc<KeyIndex>,
    hash: u64,
}

impl KeyIndex {
    pub(crate) fn new() -> Self {
        Self { hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }

    pub(crate) fn hash(&self, lane: &Lane, key: &str) -> u64 {
        self.hasher.hash_one((lane, key))
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, HashMap<u64, Open>> {
        let shard = usize::try_from(hash >> 58).expect("six bits fit") % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, hash: u64, change: impl FnOnce(&mut Open)) {
        let mut shard = self.shard(hash);
        let open = shard.entry(hash).or_default();
        change(open);
        if open.pending == 0 && open.committed == 0 {
            shard.remove(&hash);
        }
    }

    pub(crate) fn has_backlog(&self, lane: &Lane, key: &str) -> bool {
        let hash = self.hash(lane, key);
        self.shard(hash).contains_key(&hash)
    }

    pub(crate) fn pending(self: &Arc<Self>, lane: &Lane, key: &str) -> PendingKey {
        let hash = self.hash(lane, key);
        self.change(hash, |open| open.pending += 1);
        PendingKey { index: Arc::clone(self), hash }
    }

    pub(crate) fn ended(&self, lane: &Lane, key: &str) {
        self.change(self.hash(lane, key), |open| open.committed = open.committed.saturating_sub(1));
    }

    /// What is committed, by hash: in place of what was believed before. At no moment does a key that has a backlog by
    /// both seem to have none.
    pub(crate) fn recount(&self, mut committed: HashMap<u64, u64>) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).retain(|hash, open| {
                open.committed = committed.remove(hash).unwrap_or(0);
                open.pending > 0 || open.committed > 0
            });
        }
        for (hash, count) in committed {
            self.change(hash, |open| open.committed += count);
        }
    }
}

impl PendingKey {
    /// The record is in the log.
    pub(crate) fn committed(self) {
        self.index.change(self.hash, |open| open.committed += 1);
        // And dropping takes the pending one away.
    }
}

impl Drop for PendingKey {
    fn drop(&mut self) {
        self.index.change(self.hash, |open| open.pending = open.pending.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane { tenant: "acme".parse().unwrap(), upstream: "api".parse().unwrap() }
    }

    #[test]
    fn a_key_has_a_backlog_from_enqueue_to_its_last_end() {
        let index = Arc::new(KeyIndex::new());
        assert!(!index.has_backlog(&lane(), "k"));
        let (first, second) = (index.pending(&lane(), "k"), index.pending(&lane(), "k"));
        first.committed();
        drop(second);
        assert!(index.has_backlog(&lane(), "k") && !index.has_backlog(&lane(), "other"));
        index.ended(&lane(), "k");
        assert!(!index.has_backlog(&lane(), "k"));
    }

    #[test]
    fn a_recount_keeps_what_is_being_enqueued() {
        let index = Arc::new(KeyIndex::new());
        index.pending(&lane(), "gone").committed();
        let pending = index.pending(&lane(), "k");
        index.recount(HashMap::from([(index.hash(&lane(), "there"), 2)]));
        assert!(!index.has_backlog(&lane(), "gone"));
        assert!(index.has_backlog(&lane(), "k") && index.has_backlog(&lane(), "there"));
        drop(pending);
        assert!(!index.has_backlog(&lane(), "k"));
    }
}
