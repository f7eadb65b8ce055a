//! When a request is queued, and when not.

use beamline_tests::{
    client::{Connection, Request, Response},
    scene::{HOST, PATIENCE, Scene},
};
use serde_json::{Value, json};

use crate::{
    asking, attempt, body_files, count, deliveries, files_with, location, nothing_is_queued, outage, queue,
    queueing, receipt, wait, wait_state,
};

/// Refused because the upstream is down, with a word on when to come back.
#[track_caller]
fn is_refused(answer: &Response) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let kind = answer.problem();
    assert!(kind == "upstream-connect" || kind == "upstream-unavailable", "{kind}");
}

#[test]
fn the_mode_never_queues_nothing_and_is_the_default() {
    let mut scene = Scene::start().unwrap();
    scene.origin.stop();
    for queue in [Value::Null, json!({ "mode": "never" })] {
        if !queue.is_null() {
            scene.apply(|manifest| manifest["upstreams"]["origin"]["queue"] = queue).unwrap();
        }
        is_refused(&scene.send(Request::post("/in", "body")).unwrap());
        is_refused(&scene.send(asking(Request::new("PUT", "/in").body("body"))).unwrap());
    }
    nothing_is_queued(&scene);
}

#[test]
fn the_mode_prefer_queues_for_who_asks() {
    let mut scene = queueing(json!({ "mode": "prefer" }));
    scene.origin.stop();
    is_refused(&scene.send(Request::post("/in", "unasked")).unwrap());
    is_refused(&scene.send(Request::post("/in", "x").header("Prefer", "handling=lenient")).unwrap());
    nothing_is_queued(&scene);
    let answer = scene.send(asking(Request::post("/in", "asked"))).unwrap();
    assert_eq!((answer.status, answer.header("preference-applied")), (202, Some("respond-async")));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location(&answer), "delivered");
    assert_eq!(scene.origin.requests().iter().map(|r| r.body.clone()).collect::<Vec<_>>(), [b"asked"]);
}

#[test]
fn the_mode_on_failure_queues_whether_the_client_asks_or_not() {
    let scene = outage();
    let unasked = scene.send(Request::post("/in", "unasked")).unwrap();
    assert_eq!((unasked.status, unasked.header("preference-applied")), (202, None));
    let asked = scene.send(asking(Request::post("/in", "asked"))).unwrap();
    assert_eq!((asked.status, asked.header("preference-applied")), (202, Some("respond-async")));
}

#[test]
fn the_mode_always_queues_without_a_try() {
    let policy = json!({ "mode": "always", "max_body": "64KiB", "methods": ["POST", "DELETE"] });
    let scene = queueing(policy);
    let answers = [Request::post("/in", "unasked"), asking(Request::post("/in", "asked"))]
        .map(|request| scene.send(request).unwrap());
    assert_eq!(answers.each_ref().map(|a| a.header("preference-applied")), [None, Some("respond-async")]);
    for answer in &answers {
        wait_state(&scene, &location(answer), "delivered");
    }
    let log = scene.origin.requests();
    assert_eq!(log.iter().map(|r| attempt(&r.headers)).collect::<Vec<_>>(), [Some(1), Some(1)]);

    // What may only be stored, and cannot be, is not sent.
    let long = || Request::post("/in", vec![b'x'; 65_537]);
    for request in [long(), long().chunked(), Request::post("/in", "body").header("Cookie", "a=b")] {
        let answer = scene.send(request).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (503, "not-queueable"), "{}", answer.text());
    }
    assert_eq!((scene.origin.count(), count(&scene, "accepted")), (2, 2));
    // What the policy does not name is no work for the queue.
    for method in ["GET", "PUT"] {
        assert_eq!(scene.send(Request::new(method, "/echo")).unwrap().status, 200);
    }
    assert_eq!((scene.origin.count(), count(&scene, "accepted")), (4, 2));
}

#[test]
fn while_the_upstream_works_nothing_is_queued_even_for_who_asks() {
    let scene = queueing(json!({ "mode": "on-failure" }));
    for method in ["POST", "PUT"] {
        let answer = scene.send(asking(Request::new(method, "/echo").body("body"))).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
    }
    nothing_is_queued(&scene);
}

#[test]
fn no_such_name_and_an_open_breaker_are_failures_before_the_first_byte() {
    let mut scene = queueing(json!({ "mode": "prefer" }));
    scene
        .apply(|manifest| {
            manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
            manifest["upstreams"]["origin"]["endpoints"] = json!(["nowhere.invalid:80"]);
        })
        .unwrap();
    queue(&scene, Request::post("/in", "no such name"));
    // Back to the origin that refuses, until the breaker is open: then it is not even tried.
    scene.origin.stop();
    scene.apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "prefer" })).unwrap();
    let refused = |kind: &str| {
        let answer = scene.send(Request::post("/in", "unasked")).unwrap();
        is_refused(&answer);
        answer.problem() == kind
    };
    assert!(refused("upstream-connect"));
    wait(PATIENCE, || refused("upstream-unavailable"), |open| *open);
    queue(&scene, asking(Request::post("/in", "breaker open")));
}

