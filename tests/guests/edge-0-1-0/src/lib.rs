//! A filter as somebody wrote it when `beamline:edge@0.1.0` was new: over the copy of the package beside it, which never changes,
//! and without the SDK, which may. It takes part in every phase and calls every function.
//!
//! What a request is for stands in its path: `/ask` tells what each function gave, `/route`, `/enqueue`, `/whole` and so on have
//! the other verdicts of each phase.
#![cfg(target_family = "wasm")]

mod ask;

#[allow(missing_docs, unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated code")]
mod edge {
    wit_bindgen::generate!({
        path: "wit",
        inline: "
            package beamline:guest;

            world every-phase {
                include beamline:edge/imports@0.1.0;
                export beamline:edge/request-handler@0.1.0;
                export beamline:edge/whole-request-handler@0.1.0;
                export beamline:edge/request-body-handler@0.1.0;
                export beamline:edge/response-handler@0.1.0;
                export beamline:edge/whole-response-handler@0.1.0;
                export beamline:edge/response-body-handler@0.1.0;
                export beamline:edge/finish-handler@0.1.0;
            }
        ",
        world: "beamline:guest/every-phase",
        generate_all,
    });
}

use edge::{
    beamline::edge::{
        bodies::{ChunkVerdict, Replacement},
        context,
        http::{Field, RequestHead, ResponseHead},
        log,
        verdicts::{Enqueue, Response, ResponseVerdict, Route, Verdict},
    },
    exports::beamline::edge::{
        finish_handler, request_body_handler, request_handler, response_body_handler, response_handler,
        whole_request_handler, whole_response_handler,
    },
};

struct Filter;

fn answer(body: Vec<u8>) -> Response {
    let answered = Field { name: "x-answered".to_owned(), value: b"0.1.0".to_vec() };
    Response { status: 203, headers: vec![answered], body }
}

/// The test's requests name the field that they are led by; its value is what they ask for.
fn asked(request: &RequestHead) -> Vec<u8> {
    request.get("x-ask").unwrap_or_default()
}

impl request_handler::Guest for Filter {
    fn handle(request: &RequestHead) -> Verdict {
        let upstream = || "origin".to_owned();
        match request.path().as_str() {
            "/ask" => Verdict::Respond(answer(ask::everything(request).into_bytes())),
            "/route" => Verdict::Route(Route {
                upstream: upstream(),
                path: Some("/inspect?routed".to_owned()),
                host: Some("routed.test".to_owned()),
                timeout_ms: Some(10_000),
            }),
            "/enqueue" => Verdict::Enqueue(Enqueue {
                upstream: upstream(),
                ordering_key: Some("key".to_owned()),
                delay_ms: Some(1),
                expiry_ms: Some(60_000),
            }),
            "/whole" => Verdict::ReadBody,
            _ => {
                let kept = context::set(b"kept").is_ok();
                let marked = request.append("x-marked", b"request").is_ok();
                if kept && marked { Verdict::Next } else { Verdict::Respond(answer(b"refused".to_vec())) }
            }
        }
    }
}

impl whole_request_handler::Guest for Filter {
    fn handle(request: &RequestHead, body: Vec<u8>) -> whole_request_handler::Decision {
        let verdict = if request.append("x-marked", b"whole-request").is_ok() {
            Verdict::Route(Route {
                upstream: "origin".to_owned(),
                path: Some("/echo".to_owned()),
                host: None,
                timeout_ms: None,
            })
        } else {
            Verdict::Respond(answer(b"refused".to_vec()))
        };
        whole_request_handler::Decision { verdict, body: Some(body.to_ascii_uppercase()) }
    }
}

impl request_body_handler::Guest for Filter {
    fn handle(request: &RequestHead, chunk: Vec<u8>, last: bool) -> ChunkVerdict {
        match asked(request).as_slice() {
            b"hold" => ChunkVerdict::Hold,
            b"replace" if last => {
                ChunkVerdict::Replace(Replacement { data: [&chunk[..], b"!"].concat(), again: 0 })
            }
            _ => ChunkVerdict::Pass,
        }
    }
}

impl response_handler::Guest for Filter {
    fn handle(request: &RequestHead, response: &ResponseHead) -> ResponseVerdict {
        match asked(request).as_slice() {
            b"respond" => ResponseVerdict::Respond(answer(b"in its place".to_vec())),
            b"read-body" => ResponseVerdict::ReadBody,
            b"head" => ResponseVerdict::Respond(answer(ask::response_head(response).into_bytes())),
            _ => {
                let kept = context::get().unwrap_or_default();
                if response.set("x-kept", &kept).is_ok() {
                    ResponseVerdict::Next
                } else {
                    ResponseVerdict::ReadBody
                }
            }
        }
    }
}

impl whole_response_handler::Guest for Filter {
    fn handle(_: &RequestHead, response: &ResponseHead, body: Vec<u8>) -> whole_response_handler::Decision {
        let body = [format!("{} ", response.status()).as_bytes(), &body].concat();
        whole_response_handler::Decision { verdict: ResponseVerdict::Next, body: Some(body) }
    }
}

impl response_body_handler::Guest for Filter {
    fn handle(request: &RequestHead, response: &ResponseHead, chunk: Vec<u8>, last: bool) -> ChunkVerdict {
        match asked(request).as_slice() {
            b"again" if !last && !chunk.is_empty() => {
                // The last byte is shown once more, until the chunk that is the last.
                ChunkVerdict::Replace(Replacement { data: chunk[..chunk.len() - 1].to_vec(), again: 1 })
            }
            b"again" => {
                let end = format!("|{}", response.status());
                ChunkVerdict::Replace(Replacement { data: [&chunk[..], end.as_bytes()].concat(), again: 0 })
            }
            b"held" => ChunkVerdict::Hold,
            _ => ChunkVerdict::Pass,
        }
    }
}

impl finish_handler::Guest for Filter {
    fn handle(request: &RequestHead, outcome: finish_handler::Outcome) {
        let finish_handler::Outcome {
            status,
            upstream,
            request_bytes,
            response_bytes,
            duration_us,
            upstream_us,
            error,
        } = outcome;
        let in_time = duration_us > 0 && upstream_us <= duration_us;
        let path = request.path();
        let told = format!(
            "finish {path} {status:?} {upstream:?} {request_bytes} {response_bytes} {in_time} {error:?}"
        );
        log::write(log::Level::Info, &told);
    }
}

edge::export!(Filter with_types_in edge);
