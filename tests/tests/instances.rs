//! Instances that outlive a call where a manifest asks for it: held for a request (`pin_instance`), or serving several (`reuse`).

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{io::Write as _, net::TcpStream};

use beamline_tests::{
    admin::AdminError,
    beamline::Options,
    client::{Request, Response},
    guests,
    scene::{HOST, PATIENCE, Scene, TENANT},
    wait::wait,
};
use serde_json::{Value, json};

/// A node with one worker, whose every request comes to the same thread; and a configuration file, where there is one.
fn node(configuration: Option<&str>) -> Scene {
    let configuration = configuration.map(str::to_owned);
    Scene::with(Options { workers: 1, configuration, ..Options::default() }).unwrap()
}

/// Applies a manifest with the filter `counter` and these keys of it, and a change.
fn apply(scene: &Scene, keys: Value, change: impl FnOnce(&mut Value)) -> Result<(), AdminError> {
    let mut filter = scene.filter("counter").unwrap();
    for (key, value) in keys.as_object().unwrap() {
        filter[key] = value.clone();
    }
    scene
        .apply(|m| {
            m["filters"] = json!([filter]);
            change(m);
        })
        .map(drop)
}

fn act(act: &str) -> Request {
    Request::get("/").header("x-act", act)
}

/// What the request phase counted, told by the filter itself.
fn counted(scene: &Scene) -> String {
    let answer = scene.send(act("request:answer")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// The kind and the detail of a refusal.
fn refused(applied: Result<(), AdminError>) -> (String, String) {
    let error = applied.unwrap_err();
    (error.kind().to_owned(), error.detail().to_owned())
}

#[track_caller]
fn wait_for_metric(scene: &Scene, line: &str) {
    let family = line.split('{').next().unwrap();
    wait(PATIENCE, || scene.metrics_of(family).unwrap(), |lines| lines.iter().any(|l| l == line));
}

#[test]
fn a_reused_instance_serves_as_many_requests_as_the_manifest_says() {
    let scene = node(None);
    apply(&scene, json!({ "reuse": 3 }), |_| ()).unwrap();
    let counts: Vec<_> = (0..5).map(|_| counted(&scene)).collect();
    assert_eq!(counts, ["1", "2", "3", "1", "2"]);

    // A failed call ends it.
    assert_eq!(scene.send(act("request:trap")).unwrap().refusal(), (503, "filter-trap".into()));
    assert_eq!([counted(&scene), counted(&scene)], ["1", "2"]);

    // The phases after the request's head have fresh ones, as ever.
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.status, answer.header("x-count")), (200, Some("1")));

    // Another tenant with the same module and filter has its own.
    let other = "other.test";
    scene.admin.create_tenant("other", &[other], &["127.0.0.0/8"]).unwrap();
    let module = scene.admin.push("other", &guests::module("counter").unwrap()).unwrap();
    let mut manifest = scene.manifest();
    manifest["hosts"] = json!([other]);
    manifest["filters"] = json!([{ "name": "counter", "module": module.digest, "reuse": 3 }]);
    scene.admin.apply("other", &manifest).unwrap();
    for count in ["1", "2"] {
        let answer = act("request:answer").host(other).send(scene.node.address()).unwrap();
        assert_eq!(answer.text(), count);
    }

    // And so has the next revision.
    apply(&scene, json!({ "reuse": 10 }), |_| ()).unwrap();
    assert_eq!([counted(&scene), counted(&scene)], ["1", "2"]);
    apply(&scene, json!({}), |_| ()).unwrap();
    assert_eq!([counted(&scene), counted(&scene)], ["1", "1"]);
}

