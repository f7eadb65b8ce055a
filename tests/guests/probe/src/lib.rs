//! Does what its configuration, the path or a request header says: one module for many scenes.
//!
//! A [`Step`](step::Step) is taken from the header `x-probe` (a word such as `spin`, a word and a number such as
//! `spin-ms=5`, or a whole step as JSON), else from `paths` in the configuration by the exact path, else it is the
//! configuration itself, such as `{ "do": "respond", "status": 418 }`. Without any of them it says `next`.

mod act;
mod kept;
mod step;

use beamline_sdk::{Filter, Request, Verdict};

use crate::step::Step;

/// The filter.
struct Probe;

impl Filter for Probe {
    type Config = Step;

    fn on_request(config: &Step, request: &mut Request) -> Verdict {
        if let Some(told) = request.header("x-probe") {
            let step = told.to_str().and_then(Step::from_header);
            return match step {
                Some(step) => act::run(&step, request),
                None => Verdict::respond(400).body(format!("probe: x-probe is no step: {told:?}\n")).into(),
            };
        }
        if config.paths.is_empty() {
            return act::run(config, request);
        }
        act::run(config.paths.get(&request.path()).unwrap_or(config), request)
    }
}

beamline_sdk::export!(Probe);
