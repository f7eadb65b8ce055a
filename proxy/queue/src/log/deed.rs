//! What the node does to records by itself, for the audit: expiry and deletion.
//!
//! It may be thousands of records a second. So there is one row an hour for each upstream and kind of record, and each
//! page adds to its row in the transaction in which it ends or deletes the records.

use std::collections::BTreeMap;

use super::{Ended, Pruned};
use crate::record::Lane;

/// The actor of these rows.
pub(super) const NODE: &str = "node";
const HOUR_MS: u64 = 3_600_000;

/// What was done to records of one lane and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deed {
    pub(super) lane: Lane,
    /// The action's name in the audit.
    pub(super) action: &'static str,
    /// To what.
    pub(super) of: &'static str,
    pub(super) count: u64,
    /// When the first and the last of them were accepted.
    pub(super) from_ms: u64,
    pub(super) until_ms: u64,
}

/// Why records are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Their retention is over.
    Retention,
    /// There are more receipts than the node keeps.
    TooMany,
    /// Their tenant is deleted.
    TenantDeleted,
}

/// Records that waited too long and are dead now.
pub(super) fn expired(ended: &[Ended]) -> Vec<Deed> {
    tally("queue.expire", ended.iter().map(|ended| (&ended.lane, "records", ended.accepted_ms)))
}

/// Records that were deleted, with all that was left of them.
pub(super) fn deleted(pruned: &[Pruned], why: Why) -> Vec<Deed> {
    let what = |pruned: &Pruned| match (pruned.receipt, why) {
        (true, Why::Retention) => "receipts",
        (true, Why::TooMany) => "receipts, of which there were too many",
        (true, Why::TenantDeleted) => "receipts of a deleted tenant",
        (false, Why::TenantDeleted) => "dead letters of a deleted tenant",
        (false, _) => "dead letters",
    };
    tally("queue.retention", pruned.iter().map(|pruned| (&pruned.lane, what(pruned), pruned.accepted_ms)))
}

fn tally<'a>(
    action: &'static str,
    records: impl Iterator<Item = (&'a Lane, &'static str, u64)>,
) -> Vec<Deed> {
    let mut deeds: BTreeMap<(&Lane, &str), Deed> = BTreeMap::new();
    for (lane, of, accepted_ms) in records {
        let deed = deeds.entry((lane, of)).or_insert_with(|| Deed {
            lane: lane.clone(),
            action,
            of,
            count: 0,
            from_ms: accepted_ms,
            until_ms: accepted_ms,
        });
        deed.count += 1;
        deed.from_ms = deed.from_ms.min(accepted_ms);
        deed.until_ms = deed.until_ms.max(accepted_ms);
    }
    deeds.into_values().collect()
}

/// The hour of a moment: from when, and until before when.
pub(super) const fn hour(now_ms: u64) -> (u64, u64) {
    let began = now_ms - now_ms % HOUR_MS;
    (began, began.saturating_add(HOUR_MS))
}