#[test]
fn a_pinned_instance_knows_in_each_phase_what_it_did_in_those_before() {
    let scene = node(None);
    let end = |answer: &Response| -> u32 {
        let id = answer.header("x-request-id").unwrap();
        let counts = |r: &Value| r["body"].as_str().is_some_and(|body| body.starts_with("count "));
        let is_it = |r: &&Value| r["kind"] == "guest" && r["request.id"] == id && counts(r);
        let log = scene.node.wait_log(PATIENCE, |log| log.iter().any(|r| is_it(&r))).unwrap();
        let told = log.iter().find(is_it).unwrap()["body"].as_str().unwrap().to_owned();
        told.strip_prefix("count ").unwrap().parse().unwrap()
    };
    apply(&scene, json!({ "pin_instance": true }), |_| ()).unwrap();
    for _ in 0..2 {
        let answer = scene.send(Request::get("/")).unwrap();
        assert_eq!((answer.status, answer.header("x-count")), (200, Some("2")));
        assert!(end(&answer) >= 4, "the head, the response's, its body and the end");
    }
    let answer = scene.send(Request::post("/echo", "body")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
    assert!(end(&answer) >= 5, "and a body of its own");
    wait_for_metric(&scene, r#"beamline_pinned_instances{tenant="acme"} 0"#);

    // A phase that fails ends the instance, and what comes after it begins anew.
    let answer = scene.send(act("response:trap")).unwrap();
    assert_eq!((answer.refusal(), end(&answer)), ((503, "filter-trap".into()), 1));

    apply(&scene, json!({}), |_| ()).unwrap();
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.header("x-count"), end(&answer)), (Some("1"), 1));
}

#[test]
fn where_a_tenants_quota_of_pinned_instances_is_out_a_request_is_refused_until_one_is_free() {
    let scene = node(None);
    let one = |m: &mut Value| m["limits"] = json!({ "pinned_instances": 1 });
    apply(&scene, json!({ "pin_instance": true }), one).unwrap();
    let mut client = TcpStream::connect(scene.node.address()).unwrap();
    client.write_all(&Request::get("/hang").host(HOST).to_bytes()).unwrap();
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!(answer.refusal(), (503, "filter-capacity".into()));
    assert!(answer.text().contains("limits.pinned_instances"), "{}", answer.text());
    assert_eq!(scene.record(&answer).unwrap()["beamline.filter.outcome"], "filter-capacity");
    let text = scene.admin.metrics().unwrap();
    assert!(text.contains("beamline_pinned_instances{tenant=\"acme\"} 1\n"), "{text}");
    // Its finish phase, too.
    wait_for_metric(&scene, r#"beamline_pinned_refused_total{tenant="acme"} 2"#);

    // The client goes away, and with it what was held for its request.
    drop(client);
    wait_for_metric(&scene, r#"beamline_pinned_instances{tenant="acme"} 0"#);
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.status, answer.header("x-count")), (200, Some("2")));

    // A filter that may fail open is passed over.
    let open = json!({ "pin_instance": true, "on_error": "fail-open" });
    apply(&scene, open, one).unwrap();
    let _client = {
        let mut client = TcpStream::connect(scene.node.address()).unwrap();
        client.write_all(&Request::get("/hang?again").host(HOST).to_bytes()).unwrap();
        client
    };
    scene.origin.wait_for(PATIENCE, |log| log.iter().any(|r| r.target == "/hang?again")).unwrap();
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.status, answer.header("x-count")), (200, None));
}

#[test]
fn what_a_manifest_asks_for_in_vain_or_beyond_its_class_is_refused() {
    let scene = node(Some("[limits.small]\npinned_instances = 2\n"));
    for (keys, kind, detail) in [
        (json!({ "reuse": 0 }), "invalid-manifest", "filters[0].reuse: expected 1 to 10000; found 0"),
        (
            json!({ "reuse": 2, "pin_instance": true }),
            "invalid-manifest",
            "filters[0].reuse: expected either pin_instance or reuse",
        ),
        (json!({ "pin_instance": "yes" }), "invalid-manifest", "filters[0].pin_instance"),
    ] {
        let (found, told) = refused(apply(&scene, keys, |_| ()));
        assert!(found == kind && told.contains(detail), "{found}: {told}");
    }
    let asks = |n: u32| {
        apply(&scene, json!({ "pin_instance": true }), |m| m["limits"] = json!({ "pinned_instances": n }))
    };
    let (kind, detail) = refused(asks(3));
    assert!(
        kind == "outside-grant" && detail.contains("limits.pinned_instances = 3 is beyond the 2"),
        "{detail}"
    );
    let (kind, detail) = refused(asks(0));
    assert!(kind == "nothing-to-keep" && detail.contains("filters[counter].pin_instance"), "{detail}");
    asks(2).unwrap();

    let module = scene.admin.push(TENANT, &guests::module("tiny").unwrap()).unwrap();
    let tiny = json!({ "name": "tiny", "module": module.digest, "pin_instance": true });
    let (kind, detail) = refused(scene.apply(|m| m["filters"] = json!([tiny])).map(drop));
    assert!(kind == "nothing-to-keep" && detail.contains("called once in a request"), "{detail}");
}
