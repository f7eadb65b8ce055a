//! What is queued where a service is missing, silent or slow: exactly as for HTTP.

use std::time::Duration;

use beamline_tests::{
    beamline::Options,
    client::Request,
    nats::{NatsServer, Service},
    scene::PATIENCE,
};
use serde_json::{Value, json};

use crate::{SUBJECT, Stage, location, on_failure, wait};

#[test]
fn with_nobody_there_a_request_is_queued_and_delivered_when_somebody_comes() {
    let stage = Stage::request(on_failure());
    let answer = stage.send(Request::post("/in", "an order").header("X-Account", "seven"));
    let location = location(&answer);
    assert!(answer.header("proxy-status").unwrap().contains("queued"));
    let service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    let told = stage.wait_state(&location, "delivered");
    assert_eq!(told["last_status"], 200);
    let seen = service.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].text().as_str(), seen[0].header("Beamline-Method")), ("an order", Some("POST")));
    assert_eq!(seen[0].header("X-Account"), Some("seven"));
    assert_eq!(seen[0].header("Idempotency-Key"), told["id"].as_str());
    assert!(seen[0].header("Beamline-Attempt").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(seen[0].header("Beamline-Accepted").is_some());
    let posted = |record: &Value| record["kind"] == "access" && record["http.request.method"] == "POST";
    let log = stage.node.wait_log(PATIENCE, |log| log.iter().any(posted)).unwrap();
    let access = log.iter().find(|record| posted(record)).unwrap();
    let trace = access["trace_id"].as_str().unwrap();
    assert!(seen[0].header("traceparent").unwrap().contains(trace), "the trace goes on");
}

#[test]
fn without_a_queue_nobody_there_is_503() {
    let stage = Stage::request(json!({}));
    let answer = stage.send(Request::post("/in", "x"));
    assert_eq!((answer.status, answer.problem().as_str()), (503, "upstream-unavailable"));
    assert!(answer.header("retry-after").is_some());
    assert!(answer.header("proxy-status").unwrap().contains("destination_unavailable"));
}

#[test]
fn after_a_time_out_only_what_may_be_repeated_is_queued() {
    let stage = Stage::request(on_failure());
    stage
        .apply("request", |upstream| {
            upstream["queue"] = on_failure();
            upstream["response_timeout"] = json!("300ms");
        })
        .unwrap();
    let silent = Service::start(stage.server.address(), SUBJECT, |_| None).unwrap();
    let post = stage.send(Request::post("/in", "post"));
    assert_eq!((post.status, post.problem().as_str()), (504, "upstream-timeout"));
    let location = location(&stage.send(Request::new("PUT", "/in").body("put")));
    drop(silent);
    let service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    stage.wait_state(&location, "delivered");
    assert!(service.seen().iter().all(|message| message.text() == "put"), "{:?}", service.seen());
}

#[test]
fn a_node_starts_and_serves_with_a_server_that_is_down() {
    let server = NatsServer::prepare("").unwrap();
    let mut stage = Stage::with(server, Options::default(), "request", on_failure());
    let read = stage.send(Request::get("/in"));
    assert_eq!((read.status, read.problem().as_str()), (503, "upstream-connect"));
    let location = location(&stage.send(Request::post("/in", "an order")));
    stage.server.start_again().unwrap();
    let service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    stage.wait_state(&location, "delivered");
    assert_eq!(service.counts()["an order"], 1);
    stage.wait_up();
}

#[test]
fn a_services_answers_decide_about_a_record_as_an_origins_do() {
    let stage = Stage::request(on_failure());
    let (rejected, broken) = (
        location(&stage.send(Request::post("/reject", "reject"))),
        location(&stage.send(Request::post("/fail", "fail"))),
    );
    let service = Service::start(stage.server.address(), SUBJECT, |message| {
        let status = if message.text() == "reject" { "422" } else { "500" };
        Some((vec![("Beamline-Status", status.to_owned())], Vec::new()))
    })
    .unwrap();
    assert_eq!(stage.wait_state(&rejected, "dead")["reason"], "rejected");
    assert_eq!(stage.wait_state(&broken, "dead")["reason"], "indeterminate");
    wait(Duration::from_secs(5), || service.seen().len(), |seen| *seen == 2);
}
