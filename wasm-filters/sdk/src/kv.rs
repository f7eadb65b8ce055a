//! Keys and values of the tenant: kept on the node from one request to the next, shared by all its filters and workers.
//!
//! ```
//! # use beamline_sdk::{kv, Request, Verdict};
//! # use std::time::Duration;
//! # fn on_request(session: &str) -> Verdict {
//! match kv::increment(session, 1, Some(Duration::from_secs(60))) {
//!     Ok(n) if n > 100 => Verdict::respond(429).body("too many requests in this minute\n").into(),
//!     // A full quota is no reason to send anybody away.
//!     _ => Verdict::next(),
//! }
//! # }
//! ```
//!
//! Keys have 1 to 256 bytes, values at most 64 KiB. All that a tenant keeps is within `limits.kv_bytes` and
//! `limits.kv_entries` of its manifest: beyond them writes are refused, nothing else goes for them. It is gone when the node
//! ends, and each node has its own.

use std::time::Duration;

pub use crate::raw::beamline::edge::kv::KvError;

/// The value of a key; none where there is none, or it has expired.
pub fn get(key: &str) -> Option<Vec<u8>> {
    crate::host::kv_get(key)
}

/// Stores a value, in place of what was there. It expires after `ttl`, or never.
///
/// # Errors
/// [`KvError::InvalidKey`], [`KvError::ValueTooLarge`], [`KvError::QuotaExceeded`]: what was there is still there.
pub fn set(key: &str, value: impl AsRef<[u8]>, ttl: Option<Duration>) -> Result<(), KvError> {
    crate::host::kv_set(key, value.as_ref(), ttl.map(ms))
}

/// Removes a key; whether it was there.
pub fn delete(key: &str) -> bool {
    crate::host::kv_delete(key)
}

/// Adds to a number and gives the sum, atomically over all calls of the node.
///
/// A key that is not there counts as 0, and expires `ttl` after it was made so; one that is there keeps its time. The number
/// is kept as decimal digits.
///
/// # Errors
/// As [`set`], [`KvError::NotANumber`] and [`KvError::Overflow`].
pub fn increment(key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, KvError> {
    crate::host::kv_increment(key, by, ttl.map(ms))
}

/// Stores a value as [`set`] does if the key has the value `expected`, or is not there where that is none; whether it did.
/// Atomic over all calls of the node.
///
/// # Errors
/// As [`set`].
pub fn compare_and_set(
    key: &str,
    expected: Option<&[u8]>,
    value: impl AsRef<[u8]>,
    ttl: Option<Duration>,
) -> Result<bool, KvError> {
    crate::host::kv_compare_and_set(key, expected, value.as_ref(), ttl.map(ms))
}

/// Whole milliseconds, at least one.
fn ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}
