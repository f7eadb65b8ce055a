//! `config`: the filter's own configuration.

use super::CallState;
use crate::bindings::beamline::edge::config;

impl config::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.config.to_string())
    }
}
