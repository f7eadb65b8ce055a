//! How values of the crate become columns, and back.

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::super::{Blame, Candidate, LogError};
use crate::{
    idempotency::{Fingerprint, Holder, KeyScope},
    record::{DeadReason, Lane, RecordId, Seq, State},
};

pub(super) const DELIVERED: u8 = 3;
pub(super) const DEAD: u8 = 4;
/// Dead by hand: its content is gone, and what is left is kept as the receipt of a delivered record is.
pub(super) const ERASED: u8 = 5;

/// The columns that [`candidate`] reads.
pub(super) const CANDIDATE: &str = "seq, attempts, due_ms, expires_ms, repeat_safe, okey IS NOT NULL, failures, failing_since_ms, size, delay_ms, accepted_ms";

/// Whether the record `r` pauses its key, or waits after one that does.
pub(super) const KEY_PAUSED: &str = "(r.state < 3 OR r.pauses) AND EXISTS (
    SELECT 1 FROM record AS dead
    WHERE dead.lane = r.lane AND dead.okey = r.okey AND dead.pauses = 1 AND dead.seq <= r.seq)";

/// Which records have their client's key, as the index of them says it.
pub(super) const HAS_KEY: &str = "scope IS NOT NULL AND (state < 4 OR reason = 3)";

/// Times and sizes beyond `i64::MAX` are stored as that: 292 million years, 8 EiB.
pub(super) fn to_db(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn from_db(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn limit_to_db(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn candidate(row: &Row<'_>, lane: &Lane) -> rusqlite::Result<Candidate> {
    let failures = row.get(6)?;
    let since: Option<i64> = row.get(7)?;
    Ok(Candidate {
        seq: Seq(row.get(0)?),
        lane: lane.clone(),
        accepted_ms: from_db(row.get(10)?),
        attempts: row.get(1)?,
        due_ms: from_db(row.get(2)?),
        delay_ms: from_db(row.get(9)?),
        expires_ms: from_db(row.get(3)?),
        repeat_safe: row.get(4)?,
        keyed: row.get(5)?,
        size: from_db(row.get(8)?),
        blame: since.map(|since| Blame { failures, since_ms: from_db(since) }),
    })
}

/// A client's key in this column.
pub(super) fn scope(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<KeyScope>> {
    Ok(row.get::<_, Option<[u8; 32]>>(column)?.map(KeyScope))
}

/// The record that has a client's key.
pub(super) fn holder(connection: &Connection, scope: &KeyScope) -> Result<Option<Holder>, LogError> {
    let sql = format!("SELECT id, fingerprint FROM record WHERE scope = ?1 AND {HAS_KEY}");
    let holder = |row: &Row<'_>| {
        Ok(Holder { id: RecordId::from_bytes(row.get(0)?), fingerprint: Fingerprint(row.get(1)?) })
    };
    Ok(connection.prepare_cached(&sql)?.query_row([scope.0], holder).optional()?)
}

pub(super) fn reason_to_db(reason: DeadReason) -> u8 {
    match reason {
        DeadReason::Exhausted => 0,
        DeadReason::Rejected => 1,
        DeadReason::Expired => 2,
        DeadReason::Indeterminate => 3,
        DeadReason::Unconfirmed => 4,
        DeadReason::Cancelled => 5,
        DeadReason::Discarded => 6,
    }
}

fn reason_from_db(reason: u8) -> Option<DeadReason> {
    Some(match reason {
        0 => DeadReason::Exhausted,
        1 => DeadReason::Rejected,
        2 => DeadReason::Expired,
        3 => DeadReason::Indeterminate,
        4 => DeadReason::Unconfirmed,
        5 => DeadReason::Cancelled,
        6 => DeadReason::Discarded,
        _ => return None,
    })
}

pub(super) fn state_from_db(
    state: u8,
    reason: Option<u8>,
    complete: Option<bool>,
) -> Result<State, LogError> {
    match (state, reason.and_then(reason_from_db)) {
        (0, _) => Ok(State::Queued),
        (1, _) => Ok(State::Delivering),
        (2, _) => Ok(State::Held),
        (DELIVERED, _) => Ok(State::Delivered { response_complete: complete.unwrap_or(true) }),
        (DEAD | ERASED, Some(reason)) => Ok(State::Dead { reason }),
        _ => Err(LogError::Corrupt(format!("a record has the unknown state {state} (reason {reason:?})"))),
    }
}

pub(super) fn name<T: std::str::FromStr>(text: &str, kind: &str) -> Result<T, LogError> {
    text.parse().map_err(|_| LogError::Corrupt(format!("{text:?} in the log is not a {kind} name")))
}

pub(super) fn lane(tenant: &str, upstream: &str) -> Result<Lane, LogError> {
    Ok(Lane { tenant: name(tenant, "tenant")?, upstream: name(upstream, "upstream")? })
}

pub(super) fn lane_by_id(connection: &Connection, id: i64) -> Result<Lane, LogError> {
    let (tenant, upstream): (String, String) = connection
        .prepare_cached("SELECT tenant, upstream FROM lane WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    lane(&tenant, &upstream)
}

/// The earliest finish of records of which only the receipt is left.
pub(super) fn oldest_receipt(connection: &Connection) -> Result<Option<u64>, LogError> {
    let (delivered, erased) = (oldest_finish(connection, DELIVERED)?, oldest_finish(connection, ERASED)?);
    Ok(delivered.into_iter().chain(erased).min())
}

pub(super) fn oldest_finish(connection: &Connection, state: u8) -> Result<Option<u64>, LogError> {
    let oldest: Option<i64> = connection
        .prepare_cached(
            "SELECT finished_ms FROM record WHERE state = ?1 AND state >= 3 ORDER BY finished_ms LIMIT 1",
        )?
        .query_row([state], |row| row.get(0))
        .optional()?;
    Ok(oldest.map(from_db))
}
