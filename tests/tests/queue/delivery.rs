//! How records are delivered: what each answer of the origin leads to, how an upstream that is down is probed, and how
//! it is spared when it is back.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use beamline_tests::{
    admin::manifest,
    client::Request,
    guests,
    origin::{Origin, Recorded},
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::{Value, json};

use crate::{
    attempt, body_files, configured, count, deliveries, outage, queue, queueing, receipt, wait, wait_state,
};

#[test]
fn a_delivery_carries_what_the_origin_needs_to_know_it_by() {
    let mut scene = outage();
    let body = vec![b'x'; 100_000];
    let answer = scene.send(Request::post("/in?a=b", body.clone()).chunked()).unwrap();
    let location = crate::location(&answer);
    let access = scene.record(&answer).unwrap();
    let told = receipt(&scene, &location);
    assert_eq!(body_files(&scene), 1, "a large body waits in a file");
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivered");
    let log = scene.origin.requests();
    let (seen, headers) = (&log[0], &log[0].headers);
    assert_eq!((seen.method.as_str(), seen.target.as_str(), log.len()), ("POST", "/in?a=b", 1));
    assert!(seen.body == body, "byte for byte");
    assert_eq!(headers.get("host"), Some(HOST));
    assert!(attempt(headers) >= Some(1));
    let accepted: f64 = headers.get("beamline-accepted").unwrap().parse().unwrap();
    let told_ms = told["accepted_ms"].as_f64().unwrap();
    assert!((accepted * 1000.0 - told_ms).abs() < 1.0, "Unix time: {accepted}, {told_ms} ms");
    assert_eq!(headers.get("idempotency-key"), told["id"].as_str(), "the record's id");
    let trace = access["trace_id"].as_str().unwrap();
    assert!(headers.get("traceparent").unwrap().contains(trace), "of the original trace");
    assert!(headers.get("prefer").is_none());
    wait(PATIENCE, || body_files(&scene), |files| *files == 0);
}

#[test]
fn attempts_are_counted_and_the_key_stays_the_same() {
    let mut scene = outage();
    let location = queue(&scene, Request::new("PUT", "/in").body("body"));
    scene.origin.answer_all(Some(500));
    scene.origin.start_again().unwrap();
    let three = |log: &[_]| deliveries(log).len() >= 3;
    scene.origin.wait_for(PATIENCE, three).unwrap();
    scene.origin.answer_all(None);
    let told = wait_state(&scene, &location, "delivered");
    let log = scene.origin.requests();
    let attempts: Vec<_> = log.iter().map(|r| attempt(&r.headers).unwrap()).collect();
    assert!(attempts.windows(2).all(|pair| pair[1] == pair[0] + 1), "{attempts:?}");
    assert_eq!(told["attempts"].as_u64(), attempts.last().copied());
    assert!(log.iter().all(|r| r.headers.get("idempotency-key") == told["id"].as_str()));
}

/// What an outcome leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Delivered,
    Dead(&'static str),
    Again,
}

