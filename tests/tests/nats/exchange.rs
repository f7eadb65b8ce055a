//! One request and its reply, the grant, and what is too large.

use beamline_tests::{
    beamline::Options,
    client::Request,
    nats::{NatsServer, Service},
    otlp::{Kind, Receiver},
    scene::{HOST, PATIENCE, TENANT},
};
use serde_json::json;

use crate::{SUBJECT, Stage, location, on_failure};

#[test]
fn a_request_becomes_a_message_and_its_reply_a_response() {
    let stage = Stage::request(json!({}));
    let service = Service::start(stage.server.address(), SUBJECT, |message| {
        let headers = vec![
            ("Beamline-Status", "201".to_owned()),
            ("Content-Type", "text/plain".to_owned()),
            ("X-Two", "a".to_owned()),
            ("X-Two", "b".to_owned()),
            ("Content-Length", "3".to_owned()),
            ("Connection", "x-gone".to_owned()),
            ("X-Gone", "1".to_owned()),
            ("Nats-Sequence", "9".to_owned()),
        ];
        Some((headers, [b"made ", &message.payload[..]].concat()))
    })
    .unwrap();
    let answer = stage.send(
        Request::post("/in?a=b", "an order")
            .header("X-Account", "seven")
            .header("Nats-Rollup", "all")
            .header("Beamline-Attempt", "9")
            .header("Connection", "x-hop")
            .header("X-Hop", "1"),
    );
    assert_eq!((answer.status, answer.text().as_str()), (201, "made an order"));
    assert_eq!(answer.headers.all("x-two").collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(answer.header("content-length"), Some("13"));
    assert_eq!((answer.header("x-gone"), answer.header("nats-sequence")), (None, None));
    assert_eq!(answer.header("via"), Some("1.1 beamline"));

    let seen = &service.seen()[0];
    assert_eq!(seen.text(), "an order");
    for (name, value) in [
        ("Beamline-Method", "POST"),
        ("Beamline-Target", "/in?a=b"),
        ("Host", HOST),
        ("X-Account", "seven"),
        ("X-Forwarded-For", "127.0.0.1"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    for gone in ["Nats-Rollup", "Beamline-Attempt", "X-Hop", "Connection", "Content-Length"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_eq!(seen.header("X-Request-Id"), answer.header("x-request-id"));
    let inbox = seen.reply.as_deref().unwrap().strip_prefix("_INBOX_BEAMLINE.").unwrap();
    assert_eq!(inbox.len(), 32 + 1 + 32, "nobody guesses another's inbox");
}

#[test]
fn a_trace_goes_on_through_the_message() {
    let receiver = Receiver::start().unwrap();
    let options = Options { otlp_endpoint: Some(receiver.endpoint()), ..Options::default() };
    let stage = Stage::with(NatsServer::start().unwrap(), options, "request", json!({}));
    let service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    assert_eq!(stage.send(Request::get("/in")).status, 200);
    let parent = service.seen()[0].header("traceparent").unwrap().to_owned();
    let parts: Vec<&str> = parent.split('-').collect();
    let spans = receiver.wait_for_trace(parts[1], PATIENCE, |spans| spans.len() >= 2).unwrap();
    let span = spans.iter().find(|span| span.kind == Kind::Client).unwrap();
    assert_eq!((span.name.as_str(), span.span_id.as_str()), ("request acme.orders.new", parts[2]));
    for (key, value) in [
        ("messaging.system", "nats"),
        ("messaging.operation.name", "request"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", SUBJECT),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(span.attribute(key), Some(value), "{key}");
    }
}

#[test]
fn a_services_error_is_its_status() {
    let stage = Stage::request(json!({}));
    let _service = Service::start(stage.server.address(), SUBJECT, |_| {
        let headers = vec![
            ("Nats-Service-Error-Code", "409".to_owned()),
            ("Nats-Service-Error", "there already".to_owned()),
        ];
        Some((headers, Vec::new()))
    });
    let answer = stage.send(Request::post("/in", "x"));
    assert_eq!((answer.status, answer.text().as_str()), (409, "there already"));
}

#[test]
fn what_the_grant_does_not_cover_is_refused_by_name() {
    let stage = Stage::request(json!({}));
    let refused = |connection: &str, subject: &str| {
        let nats = json!({ "connection": connection, "subject": subject, "kind": "request" });
        stage.apply("request", |upstream| upstream["nats"] = nats).unwrap_err().to_string()
    };
    for (connection, subject, expected) in [
        ("main", "acme.ordersx", "NATS subject acme.ordersx on connection main is outside"),
        ("main", "other.orders", "NATS subject other.orders on connection main is outside"),
        ("aux", "acme.orders", "NATS connection aux is not granted to this tenant"),
        ("main", "acme.orders.*", "\\\"acme.orders.*\\\" is not valid"),
        ("main", "acme.orders.>", "\\\"acme.orders.>\\\" is not valid"),
        ("main", "$JS.API.STREAM.DELETE.ORDERS", "\\\"$JS.API.STREAM.DELETE.ORDERS\\\" is not valid"),
        ("main", "_INBOX.x", "\\\"_INBOX.x\\\" is not valid"),
        ("main", "acme.orders x\r\nPUB y", "is not valid"),
    ] {
        let error = refused(connection, subject);
        assert!(error.contains(expected), "{connection} {subject}: {error}");
    }
    // Granted, and not there.
    stage
        .admin
        .create_tenant_with(
            &json!({ "name": "globex", "hosts": ["globex.test"], "nats_subjects": ["gone=globex"] }),
        )
        .unwrap();
    let manifest = json!({
        "version": 1,
        "hosts": ["globex.test"],
        "upstreams": { "a": { "nats": { "connection": "gone", "subject": "globex.a", "kind": "request" } } },
    });
    let error = stage.admin.apply("globex", &manifest).unwrap_err().to_string();
    assert!(error.contains("NATS connection gone is not defined on this node"), "{error}");
    let shown = stage.admin.get(&format!("/v1/tenants/{TENANT}")).unwrap();
    assert_eq!(shown["nats_subjects"], json!(["main=acme.orders"]));
}

#[test]
fn what_is_too_large_is_refused_as_that_and_not_queued() {
    let mut stage = Stage::with(
        NatsServer::with("max_payload: 1048576").unwrap(),
        Options::default(),
        "request",
        json!({ "mode": "on-failure", "max_body": "8MiB" }),
    );
    let service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    let largest = vec![b'x'; 960 << 10];
    let answer = stage.send(Request::post("/in", largest.clone()));
    assert!(answer.status == 200 && answer.body == largest, "{}", answer.status);
    let beyond = [&largest[..], b"x"].concat();
    for request in [Request::post("/in", beyond.clone()), Request::post("/in", beyond.clone()).chunked()] {
        let answer = stage.send(request);
        assert_eq!((answer.status, answer.problem().as_str()), (413, "payload-too-large"));
        assert!(answer.text().contains("larger than the 983040 bytes"), "{}", answer.text());
    }
    assert_eq!(service.seen().len(), 1);
    stage.server.kill().unwrap();
    let answer = stage.send(Request::post("/in", beyond).chunked());
    assert_eq!((answer.status, answer.header("location")), (503, None), "it could never be delivered");
}

#[test]
fn a_connection_that_the_operator_took_away_is_nobodys_and_what_waits_for_it_goes_on_waiting() {
    let mut stage = Stage::request(on_failure());
    let waiting = location(&stage.send(Request::new("PUT", "/in").body("waiting")));
    stage.node.kill_nine().unwrap();
    stage.node.options_mut().configuration = None;
    stage.node.launch().unwrap();
    let answer = stage.send(Request::post("/in", "x"));
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-denied"));
    assert!(answer.header("proxy-status").unwrap().contains("proxy_configuration_error"));
    assert!(["queued", "delivering"].contains(&stage.receipt(&waiting)["state"].as_str().unwrap()));
    stage.node.kill_nine().unwrap();
    stage.node.options_mut().configuration = Some(stage.server.node_config());
    let service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    stage.node.launch().unwrap();
    stage.wait_state(&waiting, "delivered");
    assert_eq!(service.counts()["waiting"], 1);
}

#[test]
fn a_server_that_takes_less_than_the_node_says_so() {
    let stage = Stage::with(
        NatsServer::with("max_payload: 10000").unwrap(),
        Options::default(),
        "request",
        on_failure(),
    );
    let _service = Service::echo(stage.server.address(), SUBJECT).unwrap();
    let answer = stage.send(Request::post("/in", vec![b'x'; 10_000]));
    assert_eq!((answer.status, answer.problem().as_str()), (413, "payload-too-large"));
    assert!(answer.text().contains("larger than the 10000 bytes"), "{}", answer.text());
    assert_eq!(stage.send(Request::post("/in", "small")).status, 200, "the connection stands");
}

#[test]
fn a_subject_that_the_servers_user_may_not_publish_to_is_told_at_once() {
    let stage = Stage::with(
        NatsServer::with("authorization { default_permissions { publish: \"_INBOX_BEAMLINE.>\", subscribe: \">\" }, users = [{ user: edge, password: sesame, permissions: { publish: \"other.>\", subscribe: \"_INBOX_BEAMLINE.>\" } }, { user: test, password: test }] }\nno_auth_user: test").unwrap(),
        Options::default(),
        "request",
        on_failure(),
    );
    let answer = stage.send(Request::post("/in", "x"));
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-denied"), "{}", answer.text());
}
