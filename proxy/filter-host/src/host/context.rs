//! `context`: what a filter remembers of a request, from one of its calls to the next.

use super::CallState;
use crate::bindings::beamline::edge::context;

/// The most bytes that a filter may remember of a request.
const MAX_CONTEXT: usize = 4 << 10;

impl context::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<Option<Vec<u8>>> {
        self.count_call()?;
        Ok(self.context.as_ref().map(|value| value.to_vec()))
    }

    fn set(&mut self, value: Vec<u8>) -> wasmtime::Result<Result<(), context::ContextError>> {
        self.count_call()?;
        if value.len() > MAX_CONTEXT {
            return Ok(Err(context::ContextError::TooLarge));
        }
        self.context = Some(value.into());
        Ok(Ok(()))
    }
}
