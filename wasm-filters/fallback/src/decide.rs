//! What becomes of a request, from the upstreams' states.

use beamline_sdk::upstream::State;

use crate::config::{Config, Enqueue};

/// What becomes of a request.
pub(crate) enum Decision<'a> {
    Route(&'a str),
    Enqueue(&'a Enqueue),
    Refuse,
}

/// Decides. An upstream without a state is one that the manifest does not have: it counts as down.
pub(crate) fn on<'a>(
    config: &'a Config,
    state: impl Fn(&str) -> Option<State>,
    method: impl FnOnce() -> String,
) -> Decision<'a> {
    let mut degraded = None;
    for name in &config.upstreams {
        match state(name) {
            Some(State::Ready) => return Decision::Route(name),
            Some(State::Degraded) if config.prefer_ready => degraded = degraded.or(Some(name)),
            Some(State::Degraded) => return Decision::Route(name),
            Some(State::Down) | None => {}
        }
    }
    if let Some(name) = degraded {
        return Decision::Route(name);
    }
    match &config.enqueue {
        Some(enqueue) if enqueue.takes(&method()) => Decision::Enqueue(enqueue),
        _ => Decision::Refuse,
    }
}
