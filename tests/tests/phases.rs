//! The phases of a filter: what each sees and changes, in which order, and that whatever it does there is an honest end.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    io::{BufReader, Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use beamline_tests::{
    beamline::Options,
    client::{Connection, Request, Response},
    http1,
    origin::Origin,
    otlp::Receiver,
    raw::Raw,
    scene::{HOST, PATIENCE, Scene},
};
use serde_json::{Value, json};

/// A scene with this chain: the guest `phases` once for each pair of a name and a configuration.
fn chained(filters: &[(&str, Value)]) -> Scene {
    let scene = Scene::start().unwrap();
    apply(&scene, filters, |_| ());
    scene
}

fn apply(scene: &Scene, filters: &[(&str, Value)], change: impl FnOnce(&mut Value)) {
    let filter = |(name, config): &(&str, Value)| {
        let mut filter = scene.filter("phases").unwrap();
        (filter["name"], filter["config"]) = (json!(name), config.clone());
        if name.starts_with("open") {
            filter["on_error"] = json!("fail-open");
        }
        filter
    };
    let filters: Vec<_> = filters.iter().map(filter).collect();
    scene
        .apply(|m| {
            m["filters"] = json!(filters);
            change(m);
        })
        .unwrap();
}

/// What filters logged during the request that this answers, once there are `n` messages.
fn logged(scene: &Scene, answer: &Response, n: usize) -> Vec<(String, String)> {
    let id = answer.header("x-request-id").unwrap();
    let is_it = |r: &&Value| r["kind"] == "guest" && r["request.id"] == id;
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().filter(is_it).count() >= n).unwrap();
    let text = |record: &Value, key: &str| record[key].as_str().unwrap().to_owned();
    log.iter().filter(is_it).map(|r| (text(r, "beamline.filter.name"), text(r, "body"))).collect()
}

fn way(answer: &Response) -> String {
    answer.headers.all("x-way").collect::<Vec<_>>().join(",")
}

fn marks(name: &str) -> Value {
    json!({ "request": { "mark": name }, "response": { "mark": name } })
}

#[test]
fn a_chain_runs_forward_for_requests_and_backward_for_responses() {
    let scene = chained(&[("one", marks("1")), ("two", marks("2")), ("three", marks("3"))]);
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.status, way(&answer).as_str()), (200, "3,2,1"));
    let seen = scene.origin.last();
    assert_eq!(seen.headers.all("x-way").collect::<Vec<_>>(), ["1", "2", "3"]);
}

#[test]
fn a_response_goes_back_through_the_filters_that_its_request_reached() {
    let two = json!({ "request": { "mark": "2", "route": "origin" }, "response": { "mark": "2" } });
    let scene = chained(&[("one", marks("1")), ("two", two), ("three", marks("3"))]);
    assert_eq!(way(&scene.send(Request::get("/")).unwrap()), "2,1", "the third was not reached");

    // A filter's own answer goes back through those before it, as does what stands for it where it fails.
    for act in [json!({ "respond": 403 }), json!({ "trap": true })] {
        let two = json!({ "request": act, "response": { "mark": "2" } });
        apply(&scene, &[("one", marks("1")), ("two", two), ("three", marks("3"))], |_| ());
        let answer = scene.send(Request::get("/")).unwrap();
        assert_eq!(way(&answer), "1", "{act}");
        assert!(answer.status == 403 || answer.refusal() == (503, "filter-trap".into()), "{act}");
    }
}

#[test]
fn what_the_proxy_answers_itself_goes_back_too() {
    let mut scene = chained(&[("one", marks("1"))]);
    scene.origin.stop();
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.refusal(), way(&answer).as_str()), ((503, "upstream-connect".into()), "1"));
    apply(&scene, &[("one", marks("1"))], |m| m["default_upstream"] = Value::Null);
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.refusal(), way(&answer).as_str()), ((404, "no-route".into()), "1"));
    // But for receipts, which no filter sees.
    let answer = scene.send(Request::get("/.well-known/beamline/requests/none")).unwrap();
    assert_eq!((answer.refusal(), way(&answer).as_str()), ((404, "unknown-receipt".into()), ""));
}

#[test]
fn a_module_without_a_request_phase_is_a_filter_too() {
    let scene = Scene::start().unwrap();
    let late = scene.filter("late").unwrap();
    scene.apply(|m| m["filters"] = json!([late])).unwrap();
    let answer = scene.send(Request::post("/created", "made")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (201, "made"));
    assert_eq!(answer.header("x-late"), Some("/created"));
    assert_eq!(logged(&scene, &answer, 1), [("late".to_owned(), "/created Some(201) None".to_owned())]);
    let record = scene.record(&answer).unwrap();
    assert_eq!((&record["verdict"], &record["beamline.filter.name"]), (&json!("next"), &Value::Null));
}

