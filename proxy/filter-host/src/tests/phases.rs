//! The phases after the request's head.

use std::{sync::Arc, time::Duration};

use beamline_model::{ByteSize, FilterLimits, InstanceLifetime, OnError};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::{View, engine, guest, head, rejected, run, taken};
use crate::{
    BodyStage, Chain, Decision, Failure, FilterConfig, FilterSetup, FinishOutcome, HostView, Module, Passage,
    Phase, Rejection, ResponseDecision, ResponseHead,
};

fn module(name: &str) -> Arc<Module> {
    let (info, artifact) = taken(&guest(&format!("{name}.wasm")));
    engine().load(&artifact, info).unwrap()
}

/// A chain of one module under several configurations.
fn chain(module: &Arc<Module>, configs: &[&str], limits: FilterLimits, on_error: OnError) -> Chain {
    let setup = |(place, config): (usize, &&str)| FilterSetup {
        name: format!("f{place}").parse().unwrap(),
        module: Some(Arc::clone(module)),
        config: FilterConfig::new(&format!("f{place}").parse().unwrap(), config),
        on_error,
        lifetime: InstanceLifetime::Call,
    };
    let filters = configs.iter().enumerate().map(setup).collect();
    Chain::new("acme".parse().unwrap(), limits, filters)
}

fn closed(configs: &[&str]) -> Chain {
    chain(&module("phases"), configs, FilterLimits::default(), OnError::FailClosed)
}

/// The way of a request through the chain, to the end.
async fn passage(chain: &Chain) -> Passage {
    let view: Arc<dyn HostView> = View::shared(FilterLimits::default());
    let outcome = chain.on_request(engine(), &view, head(&[])).await;
    assert!(matches!(outcome.decision, Decision::Next), "{:?}", outcome.decision);
    outcome.passage(view)
}

fn response() -> ResponseHead {
    ResponseHead::new(StatusCode::OK, HeaderMap::new())
}

/// The end of an exchange of which nothing is known.
fn ended() -> FinishOutcome {
    FinishOutcome {
        status: None,
        upstream: None,
        request_bytes: 0,
        response_bytes: 0,
        duration_us: 0,
        upstream_us: 0,
        error: None,
    }
}

#[test]
fn a_module_takes_part_in_the_phases_that_it_exports() {
    let (late, all) = (module("late"), module("phases"));
    for phase in Phase::ALL {
        assert!(all.phases().has(phase), "{phase:?}");
        assert_eq!(late.phases().has(phase), matches!(phase, Phase::Response | Phase::Finish), "{phase:?}");
        assert!(all.info().phases.iter().any(|name| name == phase.interface()), "{phase:?}");
    }
    assert!(late.phases().has_later() && !super::probe().phases().has_later());
}

#[test]
fn a_phase_with_another_type_is_refused_with_both() {
    let odd = wat::parse_str(
        r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
             (func $f (canon lift (core func $i "f"))) (instance $h (export "handle" (func $f)))
             (export "beamline:edge/finish-handler@0.1.0" (instance $h)))"#,
    )
    .unwrap();
    let rejection = rejected(&odd);
    assert!(matches!(rejection, Rejection::Mismatch { .. }));
    let text = rejection.to_string();
    assert!(
        text.contains("finish-handler")
            && text.contains("borrow<request-head>")
            && text.contains("found func()"),
        "{text}"
    );
}

#[tokio::test]
async fn filters_without_a_request_phase_are_reached_and_not_run() {
    let chain = chain(&module("late"), &["null", "null"], FilterLimits::default(), OnError::FailClosed);
    assert!(chain.has_later_phases());
    let outcome = run(&chain, head(&[])).await;
    assert_eq!((outcome.reached, outcome.runs.len()), (2, 0));
    let passage = outcome.passage(View::shared(FilterLimits::default()));
    let step = chain.on_response(engine(), &passage, 1, response()).await;
    assert!(matches!(step.decision, ResponseDecision::Next));
    assert_eq!(step.head.headers["x-late"], "/a/b");
    assert_eq!((step.run.phase, step.run.verdict), (Phase::Response, "next"));
}

#[tokio::test]
async fn only_what_a_call_that_did_not_fail_set_is_remembered() {
    let chain = closed(&[
        r#"{"request":{"remember":"a"},"response":{"remember":"b","trap":true},"whole_response":{"recall":"x-context"}}"#,
        r#"{"whole_response":{"recall":"x-context"}}"#,
    ]);
    let passage = passage(&chain).await;
    let step = chain.on_response(engine(), &passage, 0, response()).await;
    assert!(matches!(step.decision, ResponseDecision::Failed { failure: Failure::Trap(_), .. }));
    for (filter, context) in [(0, "a"), (1, "nothing")] {
        let step = chain.on_whole_response(engine(), &passage, filter, response(), Ok(Bytes::new())).await;
        assert_eq!(step.head.headers["x-context"], context);
    }
}