#[test]
fn a_post_whose_bytes_left_is_never_queued() {
    for mode in ["prefer", "on-failure"] {
        let scene = queueing(json!({ "mode": mode }));
        let answer = scene.send(asking(Request::post("/reset", "not twice"))).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-reset"));
        let answer = scene.send(asking(Request::post("/garbage", "not twice"))).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-reset"));
        nothing_is_queued(&scene);
        assert_eq!(scene.origin.count(), 2, "each came once");
    }
}

#[test]
fn a_put_or_delete_is_queued_after_its_bytes_left() {
    let scene = queueing(json!({ "mode": "on-failure" }));
    for (method, target) in [("PUT", "/reset"), ("DELETE", "/reset"), ("PUT", "/garbage")] {
        let body = format!("{method} {target}");
        let location = queue(&scene, Request::new(method, target).body(body.clone()));
        scene.origin.answer_all(Some(200));
        wait_state(&scene, &location, "delivered");
        scene.origin.answer_all(None);
        let log = scene.origin.requests();
        let mine: Vec<_> = log.iter().filter(|r| r.body == body.as_bytes()).collect();
        assert_eq!(attempt(&mine[0].headers), None, "first it came from its client");
        assert!(
            mine.len() > 1 && mine[1..].iter().all(|r| attempt(&r.headers).is_some() && r.method == method)
        );
    }
}

#[test]
fn an_idempotency_key_counts_where_the_origin_honours_it() {
    for honours in [false, true] {
        let scene = queueing(json!({ "mode": "on-failure", "origin_honours_idempotency_key": honours }));
        let keyed = Request::post("/reset", "keyed").header("Idempotency-Key", "order-7");
        let answer = scene.send(keyed).unwrap();
        if !honours {
            assert_eq!(answer.status, 502, "{}", answer.text());
            nothing_is_queued(&scene);
            continue;
        }
        let location = location(&answer);
        scene.origin.answer_all(Some(200));
        wait_state(&scene, &location, "delivered");
        let log = scene.origin.requests();
        assert!(deliveries(&log).iter().all(|r| r.headers.get("idempotency-key") == Some("order-7")));
        scene.origin.answer_all(None);
        for key in [None, Some("")] {
            let request =
                key.into_iter().fold(Request::post("/reset", ""), |r, k| r.header("Idempotency-Key", k));
            assert_eq!(scene.send(request).unwrap().status, 502, "no key is no key: {key:?}");
        }
    }
}

#[test]
fn no_answer_in_time_is_a_failure_after_the_bytes_left() {
    let scene = Scene::start().unwrap();
    scene
        .apply(|manifest| {
            manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
            manifest["upstreams"]["origin"]["response_timeout"] = json!("200ms");
        })
        .unwrap();
    let answer = scene.send(asking(Request::post("/hang", "not twice"))).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"));
    nothing_is_queued(&scene);
    queue(&scene, Request::new("PUT", "/hang").body("twice"));
}

#[test]
fn once_a_response_head_came_there_is_no_202() {
    let scene = queueing(json!({ "mode": "on-failure" }));
    for method in ["POST", "PUT"] {
        let cut = asking(Request::new(method, "/cut?after=10").body("body")).host(HOST);
        let answer = cut.attempt(scene.node.address()).unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 10));
        assert!(!answer.end.is_whole(), "it is cut off, as it came");
        for status in [500, 502, 503] {
            let failed = asking(Request::new(method, &format!("/status/{status}")).body("body"));
            assert_eq!(scene.send(failed).unwrap().status, status, "an answer is an answer");
        }
    }
    nothing_is_queued(&scene);
    assert_eq!(scene.origin.count(), 8, "each came once");
}

#[test]
fn safe_methods_and_upgrades_are_never_queued() {
    let scene = outage();
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        let answer = scene.send(asking(Request::new(method, "/in"))).unwrap();
        assert!(answer.status >= 400, "{method}: {}", answer.status);
    }
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let connect = format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\nPrefer: respond-async\r\n\r\n");
    connection.send_raw(connect.as_bytes()).unwrap();
    assert!(connection.read_response("GET").unwrap().status >= 400);
    let upgrade =
        asking(Request::post("/in", "body")).header("Connection", "upgrade").header("Upgrade", "chat");
    is_refused(&scene.send(upgrade).unwrap());
    nothing_is_queued(&scene);
}

