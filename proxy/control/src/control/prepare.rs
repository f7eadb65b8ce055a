//! From a manifest to what runs, and what of it can be tried again later.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use beamline_filter_host::{Compilation, Engine, FilterConfig, FilterSetup, Module, Redaction};
use beamline_model::{FilterSpec, Manifest, ModuleRef, RevisionId, TenantName};
use beamline_store::TenantRecord;
use beamline_telemetry::GuestMetrics;
use bytes::Bytes;
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{Control, Inner, secrets::Secrets};
use crate::{
    ControlError, Snapshot, TenantRuntime, Unloaded,
    runtime::{Lacking, OnThisNode, Prepared, Ready},
};

/// Tenants that load at once when the node starts: their waits for the disk overlap, their compilations queue anyway.
const LOADS: usize = 4;
/// How often what is kept is gone through for what has expired, or is not used: a sandbox goes with the seventh time that it was
/// not.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

impl Control {
    /// Loads every tenant that has an active revision. Only a store that cannot be read stops it.
    pub(super) async fn load_all(&self) -> Result<(), ControlError> {
        let (mut loading, room) = (JoinSet::new(), Arc::new(Semaphore::new(LOADS)));
        for tenant in self.inner.store.call(|s| s.tenants()).await? {
            if tenant.deletion.is_some() {
                self.inner.begin_deleting(&tenant.name);
            }
            let (inner, room) = (Arc::clone(&self.inner), Arc::clone(&room));
            loading.spawn(async move {
                let _room = room.acquire_owned().await.map_err(|_| ControlError::Stopped)?;
                inner.load(&tenant).await
            });
        }
        let mut tenants = Vec::with_capacity(loading.len());
        while let Some(loaded) = loading.join_next().await {
            match loaded {
                Ok(loaded) => tenants.extend(loaded?),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => return Err(ControlError::Stopped),
            }
        }
        for tenant in tenants.iter().filter(|t| !t.unloaded.is_empty()) {
            self.inner.tell_unloaded(tenant);
        }
        tenants.iter().for_each(|tenant| self.inner.tell_unavailable(tenant));
        self.inner.snapshots.store(Arc::new(Snapshot::new(tenants)));
        Ok(())
    }

    /// From time to time tries again what could not be loaded. Ends with the last [`Control`].
    pub(super) fn keep_reloading(&self) {
        let (inner, every) = (Arc::downgrade(&self.inner), self.inner.settings.reload_every);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(inner) = Weak::upgrade(&inner) else { return };
                inner.reload_unloaded().await;
            }
        });
    }

    /// From time to time lets go of what tenants' filters kept and has expired, for all of them share the node's room for it; and of
    /// instances that were kept without being used. Ends with the last [`Control`].
    pub(super) fn keep_sweeping(&self) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(inner) = Weak::upgrade(&inner) else { return };
                let snapshot = inner.snapshots.load_full();
                drop(inner);
                let sweep = move || {
                    snapshot.tenants().for_each(|tenant| tenant.chain.state().sweep());
                    Engine::sweep_kept_instances();
                };
                if let Err(error) = tokio::task::spawn_blocking(sweep).await {
                    tracing::error!(%error, "what is not needed any more could not be let go of");
                }
            }
        });
    }
}

impl Inner {
    /// A stored tenant's runtime at its active revision; none where it has none. What cannot be loaded or read
    /// becomes a filter that is not available.
    pub(super) async fn load(
        &self,
        tenant: &TenantRecord,
    ) -> Result<Option<Arc<TenantRuntime>>, ControlError> {
        let Some(revision) = tenant.active else { return Ok(None) };
        let name = tenant.name.clone();
        let record = self.store.call(move |s| s.revision(&name, revision)).await?;
        let manifest = match record {
            Some(record) => Manifest::from_json(record.manifest.as_bytes()).map_err(|e| e.to_string()),
            None => Err("it is not in the store".to_owned()),
        };
        let mut prepared = match manifest {
            Ok(manifest) => self.prepare(tenant, &manifest).await,
            Err(problem) => {
                let problem = format!("revision {revision} cannot be read: {problem}");
                Prepared::unreadable(&tenant.name, &tenant.grant, problem, self.guest_metrics(&tenant.name))
            }
        };
        prepared.leaving = tenant.deletion.is_some();
        let stored = self.stored_keys(&prepared).await?;
        self.keep_keys(&prepared, stored);
        Ok(Some(prepared.at(revision)))
    }

    /// Makes ready what `manifest` declares. Never fails: filters that could not be loaded are listed in the result.
    pub(super) async fn prepare(&self, tenant: &TenantRecord, manifest: &Manifest) -> Prepared {
        let snapshot = self.snapshots.load_full();
        let current = snapshot.by_name(&tenant.name).map(Arc::as_ref);
        let (mut modules, mut unloaded) = (Vec::with_capacity(manifest.filters.len()), Vec::new());
        for filter in &manifest.filters {
            let module = match self.module(tenant, &filter.module, current).await {
                Ok(module) => module,
                Err(problem) => {
                    unloaded.push(Unloaded { filter: filter.name.clone(), problem });
                    None
                }
            };
            modules.push(module);
        }
        let secrets = self.opened_secrets(&tenant.name, manifest).await;
        let redaction = secrets.redaction(manifest);
        let filters = manifest.filters.iter().zip(modules);
        let filters = filters.map(|(filter, module)| setup(filter, module, &secrets, &redaction)).collect();
        let headers = secrets.injected(manifest);
        let metrics = self.guest_metrics(&tenant.name);
        let ready = Ready { filters, unloaded, headers, metrics };
        let node = OnThisNode {
            admin: &self.admin,
            nats: &self.settings.nats,
            egress: self.settings.egress.as_ref(),
            ceiling: &self.settings.limits.of(tenant.grant.limit_class).filter,
        };
        Prepared::new(&tenant.name, &tenant.grant, node, manifest, ready, current)
    }

