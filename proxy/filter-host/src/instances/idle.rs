//! Instances that wait for their filter's next request: on their thread's shelf, one of each filter, until they are swept.
//!
//! Which filter is meant by a key that no other filter, tenant or revision ever has. Its chain holds it, and with the
//! chain its instances go: whoever drops that frees them, a thread that serves no requests as a rule.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use super::kept::Kept;
use crate::reset::{Item, Node, Place, Shelf, Shelves, use_own};

/// What waiting instances may take of a node, in bytes.
pub(crate) const MAX_BYTES: usize = 512 << 20;

/// Instances that can wait beside a pool of so many.
pub(crate) fn kept_idle(pool: u32) -> u32 {
    (pool / 16).max(1)
}

/// What a node keeps of them.
pub(crate) fn idle_room(pool: u32) -> Arc<Node> {
    Node::with_bounds(kept_idle(pool) as usize, MAX_BYTES)
}

static SHELVES: Shelves<Idle> = Shelves::new();

thread_local! {
    // The node's bounds are the narrower ones.
    static SHELF: Arc<Mutex<Shelf<Idle>>> = SHELVES.add(Shelf::with_bounds(usize::MAX, MAX_BYTES));
}

/// A filter's hold on its waiting instances.
#[derive(Debug)]
pub(super) struct Reuse(Arc<Filter>);

#[derive(Debug)]
struct Filter {
    key: u64,
    /// Requests that one instance serves.
    requests: NonZeroU32,
    /// Whether there still is the filter's [`Reuse`].
    wanted: AtomicBool,
}

/// One that waits.
struct Idle {
    kept: Box<Kept>,
    of: Arc<Filter>,
}

impl Item for Idle {
    fn key(&self) -> u64 {
        self.of.key
    }

    fn cost(&self) -> usize {
        self.kept.cost()
    }

    fn is_wanted(&self) -> bool {
        self.of.wanted.load(Relaxed)
    }

    fn place(&mut self) -> &mut Place {
        &mut self.kept.place
    }
}

impl Reuse {
    pub(super) fn of(requests: NonZeroU32) -> Self {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        let key = KEYS.fetch_add(1, Relaxed);
        Self(Arc::new(Filter { key, requests, wanted: AtomicBool::new(true) }))
    }

    /// The instance that waits on this thread.
    pub(super) fn take(&self) -> Option<Box<Kept>> {
        let idle = SHELF.with(|shelf| use_own(shelf, |shelf| shelf.take(self.0.key))).flatten()?;
        Some(idle.kept)
    }

    /// Has an instance wait on this thread, unless it has served what it may, or as many of its tenant's wait as may.
    pub(super) fn put(&self, mut kept: Box<Kept>) {
        let cost = kept.cost();
        if kept.served() < self.0.requests.get() && kept.share.fit(cost) {
            let idle = Idle { kept, of: Arc::clone(&self.0) };
            // Where the shelf is in use, the instance ends here.
            let _ = SHELF.with(|shelf| use_own(shelf, |shelf| shelf.put(idle)));
        }
    }
}

impl Drop for Reuse {
    fn drop(&mut self) {
        // In this order: what is put on a shelf that was looked at already is not wanted any more.
        self.0.wanted.store(false, Relaxed);
        SHELVES.let_go(self.0.key);
    }
}

/// Frees the instances of all threads that were not used for some time, told in calls of this.
pub(crate) fn sweep() {
    SHELVES.sweep();
}

#[cfg(test)]
pub(crate) fn waiting_on_this_thread() -> usize {
    SHELF.with(|shelf| use_own(shelf, |shelf| shelf.len())).expect("no other test is about this thread")
}
