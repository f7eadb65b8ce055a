//! Tenants, their grants and hosts, and tokens.

use beamline_model::{Grant, RevisionId, TenantName, TokenHash, TokenScope};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::json;

use super::{
    audit,
    row::{self, damaged, failed, int, opt_uint, uint},
};
use crate::{Deletion, Stamp, StoreError, TenantRecord};

const SELECT: &str = "SELECT name, granted, created_ms, active, previous, deletion FROM tenants";

pub(super) fn tokens(tx: &Connection) -> Result<Vec<(TokenHash, TokenScope)>, StoreError> {
    let doing = "read the tokens";
    let mut select = tx.prepare_cached("SELECT hash, tenant FROM tokens").map_err(failed(doing))?;
    let rows = select
        .query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, Option<String>>(1)?)))
        .map_err(failed(doing))?;
    rows.map(|columns| {
        let (hash, tenant) = columns.map_err(failed(doing))?;
        let hash = TokenHash::from_hex(&hash)
            .ok_or_else(|| damaged("token hash")("expected 64 hexadecimal digits".to_owned()))?;
        Ok((
            hash,
            match tenant {
                None => TokenScope::Operator,
                Some(name) => TokenScope::Tenant(row::parse("tenant name", &name)?),
            },
        ))
    })
    .collect()
}

fn add_token(
    tx: &Connection,
    hash: &TokenHash,
    tenant: Option<&TenantName>,
    stamp: Stamp<'_>,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO tokens (hash, tenant, created_ms) VALUES (?, ?, ?)",
        params![hash.to_hex(), tenant.map(TenantName::as_str), int(stamp.at_ms)],
    )
    .map(|_| ())
    .map_err(failed("add a token"))
}

pub(super) fn add_first_operator_token(
    tx: &Connection,
    hash: &TokenHash,
    stamp: Stamp<'_>,
) -> Result<bool, StoreError> {
    let there: bool = tx
        .query_row("SELECT EXISTS (SELECT 1 FROM tokens WHERE tenant IS NULL)", [], |r| r.get(0))
        .map_err(failed("look for an operator's token"))?;
    if there {
        return Ok(false);
    }
    add_token(tx, hash, None, stamp)?;
    audit::write(tx, stamp, "token.create", None, &json!({ "role": "operator" }))?;
    Ok(true)
}

pub(super) fn create(
    tx: &Connection,
    name: &TenantName,
    grant: &Grant,
    token: &TokenHash,
    stamp: Stamp<'_>,
) -> Result<(), StoreError> {
    let doing = "create the tenant";
    if get(tx, name)?.is_some() {
        return Err(StoreError::NameTaken(name.clone()));
    }
    let detail = json!({ "grant": grant });
    tx.execute(
        "INSERT INTO tenants (name, granted, created_ms) VALUES (?, ?, ?)",
        params![name.as_str(), detail["grant"].to_string(), int(stamp.at_ms)],
    )
    .map_err(failed(doing))?;
    for host in &grant.hosts {
        let holder: Option<String> = tx
            .prepare_cached("SELECT tenant FROM hosts WHERE host = ?")
            .and_then(|mut select| select.query_row([host.as_str()], |r| r.get(0)).optional())
            .map_err(failed(doing))?;
        match holder {
            None => tx
                .execute("INSERT INTO hosts (host, tenant) VALUES (?, ?)", [host.as_str(), name.as_str()])
                .map(|_| ())
                .map_err(failed(doing))?,
            Some(holder) if holder == name.as_str() => {} // the grant names it twice
            Some(holder) => {
                return Err(StoreError::HostTaken {
                    host: host.clone(),
                    tenant: row::parse("tenant name", &holder)?,
                });
            }
        }
    }
    add_token(tx, token, Some(name), stamp)?;
    audit::write(tx, stamp, "tenant.create", Some(name), &detail)
}

pub(super) fn begin_deletion(
    tx: &Connection,
    name: &TenantName,
    deletion: Deletion,
    stamp: Stamp<'_>,
) -> Result<Deletion, StoreError> {
    let before = known(tx, name)?.deletion;
    let after = if before == Some(Deletion::Discard) { Deletion::Discard } else { deletion };
    if before == Some(after) {
        return Ok(after);
    }
    tx.execute("UPDATE tenants SET deletion = ? WHERE name = ?", [after.as_str(), name.as_str()])
        .map_err(failed("begin the tenant's deletion"))?;
    audit::write(tx, stamp, "tenant.begin-deletion", Some(name), &json!({ "queued": after }))?;
    Ok(after)
}

pub(super) fn delete(tx: &Connection, name: &TenantName, stamp: Stamp<'_>) -> Result<(), StoreError> {
    if known(tx, name)?.deletion.is_none() {
        return Err(StoreError::NotBeingDeleted(name.clone()));
    }
    // A tenant and its revisions point at each other.
    for sql in [
        "UPDATE tenants SET active = NULL, previous = NULL WHERE name = ?1",
        "DELETE FROM revisions WHERE tenant = ?1",
        "DELETE FROM secrets WHERE tenant = ?1",
        "DELETE FROM kv WHERE tenant = ?1",
        "DELETE FROM tokens WHERE tenant = ?1",
        "DELETE FROM hosts WHERE tenant = ?1",
        "DELETE FROM tenant_modules WHERE tenant = ?1",
        "DELETE FROM tenants WHERE name = ?1",
    ] {
        tx.execute(sql, [name.as_str()]).map_err(failed("delete the tenant"))?;
    }
    tx.execute("DELETE FROM modules WHERE digest NOT IN (SELECT digest FROM tenant_modules)", [])
        .map_err(failed("delete the modules that no tenant has"))?;
    audit::write(tx, stamp, "tenant.delete", Some(name), &json!({}))
}

/// A row as it is, before its texts are read.
type Raw = (String, String, u64, Option<u64>, Option<u64>, Option<String>);

fn raw(r: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((
        r.get("name")?,
        r.get("granted")?,
        uint(r, "created_ms")?,
        opt_uint(r, "active")?,
        opt_uint(r, "previous")?,
        r.get("deletion")?,
    ))
}

fn record((name, granted, created_ms, active, previous, deletion): Raw) -> Result<TenantRecord, StoreError> {
    Ok(TenantRecord {
        name: row::parse("tenant name", &name)?,
        grant: serde_json::from_str(&granted).map_err(|e| damaged("grant")(format!("tenant {name}: {e}")))?,
        created_ms,
        active: active.map(RevisionId),
        previous: previous.map(RevisionId),
        deletion: deletion.map(|text| row::parse("kind of deletion", &text)).transpose()?,
    })
}

pub(super) fn get(tx: &Connection, name: &TenantName) -> Result<Option<TenantRecord>, StoreError> {
    tx.prepare_cached(&format!("{SELECT} WHERE name = ?"))
        .and_then(|mut select| select.query_row([name.as_str()], raw).optional())
        .map_err(failed("read the tenant"))?
        .map(record)
        .transpose()
}

pub(super) fn all(tx: &Connection) -> Result<Vec<TenantRecord>, StoreError> {
    let doing = "read the tenants";
    let mut select = tx.prepare_cached(&format!("{SELECT} ORDER BY name")).map_err(failed(doing))?;
    let rows = select.query_map([], raw).map_err(failed(doing))?;
    rows.map(|row| record(row.map_err(failed(doing))?)).collect()
}

/// The tenant, for a change to it.
pub(super) fn known(tx: &Connection, name: &TenantName) -> Result<TenantRecord, StoreError> {
    get(tx, name)?.ok_or_else(|| StoreError::UnknownTenant(name.clone()))
}