#[test]
fn the_manifest_can_name_the_methods() {
    let mut scene = queueing(json!({ "mode": "on-failure", "methods": ["PUT"] }));
    scene.origin.stop();
    is_refused(&scene.send(asking(Request::post("/in", "body"))).unwrap());
    nothing_is_queued(&scene);
    queue(&scene, Request::new("PUT", "/in").body("body"));
}

#[test]
fn a_body_beyond_max_body_is_not_queued_however_it_is_framed() {
    let mut scene = queueing(json!({ "mode": "on-failure", "max_body": "64KiB" }));
    scene.origin.stop();
    let of = |length: usize| Request::post("/in", vec![b'x'; length]);
    is_refused(&scene.send(of(65_537)).unwrap());
    is_refused(&scene.send(of(65_537).chunked()).unwrap());
    is_refused(&scene.send(asking(of(1 << 20)).chunked()).unwrap());
    nothing_is_queued(&scene);
    queue(&scene, of(65_536));
    queue(&scene, of(65_536).chunked());
    assert_eq!(body_files(&scene), 2);
}

const CANARY: &str = "canary-4711-never-on-disk";

#[test]
fn credentials_are_refused_unless_they_may_be_stripped_and_never_stored() {
    for (credentials, field) in
        ["refuse", "strip"].into_iter().flat_map(|c| ["Authorization", "Cookie"].map(|field| (c, field)))
    {
        let mut scene = queueing(json!({ "mode": "on-failure", "credentials": credentials }));
        scene.origin.stop();
        let body = vec![b'x'; 40_000];
        let secret = format!("Bearer {CANARY}");
        let request = Request::post("/in", body.clone()).header(field, &secret).header("X-Kept", "yes");
        let answer = scene.send(request).unwrap();
        if credentials == "refuse" {
            is_refused(&answer);
            nothing_is_queued(&scene);
        } else {
            let location = location(&answer);
            assert_eq!(files_with(scene.node.folder(), CANARY), [] as [String; 0], "while it waits");
            scene.origin.start_again().unwrap();
            wait_state(&scene, &location, "delivered");
            let log = scene.origin.requests();
            assert!(log[0].headers.get(field).is_none(), "it goes without");
            assert_eq!((log[0].headers.get("x-kept"), &log[0].body), (Some("yes"), &body));
        }
        scene.node.kill_nine().unwrap();
        assert_eq!(files_with(scene.node.folder(), CANARY), [] as [String; 0], "{credentials} {field}");
    }
}

/// Sends a head that promises a body, and a part of that body, then goes away.
fn goes_away(scene: &Scene, method: &str, part: usize, chunked: bool, key: Option<&str>) {
    let mut request = Request::new(method, "/in").host(HOST).body(vec![b'x'; 2 * part]);
    request = if chunked { request.chunked() } else { request };
    request = key.into_iter().fold(request, |r, key| r.header("X-Key", key));
    let bytes = request.to_bytes();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    connection.send_raw(&bytes[..bytes.len() - part]).unwrap();
}

#[test]
fn who_goes_away_before_the_body_is_whole_has_queued_nothing() {
    let mut scene = queueing(json!({ "mode": "on-failure", "ordering_key": { "header": "x-key" } }));
    let recorded = |log: &[Value]| log.iter().filter(|r| r["error.type"] == "client-gone").count();
    let mut gone = 0;
    for up in [true, false] {
        if !up {
            scene.origin.stop();
        }
        for method in ["POST", "PUT"] {
            for (part, chunked) in [(10, false), (10, true), (100_000, false), (100_000, true)] {
                goes_away(&scene, method, part, chunked, Some("k"));
                gone += 1;
            }
        }
        // Before anything else becomes of the origin: the node has noticed that they are gone.
        scene.node.wait_log(PATIENCE, |log| recorded(log) == gone).unwrap();
    }
    nothing_is_queued(&scene);
    // Behind others of its key, too.
    queue(&scene, Request::post("/in", "whole").header("X-Key", "k"));
    goes_away(&scene, "POST", 100_000, false, Some("k"));
    scene.node.wait_log(PATIENCE, |log| recorded(log) > gone).unwrap();
    assert_eq!((count(&scene, "kept"), body_files(&scene)), (1, 0));
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || count(&scene, "open"), |open| *open == 0);
    let whole = scene.origin.requests().into_iter().filter(|r| r.whole).collect::<Vec<_>>();
    assert_eq!(whole.iter().map(|r| r.body.as_slice()).collect::<Vec<_>>(), [b"whole"]);
}

