//! What filters store outlives the node where the manifest has it durable, and nothing else does.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{thread, time::Duration};

use beamline_tests::{
    beamline::Options,
    canary::files_with,
    powercut::{Entries, PowerCut},
    scene::{HOST, PATIENCE, Scene, TENANT, command},
    wait::wait,
};
use serde_json::{Value, json};

/// What is stored last, and lies as it is in the store's files.
const CANARY: &str = "durable-canary";

/// A node that drains quickly, with the probe in the chain.
fn scene(durable: bool) -> Scene {
    let arguments = ["--lame-duck", "100ms", "--drain-idle-grace", "100ms"].map(str::to_owned).to_vec();
    let scene = Scene::with(Options { arguments, ..Options::default() }).unwrap();
    apply(&scene, durable);
    scene
}

fn apply(scene: &Scene, durable: bool) {
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|m| {
            m["filters"] = json!([probe]);
            m["kv"] = json!({ "durable": durable });
        })
        .unwrap();
}

/// What a call of keys and values gives.
#[track_caller]
fn kv(scene: &Scene, call: &str, more: Value) -> Value {
    let mut step = json!({ "do": "kv", "call": call, "key": "k" });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    scene.probe("/", step).unwrap().expect(200).unwrap().json().unwrap()
}

fn get(scene: &Scene, key: &str) -> Value {
    kv(scene, "get", json!({ "key": key }))
}

/// Has a filter store one of each kind, and the canary after them.
fn store(scene: &Scene) {
    assert_eq!(kv(scene, "set", json!({ "key": "set", "body": "kept" })), "ok");
    for sum in 1..=20 {
        assert_eq!(kv(scene, "increment", json!({ "key": "sum", "by": 1, "ttl_ms": 3_600_000 })), sum);
    }
    assert_eq!(kv(scene, "compare-and-set", json!({ "key": "cas", "body": "new" })), true);
    assert_eq!(kv(scene, "set", json!({ "key": "brief", "body": "kept", "ttl_ms": 1 })), "ok");
    assert_eq!(kv(scene, "set", json!({ "key": "deleted", "body": "kept" })), "ok");
    assert_eq!(kv(scene, "delete", json!({ "key": "deleted" })), true);
    assert_eq!(kv(scene, "set", json!({ "key": "canary", "body": CANARY })), "ok");
    // Half a dozen requests may take less than a millisecond.
    thread::sleep(Duration::from_millis(5));
}

/// Waits until all of it is in the store.
#[track_caller]
fn wait_stored(scene: &Scene) {
    wait(PATIENCE, || files_with(&scene.node.data_dir(), CANARY), |files| !files.is_empty());
}

fn assert_stored(scene: &Scene) {
    assert_eq!(
        (get(scene, "set"), get(scene, "sum"), get(scene, "cas")),
        (json!("kept"), json!("20"), json!("new"))
    );
    assert_eq!((get(scene, "brief"), get(scene, "deleted")), (Value::Null, Value::Null));
}

/// Ends the node as an operator does, and starts it again.
fn restart(scene: &mut Scene) {
    scene.node.sigterm().unwrap();
    assert!(scene.node.wait_exit(PATIENCE).unwrap().success());
    scene.node.launch().unwrap();
}

#[test]
fn what_is_durable_is_there_after_a_graceful_end_whenever_it_was_stored() {
    let mut scene = scene(true);
    store(&scene);
    assert_eq!(kv(&scene, "set", json!({ "key": "last", "body": "moment" })), "ok");
    restart(&mut scene);
    assert_stored(&scene);
    assert_eq!(get(&scene, "last"), "moment");
    assert_eq!(kv(&scene, "increment", json!({ "key": "sum", "by": 1 })), 21);
    restart(&mut scene);
    assert_eq!(get(&scene, "sum"), "21");
}

#[test]
fn what_is_durable_is_there_after_a_crash_a_little_later() {
    let mut scene = scene(true);
    store(&scene);
    wait_stored(&scene);
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_stored(&scene);
}

#[test]
fn what_is_not_durable_is_gone_with_the_node() {
    let mut scene = scene(false);
    store(&scene);
    assert_stored(&scene);
    restart(&mut scene);
    assert_eq!((get(&scene, "set"), get(&scene, "sum")), (Value::Null, Value::Null));
}

#[test]
fn what_was_stored_is_erased_where_it_is_durable_no_more_and_filters_go_on_with_it() {
    let mut scene = scene(true);
    store(&scene);
    wait_stored(&scene);
    apply(&scene, false);
    assert_stored(&scene);
    restart(&mut scene);
    assert_eq!(get(&scene, "set"), Value::Null);
    // And what is in memory is stored when it is durable again.
    assert_eq!(kv(&scene, "set", json!({ "key": "before", "body": "kept" })), "ok");
    scene.admin.rollback(TENANT, None).unwrap();
    restart(&mut scene);
    assert_eq!(get(&scene, "before"), "kept");
}

#[test]
fn what_was_stored_goes_with_its_tenant() {
    let mut scene = scene(true);
    store(&scene);
    wait_stored(&scene);
    let deleted = command(&scene.node, &scene.node.data_dir(), &["tenant", "delete", TENANT]).unwrap();
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    scene.admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"]).unwrap();
    apply(&scene, true);
    assert_eq!(get(&scene, "set"), Value::Null);
    restart(&mut scene);
    assert_eq!(get(&scene, "set"), Value::Null);
}

fn reasons(scene: &Scene) -> String {
    scene.admin.get("/v1/status").unwrap()["node"]["reasons"].to_string()
}

#[test]
fn while_the_disk_fails_filters_go_on_in_memory_and_the_node_says_so() {
    let mut scene = scene(true);
    scene.node.kill_nine().unwrap();
    let disk = PowerCut::over(&scene.node.data_dir(), Entries::ByDirectory).unwrap();
    scene.node.options_mut().environment = disk.environment();
    scene.node.launch().unwrap();
    disk.failing(true).unwrap();
    store(&scene);
    assert_stored(&scene);
    wait(PATIENCE, || reasons(&scene), |reasons| reasons.contains("store-unavailable"));
    assert_eq!(kv(&scene, "increment", json!({ "key": "sum", "by": 0 })), 20);
    disk.failing(false).unwrap();
    wait(PATIENCE, || reasons(&scene), |reasons| reasons == "[]");
    let count = |log: &[Value], event: &str| log.iter().filter(|r| r["event.name"] == event).count();
    let log = scene.node.wait_log(PATIENCE, |log| count(log, "kv.recovered") > 0).unwrap();
    assert_eq!((count(&log, "kv.failing"), count(&log, "kv.recovered")), (1, 1));
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_stored(&scene);
}
