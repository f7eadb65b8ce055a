//! The table of every field that a log record may have. `docs/reference/logs.md` is written from it, and tests hold
//! both the page and the serialiser against it.

/// The kinds of records, as in the field `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// One request.
    Access,
    /// One delivery from the queue.
    Delivery,
    /// A change of the node's or a tenant's state.
    Event,
    /// One message of a filter.
    Guest,
}

impl RecordKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Access, Self::Delivery, Self::Event, Self::Guest];

    /// As it is written in the field `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Delivery => "delivery",
            Self::Event => "event",
            Self::Guest => "guest",
        }
    }
}

/// The JSON type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A string.
    Text,
    /// A number without a fraction.
    Integer,
    /// A number of milliseconds with three decimals: whole microseconds.
    Millis,
    /// An object whose keys depend on the event.
    Object,
}

impl FieldType {
    /// As `docs/reference/logs.md` names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Integer => "integer",
            Self::Millis => "number (ms)",
            Self::Object => "object",
        }
    }

    /// Whether `value` is of this type.
    pub(crate) fn holds(self, value: &serde_json::Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Integer => value.is_u64(),
            Self::Millis => value.is_f64(),
            Self::Object => value.is_object(),
        }
    }
}

/// One field of the log.
#[derive(Clone, Copy, Debug)]
pub struct FieldRow {
    /// The key.
    pub name: &'static str,
    /// The type of its value.
    pub ty: FieldType,
    /// The kinds of records that always have it.
    pub always: &'static [RecordKind],
    /// The kinds of records that have it only sometimes; `when` says when.
    pub sometimes: &'static [RecordKind],
    /// When the kinds in `sometimes` have it; empty where there are none.
    pub when: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

impl FieldRow {
    /// Whether records of `kind` may have it.
    pub fn is_in(&self, kind: RecordKind) -> bool {
        self.always.contains(&kind) || self.sometimes.contains(&kind)
    }
}

use FieldType::{Integer, Millis, Object, Text};
use RecordKind::{Access, Delivery, Event, Guest};

const fn row(
    name: &'static str,
    ty: FieldType,
    always: &'static [RecordKind],
    sometimes: &'static [RecordKind],
    when: &'static str,
    meaning: &'static str,
) -> FieldRow {
    FieldRow { name, ty, always, sometimes, when, meaning }
}

/// Every field, in the order in which a record has them.
pub const FIELDS: &[FieldRow] = &[
    row(
        "timestamp",
        Text,
        &[Access, Delivery, Event, Guest],
        &[],
        "",
        "When it began (a request: when its head had been read). RFC 3339, UTC, microseconds.",
    ),
    row(
        "kind",
        Text,
        &[Access, Delivery, Event, Guest],
        &[],
        "",
        "`access`, `delivery`, `event` or `guest`.",
    ),
    row("event.name", Text, &[Event], &[], "", "What happened, such as `telemetry.dropped`."),
    row(
        "tenant.id",
        Text,
        &[Delivery, Guest],
        &[Access, Event],
        "a tenant has the host; the event is about one tenant",
        "The tenant.",
    ),
    row(
        "trace_id",
        Text,
        &[Access, Delivery, Guest],
        &[],
        "",
        "The trace, 32 hexadecimal digits, whether it was recorded or not. A delivery has that of its request.",
    ),
    row(
        "span_id",
        Text,
        &[Access, Delivery, Guest],
        &[],
        "",
        "The server span of a request, the consumer span of a delivery: 16 hexadecimal digits.",
    ),
    row(
        "trace_flags",
        Text,
        &[Access, Delivery, Guest],
        &[],
        "",
        "Two hexadecimal digits (W3C Trace Context): bit 0 says that the trace was recorded, bit 1 that its id is random.",
    ),
    row(
        "request.id",
        Text,
        &[Access, Delivery, Guest],
        &[],
        "",
        "The request, a UUID that sorts by time. A delivery has that of the request that was queued.",
    ),
    row(
        "http.request.method",
        Text,
        &[Access, Delivery],
        &[],
        "",
        "The method as it was sent, at most 32 bytes of it.",
    ),
    row(
        "http.route",
        Text,
        &[],
        &[Access],
        "the request was for an upstream",
        "A name of few values for where the request went: the upstream's.",
    ),
    row(
        "url.path",
        Text,
        &[Access, Delivery],
        &[],
        "",
        "The path without its query, at most 2048 bytes. The secret of a receipt is replaced by `…`.",
    ),
    row(
        "server.address",
        Text,
        &[],
        &[Access],
        "the client named a host",
        "The host that the client named, without port.",
    ),
    row(
        "client.address",
        Text,
        &[Access],
        &[],
        "",
        "The address at the other end of the client's connection.",
    ),
    row(
        "network.protocol.version",
        Text,
        &[Access],
        &[],
        "",
        "The client's HTTP version: `1.0`, `1.1`, `2`.",
    ),
    row(
        "http.response.status_code",
        Integer,
        &[],
        &[Access, Delivery],
        "a response head was sent to the client; the upstream sent one",
        "The status.",
    ),
    row("http.request.body.size", Integer, &[Access], &[], "", "Bytes of the request's body that were read."),
    row(
        "http.response.body.size",
        Integer,
        &[Access],
        &[],
        "",
        "Bytes of the response's body that were sent.",
    ),
    row(
        "duration_ms",
        Millis,
        &[Access, Delivery],
        &[],
        "",
        "From `timestamp` to the last byte of the response, or to the outcome of the delivery.",
    ),
    row(
        "verdict",
        Text,
        &[],
        &[Access],
        "the filter chain came to an end",
        "What the filter chain decided: `next`, `route`, `respond` or `enqueue`.",
    ),
    row(
        "beamline.revision",
        Integer,
        &[Guest],
        &[Access, Event],
        "a tenant has the host; the event is about one revision",
        "The revision of the tenant's manifest.",
    ),
    row(
        "upstream",
        Text,
        &[Delivery],
        &[Access, Event],
        "the request was for an upstream; the event is about one",
        "The upstream's name in the manifest.",
    ),
    row(
        "error.type",
        Text,
        &[],
        &[Access, Delivery, Event],
        "it failed",
        "Why: the token of a problem type, such as `upstream-timeout`.",
    ),
    row(
        "beamline.filter.name",
        Text,
        &[Guest],
        &[Access],
        "a filter decided something other than `next`, or failed",
        "That filter's name in the manifest.",
    ),
    row(
        "beamline.filter.outcome",
        Text,
        &[],
        &[Access],
        "that filter failed",
        "How it failed, such as `filter-timeout`.",
    ),
    row(
        "beamline.filters.duration_ms",
        Millis,
        &[],
        &[Access],
        "a filter ran",
        "Time in all filters together, with what they waited for.",
    ),
    row(
        "beamline.upstream.peer",
        Text,
        &[],
        &[Access, Delivery],
        "the upstream was tried",
        "Address and port of the last attempt.",
    ),
    row(
        "beamline.upstream.attempts",
        Integer,
        &[],
        &[Access, Delivery],
        "the upstream was tried",
        "How many attempts were made.",
    ),
    row(
        "beamline.upstream.duration_ms",
        Millis,
        &[],
        &[Access, Delivery],
        "the upstream was tried",
        "Time of all attempts together, each until the response's head or its failure.",
    ),
    row(
        "beamline.queue.record_id",
        Text,
        &[Delivery],
        &[Access],
        "the request was queued",
        "The queue's record. Only its id, not the receipt's secret.",
    ),
    row(
        "beamline.queue.attempt",
        Integer,
        &[Delivery],
        &[],
        "",
        "Which delivery of the record this was, from 1.",
    ),
    row(
        "beamline.queue.outcome",
        Text,
        &[Delivery],
        &[],
        "",
        "How it ended: `delivered`, `refused` (an answer other than 2xx), `not-sent` (nothing left the node), `broken` (no whole answer to what left) or `held` (the upstream is gone from the manifest). What becomes of the record follows from it.",
    ),
    row(
        "beamline.queue.wait_ms",
        Millis,
        &[Delivery],
        &[],
        "",
        "From the record's commit to the beginning of this delivery.",
    ),
    row("severity_text", Text, &[Guest], &[], "", "`DEBUG`, `INFO`, `WARN` or `ERROR`."),
    row("body", Text, &[Guest], &[], "", "The filter's message."),
    row(
        "beamline.log.cut_bytes",
        Integer,
        &[],
        &[Guest],
        "the filter wrote more than its limit `log`",
        "Bytes of the call's messages that were cut off.",
    ),
    row(
        "attributes",
        Object,
        &[],
        &[Event],
        "the event has fields that are not in this table",
        "Those fields.",
    ),
];