#[test]
fn a_response_head_can_be_changed_within_the_rules_of_heads() {
    let set = json!({
        "x-new": "1", "location": null, "set-cookie": "a=b", "x-crlf": "a\r\nx-evil: 1", "content-length": "5",
        "transfer-encoding": "chunked", "connection": "close", "via": null, "proxy-status": "me", "x split": "1",
    });
    let scene = chained(&[("one", json!({ "response": { "set": set, "status": 203 } }))]);
    let answer = scene.send(Request::post("/created", "made")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (203, "made"));
    assert_eq!((answer.header("x-new"), answer.header("location")), (Some("1"), None));
    assert_eq!(answer.headers.all("set-cookie").collect::<Vec<_>>(), ["a=b"]);
    assert_eq!((answer.header("x-evil"), answer.header("via")), (None, Some("1.1 beamline")));
    let refused = logged(&scene, &answer, 7).into_iter().map(|(_, line)| line).collect::<Vec<_>>();
    for line in [
        "connection: HeaderError::Forbidden",
        "content-length: HeaderError::Forbidden",
        "proxy-status: HeaderError::Forbidden",
        "transfer-encoding: HeaderError::Forbidden",
        "via: HeaderError::Forbidden",
        "x split: HeaderError::InvalidName",
        "x-crlf: HeaderError::InvalidValue",
    ] {
        assert!(refused.iter().any(|r| r == line), "{line}: {refused:?}");
    }
    assert_eq!(scene.record(&answer).unwrap()["http.response.status_code"], 203);
}

#[test]
fn a_status_that_allows_no_body_takes_it_away_and_the_connection_stays_sound() {
    let scene = chained(&[]);
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    for (path, status, body) in
        [("/echo", 204, ""), ("/echo", 304, ""), ("/status/204", 200, ""), ("/status/304", 404, "")]
    {
        apply(&scene, &[("one", json!({ "response": { "status": status } }))], |_| ());
        let answer = connection.exchange(&Request::post(path, "some").host(HOST)).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (status, body), "{path}");
    }
    for phase in ["request", "response"] {
        apply(&scene, &[("one", json!({ phase: { "respond": 205 } }))], |_| ());
        let answer = connection.exchange(&Request::post("/echo", "some").host(HOST)).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (205, ""), "{phase}");
    }
    apply(&scene, &[], |_| ());
    let answer = connection.exchange(&Request::post("/echo", "whole").host(HOST)).unwrap();
    assert_eq!(answer.text(), "whole");
}

#[test]
fn a_filter_can_answer_in_place_of_the_upstream_when_it_has_seen_its_response() {
    let two = json!({ "response": { "respond": 418 } });
    let scene = chained(&[("one", marks("1")), ("two", two)]);
    let answer = scene.send(Request::post("/echo", "the upstream's own")).unwrap();
    assert_eq!((answer.status, answer.text().as_str(), way(&answer).as_str()), (418, "answered", "1"));
    let record = scene.record(&answer).unwrap();
    assert_eq!((&record["verdict"], &record["beamline.filter.name"]), (&json!("next"), &json!("two")));
    assert_eq!(record["http.response.status_code"], 418);
}

#[test]
fn what_one_phase_remembers_a_later_one_of_the_same_filter_knows() {
    let remembering = |name: &str| {
        json!({
            "request": { "remember": format!("{name}-request;") },
            "response": { "remember": format!("{name}-response;"), "recall": format!("x-{name}") },
            "finish": { "tell": true },
        })
    };
    let scene = chained(&[("one", remembering("one")), ("two", remembering("two"))]);
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!(answer.header("x-one"), Some("one-request;one-response;"));
    assert_eq!(answer.header("x-two"), Some("two-request;two-response;"));
    let told = logged(&scene, &answer, 2);
    assert_eq!(told[0].0, "two", "the end is told backward, too");
    let told: Value = serde_json::from_str(&told[1].1).unwrap();
    assert_eq!(told["context"], "one-request;one-response;");

    // Nothing of one request is there in the next, and a context has its limit.
    let one = json!({ "request": { "remember_bytes": 4097 }, "response": { "recall": "x-one" } });
    apply(&scene, &[("one", one)], |_| ());
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!(answer.header("x-one"), Some("nothing"));
    assert!(logged(&scene, &answer, 1)[0].1.contains("at most 4096 bytes"));
    let one = json!({ "request": { "remember_bytes": 4096 }, "response": { "recall": "x-one" } });
    apply(&scene, &[("one", one)], |_| ());
    assert_eq!(scene.send(Request::get("/")).unwrap().header("x-one").unwrap().len(), 4096);
}