#[test]
fn each_answer_of_the_origin_leads_to_what_the_table_says() {
    use Then::{Again, Dead, Delivered};
    let (rejected, indeterminate) = (Dead("rejected"), Dead("indeterminate"));
    let table = [
        ("/in", Delivered, Delivered),
        ("/status/204", Delivered, Delivered),
        ("/status/301", rejected, rejected),
        ("/status/404", rejected, rejected),
        ("/status/422", rejected, rejected),
        ("/status/425", Again, Again),
        ("/status/429", Again, Again),
        ("/status/503?retry-after=1", Again, Again),
        ("/status/408", Again, rejected),
        ("/status/500", Again, indeterminate),
        ("/status/503", Again, indeterminate),
        ("/reset", Again, indeterminate),
        ("/garbage", Again, indeterminate),
        // The head came: the origin has answered, though not to the end.
        ("/cut", Delivered, Delivered),
    ];
    let mut scene = Scene::start().unwrap();
    scene.origin.stop();
    // Each in a tenant of its own, so that none waits for another's back-off.
    let mut waiting = Vec::new();
    for (row, (target, safe, unsafe_)) in table.into_iter().enumerate() {
        for (method, then) in [("PUT", safe), ("POST", unsafe_)] {
            let name = format!("row{row}-{}", method.to_lowercase());
            let host = format!("{name}.test");
            scene.admin.create_tenant(&name, &[&host], &["127.0.0.0/8"]).unwrap();
            let mut manifest = manifest(&host, scene.origin.address());
            manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
            scene.admin.apply(&name, &manifest).unwrap();
            let body = format!("{method} {target}");
            let request = Request::new(method, target).host(&host).body(body.clone());
            let location = crate::location(&request.send(scene.node.address()).unwrap());
            waiting.push((body, host, location, then));
        }
    }
    let told = |host: &str, location: &str| -> Value {
        Request::get(location).host(host).send(scene.node.address()).unwrap().json().unwrap()
    };
    scene.origin.start_again().unwrap();
    let arrived = |body: &str| -> usize {
        scene.origin.requests().iter().filter(|r| r.body == body.as_bytes()).count()
    };
    for (body, host, location, then) in &waiting {
        match then {
            Delivered => {
                let seen = wait(PATIENCE, || told(host, location), |told| told["state"] == "delivered");
                assert_eq!(arrived(body), 1, "{body}");
                assert_eq!(seen["response_complete"], !body.contains("/cut"), "{body}: {seen}");
            }
            Dead(reason) => {
                let seen = wait(PATIENCE, || told(host, location), |told| told["state"] == "dead");
                assert_eq!(seen["reason"], *reason, "{body}");
                assert_eq!(arrived(body), 1, "{body}");
            }
            Again => {
                wait(PATIENCE, || arrived(body), |times| *times >= 2);
                let seen = told(host, location);
                assert!(seen["state"] == "queued" || seen["state"] == "delivering", "{body}: {seen}");
            }
        }
    }
    scene.origin.answer_all(Some(200));
    for (body, host, location, _) in waiting.iter().filter(|row| row.3 == Again) {
        let seen = wait(
            PATIENCE,
            || told(host, location),
            |told| told["state"] != "queued" && told["state"] != "delivering",
        );
        assert_eq!(seen["state"], "delivered", "{body}");
    }
}

#[test]
fn what_a_status_means_is_the_manifests_to_say_and_the_active_revision_counts() {
    let on_status = json!({ "404": "retry", "409": "delivered", "5xx": "dead" });
    let mut scene = queueing(json!({ "mode": "on-failure", "on_status": on_status }));
    scene.origin.stop();
    let missing = queue(&scene, Request::post("/status/404", "missing"));
    let conflict = queue(&scene, Request::post("/status/409", "conflict"));
    let failed = queue(&scene, Request::new("PUT", "/status/500").body("failed"));
    let refused = queue(&scene, Request::post("/status/422", "refused"));
    scene.origin.start_again().unwrap();
    let told = wait_state(&scene, &conflict, "delivered");
    assert_eq!(told["last_status"], 409);
    for (location, status) in [(&failed, 500), (&refused, 422)] {
        let told = wait_state(&scene, location, "dead");
        assert_eq!((&told["reason"], &told["last_status"]), (&json!("rejected"), &json!(status)));
    }
    // Not safe to repeat, and repeated, for its manifest says that it was not taken.
    wait(PATIENCE, || receipt(&scene, &missing)["attempts"].as_u64(), |attempts| *attempts >= Some(2));
    scene
        .apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" }))
        .unwrap();
    assert_eq!(
        wait_state(&scene, &missing, "dead")["reason"],
        "rejected",
        "what waits goes by the new revision"
    );
}

#[test]
fn retry_after_is_honoured() {
    let mut scene = outage();
    queue(&scene, Request::post("/status/429?retry-after=3", "body"));
    scene.origin.start_again().unwrap();
    let log = scene.origin.wait_for_count(2, PATIENCE).unwrap();
    let apart = log[1].at.duration_since(log[0].at).unwrap();
    assert!(apart >= Duration::from_secs(3), "{apart:?}");
}

