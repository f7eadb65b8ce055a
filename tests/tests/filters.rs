//! A tenant's filter decides, is held to its limits, and whatever it does, the client gets an answer.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::{Duration, Instant};

use beamline_tests::{
    beamline::Options,
    client::{Connection, Request, Response},
    guests,
    origin::Origin,
    scene::{HOST, PATIENCE, Scene, TENANT},
    tools,
};
use serde_json::{Value, json};

fn probed() -> Scene {
    Scene::probed(Options::default()).unwrap()
}

#[test]
fn each_verdict_is_carried_out() {
    let scene = probed();
    let other = Origin::start("other").unwrap();
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|m| {
            m["filters"] = json!([probe]);
            m["upstreams"]["origin"]["queue"] = json!({ "mode": "prefer" });
            m["upstreams"]["other"] = json!({ "endpoints": [other.address().to_string()] });
        })
        .unwrap();

    let next = scene.probe("/", "next").unwrap();
    assert_eq!((next.status, next.header("x-origin")), (200, Some("acme")));

    let step = json!({ "do": "route", "upstream": "other", "path": "/inspect?b=2", "host": "inner.test" });
    let route = scene.probe("/outer?a=1", step).unwrap();
    let seen = route.json().unwrap();
    assert_eq!((route.header("x-origin"), &seen["target"]), (Some("other"), &json!("/inspect?b=2")));
    assert_eq!(other.last().values("host"), ["inner.test"]);

    let step = json!({ "do": "respond", "status": 418, "headers": { "x-a": ["1", "2"] }, "body": "tea" });
    let respond = scene.probe("/", step).unwrap();
    assert_eq!((respond.status, respond.text().as_str()), (418, "tea"));
    assert_eq!(respond.headers.all("x-a").collect::<Vec<_>>(), ["1", "2"]);
    assert!(respond.header("x-request-id").is_some());

    let step = json!({ "do": "enqueue", "upstream": "origin" }).to_string();
    let enqueue = scene.send(Request::post("/echo?later", "kept").header("x-probe", &step)).unwrap();
    assert_eq!(enqueue.status, 202, "{}", enqueue.text());
    let log = scene.origin.wait_for(PATIENCE, |log| log.iter().any(|r| r.target == "/echo?later")).unwrap();
    assert_eq!((log[1].method.as_str(), log[1].body.as_slice()), ("POST", &b"kept"[..]));
    let receipt = enqueue.header("location").unwrap();
    let until = Instant::now() + PATIENCE;
    while scene.send(Request::get(receipt)).unwrap().json().unwrap()["state"] != "delivered" {
        assert!(Instant::now() < until, "the receipt says delivered");
        std::thread::sleep(Duration::from_millis(20));
    }

    for (answer, verdict) in [(next, "next"), (route, "route"), (respond, "respond"), (enqueue, "enqueue")] {
        assert_eq!(scene.record(&answer).unwrap()["verdict"], verdict);
    }
}

/// What other languages' tools make, and `wit-component` of a core module: nothing is encoded when it is uploaded.
#[test]
fn a_ready_component_is_taken_as_it_is() {
    let scene = Scene::start().unwrap();
    let core = guests::module("probe").unwrap();
    let component =
        wit_component::ComponentEncoder::default().validate(true).module(&core).unwrap().encode().unwrap();
    let module = scene.admin.push(TENANT, &component).unwrap();
    assert_ne!(module.digest, scene.admin.push(TENANT, &core).unwrap().digest);
    scene.apply(|m| m["filters"] = json!([{ "name": "probe", "module": module.digest }])).unwrap();
    let answer = scene.probe("/", json!({ "do": "respond", "status": 418, "body": "tea" })).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (418, "tea"));
}

#[test]
fn a_route_can_wait_less_than_its_upstream_would() {
    let scene = probed();
    let began = Instant::now();
    let answer =
        scene.probe("/hang", json!({ "do": "route", "upstream": "origin", "timeout_ms": 200 })).unwrap();
    assert_eq!(answer.refusal(), (504, "upstream-timeout".into()));
    assert!(began.elapsed() < Duration::from_secs(15), "the upstream's own time-out is 30 s");
}

