//! A disk that is full: proxying goes on, nothing new is accepted for later, nothing accepted is lost.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::{Duration, Instant};

use beamline_tests::{
    beamline::{Beamline, Options},
    client::{Request, Response},
    disk::SmallDisk,
    scene::{PATIENCE, Scene},
    wait::wait,
};
use serde_json::json;

/// The node keeps 64 MiB free, and a ballast.
const DISK_MIB: u32 = 128;

fn state_of(scene: &Scene, location: &str) -> String {
    let receipt = scene.send(Request::get(location)).unwrap().json().unwrap();
    receipt["state"].as_str().unwrap().to_owned()
}

fn queued(answer: &Response) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").unwrap().to_owned()
}

/// A node whose origin is down, the disk of its own that goes before it, and the receipt of what it has accepted. None where this user may not
/// mount.
fn outage_on_a_small_disk(method: &str) -> Option<(Scene, SmallDisk, String)> {
    let mut node = Beamline::prepare(Options::default()).unwrap();
    let Some(disk) = SmallDisk::over(&node.data_dir(), DISK_MIB).unwrap() else {
        println!("not run: this user may not mount a tmpfs");
        return None;
    };
    node.launch().unwrap();
    let mut scene = Scene::on(node).unwrap();
    scene
        .apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" }))
        .unwrap();
    scene.origin.stop();
    let before = queued(&scene.send(Request::new(method, "/in").body("before")).unwrap());
    Some((scene, disk, before))
}

#[test]
fn a_full_disk_stops_queueing_alone_and_only_while_it_is_full() {
    let Some((mut scene, disk, before)) = outage_on_a_small_disk("POST") else { return };

    let filler = disk.fill().unwrap();
    // The node looks at its disk at most once a second.
    let until = Instant::now() + PATIENCE;
    let refused = loop {
        let answer = scene.send(Request::post("/in", vec![b'x'; 100_000])).unwrap();
        if answer.status == 503 {
            break answer;
        }
        assert!(Instant::now() < until, "a full disk takes requests: {}", answer.text());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(["queue-full", "queue-unavailable"].contains(&refused.problem().as_str()), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert_eq!(state_of(&scene, &before), "queued");

    // The tenant's requests that need no queue go on, and so does the node.
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || scene.send(Request::get("/live")).unwrap().status, |status| *status == 200);
    let live = Request::get("/livez").send(scene.node.admin_address()).unwrap();
    assert_eq!(live.status, 200, "{}", live.text());

    drop(filler);
    wait(PATIENCE, || state_of(&scene, &before), |state| state == "delivered");
    scene.origin.stop();
    let after =
        wait(PATIENCE, || scene.send(Request::post("/in", "after")).unwrap(), |answer| answer.status == 202);
    let after = queued(&after);
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || state_of(&scene, &after), |state| state == "delivered");
    let bodies: Vec<_> =
        scene.origin.requests().iter().filter(|r| r.method == "POST").map(|r| r.body.clone()).collect();
    assert_eq!(bodies, [b"before".to_vec(), b"after".to_vec()]);
}

#[test]
fn a_node_starts_on_a_full_disk_and_delivers_what_it_had_accepted() {
    // It may be killed while it tries: what is safe to repeat is tried again.
    let Some((mut scene, disk, before)) = outage_on_a_small_disk("PUT") else { return };
    scene.node.kill_nine().unwrap();
    let _filler = disk.fill().unwrap();
    scene.node.launch().unwrap();
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || state_of(&scene, &before), |state| state == "delivered");
    assert_eq!(scene.send(Request::get("/live")).unwrap().status, 200);
}
