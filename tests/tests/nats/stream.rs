//! JetStream: only its acknowledgement counts.

use std::path::Path;

use beamline_tests::{
    beamline::Options,
    client::Request,
    nats::{NatsServer, Service},
    scene::command,
};
use serde_json::json;

use crate::{Stage, location, on_failure};

#[test]
fn an_acknowledged_publish_is_202_without_a_receipt() {
    let stage = Stage::jetstream(on_failure());
    let answer = stage.send(Request::post("/in?a=b", "an order").header("Idempotency-Key", "k1"));
    assert_eq!((answer.status, answer.header("location")), (202, None));
    assert_eq!(
        answer.json().unwrap(),
        json!({ "status": "published", "stream": "ORDERS", "seq": 1, "duplicate": false })
    );
    assert_eq!(answer.header("proxy-status"), Some("beamline; details=\"published; stream=ORDERS; seq=1\""));
    let again = stage.send(Request::post("/in?a=b", "an order").header("Idempotency-Key", "k1"));
    assert_eq!(again.json().unwrap()["duplicate"], true);
    let stored = stage.server.messages("ORDERS").unwrap();
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert_eq!(stored[0].text(), "an order");
    assert!(stored[0].header("Nats-Msg-Id").unwrap().starts_with("acme/orders/key/k1/"));
    assert_eq!(stored[0].header("Beamline-Target"), Some("/in?a=b"));
    assert!(stored[0].header("traceparent").is_some());
}

#[test]
fn two_requests_of_one_key_are_two_messages() {
    let stage = Stage::jetstream(on_failure());
    let send = |body: &str| stage.send(Request::post("/in", body).header("Idempotency-Key", "k1")).json();
    for body in ["an order", "another's order"] {
        assert_eq!(send(body).unwrap()["duplicate"], false, "{body}");
    }
    let stored = stage.server.messages("ORDERS").unwrap();
    assert_eq!(stored.iter().map(|m| m.text()).collect::<Vec<_>>(), ["an order", "another's order"]);
}

#[test]
fn what_timed_out_and_is_sent_again_from_the_queue_is_one_message() {
    // One worker, so that there is one connection and it stands.
    let options = Options { workers: 1, ..Options::default() };
    let stage = Stage::with(NatsServer::start().unwrap(), options, "jetstream", json!({}));
    stage.server.stream("ORDERS", &["acme.orders.>"], json!({})).unwrap();
    stage
        .apply("jetstream", |upstream| {
            upstream["queue"] = json!({ "mode": "on-failure", "credentials": "strip" });
            upstream["response_timeout"] = json!("300ms");
        })
        .unwrap();
    assert_eq!(stage.send(Request::post("/in", "first")).status, 202, "the connection stands");
    stage.server.freeze().unwrap();
    let plain = location(&stage.send(Request::new("PUT", "/in").body("put")));
    // By a key, too: its live attempt and its delivery have one id, credentials or none.
    let keyed = Request::new("PUT", "/in?a=b").body("keyed").header("Content-Type", "text/plain");
    let keyed = keyed.header("Idempotency-Key", "k1").header("Authorization", "Bearer x");
    let keyed = location(&stage.send(keyed));
    // Soon enough: the first of the two is with the server, in what it has not read.
    stage.server.thaw().unwrap();
    stage.wait_state(&plain, "delivered");
    stage.wait_state(&keyed, "delivered");
    let stored = stage.server.messages("ORDERS").unwrap();
    assert_eq!(stored.iter().map(|m| m.text()).collect::<Vec<_>>(), ["first", "put", "keyed"]);
    for message in &stored[1..] {
        assert_eq!(message.header("Beamline-Attempt"), None, "the first of the two is the one that counts");
    }
}

#[test]
fn the_example_tenant_is_as_its_page_says() {
    let stage = Stage::request(json!({}));
    stage.server.stream("ORDERS", &["initech.orders.>"], json!({})).unwrap();
    let _desk = Service::start(stage.server.address(), "initech.desk", |_| {
        Some((Vec::new(), b"this is the desk".to_vec()))
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let create = "tenant create initech --host initech.test --nats-subject main=initech";
    for line in [create, "apply examples/initech/manifest.toml --tenant initech"] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let ended = command(&stage.node, &folder, &arguments).unwrap();
        assert!(ended.status.success(), "{line}: {}", String::from_utf8_lossy(&ended.stderr));
    }
    let send = |request: Request| request.host("initech.test").send(stage.node.address()).unwrap();
    assert_eq!(send(Request::get("/hours")).text(), "this is the desk");
    let ordered = send(Request::post("/orders", "{\"item\":1}"));
    assert_eq!(ordered.status, 202, "{}", ordered.text());
    assert!(ordered.header("proxy-status").unwrap().contains("published; stream=ORDERS; seq=1"));
    let shown = command(&stage.node, &folder, &["show", "initech"]).unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("main=initech"));
}

#[test]
fn without_a_stream_nothing_was_sent_and_it_is_queued_until_there_is_one() {
    let stage = Stage::request(json!({}));
    stage.apply("jetstream", |upstream| upstream["queue"] = on_failure()).unwrap();
    let location = location(&stage.send(Request::post("/in", "an order")));
    stage.server.stream("ORDERS", &["acme.orders.>"], json!({})).unwrap();
    let told = stage.wait_state(&location, "delivered");
    assert_eq!(told["last_status"], 202);
    let stored = stage.server.messages("ORDERS").unwrap();
    assert_eq!(stored.iter().map(|m| m.text()).collect::<Vec<_>>(), ["an order"]);
}

#[test]
fn a_full_stream_takes_nothing_and_what_it_refused_is_queued() {
    let stage = Stage::jetstream(on_failure());
    stage.server.js("STREAM.DELETE.ORDERS", &json!(null)).unwrap();
    let full = json!({ "max_msgs": 1, "discard": "new" });
    stage.server.stream("ORDERS", &["acme.orders.>"], full).unwrap();
    assert_eq!(stage.send(Request::post("/in", "first")).header("location"), None);
    let location = location(&stage.send(Request::post("/in", "second")));
    stage.server.js("STREAM.PURGE.ORDERS", &json!({})).unwrap();
    stage.wait_state(&location, "delivered");
    assert_eq!(stage.server.messages("ORDERS").unwrap()[0].text(), "second");
}

#[test]
fn what_a_stream_refuses_for_good_is_502() {
    let stage = Stage::jetstream(on_failure());
    stage.server.js("STREAM.DELETE.ORDERS", &json!(null)).unwrap();
    stage.server.stream("ORDERS", &["acme.orders.>"], json!({ "max_msg_size": 600 })).unwrap();
    let answer = stage.send(Request::post("/in", vec![b'x'; 1000]));
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-refused"), "{}", answer.text());
}