#[test]
fn an_upstream_sees_the_head_as_the_filter_left_it() {
    let scene = probed();
    let changes = json!({ "x-new": "1", "x-old": null, "x-set": "after", "x-many": ["1", "2", "3"] });
    let request = Request::get("/").header("x-old", "a").header("x-old", "b").header("x-set", "before");
    let step = json!({ "do": "set-headers", "headers": changes }).to_string();
    assert_eq!(scene.send(request.header("x-probe", &step)).unwrap().status, 200);
    let seen = |name| scene.origin.last().values(name);
    assert_eq!((seen("x-new"), seen("x-set")), (vec!["1".to_owned()], vec!["after".to_owned()]));
    assert_eq!((seen("x-old").len(), seen("x-many").join(",").as_str()), (0, "1,2,3"));
}

#[test]
fn a_client_cannot_take_away_what_a_filter_sets() {
    let scene = probed();
    let mut probe = scene.filter("probe").unwrap();
    let set = json!({ "do": "set-headers", "headers": { "x-user": "alice" } });
    probe["config"] = json!({ "paths": { "/inspect": set, "/head": { "do": "head" } } });
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    let asked = |path: &str| {
        let request = Request::get(path).header("connection", "x-user").header("x-user", "mallory");
        scene.send(request).unwrap().json().unwrap()
    };
    let user = |seen: &Value| -> Vec<String> {
        let fields = seen["headers"].as_array().unwrap().iter();
        fields.filter(|pair| pair[0] == "x-user").map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
    };
    // The origin sees what the filter set; the filter does not see what the client said is for the next hop alone.
    assert_eq!(user(&asked("/inspect")), ["alice"]);
    let seen = asked("/head").to_string();
    assert!(!seen.contains("mallory"), "{seen}");
}

#[test]
fn what_belongs_to_the_host_or_breaks_the_head_is_refused_to_a_filter() {
    let scene = probed();
    let refused = json!({
        "connection": ["forbidden", "close"], "keep-alive": ["forbidden", "1"], "te": ["forbidden", "trailers"],
        "transfer-encoding": ["forbidden", "chunked"], "content-length": ["forbidden", "5"],
        "upgrade": ["forbidden", "h2c"], "host": ["forbidden", "other.test"], "via": ["forbidden", "1.1 me"],
        "x-forwarded-for": ["forbidden", "10.0.0.1"], "x-forwarded-host": ["forbidden", "other.test"],
        "x-forwarded-proto": ["forbidden", "https"], "forwarded": ["forbidden", "for=me"],
        "traceparent": ["forbidden", "00-1-1-01"], "proxy-status": ["forbidden", "me"], "expect": ["forbidden", "x"],
        "trailer": ["forbidden", "x"], "proxy-connection": ["forbidden", "close"],
        "x split": ["invalid-name", "1"], "": ["invalid-name", "1"], "x:y": ["invalid-name", "1"],
        "x-crlf": ["invalid-value", "1\r\nx-evil: 1"], "x-nul": ["invalid-value", "\0"],
        "x-large": ["too-large", "x".repeat(70_000)], "x-fine": ["ok", "1"],
    });
    let refused = refused.as_object().unwrap();
    let changes: serde_json::Map<_, _> =
        refused.iter().map(|(name, v)| (name.clone(), v[1].clone())).collect();
    // Too long for a header: in the configuration.
    let step = |reply: bool| json!({ "do": "set-headers", "headers": changes, "reply": reply });
    let mut probe = scene.filter("probe").unwrap();
    probe["config"] = json!({ "paths": { "/reply": step(true), "/inspect": step(false) } });
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();

    let outcomes = scene.send(Request::get("/reply")).unwrap().json().unwrap();
    for (name, expected) in refused {
        assert_eq!(outcomes[name], expected[0], "{name:?}");
    }
    let seen = scene.send(Request::get("/inspect")).unwrap().json().unwrap();
    let fields: Vec<(&str, &str)> = seen["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    for (name, value) in
        [("host", HOST), ("x-forwarded-for", "127.0.0.1"), ("via", "1.1 beamline"), ("x-fine", "1")]
    {
        let found: Vec<_> = fields.iter().filter(|(n, _)| *n == name).map(|(_, v)| *v).collect();
        assert_eq!(found, [value], "{name}");
    }
    assert!(fields.iter().all(|(name, _)| !name.contains("evil") && *name != "x-large"), "{fields:?}");
}

#[test]
fn each_filter_of_a_chain_has_its_own_configuration() {
    let scene = Scene::start().unwrap();
    let named = |name: &str, config: Value| {
        let mut filter = scene.filter("probe").unwrap();
        (filter["name"], filter["config"]) = (json!(name), config);
        filter
    };
    let sets = |name: &str| json!({ "do": "set-headers", "headers": { name: "1" } });
    let answers = json!({ "paths": { "/two": { "do": "respond", "status": 299, "body": "the second" } } });
    let chain = json!([named("one", sets("x-one")), named("two", answers), named("three", sets("x-three"))]);
    scene.apply(|m| m["filters"] = chain).unwrap();

    let answer = scene.send(Request::get("/two")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (299, "the second"));
    assert_eq!(scene.record(&answer).unwrap()["beamline.filter.name"], "two");
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
    assert_eq!(
        (scene.origin.last().values("x-one"), scene.origin.last().values("x-three")),
        (vec!["1".to_owned()], vec!["1".to_owned()])
    );
}

#[test]
fn a_configuration_that_the_filter_cannot_read_fails_with_its_own_words_in_the_log() {
    let scene = Scene::start().unwrap();
    let mut probe = scene.filter("probe").unwrap();
    probe["config"] = json!({ "do": "dance" });
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!(answer.refusal(), (503, "filter-trap".into()));
    let record = guest_record(&scene, &answer);
    assert_eq!(record["severity_text"], "ERROR");
    assert!(record["body"].as_str().unwrap().contains("dance"), "{record}");
}

/// The first record that a filter wrote during the request that this answers.
fn guest_record(scene: &Scene, answer: &Response) -> Value {
    let id = answer.header("x-request-id").unwrap();
    let is_it = |r: &&Value| r["kind"] == "guest" && r["request.id"] == id;
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().any(|r| is_it(&r))).unwrap();
    log.iter().find(is_it).unwrap().clone()
}

