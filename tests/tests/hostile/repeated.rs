//! A module that fails time and again is left out for a while, and is back by itself when it works; what it failed of
//! is in the log and not in the answers.

use std::time::Instant;

use beamline_tests::{
    beamline::Options,
    client::Request,
    scene::{PATIENCE, Scene, TENANT},
    wait::wait,
};
use serde_json::{Value, json};

use crate::{guest::Guest, kinds};

fn events<'a>(log: &'a [Value], name: &str) -> Vec<&'a Value> {
    log.iter().filter(|record| record["event.name"] == name).collect()
}

#[test]
fn a_module_that_fails_time_and_again_is_left_out_and_comes_back_by_itself() {
    let scene = Scene::probed(Options::default()).unwrap();
    let ask = |step: &str| scene.probe("/", step).unwrap();
    // Failures that are few among many calls are each answered as what they are.
    for _ in 0..30 {
        assert_eq!(ask("trap").problem(), "filter-trap");
        assert_eq!((ask("next").status, ask("next").status), (200, 200));
    }
    let (began, mut failures) = (Instant::now(), 0);
    let left_out = loop {
        let answer = ask("trap");
        if answer.problem() == "filter-suspended" {
            break answer;
        }
        assert_eq!(answer.problem(), "filter-trap");
        failures += 1;
        assert!(began.elapsed() < PATIENCE, "it is never left out");
    };
    assert_eq!(left_out.status, 503);
    assert!(left_out.header("retry-after").is_some(), "{}", left_out.text());
    let suspended = &scene.admin.show(TENANT).unwrap()["suspended"][0];
    assert_eq!(suspended["filter"], "probe");

    // It comes back by one call that works.
    wait(PATIENCE, || ask("next").status, |status| *status == 200);
    assert_eq!(scene.admin.show(TENANT).unwrap()["suspended"], Value::Null);
    assert_eq!(ask("next").status, 200);
    let log = scene.node.wait_log(PATIENCE, |log| !events(log, "filter.resumed").is_empty()).unwrap();
    let opened = events(&log, "filter.suspended")[0];
    assert_eq!((&opened["tenant.id"], &opened["attributes"]["filter"]), (&json!(TENANT), &json!("probe")));
    let told = events(&log, "filter.failed").len() as u64;
    assert!((1..30 + failures).contains(&told), "{told} of {} failures are told one by one", 30 + failures);
}

#[test]
fn while_it_is_left_out_a_filter_fails_as_its_on_error_says() {
    let scene = Scene::start().unwrap();
    let mut probe = scene.filter("probe").unwrap();
    (probe["config"], probe["on_error"]) = (json!({ "do": "trap" }), json!("fail-open"));
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    let began = Instant::now();
    while scene.admin.show(TENANT).unwrap()["suspended"] == Value::Null {
        assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
        assert!(began.elapsed() < PATIENCE, "it is never left out");
    }
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200, "it is as if it were not there");
    // What was changed gets a fresh chance.
    probe["config"] = json!({ "do": "respond", "status": 201 });
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 201);
    assert_eq!(scene.admin.show(TENANT).unwrap()["suspended"], Value::Null);
}

#[test]
fn a_trap_is_told_with_the_functions_that_were_running_but_not_to_clients() {
    let scene = Scene::start().unwrap();
    let traps = Guest::new("(call $deeper)")
        .items("(func $deeper (result i32) (call $secret-of-the-module)) (func $secret-of-the-module (result i32) unreachable)");
    let module = scene.admin.push(TENANT, &traps.build()).unwrap();
    scene.apply(|m| m["filters"] = json!([{ "name": "traps", "module": module.digest }])).unwrap();
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!(answer.problem(), "filter-trap");
    assert!(!answer.text().contains("secret-of-the-module"), "{}", answer.text());

    let log = scene.node.wait_log(PATIENCE, |log| !events(log, "filter.failed").is_empty()).unwrap();
    let told = events(&log, "filter.failed")[0];
    let about = &told["attributes"];
    assert_eq!((&told["error.type"], &about["filter"]), (&json!("filter-trap"), &json!("traps")));
    assert_eq!(about["request.id"], json!(answer.header("x-request-id").unwrap()));
    let frames: Vec<_> = about["backtrace"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    assert!(frames[0].contains("secret-of-the-module") && frames[1].contains("deeper"), "{frames:?}");
}

#[test]
fn a_filter_that_was_built_as_the_guide_says_has_names_for_its_functions() {
    let scene = Scene::start().unwrap();
    let probe = scene.filter("probe").unwrap();
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    assert_eq!(scene.probe("/", "trap").unwrap().problem(), "filter-trap");
    let log = scene.node.wait_log(PATIENCE, |log| !events(log, "filter.failed").is_empty()).unwrap();
    let frames = &events(&log, "filter.failed")[0]["attributes"]["backtrace"];
    let is_named = |frame: &Value| frame.as_str().is_some_and(|name| name.contains("probe::act"));
    assert!(frames.as_array().unwrap().iter().any(is_named), "{frames}");
}

#[test]
fn a_name_of_a_function_is_told_no_further_than_it_helps() {
    let scene = Scene::start().unwrap();
    let module = scene.admin.push(TENANT, &kinds::huge_name()).unwrap();
    scene.apply(|m| m["filters"] = json!([{ "name": "named", "module": module.digest }])).unwrap();
    assert_eq!(scene.send(Request::get("/")).unwrap().problem(), "filter-trap");
    let log = scene.node.wait_log(PATIENCE, |log| !events(log, "filter.failed").is_empty()).unwrap();
    let frame = events(&log, "filter.failed")[0]["attributes"]["backtrace"][0].as_str().unwrap();
    assert!(frame.contains(&"n".repeat(80)) && frame.len() <= 160, "{frame}");
}
