//! Secrets: set, listed and removed, sealed before the store has them, and opened for what runs.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use beamline_filter_host::Redaction;
use beamline_model::{
    Credentials, FilterSpec, Manifest, SecretName, SecretValue, TenantName, TokenScope, UpstreamName,
    UpstreamSpec,
};
use beamline_seal::{Context, SealKeys, key_of};
use beamline_store::{SecretRecord, Stamp, TenantRecord};
use serde_json::json;

use super::{Control, Inner, change::readable, to_its_end};
use crate::{
    ControlError, InjectedHeaders, SecretListing, SecretSet,
    actor::{named, permit},
};

/// The most secrets that a tenant may have.
pub const SECRETS_MAX: usize = 64;
/// What a sealed secret is for, so that nothing else opens as one.
const PURPOSE: &str = "secret";
/// On whose authority a node seals anew.
const NODE: &str = "node";

impl Control {
    /// Sets a tenant's secret, in place of what it was. What runs has it when this returns, without a new revision.
    ///
    /// # Errors
    /// [`ControlError::NoSealKey`], [`ControlError::TooManySecrets`].
    pub async fn set_secret(
        &self,
        tenant: &TenantName,
        name: SecretName,
        value: SecretValue,
        actor: &TokenScope,
    ) -> Result<SecretSet, ControlError> {
        permit(actor, tenant)?;
        let (this, tenant, actor) = (self.clone(), tenant.clone(), named(actor));
        to_its_end(async move { this.inner.set_secret(&tenant, name, &value, &actor).await }).await
    }

    /// Removes a tenant's secret.
    ///
    /// # Errors
    /// [`ControlError::SecretInUse`] where the active revision names it; [`beamline_store::StoreError::UnknownSecret`].
    pub async fn remove_secret(
        &self,
        tenant: &TenantName,
        name: SecretName,
        actor: &TokenScope,
    ) -> Result<(), ControlError> {
        permit(actor, tenant)?;
        let (this, tenant, actor) = (self.clone(), tenant.clone(), named(actor));
        to_its_end(async move { this.inner.remove_secret(&tenant, name, &actor).await }).await
    }

    /// A tenant's secrets by name, without their values, which nobody gets to see.
    ///
    /// # Errors
    /// [`beamline_store::StoreError::UnknownTenant`].
    pub async fn secrets(
        &self,
        tenant: &TenantName,
        actor: &TokenScope,
    ) -> Result<Vec<SecretListing>, ControlError> {
        permit(actor, tenant)?;
        let record = self.inner.tenant(tenant).await?;
        let used = self.inner.secrets_used(&record).await?;
        let listing = |secret: SecretRecord| SecretListing {
            key: key_of(&secret.sealed).map(str::to_owned),
            used_by: used.get(&secret.name).cloned().unwrap_or_default(),
            name: secret.name,
            set_ms: secret.set_ms,
        };
        Ok(self.inner.secret_records(tenant).await?.into_iter().map(listing).collect())
    }

    /// Seals anew what is sealed by another key than the current one, so that the other can go when no queued request
    /// needs it. What does not open is told and left as it is.
    pub(super) async fn reseal_secrets(&self) -> Result<(), ControlError> {
        let Some(keys) = self.inner.settings.seal_keys.clone() else { return Ok(()) };
        for tenant in self.inner.store.call(|s| s.tenants()).await? {
            for secret in self.inner.secret_records(&tenant.name).await? {
                if key_of(&secret.sealed) != Some(keys.current().as_str()) {
                    self.inner.reseal(&keys, &tenant.name, secret).await;
                }
            }
        }
        Ok(())
    }
}

