//! What each function of the host gives, a line each: `NAME: WHAT`.

use std::fmt::{Debug, Write as _};

use crate::edge::beamline::edge::{
    buckets::{self, Rate},
    clock, config, context,
    http::{RequestHead, ResponseHead},
    kv, log,
    metrics::{self, Label},
    outbound::{self, OutgoingRequest},
    properties, random, secrets, upstreams,
};

#[derive(Default)]
struct Told(String);

impl Told {
    fn line(&mut self, name: &str, what: impl Debug) {
        writeln!(self.0, "{name}: {what:?}").expect("a text takes what is written to it");
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

fn texts(values: Vec<Vec<u8>>) -> Vec<String> {
    values.into_iter().map(text).collect()
}

/// Calls all that can be called in the request's phase. What differs from run to run is told as whether it is plausible.
pub(crate) fn everything(request: &RequestHead) -> String {
    let mut told = Told::default();
    request_head(&mut told, request);
    own(&mut told);
    keys_and_values(&mut told);
    token_buckets(&mut told);
    counted(&mut told);
    requests(&mut told, &request.get("x-origin-url").map(text).unwrap_or_default());
    told.0
}

fn request_head(told: &mut Told, request: &RequestHead) {
    told.line("method", request.method());
    told.line("path", request.path());
    told.line("query", request.query());
    told.line("host", request.host());
    told.line("get", request.get("x-two").map(text));
    told.line("get none", request.get("x-none").map(text));
    told.line("get-all", texts(request.get_all("x-two")));
    let names = ["x-two".to_owned(), "x-none".to_owned()];
    let many: Vec<_> = request.get_many(&names).into_iter().map(|value| value.map(text)).collect();
    told.line("get-many", many);
    let whole = request.snapshot();
    let two = whole.fields.iter().filter(|field| field.name == "x-two").count();
    told.line("snapshot", (whole.method, whole.path, whole.query, whole.host, two));
    told.line("set", request.set("x-two", b"one"));
    told.line("append", request.append("x-two", b"more"));
    told.line("changed", texts(request.get_all("x-two")));
    told.line("remove", request.remove("x-two"));
    told.line("removed", texts(request.get_all("x-two")));
    told.line("invalid-name", request.set("x two", b""));
    told.line("invalid-value", request.set("x-two", b"a\r\nb"));
    told.line("forbidden", request.set("content-length", b"1"));
    told.line("too-large", request.set("x-two", &[b'x'; 300_000]));
}

/// The same of a response's head.
pub(crate) fn response_head(response: &ResponseHead) -> String {
    let mut told = Told::default();
    told.line("status", response.status());
    told.line("get", response.get("location").map(text));
    told.line("get-all", texts(response.get_all("location")));
    let names = ["location".to_owned(), "x-none".to_owned()];
    let many: Vec<_> = response.get_many(&names).into_iter().map(|value| value.map(text)).collect();
    told.line("get-many", many);
    let whole = response.snapshot();
    told.line(
        "snapshot",
        (whole.status, whole.fields.iter().filter(|field| field.name == "location").count()),
    );
    told.line("set-status", response.set_status(404));
    told.line("changed status", response.status());
    told.line("set-status 99", response.set_status(99));
    told.line("set", response.set("x-two", b"one"));
    told.line("append", response.append("x-two", b"more"));
    told.line("changed", texts(response.get_all("x-two")));
    told.line("remove", response.remove("x-two"));
    told.line("removed", texts(response.get_all("x-two")));
    told.line("forbidden", response.set("content-length", b"1"));
    told.0
}

/// What is the filter's own: configuration, log, context, secrets; and what it may know.
fn own(told: &mut Told) {
    told.line("config", config::get());
    for (level, message) in [
        (log::Level::Debug, "debug"),
        (log::Level::Info, "info"),
        (log::Level::Warn, "warn"),
        (log::Level::Error, "error"),
    ] {
        log::write(level, message);
    }
    told.line("context", context::get().map(text));
    told.line("context set", context::set(b"remembered"));
    told.line("context get", context::get().map(text));
    told.line("context too-large", context::set(&[0; 4097]));
    told.line("secret", secrets::get("key").map(text));
    told.line("secret none", secrets::get("other").map(text));
    told.line("upstream", upstreams::get("origin").map(|status| (status.state, status.queue_depth)));
    told.line("upstream none", upstreams::get("other").map(|status| status.state));
    told.line("random", random::get_u64() != random::get_u64());
    told.line("now-ms", clock::now_ms() > 1_700_000_000_000);
    let before = clock::elapsed_ns();
    told.line("elapsed-ns", clock::elapsed_ns() >= before);
    let known = properties::snapshot();
    told.line("client", (known.client_address, known.client_port > 0));
    told.line("ids", (known.request_id.is_empty(), known.trace_id.len()));
    told.line("tenant", (known.tenant, known.revision > 0));
    told.line("scheme", (known.scheme, known.tls_server_name));
}

fn keys_and_values(told: &mut Told) {
    told.line("kv set", kv::set("k", b"1", Some(60_000)));
    told.line("kv get", kv::get("k").map(text));
    told.line("kv increment", kv::increment("k", 41, None));
    told.line("kv compare-and-set", kv::compare_and_set("k", Some(b"42"), b"text", None));
    told.line("kv compare-and-set none", kv::compare_and_set("k", None, b"other", None));
    told.line("kv not-a-number", kv::increment("k", 1, None));
    told.line("kv delete", (kv::delete("k"), kv::delete("k"), kv::get("k").is_none()));
    told.line(
        "kv overflow",
        (kv::increment("n", i64::MAX, None), kv::increment("n", 1, None), kv::delete("n")),
    );
    told.line("kv invalid-key", kv::set("", b"", None));
    told.line("kv value-too-large", kv::set("k", &[0; (64 << 10) + 1], None));
    told.line("kv quota-exceeded", (kv::set("k", &[0; 1000], None), kv::delete("k")));
}

fn token_buckets(told: &mut Told) {
    let rate = Rate { tokens: 1, period_ms: 86_400_000, burst: 1 };
    // A key of its own for each call, for buckets are remembered.
    let key = random::get_u64().to_string();
    told.line("bucket", buckets::take("b", &key, 1, rate));
    let empty = matches!(buckets::take("b", &key, 1, rate), Ok(buckets::Taken::RetryAfterMs(1..=86_400_000)));
    told.line("bucket retry-after-ms", empty);
    told.line("bucket invalid-key", buckets::take("b", &"k".repeat(256), 1, rate));
    told.line("bucket invalid-rate", buckets::take("b", &key, 2, rate));
    let all = (0..10).map(|i| buckets::take("many", &format!("{key}{i}"), 1, rate));
    told.line("bucket too-many-keys", all.filter_map(Result::err).last());
}

fn counted(told: &mut Told) {
    let label = |name: &str| Label { name: name.to_owned(), value: "v".to_owned() };
    told.line("count", metrics::count("asked", 1, &[label("of")]));
    told.line("observe", metrics::observe("sizes", 0.5, &[]));
    told.line("metric invalid-name", metrics::count("Asked", 1, &[]));
    told.line("metric invalid-label", metrics::count("asked", 1, &[label("tenant")]));
    told.line("metric invalid-value", metrics::observe("sizes", -1.0, &[]));
    told.line("metric other-kind", metrics::observe("asked", 1.0, &[]));
    let names = (0..100).map(|i| metrics::count(&format!("name_{i}"), 1, &[]));
    told.line("metric too-many-names", names.filter_map(Result::err).last());
}

fn requests(told: &mut Told, origin: &str) {
    let send = |method: &str, url: &str, body: &[u8]| {
        let sent = outbound::send(&OutgoingRequest {
            method: method.to_owned(),
            url: url.to_owned(),
            headers: Vec::new(),
            body: body.to_vec(),
            timeout_ms: Some(4_000),
        });
        sent.map(|answer| (answer.status, answer.headers.is_empty(), text(answer.body)))
    };
    told.line("send", send("POST", &format!("{origin}/echo"), b"sent"));
    told.line("send broken", send("GET", &format!("{origin}/reset"), b""));
    told.line("send not-allowed", send("GET", "http://127.0.0.1:1/", b""));
    told.line(
        "send invalid-request",
        matches!(send("GET", "no url", b""), Err(outbound::OutboundError::InvalidRequest(_))),
    );
    let many = (0..40).map(|_| send("GET", &format!("{origin}/"), b""));
    told.line("send too-many", many.filter_map(Result::err).last());
}
