//! A control plane on a directory of its own, with modules that a test decides about.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use beamline_filter_host::{Compilation, CompileError, ModuleInfo, ModuleKind, Rejection, Tier};
use beamline_model::{Digest, Grant, Manifest, TenantName, TokenScope};
use beamline_queue::Queue;
use beamline_store::SqliteStore;
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::{
    Applied, ApplyOptions, Control, ControlError, ControlSettings, TenantRuntime,
    modules::{BoxFuture, Modules, Ready},
};

pub(super) const DRY_RUN: ApplyOptions = ApplyOptions { dry_run: true, discard_queue: false };
pub(super) const OPERATOR: TokenScope = TokenScope::Operator;

/// What this node's admin API is reached at in these tests.
pub(super) const ADMIN: &str = "127.0.0.1:9090";

/// Modules without Wasm: any bytes are one, except those that begin with `bad`.
pub(super) struct TestModules {
    /// Contents that the node cannot load for now.
    pub(super) broken: Mutex<HashSet<Vec<u8>>>,
    /// How often one was asked for.
    pub(super) asked: AtomicUsize,
    /// A permit lets one through.
    pub(super) gate: Semaphore,
}

impl Modules for Arc<TestModules> {
    fn ready(&self, bytes: Bytes, _: Compilation) -> BoxFuture<'_, Result<Ready, CompileError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let _passed = self.gate.acquire().await.expect("the gate is never closed");
            if bytes.starts_with(b"bad") {
                let import = "wasi:sockets/tcp@0.2.0".to_owned();
                return Err(Rejection::UnknownImport { import }.into());
            }
            if self.broken.lock().unwrap().contains(&bytes[..]) {
                return Err(CompileError::Host("the artifact cache is on fire".to_owned()));
            }
            let info = ModuleInfo {
                digest: Digest::of(&bytes),
                kind: ModuleKind::CoreModule,
                phases: vec!["beamline:edge/request-handler@0.1.0".to_owned()],
                imports: vec![],
                tier: Tier::Reset,
                tier_reason: None,
                size: bytes.len() as u64,
                artifact_size: 0,
                compile_ms: 7,
            };
            Ok(Ready { module: None, info, cached: false })
        })
    }
}

pub(super) struct Bench {
    pub(super) dir: TempDir,
    pub(super) modules: Arc<TestModules>,
    pub(super) events: Arc<Mutex<Vec<(String, Value)>>>,
    pub(super) queue: Queue,
    pub(super) control: Control,
}

pub(super) fn settings() -> ControlSettings {
    ControlSettings {
        admin_addresses: vec![ADMIN.parse().unwrap()],
        now: || UNIX_EPOCH + Duration::from_millis(1234),
        ..ControlSettings::default()
    }
}

/// A queue of its own, whose records nobody delivers.
fn queue(dir: &TempDir) -> Queue {
    Queue::open(beamline_queue::Settings::new(dir.path().join("queue"))).unwrap().0
}

impl Bench {
    pub(super) async fn new() -> Self {
        Self::with(settings()).await
    }

    pub(super) async fn with(settings: ControlSettings) -> Self {
        let modules = TestModules {
            broken: Mutex::default(),
            asked: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        };
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir);
        Self::start(dir, queue, Arc::new(modules), settings).await
    }

    async fn start(dir: TempDir, queue: Queue, modules: Arc<TestModules>, settings: ControlSettings) -> Self {
        let events: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let told = Arc::clone(&events);
        let tell = move |name: &str, fields| told.lock().unwrap().push((name.to_owned(), fields));
        let control = Control::start(
            Arc::new(SqliteStore::open(dir.path()).unwrap()),
            queue.clone(),
            settings,
            Box::new(Arc::clone(&modules)),
            Arc::new(tell),
            beamline_telemetry::Metrics::default(),
        )
        .await
        .unwrap();
        Self { dir, modules, events, queue, control }
    }

    /// The same directory under a new control plane.
    pub(super) async fn restarted(self, settings: ControlSettings) -> Self {
        let Self { dir, modules, queue, control, .. } = self;
        drop(control);
        Self::start(dir, queue, modules, settings).await
    }

    /// What a kill at this moment would leave: a control plane on a copy of the files as they are.
    pub(super) async fn after_a_kill(&self) -> Self {
        let copy = tempfile::tempdir().unwrap();
        for file in ["store.db", "store.db-wal"] {
            std::fs::copy(self.dir.path().join(file), copy.path().join(file)).unwrap();
        }
        let queue = queue(&copy);
        Self::start(copy, queue, Arc::clone(&self.modules), settings()).await
    }

    /// A tenant that holds `<name>.test` and may reach 127.0.0.1:9001-9002 and 93.184.216.0/24.
    pub(super) async fn tenant(&self, tenant: &str) -> TenantName {
        let tenant = name(tenant);
        self.control
            .create_tenant(tenant.clone(), grant(&[&format!("{tenant}.test")]), &OPERATOR)
            .await
            .unwrap();
        tenant
    }

    pub(super) async fn push(&self, tenant: &TenantName, module: &[u8]) -> Digest {
        let bytes = Bytes::copy_from_slice(module);
        self.control.push_module(tenant, bytes, &OPERATOR).await.unwrap().info.digest
    }

    pub(super) async fn apply(
        &self,
        tenant: &TenantName,
        manifest: Manifest,
    ) -> Result<Applied, ControlError> {
        self.control.apply(tenant, manifest, ApplyOptions::default(), &OPERATOR).await
    }

    /// What workers see of a tenant.
    pub(super) fn seen(&self, tenant: &TenantName) -> Arc<TenantRuntime> {
        Arc::clone(self.control.snapshots().load().by_name(tenant).expect("the tenant serves"))
    }

    pub(super) fn told(&self, event: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|(name, _)| name == event).map(|(_, fields)| fields.clone()).collect()
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

pub(super) fn name(text: &str) -> TenantName {
    text.parse().unwrap()
}

pub(super) fn grant(hosts: &[&str]) -> Grant {
    Grant {
        hosts: hosts.iter().map(|h| h.parse().unwrap()).collect(),
        upstream_ranges: ["127.0.0.1:9001-9090", "93.184.216.0/24"].map(|r| r.parse().unwrap()).to_vec(),
        ..Grant::default()
    }
}

/// The tenant's own host with one upstream; `edit` makes of it what a test needs.
pub(super) fn manifest(tenant: &TenantName, edit: impl FnOnce(&mut Value)) -> Manifest {
    let mut value = json!({
        "version": 1,
        "hosts": [format!("{tenant}.test")],
        "default_upstream": "api",
        "upstreams": { "api": { "endpoints": ["127.0.0.1:9001"] } },
    });
    edit(&mut value);
    Manifest::from_json(value.to_string().as_bytes()).unwrap()
}

/// The same with one filter, named `f`.
pub(super) fn filtered(tenant: &TenantName, digest: Digest) -> Manifest {
    manifest(tenant, |m| m["filters"] = json!([{ "name": "f", "module": digest }]))
}

/// The same with another response time-out, so that it differs from every other.
pub(super) fn variant(tenant: &TenantName, n: usize) -> Manifest {
    manifest(tenant, |m| m["upstreams"]["api"]["response_timeout"] = json!(format!("{}ms", 1000 + n)))
}

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
