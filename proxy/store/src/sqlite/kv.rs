//! What tenants' filters keep by `kv`, where their manifests have it durable.

use beamline_model::TenantName;
use rusqlite::{Connection, params};

use super::row::{failed, int, opt_uint};
use crate::{KvBatch, KvRecord, StoreError};

/// Writes batches; those of tenants that do not exist any more are passed over.
pub(super) fn write(tx: &Connection, batches: &[KvBatch<'_>]) -> Result<(), StoreError> {
    let doing = "keep what filters stored";
    let prepared = |sql| tx.prepare_cached(sql).map_err(failed(doing));
    let mut there = prepared("SELECT EXISTS (SELECT 1 FROM tenants WHERE name = ?)")?;
    let mut delete_all = prepared("DELETE FROM kv WHERE tenant = ?")?;
    let mut delete = prepared("DELETE FROM kv WHERE tenant = ? AND key = ?")?;
    let mut put = prepared(
        "INSERT INTO kv (tenant, key, value, expires_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (tenant, key) DO UPDATE SET value = excluded.value, expires_ms = excluded.expires_ms",
    )?;
    for KvBatch { tenant, all, entries, gone } in batches {
        let tenant = tenant.as_str();
        if !there.query_row([tenant], |r| r.get::<_, bool>(0)).map_err(failed(doing))? {
            continue;
        }
        if *all {
            delete_all.execute([tenant]).map_err(failed(doing))?;
        }
        for key in gone {
            delete.execute([tenant, *key]).map_err(failed(doing))?;
        }
        for entry in entries {
            put.execute(params![tenant, entry.key, entry.value, entry.expires_ms.map(int)])
                .map_err(failed(doing))?;
        }
    }
    Ok(())
}

pub(super) fn all(tx: &Connection, tenant: &TenantName) -> Result<Vec<KvRecord>, StoreError> {
    let doing = "read what filters stored";
    let mut select = tx
        .prepare_cached("SELECT key, value, expires_ms FROM kv WHERE tenant = ? ORDER BY key")
        .map_err(failed(doing))?;
    let rows = select
        .query_map([tenant.as_str()], |r| {
            Ok(KvRecord {
                key: r.get("key")?,
                value: r.get("value")?,
                expires_ms: opt_uint(r, "expires_ms")?,
            })
        })
        .map_err(failed(doing))?;
    rows.collect::<Result<_, _>>().map_err(failed(doing))
}
