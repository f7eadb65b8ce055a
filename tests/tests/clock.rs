//! A wall clock that jumps under a running node: nothing expires because of it, and what was accepted goes in its order.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    thread,
    time::{Duration, Instant},
};

use beamline_tests::{
    client::{Request, Response},
    powercut::{Entries, PowerCut},
    scene::{PATIENCE, Scene},
};
use serde_json::{Value, json};

const HOUR: i64 = 3600;

/// A node whose clock can be set, with a tenant whose requests may wait for an hour, in order.
fn node_with_a_clock() -> (Scene, PowerCut) {
    let mut scene = Scene::start().unwrap();
    let queue = json!({ "mode": "on-failure", "expiry": "1h", "ordering_key": { "header": "x-key" } });
    scene.apply(|manifest| manifest["upstreams"]["origin"]["queue"] = queue).unwrap();
    scene.node.kill_nine().unwrap();
    let clock = PowerCut::over(&scene.node.data_dir(), Entries::ByDirectory).unwrap();
    scene.node.options_mut().environment = clock.environment();
    scene.node.launch().unwrap();
    scene.origin.stop();
    (scene, clock)
}

fn queue(scene: &Scene, body: &str) -> String {
    let request = Request::new("PUT", "/in").body(body).header("x-key", "k");
    let answer: Response = scene.send(request).unwrap().expect(202).unwrap();
    answer.header("location").unwrap().to_owned()
}

fn receipt(scene: &Scene, location: &str) -> Value {
    scene.send(Request::get(location)).unwrap().json().unwrap()
}

fn all_arrive(scene: &Scene, receipts: &[String], bodies: &[&str]) {
    let until = Instant::now() + PATIENCE;
    for location in receipts {
        loop {
            let seen = receipt(scene, location);
            if seen["state"] == "delivered" {
                break;
            }
            assert!(seen["state"] != "dead" && Instant::now() < until, "{seen}");
            thread::sleep(Duration::from_millis(20));
        }
    }
    let arrived: Vec<_> = scene.origin.requests().iter().map(|r| r.body.clone()).collect();
    assert_eq!(arrived, bodies.iter().map(|b| b.as_bytes().to_vec()).collect::<Vec<_>>());
}

/// Waits until delivery has had to do with the new time: another attempt was made.
fn another_attempt(scene: &Scene, location: &str) {
    let before = receipt(scene, location)["attempts"].as_u64().unwrap();
    let until = Instant::now() + PATIENCE;
    while receipt(scene, location)["attempts"].as_u64().unwrap() <= before + 1 {
        assert!(Instant::now() < until, "no attempt since the clock jumped: {}", receipt(scene, location));
        thread::sleep(Duration::from_millis(20));
    }
}

/// Within the 10 minutes for which a jump is mistrusted. That it is believed afterwards is shown where time is simulated:
/// `a_clock_that_jumps_ahead_expires_nothing_for_a_while` in the queue's simulation.
#[test]
fn a_clock_that_jumps_ahead_past_an_expiry_ends_nothing_at_once() {
    let (mut scene, clock) = node_with_a_clock();
    let before = queue(&scene, "before");
    clock.clock(3 * HOUR).unwrap();
    another_attempt(&scene, &before);
    let after = queue(&scene, "after");
    assert_ne!(receipt(&scene, &before)["state"], "dead");
    scene.origin.start_again().unwrap();
    all_arrive(&scene, &[before, after], &["before", "after"]);
}

#[test]
fn a_clock_that_jumps_back_re_orders_nothing_and_holds_nothing_up() {
    let (mut scene, clock) = node_with_a_clock();
    let first = queue(&scene, "first");
    clock.clock(-3 * HOUR).unwrap();
    let second = queue(&scene, "second");
    another_attempt(&scene, &first);
    clock.clock(-5 * HOUR).unwrap();
    let third = queue(&scene, "third");
    // Also where the node is started in that time.
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    let fourth = queue(&scene, "fourth");
    scene.origin.start_again().unwrap();
    all_arrive(&scene, &[first, second, third, fourth], &["first", "second", "third", "fourth"]);
}
