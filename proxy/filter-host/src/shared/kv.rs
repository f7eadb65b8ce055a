//! Keys and values of one tenant.
//!
//! Nothing is evicted: where the quota is used up and nothing has expired, a write is refused, so that what a filter relies on
//! does not go because of what another writes. Everything counts: each entry with its key, its value and a fixed share.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use beamline_model::{FilterLimits, Limit};
use bytes::Bytes;

use super::{
    durable::Noted,
    expiring::{Expiring, Shard},
    room::{Room, take},
};

/// The most bytes of a key.
const MAX_KEY: usize = 256;
/// The most bytes of a value.
const MAX_VALUE: usize = 64 << 10;
/// What an entry counts beside its key and value: its places in both tables, which grow by doubling, and its allocations.
pub(super) const ENTRY_COST: u64 = 320;

/// What one tenant may keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl Quota {
    /// As a tenant's limits have it.
    pub(crate) fn of(limits: &FilterLimits) -> Self {
        Self { bytes: limits.kv_bytes.get(), entries: limits.kv_entries.into() }
    }
}

/// Why something was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KvError {
    InvalidKey,
    ValueTooLarge,
    /// This limit is used up.
    QuotaExceeded(Limit),
    NotANumber,
    Overflow,
}

/// Until when a value counts.
#[derive(Clone, Copy)]
enum Lifetime {
    /// From now on.
    New(Option<Duration>),
    /// As what was there before.
    Kept(Option<Duration>),
}

/// What a look at a key leads to.
enum Change {
    Nothing,
    Store(Bytes, Lifetime),
}

pub(crate) struct Kv {
    entries: Expiring<Bytes>,
    node: &'static Room,
    used: AtomicU64,
    count: AtomicU64,
    /// Which keys have changed, where they are durable.
    noted: Noted,
}

impl Kv {
    /// Nothing yet. What will be kept is taken from `node`, too.
    pub(crate) fn within(node: &'static Room) -> Self {
        Self {
            entries: Expiring::new(),
            node,
            used: AtomicU64::new(0),
            count: AtomicU64::new(0),
            noted: Noted::within(node),
        }
    }

    /// Which keys have changed.
    pub(super) fn noted(&self) -> &Noted {
        &self.noted
    }

    /// What a key holds, and when that expires.
    pub(super) fn entry(&self, key: &str, now: Duration) -> Option<(Bytes, Option<Duration>)> {
        self.entries.shard(key).get(key, now).map(|(value, expires)| (value.clone(), expires))
    }

    /// Shows every key with what it holds and when that expires. Keys that change meanwhile may be shown as they were or as they are.
    pub(super) fn each(&self, now: Duration, mut show: impl FnMut(&str, Bytes, Option<Duration>)) {
        for key in self.entries.keys().flatten() {
            if let Some((value, expires)) = self.entry(&key, now) {
                show(&key, value, expires);
            }
        }
    }

    /// Puts a value back that was kept, unless the key has one; whether it has one now.
    pub(super) fn restore(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        now: Duration,
        quota: Quota,
    ) -> bool {
        self.compare_and_set(key, None, value.into(), ttl, now, quota).is_ok()
    }

    pub(crate) fn get(&self, key: &str, now: Duration) -> Option<Bytes> {
        if !is_key(key) {
            return None;
        }
        self.entry(key, now).map(|(value, _)| value)
    }

    pub(crate) fn set(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Option<Duration>,
        now: Duration,
        quota: Quota,
    ) -> Result<(), KvError> {
        let value = checked(value)?;
        self.change(key, now, quota, |_| Ok((Change::Store(value.clone(), Lifetime::New(ttl)), ())))
    }

    pub(crate) fn delete(&self, key: &str, now: Duration) -> bool {
        if !is_key(key) {
            return false;
        }
        let mut shard = self.entries.shard(key);
        let was_there = shard.get(key, now).is_some();
        if let Some(value) = shard.remove(key) {
            self.give_back(key, &value);
        }
        was_there
    }

