//! What changes a tenant: modules, manifests, rollbacks.

use std::sync::Arc;

use beamline_filter_host::{CompileError, ModuleInfo};
use beamline_model::{
    ByteSize, Digest, Limit, LimitClass, Manifest, RevisionId, TenantName, TokenScope, UpstreamName,
};
use beamline_store::{Activated, KvRecord, RevisionRecord, Stamp, StoreError, TenantRecord};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Control, Inner, to_its_end};
use crate::{
    Applied, ControlError, ModuleView,
    actor::{named, permit},
    check::{digests, within_grant},
    diff::diff,
    runtime::Prepared,
    turns::Turn,
};

/// How a manifest is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Checks everything and changes nothing.
    pub dry_run: bool,
    /// Gives up the queued requests of upstreams that the manifest removes.
    pub discard_queue: bool,
}

/// A tenant's leave to upload a module. Held until the module is taken, so that a tenant holds no more than one in memory.
#[derive(Debug)]
pub struct Upload {
    /// The tenant's limit class.
    pub class: LimitClass,
    /// The most bytes that the module may have.
    pub limit: ByteSize,
    _turn: Turn,
}

impl Control {
    /// Waits until the tenant may upload a module: it has one upload at a time, which its [`Upload`] lasts. To be asked before
    /// the module's bytes are read.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    pub async fn upload(&self, tenant: &TenantName, actor: &TokenScope) -> Result<Upload, ControlError> {
        permit(actor, tenant)?;
        // Only tenants that exist have a turn.
        let class = self.inner.tenant(tenant).await?.grant.limit_class;
        let turn = self.inner.uploads.take(tenant).await;
        Ok(Upload { class, limit: self.inner.settings.limits.of(class).module.size, _turn: turn })
    }

    /// Takes down that an upload of the tenant was given up, for it is longer than its [`Upload`] allows; what it is told.
    pub fn module_too_large(&self, tenant: &TenantName, upload: &Upload) -> ControlError {
        self.inner.metrics.module_refused(tenant.as_str(), Limit::ModuleSize.as_str());
        ControlError::ModuleTooLarge { class: upload.class, limit: upload.limit }
    }

    /// Takes a module: validates and compiles it, and gives it to the tenant. Idempotent by content.
    ///
    /// Cancel safe: while it compiles, going away ends it; then it runs to its end.
    ///
    /// # Errors
    /// [`ControlError::Module`] names what is wrong with it; [`ControlError::Quota`].
    pub async fn push_module(
        &self,
        tenant: &TenantName,
        bytes: Bytes,
        actor: &TokenScope,
    ) -> Result<ModuleView, ControlError> {
        permit(actor, tenant)?;
        let of = self.inner.compilation(&self.inner.tenant(tenant).await?);
        let ready = self.inner.modules.ready(bytes.clone(), of).await;
        if let Some(limit) = ready.as_ref().err().and_then(CompileError::limit) {
            self.inner.metrics.module_refused(tenant.as_str(), limit.as_str());
        }
        let ready = ready?;
        let view = ModuleView { info: ready.info, cached: ready.cached };
        let (this, tenant, actor) = (self.clone(), tenant.clone(), named(actor));
        to_its_end(async move {
            let (_turn, _) = this.inner.turn(&tenant).await?;
            // Held until the module is stored, so that an apply that follows finds it loaded.
            let _module = ready.module;
            this.inner.store_module(&tenant, &view.info, bytes, &actor).await?;
            Ok(view)
        })
        .await
    }

    /// Makes `manifest` the tenant's active one, as a new revision; where it is already, changes nothing. A dry run
    /// checks everything and says what would change. An upstream that is removed must have nothing in the queue, or that is
    /// discarded.
    ///
    /// # Errors
    /// [`ControlError::Grant`] names everything that no grant covers; [`ControlError::UnknownModule`],
    /// [`ControlError::ModulePath`], [`ControlError::Unloadable`], [`ControlError::NothingToKeep`]; [`ControlError::SecretNotSet`], [`ControlError::SecretUnavailable`],
    /// [`ControlError::NoSealKey`]; [`ControlError::RemovedBacklog`]; [`ControlError::Queue`] where the revision is active and what
    /// was to be discarded is not.
    pub async fn apply(
        &self,
        tenant: &TenantName,
        manifest: Manifest,
        options: ApplyOptions,
        actor: &TokenScope,
    ) -> Result<Applied, ControlError> {
        permit(actor, tenant)?;
        let (inner, tenant, actor) = (Arc::clone(&self.inner), tenant.clone(), named(actor));
        to_its_end(async move { inner.apply(&tenant, &manifest, options, &actor).await }).await
    }

    /// Makes an earlier revision the active one again: the one named, or the one that was active before this one.
    /// It is held against the grant as it is now.
    ///
    /// # Errors
    /// [`ControlError::NoRevision`], [`ControlError::NoPrevious`], [`StoreError::UnknownRevision`], and those of
    /// [`apply`](Self::apply).
    pub async fn rollback(
        &self,
        tenant: &TenantName,
        to: Option<RevisionId>,
        discard_queue: bool,
        actor: &TokenScope,
    ) -> Result<Applied, ControlError> {
        permit(actor, tenant)?;
        let (inner, tenant, actor) = (Arc::clone(&self.inner), tenant.clone(), named(actor));
        to_its_end(async move { inner.rollback(&tenant, to, discard_queue, &actor).await }).await
    }
}

