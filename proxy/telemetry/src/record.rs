//! Log records: one line of JSON each, with the fields of [`FIELDS`](crate::FIELDS) in the order of that table.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::Version;
use serde_json::{Map, Value};

use crate::{
    Attempt, DeliverySpan, FIELDS, GuestLog, RecordKind, TraceContext, Transaction, bounds,
    id::hex,
    json::{address, escaped, integer, millis, raw, socket},
    redact,
    timestamp::Timestamps,
};

/// Appends `,"name":"value"`, the value escaped.
macro_rules! text {
    ($out:expr, $name:literal, $value:expr) => {
        quoted!($out, $name, escaped($out, $value))
    };
}

/// Appends `,"name":"…"`, the inside by an expression that writes nothing to escape.
macro_rules! quoted {
    ($out:expr, $name:literal, $inside:expr) => {{
        raw($out, concat!(",\"", $name, "\":\""));
        $inside;
        $out.push(b'"');
    }};
}

/// Appends `,"name":…`, the value by an expression.
macro_rules! bare {
    ($out:expr, $name:literal, $value:expr) => {{
        raw($out, concat!(",\"", $name, "\":"));
        $value;
    }};
}

/// Appends records to a buffer.
pub(crate) struct Records {
    stamps: Timestamps,
}

impl Records {
    pub(crate) const fn new() -> Self {
        Self { stamps: Timestamps::new() }
    }

    fn begin(&mut self, out: &mut Vec<u8>, at: SystemTime, kind: RecordKind) {
        raw(out, "{\"timestamp\":\"");
        self.stamps.write(out, at);
        raw(out, "\",\"kind\":\"");
        raw(out, kind.as_str());
        out.push(b'"');
    }

    /// One request.
    pub(crate) fn access(&mut self, out: &mut Vec<u8>, tx: &Transaction) {
        self.begin(out, tx.started.wall, RecordKind::Access);
        if let Some(tenant) = &tx.tenant {
            text!(out, "tenant.id", tenant);
        }
        trace(out, &tx.trace);
        quoted!(out, "request.id", out.extend_from_slice(&tx.request_id.text()));
        text!(out, "http.request.method", redact::cut(tx.method.as_str(), bounds::METHOD));
        if let Some(route) = &tx.route {
            text!(out, "http.route", route);
        }
        text!(out, "url.path", &redact::path(tx.path.path(), bounds::PATH));
        if !tx.host.is_empty() {
            text!(out, "server.address", redact::cut(&tx.host, bounds::HOST));
        }
        quoted!(out, "client.address", address(out, tx.client.ip().to_canonical()));
        quoted!(out, "network.protocol.version", raw(out, version(tx.version)));
        status(out, tx.status);
        bare!(out, "http.request.body.size", integer(out, tx.request_bytes));
        bare!(out, "http.response.body.size", integer(out, tx.response_bytes));
        bare!(out, "duration_ms", millis(out, tx.duration));
        if let Some(verdict) = tx.verdict {
            quoted!(out, "verdict", raw(out, verdict.as_str()));
        }
        if let Some(revision) = tx.revision {
            bare!(out, "beamline.revision", integer(out, revision));
        }
        if let Some(upstream) = &tx.upstream {
            text!(out, "upstream", upstream);
        }
        if let Some(error) = tx.error {
            text!(out, "error.type", error);
        }
        if let Some(filter) = tx.deciding_filter() {
            text!(out, "beamline.filter.name", &filter.name);
            if filter.failed() {
                text!(out, "beamline.filter.outcome", filter.outcome);
            }
        }
        if !tx.filters.is_empty() {
            bare!(
                out,
                "beamline.filters.duration_ms",
                millis(out, sum(tx.filters.iter().map(|f| f.duration)))
            );
        }
        attempts(out, &tx.attempts);
        if let Some(queued) = &tx.queued {
            text!(out, "beamline.queue.record_id", &queued.record_id);
        }
        raw(out, "}\n");
    }

