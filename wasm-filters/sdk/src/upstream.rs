//! How this tenant's upstreams fare.

pub use crate::raw::beamline::edge::upstreams::{State, Status};

/// The status of an upstream, or none where the manifest has no such upstream.
pub fn status(name: &str) -> Option<Status> {
    crate::host::upstream(name)
}

/// Whether an upstream is there and its breaker is not open: a request to it would be sent.
pub fn is_up(name: &str) -> bool {
    status(name).is_some_and(|status| status.state != State::Down)
}
