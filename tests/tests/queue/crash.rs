//! `kill -9` in the middle of a delivery.

use std::time::Duration;

use beamline_tests::{
    admin::manifest,
    beamline::Options,
    client::Request,
    origin::Origin,
    scene::{PATIENCE, Scene},
};
use serde_json::{Value, json};

use crate::{attempt, location, wait};

/// A node with a tenant for each of these, all in front of one origin.
fn tenants(names: &[&str]) -> Scene {
    let scene = Scene::with(Options::default()).unwrap();
    for name in names {
        let host = format!("{name}.test");
        scene.admin.create_tenant(name, &[&host], &["127.0.0.0/8"]).unwrap();
        let mut manifest = manifest(&host, scene.origin.address());
        manifest["upstreams"]["origin"]["queue"] =
            json!({ "mode": "on-failure", "origin_honours_idempotency_key": true });
        scene.admin.apply(name, &manifest).unwrap();
    }
    scene
}

fn told(scene: &Scene, name: &str, location: &str) -> Value {
    let asked = Request::get(location).host(&format!("{name}.test")).send(scene.node.address()).unwrap();
    asked.json().unwrap()
}

fn arrivals(origin: &Origin, body: &str) -> Vec<Option<u64>> {
    let log = origin.requests();
    log.iter().filter(|r| r.body == body.as_bytes()).map(|r| attempt(&r.headers)).collect()
}

#[test]
fn after_a_crash_in_mid_delivery_what_is_safe_is_tried_again_and_what_is_not_is_indeterminate() {
    // One tenant each, so that all of them are in flight at once.
    let names = ["post", "post-key", "put"];
    let mut scene = tenants(&names);
    scene.origin.stop();
    let requests = [
        Request::post("/in", "post"),
        Request::post("/in", "post-key").header("Idempotency-Key", "order-7"),
        Request::new("PUT", "/in").body("put"),
    ];
    let locations: Vec<_> = names
        .iter()
        .zip(requests)
        .map(|(name, request)| {
            location(&request.host(&format!("{name}.test")).send(scene.node.address()).unwrap())
        })
        .collect();
    scene.origin.delay_all(Duration::from_secs(60));
    scene.origin.start_again().unwrap();
    scene.origin.wait_for_count(3, PATIENCE).unwrap();
    for (name, location) in names.iter().zip(&locations) {
        assert_eq!(told(&scene, name, location)["state"], "delivering");
    }
    scene.node.kill_nine().unwrap();
    scene.origin.stop();
    scene.origin.delay_all(Duration::ZERO);
    scene.origin.start_again().unwrap();
    scene.node.launch().unwrap();

    let dead = told(&scene, "post", &locations[0]);
    assert_eq!((&dead["state"], &dead["reason"]), (&json!("dead"), &json!("indeterminate")), "{dead}");
    assert!(dead["last_error"].is_string(), "it says why: {dead}");
    for (name, location) in names.iter().zip(&locations).skip(1) {
        let seen = wait(PATIENCE, || told(&scene, name, location), |told| told["state"] == "delivered");
        assert_eq!(seen["attempts"].as_u64(), arrivals(&scene.origin, name).last().copied().flatten());
        let attempts = arrivals(&scene.origin, name);
        assert_eq!(attempts.len(), 2, "{name}");
        assert!(attempts[0] < attempts[1], "{name}: each attempt has its own number: {attempts:?}");
    }
    assert_eq!(arrivals(&scene.origin, "post").len(), 1, "what is not safe to repeat came once");
}

#[test]
fn crashes_while_records_wait_cost_nothing() {
    let mut scene = tenants(&["put"]);
    scene.origin.stop();
    // Safe to repeat: a probe of the origin that is down may be under way at any moment.
    let send = |body: &str| {
        let request = Request::new("PUT", "/in").host("put.test").body(body);
        location(&request.send(scene.node.address()).unwrap())
    };
    let large = "x".repeat(200_000);
    let locations = [send("small"), send(&large)];
    for _ in 0..3 {
        scene.node.kill_nine().unwrap();
        scene.node.launch().unwrap();
        for location in &locations {
            let state = told(&scene, "put", location)["state"].clone();
            assert!(state == "queued" || state == "delivering", "{state}");
        }
    }
    scene.origin.start_again().unwrap();
    for (location, body) in locations.iter().zip(["small", &large]) {
        wait(PATIENCE, || told(&scene, "put", location), |told| told["state"] == "delivered");
        assert_eq!(arrivals(&scene.origin, body).len(), 1);
    }
}

#[test]
fn a_crash_while_an_origin_is_down_leaves_no_doubt_about_what_is_not_safe_to_repeat() {
    let mut scene = tenants(&["post"]);
    scene.origin.stop();
    let request = Request::post("/in", "post").host("post.test");
    let location = location(&request.send(scene.node.address()).unwrap());
    // Killed at any moment between two attempts, or in the midst of one.
    for kills in 1..=10 {
        wait(PATIENCE, || told(&scene, "post", &location), |told| told["attempts"].as_u64() >= Some(kills));
        scene.node.kill_nine().unwrap();
        scene.node.launch().unwrap();
    }
    let receipt = told(&scene, "post", &location);
    assert_eq!((&receipt["state"], &receipt["last_error"]), (&"queued".into(), &"connect-refused".into()));
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || told(&scene, "post", &location), |told| told["state"] == "delivered");
    assert_eq!(arrivals(&scene.origin, "post").len(), 1);
}