#[test]
fn retry_after_as_a_date_is_honoured_and_one_that_is_past_is_a_second() {
    let mut scene = outage();
    let at = SystemTime::now() + Duration::from_secs(7);
    let later = httpdate::fmt_http_date(at).replace(' ', "+");
    let past = "Sun,+06+Nov+1994+08:49:37+GMT";
    // Unsafe ones: that they are tried again at all is the field's doing.
    queue(&scene, Request::post(&format!("/status/503?retry-after={later}"), "later"));
    queue(&scene, Request::post(&format!("/status/503?retry-after={past}"), "past"));
    scene.origin.start_again().unwrap();
    let times = |body: &str| -> Vec<SystemTime> {
        scene.origin.requests().iter().filter(|r| r.body == body.as_bytes()).map(|r| r.at).collect()
    };
    wait(PATIENCE, || times("later").len() >= 2 && times("past").len() >= 2, |both| *both);
    // A date has whole seconds.
    assert!(times("later")[1] + Duration::from_secs(1) >= at);
    let apart = times("past")[1].duration_since(times("past")[0]).unwrap();
    assert!(apart >= Duration::from_millis(950), "{apart:?}");
}

#[test]
fn a_record_expires() {
    let mut scene = queueing(json!({ "mode": "on-failure", "expiry": "1s" }));
    scene.origin.stop();
    let location = queue(&scene, Request::new("PUT", "/in").body("body"));
    let told = wait_state(&scene, &location, "dead");
    assert_eq!(told["reason"], "expired");
    scene.origin.start_again().unwrap();
    assert_eq!(count(&scene, "open"), 0);
    // The first may still be queued: the breaker is open for a while. What comes last was delivered after the dead one would be.
    wait(PATIENCE, || scene.send(Request::post("/in", "live")).unwrap().status, |status| *status == 200);
    scene.apply(|m| m["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" })).unwrap();
    scene.origin.stop();
    let later = queue(&scene, Request::new("PUT", "/in").body("live"));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &later, "delivered");
    assert_eq!(wait_state(&scene, &location, "dead")["reason"], "expired");
    let came = scene.origin.requests();
    assert!(came.iter().all(|request| request.body == b"live"), "what is dead is not delivered: {came:?}");
}

/// Seconds into the day.
fn seconds(record: &Value) -> f64 {
    let text = record["timestamp"].as_str().unwrap();
    let time: Vec<f64> =
        text[11..].trim_end_matches('Z').split(':').map(|part| part.parse().unwrap()).collect();
    time[0] * 3600.0 + time[1] * 60.0 + time[2]
}

#[test]
fn an_upstream_that_cannot_be_reached_is_probed_by_one_record_at_a_time_at_least_every_five_seconds() {
    let mut scene = outage();
    (0..6).for_each(|n| drop(queue(&scene, Request::post("/in", format!("{n}")))));
    let is_delivery = |r: &&Value| r["kind"] == "delivery";
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(14));
    let log = scene.node.log().unwrap();
    let probes: Vec<_> = log.iter().filter(is_delivery).collect();
    assert!(probes.iter().all(|r| r["beamline.queue.outcome"] == "not-sent"));
    let times: Vec<f64> = probes.iter().map(|r| seconds(r)).collect();
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).rem_euclid(86_400.0)).collect();
    assert!(probes.len() >= 4, "at least every 5 s, for {:?}: {gaps:?}", began.elapsed());
    assert!(gaps.iter().all(|gap| (0.09..6.0).contains(gap)), "one at a time, and not more rarely: {gaps:?}");
    assert!(probes.len() <= 30, "and not all the time: {gaps:?}");
    let up = std::time::SystemTime::now();
    scene.origin.start_again().unwrap();
    let log = scene.origin.wait_for_count(6, PATIENCE).unwrap();
    let noticed = log[0].at.duration_since(up).unwrap();
    assert!(noticed < Duration::from_secs(6), "its return is noticed within 5 s: {noticed:?}");
}

