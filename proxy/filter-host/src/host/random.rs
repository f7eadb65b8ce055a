//! `random`: numbers that nobody foresees.

use super::CallState;
use crate::bindings::beamline::edge::random;

impl random::Host for CallState {
    fn get_u64(&mut self) -> wasmtime::Result<u64> {
        self.count_call()?;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        Ok(u64::from_le_bytes(bytes))
    }
}
