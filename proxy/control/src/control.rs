//! The control plane's operations.

mod change;
mod deletion;
mod keys;
mod prepare;
mod read;
mod secrets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use arc_swap::ArcSwap;
use beamline_filter_host::Compiler;
use beamline_model::{Grant, TenantName, Token, TokenHash, TokenScope};
use beamline_queue::Queue;
use beamline_store::{Stamp, Store, StoreError, TenantRecord};
use beamline_telemetry::{Metrics, Telemetry};
use serde_json::{Value, json};

use crate::{
    ControlError, ControlSettings, Snapshot,
    actor::{named, permit_operator},
    keeper::{Keeper, since_epoch_ms},
    modules::Modules,
    publish::Publisher,
    reaper::Reaper,
    stored::Stored,
    turns::{Turn, Turns},
};

pub use change::{ApplyOptions, Upload};
pub use secrets::SECRETS_MAX;

/// Where events go: a name and its fields.
pub(crate) type Events = Arc<dyn Fn(&str, Value) + Send + Sync>;

/// The control plane. Cheap to clone; every clone is the same one.
///
/// Each method takes the actor that asks, refuses what that actor may not, and returns after its change is durable
/// and visible. Changes are cancel safe: dropping the future does not stop a change that has begun.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    store: Stored,
    queue: Queue,
    modules: Box<dyn Modules>,
    events: Events,
    /// Stores what filters store durably.
    keeper: Keeper,
    /// Where what tenants' filters count is shown.
    metrics: Metrics,
    settings: ControlSettings,
    admin: Arc<[SocketAddr]>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    publisher: Publisher,
    /// Every token that is valid, as the store has them. Read at each admin request, written when a tenant is created.
    tokens: RwLock<HashMap<TokenHash, TokenScope>>,
    /// So that a tenant's changes come one after the other.
    turns: Turns,
    /// So that of a tenant's uploads one is held and compiled at a time.
    uploads: Turns,
    /// The tenants that are being deleted. Held for a look-up.
    deleting: Mutex<BTreeSet<TenantName>>,
}

impl Control {
    /// Reads what is declared, loads every tenant's modules and makes the first snapshot; from then on works in the
    /// current tokio runtime.
    ///
    /// Returns when every tenant is loaded. A tenant whose modules or manifest cannot be loaded is there all the
    /// same, answers as its filters' `on_error` says, and is tried again every [`ControlSettings::reload_every`].
    ///
    /// # Errors
    /// Where the store cannot be read, or no thread is to be had.
    pub async fn open(
        store: Arc<dyn Store>,
        queue: Queue,
        settings: ControlSettings,
        compiler: Compiler,
        telemetry: Telemetry,
    ) -> Result<Self, ControlError> {
        let metrics = telemetry.metrics().clone();
        let events: Events = Arc::new(move |name, fields| telemetry.event(name, fields));
        Self::start(store, queue, settings, Box::new(compiler), events, metrics).await
    }

    pub(crate) async fn start(
        store: Arc<dyn Store>,
        queue: Queue,
        settings: ControlSettings,
        modules: Box<dyn Modules>,
        events: Events,
        metrics: Metrics,
    ) -> Result<Self, ControlError> {
        let no_thread =
            |doing| move |source: io::Error| StoreError::Unavailable { doing, source: source.into() };
        let keeper = Keeper::start(Arc::clone(&store), Arc::clone(&events), settings.now)
            .map_err(no_thread("begin: no thread for what filters store"))?;
        let store = Stored::new(store);
        let tokens = store.call(|s| s.tokens()).await?.into_iter().collect();
        let reaper = Reaper::start().map_err(no_thread("begin: no thread for the reaper"))?;
        let snapshots = Arc::new(ArcSwap::from_pointee(Snapshot::new([])));
        let publisher = Publisher::start(Arc::clone(&snapshots), reaper, settings.coalesce);
        let admin = settings.admin_addresses.as_slice().into();
        let control = Self {
            inner: Arc::new(Inner {
                store,
                queue,
                modules,
                events,
                keeper,
                metrics,
                settings,
                admin,
                snapshots,
                publisher,
                tokens: RwLock::new(tokens),
                turns: Turns::default(),
                uploads: Turns::default(),
                deleting: Mutex::default(),
            }),
        };
        control.reseal_secrets().await?;
        control.load_all().await?;
        control.keep_reloading();
        control.keep_sweeping();
        control.keep_deleting();
        Ok(control)
    }

