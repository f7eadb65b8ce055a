//! The audit: written in the transaction of the change itself.

use beamline_model::TenantName;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;

use super::row::{self, failed, int, uint};
use crate::{AuditRow, PAGE_MAX, Stamp, StoreError};

pub(super) fn write(
    tx: &Connection,
    stamp: Stamp<'_>,
    action: &str,
    tenant: Option<&TenantName>,
    detail: &Value,
) -> Result<(), StoreError> {
    insert(tx, stamp, action, tenant, detail).map_err(failed("write the audit"))
}

pub(super) fn insert(
    tx: &Connection,
    stamp: Stamp<'_>,
    action: &str,
    tenant: Option<&TenantName>,
    detail: &Value,
) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT INTO audit (at_ms, actor, action, tenant, detail) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![
            int(stamp.at_ms),
            stamp.actor,
            action,
            tenant.map(TenantName::as_str),
            detail.to_string()
        ])?;
    Ok(())
}

/// The newest row, as far as it takes to know it again: its number, time, actor, action and detail.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LastRow(i64, i64, String, String, String);

pub(super) fn last(tx: &Connection) -> rusqlite::Result<Option<LastRow>> {
    tx.prepare_cached("SELECT seq, at_ms, actor, action, detail FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |r| Ok(LastRow(r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)))
        .optional()
}

pub(super) fn page(
    tx: &Connection,
    tenant: Option<&TenantName>,
    after: u64,
    limit: u32,
) -> Result<Vec<AuditRow>, StoreError> {
    let doing = "read the audit";
    // Two statements rather than one with `OR`: each then walks its own index in order.
    let select = "SELECT seq, at_ms, actor, action, tenant, detail FROM audit WHERE";
    let sql = match tenant {
        Some(_) => format!("{select} tenant = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"),
        None => format!("{select} ?1 IS NULL AND seq > ?2 ORDER BY seq LIMIT ?3"),
    };
    let mut select = tx.prepare_cached(&sql).map_err(failed(doing))?;
    let rows = select
        .query_map(params![tenant.map(TenantName::as_str), int(after), limit.min(PAGE_MAX)], |r| {
            Ok((
                uint(r, "seq")?,
                uint(r, "at_ms")?,
                r.get("actor")?,
                r.get("action")?,
                r.get::<_, Option<String>>("tenant")?,
                r.get::<_, String>("detail")?,
            ))
        })
        .map_err(failed(doing))?;
    rows.map(|columns| {
        let (seq, at_ms, actor, action, tenant, detail) = columns.map_err(failed(doing))?;
        Ok(AuditRow {
            seq,
            at_ms,
            actor,
            action,
            tenant: tenant.map(|t| row::parse("tenant name", &t)).transpose()?,
            detail: row::parse("audit detail", &detail)?,
        })
    })
    .collect()
}
