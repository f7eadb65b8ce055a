//! Ordering keys: one at a time, in the order of commits, and no key waits for another.

use std::time::Duration;

use beamline_tests::{
    client::Request,
    scene::{PATIENCE, Scene},
};
use serde_json::{Value, json};

use crate::{asking, attempt, deliveries, queue, queueing, receipt, wait, wait_state};

fn policy() -> Value {
    json!({ "mode": "on-failure", "ordering_key": { "header": "x-key" }, "max_in_flight": 16 })
}

fn keyed(key: &str, request: Request) -> Request {
    request.header("X-Key", key)
}

/// The bodies that came from the queue and begin so, in order.
fn delivered(scene: &Scene, prefix: &str) -> Vec<String> {
    let log = scene.origin.requests();
    let bodies = deliveries(&log).into_iter().map(|r| String::from_utf8(r.body.clone()).unwrap());
    bodies.filter(|body| body.starts_with(prefix)).collect()
}

#[test]
fn records_of_one_key_arrive_one_at_a_time_in_the_order_of_their_commits() {
    let mut scene = queueing(policy());
    scene.origin.stop();
    let keys = ["a", "b", "c"];
    let locations: Vec<_> = (0..8)
        .flat_map(|n| keys.map(|key| queue(&scene, keyed(key, Request::post("/in", format!("{key}{n}"))))))
        .collect();
    let delay = Duration::from_millis(60);
    scene.origin.delay_all(delay);
    scene.origin.start_again().unwrap();
    locations.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    for key in keys {
        assert_eq!(delivered(&scene, key), (0..8).map(|n| format!("{key}{n}")).collect::<Vec<_>>());
        let log = scene.origin.requests();
        let times: Vec<_> = log.iter().filter(|r| r.body[0] == key.as_bytes()[0]).map(|r| r.at).collect();
        let gaps = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap());
        let shortest = gaps.min().unwrap();
        assert!(shortest >= delay, "two of one key were under way at once: {shortest:?} apart");
    }
    let log = scene.origin.requests();
    let beside = log.windows(2).filter(|pair| {
        pair[0].body[0] != pair[1].body[0]
            && pair[1].at.duration_since(pair[0].at).unwrap_or_default() < delay
    });
    assert!(beside.count() > 0, "keys don't wait for each other");
}

#[test]
fn a_key_that_fails_blocks_only_itself() {
    let scene = queueing(policy());
    let stuck = queue(&scene, keyed("a", Request::new("PUT", "/reset").body("a0")));
    let behind = queue(&scene, keyed("a", Request::post("/in", "a1")));
    for n in 0..5 {
        let live = scene.send(keyed("b", Request::post("/in", format!("b{n}")))).unwrap();
        assert_eq!(live.status, 200, "another key is proxied as ever: {}", live.text());
        assert_eq!(scene.send(Request::post("/in", "no key")).unwrap().status, 200);
    }
    wait(PATIENCE, || receipt(&scene, &stuck), |told| told["attempts"].as_u64() >= Some(2));
    let told = receipt(&scene, &behind);
    assert_eq!((&told["state"], &told["attempts"]), (&json!("queued"), &json!(0)), "it was not even tried");
    scene.origin.answer_all(Some(200));
    wait_state(&scene, &behind, "delivered");
    assert_eq!(receipt(&scene, &stuck)["state"], "delivered");
    let order = delivered(&scene, "a");
    assert_eq!(order.last().map(String::as_str), Some("a1"));
    assert!(order.iter().rev().skip(1).all(|body| body == "a0"), "{order:?}");
}

#[test]
fn a_record_that_is_dead_lets_its_key_go_on() {
    let mut scene = queueing(policy());
    scene.origin.stop();
    let refused = queue(&scene, keyed("a", Request::post("/status/422", "a0")));
    let broken = queue(&scene, keyed("a", Request::post("/reset", "a1")));
    let next = queue(&scene, keyed("a", Request::post("/in", "a2")));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &next, "delivered");
    assert_eq!(receipt(&scene, &refused)["reason"], "rejected");
    assert_eq!(receipt(&scene, &broken)["reason"], "indeterminate");
    assert_eq!(delivered(&scene, "a"), ["a0", "a1", "a2"]);
}