    /// Where the newest snapshot is. Workers keep an [`arc_swap::Cache`] of it.
    pub fn snapshots(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.inner.snapshots)
    }

    /// At the first start, makes the operator's token: hands it to `keep`, and makes it valid when `keep` has it safe.
    ///
    /// Returns whether it was the first start. In this order a crash leaves at worst a kept token that is not
    /// valid, and the next start makes another; never a valid one that nobody knows. `keep` blocks.
    ///
    /// # Errors
    /// [`ControlError::Token`] where `keep` fails.
    pub async fn operator_token_if_first_start(
        &self,
        keep: impl FnOnce(&Token) -> io::Result<()>,
    ) -> Result<bool, ControlError> {
        let known = |tokens: &HashMap<_, _>| tokens.values().any(|s| *s == TokenScope::Operator);
        if known(&self.inner.tokens.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(false);
        }
        let token = Token::generate(&TokenScope::Operator);
        keep(&token).map_err(ControlError::Token)?;
        let (hash, at_ms) = (token.hash(), self.inner.now_ms());
        let stamp = move |store: &dyn Store| {
            store.add_first_operator_token(&hash, Stamp { at_ms, actor: "operator" })
        };
        let added = self.inner.store.call(stamp).await?;
        if added {
            self.inner.allow(hash, TokenScope::Operator);
        }
        Ok(added)
    }

    /// Whom the token of this hash speaks for now, or none where it is not valid, or not any more: what goes on for long asks
    /// again. Does not touch the disk.
    pub fn authenticate(&self, token: &TokenHash) -> Option<TokenScope> {
        self.inner.tokens.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    /// Creates a tenant and returns its token, which is shown this one time.
    ///
    /// # Errors
    /// [`ControlError::OperatorOnly`]; [`StoreError::NameTaken`] and [`StoreError::HostTaken`].
    pub async fn create_tenant(
        &self,
        name: TenantName,
        grant: Grant,
        actor: &TokenScope,
    ) -> Result<Token, ControlError> {
        permit_operator(actor, "create tenants")?;
        let (this, actor) = (self.clone(), named(actor));
        to_its_end(async move {
            // So that whoever ends the tenant that had the name has forgotten it, and not this one's token after it.
            let _turn = this.inner.turns.take(&name).await;
            let scope = TokenScope::Tenant(name.clone());
            let token = Token::generate(&scope);
            let (hash, at_ms) = (token.hash(), this.inner.now_ms());
            let (tenant, by) = (name.clone(), actor.clone());
            let create =
                move |s: &dyn Store| s.create_tenant(&tenant, &grant, &hash, Stamp { at_ms, actor: &by });
            if let Err(error) = this.inner.store.call(create).await {
                this.inner.turns.end(&name);
                return Err(error);
            }
            this.inner.allow(hash, scope);
            this.inner.event("tenant.created", json!({ "tenant.id": name, "actor": actor }));
            Ok(token)
        })
        .await
    }
}

impl Inner {
    fn now_ms(&self) -> u64 {
        since_epoch_ms(self.settings.now)
    }

    fn event(&self, name: &str, fields: Value) {
        (self.events)(name, fields);
    }

    fn allow(&self, hash: TokenHash, scope: TokenScope) {
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).insert(hash, scope);
    }

    /// The tenant as it is stored.
    async fn tenant(&self, name: &TenantName) -> Result<TenantRecord, ControlError> {
        let wanted = name.clone();
        let found = self.store.call(move |s| s.tenant(&wanted)).await?;
        found.ok_or_else(|| StoreError::UnknownTenant(name.clone()).into())
    }

    /// Waits for this tenant's turn: until the guard is dropped nobody else changes it. Returns it as it is then.
    ///
    /// # Errors
    /// [`ControlError::BeingDeleted`]: then nothing of it is changed any more.
    async fn turn(&self, name: &TenantName) -> Result<(Turn, TenantRecord), ControlError> {
        let (turn, tenant) = self.turn_of_any(name).await?;
        if tenant.deletion.is_some() {
            return Err(ControlError::BeingDeleted(name.clone()));
        }
        Ok((turn, tenant))
    }

    fn begin_deleting(&self, name: &TenantName) {
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
    }

    /// The tenants that are being deleted.
    fn deleting(&self) -> BTreeSet<TenantName> {
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Of a tenant that is deleted nothing is left here.
    fn forget(&self, name: &TenantName) {
        let is_its = |scope: &TokenScope| matches!(scope, TokenScope::Tenant(of) if of == name);
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).retain(|_, scope| !is_its(scope));
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.turns.end(name);
        self.uploads.end(name);
    }

    /// As [`turn`](Self::turn), of a tenant that is being deleted too.
    async fn turn_of_any(&self, name: &TenantName) -> Result<(Turn, TenantRecord), ControlError> {
        self.tenant(name).await?; // so that only tenants that exist have a turn
        let guard = self.turns.take(name).await;
        Ok((guard, self.tenant(name).await?))
    }
}

/// Runs a change as a task of its own, so that it runs to its end though the caller goes away.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ControlError>> + Send + 'static,
) -> Result<T, ControlError> {
    match tokio::spawn(change).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ControlError::Stopped),
    }
}
