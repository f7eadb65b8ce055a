//! How each thing is done.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use beamline_sdk::{
    HeaderError, Request, Response, Verdict, clock, log, metrics, outbound, properties, random, secrets,
    upstream,
};
use serde_json::{Value, json};

use crate::{
    kept,
    step::{Action, Step},
};

/// How many turns of the busy loop take about a millisecond.
const TURNS_PER_MS: u64 = 1_000_000;

const NAMES: [&str; 12] =
    ["x-h1", "x-h2", "x-h3", "x-h4", "x-h5", "x-h6", "x-h7", "x-h8", "x-h9", "x-h10", "x-h11", "x-h12"];

/// Does what a step says.
pub(crate) fn run(step: &Step, request: &mut Request) -> Verdict {
    match step.action {
        Action::Next => return Verdict::next(),
        Action::Route => return route(step),
        Action::Respond => return respond(step),
        Action::Enqueue => return enqueue(step),
        Action::Spin => loop {
            turn(TURNS_PER_MS);
        },
        Action::SpinMs => (0..step.n).for_each(|_| turn(TURNS_PER_MS)),
        Action::Bomb => bomb(),
        Action::Alloc => drop(mebibytes(step.n)),
        Action::Trap => panic!("the probe was told to trap"),
        Action::Unreachable => unreachable_instruction(),
        Action::Recurse => {
            black_box(recurse(0));
        }
        Action::Headers => return routed_by(step, NAMES.map(|name| request.header(name))[11].as_ref()),
        Action::HeadersMany => return routed_by(step, request.headers(NAMES)[11].as_ref()),
        Action::SetHeaders => {
            let outcome = set_headers(step, request);
            if step.reply {
                return json_answer(&outcome);
            }
        }
        Action::Head => return head(request),
        Action::Log if step.n == 0 => log::write(log::Level::Info, &step.body),
        Action::Log => log::write(log::Level::Info, &"x".repeat(size(step.n))),
        Action::Calls => (0..step.n).for_each(|_| {
            black_box(random::u64());
        }),
        Action::Count => return count(request),
        Action::Random => return json_answer(&json!(random::u64())),
        Action::Upstream => return upstream_status(step),
        Action::Clock => return time(step),
        Action::Properties => return known(),
        Action::Kv => return json_answer(&kept::call(step)),
        Action::Send => {
            let mut answer = send(step);
            (1..step.n).for_each(|_| answer = send(step));
            if step.then.is_null() {
                return json_answer(&answer);
            }
        }
        Action::Secret => {
            let secret = secrets::get(&step.key).map(|value| String::from_utf8_lossy(&value).into_owned());
            if step.then.is_null() {
                return json_answer(&json!(secret));
            }
            log::info!("the secret is {secret:?}");
        }
        Action::Metric => return json_answer(&metric(step)),
        Action::Take => return json_answer(&kept::take(step)),
    }
    match step.then() {
        Some(then) => run(&then, request),
        None if step.upstream.is_some() => route(step),
        None => Verdict::next(),
    }
}

fn upstream_name(step: &Step) -> &str {
    step.upstream.as_deref().unwrap_or("origin")
}

fn route(step: &Step) -> Verdict {
    let mut route = Verdict::route(upstream_name(step));
    if let Some(path) = &step.path {
        route = route.path(path);
    }
    if let Some(host) = &step.host {
        route = route.host(host);
    }
    if let Some(ms) = step.timeout_ms {
        route = route.timeout(Duration::from_millis(ms.into()));
    }
    route.into()
}

fn routed_by(step: &Step, value: Option<&beamline_sdk::HeaderValue>) -> Verdict {
    let other = value.is_some_and(|value| value == "other");
    Verdict::route(if other { "other" } else { upstream_name(step) }).into()
}

fn respond(step: &Step) -> Verdict {
    let mut response = Verdict::respond(if step.status == 0 { 200 } else { step.status });
    for (name, value) in &step.headers {
        for value in texts(value) {
            response = response.header(name, value);
        }
    }
    let body = if step.n == 0 { step.body.clone() } else { "x".repeat(size(step.n)) };
    response.body(body).into()
}

fn enqueue(step: &Step) -> Verdict {
    let mut enqueue = Verdict::enqueue(upstream_name(step));
    if let Some(key) = &step.ordering_key {
        enqueue = enqueue.ordering_key(key);
    }
    if let Some(ms) = step.delay_ms {
        enqueue = enqueue.delay(Duration::from_millis(ms));
    }
    if let Some(ms) = step.expiry_ms {
        enqueue = enqueue.expiry(Duration::from_millis(ms));
    }
    enqueue.into()
}

/// Changes the head; gives what became of each change.
fn set_headers(step: &Step, request: &mut Request) -> Value {
    let mut change = |name: &str, value: &Value| -> Result<(), HeaderError> {
        let mut texts = texts(value).into_iter();
        match texts.next() {
            Some(first) => request.set_header(name, first)?,
            None => request.remove_header(name)?,
        }
        texts.try_for_each(|text| request.append_header(name, text))
    };
    step.headers
        .iter()
        .map(|(name, value)| {
            let outcome = match change(name, value) {
                Ok(()) => "ok",
                Err(HeaderError::InvalidName) => "invalid-name",
                Err(HeaderError::InvalidValue) => "invalid-value",
                Err(HeaderError::Forbidden) => "forbidden",
                Err(HeaderError::TooLarge) => "too-large",
            };
            (name.clone(), Value::from(outcome))
        })
        .collect()
}