/// Runs `beamline queue …`; it must do as it is told.
#[track_caller]
fn cli(scene: &Scene, line: &str) -> String {
    crate::hands::cli(scene, line)
}

#[test]
fn a_record_that_is_dead_pauses_its_key_where_the_manifest_says_so() {
    let mut policy = policy();
    policy["on_dead"] = json!("pause-key");
    let mut scene = queueing(policy);
    scene.origin.stop();
    let refused = queue(&scene, keyed("a", Request::post("/status/422", "a0")));
    let next = queue(&scene, keyed("a", Request::post("/in", "a1")));
    let other = queue(&scene, keyed("b", Request::post("/in", "b0")));
    scene.origin.start_again().unwrap();
    let told = wait_state(&scene, &refused, "dead");
    assert_eq!((&told["reason"], &told["key_paused"]), (&json!("rejected"), &json!(true)));
    wait_state(&scene, &other, "delivered");
    // A crash does not end the pause, and a later request goes behind it though the origin is up.
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    let later = queue(&scene, keyed("a", Request::post("/in", "a2")));
    assert_eq!(scene.send(keyed("b", Request::post("/in", "b1"))).unwrap().status, 200);
    for waits in [&next, &later] {
        let told = receipt(&scene, waits);
        assert_eq!(
            (&told["state"], &told["attempts"], &told["key_paused"]),
            (&json!("queued"), &json!(0), &json!(true))
        );
    }
    let status = cli(&scene, "queue status");
    assert!(status.contains("on, 1 key paused"), "{status}");
    let listed = cli(&scene, "queue list --tenant acme --key a");
    assert_eq!(listed.matches("a (paused)").count(), 3, "{listed}");

    // Tried again it is the first of its key, and refused once more it pauses it once more.
    let id = told["id"].as_str().unwrap();
    cli(&scene, &format!("queue retry --tenant acme {id}"));
    let attempts = told["attempts"].as_u64();
    let refused_again = |told: &Value| told["attempts"].as_u64() > attempts && told["state"] == "dead";
    wait(PATIENCE, || receipt(&scene, &refused), refused_again);
    assert_eq!(delivered(&scene, "a"), ["a0", "a0"]);
    let said = cli(&scene, "queue resume --tenant acme origin --key a");
    assert_eq!(
        said,
        "ordering key a of upstream origin of tenant acme is resumed: 1 dead letter paused it\n"
    );
    wait_state(&scene, &later, "delivered");
    assert_eq!(delivered(&scene, "a"), ["a0", "a0", "a1", "a2"]);
    assert_eq!(receipt(&scene, &refused)["state"], "dead");
    assert_eq!(
        scene.send(keyed("a", Request::post("/in", "a3"))).unwrap().status,
        200,
        "nothing waits any more"
    );
    let audit = cli(&scene, "audit --tenant acme");
    assert!(audit.contains("queue.resume-key  acme    count=1 of=key a upstream=origin"), "{audit}");
}

#[test]
fn a_paused_key_goes_on_when_its_dead_letter_is_discarded() {
    let mut policy = policy();
    policy["on_dead"] = json!("pause-key");
    policy["expiry"] = json!("2s");
    let mut scene = queueing(policy.clone());
    scene.origin.stop();
    let expires = queue(&scene, keyed("a", Request::post("/in", "a0")));
    let told = wait_state(&scene, &expires, "dead");
    assert_eq!((&told["reason"], &told["key_paused"]), (&json!("expired"), &json!(true)));
    policy["expiry"] = json!("1h");
    scene.apply(|manifest| manifest["upstreams"]["origin"]["queue"] = policy).unwrap();
    let next = queue(&scene, keyed("a", Request::post("/in", "a1")));
    scene.origin.start_again().unwrap();
    assert_eq!(receipt(&scene, &next)["key_paused"], true);
    cli(&scene, &format!("queue discard --tenant acme {}", told["id"].as_str().unwrap()));
    wait_state(&scene, &next, "delivered");
    assert_eq!(delivered(&scene, "a"), ["a1"]);
}

