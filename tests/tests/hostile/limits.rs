//! Each limit of the reference page, crossed once: what the client gets, and what the log says.

use std::thread;

use beamline_tests::{
    admin::AdminError,
    beamline::Options,
    client::Request,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::{Value, json};

use crate::{guest::Guest, kinds};

/// Limits that are quick to cross.
fn limits() -> Value {
    json!({ "cpu": "20ms", "memory": "2MiB", "log": "1KiB", "concurrency": 1 })
}

/// Has the tenant's only filter be this module.
fn filtered(scene: &Scene, module: &[u8]) {
    let module = scene.admin.push(TENANT, module).unwrap();
    let filter = json!({ "name": "crosses", "module": module.digest });
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([filter]), limits())).unwrap();
}

#[test]
fn a_call_that_crosses_a_limit_is_a_problem_and_an_event() {
    let scene = Scene::start().unwrap();
    let next = "(call $drop (local.get $head)) (i32.const 4096)";
    let does = |what: &str| Guest::new(&format!("{what} {next}"));
    for (limit, guest, expected) in [
        ("cpu", does("(loop $l (br $l))"), "filter-timeout"),
        (
            "memory",
            does("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"),
            "filter-memory",
        ),
        (
            "elements of tables",
            does("(if (i32.eq (table.grow (ref.null func) (i32.const 20001)) (i32.const -1)) (then unreachable))")
                .items("(table 0 funcref)"),
            "filter-trap",
        ),
        ("stack", does("(call $deeper)").items("(func $deeper (call $deeper) (call $deeper))"), "filter-trap"),
        (
            "what is handed over at once",
            does(
                r"(drop (memory.grow (i32.const 16)))
                  (loop $l
                    (i32.store (i32.add (i32.const 65536) (local.get $i)) (i32.const 0))
                    (i32.store (i32.add (i32.const 65540) (local.get $i)) (i32.const 900000))
                    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 80))))
                  (call $get-many (local.get $head) (i32.const 65536) (i32.const 10) (i32.const 2048))",
            ),
            "filter-trap",
        ),
    ] {
        filtered(&scene, &guest.build());
        let answer = scene.send(Request::get("/")).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (503, expected), "{limit}: {}", answer.text());
        assert_eq!(scene.record(&answer).unwrap()["error.type"], expected, "{limit}");
        let id = answer.header("x-request-id").unwrap();
        let is_it = |record: &Value| {
            record["event.name"] == "filter.failed" && record["attributes"]["request.id"] == id
        };
        let log = scene.node.wait_log(PATIENCE, |log| log.iter().any(is_it)).unwrap();
        let event = log.iter().find(|record| is_it(record)).unwrap();
        assert_eq!((&event["error.type"], &event["tenant.id"]), (&json!(expected), &json!(TENANT)), "{limit}");
    }
}

#[test]
fn handles_beyond_the_limit_are_a_trap_and_as_many_as_the_limit_are_not() {
    let scene = Scene::start().unwrap();
    for (handles, status) in [(990, 200), (1001, 503)] {
        filtered(&scene, &kinds::handles_of_its_own(handles));
        assert_eq!(scene.send(Request::get("/")).unwrap().status, status, "{handles} handles");
    }
}

#[test]
fn what_a_filter_logs_beyond_its_limit_is_cut_and_counted() {
    let scene = Scene::start().unwrap();
    let next = "(call $drop (local.get $head)) (i32.const 4096)";
    let writes = format!("(call $log (i32.const 1) (i32.const 8192) (i32.const 3000)) {next}");
    filtered(&scene, &Guest::new(&writes).build());
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().any(|r| r["kind"] == "guest")).unwrap();
    let guest = log.iter().find(|r| r["kind"] == "guest").unwrap();
    let kept = guest["body"].as_str().unwrap().len() as u64;
    assert_eq!((kept, guest["beamline.log.cut_bytes"].as_u64()), (1024 - 32, Some(3000 - (1024 - 32))));
}

#[test]
fn calls_at_once_beyond_the_limit_wait_for_a_place_and_are_refused_without_one() {
    let scene = Scene::with(Options { workers: 2, ..Options::default() }).unwrap();
    let probe = scene.filter("probe").unwrap();
    let limits = json!({ "cpu": "1s", "concurrency": 1 });
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([probe]), limits)).unwrap();
    thread::scope(|scope| {
        let long = scope.spawn(|| scene.probe("/", "spin").unwrap());
        // While the only place is taken, further calls are refused; soon after, they are not.
        let refused = loop {
            let answer = scene.send(Request::get("/").host(HOST)).unwrap();
            if answer.status != 200 {
                break answer;
            }
            assert!(!long.is_finished(), "the long call never held its place");
        };
        assert_eq!(refused.problem(), "filter-capacity");
        assert_eq!(scene.record(&refused).unwrap()["error.type"], "filter-capacity");
        assert_eq!(long.join().unwrap().problem(), "filter-timeout");
    });
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
}

#[test]
fn a_module_that_crosses_a_limit_is_refused_with_the_reason() {
    let scene = Scene::start().unwrap();
    for (what, module, words) in [
        ("memory", Guest::next().memory(r#"(memory (export "memory") 65536)"#), "memory"),
        ("memories", Guest::next().memory(r#"(memory (export "memory") 1) (memory 1)"#), "memories"),
        ("elements", Guest::next().items("(table 20001 funcref)"), "20001"),
        ("tables", Guest::next().items("(table 1 funcref) (table 1 funcref)"), "table"),
    ] {
        let refused = scene.admin.push(TENANT, &module.build()).unwrap_err();
        assert_eq!((refused.status(), refused.kind()), (Some(422), "module-rejected"), "{what}: {refused}");
        let AdminError::Refused { problem, .. } = &refused else { panic!("{refused}") };
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("may have") && detail.contains(words), "{what}: {detail}");
    }
}
