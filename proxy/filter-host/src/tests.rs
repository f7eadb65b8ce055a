//! The host against real guests: those of `tests/guests`, which `scripts/build-guests.sh` builds.

mod instances;
mod phases;
mod slots;
mod wasi;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use beamline_model::{ByteSize, Ceilings, FilterLimits, InstanceLifetime, Limit, LimitClass, OnError};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::{
    Chain, ChainOutcome, Decision, Engine, EngineSettings, Exchange, Failure, FilterConfig, FilterSetup,
    HostView, Metric, MetricRefusal, MetricUpdate, Module, ModuleKind, OutboundError, OutboundRequest,
    OutboundResponse, Properties, Redaction, Rejection, RequestHead, TenantState, UpstreamState,
    UpstreamStatus, compile_worker,
};

pub(crate) fn guest(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("BEAMLINE_GUESTS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guests")),
        PathBuf::from,
    );
    let path = dir.join(name);
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}: run scripts/build-guests.sh first", path.display()))
}

pub(crate) fn engine() -> &'static Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineSettings { pool_instances: 128, ..Default::default() }).unwrap())
}

pub(crate) fn compiled(bytes: &[u8]) -> Result<(crate::ModuleInfo, Vec<u8>), Rejection> {
    let mut output = Vec::new();
    compile_worker::answer(bytes, &mut output).unwrap();
    compile_worker::Told::parse(&output).unwrap().artifact()
}

pub(crate) fn taken(bytes: &[u8]) -> (crate::ModuleInfo, Vec<u8>) {
    compiled(bytes).unwrap_or_else(|rejection| panic!("rejected: {rejection}"))
}

fn rejected(bytes: &[u8]) -> Rejection {
    match compiled(bytes) {
        Err(rejection) => rejection,
        Ok((info, _)) => panic!("taken: {info:?}"),
    }
}

fn probe() -> Arc<Module> {
    static PROBE: OnceLock<Arc<Module>> = OnceLock::new();
    let load = || {
        let (info, artifact) = taken(&guest("probe.wasm"));
        engine().load(&artifact, info).unwrap()
    };
    Arc::clone(PROBE.get_or_init(load))
}

#[test]
fn the_reference_page_tells_the_limits_that_are_the_same_for_all() {
    let page = include_str!("../../../docs/reference/limits.md");
    let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
    let [small, large] = [LimitClass::Small, LimitClass::Large].map(|class| Ceilings::of(class).module);
    for line in [
        format!("| a module's size | `{}` | `{}` |", small.size, large.size),
        format!("| CPU time of compiling it | `{}` | `{}` |", small.compile_cpu, large.compile_cpu),
        format!(
            "| address space of compiling it | `{}` | `{}` |",
            small.compile_memory, large.compile_memory
        ),
    ] {
        assert!(page.contains(&line), "docs/reference/limits.md lacks: {line}");
    }
    let row = |what: &str| page.lines().find(|line| line.contains(&format!("| {what}"))).unwrap();
    for (what, figures) in [
        ("memories and tables", vec![mib(crate::engine::MAX_MEMORY), "20,000".into()]),
        ("what a guest hands over", vec![mib(crate::call::MAX_HANDED_OVER)]),
        ("handles of resources", vec!["1,000".into()]),
        ("what `get-many` gives", vec![mib(crate::host::MAX_GIVEN)]),
        ("keys, values and token buckets", vec![format!("{} GiB", crate::shared::NODE_BYTES >> 30)]),
        ("kept instances of a worker", vec!["1,000".into(), mib(crate::reset::MAX_BYTES)]),
        ("kept instances of a node", vec!["4,096".into(), mib(crate::reset::MAX_NODE_BYTES)]),
        ("instances that wait for their filter's next request", vec![mib(crate::instances::MAX_IDLE_BYTES)]),
        ("instances that requests hold", vec![format!("{} GiB", crate::instances::MAX_PINNED_BYTES >> 30)]),
        ("first states", vec![mib(crate::reset::MAX_IMAGES)]),
    ] {
        assert!(figures.iter().all(|figure| row(what).contains(figure)), "{what}: {figures:?}");
    }
    assert_eq!((crate::host::MAX_TABLE_ELEMENTS, crate::call::MAX_HANDLES), (20_000, 1_000));
    assert_eq!((crate::reset::MAX_INSTANCES, crate::reset::MAX_NODE_INSTANCES), (1_000, 4_096));
}

pub(crate) struct View {
    state: TenantState,
    limits: FilterLimits,
    pub(crate) client: SocketAddr,
    /// The name that the client gave to a TLS handshake; none where there was none.
    pub(crate) tls_server_name: Option<String>,
    /// The states of upstreams, beside that of `api`.
    pub(crate) upstreams: HashMap<String, UpstreamState>,
    counted: Mutex<Vec<String>>,
    crossed: Mutex<Vec<Limit>>,
    sent: AtomicU32,
    /// Kept, as the other side of a connection keeps who waits for it.
    unanswered: Mutex<Vec<tokio::sync::oneshot::Sender<()>>>,
}

impl View {
    pub(crate) fn shared(limits: FilterLimits) -> Arc<dyn HostView> {
        Arc::new(Self::new(limits))
    }

    pub(crate) fn new(limits: FilterLimits) -> Self {
        Self {
            state: TenantState::new(),
            limits,
            client: "[::ffff:192.0.2.7]:4000".parse().unwrap(),
            tls_server_name: None,
            upstreams: HashMap::new(),
            counted: Mutex::default(),
            crossed: Mutex::default(),
            sent: AtomicU32::new(0),
            unanswered: Mutex::default(),
        }
    }
}

