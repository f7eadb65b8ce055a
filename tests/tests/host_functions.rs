//! What a filter can ask its host, on a node.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::{Duration, Instant};

use beamline_tests::{
    admin::manifest,
    beamline::Options,
    client::Request,
    guests,
    origin::Origin,
    scene::{PATIENCE, Scene, TENANT, command},
};
use serde_json::{Value, json};

fn probed() -> Scene {
    Scene::probed(Options::default()).unwrap()
}

/// What the probe answers to a step.
#[track_caller]
fn told(scene: &Scene, step: Value) -> Value {
    scene.probe("/", step).unwrap().expect(200).unwrap().json().unwrap()
}

#[test]
fn a_filter_learns_who_sent_its_request_and_what_it_is_called() {
    let scene = probed();
    let answer = scene.probe("/", "properties").unwrap();
    let (known, record) = (answer.json().unwrap(), scene.record(&answer).unwrap());
    assert_eq!(known["client_address"], "127.0.0.1");
    assert!(known["client_port"].as_u64().unwrap() > 0);
    assert_eq!(known["request_id"], answer.header("x-request-id").unwrap());
    assert_eq!(known["trace_id"], record["trace_id"]);
    assert_eq!((&known["tenant"], &known["scheme"]), (&json!("acme"), &json!("http")));
    assert_eq!(known["revision"], record["beamline.revision"]);
    assert_eq!(known["tls_server_name"], Value::Null);
}

#[test]
fn a_call_that_calls_the_host_too_often_is_answered_with_a_problem_of_its_own() {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    let set = |limit: u32| {
        scene.apply(|m| {
            m["filters"] = json!([probe]);
            m["limits"] = json!({ "host_calls": limit });
        })
    };
    set(100).unwrap();
    assert_eq!(scene.probe("/", "calls=90").unwrap().status, 200);
    let answer = scene.probe("/", "calls=100").unwrap();
    assert_eq!((answer.status, answer.problem()), (503, "filter-host-calls".into()));
    assert_eq!(scene.record(&answer).unwrap()["error.type"], "filter-host-calls");
    set(200).unwrap();
    assert_eq!(scene.probe("/", "calls=100").unwrap().status, 200);
    assert_eq!(set(1_000_001).unwrap_err().status(), Some(422));
}

#[test]
fn a_filter_has_a_clock() {
    let now = told(&probed(), json!({ "do": "clock", "n": 1 }));
    let since = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    let told = u128::from(now["now_ms"].as_u64().unwrap());
    assert!(told <= since && told + 60_000 > since, "{now} at {since}");
}

fn kv(call: &str, more: Value) -> Value {
    let mut step = json!({ "do": "kv", "call": call, "key": "k" });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step
}

#[test]
fn keys_and_values_last_over_requests_workers_and_revisions() {
    let scene = probed();
    // Each over a connection of its own, so on either worker.
    for sum in 1..=50 {
        assert_eq!(told(&scene, kv("increment", json!({ "by": 1 }))), sum);
    }
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|m| {
            m["filters"] = json!([probe]);
            m["limits"] = json!({ "kv_entries": 1 });
        })
        .unwrap();
    assert_eq!(told(&scene, kv("get", json!({}))), "50");
    assert_eq!(told(&scene, kv("set", json!({ "key": "other" }))), "quota-exceeded");
    assert_eq!(told(&scene, kv("set", json!({ "body": "kept", "ttl_ms": 3_600_000 }))), "ok");
    assert_eq!(told(&scene, kv("get", json!({}))), "kept");
}

#[test]
fn concurrent_increments_all_count() {
    let scene = probed();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..25).for_each(|_| drop(told(&scene, kv("increment", json!({ "by": 2 }))))));
        }
    });
    assert_eq!(told(&scene, kv("get", json!({}))), "400");
}

