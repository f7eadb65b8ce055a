//! Which clients' keys are in use: a shared index for a cheap first look, as [`crate::keys`] is for ordering keys.
//!
//! It says "taken" of a few keys too many at most, never of one too few: whether a record has the key, the log tells, and
//! it tells so again in the commit.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::idempotency::KeyScope;

const SHARDS: usize = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    /// By a request that is under way.
    claimed: bool,
    /// By records in the log. More than one only where two scopes begin alike.
    kept: u32,
}

/// Which scopes are claimed by requests under way, and which records have, by eight bytes of them.
///
/// Request threads take a shard's lock for one look-up, and only for requests that have a key.
#[derive(Debug)]
pub(crate) struct ClaimIndex {
    shards: [Mutex<HashMap<u64, Uses>>; SHARDS],
    kept: AtomicU64,
}

/// The right to be the one request that uses a key in its way. Dropping it lets the next one try.
#[derive(Debug)]
pub struct KeyClaim {
    index: Arc<ClaimIndex>,
    scope: KeyScope,
}

/// What came of the wish to use a key.
#[derive(Debug)]
pub(crate) enum Claiming {
    Claimed(KeyClaim),
    /// By a request that is under way.
    InUse,
    /// By a record, as far as this knows.
    Kept,
}

fn shard_of(prefix: u64) -> usize {
    usize::try_from(prefix >> 58).expect("six bits fit") % SHARDS
}

impl ClaimIndex {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), kept: AtomicU64::new(0) }
    }

    fn shard(&self, prefix: u64) -> MutexGuard<'_, HashMap<u64, Uses>> {
        self.shards[shard_of(prefix)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, scope: &KeyScope, change: impl FnOnce(&mut Uses) -> T) -> T {
        let mut shard = self.shard(scope.prefix());
        let uses = shard.entry(scope.prefix()).or_default();
        let changed = change(uses);
        if !uses.claimed && uses.kept == 0 {
            shard.remove(&scope.prefix());
        }
        changed
    }

    /// Whether no record has a key.
    pub(crate) fn is_unused(&self) -> bool {
        self.kept.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_kept(&self, scope: &KeyScope) -> bool {
        self.shard(scope.prefix()).get(&scope.prefix()).is_some_and(|uses| uses.kept > 0)
    }

    /// Claims a key where no request under way has it and no record, or `though_kept` by one: the log knows of none.
    pub(crate) fn claim(self: &Arc<Self>, scope: KeyScope, though_kept: bool) -> Claiming {
        self.change(&scope, |uses| match uses {
            Uses { claimed: true, .. } => Claiming::InUse,
            Uses { kept: 1.., .. } if !though_kept => Claiming::Kept,
            uses => {
                uses.claimed = true;
                Claiming::Claimed(KeyClaim { index: Arc::clone(self), scope })
            }
        })
    }

    /// A record has this key from now on.
    pub(crate) fn kept(&self, scope: &KeyScope) {
        self.kept.fetch_add(1, Ordering::AcqRel);
        self.change(scope, |uses| uses.kept += 1);
    }

    /// A record has this key no more.
    pub(crate) fn released(&self, scope: &KeyScope) {
        self.change(scope, |uses| uses.kept = uses.kept.saturating_sub(1));
        self.kept.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes what records have from the log, all anew. No key seems free meanwhile that is not.
    pub(crate) fn recount(&self, kept: &[KeyScope]) {
        let mut counts: [HashMap<u64, Uses>; SHARDS] = std::array::from_fn(|_| HashMap::new());
        for scope in kept {
            counts[shard_of(scope.prefix())].entry(scope.prefix()).or_default().kept += 1;
        }
        self.kept.store(kept.len() as u64, Ordering::Release);
        for (shard, mut counted) in self.shards.iter().zip(counts) {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let claimed = shard.iter().filter(|(_, uses)| uses.claimed);
            claimed.for_each(|(prefix, _)| counted.entry(*prefix).or_default().claimed = true);
            *shard = counted;
        }
    }
}

impl KeyClaim {
    pub(crate) fn scope(&self) -> KeyScope {
        self.scope
    }

    /// The record that has the key is in the log.
    pub(crate) fn committed(self) {
        self.index.kept(&self.scope);
        // And dropping takes the claim away.
    }
}

impl Drop for KeyClaim {
    fn drop(&mut self) {
        self.index.change(&self.scope, |uses| uses.claimed = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(claiming: Claiming) -> KeyClaim {
        match claiming {
            Claiming::Claimed(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_claimed_once_and_kept_until_it_is_released() {
        let index = Arc::new(ClaimIndex::new());
        let (one, other) = (KeyScope([1; 32]), KeyScope([2; 32]));
        let claim = claimed(index.claim(one, false));
        assert!(matches!(index.claim(one, true), Claiming::InUse));
        drop(claimed(index.claim(other, false)));
        drop(claim);
        claimed(index.claim(one, false)).committed();
        assert!(matches!(index.claim(one, false), Claiming::Kept));
        assert!(index.is_kept(&one) && !index.is_kept(&other) && !index.is_unused());
        drop(claimed(index.claim(one, true)));
        assert!(index.is_kept(&one), "a claim that comes to nothing changes nothing");
        index.released(&one);
        assert!(index.is_unused() && index.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }

    #[test]
    fn a_recount_keeps_what_is_claimed() {
        let index = Arc::new(ClaimIndex::new());
        let (gone, under_way, there) = (KeyScope([1; 32]), KeyScope([2; 32]), KeyScope([3; 32]));
        index.kept(&gone);
        let claim = claimed(index.claim(under_way, false));
        index.recount(&[there]);
        assert!(!index.is_kept(&gone) && index.is_kept(&there));
        assert!(matches!(index.claim(under_way, false), Claiming::InUse));
        drop(claim);
        assert_eq!(index.kept.load(Ordering::Relaxed), 1);
    }
}