impl HostView for View {
    fn upstream(&self, name: &str) -> Option<UpstreamStatus> {
        let state = if name == "api" { Some(UpstreamState::Down) } else { self.upstreams.get(name).copied() };
        state.map(|state| UpstreamStatus { state, queue_depth: 7 })
    }

    fn properties(&self) -> Properties {
        Properties {
            client: self.client,
            request_id: "id".into(),
            trace_id: "trace".into(),
            tenant: "acme".into(),
            revision: 3,
            scheme: if self.tls_server_name.is_some() { "https" } else { "http" },
            tls_server_name: self.tls_server_name.clone(),
        }
    }

    fn state(&self) -> &TenantState {
        &self.state
    }

    fn limits(&self) -> &FilterLimits {
        &self.limits
    }

    fn crossed(&self, _: &str, limit: Limit) {
        self.crossed.lock().unwrap().push(limit);
    }

    fn send(&self, request: OutboundRequest) -> Exchange {
        let url = request.url.to_string();
        self.sent.fetch_add(1, Ordering::Relaxed);
        let (unanswered, never) = tokio::sync::oneshot::channel::<()>();
        self.unanswered.lock().unwrap().push(unanswered);
        Box::pin(async move {
            match url.as_str() {
                "http://never.test/" => {
                    never.await.unwrap();
                }
                "http://panics.test/" => {
                    tokio::task::yield_now().await;
                    panic!("a host function that has a fault");
                }
                "http://nobody.test/" => {
                    return Err(OutboundError::Connect("nobody.test:80: nobody is there".into()));
                }
                _ => {}
            }
            match url.strip_prefix("http://wait.test/").map(|ms| Duration::from_millis(ms.parse().unwrap())) {
                Some(wait) => {
                    // Not by a timer of tokio's: the call may be polled in the slow lane.
                    let (done, over) = tokio::sync::oneshot::channel();
                    std::thread::spawn(move || {
                        std::thread::sleep(wait);
                        let _ = done.send(());
                    });
                    over.await.unwrap();
                    let via: Vec<_> =
                        request.headers.get_all("via").iter().map(|v| v.to_str().unwrap()).collect();
                    let body =
                        format!("{} {} {}", request.method, request.timeout.as_millis(), via.join(", "));
                    let body = body.into();
                    Ok(OutboundResponse { status: StatusCode::OK, headers: request.headers, body })
                }
                None => Err(OutboundError::NotAllowed),
            }
        })
    }

    fn count(&self, filter: &str, metric: Metric<'_>) -> Result<(), MetricRefusal> {
        let what = match metric.update {
            MetricUpdate::Count(by) => format!("{filter} {} +{by} {:?}", metric.name, metric.labels),
            MetricUpdate::Observe(value) => format!("{filter} {} {value} {:?}", metric.name, metric.labels),
        };
        self.counted.lock().unwrap().push(what);
        assert!(metric.name != "panics", "a host function that has a fault");
        if metric.name == "refused" { Err(MetricRefusal::TooManyNames) } else { Ok(()) }
    }
}

fn chain(config: &str, limits: FilterLimits, on_error: OnError) -> Chain {
    chain_of("acme", config, limits, on_error)
}

fn chain_of(tenant: &str, config: &str, limits: FilterLimits, on_error: OnError) -> Chain {
    let filter = FilterSetup {
        name: "probe".parse().unwrap(),
        module: Some(probe()),
        config: FilterConfig::new(&"probe".parse().unwrap(), config),
        on_error,
        lifetime: InstanceLifetime::Call,
    };
    Chain::new(tenant.parse().unwrap(), limits, vec![filter])
}

pub(crate) fn head(fields: &[(&'static str, &'static str)]) -> Box<RequestHead> {
    let headers: HeaderMap =
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
    RequestHead::new(Method::GET, "/a/b?c=d".parse().unwrap(), "acme.test".into(), headers)
}

async fn run(chain: &Chain, head: Box<RequestHead>) -> ChainOutcome {
    let view = View::shared(FilterLimits::default());
    chain.on_request(engine(), &view, head).await
}

async fn run_default(config: &str) -> ChainOutcome {
    run(&chain(config, FilterLimits::default(), OnError::FailClosed), head(&[])).await
}

fn failure(outcome: &ChainOutcome) -> &Failure {
    match &outcome.decision {
        Decision::Failed { failure, .. } => failure,
        other => panic!("expected a failure, found {other:?}"),
    }
}

#[test]
fn a_module_is_described() {
    let (info, _) = taken(&guest("probe.wasm"));
    assert_eq!(info.kind, ModuleKind::CoreModule);
    assert_eq!(info.phases, ["beamline:edge/request-handler@0.1.0"]);
    assert!(info.imports.iter().all(|i| i.starts_with("beamline:edge/")), "{:?}", info.imports);
}

