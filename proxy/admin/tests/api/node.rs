//! A whole node behind the API, in this process: store, queue, engine and control plane as `beamline serve` has them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use beamline_admin::{AdminState, router};
use beamline_control::{Control, ControlSettings};
use beamline_filter_host::{Compiler, CompilerSettings, Engine, EngineSettings};
use beamline_model::{OnDead, TenantName, UpstreamName};
use beamline_node_state::NodeState;
use beamline_queue::{Attempt, Deliver, Demand, NewRecord, Outcome, Queue, Rules, TraceRef};
use beamline_seal::{KeyLine, SealKeys};
use beamline_store::SqliteStore;
use beamline_telemetry::{LogTarget, Telemetry};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// A node, its two tenants' tokens and its operator's.
pub(crate) struct Node {
    pub(crate) router: Router,
    pub(crate) state: NodeState,
    pub(crate) alive: Arc<AtomicBool>,
    pub(crate) operator: String,
    pub(crate) acme: String,
    pub(crate) globex: String,
    pub(crate) queue: Queue,
    _dir: tempfile::TempDir,
}

/// What the API answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) document: Value,
}

impl Answer {
    /// The last part of a problem's type; empty where this is no problem.
    pub(crate) fn problem(&self) -> &str {
        self.document["type"]
            .as_str()
            .and_then(|t| t.strip_prefix("urn:beamline:problem:"))
            .unwrap_or_default()
    }

    /// A problem's detail.
    pub(crate) fn detail(&self) -> &str {
        self.document["detail"].as_str().unwrap_or_default()
    }

    /// The document of a success.
    pub(crate) fn ok(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.document);
        self.document
    }
}

impl Node {
    /// A node with the tenant that `new_tenant` creates, which must be `acme`, and a tenant `globex`.
    pub(crate) async fn start(new_tenant: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = beamline_telemetry::Settings { log: LogTarget::Off, ..Default::default() };
        let telemetry = Telemetry::open(settings, &tokio::runtime::Handle::current()).unwrap();
        let engine = Engine::new(EngineSettings {
            pool_instances: 16,
            slow_lane_threads: 1,
            ..EngineSettings::default()
        })
        .unwrap();
        let compiler = Compiler::new(engine, CompilerSettings::new(dir.path().join("artifacts"))).unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join("store")).unwrap());
        let (queue, delivery) = Queue::open(beamline_queue::Settings::new(dir.path().join("queue"))).unwrap();
        let key = KeyLine::generate(&"k1".parse().unwrap());
        let seal_keys = Some(Arc::new(SealKeys::parse(key.reveal()).unwrap()));
        let settings = ControlSettings { seal_keys, ..ControlSettings::default() };
        let control =
            Control::open(store, queue.clone(), settings, compiler, telemetry.clone()).await.unwrap();
        let mut operator = String::new();
        let keep = |token: &beamline_model::Token| {
            operator = token.reveal().to_owned();
            Ok(())
        };
        assert!(control.operator_token_if_first_start(keep).await.unwrap());
        // It ends with the queue.
        delivery.spawn(|| Refusing, std::future::pending(), Duration::ZERO).unwrap();
        let (state, alive) = (NodeState::new(), Arc::new(AtomicBool::new(true)));
        state.started();
        let beats = Arc::clone(&alive);
        let liveness = move || {
            if beats.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("worker 1 has made no progress for 3 s".to_owned())
            }
        };
        let router = router(AdminState {
            control,
            queue: queue.clone(),
            telemetry,
            node: state.clone(),
            liveness: Arc::new(liveness),
        });
        let mut node = Self {
            router,
            state,
            alive,
            operator,
            acme: String::new(),
            globex: String::new(),
            queue,
            _dir: dir,
        };
        node.acme = node.create(new_tenant).await;
        node.globex = node.create(&json!({ "name": "globex", "hosts": ["globex.test"] })).await;
        node
    }

    async fn create(&self, tenant: &Value) -> String {
        let created = self.ask("POST /v1/tenants", &self.operator, tenant.to_string()).await.ok();
        created["token"].as_str().expect("a new tenant has a token").to_owned()
    }

    /// A new dead letter of acme's upstream `api`, rejected by its origin: its id.
    pub(crate) async fn dead_letter(&self) -> String {
        let tenant: TenantName = "acme".parse().unwrap();
        let record = NewRecord {
            tenant: tenant.clone(),
            upstream: "api".parse().unwrap(),
            revision: beamline_model::RevisionId(1),
            method: "POST".into(),
            target: "/orders?token=s3cret".into(),
            host: "acme.test".into(),
            headers: [("content-type", "text/plain"), ("authorization", "Bearer s3cret")]
                .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
                .to_vec(),
            sealed: None,
            body: self.queue.body(1024),
            ordering_key: None,
            on_dead: OnDead::Continue,
            repeat_safe: false,
            delay: Duration::ZERO,
            expiry: Duration::from_secs(3600),
            claim: None,
            trace: TraceRef::default(),
            request_id: "r".into(),
        };
        let room = self.queue.reserve(&tenant, 1024, Demand::Asked).unwrap();
        let accepted = self.queue.enqueue(record, room).await.unwrap();
        loop {
            if self.queue.record(&tenant, accepted.id).await.unwrap().listing.finished_ms.is_some() {
                return accepted.id.to_string();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Asks for `METHOD /path` with a token (none where empty) and a body.
    pub(crate) async fn ask(&self, line: &str, token: &str, body: impl Into<Body>) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::new(body.into());
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = path.parse().unwrap();
        if !token.is_empty() {
            request.headers_mut().insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let is_text = head.headers.get(header::CONTENT_TYPE).is_some_and(|t| {
            t.as_bytes().starts_with(b"text/plain") || t.as_bytes() == b"application/x-ndjson"
        });
        let document = if method == "HEAD" {
            Value::Null
        } else if is_text {
            String::from_utf8(body.to_vec()).unwrap().into()
        } else {
            serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{line}: {e}: {body:?}"))
        };
        Answer { status: head.status, headers: head.headers, document }
    }

    /// As tenant `acme`, without a body.
    pub(crate) async fn acme(&self, line: &str) -> Answer {
        self.ask(line, &self.acme, Body::empty()).await
    }
}

/// An origin that takes nothing.
struct Refusing;

impl Deliver for Refusing {
    async fn deliver(&self, _: Attempt) -> Outcome {
        Outcome::Answered { status: 400, retry_after: None, complete: true, keep: None }
    }

    fn in_flight_cap(&self, _: &TenantName, _: &UpstreamName) -> u32 {
        1
    }

    fn rules(&self, _: &TenantName, _: &UpstreamName) -> Rules {
        Rules::default()
    }
}
