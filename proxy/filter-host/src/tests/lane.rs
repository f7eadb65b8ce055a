//! Calls that outlive their slice: they wait for each other in the lane, and nobody for them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use beamline_model::{ByteSize, FilterLimits, OnError};

use super::{View, chain, chain_on, chain_with, engine_for, failure, head, probe, run, taken};
use crate::{
    ChainOutcome, Decision, Engine, EngineSettings, Failure, Tier,
    reset::tests::{REALLOC, handle, module, typed},
};

#[tokio::test]
async fn spinners_wait_in_the_lane_while_short_calls_go_on() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(50), ..Default::default() };
    let spinner = Arc::new(chain(r#"{"do":"spin"}"#, limits, OnError::FailClosed));
    // Another tenant's: short calls of the one that spins wait as its long ones do, for it owes for what they used up.
    let quiet = chain_with(&probe(), "quiet", r#"{"do":"next"}"#, &FilterLimits::default());
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
                assert!(matches!(outcome.decision, Decision::Next), "{:?}", outcome.decision);
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
    let chain = chain_with(&probe(), "busy", r#"{"do":"spin"}"#, &limits);
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
    let (engine, module) = engine_for("probe.wasm", 16, longest_call);
    let limits = FilterLimits { concurrency: 2, ..Default::default() };
    let chain = |step: &str, on_error| chain_on(&module, "acme", step, limits.clone(), on_error);
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

/// What the guest's `handle` does, in a tier, while the lane is held up: who goes there is given up.
async fn while_the_lane_is_held_up(does: &str, reset_tier: bool) -> ChainOutcome {
    let longest_call = Duration::from_millis(500);
    let settings = EngineSettings { pool_instances: 16, longest_call, reset_tier, ..Default::default() };
    let engine = Engine::new(settings).unwrap();
    let (info, artifact) = taken(&typed(&module(&format!("{REALLOC} {}", handle(does)))));
    let module = engine.load(&artifact, info).unwrap();
    assert_eq!(module.info().tier == Tier::Reset, reset_tier, "{:?}", module.info().tier_reason);
    let limits = FilterLimits {
        memory: ByteSize::mib(64),
        cpu: beamline_model::Duration::millis(1_000),
        ..Default::default()
    };
    let chain = chain_with(&module, "acme", "null", &limits);
    let view = View::shared(limits);
    let (go_on, _verdict) = hold_up_the_lane(&engine);
    let outcome = chain.on_request(&engine, &view, head(&[])).await;
    go_on.send(()).unwrap();
    outcome
}

#[tokio::test]
async fn a_component_whose_memory_grows_by_much_does_so_in_the_lane() {
    // On a busy machine a slice may be over before anything has grown: the best of five tells.
    let mut stayed = false;
    for _ in 0..5 {
        let little = while_the_lane_is_held_up("(drop (memory.grow (i32.const 16)))", false).await;
        stayed |= matches!(little.decision, Decision::Next);
        if stayed {
            break;
        }
    }
    assert!(stayed, "a growth of 1 MiB goes to the lane");
    let more = "(drop (memory.grow (i32.const 16))) (drop (memory.grow (i32.const 1)))";
    let more = while_the_lane_is_held_up(more, false).await;
    assert!(matches!(failure(&more), Failure::WallTime(_)), "{:?}", failure(&more));
}

#[tokio::test]
async fn a_long_fill_or_copy_of_the_reset_tier_is_set_aside_between_its_pieces() {
    // One instruction, in which an engine that cuts nothing meets no tick. On a busy machine they may come late: the best of five.
    let fill = "(memory.fill (i32.const 65536) (i32.const 1) (i32.const 65000000))";
    let copy = "(memory.copy (i32.const 65536) (i32.const 65537) (i32.const 65000000))";
    for does in [fill, copy] {
        let does = format!("(drop (memory.grow (i32.const 1000))) {does}");
        let mut set_aside = false;
        for _ in 0..5 {
            let outcome = while_the_lane_is_held_up(&does, true).await;
            set_aside |= matches!(outcome.decision, Decision::Failed { failure: Failure::WallTime(_), .. });
            if set_aside {
                break;
            }
        }
        assert!(set_aside, "{does}");
    }
}
