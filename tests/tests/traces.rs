//! Every request is one trace from the edge to its end, across the queue and across a crash; nothing waits for it, and
//! nothing secret is in it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use beamline_tests::{
    beamline::{Beamline, Options},
    client::{Request, Response},
    heavy::heavy,
    load::{self, Plan},
    otlp::{Kind, Receiver, Span, tree},
    ports::Port,
    raw::Raw,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::{Value, json};

/// No balancer has to notice that the node is about to end.
fn no_lame_duck() -> Vec<String> {
    ["--lame-duck", "1ms"].map(str::to_owned).to_vec()
}

/// A scene with the probe in its chain whose spans go to a receiver.
fn traced() -> (Receiver, Scene) {
    let receiver = Receiver::start().unwrap();
    let options = Options { otlp_endpoint: Some(receiver.endpoint()), ..Options::default() };
    let scene = Scene::probed(options).unwrap();
    (receiver, scene)
}

/// The same with an upstream whose requests are queued where it fails.
fn queueing() -> (Receiver, Scene) {
    let (receiver, scene) = traced();
    let probe = scene.filter("probe").unwrap();
    let queue = json!({ "mode": "on-failure", "credentials": "strip" });
    scene.apply(|m| (m["filters"], m["upstreams"]["origin"]["queue"]) = (json!([probe]), queue)).unwrap();
    (receiver, scene)
}

fn trace_id(scene: &Scene, answer: &Response) -> String {
    scene.record(answer).unwrap()["trace_id"].as_str().unwrap().to_owned()
}

