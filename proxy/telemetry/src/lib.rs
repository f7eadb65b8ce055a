//! What the node tells about itself: one [`Transaction`] per request, written as a JSON Lines record and, where
//! the sampler took it, as an OpenTelemetry trace; and what it counts, as `/metrics`.
//!
//! It owns the log's writer thread and the exporter task. It never makes a request wait: whatever cannot be
//! written or exported in time is dropped, counted ([`Telemetry::dropped`]) and told as an event. Every queue is
//! bounded (see [`bounds`]). Nothing secret passes: query strings, credentials and the secrets of receipts
//! are cut out here, at the one place where records are made.
//!
//! The path of one record: the pipeline fills a [`Transaction`] → [`WorkerTelemetry::finish`] serialises it into
//! the worker's own buffer → full, or on [`WorkerTelemetry::flush`], the buffer goes to the writer thread. A sampled
//! transaction moves on to the exporter task as it is; spans are built there, off the worker.
//!
//! What is written stands in three tables, [`FIELDS`] for the log, [`SPANS`] for traces and [`METRICS`];
//! `docs/reference/logs.md`, `traces.md` and `metrics.md` are held against them by tests.

pub mod bounds;
mod context;
mod endpoint;
mod export;
mod fields;
mod id;
mod json;
mod log;
mod metrics;
mod record;
mod redact;
#[cfg(test)]
mod reference;
mod sampler;
mod spans;
mod telemetry;
mod timestamp;
mod traceparent;
mod transaction;

pub use context::TraceContext;
pub use endpoint::{InvalidEndpoint, OtlpEndpoint};
pub use export::ExportTuning;
pub use fields::{FIELDS, FieldRow, FieldType, RecordKind};
pub use id::{RequestId, SpanId, TraceId};
pub use metrics::{
    Counted, Exposition, GuestMetrics, METRICS, MetricKind, MetricRefusal, MetricRow, Metrics, Update,
};
pub use sampler::{InvalidRatio, Sampler};
pub use spans::{AttributeRow, RESOURCE, SPANS, SpanRow};
pub use telemetry::{Drops, LogTarget, OpenError, Settings, Telemetry, WorkerTelemetry};
pub use traceparent::{RemoteContext, parse_traceparent};
pub use transaction::{
    Attempt, DeliverySpan, FilterRun, GuestLog, Level, Messaging, QueuedRef, Started, Transaction, Verdict,
};
