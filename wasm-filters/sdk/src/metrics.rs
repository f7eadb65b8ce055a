//! Counters and histograms on the node's `/metrics`. The host adds the labels `tenant` and `filter`.
//!
//! ```
//! # use beamline_sdk::metrics;
//! # fn on_request(plan: &str) {
//! // Shown as beamline_guest_requests_total{tenant="…",filter="…",plan="…"}.
//! let _ = metrics::count("requests", 1, &[("plan", plan)]);
//! # }
//! ```
//!
//! Keep the values of labels few: a tenant has 1,000 series and 64 names on a node. What goes beyond is folded into a series
//! with the label `overflow`, so never take an id, an address or a path for a label.

pub use crate::raw::beamline::edge::metrics::MetricError;

/// Adds to a counter.
///
/// # Errors
/// [`MetricError`]: nothing was counted.
pub fn count(name: &str, by: u64, labels: &[(&str, &str)]) -> Result<(), MetricError> {
    crate::host::count(name, by, labels)
}

/// Adds a value to a histogram, whose buckets go from 0.001 to 1000.
///
/// # Errors
/// [`MetricError`]: nothing was counted.
pub fn observe(name: &str, value: f64, labels: &[(&str, &str)]) -> Result<(), MetricError> {
    crate::host::observe(name, value, labels)
}
