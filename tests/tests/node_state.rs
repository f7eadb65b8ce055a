//! Healthy, degraded, draining: one state that `/readyz`, the log, the admin API and `Proxy-Status` tell alike.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    thread,
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::manifest,
    beamline::{Beamline, Options},
    client::{Request, Response},
    origin::Origin,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::{Value, json};

/// Three failures, the least time between two transitions, a breaker's back-off: with room for a busy machine.
const TRANSITION: Duration = Duration::from_secs(60);

fn ready(node: &Beamline) -> Response {
    Request::get("/readyz").send(node.admin_address()).unwrap()
}

/// What the proxy says of itself in an answer of its own: nobody has that host.
fn own_proxy_status(node: &Beamline) -> String {
    let answer = Request::get("/").host("nobody.test").send(node.address()).unwrap().expect(404).unwrap();
    answer.header("proxy-status").unwrap().to_owned()
}

/// Lets requests come in until `/readyz` answers 200 with this.
fn wait_ready_as(scene: &Scene, wanted: &Value) {
    let until = Instant::now() + TRANSITION;
    loop {
        scene.send(Request::get("/")).unwrap();
        let now = ready(&scene.node).expect(200).unwrap().json().unwrap();
        if now == *wanted {
            return;
        }
        assert!(Instant::now() < until, "expected {wanted} within {TRANSITION:?}; found {now}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The states that the log tells, in order.
fn states(log: &[Value]) -> Vec<Value> {
    log.iter().filter(|r| r["event.name"] == "node.state").map(|r| r["attributes"].clone()).collect()
}

#[test]
fn an_upstream_that_is_down_degrades_the_node_by_name_and_its_return_heals_it() {
    let mut scene = Scene::start().unwrap();
    let healthy = json!({ "phase": "healthy", "reasons": [] });
    assert_eq!(ready(&scene.node).json().unwrap(), healthy);
    assert_eq!(own_proxy_status(&scene.node), "beamline; error=destination_not_found");
    let other = Origin::start("globex").unwrap();
    scene.admin.create_tenant("globex", &["globex.test"], &["127.0.0.0/8"]).unwrap();
    scene.admin.apply("globex", &manifest("globex.test", other.address())).unwrap();

    scene.origin.stop();
    wait_ready_as(&scene, &json!({ "phase": "degraded", "reasons": ["upstream-down"] }));

    let degraded = json!({
        "phase": "degraded",
        "reasons": [{ "reason": "upstream-down", "of": format!("{TENANT}/origin") }],
    });
    assert_eq!(scene.admin.get("/v1/status").unwrap()["node"], degraded);
    assert!(own_proxy_status(&scene.node).ends_with("; details=\"node degraded\""));
    let failed = scene.send(Request::get("/")).unwrap().expect(503).unwrap();
    let status = failed.header("proxy-status").unwrap();
    assert!(
        status.starts_with("beamline; error=") && status.ends_with("; details=\"node degraded\""),
        "{status}"
    );
    assert!(failed.header("retry-after").is_some());
    let neighbour = Request::get("/").host("globex.test").send(scene.node.address()).unwrap();
    assert_eq!((neighbour.status, neighbour.header("proxy-status")), (200, None));
    scene.node.wait_log(PATIENCE, |log| states(log).last() == Some(&degraded)).unwrap();

    scene.origin.start_again().unwrap();
    wait_ready_as(&scene, &healthy);

    assert_eq!(scene.admin.get("/v1/status").unwrap()["node"], healthy);
    assert_eq!(own_proxy_status(&scene.node), "beamline; error=destination_not_found");
    let log = scene.node.wait_log(PATIENCE, |log| states(log).last() == Some(&healthy)).unwrap();
    // Whether it begins with the first `healthy` depends on who is up first.
    let told: Vec<_> = states(&log).into_iter().skip_while(|state| *state == healthy).collect();
    assert_eq!(told, [degraded, healthy], "degraded for a reason, then healthy, and nothing between");
}

#[test]
fn a_queued_request_of_a_degraded_node_is_accepted_and_says_so() {
    let mut scene = Scene::start().unwrap();
    scene.apply(|m| m["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" })).unwrap();
    scene.origin.stop();
    wait_ready_as(&scene, &json!({ "phase": "degraded", "reasons": ["upstream-down"] }));

    let accepted = scene.send(Request::post("/orders", "order")).unwrap().expect(202).unwrap();

    assert_eq!(accepted.header("proxy-status"), Some("beamline; details=\"queued; node degraded\""));
}

#[test]
fn a_draining_node_says_so_wherever_its_state_is_told() {
    let arguments = ["--lame-duck", "4s", "--drain-idle-grace", "200ms"].map(Into::into).into();
    let mut scene = Scene::with(Options { arguments, ..Options::default() }).unwrap();

    scene.node.sigterm().unwrap();

    let until = Instant::now() + PATIENCE;
    let refused = loop {
        let now = ready(&scene.node);
        if now.status == 503 {
            break now.json().unwrap();
        }
        assert!(Instant::now() < until, "still ready: {}", now.text());
        thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(refused["type"], "urn:beamline:problem:not-ready");
    assert!(refused["detail"].as_str().unwrap().contains("draining"), "{refused}");
    assert_eq!(scene.admin.get("/v1/status").unwrap()["node"]["phase"], "draining");
    assert_eq!(
        own_proxy_status(&scene.node),
        "beamline; error=destination_not_found; details=\"node draining\""
    );
    assert_eq!(Request::get("/").host(HOST).send(scene.node.address()).unwrap().status, 200);
    assert_eq!(scene.node.wait_exit(PATIENCE).unwrap().code(), Some(0));
    let log = scene.node.log().unwrap();
    assert_eq!(states(&log).last().unwrap()["phase"], "draining");
    let names: Vec<_> = log.iter().filter_map(|r| r["event.name"].as_str()).collect();
    let place =
        |name| names.iter().position(|n| *n == name).unwrap_or_else(|| panic!("no {name} in {names:?}"));
    assert!(place("node.started") < place("node.draining"), "{names:?}");
    assert_eq!(names.last(), Some(&"node.stopped"));
}