#[tokio::test]
async fn every_phase_can_wait_for_an_answer() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(20), ..Default::default() };
    let asks = r#"{"response":{"ask":"http://wait.test/100"},"finish":{"ask":"http://wait.test/100"}}"#;
    let chain = chain(&module("phases"), &[asks], limits, OnError::FailClosed);
    let passage = passage(&chain).await;
    let step = chain.on_response(engine(), &passage, 0, response()).await;
    assert!(matches!(step.decision, ResponseDecision::Next), "{:?}", step.decision);
    assert_eq!(step.head.headers["x-asked"], "GET 2000 1.1 beamline");
    for run in [step.run, chain.on_finish(engine(), &passage, 0, ended()).await] {
        assert_eq!(run.failure, None);
        assert!(run.duration >= Duration::from_millis(100) && run.cpu < Duration::from_millis(20), "{run:?}");
    }
}

#[tokio::test]
async fn host_functions_count_in_every_phase() {
    // The configuration, the header `x-act` and what is asked for.
    let told = async |host_calls, sets| {
        let limits = FilterLimits { host_calls, ..Default::default() };
        let config = format!(r#"{{"response":{{"set":{{"x-a":"1","x-b":{sets}}}}}}}"#);
        let chain = chain(&module("phases"), &[&config], limits, OnError::FailClosed);
        let passage = passage(&chain).await;
        chain.on_response(engine(), &passage, 0, response()).await.decision
    };
    for sets in [r#""1""#, "null"] {
        assert!(matches!(told(4, sets).await, ResponseDecision::Next));
        let ended = told(3, sets).await;
        assert!(
            matches!(ended, ResponseDecision::Failed { failure: Failure::HostCalls(3), .. }),
            "{ended:?}"
        );
    }
}

/// What goes on of a body that comes in these chunks.
async fn streamed(chain: &Chain, chunks: &[&[u8]]) -> Result<Vec<Bytes>, Failure> {
    let passage = passage(chain).await;
    let mut stage = BodyStage::new(0, None);
    let mut on = Vec::new();
    for (place, chunk) in chunks.iter().enumerate() {
        let (chunk, last) = (Bytes::copy_from_slice(chunk), place + 1 == chunks.len());
        on.push(chain.on_chunk(engine(), &passage, &mut stage, chunk, last).await?);
    }
    assert_eq!(stage.take_run().unwrap().phase, Phase::RequestBody);
    Ok(on)
}

#[tokio::test]
async fn what_is_shown_again_is_found_across_chunks() {
    let chain = closed(&[r#"{"request_body":{"swap":["cat","dog"]}}"#]);
    let on = streamed(&chain, &[b"a c", b"a", b"t, cats", b", c"]).await.unwrap();
    assert_eq!(on, ["a ", "", "dog, dogs", ", c"]);
}

#[tokio::test]
async fn what_is_held_comes_again_up_to_its_limit() {
    let limits = FilterLimits { body: ByteSize::kib(1), ..Default::default() };
    let holding = r#"{"request_body":{"hold":true}}"#;
    let of = |on_error| chain(&module("phases"), &[holding], limits.clone(), on_error);
    let closed = of(OnError::FailClosed);
    assert_eq!(streamed(&closed, &[b"a", b"b", b"c"]).await.unwrap(), ["", "", "abc"]);
    let kib = [b'x'; 1024];
    assert_eq!(streamed(&closed, &[&kib, b""]).await.unwrap()[1].len(), 1024);
    assert_eq!(
        streamed(&closed, &[&kib, b"x", b""]).await,
        Err(Failure::Body { limit: 1024, response: false })
    );
    // Fail-open, all of it goes on, and what follows is not shown any more.
    let on = streamed(&of(OnError::FailOpen), &[&kib, b"x", b"y"]).await.unwrap();
    assert_eq!(on.iter().map(Bytes::len).collect::<Vec<_>>(), [0, 1025, 1]);
}

#[tokio::test]
async fn what_is_shown_again_has_the_limit_of_what_is_held() {
    let limits = FilterLimits { body: ByteSize::kib(1), ..Default::default() };
    let text = "x".repeat(2000);
    let config = format!(r#"{{"request_body":{{"swap":["{text}","y"]}}}}"#);
    let chain = chain(&module("phases"), &[&config], limits, OnError::FailClosed);
    let (first, rest) = text.as_bytes().split_at(1024);
    assert_eq!(
        streamed(&chain, &[first, &rest[..975], b""]).await,
        Err(Failure::Body { limit: 1024, response: false }),
        "of the first two, 1999 bytes are to be shown again"
    );
    assert_eq!(streamed(&chain, &[first, b"z"]).await.unwrap()[0].len(), 0);
}

#[tokio::test]
async fn what_a_filter_gives_to_be_sent_has_a_limit_too() {
    let limits = FilterLimits { body: ByteSize::kib(1), ..Default::default() };
    let of = |config: &str| chain(&module("phases"), &[config], limits.clone(), OnError::FailClosed);
    // In the place of a chunk: as much more as the limit.
    let grows = of(r#"{"request_body":{"swap":["x","yy"]}}"#);
    assert_eq!(streamed(&grows, &[&[b'x'; 1024]]).await.unwrap()[0].len(), 2048);
    let grows = of(r#"{"request_body":{"swap":["x","yyy"]}}"#);
    let failed = streamed(&grows, &[&[b'x'; 1024]]).await;
    assert!(matches!(&failed, Err(Failure::Verdict(why)) if why.starts_with("replace.data")), "{failed:?}");
    // In the place of a whole body.
    for (bytes, is_taken) in [(1024, true), (1025, false)] {
        let text = "y".repeat(bytes);
        let config = format!(
            r#"{{"request":{{"read_body":true}},"whole_request":{{"body":"{text}"}},"whole_response":{{"body":"{text}"}}}}"#
        );
        let chain = of(&config);
        let view: Arc<dyn HostView> = View::shared(FilterLimits::default());
        let outcome = chain.on_request(engine(), &view, head(&[])).await;
        let passage = outcome.passage(Arc::clone(&view));
        let outcome = chain.on_whole_request(engine(), &view, outcome, Ok(Bytes::new())).await;
        assert_eq!(matches!(outcome.decision, Decision::Next), is_taken, "{:?}", outcome.decision);
        assert_eq!(outcome.body.is_some(), is_taken);
        let step = chain.on_whole_response(engine(), &passage, 0, response(), Ok(Bytes::new())).await;
        assert_eq!(
            (matches!(step.decision, ResponseDecision::Next), step.body.is_some()),
            (is_taken, is_taken)
        );
    }
    // As an answer.
    let limits = FilterLimits { body: ByteSize::bytes("answere".len() as u64), ..Default::default() };
    let config = r#"{"request":{"respond":403}}"#;
    let short = chain(&module("phases"), &[config], limits, OnError::FailClosed);
    let outcome = run(&short, head(&[])).await;
    assert!(
        matches!(&outcome.decision, Decision::Failed { failure: Failure::Verdict(why), .. } if why.starts_with("respond.body")),
        "{:?}",
        outcome.decision
    );
}

#[tokio::test]
async fn where_there_is_no_room_holding_back_fails() {
    let chain = closed(&[r#"{"request_body":{"hold":true}}"#]);
    let passage = passage(&chain).await;
    let mut stage = BodyStage::new(0, None);
    stage.may_hold(false);
    let chunk = Bytes::from_static(b"abc");
    let failed = chain.on_chunk(engine(), &passage, &mut stage, chunk.clone(), false).await;
    assert_eq!((failed, stage.held()), (Err(Failure::Room), 0));
    stage.may_hold(true);
    chain.on_chunk(engine(), &passage, &mut stage, chunk, false).await.unwrap();
    assert_eq!(stage.held(), 3);
}

#[tokio::test]
async fn of_much_that_is_held_the_host_gathers_more_before_it_shows_it_again() {
    let chain = closed(&[r#"{"request_body":{"hold":true,"remember":"."},"finish":{"tell":true}}"#]);
    let passage = passage(&chain).await;
    let mut stage = BodyStage::new(0, None);
    let first = Bytes::from(vec![b'x'; 16 << 10]);
    chain.on_chunk(engine(), &passage, &mut stage, first, false).await.unwrap();
    for _ in 0..4096 {
        chain.on_chunk(engine(), &passage, &mut stage, Bytes::from_static(b"y"), false).await.unwrap();
    }
    let whole = chain.on_chunk(engine(), &passage, &mut stage, Bytes::new(), true).await.unwrap();
    assert_eq!(whole.len(), (16 << 10) + 4096);
    let run = chain.on_finish(engine(), &passage, 0, ended()).await;
    let told = &run.log.lines[0].1;
    assert!(
        told.contains(r#""context":"...""#),
        "three calls for the first, the gathered and the last: {told}"
    );
}

#[tokio::test]
async fn a_verdict_can_wait_for_the_whole_body() {
    let chain = closed(&[
        r#"{"request":{"read_body":true},"whole_request":{"upper":true,"set":{"x-seen":"1"}}}"#,
        r#"{"request":{"set":{"x-second":"1"}}}"#,
    ]);
    let view: Arc<dyn HostView> = View::shared(FilterLimits::default());
    let outcome = chain.on_request(engine(), &view, head(&[])).await;
    assert!(matches!(outcome.decision, Decision::ReadBody));
    assert_eq!((outcome.reached, outcome.head.headers.len()), (1, 0));
    let outcome = chain.on_whole_request(engine(), &view, outcome, Ok(Bytes::from_static(b"abc"))).await;
    assert!(matches!(outcome.decision, Decision::Next));
    assert_eq!(outcome.body.unwrap(), "ABC");
    assert_eq!((outcome.reached, outcome.head.headers.len()), (2, 2));
    let phases: Vec<_> = outcome.runs.iter().map(|run| (run.phase, run.verdict)).collect();
    assert_eq!(
        phases,
        [(Phase::Request, "read-body"), (Phase::WholeRequest, "next"), (Phase::Request, "next")]
    );
}
