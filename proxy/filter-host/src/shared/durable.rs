//! Keys and values that outlive the node: which have changed, for whoever keeps them, and how they come back.
//!
//! A filter's call changes memory and notes the key, nothing more; whoever keeps the changes takes them when it has time to. Only
//! keys are noted, so that one that changes often is kept once, with what it has by then. Where there are too many of them, or no
//! memory for them, it is noted that anything may have changed.

use std::{
    collections::HashSet,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use beamline_model::FilterLimits;
use bytes::Bytes;

use super::{
    kv::{Kv, Quota},
    room::Room,
};

/// Noted keys of one tenant beyond which all of its keys are taken.
const MAX_NOTED: usize = 4096;
/// What a noted key takes of the node's memory beside its bytes.
const NOTE_COST: u64 = 64;

/// Who keeps a tenant's keys and values. Implemented above.
pub trait Keeper: Send + Sync {
    /// There are changes, the first since they were last taken. Called within a filter's call: must not block.
    fn changed(&self);
}

/// One key as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    /// The key.
    pub key: Box<str>,
    /// Its value.
    pub value: Bytes,
    /// When it expires, in milliseconds since the Unix epoch; none: never.
    pub expires_ms: Option<u64>,
}

/// What has changed since it was last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvChanges {
    /// What is kept and not among `entries` is gone. `gone` is empty then.
    pub all: bool,
    /// Keys with the values that they have now.
    pub entries: Vec<KvEntry>,
    /// Keys that are gone.
    pub gone: Vec<Box<str>>,
    /// Whether there is more to take.
    pub more: bool,
}

/// What became of keys and values that were kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// They are there again.
    pub restored: u64,
    /// They had expired.
    pub expired: u64,
    /// There was no room for them, in the tenant's quota or the node's.
    pub dropped: u64,
}

/// Which keys of a tenant have changed.
pub(super) struct Noted {
    /// Whether anybody keeps them: what each write looks at.
    kept: AtomicBool,
    // Held for one insertion; by whoever takes the changes, for taking them out.
    notes: Mutex<Notes>,
    node: &'static Room,
}

#[derive(Default)]
struct Notes {
    keeper: Option<Arc<dyn Keeper>>,
    keys: HashSet<Box<str>>,
    /// Bytes taken from the node's room.
    used: u64,
    all: bool,
    /// The keeper knows that there is something to take.
    told: bool,
}

impl Notes {
    /// Notes a key, or that there are too many.
    fn add(&mut self, key: &str, node: &Room) {
        if self.all || self.keys.contains(key) {
            return;
        }
        let cost = key.len() as u64 + NOTE_COST;
        if self.keys.len() < MAX_NOTED && node.take(cost, 0) {
            self.used += cost;
            self.keys.insert(key.into());
        } else {
            self.clear(node);
            self.all = true;
        }
    }

    fn clear(&mut self, node: &Room) {
        self.keys = HashSet::new();
        node.give_back(mem::take(&mut self.used));
    }
}

impl Noted {
    /// Of keys that nobody keeps.
    pub(super) fn within(node: &'static Room) -> Self {
        Self { kept: AtomicBool::new(false), notes: Mutex::default(), node }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Nothing of ours panics half way through a change.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key has changed. To be called after the change, before its shard is let go of: then whoever begins to keep them either
    /// reads what was written, or has it noted.
    pub(super) fn note(&self, key: &str) {
        if !self.kept.load(Ordering::Relaxed) {
            return;
        }
        let mut notes = self.notes();
        if notes.keeper.is_none() {
            return;
        }
        notes.add(key, self.node);
        if mem::replace(&mut notes.told, true) {
            return;
        }
        let keeper = notes.keeper.clone();
        drop(notes);
        if let Some(keeper) = keeper {
            keeper.changed();
        }
    }

    /// Has changes noted from now on, and tells the keeper where there is something to take already.
    fn begin(&self, keeper: Arc<dyn Keeper>, all: bool, gone: &[Box<str>]) {
        let mut notes = self.notes();
        self.kept.store(true, Ordering::Relaxed);
        notes.keeper = Some(Arc::clone(&keeper));
        notes.all = all;
        gone.iter().for_each(|key| notes.add(key, self.node));
        notes.told = all || !gone.is_empty();
        let tell = notes.told;
        drop(notes);
        if tell {
            keeper.changed();
        }
    }

    fn end(&self) {
        let mut notes = self.notes();
        self.kept.store(false, Ordering::Relaxed);
        notes.clear(self.node);
        *notes = Notes::default();
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let notes = self.notes.get_mut().unwrap_or_else(PoisonError::into_inner);
        notes.clear(self.node);
    }
}

/// One tenant's keys and values, for whoever keeps them. Cheap to clone; it does not go with the tenant as long as it is held.
#[derive(Clone)]
pub struct TenantKv {
    pub(super) kv: Arc<Kv>,
    pub(super) since: std::time::Instant,
}

impl TenantKv {
    /// Whether somebody keeps them.
    pub fn is_kept(&self) -> bool {
        self.kv.noted().kept.load(Ordering::Relaxed)
    }