#[test]
fn what_a_tenant_keeps_is_its_own_and_goes_with_it() {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    let second = |made: &str| {
        scene.admin.create_tenant("second", &["second.test"], &["127.0.0.0/8"]).unwrap();
        scene.admin.push("second", &guests::module("probe").unwrap()).unwrap();
        let mut manifest = manifest("second.test", scene.origin.address());
        manifest["filters"] = json!([probe]);
        scene.admin.apply("second", &manifest).unwrap();
        let step = kv("get", json!({})).to_string();
        let get = Request::get("/").host("second.test").header("x-probe", &step);
        assert_eq!(get.send(scene.node.address()).unwrap().json().unwrap(), Value::Null, "{made}");
        let step = kv("set", json!({ "body": "second's" })).to_string();
        let set = Request::get("/").host("second.test").header("x-probe", &step);
        assert_eq!(set.send(scene.node.address()).unwrap().json().unwrap(), "ok");
    };
    assert_eq!(told(&scene, kv("set", json!({ "body": "first's" }))), "ok");
    second("another tenant keeps what it keeps to itself");
    assert_eq!(told(&scene, kv("get", json!({}))), "first's");
    let deleted = command(&scene.node, &scene.node.data_dir(), &["tenant", "delete", "second"]).unwrap();
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    second("whoever gets the name finds nothing");
}