    /// What the tenant's filters count: goes on over changes of its revision.
    fn guest_metrics(&self, tenant: &TenantName) -> Arc<GuestMetrics> {
        let snapshot = self.snapshots.load();
        match snapshot.by_name(tenant) {
            Some(current) => Arc::clone(&current.metrics),
            None => self.metrics.tenant(tenant.as_str()),
        }
    }

    /// What making a module of the tenant ready may cost.
    pub(super) fn compilation(&self, tenant: &TenantRecord) -> Compilation {
        let class = tenant.grant.limit_class;
        let limits = self.settings.limits.of(class).module;
        Compilation { tenant: tenant.name.clone(), class, limits }
    }

    /// A filter's module: the one that already runs in `current`, or the store's, made ready.
    async fn module(
        &self,
        tenant: &TenantRecord,
        wanted: &ModuleRef,
        current: Option<&TenantRuntime>,
    ) -> Result<Option<Arc<Module>>, String> {
        let digest = match wanted {
            ModuleRef::Digest(digest) => *digest,
            ModuleRef::Path(path) => return Err(format!("expected a digest, found the local path {path:?}")),
        };
        let running = current
            .and_then(|c| c.chain.filters().filter_map(|f| f.module.as_ref()).find(|m| m.digest() == digest));
        if let Some(module) = running {
            return Ok(Some(Arc::clone(module)));
        }
        let bytes = self
            .store
            .call(move |s| s.module_bytes(&digest))
            .await
            .map_err(|e| e.to_string())?
            .ok_or_else(|| format!("module {digest} is not in the store"))?;
        let ready = self
            .modules
            .ready(Bytes::from(bytes), self.compilation(tenant))
            .await
            .map_err(|e| e.to_string())?;
        Ok(ready.module)
    }

    /// Tries every tenant again that has something unloaded, or lacks a secret.
    pub(super) async fn reload_unloaded(&self) {
        let snapshot = self.snapshots.load_full();
        let names: Vec<_> = snapshot.tenants().filter(|t| !t.is_whole()).map(|t| t.name.clone()).collect();
        drop(snapshot);
        for name in names {
            if let Err(error) = self.reload(&name).await {
                tracing::warn!(%error, tenant = %name, "a tenant that lacks a module or a secret could not be tried again");
            }
        }
    }

    async fn reload(&self, name: &TenantName) -> Result<(), ControlError> {
        let (_turn, tenant) = self.turn_of_any(name).await?;
        let before = self.snapshots.load().by_name(name).cloned();
        let Some(after) = self.load(&tenant).await? else { return Ok(()) };
        if before.is_some_and(|before| before.revision == after.revision && before.lacks_the_same(&after)) {
            return Ok(());
        }
        self.publisher.publish(Arc::clone(&after)).await?;
        if after.is_whole() {
            self.tell_recovered(name, after.revision);
        }
        Ok(())
    }

    pub(super) fn tell_recovered(&self, tenant: &TenantName, revision: RevisionId) {
        self.event("tenant.recovered", json!({ "tenant.id": tenant, "beamline.revision": revision }));
    }

    /// Tells of each upstream whose requests cannot be sent, and of each filter that runs, without a secret.
    fn tell_unavailable(&self, tenant: &TenantRuntime) {
        for (lacking, problem) in tenant.without_secrets() {
            tracing::warn!(tenant = %tenant.name, key = lacking.key(), problem, "a secret is not to be had");
            let mut fields = json!({
                "tenant.id": tenant.name,
                "beamline.revision": tenant.revision,
                "problem": problem,
            });
            match lacking {
                Lacking::Upstream(name) => fields["upstream"] = json!(name),
                Lacking::Filter(name) => fields["filter"] = json!(name),
            }
            self.event("secret.unavailable", fields);
        }
    }

    fn tell_unloaded(&self, tenant: &TenantRuntime) {
        let fields = json!({
            "tenant.id": tenant.name,
            "beamline.revision": tenant.revision,
            "unloaded": tenant.unloaded,
        });
        self.event("tenant.unavailable", fields);
    }
}

fn setup(
    filter: &FilterSpec,
    module: Option<Arc<Module>>,
    secrets: &Secrets,
    redaction: &Arc<Redaction>,
) -> FilterSetup {
    let config = filter.config.as_ref().map_or_else(|| "null".to_owned(), serde_json::Value::to_string);
    let config = FilterConfig::with_secrets(&filter.name, &config, secrets.of_filter(filter), redaction);
    let lifetime = filter.lifetime();
    FilterSetup { name: filter.name.clone(), module, config, on_error: filter.on_error, lifetime }
}
