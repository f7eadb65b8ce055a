//! What one request's telemetry costs its worker. A measurement, run by hand on an optimised build:
//! `cargo test --release -p beamline-telemetry --test cost -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "in tests, a panic is the report")]

use std::{sync::Arc, time::Duration};

use beamline_telemetry::{
    Attempt, FilterRun, LogTarget, Sampler, Settings, SpanId, Started, Telemetry, TraceContext, Transaction,
    Verdict,
};
use http::{Method, uri::PathAndQuery};

const ROUNDS: u32 = 200_000;

fn transaction(name: &Arc<str>, digest: &Arc<str>, filtered: bool) -> Transaction {
    let mut tx = Transaction::new(
        Started::now(),
        TraceContext::start(None, false, &Sampler::NEVER),
        Method::GET,
        "shop.acme.example".to_owned(),
        PathAndQuery::from_static("/api/v2/orders/1234567?page=2"),
        "192.0.2.7:40000".parse().unwrap(),
    );
    tx.tenant = Some(Arc::clone(name));
    tx.revision = Some(42);
    tx.route = Some(Arc::clone(name));
    tx.upstream = Some(Arc::clone(name));
    tx.status = Some(200);
    tx.response_bytes = 1024;
    tx.duration = Duration::from_micros(812);
    tx.verdict = Some(Verdict::Next);
    if filtered {
        tx.verdict = Some(Verdict::Route);
        tx.filters.push(FilterRun {
            name: Arc::clone(name),
            phase: FilterRun::REQUEST,
            module: Arc::clone(digest),
            started: Duration::from_micros(10),
            duration: Duration::from_micros(14),
            cpu: Duration::from_micros(12),
            outcome: FilterRun::OK,
            verdict: Some(Verdict::Route),
        });
    }
    tx.attempts.push(Attempt {
        span_id: SpanId::random(),
        peer: "10.1.0.5:9001".parse().unwrap(),
        started: Duration::from_micros(30),
        duration: Duration::from_micros(700),
        status: Some(200),
        error: None,
        resend_count: 0,
        messaging: None,
    });
    tx
}

/// What this thread has computed: other threads, the log's writer among them, do not count.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[tokio::test]
#[ignore = "a measurement: cargo test --release -p beamline-telemetry --test cost -- --ignored --nocapture"]
async fn the_cost_of_a_request() {
    let (name, digest): (Arc<str>, Arc<str>) = ("orders".into(), format!("sha256:{}", "a".repeat(64)).into());
    for (what, log, filtered) in [
        ("nothing written", LogTarget::Off, true),
        ("access record, no filter", LogTarget::File("/dev/null".into()), false),
        ("access record, one filter", LogTarget::File("/dev/null".into()), true),
    ] {
        let settings = Settings { log, ..Settings::default() };
        let telemetry = Telemetry::open(settings, &tokio::runtime::Handle::current()).unwrap();
        let worker = telemetry.worker();
        let mut best = (Duration::MAX, Duration::MAX);
        for _ in 0..10 {
            let begun = cpu();
            let made: Vec<_> = (0..ROUNDS / 100).map(|_| transaction(&name, &digest, filtered)).collect();
            let making = (cpu() - begun) * 100;
            let mut finishing = Duration::ZERO;
            for _ in 0..100 {
                let these = made.clone();
                let begun = cpu();
                these.into_iter().for_each(|tx| worker.finish(tx));
                finishing += cpu() - begun;
            }
            best = (best.0.min(making), best.1.min(finishing));
        }
        let each = |total: Duration| total.as_nanos() / u128::from(ROUNDS);
        println!("{what}: {} ns to finish, {} ns to make", each(best.1), each(best.0));
        assert!(telemetry.flush(Duration::from_secs(20)).await);
    }
}