#[test]
fn a_filter_hears_how_each_exchange_ended() {
    let tells = json!({ "finish": { "tell": true } });
    let scene = chained(&[("one", tells.clone())]);
    let told =
        |answer: &Response| -> Value { serde_json::from_str(&logged(&scene, answer, 1)[0].1).unwrap() };
    let answer = scene.send(Request::post("/echo", "0123456789")).unwrap();
    let end = told(&answer);
    assert_eq!(
        (&end["status"], &end["upstream"], &end["error"]),
        (&json!(200), &json!("origin"), &Value::Null)
    );
    assert_eq!((&end["request_bytes"], &end["response_bytes"]), (&json!(10), &json!(10)));
    assert!(end["duration_us"].as_u64().unwrap() >= end["upstream_us"].as_u64().unwrap(), "{end}");

    let answer = scene.send(Request::get("/reset")).unwrap();
    assert_eq!((&told(&answer)["status"], &told(&answer)["error"]), (&json!(502), &json!("upstream-reset")));
    let answer = Request::get("/cut").host(HOST).attempt(scene.node.address()).unwrap();
    assert!(!answer.end.is_whole());
    assert_eq!((&told(&answer)["status"], &told(&answer)["error"]), (&json!(200), &json!("upstream-reset")));

    // A filter that answered hears of it, and whatever it does then, the client has its answer. Its failing is told, but
    // shaped nothing.
    for end in [json!({ "tell": true, "trap": true }), json!({ "spin": true })] {
        let two = json!({ "request": { "respond": 403 }, "finish": {} });
        apply(&scene, &[("one", json!({ "finish": end })), ("two", two)], |_| ());
        let answer = scene.send(Request::get("/")).unwrap();
        assert_eq!(answer.status, 403);
        let record = scene.record(&answer).unwrap();
        assert_eq!(
            (&record["beamline.filter.name"], &record["beamline.filter.outcome"]),
            (&json!("two"), &Value::Null)
        );
        apply(&scene, &[("one", json!({ "finish": end }))], |_| ());
        let answer = scene.send(Request::get("/")).unwrap();
        assert_eq!(answer.status, 200);
        let record = scene.record(&answer).unwrap();
        let outcome = if end["spin"] == true { "filter-timeout" } else { "filter-trap" };
        assert_eq!(
            (&record["beamline.filter.outcome"], &record["http.response.status_code"], &record["error.type"]),
            (&json!(outcome), &json!(200), &Value::Null)
        );
    }
}

#[test]
fn a_failing_response_phase_is_closed_or_open_as_its_filter_says() {
    let failing =
        |act: &str| json!({ "response": { "set": { "x-changed": "1" }, "status": 299, act: true } });
    let scene = chained(&[]);
    for (act, outcome) in [("trap", "filter-trap"), ("spin", "filter-timeout")] {
        apply(&scene, &[("one", marks("1")), ("two", failing(act))], |_| ());
        let answer = scene.send(Request::post("/echo", "secret")).unwrap();
        assert_eq!((answer.refusal(), way(&answer).as_str()), ((503, outcome.into()), "1"), "{act}");
        assert!(!answer.text().contains("secret") && answer.header("x-changed").is_none());
        let record = scene.record(&answer).unwrap();
        assert_eq!(
            (&record["error.type"], &record["beamline.filter.name"], &record["beamline.filter.outcome"]),
            (&json!(outcome), &json!("two"), &json!(outcome))
        );

        apply(&scene, &[("one", marks("1")), ("open-two", failing(act))], |_| ());
        let answer = scene.send(Request::post("/echo", "whole")).unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str(), way(&answer).as_str()),
            (200, "whole", "1"),
            "{act}"
        );
        assert_eq!(answer.header("x-changed"), None);
        assert_eq!(scene.record(&answer).unwrap()["beamline.filter.outcome"], outcome);
    }
}

#[test]
fn an_accepted_request_stays_accepted_whatever_its_filters_do_to_the_answer() {
    let scene = Scene::start().unwrap();
    let queue = |m: &mut Value| m["upstreams"]["origin"]["queue"] = json!({ "mode": "always" });
    for (config, way_back) in [
        (json!({ "response": { "mark": "1" } }), "1"),
        (json!({ "response": { "mark": "1", "trap": true } }), ""),
        (json!({ "response_body": { "trap_at": "accepted" } }), ""),
    ] {
        apply(&scene, &[("one", config)], queue);
        let answer = scene.send(Request::post("/echo", "kept")).unwrap();
        assert_eq!((answer.status, way(&answer).as_str()), (202, way_back), "{}", answer.text());
        assert!(answer.header("location").unwrap().contains("/.well-known/beamline/requests/"));
        assert_eq!(answer.json().unwrap()["status"], "accepted");
    }
    scene.origin.wait_for_count(3, PATIENCE).unwrap();

    // Also where one filter answers in its place, and another fails then.
    let (trap, respond) =
        (json!({ "response": { "trap": true } }), json!({ "response": { "respond": 418 } }));
    apply(&scene, &[("one", trap), ("two", respond)], queue);
    let answer = scene.send(Request::post("/echo", "kept")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (418, "answered"));
    scene.origin.wait_for_count(4, PATIENCE).unwrap();
}

