//! A file system that finds an error in itself and turns read-only under a running node: proxying goes on, nothing new is
//! accepted for later, nothing accepted is lost.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{fs, os::unix::fs::symlink};

use beamline_tests::{
    beamline::{Beamline, Options},
    client::Request,
    disk::LoopDisk,
    scene::{PATIENCE, Scene},
    wait::wait,
};
use serde_json::json;

fn state_of(scene: &Scene, location: &str) -> String {
    let receipt = scene.send(Request::get(location)).unwrap().json().unwrap();
    receipt["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_disk_that_turns_read_only_stops_queueing_and_changes_alone_and_keeps_what_was_accepted() {
    let mut node = Beamline::prepare(Options::default()).unwrap();
    let Some(mut disk) = LoopDisk::make(256).unwrap() else {
        println!("not run: this user may not mount an ext4");
        return;
    };
    fs::remove_dir(node.data_dir()).unwrap();
    symlink(disk.folder(), node.data_dir()).unwrap();
    node.launch().unwrap();
    let mut scene = Scene::on(node).unwrap();
    scene
        .apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" }))
        .unwrap();
    scene.origin.stop();
    let before = scene.send(Request::new("PUT", "/in").body("before")).unwrap().expect(202).unwrap();
    let before = before.header("location").unwrap().to_owned();

    if !disk.breaks().unwrap() {
        println!("not run: this kernel breaks no ext4 on demand");
        return;
    }
    // Of the one at whose commit it broke nobody knows, and it is told so. It may be delivered.
    let first = scene.send(Request::post("/in", "doubtful")).unwrap();
    assert!(
        [(500, "queue-unconfirmed"), (503, "queue-unavailable")].contains(&(first.status, &*first.problem())),
        "{}",
        first.text()
    );
    for body in [b"small".to_vec(), vec![b'x'; 100_000]] {
        let refused = scene.send(Request::post("/in", body)).unwrap();
        assert_eq!((refused.status, &*refused.problem()), (503, "queue-unavailable"), "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
    }
    assert!(["queued", "delivering"].contains(&&*state_of(&scene, &before)));
    let changed = scene.apply(|manifest| manifest["upstreams"]["origin"]["response_timeout"] = json!("9s"));
    let refused = changed.unwrap_err();
    assert_eq!(refused.status(), Some(503), "{refused}");
    assert!(["store-unavailable", "store-unconfirmed"].contains(&refused.kind()), "{refused}");

    scene.origin.start_again().unwrap();
    wait(PATIENCE, || scene.send(Request::get("/live")).unwrap().status, |status| *status == 200);
    let live = Request::get("/livez").send(scene.node.admin_address()).unwrap();
    assert_eq!(live.status, 200, "{}", live.text());
    let ready = Request::get("/readyz").send(scene.node.admin_address()).unwrap();
    assert!(ready.text().contains("queue-unavailable"), "{}", ready.text());

    scene.node.kill_nine().unwrap();
    disk.mend().unwrap();
    scene.node.launch().unwrap();
    wait(PATIENCE, || state_of(&scene, &before), |state| state == "delivered");
    scene.origin.stop();
    scene.send(Request::post("/in", "after")).unwrap().expect(202).unwrap();
    let bodies: Vec<_> =
        scene.origin.requests().iter().filter(|r| r.target == "/in").map(|r| r.body.clone()).collect();
    let doubtful = first.status == 500 && bodies.len() == 2 && bodies.contains(&b"doubtful".to_vec());
    assert!(bodies.contains(&b"before".to_vec()) && (bodies.len() == 1 || doubtful), "{bodies:?}");
}
