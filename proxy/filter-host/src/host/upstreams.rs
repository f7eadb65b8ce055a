//! `upstreams`: how the tenant's upstreams fare.

use super::CallState;
use crate::bindings::beamline::edge::upstreams;

/// How one upstream fares, as guests see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Its state.
    pub state: UpstreamState,
    /// Requests that wait in its durable queue.
    pub queue_depth: u64,
}

/// The states of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// As it should be.
    Ready,
    /// Failures lately.
    Degraded,
    /// Its breaker is open.
    Down,
}

impl upstreams::Host for CallState {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<upstreams::Status>> {
        self.count_call()?;
        Ok(self.view.upstream(&name).map(|status| upstreams::Status {
            state: match status.state {
                UpstreamState::Ready => upstreams::State::Ready,
                UpstreamState::Degraded => upstreams::State::Degraded,
                UpstreamState::Down => upstreams::State::Down,
            },
            queue_depth: status.queue_depth,
        }))
    }
}