#[test]
fn after_an_outage_one_probe_comes_and_then_more_and_more_up_to_the_cap() {
    let mut scene = queueing(json!({ "mode": "on-failure", "max_in_flight": 4 }));
    scene.origin.stop();
    (0..30).for_each(|n| drop(queue(&scene, Request::post("/in", format!("{n}")))));
    let delay = Duration::from_millis(150);
    scene.origin.delay_all(delay);
    scene.origin.start_again().unwrap();
    let log = scene.origin.wait_for_count(30, PATIENCE).unwrap();
    // How many are with the origin at each arrival, that one included.
    let beside: Vec<_> =
        (0..log.len()).map(|i| log[..=i].iter().filter(|r| r.at + delay > log[i].at).count()).collect();
    assert_eq!(beside[..2], [1, 1], "a probe, and after it one more: {beside:?}");
    assert!(beside[..4].iter().all(|n| *n <= 2), "slowly at first: {beside:?}");
    let most = beside.iter().max().copied().unwrap();
    assert!(most <= 4, "never beyond max_in_flight: {beside:?}");
    assert!(most >= 3, "but up to it: {beside:?}");
}

/// Removes the upstream while a record is on its way to it, which is what leaves one without its upstream: all that waits would
/// be discarded. The origin is down afterwards. Gives the record's receipt.
fn lose_upstream(scene: &mut Scene, change: impl FnOnce(&mut Value)) -> String {
    let location = queue(scene, Request::new("PUT", "/in").body("body"));
    scene.origin.delay_all(PATIENCE);
    scene.origin.start_again().unwrap();
    scene.origin.wait_for_count(1, PATIENCE).unwrap();
    let mut manifest = scene.manifest();
    change(&mut manifest);
    let applied = scene.admin.apply_discarding(TENANT, &manifest).unwrap();
    assert!(applied.changed);
    scene.origin.stop();
    scene.origin.delay_all(Duration::ZERO);
    location
}

#[test]
fn a_record_whose_upstream_is_gone_is_held_until_it_is_back() {
    let mut scene = outage();
    let address = scene.origin.address().to_string();
    let location = lose_upstream(&mut scene, |manifest| {
        manifest["default_upstream"] = json!("other");
        manifest["upstreams"] = json!({ "other": { "endpoints": [address] } });
    });
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "held");
    assert_eq!(scene.send(Request::post("/in", "live")).unwrap().status, 200);
    assert_eq!(receipt(&scene, &location)["state"], "held", "another upstream is not its own");
    scene
        .apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" }))
        .unwrap();
    let back = Instant::now();
    wait(Duration::from_secs(60), || receipt(&scene, &location), |told| told["state"] == "delivered");
    let took = back.elapsed();
    assert_eq!(deliveries(&scene.origin.requests()).len(), 2, "once more than the one that broke");
    assert!(took < Duration::from_secs(10), "held only while the upstream is gone; it took {took:?} more");
}

#[test]
fn a_held_record_also_comes_back_by_a_rollback_and_after_a_crash() {
    let mut scene = outage();
    let first = scene.admin.show(TENANT).unwrap()["revision"].as_u64();
    let location = lose_upstream(&mut scene, |manifest| {
        manifest["upstreams"] = json!({});
        manifest.as_object_mut().unwrap().remove("default_upstream");
    });
    wait_state(&scene, &location, "held");
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    wait_state(&scene, &location, "held");
    scene.admin.rollback(TENANT, first).unwrap();
    scene.node.kill_nine().unwrap();
    scene.origin.start_again().unwrap();
    scene.node.launch().unwrap();
    wait_state(&scene, &location, "delivered");
}

