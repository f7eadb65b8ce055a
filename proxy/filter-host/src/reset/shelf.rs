//! Where a thread keeps its instances, one of each module, the least recently used out first.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::kept::{Core, Kept};

/// Instances that a thread keeps. Beyond about so many the caches are cold, and a kept instance is no better than
/// a new one.
const MAX_INSTANCES: usize = 1000;
/// Bytes of linear memory of all instances that a thread keeps.
const MAX_BYTES: usize = 256 << 20;
/// New instances after which those are looked for whose module is gone.
const SWEEP_EVERY: u32 = 64;

thread_local! {
    static SHELF: RefCell<Shelf> = RefCell::new(Shelf::with_capacity(MAX_INSTANCES));
}

struct Shelf {
    capacity: usize,
    bytes: usize,
    /// By [`Core::key`], with the turn in which it was put here.
    kept: HashMap<u64, (u64, Kept)>,
    /// Turns and keys, oldest first; those that are in `kept` no more, or with a later turn, are passed over.
    order: VecDeque<(u64, u64)>,
    turn: u64,
    misses: u32,
}

impl Shelf {
    fn with_capacity(capacity: usize) -> Self {
        Self { capacity, bytes: 0, kept: HashMap::new(), order: VecDeque::new(), turn: 0, misses: 0 }
    }

    fn take(&mut self, key: u64) -> Option<Kept> {
        let Some((_, kept)) = self.kept.remove(&key) else {
            self.misses += 1;
            if self.misses >= SWEEP_EVERY {
                self.sweep();
            }
            return None;
        };
        self.bytes -= kept.bytes();
        Some(kept)
    }

    fn put(&mut self, kept: Kept) {
        if self.capacity == 0 {
            return;
        }
        self.turn += 1;
        let key = kept.core().key;
        self.bytes += kept.bytes();
        self.order.push_back((self.turn, key));
        // Two calls of one module may have been under way on this thread.
        if let Some((_, other)) = self.kept.insert(key, (self.turn, kept)) {
            self.bytes -= other.bytes();
        }
        while self.kept.len() > self.capacity || self.bytes > MAX_BYTES && self.kept.len() > 1 {
            self.evict();
        }
        if self.order.len() > 2 * self.kept.len() + 64 {
            let kept = &self.kept;
            self.order.retain(|(turn, key)| kept.get(key).is_some_and(|(t, _)| t == turn));
        }
    }

    fn evict(&mut self) {
        while let Some((turn, key)) = self.order.pop_front() {
            if self.kept.get(&key).is_some_and(|(t, _)| *t == turn) {
                self.remove(key);
                return;
            }
        }
    }

    fn remove(&mut self, key: u64) {
        if let Some((_, kept)) = self.kept.remove(&key) {
            self.bytes -= kept.bytes();
        }
    }

    /// Lets go of instances whose module nobody else has any more.
    fn sweep(&mut self) {
        self.misses = 0;
        let gone =
            |(key, (_, kept)): (&u64, &(u64, Kept))| (Arc::strong_count(kept.core()) == 1).then_some(*key);
        let gone: Vec<_> = self.kept.iter().filter_map(gone).collect();
        for key in gone {
            self.remove(key);
        }
    }
}

/// The instance of `core` that this thread keeps, in its first state.
pub(super) fn take(core: &Core) -> Option<Kept> {
    SHELF.with_borrow_mut(|shelf| shelf.take(core.key))
}

/// Keeps an instance that is in its first state.
pub(super) fn put(kept: Kept) {
    SHELF.with_borrow_mut(|shelf| shelf.put(kept));
}

/// For threads that run what outlived its slice: instances that come here are let go.
pub(crate) fn keep_nothing_on_this_thread() {
    SHELF.with_borrow_mut(|shelf| shelf.capacity = 0);
}
