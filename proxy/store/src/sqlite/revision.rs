//! Revisions, and which of them is active.

use beamline_model::{RevisionId, TenantName};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::json;

use super::{
    audit,
    row::{failed, int, uint},
    tenant,
};
use crate::{Activated, PAGE_MAX, RevisionRecord, RevisionSummary, Stamp, StoreError};

/// Refuses where another change came first.
fn still(tx: &Connection, tenant: &TenantName, expected: Option<RevisionId>) -> Result<(), StoreError> {
    let found = tenant::known(tx, tenant)?.active;
    if found == expected {
        Ok(())
    } else {
        Err(StoreError::Moved { tenant: tenant.clone(), expected, found })
    }
}

/// Points the tenant at `revision`. Where it is active already, `previous` stays what it was.
fn switch(tx: &Connection, tenant: &TenantName, revision: RevisionId) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE tenants SET previous = active, active = ?2 WHERE name = ?1 AND active IS NOT ?2",
        params![tenant.as_str(), int(revision.0)],
    )
    .map(|_| ())
    .map_err(failed("activate the revision"))
}

pub(super) fn commit(
    tx: &Connection,
    tenant: &TenantName,
    replaces: Option<RevisionId>,
    manifest: &str,
    stamp: Stamp<'_>,
) -> Result<Activated, StoreError> {
    let doing = "commit the revision";
    still(tx, tenant, replaces)?;
    let last: u64 = tx
        .query_row(
            "SELECT coalesce(max(id), 0) AS last FROM revisions WHERE tenant = ?",
            [tenant.as_str()],
            |r| uint(r, "last"),
        )
        .map_err(failed(doing))?;
    let revision = RevisionId(last + 1);
    tx.execute(
        "INSERT INTO revisions (tenant, id, created_ms, manifest) VALUES (?, ?, ?, ?)",
        params![tenant.as_str(), int(revision.0), int(stamp.at_ms), manifest],
    )
    .map_err(failed(doing))?;
    switch(tx, tenant, revision)?;
    let detail = json!({ "revision": revision, "replaced": replaces });
    audit::write(tx, stamp, "revision.commit", Some(tenant), &detail)?;
    Ok(Activated { revision, replaced: replaces })
}

pub(super) fn activate(
    tx: &Connection,
    tenant: &TenantName,
    replaces: Option<RevisionId>,
    revision: RevisionId,
    stamp: Stamp<'_>,
) -> Result<Activated, StoreError> {
    still(tx, tenant, replaces)?;
    if get(tx, tenant, revision)?.is_none() {
        return Err(StoreError::UnknownRevision { tenant: tenant.clone(), revision });
    }
    switch(tx, tenant, revision)?;
    let detail = json!({ "revision": revision, "replaced": replaces });
    audit::write(tx, stamp, "revision.activate", Some(tenant), &detail)?;
    Ok(Activated { revision, replaced: replaces })
}

pub(super) fn get(
    tx: &Connection,
    tenant: &TenantName,
    revision: RevisionId,
) -> Result<Option<RevisionRecord>, StoreError> {
    tx.prepare_cached("SELECT created_ms, manifest FROM revisions WHERE tenant = ? AND id = ?")
        .and_then(|mut select| {
            select
                .query_row(params![tenant.as_str(), int(revision.0)], |r| {
                    Ok(RevisionRecord {
                        id: revision,
                        created_ms: uint(r, "created_ms")?,
                        manifest: r.get("manifest")?,
                    })
                })
                .optional()
        })
        .map_err(failed("read the revision"))
}

pub(super) fn page(
    tx: &Connection,
    tenant: &TenantName,
    before: Option<RevisionId>,
    limit: u32,
) -> Result<Vec<RevisionSummary>, StoreError> {
    let doing = "read the revisions";
    let mut select = tx
        .prepare_cached(
            "SELECT id, created_ms FROM revisions WHERE tenant = ? AND id < ? ORDER BY id DESC LIMIT ?",
        )
        .map_err(failed(doing))?;
    let before = before.map_or(i64::MAX, |r| int(r.0));
    let rows = select
        .query_map(params![tenant.as_str(), before, limit.min(PAGE_MAX)], |r| {
            Ok(RevisionSummary { id: RevisionId(uint(r, "id")?), created_ms: uint(r, "created_ms")? })
        })
        .map_err(failed(doing))?;
    rows.collect::<Result<_, _>>().map_err(failed(doing))
}
