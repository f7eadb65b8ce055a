//! A link of the bench's chain: reads what `tiny` reads, one by one, and leaves the request to the filter after it.
#![cfg(target_family = "wasm")]

use beamline_sdk::raw::{
    self,
    beamline::edge::verdicts::Verdict,
    exports::beamline::edge::request_handler::{Guest, RequestHead},
};

struct TinyNext;

const NAMES: [&str; 12] =
    ["x-h1", "x-h2", "x-h3", "x-h4", "x-h5", "x-h6", "x-h7", "x-h8", "x-h9", "x-h10", "x-h11", "x-h12"];

impl Guest for TinyNext {
    fn handle(request: &RequestHead) -> Verdict {
        // Whatever they are.
        let _ = NAMES.map(|name| request.get(name));
        Verdict::Next
    }
}

raw::export!(TinyNext with_types_in raw);
