//! `config`: the filter's own configuration.

use super::CallState;
use crate::bindings::beamline::edge::config;

impl config::Host for CallState {
    fn get(&mut self) -> String {
        self.config.to_string()
    }
}
