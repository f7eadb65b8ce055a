//! `kv`: the tenant's keys and values.

use std::time::Duration;

use beamline_model::Limit;

use super::CallState;
use crate::{
    bindings::beamline::edge::kv,
    shared::{Kv, KvError, Quota},
};

impl CallState {
    /// What a guest is told of a write that was refused.
    fn refused(&self, error: KvError) -> kv::KvError {
        match error {
            KvError::QuotaExceeded(limit) => self.crossed(limit),
            KvError::InvalidKey | KvError::ValueTooLarge => self.crossed(Limit::KvSize),
            KvError::NotANumber | KvError::Overflow => {}
        }
        refusal(error)
    }
}

fn refusal(error: KvError) -> kv::KvError {
    match error {
        KvError::InvalidKey => kv::KvError::InvalidKey,
        KvError::ValueTooLarge => kv::KvError::ValueTooLarge,
        KvError::QuotaExceeded(_) => kv::KvError::QuotaExceeded,
        KvError::NotANumber => kv::KvError::NotANumber,
        KvError::Overflow => kv::KvError::Overflow,
    }
}

fn ttl(ms: Option<u64>) -> Option<Duration> {
    ms.map(Duration::from_millis)
}

impl CallState {
    fn kv(&self) -> (&Kv, Duration, Quota) {
        let (state, limits) = (self.view.state(), self.view.limits());
        (state.kv(), state.now(), Quota::of(limits))
    }
}

impl kv::Host for CallState {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.count_call()?;
        let (kv, now, _) = self.kv();
        Ok(kv.get(&key, now).map(Vec::from))
    }

    fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<(), kv::KvError>> {
        self.count_call()?;
        let (kv, now, quota) = self.kv();
        let stored = kv.set(&key, value, ttl(ttl_ms), now, quota);
        Ok(stored.map_err(|error| self.refused(error)))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<bool> {
        self.count_call()?;
        let (kv, now, _) = self.kv();
        Ok(kv.delete(&key, now))
    }

    fn increment(
        &mut self,
        key: String,
        by: i64,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<i64, kv::KvError>> {
        self.count_call()?;
        let (kv, now, quota) = self.kv();
        let sum = kv.increment(&key, by, ttl(ttl_ms), now, quota);
        Ok(sum.map_err(|error| self.refused(error)))
    }

    fn compare_and_set(
        &mut self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<bool, kv::KvError>> {
        self.count_call()?;
        let (kv, now, quota) = self.kv();
        let stored = kv.compare_and_set(&key, expected.as_deref(), value, ttl(ttl_ms), now, quota);
        Ok(stored.map_err(|error| self.refused(error)))
    }
}