#[test]
fn what_a_drain_cuts_off_is_in_the_log() {
    let arguments = ["--lame-duck", "100ms", "--drain-idle-grace", "100ms", "--drain-timeout", "1s"];
    let options = Options { arguments: arguments.map(Into::into).into(), workers: 1, ..Options::default() };
    let mut scene = Scene::with(options).unwrap();
    apply(&scene, &[("one", json!({ "finish": { "tell": true } }))], |_| ());
    let to = scene.node.address();
    let cut = thread::spawn(move || Request::get("/hang").host(HOST).attempt(to).is_err());
    scene.origin.wait_for_count(1, PATIENCE).unwrap();
    scene.node.sigterm().unwrap();
    assert_eq!(scene.node.wait_exit(PATIENCE).unwrap().code(), Some(4));
    assert!(cut.join().unwrap());
    let log = scene.node.log().unwrap();
    let records: Vec<_> = log.iter().filter(|r| r["kind"] == "access" && r["url.path"] == "/hang").collect();
    assert_eq!(records.len(), 1, "{log:?}");
    assert_eq!(records[0]["error.type"], "client-gone");
}

#[test]
fn each_filter_and_phase_has_a_span() {
    let collector = Receiver::start().unwrap();
    let options = Options { otlp_endpoint: Some(collector.endpoint()), ..Options::default() };
    let scene = Scene::with(options).unwrap();
    apply(&scene, &[("one", marks("1")), ("two", json!({ "finish": { "tell": true } }))], |_| ());
    let answer = scene.send(Request::post("/echo", "body")).unwrap();
    let trace = scene.record(&answer).unwrap()["trace_id"].as_str().unwrap().to_owned();
    let phases = |spans: &[beamline_tests::otlp::Span]| -> Vec<(String, String)> {
        let attribute = |s: &beamline_tests::otlp::Span, key| s.attribute(key).unwrap_or_default().to_owned();
        let filters = spans.iter().filter(|s| s.name.starts_with("filter "));
        let mut found: Vec<_> = filters
            .map(|s| (attribute(s, "beamline.filter.name"), attribute(s, "beamline.filter.phase")))
            .collect();
        found.sort();
        found
    };
    let mut expected: Vec<(String, String)> = ["one", "two"]
        .iter()
        .flat_map(|name| {
            ["request", "request-body", "response", "response-body", "finish"]
                .map(|phase| ((*name).to_owned(), phase.to_owned()))
        })
        .collect();
    expected.sort();
    let spans = collector.wait_for_trace(&trace, PATIENCE, |spans| phases(spans).len() >= expected.len());
    assert_eq!(phases(&spans.unwrap()), expected);
}

#[test]
fn a_request_body_is_rewritten_as_it_streams() {
    let swap = json!({ "request_body": { "swap": ["cat", "tiger"] } });
    let scene = chained(&[("one", swap.clone()), ("two", json!({ "request_body": { "upper": true } }))]);
    let body = "a cat, ".repeat(1000);
    let expected = "A TIGER, ".repeat(1000);
    for request in [
        Request::post("/echo", body.as_str()),
        Request::post("/echo", body.as_str()).chunked(),
        Request::post("/echo", body.as_str()).header("trailer", "x-sum").trailer("x-sum", "7"),
    ] {
        let answer = scene.send(request).unwrap();
        assert_eq!((answer.status, answer.text()), (200, expected.clone()));
        let seen = scene.origin.last();
        assert!(seen.whole && seen.headers.get("content-length").is_none());
        assert_eq!(scene.record(&answer).unwrap()["http.request.body.size"], 7000, "what the client sent");
    }
    assert_eq!(scene.origin.last().trailers.get("x-sum"), Some("7"), "trailers pass");
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200, "a request without a body");
}

