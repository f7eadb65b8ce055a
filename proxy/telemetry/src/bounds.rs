//! Every bound on memory that telemetry holds, in one place.

/// Bytes of a worker's log buffer, handed to the writer thread once this full.
pub const LOG_BUFFER: usize = 64 << 10;
/// Bytes of records from workers that may wait for the writer thread; what comes on top is dropped and counted.
pub const LOG_QUEUE: usize = 4 << 20;
/// Bytes on top of [`LOG_QUEUE`] that only events and deliveries may take, so that a flood of access records
/// does not push out what explains it.
pub const LOG_RESERVE: usize = 1 << 20;
/// Buffers (of any size) that may wait for the writer thread.
pub const LOG_SLOTS: usize = 1024;
/// Bytes of `url.path` that are written; the rest is cut and `…` stands in its place.
pub const PATH: usize = 2048;
/// Bytes of `server.address` that are written: the longest DNS name.
pub const HOST: usize = 255;
/// Bytes of a method that are written.
pub const METHOD: usize = 32;
/// Bytes of one guest message that are written: the ceiling of the limit `log`.
pub const GUEST_MESSAGE: usize = 64 << 10;
/// Bytes of an event's `attributes`; larger ones are left out.
pub const EVENT_ATTRIBUTES: usize = 64 << 10;
/// Spans that may wait for the exporter or be on their way, over all workers.
pub const SPAN_QUEUE: usize = 8192;
/// Spans in one export request.
pub const SPAN_BATCH: usize = 512;
/// Sampled spans that a worker gathers before it hands them over.
pub const SPAN_BUFFER: usize = 128;
/// Bytes of a collector's answer that are read.
pub const EXPORT_ANSWER: usize = 64 << 10;