#[test]
fn what_a_filter_logs_is_a_record_with_tenant_trace_and_filter() {
    let scene = probed();
    let answer = scene.probe("/", json!({ "do": "log", "body": "a \"word\"\nfrom the guest" })).unwrap();
    let (access, guest) = (scene.record(&answer).unwrap(), guest_record(&scene, &answer));
    assert_eq!(guest["body"], "a \"word\"\nfrom the guest");
    assert_eq!((&guest["tenant.id"], &guest["beamline.filter.name"]), (&json!(TENANT), &json!("probe")));
    assert_eq!((&guest["severity_text"], &guest["beamline.revision"]), (&json!("INFO"), &json!(2)));
    for key in ["trace_id", "span_id", "request.id"] {
        assert_eq!(guest[key], access[key], "{key}");
    }

    let long = scene.probe("/", "log=20000").unwrap();
    let record = guest_record(&scene, &long);
    let kept = record["body"].as_str().unwrap().len() as u64;
    assert!(kept <= 8 << 10, "the limit is 8 KiB; {kept} bytes were kept");
    assert_eq!(kept + record["beamline.log.cut_bytes"].as_u64().unwrap(), 20_000);
}

#[test]
fn a_filter_sees_how_its_upstreams_fare() {
    let mut scene = probed();
    let probe = scene.filter("probe").unwrap();
    let queue = json!({ "mode": "on-failure" });
    scene.apply(|m| (m["filters"], m["upstreams"]["origin"]["queue"]) = (json!([probe]), queue)).unwrap();
    let state = |scene: &Scene| scene.probe("/", "upstream").unwrap().json().unwrap();
    assert_eq!(state(&scene), json!({ "state": "ready", "queue_depth": 0 }));
    let none = scene.probe("/", json!({ "do": "upstream", "upstream": "none" })).unwrap();
    assert_eq!(none.json().unwrap(), Value::Null);

    scene.origin.stop();
    let mut queued = 0;
    while state(&scene)["state"] != "down" {
        assert_eq!(scene.send(Request::post("/echo", "later")).unwrap().status, 202);
        queued += 1;
        assert!(queued < 50, "{}", state(&scene));
    }
    assert_eq!(state(&scene)["queue_depth"], queued);
    scene.origin.start_again().unwrap();
    scene.origin.wait_for_count(queued, PATIENCE).unwrap();
    let until = Instant::now() + PATIENCE;
    while state(&scene) != json!({ "state": "ready", "queue_depth": 0 }) {
        assert!(Instant::now() < until, "{}", state(&scene));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn whatever_a_filter_does_there_is_an_answer() {
    let scene = Scene::with(Options { workers: 1, ..Options::default() }).unwrap();
    let probe = scene.filter("probe").unwrap();
    // On a busy machine clearing 16 MiB of memory may take longer than the default.
    let manifest = |m: &mut Value| (m["filters"], m["limits"]) = (json!([probe]), json!({ "cpu": "1s" }));
    scene.apply(manifest).unwrap();
    let pid = scene.node.pid().unwrap();
    for (step, expected) in [
        ("trap", "filter-trap"),
        ("unreachable", "filter-trap"),
        ("recurse", "filter-trap"),
        ("spin", "filter-timeout"),
        ("bomb", "filter-memory"),
    ] {
        let answer = scene.probe("/", step).unwrap();
        assert_eq!(answer.refusal(), (503, expected.into()), "{step}: {}", answer.text());
        assert!(answer.header("proxy-status").unwrap().contains("error=proxy_internal_error"), "{step}");
        let record = scene.record(&answer).unwrap();
        assert_eq!(
            (&record["error.type"], &record["beamline.filter.outcome"]),
            (&json!(expected), &json!(expected))
        );
        assert_eq!(record["beamline.filter.name"], "probe", "{step}");
        assert_eq!(scene.probe("/", "next").unwrap().status, 200, "the next request after {step}");
    }
    assert_eq!(scene.node.pid().unwrap(), pid);
    assert_eq!(scene.origin.count(), 5, "no request of a failed filter reached the origin");
    let live = Request::get("/livez").send(scene.node.admin_address()).unwrap();
    assert_eq!(live.status, 200, "{}", live.text());
}

#[test]
fn failures_at_once_are_all_answered() {
    let scene = probed();
    let steps = ["trap", "spin", "bomb", "recurse", "unreachable", "next"];
    std::thread::scope(|scope| {
        for step in steps.into_iter().cycle().take(30) {
            let scene = &scene;
            scope.spawn(move || {
                let answer = scene.probe("/", step).unwrap();
                assert_eq!(
                    answer.status,
                    if step == "next" { 200 } else { 503 },
                    "{step}: {}",
                    answer.text()
                );
            });
        }
    });
}

#[test]
fn a_filter_that_may_fail_open_is_passed_over_without_its_changes() {
    let scene = Scene::start().unwrap();
    let mut first = scene.filter("probe").unwrap();
    (first["name"], first["config"]) =
        (json!("first"), json!({ "do": "set-headers", "headers": { "x-first": "1" } }));
    let mut second = scene.filter("probe").unwrap();
    (second["name"], second["on_error"]) = (json!("second"), json!("fail-open"));
    let failing = |then: &str| json!({ "do": "set-headers", "headers": { "x-second": "1", "x-first": null }, "then": then });
    second["config"] =
        json!({ "paths": { "/trap": failing("trap"), "/spin": failing("spin"), "/bomb": failing("bomb") } });
    // So much that a bomb's memory is what ends it, on a slow machine too.
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([first, second]), json!({ "cpu": "1s" }))).unwrap();
    for (path, outcome) in [("/trap", "filter-trap"), ("/spin", "filter-timeout"), ("/bomb", "filter-memory")]
    {
        let answer = scene.send(Request::post(path, "whole")).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(scene.origin.last().values("x-first"), ["1"], "{path}: what the first filter did stays");
        assert_eq!(
            scene.origin.last().values("x-second").len(),
            0,
            "{path}: what the failed one did does not"
        );
        assert_eq!(scene.origin.last().body, b"whole");
        let record = scene.record(&answer).unwrap();
        assert_eq!(
            (&record["beamline.filter.outcome"], &record["verdict"]),
            (&json!(outcome), &json!("next")),
            "{record}"
        );
    }
}

