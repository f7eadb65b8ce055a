//! Degraded mode, sentence by sentence of `docs/guide/degraded-mode.md`: what is queued and what is not, what receipts
//! tell, and how deliveries are made.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod crash;
mod delivery;
mod export;
mod hands;
mod keys;
mod order;
mod receipts;
mod responses;
mod room;
mod storing;

use std::fs;

use beamline_tests::{
    beamline::Options,
    canary::files_with,
    client::{Request, Response},
    http1::Headers,
    origin::Recorded,
    scene::{PATIENCE, Scene},
    wait::wait,
};
use serde_json::{Value, json};

/// A scene whose upstream queues as this says.
fn queueing(queue: Value) -> Scene {
    queueing_with(Options::default(), queue)
}

fn queueing_with(options: Options, queue: Value) -> Scene {
    let scene = Scene::with(options).unwrap();
    scene.apply(|manifest| manifest["upstreams"]["origin"]["queue"] = queue).unwrap();
    scene
}

/// A scene on a node with this configuration file, whose upstream queues as this says.
fn configured(node: &str, queue: Value) -> Scene {
    queueing_with(Options { configuration: Some(node.to_owned()), ..Options::default() }, queue)
}

/// A scene that queues on failure, whose origin is down.
fn outage() -> Scene {
    let mut scene = queueing(json!({ "mode": "on-failure" }));
    scene.origin.stop();
    scene
}

/// Asks to be queued.
fn asking(request: Request) -> Request {
    request.header("Prefer", "respond-async")
}

/// Where the receipt of a `202` is.
#[track_caller]
fn location(answer: &Response) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").unwrap().to_owned()
}

/// Sends a request that is to be queued; gives where its receipt is.
#[track_caller]
fn queue(scene: &Scene, request: Request) -> String {
    location(&scene.send(request).unwrap())
}

/// What a receipt tells.
#[track_caller]
fn receipt(scene: &Scene, location: &str) -> Value {
    let answer = scene.send(Request::get(location)).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().unwrap()
}

/// Waits until a receipt tells this state, and returns what it tells.
#[track_caller]
fn wait_state(scene: &Scene, location: &str, state: &str) -> Value {
    wait(PATIENCE, || receipt(scene, location), |told| told["state"] == state)
}

/// A number that the node tells of its queue, such as `kept`.
fn count(scene: &Scene, name: &str) -> u64 {
    scene.admin.get("/v1/status").unwrap()["queue"][name].as_u64().unwrap()
}

/// Nothing was stored: no record, no room held, no body file.
#[track_caller]
fn nothing_is_queued(scene: &Scene) {
    for name in ["kept", "accepted"] {
        assert_eq!(count(scene, name), 0, "{name}");
    }
    wait(PATIENCE, || count(scene, "reserved_bytes"), |bytes| *bytes == 0);
    wait(PATIENCE, || body_files(scene), |files| *files == 0);
}

/// Bodies in files.
fn body_files(scene: &Scene) -> usize {
    fs::read_dir(scene.node.data_dir().join("queue/bodies")).unwrap().count()
}

/// The requests that came from the queue.
fn deliveries(log: &[std::sync::Arc<Recorded>]) -> Vec<&Recorded> {
    log.iter().map(|request| &**request).filter(|request| attempt(&request.headers).is_some()).collect()
}

/// Which delivery it is; none of a request that came from its client.
fn attempt(headers: &Headers) -> Option<u64> {
    headers.get("beamline-attempt")?.parse().ok()
}
