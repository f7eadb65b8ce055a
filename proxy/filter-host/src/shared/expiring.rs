//! A map whose entries expire, in shards. A lock is held for one look-up at a time, or for a few entries that have expired.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

const SHARDS: usize = 16;
/// Expired entries that one look at a shard drops.
const DROPPED_AT_ONCE: usize = 8;
/// A table with room for so many times what it holds is made smaller.
const SPARSE: usize = 8;

pub(crate) struct Expiring<V> {
    hasher: RandomState,
    shards: [Mutex<Shard<V>>; SHARDS],
}

/// One shard, locked.
pub(crate) struct Shard<V> {
    entries: HashMap<Arc<str>, (V, Option<Duration>)>,
    /// What expires, soonest first.
    due: BTreeSet<(Duration, Arc<str>)>,
}

impl<V> Expiring<V> {
    pub(crate) fn new() -> Self {
        let shard = |_| Mutex::new(Shard { entries: HashMap::new(), due: BTreeSet::new() });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(shard) }
    }

    /// The shard of a key.
    pub(crate) fn shard(&self, key: &str) -> MutexGuard<'_, Shard<V>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        locked(&self.shards[hash])
    }

    /// Drops some of what has expired in every shard; hands each to `dropped`. Whether there was any.
    pub(crate) fn drop_expired(&self, now: Duration, mut dropped: impl FnMut(&str, V)) -> bool {
        let mut any = false;
        for shard in &self.shards {
            any |= locked(shard).drop_expired(now, &mut dropped);
        }
        any
    }

    /// Drops all that has expired, and lets go of tables that are much too large for what is left; hands each to `dropped`.
    pub(crate) fn sweep(&self, now: Duration, mut dropped: impl FnMut(&str, V)) {
        while self.drop_expired(now, &mut dropped) {}
        for shard in &self.shards {
            let mut shard = locked(shard);
            let len = shard.entries.len();
            if shard.entries.capacity() > SPARSE * len {
                shard.entries.shrink_to(len * 2);
            }
        }
    }

    /// The keys of each shard, one after the other, those of expired entries too. A lock is held while a pointer to each is copied.
    pub(super) fn keys(&self) -> impl Iterator<Item = Vec<Arc<str>>> {
        self.shards.iter().map(|shard| locked(shard).entries.keys().cloned().collect())
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).entries.capacity()).sum()
    }
}

fn locked<V>(shard: &Mutex<Shard<V>>) -> MutexGuard<'_, Shard<V>> {
    // Nothing of ours panics half way through a change.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<V> Shard<V> {
    /// The value of a key and when it expires, where it has not.
    pub(crate) fn get(&self, key: &str, now: Duration) -> Option<(&V, Option<Duration>)> {
        let (value, expires) = self.entries.get(key)?;
        expires.is_none_or(|expires| expires > now).then_some((value, *expires))
    }

    /// Puts a value in; gives what was there, expired or not.
    pub(crate) fn insert(&mut self, key: &str, value: V, expires: Option<Duration>) -> Option<V> {
        let before = self.remove(key);
        let key: Arc<str> = key.into();
        if let Some(expires) = expires {
            self.due.insert((expires, Arc::clone(&key)));
        }
        self.entries.insert(key, (value, expires));
        before
    }

    /// Takes a value out, expired or not.
    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        let (key, (value, expires)) = self.entries.remove_entry(key)?;
        if let Some(expires) = expires {
            self.due.remove(&(expires, key));
        }
        Some(value)
    }

    /// Drops some of what has expired; whether there was any.
    pub(crate) fn drop_expired(&mut self, now: Duration, dropped: &mut impl FnMut(&str, V)) -> bool {
        let mut any = false;
        for _ in 0..DROPPED_AT_ONCE {
            let Some((_, key)) = self.due.first().filter(|(expires, _)| *expires <= now) else { break };
            let key = Arc::clone(key);
            if let Some(value) = self.remove(&key) {
                dropped(&key, value);
            }
            any = true;
        }
        any
    }
}