fn of_kind(spans: &[Span], kind: Kind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

fn only(spans: &[Span], kind: Kind) -> &Span {
    let found = of_kind(spans, kind);
    assert_eq!(found.len(), 1, "one {kind:?} span:\n{}", tree(spans));
    found[0]
}

/// Trace, span and flags of a `traceparent`.
fn parts(traceparent: &str) -> [&str; 3] {
    let fields: Vec<_> = traceparent.split('-').collect();
    assert_eq!((fields.len(), fields[0]), (4, "00"), "{traceparent}");
    [fields[1], fields[2], fields[3]]
}

#[test]
fn a_request_is_a_tree_of_server_filter_and_client_spans() {
    let (receiver, scene) = traced();
    let answer = scene.probe("/echo?secret=1", "next").unwrap();
    let trace = trace_id(&scene, &answer);
    let spans = receiver.wait_for_trace(&trace, PATIENCE, |spans| spans.len() == 3).unwrap();
    let (server, filter, client) =
        (only(&spans, Kind::Server), only(&spans, Kind::Internal), only(&spans, Kind::Client));

    assert_eq!(server.parent, None);
    for child in [filter, client] {
        assert_eq!(child.parent.as_ref(), Some(&server.span_id), "{}", tree(&spans));
        assert!(child.start >= server.start && child.end <= server.end, "{}", tree(&spans));
    }
    assert!(filter.end <= client.start, "{}", tree(&spans));
    let record = scene.record(&answer).unwrap();
    assert_eq!(record["span_id"], server.span_id.as_str());
    for (span, name, attributes) in [
        (
            server,
            "GET origin",
            &[
                ("tenant.id", TENANT),
                ("http.request.method", "GET"),
                ("url.path", "/echo"),
                ("server.address", HOST),
                ("http.route", "origin"),
                ("http.response.status_code", "200"),
                ("verdict", "next"),
                ("beamline.revision", "2"),
                ("request.id", answer.header("x-request-id").unwrap()),
            ][..],
        ),
        (
            filter,
            "filter probe",
            &[("beamline.filter.name", "probe"), ("beamline.filter.outcome", "ok"), ("verdict", "next")],
        ),
        (
            client,
            "GET",
            &[
                ("upstream", "origin"),
                ("server.port", &scene.origin.address().port().to_string()),
                ("http.response.status_code", "200"),
            ],
        ),
    ] {
        assert_eq!((span.name.as_str(), &span.error, span.service.as_str()), (name, &None, "beamline"));
        for (key, value) in attributes {
            assert_eq!(span.attribute(key), Some(*value), "{key} of {name}: {:?}", span.attributes);
        }
    }
    let seen = scene.origin.requests();
    let [seen_trace, seen_span, flags] = parts(seen[0].headers.get("traceparent").unwrap());
    assert_eq!(
        (seen_trace, seen_span),
        (trace.as_str(), client.span_id.as_str()),
        "the origin goes on from the client span"
    );
    assert_eq!(u8::from_str_radix(flags, 16).unwrap() & 1, 1, "sampled");
    assert_eq!(receiver.malformed(), Vec::<String>::new());
}

#[test]
fn what_fails_is_an_error_in_its_span() {
    let (receiver, mut scene) = traced();
    scene.origin.stop();
    for (step, error, kinds) in [
        ("trap", "filter-trap", &[Kind::Server, Kind::Internal][..]),
        ("next", "upstream-connect", &[Kind::Server, Kind::Client]),
    ] {
        let answer = scene.probe("/", step).unwrap();
        assert_eq!(answer.problem(), error);
        let trace = trace_id(&scene, &answer);
        let spans = receiver
            .wait_for_trace(&trace, PATIENCE, |spans| !of_kind(spans, Kind::Server).is_empty())
            .unwrap();
        for span in &spans {
            assert_eq!(span.error.is_some(), kinds.contains(&span.kind), "{}", tree(&spans));
        }
        assert_eq!(only(&spans, Kind::Server).attribute("error.type"), Some(error));
    }
    let unknown = Request::get("/").host("nobody.test").send(scene.node.address()).unwrap();
    let trace = trace_id(&scene, &unknown);
    let spans = receiver.wait_for_trace(&trace, PATIENCE, |spans| spans.len() == 1).unwrap();
    assert_eq!((spans[0].name.as_str(), spans[0].attribute("error.type")), ("GET", Some("unknown-host")));
}

#[test]
fn a_trace_goes_on_across_the_queue_and_a_crash() {
    let (receiver, mut scene) = queueing();
    scene.origin.stop();
    let answer = scene.send(Request::post("/orders", "one").header("idempotency-key", "k1")).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let trace = trace_id(&scene, &answer);
    let has = |spans: &[Span], kind| !of_kind(spans, kind).is_empty();
    receiver.wait_for_trace(&trace, PATIENCE, |spans| has(spans, Kind::Producer)).unwrap();

    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    scene.origin.start_again().unwrap();
    let delivered = |span: &Span| span.kind == Kind::Consumer && span.error.is_none();
    let spans = receiver.wait_for_trace(&trace, PATIENCE, |spans| spans.iter().any(delivered)).unwrap();

    let (server, producer) = (only(&spans, Kind::Server), only(&spans, Kind::Producer));
    assert_eq!(producer.parent.as_ref(), Some(&server.span_id), "{}", tree(&spans));
    assert_eq!(producer.name, "enqueue acme/origin");
    assert_eq!(server.attribute("http.response.status_code"), Some("202"));
    assert_eq!(only(&spans, Kind::Internal).parent.as_ref(), Some(&server.span_id));
    let consumers = of_kind(&spans, Kind::Consumer);
    for consumer in &consumers {
        assert_eq!(consumer.parent.as_ref(), Some(&producer.span_id), "{}", tree(&spans));
        assert_eq!(consumer.links, [(trace.clone(), producer.span_id.clone())], "{}", tree(&spans));
        assert_eq!(consumer.attribute("messaging.message.id"), producer.attribute("messaging.message.id"));
        assert_eq!(consumer.attribute("request.id"), answer.header("x-request-id"));
    }
    let last = consumers.last().unwrap();
    assert_eq!(
        (last.name.as_str(), last.attribute("beamline.queue.outcome")),
        ("deliver acme/origin", Some("delivered"))
    );
    let client = *of_kind(&spans, Kind::Client).last().unwrap();
    assert_eq!(client.parent.as_ref(), Some(&last.span_id), "{}", tree(&spans));

    let log = scene.origin.requests();
    assert_eq!((log.len(), log[0].body.as_slice()), (1, &b"one"[..]));
    let [seen_trace, seen_span, _] = parts(log[0].headers.get("traceparent").unwrap());
    assert_eq!((seen_trace, seen_span), (trace.as_str(), client.span_id.as_str()));
    assert_eq!(log[0].headers.get("beamline-attempt"), last.attribute("beamline.queue.attempt"));

    let ids: HashSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), spans.len(), "no span has another's id:\n{}", tree(&spans));
    let is_delivery =
        |record: &&Value| record["kind"] == "delivery" && record["beamline.queue.outcome"] == "delivered";
    let records = scene.node.wait_log(PATIENCE, |log| log.iter().any(|r| is_delivery(&r))).unwrap();
    let record = records.iter().find(is_delivery).unwrap();
    assert_eq!((&record["trace_id"], &record["span_id"]), (&json!(trace), &json!(last.span_id)));
}

