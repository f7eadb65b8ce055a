//! How an exchange ended.

/// What a filter hears after the last byte: status, upstream, bytes, microseconds, and why it failed, where it did.
pub use crate::raw::finish::exports::beamline::edge::finish_handler::Outcome;
