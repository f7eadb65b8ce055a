//! What a tenant's filters keep, for filters that run on the machine at hand: by the same rules, without quotas.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    buckets::{BucketError, Rate, Taken},
    kv::KvError,
};

/// Keys, values and token buckets that calls share: hand the same to each [`Call`](super::Call).
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Values, and when they expire by the calls' wall clock.
    values: BTreeMap<String, (Vec<u8>, Option<u64>)>,
    /// What is in each bucket, and since when.
    buckets: BTreeMap<(String, String), (f64, u64)>,
    /// Whether writes are refused.
    full: bool,
}

impl Kept {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A value that is there, and does not expire.
    pub fn with(self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.inner().values.insert(key.to_owned(), (value.as_ref().to_vec(), None));
        self
    }

    /// As where the tenant's quotas are used up: every new key and every new bucket is refused.
    pub fn full(self) -> Self {
        self.inner().full = true;
        self
    }

    /// The value of a key at a moment, in milliseconds since 1970.
    pub fn get(&self, key: &str, now_ms: u64) -> Option<Vec<u8>> {
        let inner = self.inner();
        let (value, expires) = inner.values.get(key)?;
        expires.is_none_or(|expires| expires > now_ms).then(|| value.clone())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, key: &str, value: &[u8], ttl: Option<u64>, now_ms: u64) -> Result<(), KvError> {
        if key.is_empty() || key.len() > 256 {
            return Err(KvError::InvalidKey);
        }
        if value.len() > 64 << 10 {
            return Err(KvError::ValueTooLarge);
        }
        let is_there = self.get(key, now_ms).is_some();
        let mut inner = self.inner();
        if inner.full && !is_there {
            return Err(KvError::QuotaExceeded);
        }
        let expires = ttl.map(|ttl| now_ms.saturating_add(ttl));
        inner.values.insert(key.to_owned(), (value.to_vec(), expires));
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str, now_ms: u64) -> bool {
        let was_there = self.get(key, now_ms).is_some();
        self.inner().values.remove(key);
        was_there
    }

    pub(crate) fn increment(
        &self,
        key: &str,
        by: i64,
        ttl: Option<u64>,
        now_ms: u64,
    ) -> Result<i64, KvError> {
        let held = self.get(key, now_ms);
        let before = match &held {
            Some(value) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(KvError::NotANumber)?,
            None => 0_i64,
        };
        let sum = before.checked_add(by).ok_or(KvError::Overflow)?;
        let until = self.inner().values.get(key).and_then(|(_, expires)| *expires);
        self.set(key, sum.to_string().as_bytes(), ttl, now_ms)?;
        if held.is_some()
            && let Some((_, expires)) = self.inner().values.get_mut(key)
        {
            *expires = until;
        }
        Ok(sum)
    }

    pub(crate) fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        ttl: Option<u64>,
        now_ms: u64,
    ) -> Result<bool, KvError> {
        let is_expected = self.get(key, now_ms).as_deref() == expected;
        if is_expected {
            self.set(key, value, ttl, now_ms)?;
        }
        Ok(is_expected)
    }

    pub(crate) fn take(
        &self,
        bucket: &str,
        key: &str,
        tokens: u32,
        rate: Rate,
        now_ms: u64,
    ) -> Result<Taken, BucketError> {
        if bucket.len() + key.len() > 256 {
            return Err(BucketError::InvalidKey);
        }
        let day = 86_400_000;
        if !(1..=1_000_000).contains(&rate.tokens)
            || !(1..=100_000).contains(&rate.burst)
            || !(1..=day).contains(&rate.period_ms)
            || u64::from(rate.burst) * u64::from(rate.period_ms) > u64::from(rate.tokens) * u64::from(day)
            || tokens > rate.burst
        {
            return Err(BucketError::InvalidRate);
        }
        let mut inner = self.inner();
        let name = (bucket.to_owned(), key.to_owned());
        let held = inner.buckets.get(&name).copied();
        if inner.full && held.is_none() {
            return Err(BucketError::TooManyKeys);
        }
        let (level, at) = held.unwrap_or((rate.burst.into(), now_ms));
        let period = f64::from(rate.period_ms);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a test")]
        let came = now_ms.saturating_sub(at) as f64 * f64::from(rate.tokens) / period;
        let left = (level + came).min(rate.burst.into()) - f64::from(tokens);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
        if left < -1e-6 {
            Ok(Taken::RetryAfterMs(((-left - 1e-6) * period / f64::from(rate.tokens)).ceil().max(1.0) as u64))
        } else {
            inner.buckets.insert(name, (left.max(0.0), now_ms));
            Ok(Taken::Allowed((left + 1e-6).max(0.0) as u32))
        }
    }
}