#[test]
fn every_call_gets_a_fresh_instance() {
    let scene = probed();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
                let request = Request::get("/").host(HOST).header("x-probe", "count");
                for _ in 0..50 {
                    let answer = connection.exchange(&request).unwrap();
                    assert_eq!((answer.status, answer.header("x-count")), (200, Some("1")));
                }
            });
        }
    });
    // Nor does a call see what a failed one left.
    assert_eq!(scene.probe("/", json!({ "do": "alloc", "mib": 8, "then": "trap" })).unwrap().status, 503);
    assert_eq!(scene.probe("/", "count").unwrap().text(), "1");
    let random = || scene.probe("/", "random").unwrap().text();
    assert_ne!(random(), random());
}

#[test]
fn a_verdict_that_cannot_be_carried_out_is_refused() {
    let scene = probed();
    for (method, step, expected) in [
        ("GET", json!({ "do": "route", "upstream": "none" }), "filter-verdict"),
        ("GET", json!({ "do": "route", "path": "no-slash" }), "filter-verdict"),
        ("GET", json!({ "do": "route", "path": "/a\r\nb: c" }), "filter-verdict"),
        ("GET", json!({ "do": "route", "host": "not a host" }), "filter-verdict"),
        ("GET", json!({ "do": "respond", "status": 99 }), "filter-verdict"),
        ("GET", json!({ "do": "respond", "status": 101 }), "filter-verdict"),
        ("GET", json!({ "do": "respond", "headers": { "transfer-encoding": "chunked" } }), "filter-verdict"),
        ("GET", json!({ "do": "respond", "headers": { "x": "a\r\nb: c" } }), "filter-verdict"),
        ("POST", json!({ "do": "enqueue", "ordering_key": "" }), "filter-verdict"),
        ("POST", json!({ "do": "enqueue" }), "not-queueable"),
        ("GET", json!({ "do": "enqueue" }), "not-queueable"),
    ] {
        let answer = scene.send(Request::new(method, "/").header("x-probe", &step.to_string())).unwrap();
        assert_eq!(answer.refusal(), (503, expected.into()), "{step}: {}", answer.text());
        assert_eq!(scene.record(&answer).unwrap()["error.type"], expected, "{step}");
    }
    assert_eq!(scene.origin.count(), 0);
}