#[test]
fn a_tenant_whose_origin_hangs_leaves_places_for_others() {
    let policy = json!({ "mode": "on-failure", "max_in_flight": 64 });
    let mut scene = configured("[queue]\nmax_in_flight = 8\n", policy.clone());
    scene.origin.stop();
    // First some that go well, so that many may be in flight; then those that hang.
    (0..30).for_each(|n| drop(queue(&scene, Request::new("PUT", "/in").body(format!("{n}")))));
    (0..40).for_each(|n| drop(queue(&scene, Request::new("PUT", "/hang").body(format!("{n}")))));
    scene.origin.start_again().unwrap();
    let hanging = |log: &[Arc<Recorded>]| log.iter().filter(|r| r.target == "/hang").count();
    scene.origin.wait_for(PATIENCE, |log| hanging(log) >= 4).unwrap();

    let mut other = Origin::start("other").unwrap();
    scene.admin.create_tenant("other", &["other.test"], &["127.0.0.0/8"]).unwrap();
    let mut theirs = manifest("other.test", other.address());
    theirs["upstreams"]["origin"]["queue"] = policy;
    scene.admin.apply("other", &theirs).unwrap();
    other.stop();
    for n in 0..50 {
        let request = Request::post("/in", format!("{n}")).host("other.test");
        crate::location(&request.send(scene.node.address()).unwrap());
    }
    other.start_again().unwrap();
    let began = Instant::now();
    other.wait_for_count(50, PATIENCE).unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(hanging(&scene.origin.requests()), 4, "half of the places, as many as it leaves free");
}

#[test]
fn many_failing_keys_do_not_slow_the_others_down() {
    let scene = Scene::start().unwrap();
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|manifest| {
            manifest["filters"] = json!([probe]);
            manifest["upstreams"]["origin"]["queue"] =
                json!({ "mode": "on-failure", "ordering_key": { "header": "x-key" } });
        })
        .unwrap();
    let keyed = |request: Request, key: String| {
        request.header("x-probe", &json!({ "do": "enqueue", "ordering_key": key }).to_string())
    };
    for n in 0..12 {
        queue(&scene, keyed(Request::new("PUT", "/status/500").body(format!("bad{n}")), format!("bad{n}")));
    }
    // Each of them has failed, and goes on failing; the origin takes everything else.
    let each = |log: &[Arc<Recorded>]| log.iter().map(|r| &r.body).collect::<HashSet<_>>().len() == 12;
    scene.origin.wait_for(Duration::from_secs(90), each).unwrap();
    for n in 0..20 {
        let location = queue(&scene, keyed(Request::post("/in", "good"), format!("good{n}")));
        let began = Instant::now();
        wait_state(&scene, &location, "delivered");
        // So long as nothing ever went well, the upstream itself may be in trouble: the first is a probe.
        let bound = Duration::from_secs(if n == 0 { 12 } else { 2 });
        assert!(began.elapsed() < bound, "{n}: {:?}", began.elapsed());
    }
}

#[test]
fn a_record_whose_upstreams_address_is_not_granted_waits_by_itself() {
    let scene = Scene::start().unwrap();
    scene.admin.create_tenant("far", &["far.test"], &["10.0.0.0/8"]).unwrap();
    let module = scene.admin.push("far", &guests::module("probe").unwrap()).unwrap();
    let mut theirs = manifest("far.test", scene.origin.address());
    // A name is held against the grant when it is connected to.
    theirs["upstreams"]["origin"]["endpoints"] =
        json!([format!("localhost:{}", scene.origin.address().port())]);
    theirs["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
    theirs["filters"] = json!([{ "name": "probe", "module": module.digest }]);
    scene.admin.apply("far", &theirs).unwrap();
    let send = |request: Request| request.host("far.test").send(scene.node.address()).unwrap();
    let enqueue = json!({ "do": "enqueue" }).to_string();
    let location = crate::location(&send(Request::post("/in", "body").header("x-probe", &enqueue)));
    let told = wait(
        PATIENCE,
        || send(Request::get(&location)).json().unwrap(),
        |told: &Value| told["attempts"].as_u64() >= Some(3),
    );
    assert_eq!(told["last_error"], "denied", "{told}");
    assert!(told["state"] == "queued" || told["state"] == "delivering", "{told}");
    assert_eq!(scene.origin.count(), 0);
}
