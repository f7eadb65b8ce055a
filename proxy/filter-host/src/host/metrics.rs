//! `metrics`: what a filter counts.

use super::CallState;
use crate::bindings::beamline::edge::metrics;

/// What a filter counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric<'a> {
    /// The metric's name, as the guest wrote it.
    pub name: &'a str,
    /// Its labels, as the guest wrote them.
    pub labels: &'a [(String, String)],
    /// What is done to it.
    pub update: MetricUpdate,
}

/// What is done to a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricUpdate {
    /// Adds to a counter.
    Count(u64),
    /// Adds a value to a histogram.
    Observe(f64),
}

/// Why nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricRefusal {
    /// The name is not one.
    InvalidName,
    /// A label is not one, or there are too many.
    InvalidLabel,
    /// The value is negative or no number.
    InvalidValue,
    /// The name is that of a metric of the other kind.
    OtherKind,
    /// The tenant has too many names.
    TooManyNames,
}

impl CallState {
    fn metric(
        &mut self,
        name: &str,
        labels: Vec<metrics::Label>,
        update: MetricUpdate,
    ) -> wasmtime::Result<Result<(), metrics::MetricError>> {
        self.count_call()?;
        let labels: Vec<_> = labels.into_iter().map(|label| (label.name, label.value)).collect();
        let counted = self.view.count(&self.config.name, Metric { name, labels: &labels, update });
        Ok(counted.map_err(|refusal| match refusal {
            MetricRefusal::InvalidName => metrics::MetricError::InvalidName,
            MetricRefusal::InvalidLabel => metrics::MetricError::InvalidLabel,
            MetricRefusal::InvalidValue => metrics::MetricError::InvalidValue,
            MetricRefusal::OtherKind => metrics::MetricError::OtherKind,
            MetricRefusal::TooManyNames => metrics::MetricError::TooManyNames,
        }))
    }
}

impl metrics::Host for CallState {
    fn count(
        &mut self,
        name: String,
        by: u64,
        labels: Vec<metrics::Label>,
    ) -> wasmtime::Result<Result<(), metrics::MetricError>> {
        self.metric(&name, labels, MetricUpdate::Count(by))
    }

    fn observe(
        &mut self,
        name: String,
        value: f64,
        labels: Vec<metrics::Label>,
    ) -> wasmtime::Result<Result<(), metrics::MetricError>> {
        self.metric(&name, labels, MetricUpdate::Observe(value))
    }
}