#[test]
fn a_tenants_limits_are_those_of_its_manifest() {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    assert_eq!(scene.probe("/", "alloc=32").unwrap().refusal(), (503, "filter-memory".into()));
    assert_eq!(scene.probe("/", "alloc=8").unwrap().status, 200);
    let limits = json!({ "cpu": "1s", "memory": "64MiB" });
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([probe]), limits)).unwrap();
    assert_eq!(scene.probe("/", "alloc=32").unwrap().status, 200);
    let long = scene.probe("/", "spin-ms=60").unwrap();
    assert_eq!(long.status, 200, "{}", long.text());
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([probe]), json!({ "cpu": "5ms" }))).unwrap();
    assert_eq!(scene.probe("/", "spin-ms=60").unwrap().refusal(), (503, "filter-timeout".into()));
    let refused = scene.apply(|m| m["limits"] = json!({ "cpu": "1h" })).unwrap_err();
    assert_eq!((refused.status(), refused.kind()), (Some(422), "invalid-manifest"), "{refused}");
}

#[test]
fn long_calls_beyond_what_a_tenant_may_have_at_once_are_refused_at_once() {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    let limits = json!({ "cpu": "1s", "concurrency": 1 });
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([probe]), limits)).unwrap();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..6).map(|_| scope.spawn(|| scene.probe("/", "spin").unwrap().refusal())).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let of = |kind: &str| answers.iter().filter(|a| **a == (503, kind.to_owned())).count();
    assert_eq!(of("filter-timeout") + of("filter-capacity"), 6, "{answers:?}");
    assert!(of("filter-timeout") >= 1 && of("filter-capacity") >= 1, "{answers:?}");
    assert_eq!(scene.probe("/", "next").unwrap().status, 200, "none of them is left");
}

#[test]
fn the_path_of_receipts_is_reserved_before_any_filter() {
    let scene = Scene::start().unwrap();
    let mut probe = scene.filter("probe").unwrap();
    probe["config"] = json!({ "do": "respond", "status": 200, "body": "mine" });
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    assert_eq!(scene.send(Request::get("/anything")).unwrap().text(), "mine");
    let answer = scene.send(Request::get("/.well-known/beamline/requests/none")).unwrap();
    assert_eq!(answer.refusal(), (404, "unknown-receipt".into()));
}

