//! `random`: numbers that nobody foresees.

use super::CallState;
use crate::bindings::beamline::edge::random;

/// Fills this with bytes of the operating system's.
pub(super) fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system gives randomness");
}

pub(super) fn number() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

impl random::Host for CallState {
    fn get_u64(&mut self) -> wasmtime::Result<u64> {
        self.count_call()?;
        Ok(number())
    }
}
