//! WASI grants nothing, and nothing of it is without bounds.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use beamline_model::{FilterLimits, Limit};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use wasmtime::component::Component;

use super::{View, answer, chain_with, engine, engine_for, failure, guest, rejected, taken};
use crate::{
    ChainOutcome, Decision, Engine, Failure, LogLevel, Module, ModuleKind, Rejection, RequestHead, Tier,
    engine::linker, inspect::inspect, reset::tests::typed,
};

fn wasi() -> &'static Arc<Module> {
    static WASI: OnceLock<Arc<Module>> = OnceLock::new();
    WASI.get_or_init(|| {
        let (info, artifact) = taken(&guest("wasi.wasm"));
        engine().load(&artifact, info).unwrap()
    })
}

fn head(path: &str) -> Box<RequestHead> {
    RequestHead::new(Method::GET, path.parse().unwrap(), "acme.test".into(), HeaderMap::new())
}

async fn ask_of(engine: &Engine, module: &Arc<Module>, path: &str) -> ChainOutcome {
    let limits = FilterLimits::default();
    let view = View::shared(limits.clone());
    chain_with(module, "wasi", "null", &limits).on_request(engine, &view, head(path)).await
}

async fn ask(path: &str) -> ChainOutcome {
    ask_of(engine(), wasi(), path).await
}

async fn told(path: &str) -> Value {
    answer(&ask(path).await)
}

async fn trap(path: &str) -> (String, Option<Limit>) {
    let outcome = ask(path).await;
    let failure = failure(&outcome);
    (failure.to_string(), failure.limit())
}

#[test]
fn a_module_that_imports_wasi_is_taken_and_runs_in_the_component_tier() {
    let core = guest("wasi.wasm");
    let (info, _) = taken(&core);
    assert_eq!((info.kind, info.tier), (ModuleKind::CoreModule, Tier::Component));
    let reason = info.tier_reason.unwrap();
    assert!(reason.starts_with("it imports wasi:"), "{reason}");
    assert!(reason.ends_with("which the reset tier does not have"), "{reason}");
    assert!(
        info.imports.iter().any(|import| import.starts_with("wasi:cli/environment@0.2.")),
        "{:?}",
        info.imports
    );

    let component = inspect(&core).unwrap().component;
    let (info, _) = taken(&component);
    assert_eq!((info.kind, info.tier), (ModuleKind::Component, Tier::Component));
    assert!(info.imports.iter().any(|import| import.starts_with("wasi:sockets/tcp")), "{:?}", info.imports);
}

