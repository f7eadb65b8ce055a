//! Counts its calls in its memory: an instance that is fresh begins at 1.
//!
//! The request and the response get the count as `x-count`; the end is logged with it. The header `x-act` says what else it does in
//! the phases that it names, such as `response:trap`.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use beamline_sdk::{
    Chunk, ChunkVerdict, Filter, FinishFilter, Outcome, Request, RequestBodyFilter, ResponseBodyFilter,
    ResponseFilter, ResponseHead, ResponseVerdict, Verdict, clock, log, outbound,
};

/// The filter.
struct Counter;

static CALLS: AtomicU32 = AtomicU32::new(0);

/// Counts a call, and does what is asked of it in `phase`.
fn count(request: &Request, phase: &str) -> String {
    let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    let acts = request.header("x-act").map(|acts| String::from_utf8_lossy(acts.as_bytes()).into_owned());
    let acts = acts.unwrap_or_default();
    let act = acts.split(' ').find_map(|act| act.strip_prefix(phase)?.strip_prefix(':'));
    match act {
        Some("trap") => panic!("the filter was told to trap"),
        // Beyond any slice, and within any limit.
        Some("long") => {
            while clock::elapsed() < Duration::from_millis(10) {
                (0..100_000).for_each(|n| _ = black_box(n));
            }
        }
        Some("spin") => loop {
            black_box(());
        },
        // Kept in the instance for as long as that lives.
        Some("grow") => std::mem::forget(black_box(vec![1_u8; 1 << 20])),
        Some("ask") => {
            let _ = outbound::get("http://wait.test/100").send();
        }
        _ => {}
    }
    calls.to_string()
}

impl Filter for Counter {
    type Config = ();

    fn on_request((): &(), request: &mut Request) -> Verdict {
        let calls = count(request, "request");
        let act = request.header("x-act").map(|act| act.as_bytes().to_vec());
        match act.as_deref() {
            Some(b"request:answer") => Verdict::respond(200).body(calls).into(),
            Some(b"request:no-verdict") => Verdict::route("origin").path("no path").into(),
            _ => {
                request.set_header("x-count", calls).expect("a number is no more than a field may have");
                Verdict::next()
            }
        }
    }
}

impl RequestBodyFilter for Counter {
    type Config = ();

    fn on_request_chunk((): &(), request: &Request, _: Chunk) -> ChunkVerdict {
        count(request, "request-body");
        ChunkVerdict::pass()
    }
}

impl ResponseFilter for Counter {
    type Config = ();

    fn on_response((): &(), request: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        let calls = count(request, "response");
        response.set_header("x-count", calls).expect("a number is no more than a field may have");
        ResponseVerdict::next()
    }
}

impl ResponseBodyFilter for Counter {
    type Config = ();

    fn on_response_chunk((): &(), request: &Request, _: &ResponseHead, _: Chunk) -> ChunkVerdict {
        count(request, "response-body");
        ChunkVerdict::pass()
    }
}

impl FinishFilter for Counter {
    type Config = ();

    fn on_finish((): &(), request: &Request, _: &Outcome) {
        log::info!("count {}", count(request, "finish"));
    }
}

beamline_sdk::export!(Counter: request, request_body, response, response_body, finish);