    /// Has all of them kept: what is there, and what changes.
    pub fn keep(&self, keeper: Arc<dyn Keeper>) {
        self.kv.noted().begin(keeper, true, &[]);
    }

    /// Puts back what was kept before, at `wall_ms` since the Unix epoch, and has it kept from now on. What is there already stays
    /// as it is. What has expired or has no room is noted to be gone.
    pub fn restore(
        &self,
        keeper: Arc<dyn Keeper>,
        entries: impl IntoIterator<Item = KvEntry>,
        limits: &FilterLimits,
        wall_ms: u64,
    ) -> Restored {
        let (now, quota) = (self.since.elapsed(), Quota::of(limits));
        let (mut outcome, mut gone) = (Restored::default(), Vec::new());
        for KvEntry { key, value, expires_ms } in entries {
            let ttl = expires_ms.map(|at| Duration::from_millis(at.saturating_sub(wall_ms)));
            let count = if ttl == Some(Duration::ZERO) {
                &mut outcome.expired
            } else if self.kv.restore(&key, value, ttl, now, quota) {
                outcome.restored += 1;
                continue;
            } else {
                &mut outcome.dropped
            };
            *count += 1;
            gone.push(key);
        }
        self.kv.noted().begin(keeper, false, &gone);
        outcome
    }

    /// Has them kept no more.
    pub fn end(&self) {
        self.kv.noted().end();
    }

    /// Takes changes, of about `bytes` or, where anything may have changed, all there is. Nothing where there are none, or nobody is
    /// to keep them. `wall_ms` is now, since the Unix epoch.
    pub fn take_changes(&self, bytes: usize, wall_ms: u64) -> Option<KvChanges> {
        let now = self.since.elapsed();
        let mut changes = KvChanges::default();
        let mut keys = {
            let mut notes = self.kv.noted().notes();
            notes.keeper.as_ref()?;
            changes.all = mem::take(&mut notes.all);
            notes.told = false;
            let keys = mem::take(&mut notes.keys);
            notes.clear(self.kv.noted().node);
            keys.into_iter()
        };
        let at = |expires: Option<Duration>| {
            expires.map(|at| wall_ms.saturating_add(millis(at.saturating_sub(now))))
        };
        if changes.all {
            self.kv.each(now, |key, value, expires| {
                changes.entries.push(KvEntry { key: key.into(), value, expires_ms: at(expires) });
            });
            return Some(changes);
        }
        let mut taken = 0;
        while taken < bytes {
            let Some(key) = keys.next() else { break };
            taken += key.len() + NOTE_COST as usize;
            match self.kv.entry(&key, now) {
                Some((value, expires)) => {
                    taken += value.len();
                    changes.entries.push(KvEntry { key, value, expires_ms: at(expires) });
                }
                None => changes.gone.push(key),
            }
        }
        changes.more = self.note_again(false, keys);
        let any = !(changes.entries.is_empty() && changes.gone.is_empty());
        any.then_some(changes)
    }

    /// Takes changes back that could not be kept. The keeper is not told of them: it has them to do.
    pub fn put_back(&self, changes: KvChanges) {
        let KvChanges { all, entries, gone, .. } = changes;
        if all {
            // What was taken is freed when no filter waits for the notes any more.
            self.note_again(true, std::iter::empty());
        } else {
            self.note_again(false, entries.into_iter().map(|entry| entry.key).chain(gone));
        }
    }

