//! Calls that send requests of their own: what waits for an answer holds up nobody.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use beamline_model::{ByteSize, FilterLimits, OnError};
use serde_json::json;

use super::{PATIENCE, View, answer, chain, chain_with, engine_for, failure, head, run, run_default};
use crate::{Decision, Failure, HostView};

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
    let (engine, module) = engine_for("probe.wasm", 16, longest_call);
    let limits = FilterLimits { concurrency: 2, ..Default::default() };
    let chain = |config: &str| chain_with(&module, "acme", config, &limits);
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
    let (engine, module) = engine_for("probe.wasm", 32, Duration::from_secs(3600));
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
    let (engine, module) = engine_for("probe.wasm", 32, Duration::from_secs(5));
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
    let (engine, module) = engine_for("probe.wasm", 32, Duration::from_secs(2));
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