#[test]
fn a_response_body_is_rewritten_as_it_streams() {
    let swap = json!({ "response_body": { "swap": ["xx", "abc"] } });
    let scene = chained(&[("one", swap)]);
    for query in ["n=100000", "n=100000&chunked"] {
        let answer = scene.send(Request::get(&format!("/bytes?{query}"))).unwrap();
        assert_eq!(answer.body, "abc".repeat(50_000).into_bytes());
        assert_eq!(answer.header("content-length"), None);
        assert_eq!(scene.record(&answer).unwrap()["http.response.body.size"], 150_000);
    }
    let answer = scene.send(Request::get("/trailers").header("te", "trailers")).unwrap();
    assert_eq!((answer.text().as_str(), answer.trailers.get("x-sum")), ("hello\n", Some("532")));
    let answer = scene.send(Request::new("HEAD", "/bytes?n=100")).unwrap();
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (200, None),
        "a GET would get another length"
    );
    for path in ["/status/204", "/status/304"] {
        assert!(scene.send(Request::get(path)).unwrap().body.is_empty(), "{path}");
    }
}

#[test]
fn a_body_streams_while_it_is_filtered() {
    // The origin rests for longer than the client is patient when it has sent its first piece.
    let scene = chained(&[("one", json!({ "response_body": { "upper": true } }))]);
    let mut stream = TcpStream::connect(scene.node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = Request::get("/bytes?n=48000&chunked&pause_ms=60000").host(HOST);
    stream.write_all(&request.to_bytes()).unwrap();
    let mut came = Vec::new();
    while !came.ends_with(b"XX\r\n") {
        let mut some = [0; 1000];
        let n = stream.read(&mut some).unwrap();
        assert!(n > 0, "it goes on");
        came.extend_from_slice(&some[..n]);
    }
    drop(stream);
    let record = scene.access(|r| r["url.path"] == "/bytes").unwrap();
    assert_eq!(
        (&record["error.type"], &record["http.response.status_code"]),
        (&json!("client-gone"), &json!(200))
    );
}

#[test]
fn chunks_can_be_dropped_and_kept_up_to_the_limit() {
    let scene = chained(&[("one", json!({ "response_body": { "drop": true } }))]);
    let answer = scene.send(Request::get("/bytes?n=100000")).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0));

    let holds = json!({ "request_body": { "hold": true }, "response_body": { "hold": true } });
    let limited = |m: &mut Value| m["limits"] = json!({ "body": "64KiB" });
    apply(&scene, &[("one", holds.clone())], limited);
    let small = scene.send(Request::post("/echo", vec![b'a'; 30_000]).chunked()).unwrap();
    assert_eq!((small.status, small.body.len()), (200, 30_000));
    let large = scene.send(Request::post("/echo", vec![b'a'; 500_000])).unwrap();
    assert_eq!(large.refusal(), (413, "filter-request-body".into()), "{}", large.text());
    assert_eq!(scene.record(&large).unwrap()["error.type"], "filter-request-body");

    // A response whose head is out is broken off: never ended as if it were whole.
    let cut = Request::get("/bytes?n=500000").host(HOST).attempt(scene.node.address()).unwrap();
    assert!(!cut.end.is_whole() && cut.body.is_empty(), "{:?}", cut.end);
    assert_eq!(scene.record(&cut).unwrap()["error.type"], "filter-response-body");

    // Fail-open, both go on as they came.
    apply(&scene, &[("open", holds)], limited);
    let answer = scene.send(Request::post("/echo", vec![b'a'; 500_000])).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 500_000));
    assert_eq!(scene.origin.last().body.len(), 500_000);
}

#[test]
fn a_filter_that_fails_in_the_middle_of_a_body_breaks_it_off_or_is_passed_over() {
    let traps = json!({ "request_body": { "trap_at": "bang" }, "response_body": { "trap_at": "boom" } });
    let scene = chained(&[("one", traps.clone())]);
    let answer = scene.send(Request::post("/echo", "big bang")).unwrap();
    assert_eq!(answer.refusal(), (503, "filter-trap".into()), "{}", answer.text());
    assert!(scene.origin.requests().iter().all(|r| !r.whole), "the origin must not take it for whole");
    // Before anything was sent the client is told; after that all that is left is to break off.
    let answer = scene.send(Request::post("/echo", "big boom")).unwrap();
    assert_eq!(answer.refusal(), (503, "filter-trap".into()));
    let long = [vec![b'a'; 2_000_000], b"big boom".to_vec()].concat();
    let answer = Request::post("/echo", long).host(HOST).attempt(scene.node.address()).unwrap();
    assert!(answer.status == 200 && !answer.end.is_whole(), "{:?}", answer.end);
    assert_eq!(scene.record(&answer).unwrap()["error.type"], "filter-trap");

    apply(&scene, &[("open", traps)], |_| ());
    let answer = scene.send(Request::post("/echo", "bang and boom")).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "bang and boom"));
    assert_eq!(scene.record(&answer).unwrap()["beamline.filter.outcome"], "filter-trap");
}

