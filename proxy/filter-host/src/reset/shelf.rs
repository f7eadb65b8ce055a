//! Where a thread keeps its instances, one of each module, the least recently used out first; and what a node keeps on all
//! its threads together. Instances that a filter's next requests reuse stand on shelves of their own (`instances`), one of
//! each filter.
//!
//! A shelf is its thread's own, but for one thing: who lets go of a module takes that module's instances from all
//! shelves, idle threads' too, as does who sweeps them now and then for instances that nobody uses. A thread that would have to
//! wait for that does without its shelf for once.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use rustc_hash::FxHashMap;

use super::kept::{Core, Kept};

/// Instances that a thread keeps. Beyond about so many the caches are cold, and a kept instance is no better than
/// a new one.
pub(crate) const MAX_INSTANCES: usize = 1_000;
/// What the instances that a thread keeps may cost, in bytes.
pub(crate) const MAX_BYTES: usize = 512 << 20;
/// Instances that a node keeps. Each has a stack, which takes two of the 65,530 mappings that Linux grants a process.
pub(crate) const MAX_NODE_INSTANCES: usize = 4_096;
/// What the instances that a node keeps may cost, in bytes.
pub(crate) const MAX_NODE_BYTES: usize = 1 << 30;

/// Sweeps that an instance outlives without being used.
pub(crate) const IDLE_SWEEPS: usize = 6;

/// What a node keeps.
#[derive(Debug)]
pub(crate) struct Node {
    max_instances: usize,
    max_bytes: usize,
    instances: AtomicUsize,
    bytes: AtomicUsize,
}

impl Node {
    pub(crate) fn with_bounds(max_instances: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            max_instances,
            max_bytes,
            instances: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        })
    }

    /// What one tenant may have of it: half, so that none takes it from all others.
    pub(crate) fn share(&self) -> Arc<Self> {
        Self::with_bounds(self.max_instances.div_ceil(2), self.max_bytes / 2)
    }
}

/// An instance's part in what a node keeps. It stays with the instance while that is in use, so that a call writes
/// nothing that threads share.
#[derive(Debug)]
pub(crate) struct Place {
    node: Arc<Node>,
    /// 0: it has none yet.
    bytes: usize,
}

impl Place {
    /// Of an instance that was never kept.
    pub(crate) fn none(node: &Arc<Node>) -> Self {
        Self { node: Arc::clone(node), bytes: 0 }
    }

    /// Instances and bytes that have to go before it can be one of so many `bytes`.
    fn lacks(&self, bytes: usize) -> (usize, usize) {
        let Self { node, bytes: before } = self;
        let instances = if *before == 0 { node.instances.load(Relaxed) + 1 } else { 0 };
        let bytes = node.bytes.load(Relaxed) + bytes.saturating_sub(*before);
        (instances.saturating_sub(node.max_instances), bytes.saturating_sub(node.max_bytes))
    }

    /// Makes it one of so many `bytes`; `false` where the node has no room: then it is as it was.
    pub(crate) fn fit(&mut self, bytes: usize) -> bool {
        let Self { node, bytes: before } = self;
        if bytes > *before {
            let more = bytes - *before;
            if node.bytes.fetch_add(more, Relaxed) + more > node.max_bytes {
                node.bytes.fetch_sub(more, Relaxed);
                return false;
            }
            if *before == 0 && node.instances.fetch_add(1, Relaxed) >= node.max_instances {
                node.instances.fetch_sub(1, Relaxed);
                node.bytes.fetch_sub(more, Relaxed);
                return false;
            }
            *before = bytes;
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.node.bytes.fetch_sub(self.bytes, Relaxed);
            self.node.instances.fetch_sub(1, Relaxed);
        }
    }
}

/// What stands on a shelf.
pub(crate) trait Item {
    /// Tells whose it is: its module, or its filter.
    fn key(&self) -> u64;
    /// Bytes that it may take of the node's memory, all told. Never 0.
    fn cost(&self) -> usize;
    /// Whether whoever it belongs to is in use.
    fn is_wanted(&self) -> bool;
    fn place(&mut self) -> &mut Place;
}

