//! Takes part in nothing before the response: sets a field of it, and logs how the exchange ended.

use beamline_sdk::{FinishFilter, Outcome, Request, ResponseFilter, ResponseHead, ResponseVerdict, log};

/// The filter.
struct Late;

impl ResponseFilter for Late {
    type Config = ();

    fn on_response((): &(), request: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        response.set_header("x-late", request.path()).expect("a path is no more than a field may have");
        ResponseVerdict::next()
    }
}

impl FinishFilter for Late {
    type Config = ();

    fn on_finish((): &(), request: &Request, outcome: &Outcome) {
        log::info!("{} {:?} {:?}", request.path(), outcome.status, outcome.error);
    }
}

beamline_sdk::export!(Late: response, finish);