#[test]
fn a_strangers_trace_is_a_link_and_nobodys_parent() {
    let (receiver, scene) = traced();
    let (theirs, their_span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let strange = format!("00-{theirs}-{their_span}-01");
    let request = Request::get("/")
        .header("traceparent", &strange)
        .header("tracestate", "a=b")
        .header("baggage", "c=d");
    let answer = scene.send(request).unwrap();
    let trace = trace_id(&scene, &answer);
    assert_ne!(trace, theirs);
    let spans = receiver.wait_for_trace(&trace, PATIENCE, |spans| spans.len() == 3).unwrap();
    let server = only(&spans, Kind::Server);
    assert_eq!((&server.parent, &server.links), (&None, &vec![(theirs.to_owned(), their_span.to_owned())]));
    let seen = scene.origin.requests();
    assert_eq!(parts(seen[0].headers.get("traceparent").unwrap())[0], trace);
    assert_eq!((seen[0].headers.get("tracestate"), seen[0].headers.get("baggage")), (None, None));

    for wrong in [
        "",
        "00",
        "00-0-0-01",
        &format!("ff-{theirs}-{their_span}-01"),
        &format!("00-{}-{their_span}-01", "0".repeat(32)),
    ] {
        let answer = scene.send(Request::get("/").header("traceparent", wrong)).unwrap();
        let trace = trace_id(&scene, &answer);
        let spans = receiver.wait_for_trace(&trace, PATIENCE, |spans| spans.len() == 3).unwrap();
        assert_eq!(only(&spans, Kind::Server).links, [], "{wrong:?}");
    }
}

#[test]
fn what_is_not_sampled_is_not_sent_and_still_has_its_trace_id() {
    let receiver = Receiver::start().unwrap();
    let arguments = ["--sample-ratio", "0", "--lame-duck", "1ms"].map(str::to_owned).to_vec();
    let scene =
        Scene::with(Options { otlp_endpoint: Some(receiver.endpoint()), arguments, ..Options::default() })
            .unwrap();
    let answer = scene.send(Request::get("/")).unwrap();
    let trace = trace_id(&scene, &answer);
    let seen = scene.origin.requests();
    let [seen_trace, _, flags] = parts(seen[0].headers.get("traceparent").unwrap());
    assert_eq!((seen_trace, u8::from_str_radix(flags, 16).unwrap() & 1), (trace.as_str(), 0));
    // The end of the node is when everything that waits is sent.
    let mut scene = scene;
    scene.node.sigterm().unwrap();
    scene.node.wait_exit(PATIENCE).unwrap();
    assert_eq!(receiver.count(), 0);
}

#[test]
fn what_waits_to_be_sent_is_sent_before_the_node_ends() {
    let receiver = Receiver::start().unwrap();
    let options =
        Options { otlp_endpoint: Some(receiver.endpoint()), arguments: no_lame_duck(), ..Options::default() };
    let mut scene = Scene::with(options).unwrap();
    for _ in 0..20 {
        scene.send(Request::get("/")).unwrap();
    }
    scene.node.sigterm().unwrap();
    assert_eq!(scene.node.wait_exit(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(of_kind(&receiver.spans(), Kind::Server).len(), 20);
    let log = scene.node.log().unwrap();
    assert_eq!(log.iter().filter(|r| r["kind"] == "access").count(), 20);
}

/// Sends a load while the exporter can't send; all of it must be answered well and soon.
fn unhindered(scene: &Scene) {
    let _heavy = heavy().unwrap();
    let plan = Plan::new(scene.node.address(), load::get("/", HOST))
        .limit(20_000)
        .lasting(PATIENCE)
        .timeout(PATIENCE);
    let report = load::run(&plan).unwrap();
    println!("{report}");
    assert_eq!((report.good(), report.failed()), (20_000, 0), "{report}");
    // An export has 10 s: a request that waited for one would have taken that long.
    assert!(report.latency.max() < Duration::from_secs(5), "{report}");
}

#[test]
fn a_collector_that_is_down_holds_nothing_up_and_its_return_is_noticed() {
    let port = Port::reserve().unwrap();
    let endpoint = format!("http://{}", port.address());
    let scene = Scene::with(Options { otlp_endpoint: Some(endpoint), ..Options::default() }).unwrap();
    unhindered(&scene);
    let says = |log: &[Value], name: &str| log.iter().any(|r| r["event.name"] == name);
    let log = scene.node.wait_log(PATIENCE, |log| says(log, "telemetry.export.failing")).unwrap();
    let event = log.iter().find(|r| r["event.name"] == "telemetry.export.failing").unwrap();
    assert!(
        event["attributes"]["endpoint"].as_str().unwrap().contains(&port.number().to_string()),
        "{event}"
    );
    let log = scene.node.wait_log(PATIENCE, |log| says(log, "telemetry.dropped")).unwrap();
    let dropped: u64 = log.iter().filter_map(|r| r["attributes"]["spans"].as_u64()).sum();
    assert!(dropped > 0, "what was lost is counted");

    let receiver = Receiver::start_on(port).unwrap();
    let until = Instant::now() + PATIENCE;
    while receiver.count() == 0 {
        assert!(Instant::now() < until, "spans arrive again");
        scene.send(Request::get("/")).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.node.wait_log(PATIENCE, |log| says(log, "telemetry.export.recovered")).unwrap();
    assert_eq!(receiver.malformed(), Vec::<String>::new());
}

#[test]
fn a_collector_that_hangs_holds_nothing_up() {
    let hanging = Raw::start(|stream| {
        // Takes the connection and what fits its buffer, and never answers.
        let mut stream = stream;
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
    .unwrap();
    let endpoint = format!("http://{}", hanging.address());
    let mut scene = Scene::with(Options {
        otlp_endpoint: Some(endpoint),
        arguments: no_lame_duck(),
        ..Options::default()
    })
    .unwrap();
    unhindered(&scene);
    scene.node.sigterm().unwrap();
    assert_eq!(scene.node.wait_exit(PATIENCE).unwrap().code(), Some(0), "nor the node's end");
}

#[test]
fn a_log_that_cannot_be_written_holds_nothing_up() {
    let mut node = Beamline::prepare(Options::default()).unwrap();
    std::os::unix::fs::symlink("/dev/full", node.log_file()).unwrap();
    node.launch().unwrap();
    unhindered(&Scene::on(node).unwrap());
}

/// Every file below a folder with its bytes.
fn files(folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, into),
            false => drop(into.insert(path.display().to_string(), fs::read(&path).unwrap_or_default())),
        }
    }
}

#[test]
fn nothing_secret_is_in_spans_nor_in_the_log_nor_kept_in_the_queue() {
    let (receiver, mut scene) = queueing();
    let canary = |name: &str| format!("canary-{name}-7f3a9c");
    let sent = |request: Request| {
        request
            .header("authorization", &format!("Bearer {}", canary("authorization")))
            .header("proxy-authorization", &format!("Basic {}", canary("proxy")))
            .header("cookie", &format!("session={}", canary("cookie")))
            .header("x-api-key", &canary("field"))
    };
    let target = |path: &str| format!("{path}?token={}", canary("query"));
    let mut answers = Vec::new();
    let mut ask = |scene: &Scene, request: Request| {
        answers.push(scene.send(sent(request)).unwrap());
        answers.last().unwrap().clone()
    };
    for step in ["next", "trap", "spin", "respond"] {
        ask(&scene, Request::post(&target("/echo"), canary("body")).header("x-probe", step));
    }
    let strange = sent(Request::get(&target("/"))).host("nobody.test").send(scene.node.address()).unwrap();
    assert_eq!(strange.status, 404);

    scene.origin.stop();
    ask(&scene, Request::get(&target("/failing")));
    let accepted =
        ask(&scene, Request::post(&target("/orders"), "what is kept").header("idempotency-key", "k1"));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    let receipt = accepted.header("location").unwrap().to_owned();
    let secret = receipt.rsplit_once('.').unwrap().1;
    let spelled = receipt.replace("/requests/", "/%72equests/");
    for path in [&receipt, &format!("{receipt}?a=b"), &receipt[..receipt.len() - 1], &spelled] {
        ask(&scene, Request::get(path));
    }
    let wrong = format!("blt_{}", canary("token"));
    scene.admin.with_token(&wrong).show(TENANT).unwrap_err();
    let kept = {
        let mut found = BTreeMap::new();
        files(&scene.node.data_dir(), &mut found);
        found
    };
    scene.origin.start_again().unwrap();
    scene.origin.wait_for(PATIENCE, |log| log.iter().any(|r| r.target.starts_with("/orders"))).unwrap();
    let delivery = |r: &Value| r["kind"] == "delivery" && r["beamline.queue.outcome"] == "delivered";
    scene.node.wait_log(PATIENCE, |log| log.iter().any(delivery)).unwrap();
    let last = ask(&scene, Request::get("/last"));
    receiver.wait_for_trace(&trace_id(&scene, &last), PATIENCE, |spans| spans.len() == 3).unwrap();

    let mut told = vec![("the log", fs::read_to_string(scene.node.log_file()).unwrap())];
    told.extend(receiver.spans().into_iter().map(|span| ("a span", format!("{span:?}"))));
    told.push(("what the node printed", scene.node.last_words()));
    assert!(told.len() > 20, "there are spans to look at");
    let secrets: Vec<String> = ["authorization", "proxy", "cookie", "field", "query", "body", "token"]
        .iter()
        .map(|name| canary(name))
        .collect();
    for (what, text) in &told {
        for secret in secrets.iter().map(String::as_str).chain([secret, scene.token.as_str()]) {
            assert!(!text.contains(secret), "{secret} is in {what}: {}", around(text, secret));
        }
    }
    let log = &told[0].1;
    assert!(
        log.contains("/.well-known/beamline/requests/") && log.contains('…'),
        "a receipt's path is there without its secret"
    );

    // What is queued is needed for the delivery; credentials and the receipt's secret never are.
    for (path, bytes) in kept {
        for secret in [canary("authorization").as_str(), &canary("proxy"), &canary("cookie"), secret] {
            assert!(
                !bytes.windows(secret.len()).any(|window| window == secret.as_bytes()),
                "{secret} is in {path}"
            );
        }
    }
    let log = scene.origin.requests();
    let order = log.iter().find(|r| r.target.starts_with("/orders")).unwrap();
    assert_eq!((order.headers.get("authorization"), order.headers.get("cookie")), (None, None));
    assert_eq!(
        (order.target.as_str(), order.headers.get("x-api-key")),
        (target("/orders").as_str(), Some(canary("field").as_str()))
    );
}

/// What stands around a word.
fn around<'a>(text: &'a str, word: &str) -> &'a str {
    let at = text.find(word).unwrap_or(0);
    let from = (0..=at.saturating_sub(200)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    let to =
        (text.len().min(at + 200)..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
    &text[from..to]
}