#[test]
fn any_0_2_of_wasi_is_linked() {
    for version in ["0.2.0", "0.2.9", "0.2.99"] {
        let text = format!(
            r#"(component
                (import "wasi:cli/environment@{version}" (instance
                    (export "get-arguments" (func (result (list string))))))
                (import "wasi:io/poll@{version}" (instance $poll
                    (export "pollable" (type $pollable (sub resource)))
                    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
                (alias export $poll "pollable" (type $pollable))
                (import "wasi:clocks/monotonic-clock@{version}" (instance
                    (export "pollable" (type $p (eq $pollable)))
                    (export "subscribe-duration" (func (param "when" u64) (result (own $p)))))))"#
        );
        let component = wat::parse_str(&text).unwrap();
        assert!(
            matches!(rejected(&component), Rejection::NoPhase { .. }),
            "{version}: nothing else is wrong with it"
        );
        let engine = engine().wasmtime();
        let component = Component::new(engine, &component).unwrap();
        linker(engine)
            .unwrap()
            .instantiate_pre(&component)
            .unwrap_or_else(|error| panic!("{version}: {error:#}"));
    }
}

#[test]
fn what_is_not_offered_of_wasi_is_refused_by_name() {
    let imports = |import: &str| {
        rejected(&wat::parse_str(format!(r#"(component (import "{import}" (instance)))"#)).unwrap())
    };
    for import in ["wasi:http/outgoing-handler@0.2.0", "wasi:http/types@0.2.9"] {
        let rejection = imports(import);
        assert_eq!(rejection, Rejection::WasiHttp { import: import.into() });
        let told = rejection.to_string();
        for part in [import, "beamline:edge/outbound@0.1.0", "egress.allow"] {
            assert!(told.contains(part), "{told}");
        }
    }
    for import in ["wasi:cli/environment@0.3.0", "wasi:keyvalue/store@0.2.0", "wasi:cli/run@0.2.0"] {
        let rejection = imports(import);
        assert_eq!(rejection, Rejection::UnknownImport { import: import.into() });
        assert!(rejection.to_string().contains("of WASI 0.2 wasi:cli/environment, "), "{rejection}");
    }
    // A function that is not there, of an interface that is.
    let unknown = wat::parse_str(
        r#"(component (import "wasi:cli/environment@0.2.99" (instance (export "get-secrets" (func (result string))))))"#,
    )
    .unwrap();
    let component = Component::new(engine().wasmtime(), &unknown).unwrap();
    let error = linker(engine().wasmtime()).unwrap().instantiate_pre(&component).err().unwrap();
    assert!(format!("{error:#}").contains("get-secrets"), "{error:#}");
}

#[tokio::test]
async fn there_is_no_environment_file_terminal_input_or_socket() {
    let surroundings = json!({
        "environment": [], "arguments": [], "folder": null, "files": 0, "terminals": [false, false, false],
    });
    assert_eq!(told("/surroundings").await, surroundings);
    let at_its_end = json!({ "read": true, "blocking-read": true, "skip": true, "ready": true });
    assert_eq!(told("/input").await, at_its_end);
    let denied = json!({ "tcp": "access-denied", "udp": "access-denied", "name": "access-denied" });
    assert_eq!(told("/sockets").await, denied);
}

#[tokio::test]
async fn clocks_are_as_fine_as_those_of_the_package() {
    let since = || std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let before = since();
    let told = told("/clocks").await;
    let number = |of: &str, at: usize| told[of][at].as_u64().unwrap();
    let now = u128::from(number("wall", 0) * 1000 + number("wall", 1) / 1_000_000);
    assert!((before..=since()).contains(&now) && number("wall", 1) % 1_000_000 == 0, "{told}");
    assert_eq!(told["resolution"], json!([0, 1_000_000]));
    assert!(number("monotonic", 1) > number("monotonic", 0), "{told}");
}

#[tokio::test]
async fn a_filter_that_waits_for_a_time_waits_so_long() {
    let told = told("/sleep/30").await;
    assert!(told["block"].as_u64().unwrap() >= 30_000_000, "{told}");
    assert!(told["poll"].as_u64().unwrap() >= 30_000_000, "{told}");
    assert_eq!(told["ready"], json!([1]));
    // It took no CPU time.
    let outcome = ask("/sleep/100").await;
    assert!(outcome.runs[0].cpu < Duration::from_millis(20), "{:?}", outcome.runs[0].cpu);
    let wait = trap("/wait-for-nothing").await;
    assert!(wait.0.contains("no pollable"), "{wait:?}");
}

#[tokio::test]
async fn randomness_is_bounded_at_once() {
    let expected = |length: u64| json!({ "bytes": length, "insecure": length, "differ": true, "seed": true });
    for length in [0, 16, 65_536] {
        assert_eq!(told(&format!("/random/{length}")).await, expected(length));
    }
    for length in [65_537, u64::MAX] {
        let (said, limit) = trap(&format!("/random/{length}")).await;
        assert_eq!(limit, Some(Limit::Random), "{said}");
    }
}

#[tokio::test]
async fn what_is_printed_is_in_the_log_line_by_line() {
    let outcome = ask("/print").await;
    assert_eq!(answer(&outcome), json!({ "permitted": true, "ready": true }));
    let lines: Vec<_> = outcome.runs[0].log.lines.iter().map(|(level, line)| (*level, &**line)).collect();
    let expected = [
        (LogLevel::Info, "first line"),
        (LogLevel::Info, "second line"),
        (LogLevel::Info, "no end"),
        (LogLevel::Error, "what went wrong"),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn what_is_printed_has_the_limit_of_the_log() {
    for path in ["/flood/4096", "/lines/4096"] {
        let outcome = ask(path).await;
        assert_eq!(answer(&outcome), "printed");
        let log = &outcome.runs[0].log;
        let told: usize = log.lines.iter().map(|(_, line)| line.len() + 32).sum();
        assert!(told <= 8 << 10 && log.lines.len() > 50, "{path}: {told} in {} lines", log.lines.len());
        assert!((4 << 20) - (8 << 10) <= log.cut && log.cut <= 4 << 20, "{path}: {}", log.cut);
    }
    assert_eq!(ask("/zeroes/3").await.runs[0].log.cut, u64::MAX, "no sum of lengths overflows");
}

#[tokio::test]
async fn exit_ends_the_call_by_that_name() {
    for (path, how) in
        [("/exit/0", "with success"), ("/exit/1", "with a failure"), ("/exit-with-code/3", "with the code 3")]
    {
        let outcome = ask(path).await;
        let failure = failure(&outcome);
        assert!(matches!(failure, Failure::Trap(_)) && failure.is_the_modules(), "{failure:?}");
        assert!(failure.to_string().contains(&format!("called exit {how}")), "{failure}");
    }
}

#[tokio::test]
async fn handles_are_bounded_and_cannot_be_made_up() {
    // Each counts, and once more while it is lent to the host.
    assert_eq!(told("/hoard/400").await, 400);
    let (said, limit) = trap("/hoard/2000").await;
    assert_eq!(limit, Some(Limit::Handles), "{said}");
    // So does one that is named many times over.
    assert_eq!(told("/repeat/400").await, 400);
    let (said, limit) = trap("/repeat/100000").await;
    assert_eq!(limit, Some(Limit::Handles), "{said}");
    for handle in [0, 1, 2, u32::MAX] {
        let (said, limit) = trap(&format!("/forge/{handle}")).await;
        assert!(said.contains("handle") && limit.is_none(), "{said}");
    }
}

#[tokio::test]
async fn who_waits_without_end_is_given_up_and_keeps_nobody_waiting() {
    let longest_call = Duration::from_millis(500);
    let (engine, module) = engine_for("wasi.wasm", 64, longest_call);
    let limits = FilterLimits::default();
    let (quiet, view) = (chain_with(&module, "quiet", "null", &limits), View::shared(limits.clone()));
    let began = Instant::now();
    let others = async {
        let mut calls = 0;
        while began.elapsed() < longest_call / 2 {
            // Another tenant's.
            let outcome = quiet.on_request(&engine, &view, head("/")).await;
            assert!(matches!(outcome.decision, Decision::Next), "{:?}", outcome.decision);
            calls += 1;
            tokio::task::yield_now().await;
        }
        calls
    };
    let dozers = futures_util::future::join_all((0..16).map(|_| ask_of(&engine, &module, "/doze")));
    let (sleeper, dozers, calls) = tokio::join!(ask_of(&engine, &module, "/sleep/3600000"), dozers, others);
    assert_eq!(*failure(&sleeper), Failure::WallTime(longest_call));
    for dozer in &dozers {
        // By the wall, or where it came so far, by what it used of the processor or called.
        let failure = failure(dozer);
        let ended = matches!(failure, Failure::WallTime(_) | Failure::CpuTime(_) | Failure::HostCalls(_));
        assert!(ended, "{failure:?}");
    }
    assert!(calls > 20, "only {calls} short calls beside those that wait");
}

/// As wasi-libc does it: by functions of WASI's first version.
#[tokio::test]
async fn a_core_module_of_wasis_first_version_is_taken() {
    let module = typed(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_prestat_get" (func $folder (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "beamline:edge/http@0.1.0" "[resource-drop]request-head" (func $drop (param i32)))
            (memory (export "memory") 4)
            (global $heap (mut i32) (i32.const 1024))
            (data (i32.const 0) "\10\00\00\00\0d\00\00\00")
            (data (i32.const 16) "hello from C\n")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
                (global.set $heap (i32.add (local.get $at) (local.get 3)))
                (local.get $at))
            (func (export "beamline:edge/request-handler@0.1.0#handle") (param $head i32) (result i32)
                (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)) (then unreachable))
                (if (i32.ne (i32.load (i32.const 32)) (i32.const 13)) (then unreachable))
                (if (call $environ (i32.const 40) (i32.const 44)) (then unreachable))
                (if (i32.load (i32.const 40)) (then unreachable))
                ;; No folder was opened beforehand: 8 is EBADF.
                (if (i32.ne (call $folder (i32.const 3) (i32.const 48)) (i32.const 8)) (then unreachable))
                (call $drop (local.get $head))
                (i32.const 256)))"#,
    );
    let (info, artifact) = taken(&module);
    assert_eq!((info.kind, info.tier), (ModuleKind::CoreModule, Tier::Component));
    let reason = info.tier_reason.clone().unwrap();
    assert!(reason.contains("wasi_snapshot_preview1 fd_write"), "{reason}");
    let module = engine().load(&artifact, info).unwrap();
    let outcome = ask_of(engine(), &module, "/").await;
    assert!(matches!(outcome.decision, Decision::Next), "{:?}", outcome.decision);
    assert_eq!(outcome.runs[0].log.lines, [(LogLevel::Info, "hello from C".to_owned())]);
}

#[test]
fn a_function_that_wasis_first_version_does_not_have_is_refused() {
    let module = typed(
        r#"(module
            (import "wasi_snapshot_preview1" "fork" (func (result i32)))
            (memory (export "memory") 1)
            (func (export "beamline:edge/request-handler@0.1.0#handle") (param i32) (result i32) (i32.const 256)))"#,
    );
    let rejection = rejected(&module);
    assert!(
        matches!(rejection, Rejection::Mismatch { .. }) && rejection.to_string().contains("fork"),
        "{rejection}"
    );
}
