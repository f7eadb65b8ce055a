//! A client's `Idempotency-Key`: one request, however often it is sent.

use std::{
    thread,
    time::{Duration, Instant},
};

use beamline_tests::{
    beamline::Options,
    client::{Request, Response},
    scene::{HOST, PATIENCE, Scene},
};
use serde_json::{Value, json};

use crate::{
    asking, configured, count, files_with, location, nothing_is_queued, outage, queue, queueing, receipt,
    wait, wait_state,
};

/// A POST under this key.
fn keyed(key: &str, body: &str) -> Request {
    Request::post("/in", body).header("Idempotency-Key", key)
}

#[track_caller]
fn is_reused(answer: &Response) {
    assert_eq!((answer.status, answer.problem().as_str()), (422, "idempotency-key-reused"));
}

#[test]
fn the_same_request_gets_the_same_receipt_and_is_delivered_once() {
    let mut scene = outage();
    let first = scene.send(keyed("order-7", "body")).unwrap();
    assert_eq!(first.header("proxy-status"), Some("beamline; details=\"queued\""));
    let location = location(&first);
    let again = scene.send(asking(keyed("order-7", "body").chunked())).unwrap();
    assert_eq!((again.status, again.header("location")), (202, Some(&*location)));
    let said = again.header("proxy-status").unwrap();
    assert!(said.contains("accepted before"), "{said}");
    assert_eq!(again.header("preference-applied"), Some("respond-async"));
    assert_eq!(again.header("cache-control"), Some("no-store"));
    assert_eq!(count(&scene, "accepted"), 1);
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivered");
    // Its origin is well, and the request is not sent past what it has already.
    assert_eq!(queue(&scene, keyed("order-7", "body")), location);
    assert_eq!(scene.origin.count(), 1);
    assert_eq!(receipt(&scene, &location)["state"], "delivered");
}

#[test]
fn while_its_record_is_open_a_request_is_not_sent_past_it() {
    let mut scene = outage();
    let location = queue(&scene, keyed("order-7", "body"));
    let pause = "/v1/tenants/acme/queue/upstreams/origin/pause";
    scene.admin.post(pause, &json!({})).unwrap();
    scene.origin.start_again().unwrap();
    // The breaker lets requests pass again.
    wait(PATIENCE, || scene.send(Request::get("/echo")).unwrap().status, |status| *status == 200);
    let seen = scene.origin.count();
    assert_eq!(queue(&scene, keyed("order-7", "body")), location);
    is_reused(&scene.send(keyed("order-7", "another body")).unwrap());
    assert_eq!(scene.origin.count(), seen);
    assert_eq!(scene.send(keyed("order-8", "body")).unwrap().status, 200, "other keys are no matter");
}

#[test]
fn another_request_under_the_same_key_is_refused() {
    let mut scene = outage();
    queue(&scene, Request::post("/in?a=1", "body").header("Idempotency-Key", "k"));
    let retyped = Request::post("/in?a=1", "body").header("Content-Type", "text/x");
    for request in [Request::post("/in?a=2", "body"), Request::post("/in?a=1", "Body"), retyped] {
        is_reused(&scene.send(request.header("Idempotency-Key", "k")).unwrap());
    }
    // Another use of the key: another method or path.
    for request in [Request::new("PUT", "/in?a=1").body("body"), Request::post("/other?a=1", "body")] {
        queue(&scene, request.header("Idempotency-Key", "k"));
    }
    assert_eq!(count(&scene, "accepted"), 3);
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || count(&scene, "open"), |open| *open == 0);
    is_reused(&scene.send(Request::post("/in?a=2", "body").header("Idempotency-Key", "k")).unwrap());
}

