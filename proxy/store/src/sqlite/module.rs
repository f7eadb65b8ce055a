//! Modules: content once, and which tenants have it.

use beamline_model::{Digest, TenantName};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::json;

use super::{
    audit,
    row::{self, failed, int, uint},
    tenant,
};
use crate::{ModuleRecord, Stamp, StoreError};

const SELECT: &str = "SELECT digest, size, info, pushed_ms FROM tenant_modules JOIN modules USING (digest)";

pub(super) fn put(
    tx: &Connection,
    tenant: &TenantName,
    digest: &Digest,
    bytes: &[u8],
    info: &str,
    stamp: Stamp<'_>,
) -> Result<bool, StoreError> {
    let doing = "store the module";
    tenant::known(tx, tenant)?;
    if get(tx, tenant, digest)?.is_some() {
        return Ok(false);
    }
    let (text, size) = (digest.to_string(), bytes.len() as u64);
    tx.execute(
        "INSERT INTO modules (digest, size, bytes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        params![text, int(size), bytes],
    )
    .and_then(|_| {
        tx.execute(
            "INSERT INTO tenant_modules (tenant, digest, pushed_ms, info) VALUES (?, ?, ?, ?)",
            params![tenant.as_str(), text, int(stamp.at_ms), info],
        )
    })
    .map_err(failed(doing))?;
    audit::write(tx, stamp, "module.push", Some(tenant), &json!({ "digest": digest, "size": size }))?;
    Ok(true)
}

/// A row as it is, before its texts are read.
type Raw = (String, u64, String, u64);

fn raw(r: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((r.get("digest")?, uint(r, "size")?, r.get("info")?, uint(r, "pushed_ms")?))
}

fn record((digest, size, info, pushed_ms): Raw) -> Result<ModuleRecord, StoreError> {
    Ok(ModuleRecord { digest: row::parse("module digest", &digest)?, size, info, pushed_ms })
}

pub(super) fn get(
    tx: &Connection,
    tenant: &TenantName,
    digest: &Digest,
) -> Result<Option<ModuleRecord>, StoreError> {
    tx.prepare_cached(&format!("{SELECT} WHERE tenant = ? AND digest = ?"))
        .and_then(|mut select| select.query_row(params![tenant.as_str(), digest.to_string()], raw).optional())
        .map_err(failed("read the module's record"))?
        .map(record)
        .transpose()
}

pub(super) fn all(tx: &Connection, tenant: &TenantName) -> Result<Vec<ModuleRecord>, StoreError> {
    let doing = "read the tenant's modules";
    let mut select = tx
        .prepare_cached(&format!("{SELECT} WHERE tenant = ? ORDER BY tenant_modules.rowid"))
        .map_err(failed(doing))?;
    let rows = select.query_map([tenant.as_str()], raw).map_err(failed(doing))?;
    rows.map(|row| record(row.map_err(failed(doing))?)).collect()
}

pub(super) fn bytes(tx: &Connection, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
    tx.prepare_cached("SELECT bytes FROM modules WHERE digest = ?")
        .and_then(|mut select| select.query_row([digest.to_string()], |r| r.get(0)).optional())
        .map_err(failed("read the module"))
}