    pub(crate) fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<Duration>,
        now: Duration,
        quota: Quota,
    ) -> Result<i64, KvError> {
        self.change(key, now, quota, |held| {
            let (before, lifetime) = match held {
                Some((value, expires)) => (number(value)?, Lifetime::Kept(expires)),
                None => (0, Lifetime::New(ttl)),
            };
            let sum = before.checked_add(by).ok_or(KvError::Overflow)?;
            Ok((Change::Store(sum.to_string().into(), lifetime), sum))
        })
    }

    pub(crate) fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        value: Vec<u8>,
        ttl: Option<Duration>,
        now: Duration,
        quota: Quota,
    ) -> Result<bool, KvError> {
        let value = checked(value)?;
        self.change(key, now, quota, |held| {
            Ok(if held.map(|(value, _)| &**value) == expected {
                (Change::Store(value.clone(), Lifetime::New(ttl)), true)
            } else {
                (Change::Nothing, false)
            })
        })
    }

    /// Does what `decide` makes of what a key holds. Where there is no room, what has expired goes and it is asked again.
    fn change<T>(
        &self,
        key: &str,
        now: Duration,
        quota: Quota,
        mut decide: impl FnMut(Option<(&Bytes, Option<Duration>)>) -> Result<(Change, T), KvError>,
    ) -> Result<T, KvError> {
        /// Enough for the largest value in place of the smallest ones.
        const TRIES: usize = 16;
        if !is_key(key) {
            return Err(KvError::InvalidKey);
        }
        let mut crossed = Limit::KvBytes;
        for _ in 0..TRIES {
            let mut shard = self.entries.shard(key);
            shard.drop_expired(now, &mut |key, value| self.give_back(key, &value));
            let (change, outcome) = decide(shard.get(key, now))?;
            let Change::Store(value, lifetime) = change else { return Ok(outcome) };
            match self.store(&mut shard, key, value, lifetime, now, quota) {
                Ok(()) => return Ok(outcome),
                Err(limit) => crossed = limit,
            }
            drop(shard);
            if !self.entries.drop_expired(now, |key, value| self.give_back(key, &value)) {
                break;
            }
        }
        Err(KvError::QuotaExceeded(crossed))
    }

    /// Stores a value where the quotas have room for it.
    ///
    /// # Errors
    /// The first of them that has none.
    fn store(
        &self,
        shard: &mut Shard<Bytes>,
        key: &str,
        value: Bytes,
        lifetime: Lifetime,
        now: Duration,
        quota: Quota,
    ) -> Result<(), Limit> {
        let expires = match lifetime {
            Lifetime::New(ttl) => ttl.and_then(|ttl| now.checked_add(ttl)),
            Lifetime::Kept(expires) => expires,
        };
        let cost = cost(key, &value);
        // Room is taken before what was there gives its own back: never more than the quota is held at any moment.
        let freed = shard.get(key, now).map_or(0, |(before, _)| self::cost(key, before));
        let new = u64::from(freed == 0);
        if !take(&self.count, new, 0, quota.entries) {
            return Err(Limit::KvEntries);
        }
        if !take(&self.used, cost, freed, quota.bytes) {
            self.count.fetch_sub(new, Ordering::Relaxed);
            return Err(Limit::KvBytes);
        }
        if !self.node.take(cost, freed) {
            self.count.fetch_sub(new, Ordering::Relaxed);
            self.used.fetch_add(freed, Ordering::Relaxed);
            self.used.fetch_sub(cost, Ordering::Relaxed);
            return Err(Limit::Kept);
        }
        if let Some(before) = shard.insert(key, value, expires)
            && freed == 0
        {
            // It had expired, and was not dropped yet.
            self.give_back(key, &before);
        }
        self.noted.note(key);
        Ok(())
    }

    /// Lets go of all that has expired.
    pub(crate) fn sweep(&self, now: Duration) {
        self.entries.sweep(now, |key, value| self.give_back(key, &value));
    }

    fn give_back(&self, key: &str, value: &Bytes) {
        let cost = cost(key, value);
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.used.fetch_sub(cost, Ordering::Relaxed);
        self.node.give_back(cost);
        self.noted.note(key);
    }
}

impl Drop for Kv {
    fn drop(&mut self) {
        self.node.give_back(*self.used.get_mut());
    }
}

fn cost(key: &str, value: &Bytes) -> u64 {
    (key.len() + value.len()) as u64 + ENTRY_COST
}

fn checked(value: Vec<u8>) -> Result<Bytes, KvError> {
    if value.len() > MAX_VALUE { Err(KvError::ValueTooLarge) } else { Ok(value.into()) }
}