impl Inner {
    /// Refuses what the tenant's grant, as it is now, does not cover.
    fn within_grant(&self, manifest: &Manifest, tenant: &TenantRecord) -> Result<(), ControlError> {
        within_grant(manifest, &tenant.grant, &self.admin, &self.settings.nats, &self.settings.limits)
    }

    async fn store_module(
        &self,
        tenant: &TenantName,
        info: &ModuleInfo,
        bytes: Bytes,
        actor: &str,
    ) -> Result<(), ControlError> {
        let (name, digest, limits) = (tenant.clone(), info.digest, self.settings.clone());
        let (at_ms, by) = (self.now_ms(), actor.to_owned());
        let text = serde_json::to_string(info).expect("a module's description can be written as JSON");
        let size = bytes.len() as u64;
        let held = {
            let name = name.clone();
            self.store.call(move |s| s.modules(&name)).await?
        };
        if !held.iter().any(|m| m.digest == digest) {
            let quota = |wanted, limit, unit| {
                if wanted > limit {
                    Err(ControlError::Quota { tenant: name.clone(), wanted, limit, unit })
                } else {
                    Ok(())
                }
            };
            quota(held.len() as u64 + 1, limits.tenant_modules as u64, "files")?;
            quota(held.iter().map(|m| m.size).sum::<u64>() + size, limits.tenant_module_bytes, "bytes")?;
        }
        let put = move |s: &dyn beamline_store::Store| {
            s.put_module(&name, &digest, &bytes, &text, Stamp { at_ms, actor: &by })
        };
        if self.store.call(put).await? {
            let fields = json!({
                "tenant.id": tenant, "beamline.module": digest, "size": size, "actor": actor,
            });
            self.event("module.pushed", fields);
        }
        Ok(())
    }

    async fn apply(
        &self,
        name: &TenantName,
        manifest: &Manifest,
        ApplyOptions { dry_run, discard_queue }: ApplyOptions,
        actor: &str,
    ) -> Result<Applied, ControlError> {
        let (_turn, tenant) = self.turn(name).await?;
        self.within_grant(manifest, &tenant)?;
        for (key, digest) in digests(manifest)? {
            self.owns_module(name, key, digest).await?;
        }
        let active = self.active_manifest(&tenant).await?;
        let removed = self.removed_with_backlog(&tenant, active.as_ref(), manifest, discard_queue).await?;
        let text = manifest.to_json();
        let diff = diff(&parsed(active.as_ref()), &serde_json::from_str(&text).unwrap_or_default());
        let same = active.is_some_and(|r| {
            r.manifest == text || Manifest::from_json(r.manifest.as_bytes()).as_ref() == Ok(manifest)
        });
        if same && self.serves(&tenant) {
            return Ok(Applied { revision: tenant.active, changed: false, diff: Vec::new(), discarded: 0 });
        }
        let prepared = self.prepare_whole(&tenant, manifest).await?;
        if dry_run {
            return Ok(Applied { revision: tenant.active, changed: !same, diff, discarded: 0 });
        }
        let stored = self.stored_keys(&prepared).await?;
        if let (true, Some(revision)) = (same, tenant.active) {
            self.keep_keys(&prepared, stored);
            // The same manifest, which this node could not load before: nothing to store.
            self.publisher.publish(prepared.at(revision)).await?;
            self.tell_recovered(name, revision);
            return Ok(Applied { revision: Some(revision), changed: false, diff: Vec::new(), discarded: 0 });
        }
        let (of, by, replaces, at_ms) = (name.clone(), actor.to_owned(), tenant.active, self.now_ms());
        let activated = self
            .store
            .call(move |s| s.commit_revision(&of, replaces, &text, Stamp { at_ms, actor: &by }))
            .await?;
        let applied = self.activated((prepared, stored), activated, diff, name, actor).await?;
        self.without_backlog(name, removed, applied, actor).await
    }