fn context<'a>(of: &'a [&'a str; 2]) -> Context<'a> {
    Context { purpose: PURPOSE, of }
}

/// Each secret that a manifest names, with the key that names it.
fn references(manifest: &Manifest) -> impl Iterator<Item = (String, &SecretName)> {
    let of_upstreams = manifest.upstreams.iter().flat_map(|(upstream, spec)| {
        spec.headers
            .iter()
            .map(move |(header, secret)| (format!("upstreams.{upstream}.headers.{header}"), secret.name()))
    });
    let of_filters = manifest.filters.iter().flat_map(|filter| {
        filter.secrets.iter().map(|secret| (format!("filters[{}].secrets", filter.name), secret))
    });
    of_upstreams.chain(of_filters)
}

impl Inner {
    fn seal_keys(&self, what: &str) -> Result<&SealKeys, ControlError> {
        self.settings.seal_keys.as_deref().ok_or_else(|| ControlError::NoSealKey { what: what.to_owned() })
    }

    /// Seals one secret anew. Where that fails it stays as it is, and the node starts all the same: a full disk, or a key that
    /// is gone, is no reason to serve nobody.
    async fn reseal(&self, keys: &SealKeys, tenant: &TenantName, secret: SecretRecord) {
        let (of, name) = (tenant.clone(), secret.name.clone());
        let value = match keys.open(context(&[of.as_str(), name.as_str()]), &secret.sealed) {
            Ok(value) => value,
            Err(error) => {
                tracing::warn!(%error, %tenant, secret = %name, "a secret cannot be opened");
                return;
            }
        };
        let sealed = keys.seal(context(&[of.as_str(), name.as_str()]), value.reveal());
        let stamp = Stamp { at_ms: self.now_ms(), actor: NODE };
        let reseal =
            move |s: &dyn beamline_store::Store| s.reseal_secret(&of, &name, &secret.sealed, &sealed, stamp);
        if let Err(error) = self.store.call(reseal).await {
            tracing::warn!(%error, %tenant, "a secret could not be sealed anew");
        }
    }

    async fn secret_records(&self, tenant: &TenantName) -> Result<Vec<SecretRecord>, ControlError> {
        let name = tenant.clone();
        self.store.call(move |s| s.secrets(&name)).await
    }

    /// The keys of the active manifest that name each secret.
    async fn secrets_used(
        &self,
        tenant: &TenantRecord,
    ) -> Result<HashMap<SecretName, Vec<String>>, ControlError> {
        let mut used = HashMap::<_, Vec<_>>::new();
        if let Some(revision) = tenant.active {
            let manifest = readable(&tenant.name, &self.revision_record(&tenant.name, revision).await?)?;
            for (key, name) in references(&manifest) {
                used.entry(name.clone()).or_default().push(key);
            }
        }
        Ok(used)
    }

    async fn set_secret(
        &self,
        name: &TenantName,
        secret: SecretName,
        value: &SecretValue,
        actor: &str,
    ) -> Result<SecretSet, ControlError> {
        let (_turn, tenant) = self.turn(name).await?;
        let keys = self.seal_keys("secrets are stored sealed")?;
        let held = self.secret_records(name).await?;
        if held.len() >= SECRETS_MAX && held.iter().all(|s| s.name != secret) {
            return Err(ControlError::TooManySecrets { tenant: name.clone(), limit: SECRETS_MAX });
        }
        let sealed = keys.seal(context(&[name.as_str(), secret.as_str()]), value.reveal());
        let (key, set_ms) = (keys.current().to_string(), self.now_ms());
        let (of, which, by) = (name.clone(), secret.clone(), actor.to_owned());
        let set = move |s: &dyn beamline_store::Store| {
            s.set_secret(&of, &which, &sealed, Stamp { at_ms: set_ms, actor: &by })
        };
        let new = self.store.call(set).await?;
        // Whoever names it gets the new value with a runtime of the same revision.
        let used = match self.secrets_used(&tenant).await {
            Ok(used) => used.contains_key(&secret),
            // What cannot be read runs nothing.
            Err(ControlError::Unreadable { .. }) => false,
            Err(error) => return Err(error),
        };
        if used && let Some(runtime) = self.load(&tenant).await? {
            self.publisher.publish(runtime).await?;
        }
        self.event("secret.set", json!({ "tenant.id": name, "secret.name": secret, "actor": actor }));
        Ok(SecretSet { name: secret, new, set_ms, key })
    }

    async fn remove_secret(
        &self,
        name: &TenantName,
        secret: SecretName,
        actor: &str,
    ) -> Result<(), ControlError> {
        let (_turn, tenant) = self.turn(name).await?;
        if let Some(keys) = self.secrets_used(&tenant).await?.remove(&secret) {
            return Err(ControlError::SecretInUse { tenant: name.clone(), name: secret, keys });
        }
        let (of, which, by, at_ms) = (name.clone(), secret.clone(), actor.to_owned(), self.now_ms());
        self.store.call(move |s| s.remove_secret(&of, &which, Stamp { at_ms, actor: &by })).await?;
        self.event("secret.removed", json!({ "tenant.id": name, "secret.name": secret, "actor": actor }));
        Ok(())
    }

    /// Refuses a manifest that names what is not set or does not open, or wants something sealed where there is no key.
    pub(super) async fn check_secrets(
        &self,
        tenant: &TenantName,
        manifest: &Manifest,
    ) -> Result<(), ControlError> {
        for (upstream, spec) in &manifest.upstreams {
            if spec.queue.credentials == Credentials::Seal {
                self.seal_keys(&format!("upstreams.{upstream}.queue.credentials is \"seal\""))?;
            }
        }
        if references(manifest).next().is_none() {
            return Ok(());
        }
        let held = self.secret_records(tenant).await?;
        for (key, name) in references(manifest) {
            let Some(record) = held.iter().find(|s| s.name == *name) else {
                return Err(ControlError::SecretNotSet { key, tenant: tenant.clone(), name: name.clone() });
            };
            self.opened(tenant, record)
                .map_err(|problem| ControlError::SecretUnavailable { key, problem })?;
        }
        Ok(())
    }

    fn opened(&self, tenant: &TenantName, record: &SecretRecord) -> Result<SecretValue, String> {
        let name = &record.name;
        let keys = self.settings.seal_keys.as_deref().ok_or_else(|| {
            format!(
                "secret {name} cannot be opened: this node has no seal key, start it with --seal-key-file"
            )
        })?;
        let plain = keys
            .open(context(&[tenant.as_str(), name.as_str()]), &record.sealed)
            .map_err(|error| format!("secret {name} cannot be opened: {error}"))?;
        SecretValue::new(plain.reveal()).map_err(|error| format!("secret {name} cannot be used: {error}"))
    }

    /// The secrets that a manifest names. Never fails: what is not to be had says why.
    pub(super) async fn opened_secrets(&self, tenant: &TenantName, manifest: &Manifest) -> Secrets {
        if references(manifest).next().is_none() {
            return Secrets::default();
        }
        let held = self.secret_records(tenant).await.map_err(|error| error.to_string());
        let value = |name: &SecretName| {
            let held = held.as_ref().map_err(|error| format!("secret {name} cannot be read: {error}"))?;
            let record = held.iter().find(|secret| secret.name == *name);
            self.opened(tenant, record.ok_or_else(|| format!("secret {name} is not set"))?)
        };
        Secrets(references(manifest).map(|(_, name)| (name.clone(), value(name))).collect())
    }
}

/// Secrets by name, opened as far as this node can.
#[derive(Default)]
pub(super) struct Secrets(HashMap<SecretName, Result<SecretValue, String>>);

impl Secrets {
    fn value(&self, name: &SecretName) -> Result<SecretValue, String> {
        self.0.get(name).cloned().unwrap_or_else(|| Err(format!("secret {name} is not set")))
    }

    /// What is to be set on requests to each upstream.
    pub(super) fn injected(&self, manifest: &Manifest) -> HashMap<UpstreamName, InjectedHeaders> {
        let of_each = |(upstream, spec): (&UpstreamName, &UpstreamSpec)| {
            (upstream.clone(), InjectedHeaders::new(&spec.headers, |name| self.value(name)))
        };
        manifest.upstreams.iter().map(of_each).collect()
    }

    /// What a filter may read.
    pub(super) fn of_filter(&self, filter: &FilterSpec) -> Vec<(SecretName, Result<SecretValue, String>)> {
        filter.secrets.iter().map(|name| (name.clone(), self.value(name))).collect()
    }

    /// Keeps what any filter may read out of what is told of all of them.
    pub(super) fn redaction(&self, manifest: &Manifest) -> Arc<Redaction> {
        let names: BTreeSet<_> = manifest.filters.iter().flat_map(|filter| &filter.secrets).collect();
        Redaction::of(names.into_iter().filter_map(|name| self.0.get(name)?.as_ref().ok()))
    }
}
