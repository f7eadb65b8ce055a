//! Secrets, as the caller sealed them.

use beamline_model::{SecretName, TenantName};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::json;

use super::{
    audit,
    row::{self, failed, int, uint},
    tenant,
};
use crate::{SecretRecord, Stamp, StoreError};

pub(super) fn set(
    tx: &Connection,
    tenant: &TenantName,
    name: &SecretName,
    sealed: &[u8],
    stamp: Stamp<'_>,
) -> Result<bool, StoreError> {
    let doing = "store the secret";
    tenant::known(tx, tenant)?;
    let before: Option<i64> = tx
        .query_row(
            "SELECT 1 FROM secrets WHERE tenant = ? AND name = ?",
            [tenant.as_str(), name.as_str()],
            |r| r.get(0),
        )
        .optional()
        .map_err(failed(doing))?;
    tx.execute(
        "INSERT INTO secrets (tenant, name, sealed, set_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (tenant, name) DO UPDATE SET sealed = excluded.sealed, set_ms = excluded.set_ms",
        params![tenant.as_str(), name.as_str(), sealed, int(stamp.at_ms)],
    )
    .map_err(failed(doing))?;
    let is_new = before.is_none();
    audit::write(tx, stamp, "secret.set", Some(tenant), &json!({ "secret": name, "new": is_new }))?;
    Ok(is_new)
}

pub(super) fn remove(
    tx: &Connection,
    tenant: &TenantName,
    name: &SecretName,
    stamp: Stamp<'_>,
) -> Result<(), StoreError> {
    tenant::known(tx, tenant)?;
    let removed = tx
        .execute("DELETE FROM secrets WHERE tenant = ? AND name = ?", [tenant.as_str(), name.as_str()])
        .map_err(failed("remove the secret"))?;
    if removed == 0 {
        return Err(StoreError::UnknownSecret { tenant: tenant.clone(), name: name.clone() });
    }
    audit::write(tx, stamp, "secret.remove", Some(tenant), &json!({ "secret": name }))
}

pub(super) fn reseal(
    tx: &Connection,
    tenant: &TenantName,
    name: &SecretName,
    before: &[u8],
    after: &[u8],
    stamp: Stamp<'_>,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            "UPDATE secrets SET sealed = ?4 WHERE tenant = ?1 AND name = ?2 AND sealed = ?3",
            params![tenant.as_str(), name.as_str(), before, after],
        )
        .map_err(failed("seal the secret anew"))?;
    if changed == 0 {
        return Ok(false);
    }
    audit::write(tx, stamp, "secret.reseal", Some(tenant), &json!({ "secret": name }))?;
    Ok(true)
}

pub(super) fn all(tx: &Connection, tenant: &TenantName) -> Result<Vec<SecretRecord>, StoreError> {
    let doing = "read the tenant's secrets";
    let mut select = tx
        .prepare_cached("SELECT name, sealed, set_ms FROM secrets WHERE tenant = ? ORDER BY name")
        .map_err(failed(doing))?;
    let rows = select
        .query_map([tenant.as_str()], |r| {
            Ok((r.get::<_, String>("name")?, r.get::<_, Vec<u8>>("sealed")?, uint(r, "set_ms")?))
        })
        .map_err(failed(doing))?;
    rows.map(|columns| {
        let (name, sealed, set_ms) = columns.map_err(failed(doing))?;
        Ok(SecretRecord { name: row::parse("secret name", &name)?, sealed, set_ms })
    })
    .collect()
}