    /// One delivery from the queue.
    pub(crate) fn delivery(&mut self, out: &mut Vec<u8>, delivery: &DeliverySpan) {
        self.begin(out, delivery.started.wall, RecordKind::Delivery);
        text!(out, "tenant.id", &delivery.tenant);
        trace(out, &delivery.trace);
        text!(out, "request.id", &delivery.request_id);
        text!(out, "http.request.method", redact::cut(&delivery.method, bounds::METHOD));
        text!(out, "url.path", &redact::path(&delivery.target, bounds::PATH));
        status(out, delivery.status);
        bare!(out, "duration_ms", millis(out, delivery.duration));
        text!(out, "upstream", &delivery.upstream);
        if let Some(error) = delivery.error {
            text!(out, "error.type", error);
        }
        attempts(out, &delivery.attempts);
        text!(out, "beamline.queue.record_id", &delivery.record_id);
        bare!(out, "beamline.queue.attempt", integer(out, delivery.attempt.into()));
        text!(out, "beamline.queue.outcome", delivery.outcome);
        let waited = delivery.started.wall.duration_since(delivery.accepted).unwrap_or_default();
        bare!(out, "beamline.queue.wait_ms", millis(out, waited));
        raw(out, "}\n");
    }

    /// One message of a filter.
    pub(crate) fn guest(&mut self, out: &mut Vec<u8>, guest: &GuestLog<'_>) {
        self.begin(out, guest.at, RecordKind::Guest);
        text!(out, "tenant.id", guest.tenant);
        trace(out, guest.trace);
        quoted!(out, "request.id", out.extend_from_slice(&guest.request_id.text()));
        bare!(out, "beamline.revision", integer(out, guest.revision));
        text!(out, "beamline.filter.name", guest.filter);
        quoted!(out, "severity_text", raw(out, guest.level.as_str()));
        text!(out, "body", &redact::text(redact::cut(guest.message, bounds::GUEST_MESSAGE)));
        if guest.cut_bytes > 0 {
            bare!(out, "beamline.log.cut_bytes", integer(out, guest.cut_bytes));
        }
        raw(out, "}\n");
    }

    /// A change of state. Fields that the table knows for events stand at the top, all others in `attributes`.
    pub(crate) fn event(&mut self, out: &mut Vec<u8>, at: SystemTime, name: &str, fields: Value) {
        self.begin(out, at, RecordKind::Event);
        text!(out, "event.name", name);
        let mut fields = match fields {
            Value::Object(fields) => fields,
            Value::Null => Map::new(),
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        fields.iter_mut().for_each(|(name, value)| redact::field(name, value));
        let known = FIELDS
            .iter()
            .filter(|row| row.sometimes.contains(&RecordKind::Event) && row.name != "attributes");
        for row in known {
            if fields.get(row.name).is_some_and(|value| row.ty.holds(value))
                && let Some(value) = fields.remove(row.name)
            {
                raw(out, ",\"");
                raw(out, row.name);
                raw(out, "\":");
                raw(out, &value.to_string());
            }
        }
        if !fields.is_empty() {
            let attributes = Value::Object(fields).to_string();
            raw(out, ",\"attributes\":");
            if attributes.len() <= bounds::EVENT_ATTRIBUTES {
                raw(out, &attributes);
            } else {
                raw(out, "{\"left_out_bytes\":");
                integer(out, attributes.len() as u64);
                out.push(b'}');
            }
        }
        raw(out, "}\n");
    }
}

fn trace(out: &mut Vec<u8>, trace: &TraceContext) {
    quoted!(out, "trace_id", out.extend_from_slice(&hex::<32>(trace.trace_id.as_bytes())));
    quoted!(out, "span_id", out.extend_from_slice(&hex::<16>(trace.span_id.as_bytes())));
    quoted!(out, "trace_flags", out.extend_from_slice(&hex::<2>(&[trace.flags()])));
}

fn status(out: &mut Vec<u8>, status: Option<u16>) {
    if let Some(status) = status {
        bare!(out, "http.response.status_code", integer(out, status.into()));
    }
}

fn attempts(out: &mut Vec<u8>, attempts: &[Attempt]) {
    if let Some(last) = attempts.last() {
        quoted!(out, "beamline.upstream.peer", socket(out, canonical(last.peer)));
        bare!(out, "beamline.upstream.attempts", integer(out, attempts.len() as u64));
        bare!(out, "beamline.upstream.duration_ms", millis(out, sum(attempts.iter().map(|a| a.duration))));
    }
}

fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn sum(durations: impl Iterator<Item = Duration>) -> Duration {
    durations.fold(Duration::ZERO, Duration::saturating_add)
}

/// The HTTP version as `network.protocol.version` has it.
pub(crate) fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests;