#[test]
fn a_record_blocks_its_key_for_no_longer_than_the_manifest_says() {
    let mut policy = policy();
    policy["key_block_max"] = json!("1s");
    let mut scene = queueing(policy);
    scene.origin.stop();
    let stuck = queue(&scene, keyed("a", Request::new("PUT", "/reset").body("a0")));
    let behind = queue(&scene, keyed("a", Request::post("/in", "a1")));
    let alone = queue(&scene, Request::new("PUT", "/reset").body("no key"));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &behind, "delivered");
    assert_eq!(receipt(&scene, &stuck)["reason"], "exhausted");
    assert_ne!(receipt(&scene, &alone)["state"], "dead", "nobody waits for one without a key");
}

#[test]
fn a_later_request_of_a_key_with_a_backlog_goes_behind_it() {
    let scene = queueing(policy());
    queue(&scene, keyed("a", Request::new("PUT", "/reset").body("a0")));
    // The origin is up and would take it; but what waits was first.
    let later: Vec<_> =
        (1..4).map(|n| queue(&scene, keyed("a", Request::post("/in", format!("a{n}"))))).collect();
    let get = scene.send(keyed("a", Request::get("/in"))).unwrap();
    assert_eq!(get.status, 200, "a GET may read before queued writes have arrived");
    let log = scene.origin.requests();
    let live: Vec<_> = log.iter().filter(|r| attempt(&r.headers).is_none()).map(|r| &r.target).collect();
    assert_eq!(live, ["/reset", "/in"], "the first, and the GET");
    scene.origin.answer_all(Some(200));
    later.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    let order = delivered(&scene, "a");
    assert_eq!(order[order.len() - 3..], ["a1", "a2", "a3"]);
    let free = scene.send(keyed("a", Request::post("/in", "a4"))).unwrap();
    assert_eq!(free.status, 200, "when nothing waits, requests are proxied again");
}

#[test]
fn a_backlog_holds_its_key_also_after_a_crash() {
    let mut scene = queueing(policy());
    scene.origin.stop();
    let first = queue(&scene, keyed("a", Request::new("PUT", "/reset").body("a0")));
    scene.node.kill_nine().unwrap();
    scene.origin.start_again().unwrap();
    scene.node.launch().unwrap();
    let second = queue(&scene, keyed("a", Request::post("/in", "a1")));
    assert_eq!(scene.send(keyed("b", Request::post("/in", "b0"))).unwrap().status, 200);
    scene.origin.answer_all(Some(200));
    wait_state(&scene, &second, "delivered");
    wait_state(&scene, &first, "delivered");
    assert_eq!(delivered(&scene, "a").last().map(String::as_str), Some("a1"));
}

#[test]
fn what_cannot_be_queued_does_not_pass_the_backlog_of_its_key() {
    let mut policy = policy();
    policy["max_body"] = json!("1KiB");
    let scene = queueing(policy);
    queue(&scene, keyed("a", Request::new("PUT", "/reset").body("a0")));
    for (what, request) in [
        ("too large", Request::post("/in", vec![b'x'; 2000])),
        ("too large, in chunks", Request::post("/in", vec![b'x'; 2000]).chunked()),
        ("credentials", Request::post("/in", "body").header("Cookie", "a=b")),
    ] {
        let answer = scene.send(keyed("a", request)).unwrap();
        let passed = scene.origin.requests().iter().any(|r| r.target == "/in");
        assert!(!passed, "{what}: it passed what was accepted before it");
        assert_eq!((answer.status, answer.problem().as_str()), (503, "not-queueable"), "{what}");
    }
}

#[test]
fn who_did_not_ask_goes_behind_the_backlog_of_a_key_too() {
    let mut policy = policy();
    policy["mode"] = json!("prefer");
    let scene = queueing(policy);
    queue(&scene, asking(keyed("a", Request::new("PUT", "/reset").body("a0"))));
    let later = scene.send(keyed("a", Request::post("/in", "a1"))).unwrap();
    assert!(scene.origin.requests().iter().all(|r| r.body != b"a1"), "it passed what was accepted before it");
    assert_eq!(later.status, 202, "{}", later.text());
}