#[test]
fn a_module_that_cannot_be_taken_is_refused_by_what_stands_against_it() {
    let scene = Scene::start().unwrap();
    let probe = guests::module("probe").unwrap();
    let half = probe[..probe.len() / 2].to_vec();
    let component = b"\0asm\x0d\0\x01\0".to_vec();
    let core = b"\0asm\x01\0\0\0".to_vec();
    for (module, kind, words) in [
        (guests::module("evil-import").unwrap(), "module-rejected", &["imports env.evil"][..]),
        (
            guests::module("no-phase").unwrap(),
            "module-rejected",
            &["exports no phase", "request-handler@0.1.0"],
        ),
        (core, "module-rejected", &["exports no phase", "found no export"]),
        (component, "module-rejected", &["exports no phase"]),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "module-rejected", &["not a WebAssembly module", "PNG"]),
        (half, "module-rejected", &["not valid WebAssembly"]),
        (Vec::new(), "module-rejected", &["not a WebAssembly module"]),
    ] {
        let refused = scene.admin.push(TENANT, &module).unwrap_err();
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(words.iter().all(|word| refused.detail().contains(word)), "{words:?}: {refused}");
    }
    let modules = scene.admin.get("/v1/tenants/acme/modules").unwrap();
    assert_eq!(modules["modules"], json!([]), "nothing of it was kept");
}

#[test]
fn a_module_that_is_too_large_is_refused_before_it_is_sent() {
    let scene = Scene::start().unwrap();
    let file = scene.node.folder().join("large.wasm");
    std::fs::File::create(&file).unwrap().set_len(5 << 20).unwrap();
    let url = format!("http://{}/v1/tenants/{TENANT}/modules", scene.node.admin_address());
    let (authorization, data) =
        (format!("authorization: Bearer {}", scene.token), format!("@{}", file.display()));
    let answer =
        tools::curl(&["-H", &authorization, "-H", "expect: 100-continue", "--data-binary", &data, &url])
            .unwrap();
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, &problem["type"]), (413, &json!("urn:beamline:problem:body-too-large")));
    assert!(problem["detail"].as_str().unwrap().contains("4194304"), "{problem}");
}

#[test]
fn a_module_that_is_taken_is_told_of() {
    let scene = Scene::start().unwrap();
    let bytes = guests::module("probe").unwrap();
    let module = scene.admin.push(TENANT, &bytes).unwrap();
    assert!(module.digest.starts_with("sha256:") && module.digest.len() == 71, "{module:?}");
    assert_eq!(module.phases, ["beamline:edge/request-handler@0.1.0"]);
    assert!(module.imports.iter().any(|i| i == "beamline:edge/upstreams@0.1.0"), "{module:?}");
    assert_eq!(
        (module.size, module.kind.as_str(), module.cached),
        (bytes.len() as u64, "core-module", false)
    );
    assert!(module.compile_ms > 0.0);
    let again = scene.admin.push(TENANT, &bytes).unwrap();
    assert_eq!((again.digest, again.cached), (module.digest.clone(), true));
    let changed = scene.admin.push(TENANT, &guests::variant(&bytes, "changed")).unwrap();
    assert_ne!(changed.digest, module.digest);
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200, "nothing that serves has changed");
}

#[test]
fn a_manifest_cannot_name_a_module_that_its_tenant_did_not_upload() {
    let scene = Scene::start().unwrap();
    scene.admin.create_tenant("globex", &["globex.test"], &[]).unwrap();
    let others = scene.admin.push("globex", &guests::module("tiny").unwrap()).unwrap();
    let none = format!("sha256:{}", "1".repeat(64));
    for digest in [others.digest.as_str(), &none] {
        let refused =
            scene.apply(|m| m["filters"] = json!([{ "name": "tiny", "module": digest }])).unwrap_err();
        assert_eq!((refused.status(), refused.kind()), (Some(422), "unknown-module"), "{refused}");
        assert!(refused.to_string().contains("filters[tiny].module"), "{refused}");
    }
    let path = json!([{ "name": "tiny", "module": "./tiny.wasm" }]);
    assert_eq!(scene.apply(|m| m["filters"] = path).unwrap_err().kind(), "module-path");
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 1);
}