fn head(request: &Request) -> Verdict {
    let head = request.snapshot();
    let fields: Vec<_> =
        head.fields.iter().map(|field| json!([field.name, String::from_utf8_lossy(&field.value)])).collect();
    json_answer(&json!({
        "method": head.method,
        "path": head.path,
        "query": head.query,
        "host": head.host,
        "fields": fields,
    }))
}

fn upstream_status(step: &Step) -> Verdict {
    let status = upstream::status(upstream_name(step)).map(|status| {
        let state = match status.state {
            upstream::State::Ready => "ready",
            upstream::State::Degraded => "degraded",
            upstream::State::Down => "down",
        };
        json!({ "state": state, "queue_depth": status.queue_depth })
    });
    json_answer(&json!(status))
}

fn time(step: &Step) -> Verdict {
    let (now_ms, before) = (clock::now_ms(), clock::elapsed());
    (0..step.n).for_each(|_| turn(TURNS_PER_MS));
    let after = clock::elapsed();
    json_answer(&json!({
        "now_ms": now_ms,
        "before_us": u64::try_from(before.as_micros()).unwrap_or(u64::MAX),
        "after_us": u64::try_from(after.as_micros()).unwrap_or(u64::MAX),
    }))
}

fn known() -> Verdict {
    let known = properties::snapshot();
    json_answer(&json!({
        "client_address": known.client_address,
        "client_port": known.client_port,
        "request_id": known.request_id,
        "trace_id": known.trace_id,
        "tenant": known.tenant,
        "revision": known.revision,
        "scheme": known.scheme,
        "tls_server_name": known.tls_server_name,
    }))
}

fn send(step: &Step) -> Value {
    use outbound::OutboundError;
    let method = if step.call.is_empty() { "GET" } else { &step.call };
    let mut request = outbound::request(method, &step.url).body(step.body.as_str());
    for (name, value) in &step.headers {
        for value in texts(value) {
            request = request.header(name, value);
        }
    }
    if let Some(ms) = step.timeout_ms {
        request = request.timeout_ms(ms);
    }
    match request.send() {
        Ok(answer) => json!({
            "status": answer.status,
            "origin": answer.header("x-origin").map(String::from_utf8_lossy),
            "bytes": answer.body.len(),
            "body": String::from_utf8_lossy(&answer.body[..answer.body.len().min(4096)]),
        }),
        Err(error) => json!(match error {
            OutboundError::InvalidRequest(problem) => return json!(format!("invalid-request: {problem}")),
            OutboundError::NotAllowed => "not-allowed",
            OutboundError::TooMany => "too-many",
            OutboundError::Connect => "connect",
            OutboundError::Timeout => "timeout",
            OutboundError::TooLarge => "too-large",
            OutboundError::Broken => "broken",
        }),
    }
}

fn metric(step: &Step) -> Value {
    use metrics::MetricError;
    let labels: Vec<_> = step
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    let counted = match step.value {
        Some(value) => metrics::observe(&step.key, value, &labels),
        None => metrics::count(&step.key, step.by.unsigned_abs(), &labels),
    };
    json!(match counted {
        Ok(()) => "ok",
        Err(MetricError::InvalidName) => "invalid-name",
        Err(MetricError::InvalidLabel) => "invalid-label",
        Err(MetricError::InvalidValue) => "invalid-value",
        Err(MetricError::OtherKind) => "other-kind",
        Err(MetricError::TooManyNames) => "too-many-names",
    })
}

fn count(request: &mut Request) -> Verdict {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let count = count.to_string();
    request.set_header("x-count", &count).expect("a usual header");
    Verdict::respond(200).header("x-count", count.as_str()).body(count).into()
}

fn json_answer(value: &Value) -> Verdict {
    let answer: Response = Verdict::respond(200);
    answer.header("content-type", "application/json").body(value.to_string()).into()
}

/// The texts of a text or an array of texts; of anything else none.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(values) => values.iter().filter_map(Value::as_str).collect(),
        value => value.as_str().into_iter().collect(),
    }
}

pub(crate) fn size(n: u64) -> usize {
    usize::try_from(n).expect("what a step asks for fits an address space")
}

fn mebibytes(n: u64) -> Vec<u8> {
    black_box(vec![1; size(n) << 20])
}

fn turn(turns: u64) {
    let mut state = 1_u64;
    for _ in 0..turns {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

fn bomb() -> ! {
    let mut taken = Vec::new();
    loop {
        taken.push(mebibytes(1));
    }
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "that is what is asked for")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    recurse(depth + 1) + frame[3]
}

#[cfg(target_family = "wasm")]
fn unreachable_instruction() -> ! {
    core::arch::wasm32::unreachable()
}

#[cfg(not(target_family = "wasm"))]
fn unreachable_instruction() -> ! {
    std::process::abort()
}
