//! What a filter can ask its host, on a node.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use beamline_tests::{
    admin::manifest,
    beamline::Options,
    client::Request,
    guests,
    scene::{Scene, command},
};
use serde_json::{Value, json};

fn probed() -> Scene {
    Scene::probed(Options::default()).unwrap()
}

/// What the probe answers to a step.
#[track_caller]
fn told(scene: &Scene, step: Value) -> Value {
    scene.probe("/", step).unwrap().expect(200).unwrap().json().unwrap()
}

#[test]
fn a_filter_learns_who_sent_its_request_and_what_it_is_called() {
    let scene = probed();
    let answer = scene.probe("/", "properties").unwrap();
    let (known, record) = (answer.json().unwrap(), scene.record(&answer).unwrap());
    assert_eq!(known["client_address"], "127.0.0.1");
    assert!(known["client_port"].as_u64().unwrap() > 0);
    assert_eq!(known["request_id"], answer.header("x-request-id").unwrap());
    assert_eq!(known["trace_id"], record["trace_id"]);
    assert_eq!((&known["tenant"], &known["scheme"]), (&json!("acme"), &json!("http")));
    assert_eq!(known["revision"], record["beamline.revision"]);
    assert_eq!(known["tls_server_name"], Value::Null);
}

#[test]
fn a_call_that_calls_the_host_too_often_is_answered_with_a_problem_of_its_own() {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    let set = |limit: u32| {
        scene.apply(|m| {
            m["filters"] = json!([probe]);
            m["limits"] = json!({ "host_calls": limit });
        })
    };
    set(100).unwrap();
    assert_eq!(scene.probe("/", "calls=90").unwrap().status, 200);
    let answer = scene.probe("/", "calls=100").unwrap();
    assert_eq!((answer.status, answer.problem()), (503, "filter-host-calls".into()));
    assert_eq!(scene.record(&answer).unwrap()["error.type"], "filter-host-calls");
    set(200).unwrap();
    assert_eq!(scene.probe("/", "calls=100").unwrap().status, 200);
    assert_eq!(set(1_000_001).unwrap_err().status(), Some(422));
}

#[test]
fn a_filter_has_a_clock() {
    let now = told(&probed(), json!({ "do": "clock", "n": 1 }));
    let since = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let told = u128::from(now["now_ms"].as_u64().unwrap());
    assert!(told <= since && told + 60_000 > since, "{now} at {since}");
}

fn kv(call: &str, more: Value) -> Value {
    let mut step = json!({ "do": "kv", "call": call, "key": "k" });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step
}

#[test]
fn keys_and_values_last_over_requests_workers_and_revisions() {
    let scene = probed();
    // Each over a connection of its own, so on either worker.
    for sum in 1..=50 {
        assert_eq!(told(&scene, kv("increment", json!({ "by": 1 }))), sum);
    }
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|m| {
            m["filters"] = json!([probe]);
            m["limits"] = json!({ "kv_entries": 1 });
        })
        .unwrap();
    assert_eq!(told(&scene, kv("get", json!({}))), "50");
    assert_eq!(told(&scene, kv("set", json!({ "key": "other" }))), "quota-exceeded");
    assert_eq!(told(&scene, kv("set", json!({ "body": "kept", "ttl_ms": 3_600_000 }))), "ok");
    assert_eq!(told(&scene, kv("get", json!({}))), "kept");
}

#[test]
fn concurrent_increments_all_count() {
    let scene = probed();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..25).for_each(|_| drop(told(&scene, kv("increment", json!({ "by": 2 }))))));
        }
    });
    assert_eq!(told(&scene, kv("get", json!({}))), "400");
}

#[test]
fn what_a_tenant_keeps_is_its_own_and_goes_with_it() {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    let second = |made: &str| {
        scene.admin.create_tenant("second", &["second.test"], &["127.0.0.0/8"]).unwrap();
        scene.admin.push("second", &guests::module("probe").unwrap()).unwrap();
        let mut manifest = manifest("second.test", scene.origin.address());
        manifest["filters"] = json!([probe]);
        scene.admin.apply("second", &manifest).unwrap();
        let step = kv("get", json!({})).to_string();
        let get = Request::get("/").host("second.test").header("x-probe", &step);
        assert_eq!(get.send(scene.node.address()).unwrap().json().unwrap(), Value::Null, "{made}");
        let step = kv("set", json!({ "body": "second's" })).to_string();
        let set = Request::get("/").host("second.test").header("x-probe", &step);
        assert_eq!(set.send(scene.node.address()).unwrap().json().unwrap(), "ok");
    };
    assert_eq!(told(&scene, kv("set", json!({ "body": "first's" }))), "ok");
    second("another tenant keeps what it keeps to itself");
    assert_eq!(told(&scene, kv("get", json!({}))), "first's");
    let deleted = command(&scene.node, &scene.node.data_dir(), &["tenant", "delete", "second"]).unwrap();
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    second("whoever gets the name finds nothing");
}

#[test]
fn a_token_bucket_lets_its_burst_through_on_all_workers_together() {
    let scene = probed();
    let take =
        json!({ "do": "take", "bucket": "api", "key": "customer-1", "n": 1, "rate": [1, 3_600_000, 20] });
    let allowed = std::thread::scope(|scope| {
        let many = || (0..10).filter(|_| told(&scene, take.clone())["allowed"].is_u64()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(many)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(allowed, 20);
    assert!(told(&scene, take)["retry_after_ms"].as_u64().unwrap() > 3_000_000);
    let other =
        json!({ "do": "take", "bucket": "api", "key": "customer-2", "n": 1, "rate": [1, 3_600_000, 20] });
    assert_eq!(told(&scene, other), json!({ "allowed": 19 }));
}