fn number(value: &Bytes) -> Result<i64, KvError> {
    let text = std::str::from_utf8(value).map_err(|_| KvError::NotANumber)?;
    text.parse().map_err(|_| KvError::NotANumber)
}

/// What is no key is nobody's: it is not even looked for, which would cost its length.
fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { bytes: 6016, entries: 10 };
    const NOW: Duration = Duration::from_secs(100);

    fn new() -> Kv {
        Kv::within(room(1 << 30))
    }

    fn room(bytes: u64) -> &'static Room {
        Box::leak(Box::new(Room::of(bytes)))
    }

    #[test]
    fn all_tenants_together_keep_no_more_than_the_node_has_room_for() {
        let node = room(2 * (1 + 10 + ENTRY_COST));
        let (first, second) = (Kv::within(node), Kv::within(node));
        set(&first, "a", &[0; 10], None, NOW).unwrap();
        set(&second, "a", &[0; 10], None, NOW).unwrap();
        assert_eq!(set(&second, "b", b"", None, NOW), Err(KvError::QuotaExceeded(Limit::Kept)));
        assert_eq!(set(&second, "a", &[0; 11], None, NOW), Err(KvError::QuotaExceeded(Limit::Kept)));
        set(&second, "a", &[1; 10], None, NOW).unwrap();
        drop(first);
        set(&second, "b", b"", None, NOW).unwrap();
        drop(second);
        assert_eq!(node.used(), 0);
    }

    #[test]
    fn what_a_tenant_that_is_idle_kept_makes_room_for_others_when_it_has_expired() {
        let node = room(1000 * (4 + 10 + ENTRY_COST));
        let (idle, other) = (Kv::within(node), Kv::within(node));
        let roomy = Quota { bytes: 1 << 20, entries: 1000 };
        for i in 0..1000 {
            idle.set(&format!("{i:04}"), vec![0; 10], (i > 0).then_some(ms(50)), NOW, roomy).unwrap();
        }
        let later = NOW + ms(50);
        assert_eq!(set(&other, "a", b"", None, later), Err(KvError::QuotaExceeded(Limit::Kept)));
        idle.sweep(later);
        assert_eq!(node.used(), 4 + 10 + ENTRY_COST);
        assert!(idle.entries.capacity() < 100, "{}", idle.entries.capacity());
        set(&other, "a", b"", None, later).unwrap();
        assert!(idle.get("0000", later).is_some());
    }

    #[test]
    fn what_is_no_key_is_not_looked_for() {
        let kv = new();
        let long = "k".repeat(17 << 20);
        let began = std::time::Instant::now();
        // 170 GB to be hashed, else.
        for _ in 0..10_000 {
            assert_eq!((kv.get(&long, NOW), kv.delete(&long, NOW)), (None, false));
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn set(kv: &Kv, key: &str, value: &[u8], ttl: Option<Duration>, now: Duration) -> Result<(), KvError> {
        kv.set(key, value.to_vec(), ttl, now, QUOTA)
    }

    #[test]
    fn a_value_is_there_until_it_expires_or_is_deleted() {
        let kv = new();
        set(&kv, "a", b"1", None, NOW).unwrap();
        set(&kv, "b", b"2", Some(ms(50)), NOW).unwrap();
        assert_eq!(kv.get("a", NOW).unwrap(), "1");
        assert_eq!(kv.get("b", NOW + ms(49)).unwrap(), "2");
        assert_eq!(kv.get("b", NOW + ms(50)), None);
        assert!(!kv.delete("b", NOW + ms(50)), "what has expired was not there");
        assert!(kv.delete("a", NOW) && !kv.delete("a", NOW));
        assert_eq!((kv.used.load(Ordering::Relaxed), kv.count.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn keys_and_values_are_bounded() {
        let kv = new();
        assert_eq!(set(&kv, "", b"", None, NOW), Err(KvError::InvalidKey));
        assert_eq!(set(&kv, &"k".repeat(257), b"", None, NOW), Err(KvError::InvalidKey));
        assert_eq!(set(&kv, "a", &[0; (64 << 10) + 1], None, NOW), Err(KvError::ValueTooLarge));
        let roomy = Quota { bytes: 1 << 20, entries: 1 };
        kv.set(&"k".repeat(256), vec![0; 64 << 10], None, NOW, roomy).unwrap();
    }

    #[test]
    fn numbers_add_up_and_keep_the_time_of_the_first() {
        let kv = new();
        let add = |by, now| kv.increment("n", by, Some(ms(100)), now, QUOTA);
        assert_eq!(add(5, NOW), Ok(5));
        assert_eq!(add(-7, NOW + ms(60)), Ok(-2));
        assert_eq!(kv.get("n", NOW + ms(99)).unwrap(), "-2");
        assert_eq!(add(1, NOW + ms(100)), Ok(1), "a new window");
        assert_eq!(add(i64::MAX, NOW + ms(101)), Err(KvError::Overflow));
        set(&kv, "n", b"many", None, NOW).unwrap();
        assert_eq!(add(1, NOW), Err(KvError::NotANumber));
        set(&kv, "n", b"41", None, NOW).unwrap();
        assert_eq!(add(1, NOW), Ok(42));
    }

    #[test]
    fn a_value_is_set_only_in_place_of_what_was_expected() {
        let kv = new();
        let cas = |expected: Option<&[u8]>, value: &[u8], now| {
            kv.compare_and_set("k", expected, value.to_vec(), Some(ms(10)), now, QUOTA)
        };
        assert_eq!(cas(Some(b"1"), b"2", NOW), Ok(false));
        assert_eq!(cas(None, b"1", NOW), Ok(true));
        assert_eq!(cas(None, b"2", NOW), Ok(false));
        assert_eq!(cas(Some(b"1"), b"2", NOW), Ok(true));
        assert_eq!(kv.get("k", NOW).unwrap(), "2");
        assert_eq!(cas(None, b"3", NOW + ms(10)), Ok(true), "what has expired is not there");
    }

    #[test]
    fn a_full_quota_refuses_and_what_has_expired_goes_first() {
        let kv = new();
        for i in 0..10 {
            set(&kv, &format!("k{i}"), b"x", (i < 3).then(|| ms(10)), NOW).unwrap();
        }
        assert_eq!(set(&kv, "more", b"x", None, NOW), Err(KvError::QuotaExceeded(Limit::KvEntries)));
        assert_eq!(set(&kv, "k9", b"y", None, NOW), Ok(()), "in place of what is there");
        assert_eq!(kv.increment("more", 1, None, NOW, QUOTA), Err(KvError::QuotaExceeded(Limit::KvEntries)));
        let later = NOW + ms(10);
        for i in 0..3 {
            set(&kv, &format!("new{i}"), b"x", None, later).unwrap();
        }
        assert_eq!(set(&kv, "more", b"x", None, later), Err(KvError::QuotaExceeded(Limit::KvEntries)));
        assert_eq!(kv.get("k5", later).unwrap(), "x", "nothing that counts was evicted");
        // By bytes: 10 entries of about 323 each are there; none can grow to the whole quota.
        assert_eq!(set(&kv, "k9", &[0; 3000], None, later), Err(KvError::QuotaExceeded(Limit::KvBytes)));
        assert_eq!(kv.get("k9", later).unwrap(), "y");
        // A quota that was lowered below what is held lets things shrink.
        let lower = Quota { bytes: 100, entries: 1 };
        assert_eq!(kv.set("k9", vec![], None, later, lower), Ok(()));
        assert_eq!(kv.set("k9", vec![1], None, later, lower), Err(KvError::QuotaExceeded(Limit::KvBytes)));
    }

    #[test]
    fn many_threads_count_right() {
        let kv = new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let kv = &kv;
                scope.spawn(move || {
                    for i in 0..1000 {
                        kv.increment("n", 1, None, NOW, QUOTA).unwrap();
                        let _ =
                            kv.set(&format!("{thread}-{i}"), vec![0; 10], Some(ms(i)), NOW + ms(i), QUOTA);
                    }
                });
            }
        });
        assert_eq!(kv.get("n", NOW).unwrap(), "4000");
        while kv.entries.drop_expired(NOW + ms(10_000), |key, value| kv.give_back(key, &value)) {}
        assert_eq!(
            (kv.used.load(Ordering::Relaxed), kv.count.load(Ordering::Relaxed)),
            (1 + 4 + ENTRY_COST, 1)
        );
    }
}
