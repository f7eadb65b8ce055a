//! The host against real guests: those of `tests/guests`, which `scripts/build-guests.sh` builds.

mod host_functions;
mod instances;
mod lane;
mod outbound;
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

use crate::{
    Chain, ChainOutcome, Decision, Engine, EngineSettings, Exchange, Failure, FilterConfig, FilterSetup,
    HostView, Metric, MetricRefusal, MetricUpdate, Module, ModuleKind, OutboundError, OutboundRequest,
    OutboundResponse, Properties, Rejection, RequestHead, TenantState, UpstreamState, UpstreamStatus,
    compile_worker,
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
        (
            "instances that wait for their filter's next request",
            vec![mib(crate::instances::MAX_IDLE_BYTES), "60 to 80 s".into()],
        ),
        ("instances that requests hold", vec![format!("{} GiB", crate::instances::MAX_PINNED_BYTES >> 30)]),
        ("first states", vec![mib(crate::reset::MAX_IMAGES)]),
    ] {
        assert!(figures.iter().all(|figure| row(what).contains(figure)), "{what}: {figures:?}");
    }
    use crate::load::{
        LONG_CALLS_BEFORE_LANE, LONG_SLICES_OF_A_TENANT, LONG_SLICES_OF_A_WORKER, SHORT_FOR_LONG,
    };
    for told in [
        format!("with {SHORT_FOR_LONG} short calls"),
        format!("where it has {LONG_CALLS_BEFORE_LANE} there already"),
        format!("has used up {LONG_SLICES_OF_A_TENANT} slices in this second"),
        format!("{LONG_SLICES_OF_A_WORKER} slices a second"),
        format!("grow a component's memory by more than {}", mib(crate::host::MAX_GROWN_ON_WORKER)),
    ] {
        assert!(page.contains(&told), "docs/reference/limits.md lacks: {told}");
    }
    assert_eq!(crate::reset::IDLE_SWEEPS, 6, "of 10 s each: the page says 60 to 80 s");
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

/// The tenant `acme`, whose only filter is the probe.
fn chain(config: &str, limits: FilterLimits, on_error: OnError) -> Chain {
    chain_on(&probe(), "acme", config, limits, on_error)
}

/// A tenant whose only filter is this module.
pub(crate) fn chain_with(module: &Arc<Module>, tenant: &str, config: &str, limits: &FilterLimits) -> Chain {
    chain_on(module, tenant, config, limits.clone(), OnError::FailClosed)
}

fn chain_on(
    module: &Arc<Module>,
    tenant: &str,
    config: &str,
    limits: FilterLimits,
    on_error: OnError,
) -> Chain {
    let filter = FilterSetup {
        name: "probe".parse().unwrap(),
        module: Some(Arc::clone(module)),
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

fn answer(outcome: &ChainOutcome) -> serde_json::Value {
    match &outcome.decision {
        Decision::Respond(answer) => serde_json::from_slice(&answer.body).unwrap(),
        other => panic!("expected an answer, found {other:?}"),
    }
}

/// An engine of its own, for what a test's calls hold, and a guest on it.
fn engine_for(guest_name: &str, pool_instances: u32, longest_call: Duration) -> (Arc<Engine>, Arc<Module>) {
    let engine = Engine::new(EngineSettings { pool_instances, longest_call, ..Default::default() }).unwrap();
    let (info, artifact) = taken(&guest(guest_name));
    let module = engine.load(&artifact, info).unwrap();
    (engine, module)
}

/// How long what must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

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
async fn a_tenants_failures_leave_no_filter_of_another_out() {
    let chains = ["one", "other"].map(|tenant| {
        let fails = if tenant == "one" { r#"{"do":"trap"}"# } else { r#"{"do":"next"}"# };
        chain_with(&probe(), tenant, fails, &FilterLimits::default())
    });
    let [one, other] = &chains;
    let began = Instant::now();
    while !matches!(failure(&run(one, head(&[])).await), Failure::LeftOut(_)) {
        assert!(began.elapsed() < PATIENCE, "it is never left out");
        // Of the same name and module.
        assert!(matches!(run(other, head(&[])).await.decision, Decision::Next));
    }
    assert!(matches!(run(other, head(&[])).await.decision, Decision::Next));
}