    /// Notes keys that were taken out; whether there is anything noted then.
    fn note_again(&self, all: bool, keys: impl Iterator<Item = Box<str>>) -> bool {
        let noted = self.kv.noted();
        let mut notes = noted.notes();
        if notes.keeper.is_none() {
            return false;
        }
        if all {
            notes.clear(noted.node);
            notes.all = true;
        }
        keys.for_each(|key| notes.add(&key, noted.node));
        notes.told = notes.all || !notes.keys.is_empty();
        notes.told
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for TenantKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TenantKv")
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Instant};

    use beamline_model::ByteSize;

    use super::*;
    use crate::shared::kv::ENTRY_COST;

    const WALL: u64 = 1_700_000_000_000;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Keeper for Counting {
        fn changed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn within(node: &'static Room) -> (TenantKv, Arc<Counting>) {
        (TenantKv { kv: Arc::new(Kv::within(node)), since: Instant::now() }, Arc::default())
    }

    fn room(bytes: u64) -> &'static Room {
        Box::leak(Box::new(Room::of(bytes)))
    }

    fn kept() -> (TenantKv, Arc<Counting>) {
        let (kv, keeper) = within(room(1 << 30));
        kv.restore(keeper.clone(), [], &FilterLimits::default(), WALL);
        (kv, keeper)
    }

    fn quota() -> Quota {
        Quota::of(&FilterLimits::default())
    }

    fn set(kv: &TenantKv, key: &str, value: &str, ttl: Option<Duration>) {
        kv.kv.set(key, value.into(), ttl, kv.since.elapsed(), quota()).unwrap();
    }

    fn entry(key: &str, value: &'static str, expires_ms: Option<u64>) -> KvEntry {
        KvEntry { key: key.into(), value: Bytes::from(value), expires_ms }
    }

    fn get(kv: &TenantKv, key: &str) -> Option<Bytes> {
        kv.kv.get(key, kv.since.elapsed())
    }

    #[test]
    fn a_key_that_changes_often_is_kept_once_with_its_last_value_and_told_once() {
        let (kv, keeper) = kept();
        for _ in 0..100 {
            kv.kv.increment("n", 1, None, kv.since.elapsed(), quota()).unwrap();
        }
        set(&kv, "gone", "x", None);
        assert!(kv.kv.delete("gone", kv.since.elapsed()));
        assert_eq!(keeper.0.load(Ordering::Relaxed), 1);
        let taken = kv.take_changes(usize::MAX, WALL).unwrap();
        assert_eq!((taken.entries, taken.gone), (vec![entry("n", "100", None)], vec!["gone".into()]));
        assert!(!taken.all && !taken.more && kv.take_changes(usize::MAX, WALL).is_none());
        set(&kv, "n", "1", None);
        assert_eq!(keeper.0.load(Ordering::Relaxed), 2, "told again");
    }

    #[test]
    fn what_nobody_keeps_is_not_noted() {
        let node = room(1 << 30);
        let (kv, keeper) = within(node);
        set(&kv, "a", "1", None);
        assert!(kv.take_changes(usize::MAX, WALL).is_none() && !kv.is_kept());
        kv.keep(keeper.clone());
        assert_eq!(keeper.0.load(Ordering::Relaxed), 1);
        let taken = kv.take_changes(usize::MAX, WALL).unwrap();
        assert!(taken.all, "what was there before is kept, too");
        assert_eq!(taken.entries, [entry("a", "1", None)]);
        set(&kv, "b", "1", None);
        kv.end();
        assert!(kv.take_changes(usize::MAX, WALL).is_none() && !kv.is_kept());
        kv.put_back(KvChanges { all: true, ..KvChanges::default() });
        assert!(kv.take_changes(usize::MAX, WALL).is_none());
        assert_eq!(get(&kv, "b").unwrap(), "1", "it goes on in memory");
        assert_eq!(node.used(), 2 * (2 + ENTRY_COST));
    }