#[test]
fn bad_modules_are_refused_with_the_reason() {
    assert!(matches!(rejected(b"(module)"), Rejection::NotWasm { .. }));
    assert!(matches!(rejected(b"\0asm\x01\0\0\0\xff"), Rejection::Invalid { .. }));
    assert_eq!(rejected(b"\0asm\x01\0\0\0"), Rejection::NoPhase { found: String::new() });
    let evil = wat::parse_str(r#"(module (import "env" "evil" (func)))"#).unwrap();
    let rejection = rejected(&evil);
    assert_eq!(rejection, Rejection::UnknownImport { import: "env.evil".into() });
    assert!(rejection.to_string().contains("env.evil"));
    let untyped =
        wat::parse_str(r#"(module (func (export "beamline:edge/request-handler@0.1.0#handle")))"#).unwrap();
    assert_eq!(rejected(&untyped), Rejection::NoComponentType);
    let component = wat::parse_str(r#"(component (import "evil:host/door@0.2.0" (instance)))"#).unwrap();
    assert!(matches!(rejected(&component), Rejection::UnknownImport { .. }));
    let mismatch = wat::parse_str(
        r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
             (func $f (canon lift (core func $i "f"))) (instance $h (export "handle" (func $f)))
             (export "beamline:edge/request-handler@0.1.0" (instance $h)))"#,
    )
    .unwrap();
    assert!(matches!(rejected(&mismatch), Rejection::Mismatch { .. }));
}

#[tokio::test]
async fn every_request_gets_a_fresh_instance() {
    let chain = chain(r#"{"do":"count"}"#, FilterLimits::default(), OnError::FailClosed);
    for _ in 0..100 {
        let outcome = run(&chain, head(&[])).await;
        assert_eq!(outcome.head.headers["x-count"], "1");
    }
}

#[tokio::test]
async fn an_endless_loop_is_stopped_when_its_cpu_time_is_over() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(20), ..Default::default() };
    let outcome = run(&chain(r#"{"do":"spin"}"#, limits, OnError::FailClosed), head(&[])).await;
    assert_eq!(*failure(&outcome), Failure::CpuTime(Duration::from_millis(20)));
    let cpu = outcome.runs[0].cpu;
    assert!(cpu >= Duration::from_millis(20) && cpu < Duration::from_millis(60), "{cpu:?}");
}

#[tokio::test]
async fn a_memory_bomb_is_stopped_at_its_limit() {
    let limits = FilterLimits { memory: ByteSize::mib(4), ..Default::default() };
    let outcome = run(&chain(r#"{"do":"bomb"}"#, limits, OnError::FailClosed), head(&[])).await;
    assert_eq!(*failure(&outcome), Failure::Memory(4 << 20));
}

#[tokio::test]
async fn traps_and_endless_recursion_are_failures() {
    for what in ["trap", "unreachable", "recurse"] {
        let outcome = run_default(&format!(r#"{{"do":"{what}"}}"#)).await;
        assert!(matches!(failure(&outcome), Failure::Trap(_)), "{what}: {:?}", outcome.decision);
    }
}

#[tokio::test]
async fn fail_open_goes_on_without_the_filters_changes() {
    // By header, so that the same module first changes the head and then traps.
    let chain = chain(
        r#"{"do":"set-headers","headers":{"x-new":"1"},"then":"trap"}"#,
        FilterLimits::default(),
        OnError::FailOpen,
    );
    let outcome = run(&chain, head(&[("x-old", "1")])).await;
    assert!(matches!(outcome.decision, Decision::Next));
    assert_eq!(outcome.head.headers.len(), 1);
    assert!(outcome.runs[0].failure.is_some());
}

#[tokio::test]
async fn a_module_that_is_not_loaded_fails_its_filter() {
    let filter = FilterSetup {
        name: "gone".parse().unwrap(),
        module: None,
        config: FilterConfig::new(&"gone".parse().unwrap(), "null"),
        on_error: OnError::FailClosed,
        lifetime: InstanceLifetime::Call,
    };
    let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
    let outcome = run(&chain, head(&[("x-kept", "1")])).await;
    assert_eq!(*failure(&outcome), Failure::Unavailable);
    assert_eq!(outcome.head.headers["x-kept"], "1");
}

#[tokio::test]
async fn a_log_is_bounded() {
    let limits = FilterLimits { log: ByteSize::kib(1), ..Default::default() };
    let outcome = run(&chain(r#"{"do":"log","bytes":100000}"#, limits, OnError::FailClosed), head(&[])).await;
    let log = &outcome.runs[0].log;
    assert!(log.lines.iter().map(|(_, l)| l.len()).sum::<usize>() <= 1024);
    assert!(log.cut > 90_000, "{}", log.cut);
}

#[tokio::test]
async fn spinners_wait_in_the_lane_while_short_calls_go_on() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(50), ..Default::default() };
    let spinner = Arc::new(chain(r#"{"do":"spin"}"#, limits, OnError::FailClosed));
    let quiet = chain(r#"{"do":"next"}"#, FilterLimits::default(), OnError::FailClosed);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let spinners: Vec<_> = (0..64)
                .map(|_| {
                    let spinner = Arc::clone(&spinner);
                    tokio::task::spawn_local(async move { run(&spinner, head(&[])).await })
                })
                .collect();
            tokio::task::yield_now().await;
            let started = Instant::now();
            let mut calls = 0;
            // 64 spinners of 50 ms keep the lane busy for over 3 s.
            while started.elapsed() < Duration::from_millis(500) {
                let outcome = run(&quiet, head(&[])).await;
                assert!(matches!(outcome.decision, Decision::Next));
                calls += 1;
                tokio::task::yield_now().await;
            }
            assert!(calls > 100, "only {calls} short calls beside the spinners");
            assert!(spinners.iter().any(|s| !s.is_finished()));
            // Dropped calls leave the lane at their next slice.
            drop(spinners);
        })
        .await;
}

#[tokio::test]
async fn too_many_long_calls_of_one_tenant_are_refused() {
    let limits =
        FilterLimits { cpu: beamline_model::Duration::millis(200), concurrency: 2, ..Default::default() };
    // A tenant of its own: the engine is shared with the other tests, and so are a tenant's seats.
    let chain = chain_of("busy", r#"{"do":"spin"}"#, limits, OnError::FailClosed);
    let (a, b, c) =
        tokio::join!(run(&chain, head(&[])), run(&chain, head(&[])), run(&chain, head(&[("x-kept", "1")])));
    // On a starved processor the wall ends them.
    for spun in [&a, &b] {
        assert!(matches!(failure(spun), Failure::CpuTime(_) | Failure::WallTime(_)), "{:?}", failure(spun));
    }
    assert_eq!(*failure(&c), Failure::Capacity);
    assert_eq!(c.head.headers["x-kept"], "1");
}

fn answer(outcome: &ChainOutcome) -> serde_json::Value {
    match &outcome.decision {
        Decision::Respond(answer) => serde_json::from_slice(&answer.body).unwrap(),
        other => panic!("expected an answer, found {other:?}"),
    }
}

#[tokio::test]
async fn a_call_that_calls_the_host_too_often_ends() {
    let limits = FilterLimits { host_calls: 100, ..Default::default() };
    // Two calls before the loop: the configuration and the header `x-probe`.
    let within = chain(r#"{"do":"calls","n":98}"#, limits.clone(), OnError::FailClosed);
    assert!(matches!(run(&within, head(&[])).await.decision, Decision::Next));
    let beyond = chain(r#"{"do":"calls","n":99}"#, limits, OnError::FailClosed);
    assert_eq!(*failure(&run(&beyond, head(&[])).await), Failure::HostCalls(100));
}

#[tokio::test]
async fn a_call_has_a_clock() {
    let now_ms = || u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let before = now_ms();
    let answer = answer(&run_default(r#"{"do":"clock","n":1}"#).await);
    let of = |name: &str| answer[name].as_u64().unwrap();
    assert!((before..=now_ms()).contains(&of("now_ms")), "{answer}");
    assert!(of("after_us") > of("before_us"), "{answer}");
}

#[tokio::test]
async fn a_guest_learns_what_is_known_of_its_request() {
    let answer = answer(&run_default(r#"{"do":"properties"}"#).await);
    let expected = json!({
        "client_address": "192.0.2.7", "client_port": 4000, "request_id": "id", "trace_id": "trace",
        "tenant": "acme", "revision": 3, "scheme": "http", "tls_server_name": null,
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn keys_and_values_last_from_call_to_call_within_their_quota() {
    let crossing = Arc::new(View::new(FilterLimits { kv_entries: 2, ..Default::default() }));
    let view: Arc<dyn HostView> = crossing.clone();
    let told = async |config: &str| {
        let chain = chain(config, FilterLimits::default(), OnError::FailClosed);
        answer(&chain.on_request(engine(), &view, head(&[])).await)
    };
    assert_eq!(told(r#"{"do":"kv","call":"get","key":"a"}"#).await, json!(null));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"a","body":"1"}"#).await, json!("ok"));
    assert_eq!(told(r#"{"do":"kv","call":"get","key":"a"}"#).await, json!("1"));
    assert_eq!(told(r#"{"do":"kv","call":"increment","key":"a","by":41}"#).await, json!(42));
    let set = r#"{"do":"kv","call":"compare-and-set","key":"a","expected":"42","body":"x"}"#;
    assert_eq!(told(set).await, json!(true));
    assert_eq!(told(set).await, json!(false));
    assert_eq!(told(r#"{"do":"kv","call":"increment","key":"a","by":1}"#).await, json!("not-a-number"));
    assert_eq!(
        told(r#"{"do":"kv","call":"increment","key":"b","by":9223372036854775807}"#).await,
        json!(i64::MAX)
    );
    assert_eq!(told(r#"{"do":"kv","call":"increment","key":"b","by":1}"#).await, json!("overflow"));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"c"}"#).await, json!("quota-exceeded"));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":""}"#).await, json!("invalid-key"));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"a","bytes":65537}"#).await, json!("value-too-large"));
    assert_eq!(told(r#"{"do":"kv","call":"delete","key":"a"}"#).await, json!(true));
    assert_eq!(told(r#"{"do":"kv","call":"delete","key":"a"}"#).await, json!(false));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"c","ttl_ms":1}"#).await, json!("ok"));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(told(r#"{"do":"kv","call":"get","key":"c"}"#).await, json!(null));
    let expected = [Limit::KvEntries, Limit::KvSize, Limit::KvSize];
    assert_eq!(*crossing.crossed.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_token_bucket_is_shared_by_calls() {
    let view = View::shared(FilterLimits { bucket_keys: 1, ..Default::default() });
    let told = async |config: serde_json::Value| {
        let chain = chain(&config.to_string(), FilterLimits::default(), OnError::FailClosed);
        answer(&chain.on_request(engine(), &view, head(&[])).await)
    };
    let take = |key: &str, n: u32| json!({ "do": "take", "key": key, "n": n, "rate": [1, 3_600_000, 2] });
    assert_eq!(told(take("a", 1)).await, json!({ "allowed": 1 }));
    assert_eq!(told(take("a", 1)).await, json!({ "allowed": 0 }));
    let wait = told(take("a", 1)).await["retry_after_ms"].as_u64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&wait), "{wait}");
    assert_eq!(told(take("b", 1)).await, json!("too-many-keys"));
    assert_eq!(told(take("a", 3)).await, json!("invalid-rate"));
    assert_eq!(told(take(&"a".repeat(257), 1)).await, json!("invalid-key"));
}

#[tokio::test]
async fn what_filters_keep_outlives_a_change_of_the_chain() {
    let first = chain("null", FilterLimits::default(), OnError::FailClosed);
    let quota = crate::shared::Quota { bytes: 1000, entries: 1 };
    first.state().kv().set("k", b"v".to_vec(), None, Duration::ZERO, quota).unwrap();
    let mut second = chain("null", FilterLimits::default(), OnError::FailClosed);
    assert_eq!(second.state().kv().get("k", Duration::ZERO), None);
    second.succeed(&first);
    assert_eq!(second.state().kv().get("k", Duration::ZERO).unwrap(), "v");
}

#[tokio::test]
async fn what_a_filter_counts_is_told_with_its_name() {
    let told = Arc::new(View::new(FilterLimits::default()));
    let view: Arc<dyn HostView> = told.clone();
    let counted = async |step: serde_json::Value| {
        let chain = chain(&step.to_string(), FilterLimits::default(), OnError::FailClosed);
        answer(&chain.on_request(engine(), &view, head(&[])).await)
    };
    let count = json!({ "do": "metric", "key": "hits", "by": 2, "headers": { "plan": "pro" } });
    assert_eq!(counted(count).await, json!("ok"));
    assert_eq!(counted(json!({ "do": "metric", "key": "size", "value": 2.5 })).await, json!("ok"));
    assert_eq!(counted(json!({ "do": "metric", "key": "refused" })).await, json!("too-many-names"));
    let expected = [r#"probe hits +2 [("plan", "pro")]"#, "probe size 2.5 []", "probe refused +0 []"];
    assert_eq!(*told.counted.lock().unwrap(), expected);
}

fn sends(url: &str, more: &str) -> String {
    format!(r#"{{"do":"send","url":"{url}"{more}}}"#)
}

#[tokio::test]
async fn a_call_waits_for_its_answer_and_its_cpu_time_stands_still() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(20), ..Default::default() };
    let chain = chain(&sends("http://wait.test/300", r#","timeout_ms":900"#), limits, OnError::FailClosed);
    let outcome = run(&chain, head(&[])).await;
    let answer = answer(&outcome);
    assert_eq!((&answer["status"], &answer["body"]), (&json!(200), &json!("GET 900 1.1 beamline")));
    let run = &outcome.runs[0];
    assert!(run.duration >= Duration::from_millis(300) && run.cpu < Duration::from_millis(20), "{run:?}");
}

#[tokio::test]
async fn a_call_that_waits_holds_up_nobody() {
    let waits = chain(&sends("http://wait.test/500", ""), FilterLimits::default(), OnError::FailClosed);
    let quiet = chain(r#"{"do":"next"}"#, FilterLimits::default(), OnError::FailClosed);
    let waiting = futures_util::future::join_all((0..20).map(|_| run(&waits, head(&[]))));
    let others = async {
        let began = Instant::now();
        let mut calls = 0;
        while began.elapsed() < Duration::from_millis(300) {
            assert!(matches!(run(&quiet, head(&[])).await.decision, Decision::Next));
            calls += 1;
            tokio::task::yield_now().await;
        }
        calls
    };
    let (waited, calls) = tokio::join!(waiting, others);
    assert!(calls > 20, "only {calls} beside those that wait");
    assert!(waited.iter().all(|outcome| answer(outcome)["status"] == 200));
}

#[tokio::test]
async fn a_call_that_spins_after_its_answer_is_stopped_too() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(20), ..Default::default() };
    let step = r#"{"do":"spin-ms","n":2,"then":{"do":"send","url":"http://wait.test/50"}}"#;
    let in_lane = chain(step, limits.clone(), OnError::FailClosed);
    assert_eq!(answer(&run(&in_lane, head(&[])).await)["status"], 200, "it waits in the lane as well");
    let step = sends("http://wait.test/50", r#","then":"spin""#);
    let spins = chain(&step, limits, OnError::FailClosed);
    let outcome = run(&spins, head(&[])).await;
    assert_eq!(*failure(&outcome), Failure::CpuTime(Duration::from_millis(20)));
}

#[tokio::test]
async fn what_waits_too_long_or_too_often_ends() {
    let longest_call = Duration::from_millis(300);
    let engine =
        Engine::new(EngineSettings { pool_instances: 16, longest_call, ..Default::default() }).unwrap();
    let (info, artifact) = taken(&guest("probe.wasm"));
    let module = engine.load(&artifact, info).unwrap();
    let limits = FilterLimits { concurrency: 2, ..Default::default() };
    let filter = |config: &str| FilterSetup {
        name: "probe".parse().unwrap(),
        module: Some(Arc::clone(&module)),
        config: FilterConfig::new(&"probe".parse().unwrap(), config),
        on_error: OnError::FailClosed,
        lifetime: InstanceLifetime::Call,
    };
    let chain = |config: &str| Chain::new("acme".parse().unwrap(), limits.clone(), vec![filter(config)]);
    let view = View::shared(FilterLimits::default());
    let waits = chain(&sends("http://wait.test/4000", ""));
    let (a, b, c) = tokio::join!(
        waits.on_request(&engine, &view, head(&[])),
        waits.on_request(&engine, &view, head(&[])),
        waits.on_request(&engine, &view, head(&[])),
    );
    assert_eq!(*failure(&a), Failure::WallTime(longest_call));
    assert_eq!(*failure(&b), Failure::WallTime(longest_call));
    assert_eq!(*failure(&c), Failure::Capacity, "two wait already");
    let often = chain(&sends("http://wait.test/0", r#","n":5"#));
    assert_eq!(answer(&often.on_request(&engine, &view, head(&[])).await), json!("too-many"), "beyond four");
}

/// An engine of its own, for what a test's calls hold.
fn small_engine(longest_call: Duration) -> (Arc<Engine>, Arc<Module>) {
    let engine =
        Engine::new(EngineSettings { pool_instances: 32, longest_call, ..Default::default() }).unwrap();
    let (info, artifact) = taken(&guest("probe.wasm"));
    let module = engine.load(&artifact, info).unwrap();
    (engine, module)
}

fn chain_with(module: &Arc<Module>, tenant: &str, config: &str, limits: &FilterLimits) -> Chain {
    let filter = FilterSetup {
        name: "probe".parse().unwrap(),
        module: Some(Arc::clone(module)),
        config: FilterConfig::new(&"probe".parse().unwrap(), config),
        on_error: OnError::FailClosed,
        lifetime: InstanceLifetime::Call,
    };
    Chain::new(tenant.parse().unwrap(), limits.clone(), vec![filter])
}

/// How long what must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_request_waits_no_longer_than_its_call() {
    let all = json!({ "do": "send", "url": "http://wait.test/0", "timeout_ms": u32::MAX });
    let in_lane = json!({ "do": "spin-ms", "n": 100, "then": all });
    let limits = FilterLimits { cpu: beamline_model::Duration::secs(1), ..Default::default() };
    for step in [all, in_lane] {
        let chain = chain(&step.to_string(), limits.clone(), OnError::FailClosed);
        let answer = answer(&run(&chain, head(&[])).await);
        let timeout: u128 = answer["body"].as_str().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        assert!(timeout < crate::LONGEST_CALL.as_millis(), "{answer}");
    }
}

#[tokio::test]
async fn a_call_that_waits_in_the_lane_ends_when_its_client_goes() {
    let (engine, module) = small_engine(Duration::from_secs(3600));
    let limits =
        FilterLimits { cpu: beamline_model::Duration::secs(1), concurrency: 1, ..Default::default() };
    let told = Arc::new(View::new(limits.clone()));
    let view: Arc<dyn HostView> = told.clone();
    let never = json!({ "do": "spin-ms", "n": 100, "then": { "do": "send", "url": "http://never.test/" } });
    let waits = chain_with(&module, "acme", &never.to_string(), &limits);
    {
        let call = waits.on_request(&engine, &view, head(&[]));
        tokio::pin!(call);
        let began = Instant::now();
        while told.sent.load(Ordering::Relaxed) == 0 {
            assert!(began.elapsed() < PATIENCE, "the call never sent its request");
            assert!(futures_util::poll!(&mut call).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let mut next = chain_with(&module, "acme", r#"{"do":"next"}"#, &limits);
    next.succeed(&waits);
    let began = Instant::now();
    while !matches!(next.on_request(&engine, &view, head(&[])).await.decision, Decision::Next) {
        assert!(began.elapsed() < PATIENCE, "its seat was never given back");
    }
}

#[tokio::test]
async fn a_host_function_that_panics_ends_its_call_alone() {
    for step in [
        json!({ "do": "metric", "key": "panics" }),
        json!({ "do": "send", "url": "http://panics.test/" }),
        json!({ "do": "spin-ms", "n": 100, "then": { "do": "send", "url": "http://panics.test/" } }),
    ] {
        let limits = FilterLimits { cpu: beamline_model::Duration::secs(1), ..Default::default() };
        let chain = chain(&step.to_string(), limits, OnError::FailClosed);
        let outcome = run(&chain, head(&[])).await;
        let expected = Failure::Host;
        assert_eq!(*failure(&outcome), expected, "{step}");
    }
}

#[tokio::test]
async fn a_request_with_more_fields_than_a_head_may_have_is_refused() {
    let limits = FilterLimits {
        cpu: beamline_model::Duration::secs(1),
        memory: ByteSize::mib(64),
        ..Default::default()
    };
    for (fields, refused) in [(100, false), (101, true), (30_000, true)] {
        let headers: serde_json::Map<_, _> = (0..fields).map(|i| (format!("x-{i}"), json!("1"))).collect();
        let step = json!({ "do": "send", "url": "http://wait.test/0", "headers": headers });
        let chain = chain(&step.to_string(), limits.clone(), OnError::FailClosed);
        let answer = answer(&run(&chain, head(&[])).await);
        let expected = format!("invalid-request: headers: expected at most 100 fields; found {fields}");
        assert_eq!(answer.as_str() == Some(&expected), refused, "{fields}: {answer}");
    }
}

#[tokio::test]
async fn what_waits_leaves_seats_and_instances_for_others() {
    let (engine, module) = small_engine(Duration::from_secs(5));
    let limits = FilterLimits { concurrency: 4096, ..Default::default() };
    let view = View::shared(limits.clone());
    let waits = chain_with(&module, "greedy", &sends("http://never.test/", ""), &limits);
    let quiet = chain_with(&module, "quiet", r#"{"do":"next"}"#, &limits);
    let asks = chain_with(&module, "asks", &sends("http://wait.test/1", ""), &limits);
    let many = futures_util::future::join_all((0..200).map(|_| waits.on_request(&engine, &view, head(&[]))));
    let others = async {
        // The greedy tenant's calls have begun.
        tokio::task::yield_now().await;
        for _ in 0..50 {
            let outcome = quiet.on_request(&engine, &view, head(&[])).await;
            assert!(matches!(outcome.decision, Decision::Next), "{:?}", outcome.decision);
            tokio::task::yield_now().await;
        }
        // Another tenant has its seat at once, while the greedy one's calls all go on.
        let began = Instant::now();
        loop {
            let outcome = asks.on_request(&engine, &view, head(&[])).await;
            if matches!(outcome.decision, Decision::Respond(_)) {
                break;
            }
            assert_eq!(*failure(&outcome), Failure::Capacity);
            assert!(began.elapsed() < PATIENCE);
        }
        waits.load.long_calls()
    };
    let (all, greedy) = tokio::join!(many, others);
    assert_eq!(greedy, 12, "it had all that it may have when the other was served");
    let had_seats = all.iter().filter(|outcome| matches!(failure(outcome), Failure::WallTime(_))).count();
    assert_eq!(had_seats, 12, "half of the seats, which are three quarters of the instances");
    assert!(all.iter().all(|outcome| matches!(failure(outcome), Failure::WallTime(_) | Failure::Capacity)));
}

#[tokio::test]
async fn nothing_is_sent_for_a_call_that_gets_no_seat() {
    let (engine, module) = small_engine(Duration::from_secs(2));
    let limits = FilterLimits::default();
    let told = Arc::new(View::new(limits.clone()));
    let view: Arc<dyn HostView> = told.clone();
    let waits = chain_with(&module, "acme", &sends("http://wait.test/0", ""), &limits);
    // Others have all of the node's.
    let (others, long_calls) = (["one", "two"].map(|name| name.parse().unwrap()), Arc::default());
    let taken = (0..24).map(|i| engine.seats.take(&others[i % 2], 24, &long_calls));
    let taken: Vec<_> = futures_util::future::join_all(taken).await;
    assert!(taken.iter().all(Option::is_some));
    let outcome = waits.on_request(&engine, &view, head(&[])).await;
    assert_eq!((failure(&outcome), told.sent.load(Ordering::Relaxed)), (&Failure::Capacity, 0));
    drop(taken);
    let outcome = waits.on_request(&engine, &view, head(&[])).await;
    assert_eq!((answer(&outcome)["status"].as_u64(), told.sent.load(Ordering::Relaxed)), (Some(200), 1));
}

#[tokio::test]
async fn requests_say_on_whose_way_they_are() {
    let chain = chain(&sends("http://wait.test/0", ""), FilterLimits::default(), OnError::FailClosed);
    let outcome = run(&chain, head(&[("via", "1.0 front, 1.1 beamline")])).await;
    let answer = answer(&outcome);
    let body = answer["body"].as_str().unwrap();
    assert!(body.ends_with(" 1.0 front, 1.1 beamline, 1.1 beamline"), "{body}");
}

#[tokio::test]
async fn why_there_is_no_connection_is_for_the_log_alone() {
    let outcome = run_default(&sends("http://nobody.test/", "")).await;
    assert_eq!(answer(&outcome), json!("connect"));
    let lines = &outcome.runs[0].log.lines;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].1.contains("nobody.test:80: nobody is there"), "{lines:?}");
}

#[tokio::test]
async fn a_tenants_failures_leave_no_filter_of_another_out() {
    let chains = ["one", "other"].map(|tenant| {
        let fails = if tenant == "one" { r#"{"do":"trap"}"# } else { r#"{"do":"next"}"# };
        chain_of(tenant, fails, FilterLimits::default(), OnError::FailClosed)
    });
    let [one, other] = &chains;
    let began = Instant::now();
    while !matches!(failure(&run(one, head(&[])).await), Failure::LeftOut(_)) {
        assert!(began.elapsed() < Duration::from_secs(10), "it is never left out");
        // Of the same name and module.
        assert!(matches!(run(other, head(&[])).await.decision, Decision::Next));
    }
    assert!(matches!(run(other, head(&[])).await.decision, Decision::Next));
}

#[tokio::test]
async fn who_calls_the_host_too_often_again_and_again_is_left_out() {
    let limits = FilterLimits { host_calls: 10, ..Default::default() };
    let chain = chain(r#"{"do":"calls","n":50}"#, limits, OnError::FailClosed);
    let began = Instant::now();
    loop {
        match failure(&run(&chain, head(&[])).await) {
            Failure::LeftOut(_) => break,
            other => assert_eq!(*other, Failure::HostCalls(10)),
        }
        assert!(began.elapsed() < PATIENCE, "it was never left out");
    }
}

#[tokio::test]
async fn what_a_verdict_repeats_of_a_secret_is_not_told() {
    let name: beamline_model::FilterName = "probe".parse().unwrap();
    let secret = beamline_model::SecretValue::new(b"s3cret").unwrap();
    let redaction = Redaction::of([&secret]);
    for (config, shown) in [
        (json!({ "do": "route", "path": "no-path-s3cret" }), "no-path-[redacted]"),
        (json!({ "do": "route", "host": "no host s3cret" }), "no host [redacted]"),
        // Cut where a part of the secret would be shown, were it cut first.
        (json!({ "do": "route", "path": format!("{}s3cret", "-".repeat(252)) }), "---"),
        (json!({ "do": "route", "host": format!("{}s3cret", "-".repeat(77)) }), "-[redacted]"),
        (json!({ "do": "route", "path": "-".repeat(1 << 20) }), "---"),
    ] {
        let secrets = vec![("key".parse().unwrap(), Ok(secret.clone()))];
        let filter = FilterSetup {
            config: FilterConfig::with_secrets(&name, &config.to_string(), secrets, &redaction),
            name: name.clone(),
            module: Some(probe()),
            on_error: OnError::FailClosed,
            lifetime: InstanceLifetime::Call,
        };
        let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
        let outcome = run(&chain, head(&[])).await;
        for told in [failure(&outcome), outcome.runs[0].failure.as_ref().unwrap()] {
            let told = told.to_string();
            assert!(told.contains(shown) && !told.contains("s3") && told.len() < 600, "{told}");
        }
    }
    let named = format!("{}s3cret", "-".repeat(62));
    let filter = FilterSetup {
        config: FilterConfig::with_secrets(&name, "null", Vec::new(), &redaction),
        name,
        module: Some(probe()),
        on_error: OnError::FailClosed,
        lifetime: InstanceLifetime::Call,
    };
    let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
    assert!(chain.told(&named).ends_with("-[redacted]"), "of any filter of the chain");
}

#[tokio::test]
async fn a_request_that_is_none_is_not_sent() {
    let told = async |more: &str| {
        let step = sends("http://wait.test/0", more);
        let outcome = run_default(&step).await;
        answer(&outcome)
    };
    for (more, problem) in [
        (r#","call":"G T""#, "method: expected a token"),
        (r#","headers":{"host":"x"}"#, "headers: \"host\""),
        (r#","headers":{"x":"a\r\nb: c"}"#, "headers: \"x\""),
    ] {
        let answer = told(more).await;
        let answer = answer.as_str().unwrap();
        assert!(answer.starts_with("invalid-request: ") && answer.contains(problem), "{answer}");
    }
    assert_eq!(answer(&run_default(&sends("http://other.test/", "")).await), json!("not-allowed"));
    let url = answer(&run_default(&sends("http://a b/", "")).await);
    assert!(url.as_str().unwrap().starts_with("invalid-request: url"), "{url}");
}

/// Keeps the lane's thread busy until it is told to go on, like a processor that others hold.
fn hold_up_the_lane(engine: &Engine) -> (std::sync::mpsc::Sender<()>, impl Sized) {
    let (go_on, told) = std::sync::mpsc::channel::<()>();
    let block = std::future::poll_fn(move |_| {
        let _ = told.recv();
        panic!("a call that ends without a verdict")
    });
    let other: beamline_model::TenantName = "other".parse().unwrap();
    let long_calls = Arc::default();
    let seat = engine.seats.take(&other, 1, &long_calls);
    let seat = futures_util::FutureExt::now_or_never(seat).flatten().unwrap();
    (go_on, engine.lane.take(other, Box::pin(block), seat))
}

#[tokio::test]
async fn a_call_in_a_starved_lane_is_given_up_and_answered() {
    let longest_call = Duration::from_millis(200);
    let engine =
        Engine::new(EngineSettings { pool_instances: 16, longest_call, ..Default::default() }).unwrap();
    let (info, artifact) = taken(&guest("probe.wasm"));
    let module = engine.load(&artifact, info).unwrap();
    let limits = FilterLimits { concurrency: 2, ..Default::default() };
    let chain = |do_what: &str, on_error| {
        let filter = FilterSetup {
            name: "probe".parse().unwrap(),
            module: Some(Arc::clone(&module)),
            config: FilterConfig::new(&"probe".parse().unwrap(), do_what),
            on_error,
            lifetime: InstanceLifetime::Call,
        };
        Chain::new("acme".parse().unwrap(), limits.clone(), vec![filter])
    };
    let closed = chain(r#"{"do":"spin"}"#, OnError::FailClosed);
    let mut open = chain(r#"{"do":"spin"}"#, OnError::FailOpen);
    open.succeed(&closed);
    let mut short = chain(r#"{"do":"next"}"#, OnError::FailClosed);
    short.succeed(&closed);
    let view = View::shared(FilterLimits::default());
    let (go_on, _verdict) = hold_up_the_lane(&engine);

    let began = Instant::now();
    let (a, b) = tokio::join!(
        closed.on_request(&engine, &view, head(&[])),
        open.on_request(&engine, &view, head(&[("x-kept", "1")]))
    );
    assert!(began.elapsed() >= longest_call);
    assert_eq!(*failure(&a), Failure::WallTime(longest_call));
    assert_eq!(b.runs[0].failure, Some(Failure::WallTime(longest_call)));
    assert!(matches!(b.decision, Decision::Next), "{:?}", b.decision);
    assert_eq!(b.head.headers["x-kept"], "1", "the request goes on as it was");

    // Given up is not gone: the lane still holds both, so they still count.
    assert_eq!(*failure(&short.on_request(&engine, &view, head(&[])).await), Failure::Capacity);
    go_on.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !matches!(short.on_request(&engine, &view, head(&[])).await.decision, Decision::Next) {
        assert!(Instant::now() < deadline, "the lane never let go of what was given up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