#[test]
fn a_verdict_waits_for_the_whole_body() {
    let other = Origin::start("other").unwrap();
    let scene = Scene::start().unwrap();
    let one = json!({
        "request": { "read_body": true, "remember": "read;" },
        "whole_request": { "upper": true, "set": { "x-seen": "1" }, "route": "other", "recall": "x-context" },
    });
    apply(&scene, &[("one", one)], |m| {
        m["upstreams"]["other"] = json!({ "endpoints": [other.address().to_string()] });
    });
    for request in [Request::post("/echo", "abc"), Request::post("/echo", "abc").chunked()] {
        let answer = scene.send(request).unwrap();
        assert_eq!((answer.header("x-origin"), answer.text().as_str()), (Some("other"), "ABC"));
        let seen = other.last();
        assert_eq!((seen.headers.get("x-seen"), seen.headers.get("x-context")), (Some("1"), Some("read;")));
        assert_eq!(seen.headers.get("content-length"), Some("3"));
        assert_eq!(scene.record(&answer).unwrap()["verdict"], "route");
    }
    let request = Request::post("/echo", "abc").header("trailer", "x-sum").trailer("x-sum", "7");
    let answer = scene.send(request).unwrap();
    assert_eq!((answer.text().as_str(), other.last().trailers.get("x-sum")), ("ABC", Some("7")));
    let answer = scene.send(Request::get("/echo")).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 0), "a request without a body is whole");

    // Over the limit: refused before anything was sent, or passed over.
    let reads = json!({ "request": { "read_body": true }, "whole_request": { "body": "short" } });
    let limited = |m: &mut Value| m["limits"] = json!({ "body": "64KiB" });
    apply(&scene, &[("one", reads.clone())], limited);
    assert_eq!(scene.send(Request::post("/echo", vec![b'a'; 65_536])).unwrap().text(), "short");
    let before = scene.origin.requests().len();
    let answer = scene.send(Request::post("/echo", vec![b'a'; 65_537])).unwrap();
    assert_eq!(answer.refusal(), (413, "filter-request-body".into()));
    assert_eq!(scene.origin.requests().len(), before);
    apply(&scene, &[("open", reads)], limited);
    let answer = scene.send(Request::post("/echo", vec![b'a'; 200_000])).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 200_000));
}

#[test]
fn a_body_that_breaks_off_while_it_is_read_whole_is_told_as_what_it_is() {
    let one = json!({
        "request": { "log": "seen" }, "request_body": { "trap_at": "bang" }, "response": { "mark": "1" },
    });
    let two =
        json!({ "request": { "read_body": true }, "response": { "mark": "2" }, "finish": { "tell": true } });
    let scene = chained(&[("one", one), ("two", two)]);
    let answer = scene.send(Request::post("/echo", "big bang")).unwrap();
    assert_eq!((answer.refusal(), way(&answer).as_str()), ((503, "filter-trap".into()), "1"));
    let record = scene.record(&answer).unwrap();
    assert_eq!(
        (&record["error.type"], &record["beamline.filter.name"], &record["beamline.filter.outcome"]),
        (&json!("filter-trap"), &json!("one"), &json!("filter-trap"))
    );
    let lines = logged(&scene, &answer, 2);
    assert_eq!(
        lines.iter().filter(|(filter, line)| filter == "one" && line == "seen").count(),
        1,
        "{lines:?}"
    );
    assert!(scene.origin.requests().is_empty());

    // By the client: what the filters did until then is told all the same, and they hear of the end.
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let head = format!("POST /gone HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nthe beginning");
    connection.send_raw(head.as_bytes()).unwrap();
    drop(connection);
    let record = scene.access(|r| r["url.path"] == "/gone").unwrap();
    assert_eq!(record["error.type"], "client-gone");
    let id = record["request.id"].clone();
    let is_it = |r: &&Value| r["kind"] == "guest" && r["request.id"] == id;
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().filter(is_it).count() >= 2).unwrap();
    let told: Vec<_> = log.iter().filter(is_it).map(|r| r["body"].as_str().unwrap()).collect();
    assert!(told.contains(&"seen") && told.iter().any(|line| line.contains("client-gone")), "{told:?}");
}

