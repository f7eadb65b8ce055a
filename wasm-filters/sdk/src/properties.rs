//! What is known of the request beside its head: who sent it, what it is called in logs and traces, whose it is.

pub use crate::raw::beamline::edge::properties::RequestProperties as Properties;

/// All of it, in one crossing of the sandbox's border.
pub fn snapshot() -> Properties {
    crate::host::properties()
}
