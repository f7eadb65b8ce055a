//! Between SQLite's values and ours.

use std::{fmt::Display, str::FromStr};

use rusqlite::Row;

use crate::StoreError;

/// An SQLite error as a store's, with what was being done.
pub(super) fn failed(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Unavailable { doing, source: source.into() }
}

/// What is stored cannot be read back.
pub(super) fn damaged(what: &'static str) -> impl FnOnce(String) -> StoreError {
    move |problem| StoreError::Damaged { what, problem }
}

/// A count, time or number as SQLite keeps it: 64 bits with a sign. None of ours comes near the end.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What [`int`] wrote.
pub(super) fn uint(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|n| u64::try_from(n).unwrap_or(0))
}

/// What [`int`] wrote, or NULL.
pub(super) fn opt_uint(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.and_then(|n| u64::try_from(n).ok()))
}

/// Text that was written from a `T`.
pub(super) fn parse<T: FromStr<Err: Display>>(what: &'static str, text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error: T::Err| damaged(what)(error.to_string()))
}
