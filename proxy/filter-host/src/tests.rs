//! The host against real guests: those of `tests/guests`, which `scripts/build-guests.sh` builds.

mod phases;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use beamline_model::{ByteSize, Ceilings, FilterLimits, LimitClass, ModuleLimits, OnError};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::{
    Chain, ChainOutcome, Decision, Engine, EngineSettings, Failure, FilterSetup, HostView, Module,
    ModuleKind, Rejection, RequestHead, UpstreamState, UpstreamStatus, compile_worker,
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
    for class in [LimitClass::Small, LimitClass::Large] {
        let ModuleLimits { size, compile_cpu, compile_memory } = Ceilings::of(class).module;
        let line = format!("| `{class}` | `{size}` | `{compile_cpu}` | `{compile_memory}` |");
        assert!(page.contains(&line), "docs/reference/limits.md lacks: {line}");
    }
    let row = |what: &str| page.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap();
    for (what, figures) in [
        ("memories and tables", vec![mib(crate::engine::MAX_MEMORY), "20,000".into()]),
        ("what a guest hands over", vec![mib(crate::call::MAX_HANDED_OVER)]),
        ("handles of resources", vec!["1,000".into()]),
        ("what `get-many` gives", vec![mib(crate::host::MAX_GIVEN)]),
        ("kept instances of a worker", vec!["1,000".into(), mib(crate::reset::MAX_BYTES)]),
        ("kept instances of a node", vec!["4,096".into(), mib(crate::reset::MAX_NODE_BYTES)]),
        ("first states", vec![mib(crate::reset::MAX_IMAGES)]),
    ] {
        assert!(figures.iter().all(|figure| row(what).contains(figure)), "{what}: {figures:?}");
    }
    assert_eq!((crate::host::MAX_TABLE_ELEMENTS, crate::call::MAX_HANDLES), (20_000, 1_000));
    assert_eq!((crate::reset::MAX_INSTANCES, crate::reset::MAX_NODE_INSTANCES), (1_000, 4_096));
}

pub(crate) struct View;

impl HostView for View {
    fn upstream(&self, name: &str) -> Option<UpstreamStatus> {
        (name == "api").then_some(UpstreamStatus { state: UpstreamState::Down, queue_depth: 7 })
    }
}

fn chain(config: &str, limits: FilterLimits, on_error: OnError) -> Chain {
    chain_of("acme", config, limits, on_error)
}

fn chain_of(tenant: &str, config: &str, limits: FilterLimits, on_error: OnError) -> Chain {
    let filter = FilterSetup {
        name: "probe".parse().unwrap(),
        module: Some(probe()),
        config: config.into(),
        on_error,
    };
    Chain::new(tenant.parse().unwrap(), limits, vec![filter])
}

pub(crate) fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
    let headers: HeaderMap =
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
    RequestHead::new(Method::GET, "/a/b?c=d".parse().unwrap(), "acme.test".into(), headers)
}

async fn run(chain: &Chain, head: RequestHead) -> ChainOutcome {
    let view: Arc<dyn HostView> = Arc::new(View);
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
    let component =
        wat::parse_str(r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#).unwrap();
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
        config: "null".into(),
        on_error: OnError::FailClosed,
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
            config: do_what.into(),
            on_error,
        };
        Chain::new("acme".parse().unwrap(), limits.clone(), vec![filter])
    };
    let closed = chain(r#"{"do":"spin"}"#, OnError::FailClosed);
    let mut open = chain(r#"{"do":"spin"}"#, OnError::FailOpen);
    open.succeed(&closed);
    let mut short = chain(r#"{"do":"next"}"#, OnError::FailClosed);
    short.succeed(&closed);
    let view: Arc<dyn HostView> = Arc::new(View);
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