    #[test]
    fn what_was_kept_comes_back_but_for_what_has_expired() {
        let (kv, keeper) = within(room(1 << 30));
        let entries = [
            entry("for-ever", "1", None),
            entry("a-while", "2", Some(WALL + 60_000)),
            entry("over", "3", Some(WALL)),
            entry("long-over", "4", Some(1)),
        ];
        let outcome = kv.restore(keeper.clone(), entries, &FilterLimits::default(), WALL);
        assert_eq!(outcome, Restored { restored: 2, expired: 2, dropped: 0 });
        assert_eq!((get(&kv, "for-ever").unwrap(), get(&kv, "a-while").unwrap()), ("1".into(), "2".into()));
        let later = kv.since.elapsed() + Duration::from_secs(60);
        assert!(kv.kv.get("a-while", later).is_none() && kv.kv.get("for-ever", later).is_some());
        let mut taken = kv.take_changes(usize::MAX, WALL).unwrap();
        taken.gone.sort_unstable();
        assert_eq!((taken.entries, taken.gone), (vec![], vec!["long-over".into(), "over".into()]));
    }

    #[test]
    fn times_are_kept_by_the_wall_clock_and_what_expires_is_noted_to_be_gone() {
        let (kv, _) = kept();
        set(&kv, "t", "1", Some(Duration::from_secs(60)));
        let taken = kv.take_changes(usize::MAX, WALL).unwrap();
        let expires = taken.entries[0].expires_ms.unwrap();
        assert!((WALL + 59_000..=WALL + 60_000).contains(&expires), "{expires}");
        kv.kv.sweep(kv.since.elapsed() + Duration::from_secs(61));
        assert_eq!(kv.take_changes(usize::MAX, WALL).unwrap().gone, vec!["t".into()]);
    }

    #[test]
    fn quotas_hold_for_what_comes_back() {
        let node = room(1 << 30);
        let (kv, keeper) = within(node);
        let two = FilterLimits { kv_entries: 2, ..FilterLimits::default() };
        let entries = ["a", "b", "c"].map(|key| entry(key, "1", None));
        let outcome = kv.restore(keeper, entries, &two, WALL);
        assert_eq!(outcome, Restored { restored: 2, expired: 0, dropped: 1 });
        assert_eq!(kv.take_changes(usize::MAX, WALL).unwrap().gone, vec!["c".into()]);
        assert_eq!(node.used(), 2 * (2 + ENTRY_COST));

        let (kv, keeper) = within(room(ENTRY_COST + 2 + 65 + 1));
        let small = FilterLimits { kv_bytes: ByteSize::mib(1), ..FilterLimits::default() };
        let outcome = kv.restore(keeper, ["a", "b"].map(|key| entry(key, "1", None)), &small, WALL);
        assert_eq!((outcome.restored, outcome.dropped), (1, 1), "nor beyond the node's room");
    }

    #[test]
    fn what_is_there_already_is_not_replaced_by_what_was_kept() {
        let (kv, keeper) = within(room(1 << 30));
        set(&kv, "a", "new", None);
        kv.restore(keeper, [entry("a", "old", None)], &FilterLimits::default(), WALL);
        assert_eq!(get(&kv, "a").unwrap(), "new");
    }

    #[test]
    fn changes_are_taken_in_parts_and_come_back_where_they_could_not_be_kept() {
        let (kv, keeper) = kept();
        for i in 0..100 {
            set(&kv, &format!("{i:02}"), "x", None);
        }
        let part = kv.take_changes(10 * (2 + 64 + 1), WALL).unwrap();
        assert!(part.more && part.entries.len() == 10, "{}", part.entries.len());
        kv.put_back(part);
        let (mut all, mut more) = (0, true);
        while more {
            let part = kv.take_changes(30 * (2 + 64 + 1), WALL).unwrap();
            (all, more) = (all + part.entries.len(), part.more);
        }
        assert_eq!((all, keeper.0.load(Ordering::Relaxed)), (100, 1));
    }

    #[test]
    fn too_many_notes_become_one_for_all_and_take_no_memory() {
        let node = room(1 << 30);
        let (kv, keeper) = within(node);
        kv.restore(keeper, [], &FilterLimits::default(), WALL);
        for i in 0..=MAX_NOTED {
            set(&kv, &i.to_string(), "x", None);
            assert!(kv.kv.delete(&i.to_string(), kv.since.elapsed()));
        }
        assert_eq!(node.used(), 0, "notes of what is gone do not pile up");
        set(&kv, "last", "x", None);
        let taken = kv.take_changes(1, WALL).unwrap();
        assert!(taken.all && taken.entries == [entry("last", "x", None)], "{taken:?}");
        drop(kv);
        assert_eq!(node.used(), 0);
    }
}