#[test]
fn one_callers_key_is_not_anothers() {
    let mut scene = queueing(json!({ "mode": "on-failure", "credentials": "strip" }));
    scene.origin.stop();
    let by = |user: &str| keyed("k", "body").header("Authorization", &format!("Bearer {user}"));
    let [one, other] = ["one", "other"].map(|user| queue(&scene, by(user)));
    assert_ne!(one, other);
    assert_eq!(queue(&scene, by("one")), one);
    // A filter that takes credentials away takes nothing from this.
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|manifest| {
            let mut probe = probe.clone();
            probe["config"] = json!({ "do": "set-headers", "headers": { "authorization": null } });
            manifest["filters"] = json!([probe]);
            manifest["upstreams"]["origin"]["queue"] =
                json!({ "mode": "on-failure", "credentials": "strip" });
        })
        .unwrap();
    assert_eq!(queue(&scene, by("one")), one);
    assert_eq!(queue(&scene, by("other")), other);
    assert_eq!(count(&scene, "accepted"), 2);
    for secret in ["Bearer one", "Bearer other"] {
        assert_eq!(files_with(&scene.node.data_dir(), secret), [] as [String; 0]);
    }
}

#[test]
fn a_key_of_a_request_under_way_is_in_use_on_every_worker() {
    let scene = queueing(json!({ "mode": "on-failure" }));
    scene.origin.delay_all(Duration::from_secs(5));
    let (address, began) = (scene.node.address(), Instant::now());
    let first = thread::spawn(move || keyed("k", "body").host(HOST).send(address).unwrap());
    scene.origin.wait_for_count(1, PATIENCE).unwrap();
    // Connections go to one worker or the other.
    for _ in 0..8 {
        let answer = scene.send(keyed("k", "body")).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (409, "idempotency-key-in-use"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert!(began.elapsed() < Duration::from_secs(5), "the first was under way");
    scene.origin.delay_all(Duration::ZERO);
    assert_eq!(first.join().unwrap().status, 200);
    assert_eq!(scene.origin.count(), 1);
    // What succeeded is the origin's affair from here on.
    assert_eq!(scene.send(keyed("k", "another")).unwrap().status, 200);
    nothing_is_queued(&scene);
}

#[test]
fn a_filter_that_says_enqueue_is_held_to_the_key_too() {
    let scene = Scene::with(Options::default()).unwrap();
    let probe = scene.filter("probe").unwrap();
    let with = |queue: Value| {
        scene
            .apply(|manifest| {
                manifest["filters"] = json!([probe]);
                manifest["upstreams"]["origin"]["queue"] = queue;
            })
            .unwrap();
    };
    with(json!({ "mode": "prefer" }));
    let enqueue = |body| keyed("k", body).header("x-probe", r#"{"do":"enqueue"}"#);
    let location = queue(&scene, enqueue("body"));
    assert_eq!(queue(&scene, enqueue("body")), location);
    is_reused(&scene.send(enqueue("another")).unwrap());
    // What this revision would not store any more, and what it would never, is known all the same.
    with(json!({ "mode": "on-failure", "max_body": "2B" }));
    assert_eq!(queue(&scene, enqueue("body")), location);
    with(json!({ "mode": "never" }));
    assert_eq!(queue(&scene, keyed("k", "body")), location);
    wait_state(&scene, &location, "delivered");
    assert_eq!((scene.origin.count(), count(&scene, "accepted")), (1, 1));
}

#[test]
fn many_at_once_make_one_record() {
    let mut scene = outage();
    let address = scene.node.address();
    let send = || loop {
        let answer = keyed("k", &"x".repeat(40_000)).host(HOST).send(address).unwrap();
        if answer.status != 409 {
            break location(&answer);
        }
        thread::sleep(Duration::from_millis(5));
    };
    let locations: Vec<_> = thread::scope(|scope| {
        let senders: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert!(locations.iter().all(|location| *location == locations[0]), "{locations:?}");
    scene.origin.start_again().unwrap();
    wait_state(&scene, &locations[0], "delivered");
    assert_eq!((scene.origin.count(), count(&scene, "accepted")), (1, 1));
}

#[test]
fn a_key_is_free_again_when_its_request_may_be_sent_again() {
    let mut scene = outage();
    let refused = || Request::post("/status/400", "body").header("Idempotency-Key", "k");
    let first = queue(&scene, refused());
    scene.origin.start_again().unwrap();
    assert_eq!(wait_state(&scene, &first, "dead")["reason"], "rejected");
    assert_eq!(scene.send(refused()).unwrap().status, 400, "it is sent again, and its client sees why");
    // Of one that may have been taken, a person has to find out.
    scene.origin.stop();
    let unsure = || Request::post("/reset", "body").header("Idempotency-Key", "k");
    let second = queue(&scene, unsure());
    scene.origin.start_again().unwrap();
    assert_eq!(wait_state(&scene, &second, "dead")["reason"], "indeterminate");
    let seen = scene.origin.count();
    assert_eq!(queue(&scene, unsure()), second);
    assert_eq!(scene.origin.count(), seen);
}

#[test]
fn a_key_is_remembered_as_long_as_its_receipt() {
    let mut scene = configured("[queue]\nreceipt_retention = \"2s\"\n", json!({ "mode": "on-failure" }));
    scene.origin.stop();
    let location = queue(&scene, keyed("k", "body"));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivered");
    let again = || scene.send(keyed("k", "another")).unwrap().status;
    assert_eq!(again(), 422);
    wait(PATIENCE, again, |status| *status == 200);
    assert_eq!(scene.send(Request::get(&location)).unwrap().status, 404);
}

#[test]
fn what_is_no_key_is_refused_and_an_empty_one_is_none() {
    let scene = outage();
    let long = "k".repeat(256);
    for request in [keyed(&long, "body"), keyed("k", "body").header("Idempotency-Key", "l")] {
        let answer = scene.send(request).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"));
    }
    nothing_is_queued(&scene);
    let [one, other] = [keyed("", "body"), keyed("", "body")].map(|request| queue(&scene, request));
    assert_ne!(one, other);
    // Where nothing is ever queued, keys are the origin's affair alone.
    let scene = Scene::with(Options::default()).unwrap();
    assert_eq!(scene.send(keyed(&long, "body")).unwrap().status, 200);
}

#[test]
fn who_lost_the_202_in_a_crash_gets_the_same_receipt() {
    // Safe to repeat: a probe of the origin that is down may be under way at any kill.
    let mut scene = queueing(json!({ "mode": "on-failure", "origin_honours_idempotency_key": true }));
    scene.origin.stop();
    let known = queue(&scene, keyed("known", "body"));
    // And one whose answer nobody saw: the node is killed while its client waits for it.
    let address = scene.node.address();
    let mut delivered = vec![(known.clone(), keyed("known", "body"))];
    for round in 0..6_u64 {
        let request = keyed(&format!("round-{round}"), &format!("body {round}"));
        let sent = request.clone().host(HOST);
        let client = thread::spawn(move || sent.send(address).ok());
        thread::sleep(Duration::from_millis(round * 3));
        scene.node.kill_nine().unwrap();
        let seen = client.join().unwrap().map(|answer| location(&answer));
        scene.node.launch().unwrap();
        let location = queue(&scene, request.clone());
        if let Some(seen) = seen {
            assert_eq!(seen, location);
        }
        delivered.push((location, request));
    }
    assert_eq!(queue(&scene, keyed("known", "body")), known);
    scene.origin.start_again().unwrap();
    for (location, request) in &delivered {
        wait_state(&scene, location, "delivered");
        assert_eq!(queue(&scene, request.clone()), *location);
    }
    assert_eq!(scene.origin.count(), delivered.len() as u64, "each once");
}

#[test]
fn the_secret_of_a_receipt_that_can_be_made_again_is_nowhere_on_the_disk() {
    let scene = outage();
    let location = queue(&scene, keyed("a-clients-own-key", "body"));
    let secret = location.rsplit_once('.').unwrap().1;
    assert_eq!(files_with(scene.node.folder(), secret), [] as [String; 0]);
}