#[test]
fn what_is_stored_is_the_request_as_the_filters_left_it_and_they_do_not_run_again() {
    let mut scene = queueing(json!({ "mode": "on-failure" }));
    scene.origin.stop();
    let probe = scene.filter("probe").unwrap();
    let with = |config: Value| {
        scene
            .apply(|manifest| {
                let mut probe = probe.clone();
                probe["config"] = config;
                manifest["filters"] = json!([probe]);
                manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
            })
            .unwrap();
    };
    with(json!({ "do": "set-headers", "headers": { "x-added": "by the filter", "x-removed": null } }));
    let request = Request::post("/in?a=1", "body").header("X-Removed", "1").header("X-Twice", "a");
    let location = queue(&scene, request.header("X-Twice", "b").trailer("x-trailer", "1"));
    with(json!({ "do": "respond", "status": 418 }));
    scene.origin.start_again().unwrap();
    // Receipts are asked for before any filter.
    wait_state(&scene, &location, "delivered");
    let log = scene.origin.requests();
    let headers = &log[0].headers;
    assert_eq!((log[0].target.as_str(), log[0].body.as_slice()), ("/in?a=1", &b"body"[..]));
    assert_eq!((headers.get("x-added"), headers.get("x-removed")), (Some("by the filter"), None));
    assert_eq!(headers.all("x-twice").collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((headers.get("host"), headers.get("content-length")), (Some(HOST), Some("4")));
    assert!(log[0].trailers.is_empty(), "trailers are not stored");
}

#[test]
fn a_filter_delays_a_request_and_shortens_its_time_until_it_expires() {
    let mut scene = Scene::probed(beamline_tests::beamline::Options::default()).unwrap();
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|manifest| {
            manifest["filters"] = json!([probe]);
            manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "prefer", "expiry": "1m" });
        })
        .unwrap();
    let said = |body: &'static str, mut step: Value| {
        step["do"] = json!("enqueue");
        Request::post("/in", body).header("x-probe", &step.to_string())
    };
    for step in [json!({ "delay_ms": 60_000 }), json!({ "delay_ms": 10, "expiry_ms": 10 })] {
        let answer = scene.send(said("never", step)).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (503, "not-queueable"));
        assert!(answer.text().contains("expected a delay that is shorter"), "{}", answer.text());
    }
    let answer = scene.send(said("delayed", json!({ "delay_ms": 3000, "ordering_key": "k" }))).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (202, Some("3")), "{}", answer.text());
    let delayed = location(&answer);
    let behind = queue(&scene, said("behind", json!({ "ordering_key": "k" })));
    let free = queue(&scene, said("free", json!({ "expiry_ms": 20_000_000 })));
    let told = wait_state(&scene, &free, "delivered");
    let lasts = |told: &Value| told["expires_ms"].as_u64().unwrap() - told["accepted_ms"].as_u64().unwrap();
    assert_eq!(lasts(&told), 60_000, "never later than the policy says");
    assert_eq!(receipt(&scene, &behind)["attempts"], 0);
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    for location in [&delayed, &behind] {
        wait_state(&scene, location, "delivered");
    }
    let log = scene.origin.requests();
    assert_eq!(
        log.iter().map(|r| r.body.as_slice()).collect::<Vec<_>>(),
        [&b"free"[..], b"delayed", b"behind"]
    );
    let accepted = receipt(&scene, &delayed)["accepted_ms"].as_u64().unwrap();
    let came = log[1].at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(came >= accepted + 3000, "{} ms after it was accepted", came - accepted);

    scene.origin.stop();
    let brief = queue(&scene, said("brief", json!({ "delay_ms": 500, "expiry_ms": 1000 })));
    let told = wait_state(&scene, &brief, "dead");
    assert_eq!((&told["reason"], lasts(&told)), (&json!("expired"), 1000));
}

#[test]
fn a_filter_that_says_enqueue_stores_without_a_try() {
    let scene = Scene::probed(beamline_tests::beamline::Options::default()).unwrap();
    let probe = scene.filter("probe").unwrap();
    let enqueue = || Request::post("/in", "body").header("x-probe", r#"{"do":"enqueue"}"#);
    let answer = scene.send(enqueue()).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (503, "not-queueable"), "the mode is never");
    scene
        .apply(|manifest| {
            manifest["filters"] = json!([probe]);
            manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "prefer" });
        })
        .unwrap();
    for request in [Request::get("/in").header("x-probe", "enqueue"), enqueue().header("Cookie", "a=b")] {
        let answer = scene.send(request).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (503, "not-queueable"));
    }
    let location = queue(&scene, enqueue());
    wait_state(&scene, &location, "delivered");
    let log = scene.origin.requests();
    assert_eq!(log.iter().map(|r| attempt(&r.headers)).collect::<Vec<_>>(), [Some(1)]);
    assert_eq!(receipt(&scene, &location)["attempts"], 1);
}