#[test]
fn a_body_that_is_stated_to_be_too_long_is_not_asked_for() {
    let scene = Scene::start().unwrap();
    let reads = json!({ "request": { "read_body": true } });
    apply(&scene, &[("one", reads)], |m| m["limits"] = json!({ "body": "64KiB" }));
    let mut stream = TcpStream::connect(scene.node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = |length| {
        format!(
            "POST /echo HTTP/1.1\r\nhost: {HOST}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    stream.write_all(head(65_537).as_bytes()).unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(line, *b"HTTP/1.1 413");
    // One that is not, is.
    let mut stream = TcpStream::connect(scene.node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(head(65_536).as_bytes()).unwrap();
    stream.read_exact(&mut line).unwrap();
    assert_eq!(line, *b"HTTP/1.1 100");
}

#[test]
fn a_body_that_is_read_whole_is_not_waited_for_for_ever() {
    let reads = json!({ "request": { "read_body": true }, "response": { "read_body": true, "mark": "2" } });
    let scene = chained(&[("one", marks("1")), ("two", reads)]);
    let (to, patience) = (scene.node.address(), Duration::from_secs(50));
    let client = thread::spawn(move || {
        let mut connection = Connection::open(to, patience).unwrap();
        let head = format!("POST /echo HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100\r\n\r\nthe beginning");
        connection.send_raw(head.as_bytes()).unwrap();
        connection.read_response("POST").unwrap()
    });
    let upstream = Request::get("/bytes?n=48000&chunked&pause_ms=60000").host(HOST).timeout(patience);
    let answer = upstream.send(to).unwrap();
    assert_eq!((answer.refusal(), way(&answer).as_str()), ((504, "upstream-timeout".into()), "1"));
    let answer = client.join().unwrap();
    assert_eq!((answer.refusal(), way(&answer).as_str()), ((408, "request-timeout".into()), "1"));
    assert_eq!(scene.record(&answer).unwrap()["error.type"], "request-timeout");
}

#[test]
fn a_response_waits_for_its_whole_body_before_its_head_is_sent() {
    let one = json!({
        "response": { "read_body": true },
        "whole_response": { "upper": true, "status": 203, "set": { "x-seen": "1" } },
    });
    let scene = chained(&[("one", one)]);
    for path in ["/echo", "/echo?chunked"] {
        let answer = scene.send(Request::post(path, "abc")).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (203, "ABC"));
        assert_eq!((answer.header("x-seen"), answer.header("content-length")), (Some("1"), Some("3")));
    }
    let answer = scene.send(Request::get("/trailers").header("te", "trailers")).unwrap();
    assert_eq!((answer.text().as_str(), answer.trailers.get("x-sum")), ("HELLO\n", Some("532")));
    // What a GET would get, the length that came does not tell; and what is not sent is not stated.
    let head = scene.send(Request::new("HEAD", "/bytes?n=100")).unwrap();
    assert_eq!((head.status, head.header("x-seen"), head.header("content-length")), (203, Some("1"), None));
    // What breaks before its end can still be told honestly.
    assert_eq!(scene.send(Request::get("/cut")).unwrap().refusal(), (502, "upstream-reset".into()));

    let reads = json!({ "response": { "read_body": true }, "whole_response": { "respond": 500 } });
    let limited = |m: &mut Value| m["limits"] = json!({ "body": "64KiB" });
    apply(&scene, &[("one", reads.clone())], limited);
    assert_eq!(scene.send(Request::get("/bytes?n=65536")).unwrap().text(), "answered");
    let answer = scene.send(Request::get("/bytes?n=65537")).unwrap();
    assert_eq!(answer.refusal(), (502, "filter-response-body".into()));
    assert!(answer.header("proxy-status").unwrap().contains("error=http_response_body_size"));
    apply(&scene, &[("open", reads)], limited);
    let answer = scene.send(Request::get("/bytes?n=200000")).unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 200_000));
}

#[test]
fn a_verdict_to_read_a_body_that_nothing_would_see_is_refused() {
    // Of the phase that has seen it whole.
    let again = json!({ "request": { "read_body": true }, "whole_request": { "read_body": true } });
    let scene = chained(&[("one", again)]);
    let answer = scene.send(Request::post("/echo", "abc")).unwrap();
    assert_eq!(answer.refusal(), (503, "filter-verdict".into()));
    assert!(answer.text().contains("read-body"), "{}", answer.text());
    let again = json!({ "response": { "read_body": true }, "whole_response": { "read_body": true } });
    apply(&scene, &[("one", again)], |_| ());
    assert_eq!(scene.send(Request::post("/echo", "abc")).unwrap().refusal(), (503, "filter-verdict".into()));
}

#[test]
fn a_queued_request_has_the_body_that_its_filters_left() {
    let mut scene = Scene::start().unwrap();
    let swap = json!({ "request_body": { "swap": ["cat", "tiger"] } });
    let whole = json!({ "request": { "read_body": true }, "whole_request": { "upper": true } });
    let by_filter = json!({ "request": { "enqueue": "origin" }, "request_body": { "upper": true } });
    let traps = json!({ "request_body": { "trap_at": "cat" } });
    let queue =
        |mode: &'static str| move |m: &mut Value| m["upstreams"]["origin"]["queue"] = json!({ "mode": mode });
    // While the origin is away: kept as it streams; by the policy; by a filter's verdict.
    scene.origin.stop();
    let cases: [(&Value, &str, &str); 4] = [
        (&swap, "on-failure", "a tiger"),
        (&swap, "always", "a tiger"),
        (&whole, "on-failure", "A CAT"),
        (&by_filter, "on-failure", "A CAT"),
    ];
    for (config, mode, _) in &cases {
        apply(&scene, &[("one", (*config).clone())], queue(mode));
        let answer = scene.send(Request::post("/echo", "a cat")).unwrap();
        assert_eq!(answer.status, 202, "{config} {mode}: {}", answer.text());
    }
    // What a filter broke off is not stored.
    apply(&scene, &[("one", traps)], queue("always"));
    let answer = scene.send(Request::post("/echo", "a cat")).unwrap();
    assert_eq!(answer.refusal(), (503, "filter-trap".into()), "{}", answer.text());
    scene.origin.start_again().unwrap();
    let delivered = scene.origin.wait_for_count(cases.len(), PATIENCE).unwrap();
    let mut bodies: Vec<_> =
        delivered.iter().map(|r| String::from_utf8_lossy(&r.body).into_owned()).collect();
    bodies.sort();
    let mut expected: Vec<_> = cases.iter().map(|(_, _, body)| (*body).to_owned()).collect();
    expected.sort();
    assert_eq!(bodies, expected);
}

#[test]
fn a_client_that_goes_away_ends_what_its_filters_had_begun() {
    let tells = json!({ "response_body": { "upper": true }, "finish": { "tell": true } });
    let scene = chained(&[("one", tells)]);
    let mut connection = TcpStream::connect(scene.node.address()).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = Request::get("/bytes?n=100000000&chunked").host(HOST);
    connection.write_all(&request.to_bytes()).unwrap();
    // Not before the response has begun: a request whose client has gone before it was looked at is none.
    connection.read_exact(&mut [0; 1000]).unwrap();
    drop(connection);
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().any(|r| r["kind"] == "guest")).unwrap();
    let guest = log.iter().find(|r| r["kind"] == "guest").unwrap();
    let told: Value = serde_json::from_str(guest["body"].as_str().unwrap()).unwrap();
    assert_eq!(told["error"], "client-gone");
}

