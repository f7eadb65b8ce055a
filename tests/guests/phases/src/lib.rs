//! Takes part in every phase, and does in each what its configuration says.
//!
//! A configuration has an [`Act`] for each phase, such as `{ "response": { "set": { "x-a": "1" } } }`. Without one, the phase lets
//! pass what it sees. The header `x-act` of a request, a configuration as JSON, takes the place of the filter's own.

mod act;

use std::collections::BTreeMap;

use beamline_sdk::{
    Body, Chunk, ChunkVerdict, Filter, FinishFilter, Outcome, Request, RequestBodyFilter, ResponseBodyFilter,
    ResponseFilter, ResponseHead, ResponseVerdict, Verdict, WholeRequestFilter, WholeResponseFilter, context,
    log,
};
use serde::Deserialize;

use crate::act::{Act, Head};

/// The filter.
struct Phases;

/// What it does in each phase.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    request: Act,
    whole_request: Act,
    request_body: Act,
    response: Act,
    whole_response: Act,
    response_body: Act,
    finish: Act,
}

impl Config {
    /// What the request says, or else the manifest.
    fn of(&self, request: &Request, phase: fn(Self) -> Act) -> Act {
        let told = request.header("x-act").map(|told| {
            let acts: BTreeMap<String, serde_json::Value> =
                serde_json::from_slice(told.as_bytes()).expect("x-act: acts by phase");
            serde_json::from_value(acts.into_iter().collect()).expect("x-act: an act for each phase")
        });
        phase(told.unwrap_or_else(|| self.clone()))
    }
}

impl Filter for Phases {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let act = config.of(request, |c| c.request);
        act.run(&mut Head::Request(request));
        act.verdict()
    }
}

impl WholeRequestFilter for Phases {
    type Config = Config;

    fn on_whole_request(config: &Config, request: &mut Request, body: &mut Body) -> Verdict {
        let act = config.of(request, |c| c.whole_request);
        act.run(&mut Head::Request(request));
        act.rewrite(body);
        act.verdict()
    }
}

impl RequestBodyFilter for Phases {
    type Config = Config;

    fn on_request_chunk(config: &Config, request: &Request, chunk: Chunk) -> ChunkVerdict {
        let act = config.of(request, |c| c.request_body);
        act.run(&mut Head::None);
        act.chunk(chunk)
    }
}

impl ResponseFilter for Phases {
    type Config = Config;

    fn on_response(config: &Config, request: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        let act = config.of(request, |c| c.response);
        act.run(&mut Head::Response(response));
        act.response_verdict()
    }
}

impl WholeResponseFilter for Phases {
    type Config = Config;

    fn on_whole_response(
        config: &Config,
        request: &Request,
        response: &mut ResponseHead,
        body: &mut Body,
    ) -> ResponseVerdict {
        let act = config.of(request, |c| c.whole_response);
        act.run(&mut Head::Response(response));
        act.rewrite(body);
        act.response_verdict()
    }
}

impl ResponseBodyFilter for Phases {
    type Config = Config;

    fn on_response_chunk(
        config: &Config,
        request: &Request,
        response: &ResponseHead,
        chunk: Chunk,
    ) -> ChunkVerdict {
        assert!(response.status() >= 200, "a response has a status");
        let act = config.of(request, |c| c.response_body);
        act.run(&mut Head::None);
        act.chunk(chunk)
    }
}

impl FinishFilter for Phases {
    type Config = Config;

    fn on_finish(config: &Config, request: &Request, outcome: &Outcome) {
        let act = config.of(request, |c| c.finish);
        act.run(&mut Head::None);
        if act.tell {
            let remembered = context::get().map(|context| String::from_utf8_lossy(&context).into_owned());
            let told = serde_json::json!({
                "path": request.path(),
                "status": outcome.status,
                "upstream": outcome.upstream,
                "request_bytes": outcome.request_bytes,
                "response_bytes": outcome.response_bytes,
                "duration_us": outcome.duration_us,
                "upstream_us": outcome.upstream_us,
                "error": outcome.error,
                "context": remembered,
            });
            log::write(log::Level::Info, &told.to_string());
        }
    }
}

beamline_sdk::export!(
    Phases: request, whole_request, request_body, response, whole_response, response_body, finish
);
