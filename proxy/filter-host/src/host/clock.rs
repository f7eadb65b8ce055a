//! `clock`: the node's time, and that of the call.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::CallState;
use crate::bindings::beamline::edge::clock;

/// The node's wall clock.
pub(super) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl clock::Host for CallState {
    fn now_ms(&mut self) -> wasmtime::Result<u64> {
        self.count_call()?;
        Ok(u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX))
    }

    fn elapsed_ns(&mut self) -> wasmtime::Result<u64> {
        self.count_call()?;
        Ok(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