    async fn rollback(
        &self,
        name: &TenantName,
        to: Option<RevisionId>,
        discard_queue: bool,
        actor: &str,
    ) -> Result<Applied, ControlError> {
        let (_turn, tenant) = self.turn(name).await?;
        let active = self.active_manifest(&tenant).await?;
        let active = active.ok_or_else(|| ControlError::NoRevision(name.clone()))?;
        let target = match to {
            Some(revision) => revision,
            None => tenant.previous.ok_or_else(|| ControlError::NoPrevious(name.clone()))?,
        };
        if target == active.id && self.serves(&tenant) {
            return Ok(Applied { revision: Some(target), changed: false, diff: Vec::new(), discarded: 0 });
        }
        let record = self.revision_record(name, target).await?;
        let manifest = readable(name, &record)?;
        self.within_grant(&manifest, &tenant)?;
        let removed = self.removed_with_backlog(&tenant, Some(&active), &manifest, discard_queue).await?;
        let diff = diff(&parsed(Some(&active)), &parsed(Some(&record)));
        let prepared = self.prepare_whole(&tenant, &manifest).await?;
        let stored = self.stored_keys(&prepared).await?;
        let (of, by, replaces, at_ms) = (name.clone(), actor.to_owned(), tenant.active, self.now_ms());
        let activated = self
            .store
            .call(move |s| s.activate_revision(&of, replaces, target, Stamp { at_ms, actor: &by }))
            .await?;
        let applied = self.activated((prepared, stored), activated, diff, name, actor).await?;
        self.without_backlog(name, removed, applied, actor).await
    }

    /// What follows a commit: the runtime becomes visible, and the change is told.
    async fn activated(
        &self,
        (prepared, stored): (Prepared, Vec<KvRecord>),
        Activated { revision, replaced }: Activated,
        diff: Vec<String>,
        tenant: &TenantName,
        actor: &str,
    ) -> Result<Applied, ControlError> {
        self.keep_keys(&prepared, stored);
        self.publisher.publish(prepared.at(revision)).await?;
        let fields = json!({
            "tenant.id": tenant,
            "beamline.revision": revision,
            "replaced": replaced,
            "actor": actor,
        });
        self.event("revision.activated", fields);
        Ok(Applied { revision: Some(revision), changed: replaced != Some(revision), diff, discarded: 0 })
    }

    /// After upstreams are removed: discards what was queued for them, as was asked for.
    async fn without_backlog(
        &self,
        tenant: &TenantName,
        removed: Vec<UpstreamName>,
        mut applied: Applied,
        actor: &str,
    ) -> Result<Applied, ControlError> {
        for upstream in removed {
            applied.discarded += self.discard_whole(tenant, &upstream, actor).await?;
        }
        Ok(applied)
    }

    /// Prepares a manifest whose every filter and secret must be ready.
    async fn prepare_whole(
        &self,
        tenant: &TenantRecord,
        manifest: &Manifest,
    ) -> Result<Prepared, ControlError> {
        self.check_secrets(&tenant.name, manifest).await?;
        let mut prepared = self.prepare(tenant, manifest).await;
        if let Some(first) = prepared.unloaded.pop() {
            return Err(ControlError::Unloadable {
                key: format!("filters[{}].module", first.filter),
                problem: first.problem,
            });
        }
        if let Some((key, problem)) = prepared.kept_in_vain() {
            return Err(ControlError::NothingToKeep { key, problem });
        }
        // The secrets were read a second time for it.
        let missing = prepared.without_secrets().next().map(|(lacking, problem)| {
            ControlError::SecretUnavailable { key: lacking.key(), problem: problem.to_owned() }
        });
        missing.map_or(Ok(prepared), Err)
    }

    /// Whether what serves the tenant is its active revision, whole.
    fn serves(&self, tenant: &TenantRecord) -> bool {
        self.snapshots
            .load()
            .by_name(&tenant.name)
            .is_some_and(|t| Some(t.revision) == tenant.active && t.is_whole())
    }

    async fn owns_module(
        &self,
        tenant: &TenantName,
        key: String,
        digest: Digest,
    ) -> Result<(), ControlError> {
        let name = tenant.clone();
        match self.store.call(move |s| s.module(&name, &digest)).await? {
            Some(_) => Ok(()),
            None => Err(ControlError::UnknownModule { key, tenant: tenant.clone(), digest }),
        }
    }

    pub(super) async fn revision_record(
        &self,
        tenant: &TenantName,
        revision: RevisionId,
    ) -> Result<RevisionRecord, ControlError> {
        let name = tenant.clone();
        let found = self.store.call(move |s| s.revision(&name, revision)).await?;
        found.ok_or_else(|| StoreError::UnknownRevision { tenant: tenant.clone(), revision }.into())
    }

    async fn active_manifest(&self, tenant: &TenantRecord) -> Result<Option<RevisionRecord>, ControlError> {
        match tenant.active {
            Some(revision) => self.revision_record(&tenant.name, revision).await.map(Some),
            None => Ok(None),
        }
    }
}

/// A revision's manifest as the type that can be run.
pub(super) fn readable(tenant: &TenantName, record: &RevisionRecord) -> Result<Manifest, ControlError> {
    Manifest::from_json(record.manifest.as_bytes()).map_err(|error| ControlError::Unreadable {
        tenant: tenant.clone(),
        revision: record.id,
        problem: error.to_string(),
    })
}

/// A revision's manifest as plain JSON, for the difference: also where this version cannot read it.
fn parsed(record: Option<&RevisionRecord>) -> Value {
    record.and_then(|r| serde_json::from_str(&r.manifest).ok()).unwrap_or_default()
}
