//! The bench's filter: reads twelve headers one by one, compares one, routes.
//!
//! Written against the generated bindings, without configuration: what is measured is the host's work, not the
//! guest's. Routes to `other` where `x-h12` is `other`, else to `origin`.
#![cfg(target_family = "wasm")]

use beamline_sdk::raw::{
    self,
    beamline::edge::verdicts::{Route, Verdict},
    exports::beamline::edge::request_handler::{Guest, RequestHead},
};

struct Tiny;

const NAMES: [&str; 12] =
    ["x-h1", "x-h2", "x-h3", "x-h4", "x-h5", "x-h6", "x-h7", "x-h8", "x-h9", "x-h10", "x-h11", "x-h12"];

impl Guest for Tiny {
    fn handle(request: &RequestHead) -> Verdict {
        let values = NAMES.map(|name| request.get(name));
        let upstream = if values[11].as_deref() == Some(b"other") { "other" } else { "origin" };
        Verdict::Route(Route { upstream: upstream.to_owned(), path: None, host: None, timeout_ms: None })
    }
}

raw::export!(Tiny with_types_in raw);
