//! What the host keeps: keys and values, token buckets.

use std::time::Duration;

use beamline_sdk::{
    buckets::{self, BucketError, Rate, Taken},
    kv::{self, KvError},
};
use serde_json::{Value, json};

use crate::{act::size, step::Step};

/// One call of keys and values, and what it gave.
///
/// # Panics
/// Where `call` is none.
pub(crate) fn call(step: &Step) -> Value {
    let (key, ttl) = (step.key.as_str(), step.ttl_ms.map(Duration::from_millis));
    let value = if step.n == 0 { step.body.clone() } else { "x".repeat(size(step.n)) };
    let outcome = match step.call.as_str() {
        "get" => Ok(json!(kv::get(key).map(|value| String::from_utf8_lossy(&value).into_owned()))),
        "set" => kv::set(key, value, ttl).map(|()| json!("ok")),
        "delete" => Ok(json!(kv::delete(key))),
        "increment" => kv::increment(key, step.by, ttl).map(|sum| json!(sum)),
        "compare-and-set" => {
            kv::compare_and_set(key, step.expected.as_ref().map(String::as_bytes), value, ttl)
                .map(|did| json!(did))
        }
        other => panic!("{other:?} is no call of keys and values"),
    };
    outcome.unwrap_or_else(|error| {
        json!(match error {
            KvError::InvalidKey => "invalid-key",
            KvError::ValueTooLarge => "value-too-large",
            KvError::QuotaExceeded => "quota-exceeded",
            KvError::NotANumber => "not-a-number",
            KvError::Overflow => "overflow",
        })
    })
}

/// Takes tokens, and tells what became of it.
pub(crate) fn take(step: &Step) -> Value {
    let [tokens, period_ms, burst] = step.rate;
    let rate = Rate { tokens, period_ms, burst };
    match buckets::take(&step.bucket, &step.key, u32::try_from(step.n).unwrap_or(u32::MAX), rate) {
        Ok(Taken::Allowed(left)) => json!({ "allowed": left }),
        Ok(Taken::RetryAfterMs(wait)) => json!({ "retry_after_ms": wait }),
        Err(BucketError::InvalidKey) => json!("invalid-key"),
        Err(BucketError::InvalidRate) => json!("invalid-rate"),
        Err(BucketError::TooManyKeys) => json!("too-many-keys"),
    }
}
