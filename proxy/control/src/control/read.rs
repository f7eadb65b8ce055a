//! What can be looked at.

use beamline_filter_host::{BreakerState, Chain, ModuleInfo};
use beamline_model::{FilterName, RevisionId, TenantName, TokenScope};
use beamline_store::{AuditRow, StoreError, TenantRecord};
use beamline_upstream::UpstreamState;

use super::{Control, change::readable};
use crate::{
    ControlError, ModuleListing, RevisionListing, RevisionView, Snapshot, Status, Suspended, TenantView,
    UpstreamView,
    actor::{permit, permit_operator},
};

impl Control {
    /// The tenants that the actor may see: all of them, or its own.
    pub async fn tenants(&self, actor: &TokenScope) -> Result<Vec<TenantView>, ControlError> {
        let records = match actor {
            TokenScope::Operator => self.inner.store.call(|s| s.tenants()).await?,
            TokenScope::Tenant(own) => vec![self.inner.tenant(own).await?],
        };
        let snapshot = self.inner.snapshots.load();
        Ok(records.into_iter().map(|record| view(record, &snapshot)).collect())
    }

    /// One tenant.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    pub async fn tenant(&self, name: &TenantName, actor: &TokenScope) -> Result<TenantView, ControlError> {
        permit(actor, name)?;
        let record = self.inner.tenant(name).await?;
        Ok(view(record, &self.inner.snapshots.load()))
    }

    /// A tenant's modules, oldest first.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    pub async fn modules(
        &self,
        tenant: &TenantName,
        actor: &TokenScope,
    ) -> Result<Vec<ModuleListing>, ControlError> {
        permit(actor, tenant)?;
        self.inner.tenant(tenant).await?;
        let name = tenant.clone();
        let records = self.inner.store.call(move |s| s.modules(&name)).await?;
        records
            .into_iter()
            .map(|record| {
                let info: ModuleInfo = serde_json::from_str(&record.info).map_err(|error| {
                    StoreError::Damaged { what: "module description", problem: error.to_string() }
                })?;
                Ok(ModuleListing { info, pushed_ms: record.pushed_ms })
            })
            .collect()
    }

    /// At most `limit` (and [`beamline_store::PAGE_MAX`]) revisions of a tenant, newest first; with `before`, only
    /// older ones.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    pub async fn revisions(
        &self,
        tenant: &TenantName,
        before: Option<RevisionId>,
        limit: u32,
        actor: &TokenScope,
    ) -> Result<Vec<RevisionListing>, ControlError> {
        permit(actor, tenant)?;
        let active = self.inner.tenant(tenant).await?.active;
        let name = tenant.clone();
        let page = self.inner.store.call(move |s| s.revisions(&name, before, limit)).await?;
        let listing = |r: beamline_store::RevisionSummary| RevisionListing {
            revision: r.id,
            created_ms: r.created_ms,
            active: Some(r.id) == active,
        };
        Ok(page.into_iter().map(listing).collect())
    }

    /// One revision with its manifest; without a number, the active one.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`], [`StoreError::UnknownRevision`]; [`ControlError::NoRevision`] where the active
    /// one is asked for and there is none.
    pub async fn revision(
        &self,
        tenant: &TenantName,
        revision: Option<RevisionId>,
        actor: &TokenScope,
    ) -> Result<RevisionView, ControlError> {
        permit(actor, tenant)?;
        let active = self.inner.tenant(tenant).await?.active;
        let wanted = revision.or(active).ok_or_else(|| ControlError::NoRevision(tenant.clone()))?;
        let record = self.inner.revision_record(tenant, wanted).await?;
        Ok(RevisionView {
            listing: RevisionListing {
                revision: record.id,
                created_ms: record.created_ms,
                active: Some(record.id) == active,
            },
            manifest: readable(tenant, &record)?,
        })
    }

    /// At most `limit` (and [`beamline_store::PAGE_MAX`]) rows of the audit after row `after`, oldest first: of one
    /// tenant, or for the operator of all.
    pub async fn audit(
        &self,
        tenant: Option<&TenantName>,
        after: u64,
        limit: u32,
        actor: &TokenScope,
    ) -> Result<Vec<AuditRow>, ControlError> {
        match tenant {
            Some(name) => permit(actor, name)?,
            None => permit_operator(actor, "read the whole audit")?,
        }
        let name = tenant.cloned();
        self.inner.store.call(move |s| s.audit(name.as_ref(), after, limit)).await
    }

    /// The control plane in a few figures. Does not touch the disk.
    pub fn status(&self) -> Status {
        let snapshot = self.inner.snapshots.load();
        let mut unloaded: Vec<_> =
            snapshot.tenants().filter(|t| !t.unloaded.is_empty()).map(|t| t.name.clone()).collect();
        unloaded.sort_unstable();
        Status { tenants: snapshot.tenants().count(), generation: snapshot.generation(), unloaded }
    }
}

fn view(record: TenantRecord, snapshot: &Snapshot) -> TenantView {
    let runtime = snapshot.by_name(&record.name);
    let upstreams = runtime
        .iter()
        .flat_map(|t| &t.upstreams)
        .map(|(name, upstream)| {
            let state = match upstream.cluster.state() {
                UpstreamState::Ready => "ready",
                UpstreamState::Degraded => "degraded",
                UpstreamState::Down => "down",
            };
            (name.clone(), UpstreamView { state, problem: upstream.headers.problem().map(str::to_owned) })
        })
        .collect();
    TenantView {
        name: record.name,
        grant: record.grant,
        created_ms: record.created_ms,
        revision: record.active,
        previous: record.previous,
        deletion: record.deletion,
        upstreams,
        unloaded: runtime.map_or_else(Vec::new, |t| t.unloaded.clone()),
        suspended: runtime.map_or_else(Vec::new, |t| suspended(&t.chain)),
    }
}

/// The filters of a chain whose breakers are not closed.
fn suspended(chain: &Chain) -> Vec<Suspended> {
    let shown = |(filter, state): (&FilterName, BreakerState)| {
        let retry_ms = match state {
            BreakerState::Closed => return None,
            BreakerState::Open(left) => u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            BreakerState::HalfOpen => 0,
        };
        Some(Suspended { filter: filter.clone(), retry_ms })
    };
    chain.breakers().filter_map(shown).collect()
}