#[test]
fn a_token_bucket_lets_its_burst_through_on_all_workers_together() {
    let scene = probed();
    let take =
        json!({ "do": "take", "bucket": "api", "key": "customer-1", "n": 1, "rate": [1, 3_600_000, 20] });
    let allowed = std::thread::scope(|scope| {
        let many = || (0..10).filter(|_| told(&scene, take.clone())["allowed"].is_u64()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(many)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(allowed, 20);
    assert!(told(&scene, take)["retry_after_ms"].as_u64().unwrap() > 3_000_000);
    let other =
        json!({ "do": "take", "bucket": "api", "key": "customer-2", "n": 1, "rate": [1, 3_600_000, 20] });
    assert_eq!(told(&scene, other), json!({ "allowed": 19 }));
}

#[test]
fn what_filters_count_is_on_the_nodes_metrics() {
    let scene = probed();
    let count = |key: &str, plan: &str| {
        told(&scene, json!({ "do": "metric", "key": key, "by": 2, "headers": { "plan": plan } }))
    };
    for plan in ["pro", "pro", "free"] {
        assert_eq!(count("orders", plan), "ok");
    }
    assert_eq!(told(&scene, json!({ "do": "metric", "key": "size", "value": 0.3 })), "ok");
    assert_eq!(count("orders_total", "pro"), "invalid-name");
    assert_eq!(
        told(&scene, json!({ "do": "metric", "key": "x", "headers": { "tenant": "other" } })),
        "invalid-label"
    );
    assert_eq!(told(&scene, json!({ "do": "metric", "key": "orders", "value": 1.0 })), "other-kind");
    assert_eq!(told(&scene, json!({ "do": "metric", "key": "size", "value": -1.0 })), "invalid-value");
    let shows = |line: &str| {
        let text = scene.admin.metrics().unwrap();
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    };
    shows("beamline_guest_orders_total{tenant=\"acme\",filter=\"probe\",plan=\"pro\"} 4");
    shows("beamline_guest_orders_total{tenant=\"acme\",filter=\"probe\",plan=\"free\"} 2");
    shows("beamline_guest_size_bucket{tenant=\"acme\",filter=\"probe\",le=\"0.25\"} 0");
    shows("beamline_guest_size_count{tenant=\"acme\",filter=\"probe\"} 1");
    shows("beamline_node_phase{phase=\"healthy\"} 1");

    let probe = scene.filter("probe").unwrap();
    scene.apply(|m| (m["filters"], m["limits"]) = (json!([probe]), json!({ "cpu": "60ms" }))).unwrap();
    assert_eq!(count("orders", "pro"), "ok");
    shows("beamline_guest_orders_total{tenant=\"acme\",filter=\"probe\",plan=\"pro\"} 6");
    let deleted = command(&scene.node, &scene.node.data_dir(), &["tenant", "delete", "acme"]).unwrap();
    assert!(deleted.status.success());
    let until = Instant::now() + PATIENCE;
    while scene.admin.metrics().unwrap().contains("beamline_guest_orders") {
        assert!(Instant::now() < until, "they go with the tenant");
        std::thread::sleep(Duration::from_millis(20));
    }
    let tenants = scene.admin.with_token(&scene.token).metrics().unwrap_err();
    assert_eq!(tenants.status(), Some(401), "the tenant's token is gone too");
}

/// A probe that may send requests to these.
fn sending(allow: &[String]) -> Scene {
    let scene = probed();
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|m| {
            m["filters"] = json!([probe]);
            m["egress"] = json!({ "allow": allow });
        })
        .unwrap();
    scene
}

#[test]
fn a_filter_sends_requests_to_what_its_manifest_allows() {
    let mut other = Origin::start("other").unwrap();
    let (at, port) = (other.address(), other.address().port());
    let scene = sending(&[format!("http://{at}"), format!("http://localhost:{port}")]);
    let send = |url: String, more: Value| {
        let mut step = json!({ "do": "send", "url": url });
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        told(&scene, step)
    };
    let posted = send(
        format!("http://{at}/inspect?a=1"),
        json!({ "call": "POST", "body": "hello", "headers": { "x-key": "7" } }),
    );
    assert_eq!((&posted["status"], &posted["origin"]), (&json!(200), &json!("other")));
    let seen: Value = serde_json::from_str(posted["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&seen["method"], &seen["target"], &seen["body"]),
        (&json!("POST"), &json!("/inspect?a=1"), &json!("hello"))
    );
    assert_eq!(other.last().values("x-key"), ["7"]);
    assert_eq!(other.last().values("host"), [at.to_string()]);
    assert_eq!(send(format!("http://localhost:{port}/"), json!({}))["status"], 200);
    assert_eq!(send(format!("http://{at}/status/503"), json!({}))["status"], 503);
    assert_eq!(send(format!("http://{at}/bytes?n=1048576"), json!({}))["bytes"], 1 << 20);

    assert_eq!(send(format!("http://{at}/bytes?n=1048577&chunked"), json!({})), "too-large");
    assert_eq!(send(format!("http://{at}/hang"), json!({ "timeout_ms": 200 })), "timeout");
    assert_eq!(send(format!("http://{at}/reset"), json!({})), "broken");
    assert_eq!(send(format!("http://{at}/cut?after=10"), json!({})), "broken");
    assert_eq!(send(format!("http://{}/", scene.origin.address()), json!({})), "not-allowed");
    assert_eq!(send(format!("http://{at}/"), json!({ "n": 5 })), "too-many");
    for url in [format!("https://{at}/"), "/relative".into(), format!("http://user@{at}/")] {
        let answer = send(url.clone(), json!({}));
        assert!(answer.as_str().unwrap().starts_with("invalid-request: "), "{url}: {answer}");
    }
    other.stop();
    // A kept connection breaks first.
    let until = Instant::now() + PATIENCE;
    while send(format!("http://{at}/"), json!({})) != "connect" {
        assert!(Instant::now() < until, "nobody is there any more");
    }
}

#[test]
fn a_filter_reaches_no_address_beyond_its_tenants_grant() {
    let scene = probed();
    scene.admin.create_tenant("second", &["second.test"], &["192.0.2.0/24"]).unwrap();
    scene.admin.push("second", &guests::module("probe").unwrap()).unwrap();
    let (admin, port) = (scene.node.admin_address(), scene.origin.address().port());
    let probe = scene.filter("probe").unwrap();
    let apply = |allow: &[String]| {
        let manifest = json!({
            "version": 1, "hosts": ["second.test"], "filters": [probe], "egress": { "allow": allow },
        });
        scene.admin.apply("second", &manifest)
    };
    for rule in
        [format!("http://{admin}"), format!("http://127.0.0.1:{port}"), "http://169.254.169.254".into()]
    {
        let refused = apply(std::slice::from_ref(&rule)).unwrap_err();
        assert_eq!(refused.kind(), "outside-grant", "{rule}: {refused}");
        assert!(refused.to_string().contains("egress.allow[0]"), "{refused}");
    }
    // A name is nobody's address before it is resolved, and may be another's each time.
    apply(&[format!("http://localhost:{port}"), format!("http://localhost:{}", admin.port())]).unwrap();
    for port in [port, admin.port()] {
        let step = json!({ "do": "send", "url": format!("http://localhost:{port}/") }).to_string();
        let request = Request::get("/").host("second.test").header("x-probe", &step);
        assert_eq!(request.send(scene.node.address()).unwrap().json().unwrap(), "connect");
    }
    // However loopback is written: as what it is, or as a name that a resolver makes it of.
    for host in ["127.1", "2130706433", "0x7f.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]"] {
        let url = format!("http://{host}:{port}");
        if let Err(refused) = apply(std::slice::from_ref(&url)) {
            assert!(["outside-grant", "invalid-manifest"].contains(&refused.kind()), "{host}: {refused}");
            continue;
        }
        let step = json!({ "do": "send", "url": url }).to_string();
        let request = Request::get("/").host("second.test").header("x-probe", &step);
        assert_eq!(request.send(scene.node.address()).unwrap().json().unwrap(), "connect", "{host}");
    }
    assert!(scene.origin.requests().is_empty(), "nothing was sent");
    // The log says what the filter is not told.
    let explains = |record: &Value| {
        record["kind"] == "guest"
            && record["body"].as_str().is_some_and(|body| {
                body.starts_with(&format!("outbound request: localhost:{port}: ")) && body.contains("granted")
            })
    };
    scene.node.wait_log(PATIENCE, |log| log.iter().any(explains)).unwrap();

    // With loopback granted the admin address is still nobody's.
    let admins = sending(&[format!("http://localhost:{}", admin.port())]);
    let own = admins.node.admin_address().port();
    let probe = admins.filter("probe").unwrap();
    admins
        .apply(|m| {
            (m["filters"], m["egress"]) =
                (json!([probe]), json!({ "allow": [format!("http://localhost:{own}")] }))
        })
        .unwrap();
    assert_eq!(
        told(&admins, json!({ "do": "send", "url": format!("http://localhost:{own}/livez") })),
        "connect"
    );
}

#[test]
fn requests_go_on_while_filters_wait_for_their_answers() {
    let other = Origin::start("other").unwrap();
    let scene = sending(&[format!("http://{}", other.address())]);
    let hang = json!({ "do": "send", "url": format!("http://{}/hang", other.address()), "timeout_ms": 2500 });
    // Where others hold the processor for as long, the round says nothing.
    let went_on = (1..=3).any(|round| {
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..16).map(|_| scope.spawn(|| told(&scene, hang.clone()))).collect();
            other.wait_for(PATIENCE, |log| log.len() == 16 * round).unwrap();
            for _ in 0..50 {
                assert_eq!(scene.probe("/", "next").unwrap().status, 200);
            }
            let all_wait = waiting.iter().all(|waiting| !waiting.is_finished());
            for waiting in waiting {
                assert_eq!(waiting.join().unwrap(), "timeout");
            }
            all_wait
        })
    });
    assert!(went_on, "50 requests ended before one of 16 that wait");
}