#[test]
fn several_cookies_of_an_origin_pass_a_filter_that_adds_one_in_their_order() {
    let raw = Raw::start(|mut stream| {
        let mut input = BufReader::new(stream.try_clone().unwrap());
        while let Ok(Some(_)) = http1::read_head(&mut input) {
            let head = "HTTP/1.1 200 OK\r\nset-cookie: b=1; Path=/\r\nx-other: 1\r\nset-cookie: a=2, with a comma\r\ncontent-length: 2\r\n\r\nok";
            if stream.write_all(head.as_bytes()).is_err() {
                return;
            }
        }
    })
    .unwrap();
    let adds = json!({ "response": { "append": { "set-cookie": "0=3" }, "list": "set-cookie" } });
    let scene = Scene::start().unwrap();
    let endpoints = json!([raw.address().to_string()]);
    // The second is nearer to the origin, and comes first.
    let filters = [("one", json!({ "response": { "list": "set-cookie" } })), ("two", adds)];
    apply(&scene, &filters, |m| m["upstreams"]["origin"]["endpoints"] = endpoints);
    let answer = scene.send(Request::get("/")).unwrap();
    let expected = ["b=1; Path=/", "a=2, with a comma", "0=3"];
    assert_eq!(answer.headers.all("set-cookie").collect::<Vec<_>>(), expected);
    let seen = expected.join(" | ");
    assert_eq!(logged(&scene, &answer, 2), [("two".to_owned(), seen.clone()), ("one".to_owned(), seen)]);
}

#[test]
fn later_phases_are_held_to_the_same_limits() {
    let scene = Scene::start().unwrap();
    let log = "x".repeat(100);
    let one =
        json!({ "response": { "log": log }, "response_body": { "log": log }, "finish": { "log": log } });
    apply(&scene, &[("one", one)], |m| m["limits"] = json!({ "log": "300B" }));
    let answer = scene.send(Request::get("/bytes?n=1000000")).unwrap();
    assert_eq!(answer.body.len(), 1_000_000);
    // The phase of the body has one log for all of its chunks, of which there are many.
    scene.record(&answer).unwrap();
    let lines = logged(&scene, &answer, 3);
    let bytes: usize = lines.iter().map(|(_, line)| line.len()).sum();
    assert!(bytes <= 900, "{bytes} bytes in {} lines", lines.len());
}