pub(crate) struct Shelf<T> {
    capacity: usize,
    max_bytes: usize,
    bytes: usize,
    /// By [`Item::key`], with the turn in which it was put here, and its cost.
    kept: FxHashMap<u64, (u64, usize, T)>,
    /// Turns and keys, oldest first; those that are in `kept` no more, or with a later turn, are passed over.
    order: VecDeque<(u64, u64)>,
    turn: u64,
    /// The turns of the last sweeps, oldest first: so age costs a call nothing, not even a look at a clock.
    swept: VecDeque<u64>,
}

impl<T: Item> Shelf<T> {
    pub(crate) fn with_bounds(capacity: usize, max_bytes: usize) -> Self {
        Self {
            capacity,
            max_bytes,
            bytes: 0,
            kept: FxHashMap::default(),
            order: VecDeque::new(),
            turn: 0,
            swept: VecDeque::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(crate) fn take(&mut self, key: u64) -> Option<T> {
        let (_, cost, item) = self.kept.remove(&key)?;
        self.bytes -= cost;
        Some(item)
    }

    pub(crate) fn put(&mut self, mut item: T) {
        if self.capacity == 0 {
            return;
        }
        let (key, cost) = (item.key(), item.cost());
        if !item.is_wanted() || cost > self.max_bytes {
            return;
        }
        // Two calls of one module may have been under way on this thread.
        drop(self.take(key));
        // Where the node is full, others of this thread make room; none goes where they have too little.
        let (instances, bytes) = item.place().lacks(cost);
        if instances > self.kept.len() || bytes > self.bytes {
            return;
        }
        while !item.place().fit(cost) {
            if self.kept.is_empty() {
                return;
            }
            self.evict();
        }
        self.turn += 1;
        self.bytes += cost;
        self.order.push_back((self.turn, key));
        self.kept.insert(key, (self.turn, cost, item));
        while self.kept.len() > self.capacity || self.bytes > self.max_bytes {
            self.evict();
        }
        if self.order.len() > 2 * self.kept.len() + 64 {
            let kept = &self.kept;
            self.order.retain(|(turn, key)| kept.get(key).is_some_and(|(t, ..)| t == turn));
        }
    }

    /// Takes out what was put here [`IDLE_SWEEPS`] sweeps ago or earlier.
    fn sweep(&mut self) -> Vec<T> {
        self.swept.push_back(self.turn);
        if self.swept.len() <= IDLE_SWEEPS {
            return Vec::new();
        }
        let Some(last) = self.swept.pop_front() else { return Vec::new() };
        let mut idle = Vec::new();
        while let Some((turn, key)) = self.order.pop_front_if(|(turn, _)| *turn <= last) {
            if self.kept.get(&key).is_some_and(|(t, ..)| *t == turn) {
                idle.extend(self.take(key));
            }
        }
        idle
    }

    fn evict(&mut self) {
        while let Some((turn, key)) = self.order.pop_front() {
            if self.kept.get(&key).is_some_and(|(t, ..)| *t == turn) {
                drop(self.take(key));
                return;
            }
        }
    }
}

/// The shelves of all threads, for one kind of instance.
pub(crate) struct Shelves<T>(Mutex<Vec<Weak<Mutex<Shelf<T>>>>>);

impl<T: Item> Shelves<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Makes a shelf one of them, for as long as its thread lives.
    pub(crate) fn add(&self, shelf: Shelf<T>) -> Arc<Mutex<Shelf<T>>> {
        let shelf = Arc::new(Mutex::new(shelf));
        let mut shelves = lock(&self.0);
        shelves.retain(|shelf| shelf.strong_count() > 0);
        shelves.push(Arc::downgrade(&shelf));
        shelf
    }

    fn all(&self) -> Vec<Arc<Mutex<Shelf<T>>>> {
        lock(&self.0).iter().filter_map(Weak::upgrade).collect()
    }

    /// Frees what all threads keep under this key.
    pub(crate) fn let_go(&self, key: u64) {
        for shelf in self.all() {
            // Freed when the shelf's own thread can have it again.
            let gone = lock(&shelf).take(key);
            drop(gone);
        }
    }

    /// Frees what was not used during the last [`IDLE_SWEEPS`] calls of this. A shelf that its thread uses right now is passed
    /// over until the next one.
    pub(crate) fn sweep(&self) {
        for shelf in self.all() {
            let idle = use_own(&shelf, Shelf::sweep);
            drop(idle);
        }
    }
}

static SHELVES: Shelves<Box<Kept>> = Shelves::new();

thread_local! {
    // Boxed instances: they are put there and taken away for each call.
    static SHELF: Arc<Mutex<Shelf<Box<Kept>>>> = SHELVES.add(Shelf::with_bounds(MAX_INSTANCES, MAX_BYTES));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Uses a shelf, where nobody else does right now.
pub(crate) fn use_own<T, R>(shelf: &Mutex<Shelf<T>>, use_it: impl FnOnce(&mut Shelf<T>) -> R) -> Option<R> {
    match shelf.try_lock() {
        Ok(mut shelf) => Some(use_it(&mut shelf)),
        Err(TryLockError::Poisoned(shelf)) => Some(use_it(&mut shelf.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn with_own<R>(use_it: impl FnOnce(&mut Shelf<Box<Kept>>) -> R) -> Option<R> {
    SHELF.with(|shelf| use_own(shelf, use_it))
}

/// The instance of `core` that this thread keeps, in its first state.
pub(super) fn take(core: &Core) -> Option<Box<Kept>> {
    with_own(|shelf| shelf.take(core.key())).flatten()
}

/// Keeps an instance that is in its first state.
pub(super) fn put(kept: Box<Kept>) {
    // Where the shelf is in use, the instance ends here.
    let _ = with_own(|shelf| shelf.put(kept));
}

/// Frees the instances that all threads keep of a module.
pub(super) fn let_go(key: u64) {
    SHELVES.let_go(key);
}

/// Frees the instances of all threads that were not used for some time, told in calls of this.
pub(crate) fn sweep() {
    SHELVES.sweep();
}

/// For threads that run what outlived its slice: instances that come here are let go.
pub(crate) fn keep_nothing_on_this_thread() {
    SHELF.with(|shelf| lock(shelf).capacity = 0);
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    struct Thing {
        key: u64,
        cost: usize,
        wanted: Rc<Cell<bool>>,
        place: Place,
    }

    impl Item for Thing {
        fn key(&self) -> u64 {
            self.key
        }

        fn cost(&self) -> usize {
            self.cost
        }

        fn is_wanted(&self) -> bool {
            self.wanted.get()
        }

        fn place(&mut self) -> &mut Place {
            &mut self.place
        }
    }

    fn thing(node: &Arc<Node>, key: u64, cost: usize) -> Thing {
        Thing { key, cost, wanted: Rc::new(Cell::new(true)), place: Place::none(node) }
    }

    fn keys(shelf: &Shelf<Thing>) -> Vec<u64> {
        let mut keys: Vec<_> = shelf.kept.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    fn taken(node: &Node) -> (usize, usize) {
        (node.instances.load(Relaxed), node.bytes.load(Relaxed))
    }

    /// A shelf with three things of 10 bytes.
    fn three(node: &Arc<Node>, capacity: usize) -> Shelf<Thing> {
        let mut shelf = Shelf::with_bounds(capacity, 1_000);
        (1..=3).for_each(|key| shelf.put(thing(node, key, 10)));
        shelf
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let node = Node::with_bounds(100, 10_000);
        let mut shelf = three(&node, 3);
        let used = shelf.take(1).unwrap();
        assert_eq!(
            (keys(&shelf), shelf.bytes, taken(&node)),
            (vec![2, 3], 20, (3, 30)),
            "its place stays its own"
        );
        shelf.put(used);
        shelf.put(thing(&node, 4, 10));
        assert_eq!((keys(&shelf), shelf.bytes, taken(&node)), (vec![1, 3, 4], 30, (3, 30)));
        // By bytes: however many it takes, and none for what is too large for any shelf.
        shelf.put(thing(&node, 5, 985));
        assert_eq!((keys(&shelf), taken(&node)), (vec![4, 5], (2, 995)));
        shelf.put(thing(&node, 6, 1_001));
        assert_eq!((keys(&shelf), shelf.bytes, taken(&node)), (vec![4, 5], 995, (2, 995)));
    }

    #[test]
    fn of_two_of_one_module_the_later_is_kept_and_the_order_stays_short() {
        let node = Node::with_bounds(100, 10_000);
        let mut shelf = Shelf::with_bounds(3, 1_000);
        shelf.put(thing(&node, 1, 10));
        shelf.put(thing(&node, 1, 20));
        assert_eq!((shelf.kept.len(), shelf.bytes, taken(&node)), (1, 20, (1, 20)));
        for _ in 0..1_000 {
            let item = shelf.take(1).unwrap();
            shelf.put(item);
        }
        assert!(shelf.order.len() < 100, "{}", shelf.order.len());
        // One that has grown takes more.
        let mut item = shelf.take(1).unwrap();
        item.cost = 50;
        shelf.put(item);
        assert_eq!((shelf.bytes, taken(&node)), (50, (1, 50)));
    }

    #[test]
    fn one_whose_module_went_during_its_call_does_not_come_back() {
        let node = Node::with_bounds(100, 10_000);
        let mut shelf = Shelf::with_bounds(10, 1_000);
        shelf.put(thing(&node, 1, 10));
        let item = shelf.take(1).unwrap();
        item.wanted.set(false);
        shelf.put(item);
        assert_eq!((keys(&shelf), taken(&node)), (vec![], (0, 0)));
    }

    #[test]
    fn where_a_node_is_full_as_many_go_as_make_room_and_none_where_they_do_not() {
        let node = Node::with_bounds(100, 100);
        let (mut one, mut other) = (Shelf::with_bounds(10, 1_000), Shelf::with_bounds(10, 1_000));
        other.put(thing(&node, 1, 40));
        for key in 1..=3 {
            one.put(thing(&node, key, 20));
        }
        // Its own have 60.
        one.put(thing(&node, 4, 61));
        assert_eq!((keys(&one), taken(&node)), (vec![1, 2, 3], (4, 100)));
        one.put(thing(&node, 5, 35));
        assert_eq!((keys(&one), taken(&node)), (vec![3, 5], (3, 95)));
        // One that has grown has a place already: only what it has more is to be found.
        let mut item = one.take(5).unwrap();
        item.cost = 55;
        one.put(item);
        assert_eq!((keys(&one), taken(&node)), (vec![5], (2, 95)));
    }

    #[test]
    fn a_node_has_bounds_for_all_its_threads_together() {
        let node = Node::with_bounds(3, 100);
        let (mut one, mut other) = (Shelf::with_bounds(10, 1_000), Shelf::with_bounds(10, 1_000));
        one.put(thing(&node, 1, 10));
        one.put(thing(&node, 2, 10));
        other.put(thing(&node, 1, 10));
        // Full by number: a thread's own make room, and where it has none, it keeps nothing.
        other.put(thing(&node, 3, 10));
        assert_eq!((keys(&other), taken(&node)), (vec![3], (3, 30)));
        let mut third = Shelf::with_bounds(10, 1_000);
        third.put(thing(&node, 4, 10));
        assert_eq!((keys(&third), taken(&node)), (vec![], (3, 30)));
        drop(one);
        assert_eq!(taken(&node), (1, 10));
        // Full by bytes.
        third.put(thing(&node, 4, 91));
        assert_eq!((keys(&third), taken(&node)), (vec![], (1, 10)));
        third.put(thing(&node, 4, 90));
        assert_eq!((keys(&third), taken(&node)), (vec![4], (2, 100)));
    }

    #[test]
    fn what_is_not_used_for_long_goes_and_what_is_used_stays() {
        let node = Node::with_bounds(100, 10_000);
        let mut shelf = three(&node, 10);
        let under_way = shelf.take(3).unwrap();
        for _ in 0..IDLE_SWEEPS {
            assert!(shelf.sweep().is_empty());
            let used = shelf.take(2).unwrap();
            shelf.put(used);
        }
        assert_eq!(shelf.sweep().iter().map(Item::key).collect::<Vec<_>>(), [1]);
        assert_eq!((keys(&shelf), shelf.bytes, taken(&node)), (vec![2], 10, (2, 20)));
        shelf.put(under_way);
        for _ in 0..IDLE_SWEEPS - 1 {
            assert!(shelf.sweep().is_empty());
        }
        assert_eq!(shelf.sweep().len(), 1, "the one that was used last before");
        assert_eq!(keys(&shelf), [3]);
        drop(shelf.sweep());
        assert_eq!((keys(&shelf), taken(&node)), (vec![], (0, 0)));
        assert!(shelf.order.is_empty() && shelf.swept.len() == IDLE_SWEEPS);
    }

    #[test]
    fn a_lane_keeps_nothing() {
        let node = Node::with_bounds(3, 100);
        let mut shelf = Shelf::with_bounds(10, 1_000);
        shelf.capacity = 0;
        shelf.put(thing(&node, 1, 10));
        assert_eq!((keys(&shelf), taken(&node)), (vec![], (0, 0)));
    }
}