#[test]
fn requests_of_filters_that_lead_back_to_the_node_end_as_a_loop() {
    let scene = probed();
    let at = format!("http://localhost:{}", scene.node.address().port());
    scene.admin.create_tenant("second", &["localhost"], &["127.0.0.0/8"]).unwrap();
    scene.admin.push("second", &guests::module("probe").unwrap()).unwrap();
    let mut probe = scene.filter("probe").unwrap();
    probe["config"] = json!({ "do": "send", "url": format!("{at}/"), "timeout_ms": 4000 });
    let mut manifest = manifest("localhost", scene.origin.address());
    (manifest["filters"], manifest["egress"]) = (json!([probe]), json!({ "allow": [at] }));
    scene.admin.apply("second", &manifest).unwrap();
    let request = Request::get("/").host("localhost");
    assert_eq!(request.send(scene.node.address()).unwrap().json().unwrap()["status"], 200);
    scene.access(|record| record["error.type"] == "loop-detected").unwrap();
    // Each round's record is written when it has been answered: the first is the last.
    let is_round = |record: &&Value| record["kind"] == "access" && record["server.address"] == "localhost";
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().filter(is_round).count() >= 8).unwrap();
    assert_eq!(log.iter().filter(is_round).count(), 8, "the ninth is refused before its host is looked at");
}

