//! When the queue has no room.

use std::fs;

use beamline_tests::{
    beamline::Options,
    client::Request,
    scene::{PATIENCE, Scene, TENANT},
};
use serde_json::json;

use crate::{asking, count, queue, queueing_with, wait, wait_state};

/// A node that holds ten records at most, eight of them for requests that did not ask to be queued.
fn small() -> (tempfile::TempDir, Scene) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    fs::write(&config, "[queue]\nmax_records = 10\n").unwrap();
    let arguments = vec!["--config".into(), config.display().to_string()];
    let policy = json!({ "mode": "on-failure", "ordering_key": { "header": "x-key" } });
    (folder, queueing_with(Options { arguments, ..Options::default() }, policy))
}

#[test]
fn a_full_queue_refuses_with_a_word_on_when_to_come_back_and_evicts_nothing() {
    let (_folder, mut scene) = small();
    scene.origin.stop();
    let mut locations: Vec<_> = (0..8).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    let unasked = scene.send(Request::post("/in", "one too many")).unwrap();
    locations.extend((8..10).map(|n| queue(&scene, asking(Request::post("/in", format!("{n}"))))));
    let asked = scene.send(asking(Request::new("PUT", "/in").body("one too many"))).unwrap();
    for refused in [unasked, asked] {
        assert_eq!(refused.status, 503);
        assert!(refused.header("retry-after").is_some());
        assert_eq!(refused.problem(), "queue-full", "{}", refused.text());
    }
    assert_eq!(count(&scene, "kept"), 10);

    scene.origin.start_again().unwrap();
    locations.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    let mut bodies: Vec<_> = scene.origin.requests().iter().map(|r| r.body[0] - b'0').collect();
    bodies.sort_unstable();
    assert_eq!(bodies, (0..10).collect::<Vec<_>>());
}

#[test]
fn a_full_queue_is_only_told_to_whom_it_would_have_taken() {
    let (_folder, mut scene) = small();
    scene.origin.stop();
    (0..10).for_each(|n| drop(queue(&scene, asking(Request::post("/status/429", format!("{n}"))))));
    scene.origin.start_again().unwrap();
    let state = || scene.admin.show(TENANT).unwrap()["upstreams"]["origin"]["state"].clone();
    wait(PATIENCE, state, |state| state == "ready");
    let told = |request| {
        let answer = scene.send(request).unwrap();
        (answer.status, answer.problem(), answer.header("retry-after").is_some())
    };
    assert_eq!(told(Request::new("PUT", "/reset").body("twice")), (503, "queue-full".into(), true));
    assert_eq!(told(Request::post("/reset", "not twice")), (502, "upstream-reset".into(), false));
    assert_eq!(told(Request::get("/reset")), (502, "upstream-reset".into(), false));
    assert_eq!(told(Request::post("/in", "live")).0, 200, "who needs no room is served");
}

#[test]
fn where_there_is_room_again_requests_are_queued_again() {
    let (_folder, mut scene) = small();
    scene.origin.stop();
    let locations: Vec<_> = (0..8).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    assert_eq!(scene.send(Request::post("/in", "full")).unwrap().status, 503);
    scene.origin.start_again().unwrap();
    locations.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    scene.origin.stop();
    queue(&scene, Request::post("/in", "again"));
}

#[test]
fn a_full_queue_is_no_way_past_the_backlog_of_a_key() {
    let (_folder, scene) = small();
    // The first of its key fails of itself; the others wait behind it. The origin is up all the time.
    scene.apply(|manifest| {
        manifest["upstreams"]["origin"]["queue"] = json!({
            "mode": "on-failure", "ordering_key": { "header": "x-key" }, "origin_honours_idempotency_key": true,
        });
    })
    .unwrap();
    let keyed = |request: Request| asking(request.header("X-Key", "k"));
    queue(&scene, keyed(Request::new("PUT", "/reset").body("0")));
    (1..10).for_each(|n| drop(queue(&scene, keyed(Request::post("/in", format!("{n}"))))));
    let late = scene.send(keyed(Request::post("/in", "overtakes"))).unwrap();
    assert!(scene.origin.requests().iter().all(|r| r.body != b"overtakes"), "it must not pass them");
    assert_eq!((late.status, late.problem().as_str()), (503, "queue-full"));
    assert!(late.header("retry-after").is_some());
    let other = scene.send(Request::post("/in", "no key").header("X-Key", "other")).unwrap();
    assert_eq!(other.status, 200, "who waits for nobody needs no room");
}