#[test]
fn the_filters_of_one_request_send_a_bounded_number_of_requests() {
    let other = Origin::start("other").unwrap();
    let scene = probed();
    let url = format!("http://{}/", other.address());
    let (probe, limits) = (scene.filter("probe").unwrap(), json!({ "outbound_calls": 32, "cpu": "1s" }));
    let filter = |name: &str, step: Value| {
        let mut filter = probe.clone();
        (filter["name"], filter["config"]) = (json!(name), step);
        filter
    };
    let many = json!({ "do": "send", "url": url, "n": 32, "then": "next" });
    let filters = json!([
        filter("a", many.clone()),
        filter("b", many),
        filter("c", json!({ "do": "send", "url": url }))
    ]);
    scene
        .apply(|m| {
            (m["filters"], m["limits"]) = (filters, limits);
            m["egress"] = json!({ "allow": [format!("http://{}", other.address())] });
        })
        .unwrap();
    for round in 1..=2 {
        let answer = scene.send(Request::get("/")).unwrap();
        assert_eq!(answer.json().unwrap(), "too-many");
        assert_eq!(other.count(), round * 64);
    }
}

#[test]
fn a_request_of_a_filter_never_outlives_its_call() {
    let other = Origin::start("other").unwrap();
    let scene = sending(&[format!("http://{}", other.address())]);
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|m| {
            m["filters"] = json!([probe]);
            m["limits"] = json!({ "concurrency": 1, "cpu": "1s" });
            m["egress"] = json!({ "allow": [format!("http://{}", other.address())] });
        })
        .unwrap();
    let hang =
        json!({ "do": "send", "url": format!("http://{}/hang", other.address()), "timeout_ms": u32::MAX });
    let in_lane = json!({ "do": "spin-ms", "n": 5, "then": hang });
    for (before, step) in [hang, in_lane].into_iter().enumerate() {
        // Its own end, or that of the call, whichever is seen first.
        let answer = scene.probe("/", step).unwrap();
        let told = answer.text();
        assert!(told == "\"timeout\"" || answer.refusal() == (503, "filter-timeout".into()), "{told}");
        other.wait_for(PATIENCE, |log| log.len() == before + 1).unwrap();
        other.wait_closed(PATIENCE).unwrap();
        let until = Instant::now() + PATIENCE;
        while scene.probe("/", "next").unwrap().status != 200 {
            assert!(Instant::now() < until, "the one place of the tenant is free again");
        }
    }
}

#[test]
fn a_filter_that_imports_wasi_is_granted_nothing_by_it() {
    let scene = Scene::with(Options::default()).unwrap();
    let module = scene.admin.push(TENANT, &guests::module("wasi").unwrap()).unwrap();
    assert_eq!(module.tier, "component");
    assert!(
        module.imports.iter().any(|import| import.starts_with("wasi:filesystem/preopens@")),
        "{module:?}"
    );
    let filter = json!({ "name": "wasi", "module": module.digest });
    scene.apply(|m| m["filters"] = json!([filter])).unwrap();
    let told = |path: &str| scene.send(Request::get(path)).unwrap().expect(200).unwrap().json().unwrap();
    let surroundings = told("/surroundings");
    assert_eq!((&surroundings["environment"], &surroundings["files"]), (&json!([]), &json!(0)));
    assert_eq!(told("/sockets")["tcp"], "access-denied");
    assert!(told("/sleep/20")["block"].as_u64().unwrap() >= 20_000_000);

    let answer = scene.send(Request::get("/print")).unwrap().expect(200).unwrap();
    let id = answer.header("x-request-id").unwrap();
    let is_it = |r: &&Value| r["kind"] == "guest" && r["request.id"] == id;
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().filter(is_it).count() == 4).unwrap();
    let lines: Vec<_> = log.iter().filter(is_it).map(|r| r["body"].as_str().unwrap()).collect();
    assert_eq!(lines, ["first line", "second line", "no end", "what went wrong"]);

    let exited = scene.send(Request::get("/exit/0")).unwrap();
    assert_eq!(exited.refusal(), (503, "filter-trap".into()));
    let detail = exited.json().unwrap()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("the guest called exit with success"), "{detail}");
}

#[test]
fn a_module_that_would_send_requests_by_wasi_is_told_what_to_use() {
    let scene = Scene::with(Options::default()).unwrap();
    let component =
        wat::parse_str(r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance)))"#).unwrap();
    let refused = scene.admin.push(TENANT, &component).unwrap_err();
    assert_eq!((refused.status(), refused.kind()), (Some(422), "module-rejected"));
    let told = refused.detail();
    assert!(told.contains("wasi:http/outgoing-handler@0.2.0"), "{told}");
    assert!(told.contains("beamline:edge/outbound@0.1.0"), "{told}");
}
