//! Spans, built from what happened. Names and attributes follow OpenTelemetry's stable HTTP conventions and its
//! messaging conventions; what they lack is named `beamline.…` or as in the log.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::Method;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, SpanFlags, Status,
        span::{Link, SpanKind},
        status::StatusCode,
    },
};

use crate::{
    Attempt, DeliverySpan, FilterRun, QueuedRef, Started, TraceContext, Transaction, Verdict, bounds, record,
    redact, traceparent::SAMPLED,
};

/// One attribute of a span.
#[derive(Clone, Copy, Debug)]
pub struct AttributeRow {
    /// The key.
    pub name: &'static str,
    /// `string`, `int` or `double`.
    pub ty: &'static str,
    /// When the span has it; empty for always.
    pub when: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// One kind of span.
#[derive(Clone, Copy, Debug)]
pub struct SpanRow {
    /// How it is called here and in `docs/reference/traces.md`.
    pub role: &'static str,
    /// OpenTelemetry's span kind.
    pub kind: &'static str,
    /// How its name is made.
    pub name: &'static str,
    /// What it is the child of.
    pub parent: &'static str,
    /// What it is linked to; empty for nothing.
    pub links: &'static str,
    /// When its status is `Error`.
    pub error: &'static str,
    /// Its attributes.
    pub attributes: &'static [AttributeRow],
}

const fn attribute(
    name: &'static str,
    ty: &'static str,
    when: &'static str,
    meaning: &'static str,
) -> AttributeRow {
    AttributeRow { name, ty, when, meaning }
}

/// Every kind of span, with every attribute that it may have.
pub const SPANS: &[SpanRow] = &[
    SpanRow {
        role: "server",
        kind: "SERVER",
        name: "`{method} {route}`, or `{method}` without a route; `HTTP` for methods that no standard names",
        parent: "the sender's span, where the sender is trusted",
        links: "the sender's span, where it is not trusted",
        error: "the status is 5xx, or no response head was sent",
        attributes: &[
            attribute("tenant.id", "string", "a tenant has the host", "The tenant."),
            attribute("request.id", "string", "", "The request, as in the log."),
            attribute(
                "http.request.method",
                "string",
                "",
                "The method; `_OTHER` for one that no standard names.",
            ),
            attribute("url.scheme", "string", "", "`http` or `https`."),
            attribute(
                "url.path",
                "string",
                "",
                "The path without its query, the secret of a receipt replaced by `…`.",
            ),
            attribute(
                "server.address",
                "string",
                "the client named a host",
                "The host that the client named.",
            ),
            attribute(
                "client.address",
                "string",
                "",
                "The address at the other end of the client's connection.",
            ),
            attribute("network.protocol.version", "string", "", "The client's HTTP version."),
            attribute("http.request.body.size", "int", "", "Bytes of the request's body that were read."),
            attribute("http.response.body.size", "int", "", "Bytes of the response's body that were sent."),
            attribute("http.route", "string", "the request was for an upstream", "The upstream's name."),
            attribute("http.response.status_code", "int", "a response head was sent", "The status."),
            attribute(
                "verdict",
                "string",
                "the filter chain came to an end",
                "What the filter chain decided.",
            ),
            attribute(
                "beamline.revision",
                "int",
                "a tenant has the host",
                "The revision of the tenant's manifest.",
            ),
            attribute("upstream", "string", "the request was for an upstream", "The upstream's name."),
            attribute(
                "error.type",
                "string",
                "it failed",
                "The token of a problem type, or the status where that is 5xx.",
            ),
        ],
    },
    SpanRow {
        role: "filter",
        kind: "INTERNAL",
        name: "`filter {name}`",
        parent: "the server span",
        links: "",
        error: "the filter failed",
        attributes: &[
            attribute("beamline.filter.name", "string", "", "The filter's name in the manifest."),
            attribute("beamline.filter.module", "string", "", "The digest of its module."),
            attribute(
                "beamline.filter.phase",
                "string",
                "",
                "The phase: `request`, `whole-request`, `request-body`, `response`, `whole-response`, `response-body` or `finish`.",
            ),
            attribute(
                "beamline.filter.outcome",
                "string",
                "",
                "`ok`, or what went wrong, such as `filter-timeout`.",
            ),
            attribute(
                "beamline.filter.cpu_ms",
                "double",
                "",
                "What it computed, in milliseconds; the span's length holds waits too.",
            ),
            attribute("verdict", "string", "it decided", "`next`, `route`, `respond` or `enqueue`."),
            attribute("error.type", "string", "it failed", "As `beamline.filter.outcome`."),
        ],
    },
    SpanRow {
        role: "client",
        kind: "CLIENT",
        name: "`{method}`, `HTTP` for methods that no standard names; for a NATS subject `{messaging.operation.name} {subject}`",
        parent: "the server span, or the consumer span of a delivery",
        links: "",
        error: "the status is 4xx or 5xx, or no response head came",
        attributes: &[
            attribute(
                "http.request.method",
                "string",
                "",
                "The method; `_OTHER` for one that no standard names.",
            ),
            attribute("server.address", "string", "", "The IP address that was tried."),
            attribute("server.port", "int", "", "Its port."),
            attribute("network.peer.address", "string", "", "The same address."),
            attribute("network.peer.port", "int", "", "The same port."),
            attribute("upstream", "string", "", "The upstream's name in the manifest."),
            attribute("messaging.system", "string", "the upstream is a NATS subject", "`nats`."),
            attribute(
                "messaging.operation.name",
                "string",
                "the upstream is a NATS subject",
                "`request`, or `publish` to a stream.",
            ),
            attribute("messaging.operation.type", "string", "the upstream is a NATS subject", "`send`."),
            attribute(
                "messaging.destination.name",
                "string",
                "the upstream is a NATS subject",
                "The subject.",
            ),
            attribute(
                "http.request.resend_count",
                "int",
                "it was not the first attempt",
                "How many attempts were before.",
            ),
            attribute("http.response.status_code", "int", "a response head came", "The status."),
            attribute(
                "error.type",
                "string",
                "it failed",
                "A token such as `connect-refused`, or the status where that is 4xx or 5xx.",
            ),
        ],
    },
    SpanRow {
        role: "producer",
        kind: "PRODUCER",
        name: "`enqueue {tenant}/{upstream}`",
        parent: "the server span",
        links: "",
        error: "never: it ends with the commit",
        attributes: &[
            attribute("messaging.system", "string", "", "`beamline`."),
            attribute("messaging.operation.name", "string", "", "`enqueue`."),
            attribute("messaging.operation.type", "string", "", "`send`."),
            attribute("messaging.destination.name", "string", "", "`{tenant}/{upstream}`."),
            attribute("messaging.message.id", "string", "", "The record's id, not its secret."),
        ],
    },
    SpanRow {
        role: "consumer",
        kind: "CONSUMER",
        name: "`deliver {tenant}/{upstream}`",
        parent: "the producer span, in the trace of the request that was queued",
        links: "the producer span",
        error: "the record was not delivered",
        attributes: &[
            attribute("tenant.id", "string", "", "The tenant."),
            attribute("request.id", "string", "", "The request that was queued."),
            attribute("upstream", "string", "", "The upstream's name in the manifest."),
            attribute("messaging.system", "string", "", "`beamline`."),
            attribute("messaging.operation.name", "string", "", "`deliver`."),
            attribute("messaging.operation.type", "string", "", "`process`."),
            attribute("messaging.destination.name", "string", "", "`{tenant}/{upstream}`."),
            attribute("messaging.message.id", "string", "", "The record's id, not its secret."),
            attribute(
                "http.request.method",
                "string",
                "",
                "The stored request's method; `_OTHER` for one that no standard names.",
            ),
            attribute("url.path", "string", "", "The stored request's path without its query."),
            attribute("http.response.status_code", "int", "the upstream sent a response head", "The status."),
            attribute("beamline.queue.attempt", "int", "", "Which delivery of the record this was, from 1."),
            attribute("beamline.queue.outcome", "string", "", "How it ended, as in the log."),
            attribute(
                "beamline.queue.wait_ms",
                "double",
                "",
                "From the record's commit to the beginning of this delivery, in milliseconds.",
            ),
            attribute(
                "error.type",
                "string",
                "it failed",
                "A token such as `connect-refused`, or else the outcome.",
            ),
        ],
    },
];

/// The attributes of the resource that every span has.
pub const RESOURCE: &[AttributeRow] = &[
    attribute("service.name", "string", "", "The name set for the service, `beamline` by default."),
    attribute("service.version", "string", "", "The version of this build."),
    attribute("service.instance.id", "string", "the node has an id", "The node."),
];

/// A sampled transaction or delivery on its way to the exporter: without what it need not hold in memory.
pub(crate) enum SpanSource {
    Request { tx: Box<Transaction>, path: String },
    Delivery(Box<DeliverySpan>),
}

impl SpanSource {
    /// Detaches `tx` from the connection's read buffer, of which its path is a slice, and cuts what is unbounded.
    pub(crate) fn request(mut tx: Transaction) -> Self {
        let path = redact::path(tx.path.path(), bounds::PATH).into_owned();
        tx.path = http::uri::PathAndQuery::from_static("/");
        if !is_standard(tx.method.as_str()) {
            tx.method = Method::from_bytes(OTHER.as_bytes()).expect("letters and an underscore are a method");
        }
        if tx.host.len() > bounds::HOST {
            tx.host = redact::cut(&tx.host, bounds::HOST).to_owned();
        }
        Self::Request { tx: Box::new(tx), path }
    }

    /// The same for a delivery.
    pub(crate) fn delivery(mut delivery: DeliverySpan) -> Self {
        delivery.target = redact::path(&delivery.target, bounds::PATH).into_owned();
        if !is_standard(&delivery.method) {
            delivery.method = OTHER.to_owned();
        }
        Self::Delivery(Box::new(delivery))
    }

    /// How many spans it makes.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Request { tx, .. } => tx.spans(),
            Self::Delivery(delivery) => delivery.spans(),
        }
    }

    /// Appends its spans.
    pub(crate) fn build(self, spans: &mut Vec<Span>) {
        match self {
            Self::Request { tx, path } => request(*tx, path, spans),
            Self::Delivery(delivery) => deliver(*delivery, spans),
        }
    }
}

/// One export request's content.
pub(crate) fn envelope(service_name: &str, node_id: &str, spans: Vec<Span>) -> ResourceSpans {
    let mut attributes =
        vec![text("service.name", service_name), text("service.version", env!("CARGO_PKG_VERSION"))];
    if !node_id.is_empty() {
        attributes.push(text("service.instance.id", node_id));
    }
    let scope = InstrumentationScope {
        name: "beamline".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    ResourceSpans {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
        schema_url: String::new(),
    }
}

const OTHER: &str = "_OTHER";

/// The methods that the HTTP conventions know (RFC 9110, RFC 5789).
fn is_standard(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH")
}

/// A method as part of a span's name.
fn method_in_name(method: &str) -> &str {
    if is_standard(method) { method } else { "HTTP" }
}

fn value(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn text(key: &str, text: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value(Value::StringValue(text.into())), ..KeyValue::default() }
}

fn int(key: &str, int: u64) -> KeyValue {
    let int = i64::try_from(int).unwrap_or(i64::MAX);
    KeyValue { key: key.to_owned(), value: value(Value::IntValue(int)), ..KeyValue::default() }
}

fn millis(key: &str, duration: Duration) -> KeyValue {
    let millis = duration.as_secs_f64() * 1000.0;
    KeyValue { key: key.to_owned(), value: value(Value::DoubleValue(millis)), ..KeyValue::default() }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

fn status(failed: bool) -> Option<Status> {
    let code = if failed { StatusCode::Error } else { StatusCode::Unset };
    Some(Status { code: code.into(), message: String::new() })
}

/// What every span of one trace has in common.
struct Frame<'a> {
    started: Started,
    trace: &'a TraceContext,
}

impl Frame<'_> {
    /// The span that the others hang from: our own.
    fn root(&self, kind: SpanKind, name: String, duration: Duration) -> Span {
        let parent = self.trace.parent.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        Span {
            parent_span_id: parent,
            ..self.span(self.trace.span_id.as_bytes(), kind, name, Duration::ZERO, duration)
        }
    }

    /// A child of our own span.
    fn child(
        &self,
        id: crate::SpanId,
        kind: SpanKind,
        name: String,
        started: Duration,
        duration: Duration,
    ) -> Span {
        let parent = self.trace.span_id.as_bytes().to_vec();
        Span { parent_span_id: parent, ..self.span(id.as_bytes(), kind, name, started, duration) }
    }

    fn span(
        &self,
        id: &[u8; 8],
        kind: SpanKind,
        name: String,
        started: Duration,
        duration: Duration,
    ) -> Span {
        let start =
            nanos(self.started.wall).saturating_add(u64::try_from(started.as_nanos()).unwrap_or(u64::MAX));
        Span {
            trace_id: self.trace.trace_id.as_bytes().to_vec(),
            span_id: id.to_vec(),
            flags: u32::from(self.trace.flags()) | SpanFlags::ContextHasIsRemoteMask as u32,
            name,
            kind: kind.into(),
            start_time_unix_nano: start,
            end_time_unix_nano: start.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
            ..Span::default()
        }
    }

    fn filter(&self, run: &FilterRun) -> Span {
        let mut attributes = vec![
            text("beamline.filter.name", &*run.name),
            text("beamline.filter.module", &*run.module),
            text("beamline.filter.phase", run.phase),
            text("beamline.filter.outcome", run.outcome),
            millis("beamline.filter.cpu_ms", run.cpu),
        ];
        attributes.extend(run.verdict.map(|v| text("verdict", v.as_str())));
        if run.failed() {
            attributes.push(text("error.type", run.outcome));
        }
        let name = format!("filter {}", run.name);
        let span = self.child(crate::SpanId::random(), SpanKind::Internal, name, run.started, run.duration);
        Span { attributes, status: status(run.failed()), ..span }
    }

    fn attempt(&self, attempt: &Attempt, method: &str, upstream: &str) -> Span {
        let (address, port) = peer(attempt.peer);
        let mut attributes = vec![
            text("http.request.method", method),
            text("server.address", &*address),
            int("server.port", port),
            text("network.peer.address", &*address),
            int("network.peer.port", port),
            text("upstream", upstream),
        ];
        if let Some(message) = &attempt.messaging {
            attributes.extend([
                text("messaging.system", "nats"),
                text("messaging.operation.name", message.operation),
                text("messaging.operation.type", "send"),
                text("messaging.destination.name", &*message.destination),
            ]);
        }
        if attempt.resend_count > 0 {
            attributes.push(int("http.request.resend_count", attempt.resend_count.into()));
        }
        attributes.extend(attempt.status.map(|s| int("http.response.status_code", s.into())));
        let error = error_type(attempt.error, attempt.status, 400);
        let failed = error.is_some() || attempt.status.is_none();
        attributes.extend(error.map(|e| text("error.type", e)));
        let name = match &attempt.messaging {
            Some(message) => format!("{} {}", message.operation, message.destination),
            None => method_in_name(method).to_owned(),
        };
        let span = self.child(attempt.span_id, SpanKind::Client, name, attempt.started, attempt.duration);
        Span { attributes, status: status(failed), ..span }
    }

    fn producer(&self, queued: &QueuedRef, destination: &str) -> Span {
        let attributes = messaging("enqueue", "send", destination, &queued.record_id).into();
        let name = format!("enqueue {destination}");
        let span =
            self.child(queued.producer_span, SpanKind::Producer, name, queued.started, queued.duration);
        Span { attributes, status: status(false), ..span }
    }
}

fn peer(peer: SocketAddr) -> (String, u64) {
    (peer.ip().to_canonical().to_string(), peer.port().into())
}

/// The value of `error.type`: the token, or the status where it is an error from `lowest` on.
fn error_type(token: Option<&'static str>, status: Option<u16>, lowest: u16) -> Option<String> {
    let by_status = || status.filter(|s| *s >= lowest).map(|s| s.to_string());
    token.map(str::to_owned).or_else(by_status)
}

fn messaging(name: &str, ty: &str, destination: &str, message: &str) -> [KeyValue; 5] {
    [
        text("messaging.system", "beamline"),
        text("messaging.operation.name", name),
        text("messaging.operation.type", ty),
        text("messaging.destination.name", destination),
        text("messaging.message.id", message),
    ]
}

fn link(trace: &crate::TraceId, span: &crate::SpanId, sampled: bool, remote: bool) -> Link {
    let mut flags = SpanFlags::ContextHasIsRemoteMask as u32;
    flags |= if sampled { u32::from(SAMPLED) } else { 0 };
    flags |= if remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    Link { trace_id: trace.as_bytes().to_vec(), span_id: span.as_bytes().to_vec(), flags, ..Link::default() }
}

fn request(tx: Transaction, path: String, spans: &mut Vec<Span>) {
    let frame = Frame { started: tx.started, trace: &tx.trace };
    let method = tx.method.as_str();
    let name = match &tx.route {
        Some(route) => format!("{} {route}", method_in_name(method)),
        None => method_in_name(method).to_owned(),
    };
    let error = error_type(tx.error, tx.status, 500);
    let failed = tx.status.is_none_or(|s| s >= 500);
    let mut attributes = Vec::with_capacity(16);
    attributes.extend(tx.tenant.as_deref().map(|t| text("tenant.id", t)));
    attributes.push(text("request.id", tx.request_id.to_string()));
    attributes.push(text("http.request.method", method));
    attributes.push(text("url.scheme", tx.scheme));
    attributes.push(text("url.path", path));
    if !tx.host.is_empty() {
        attributes.push(text("server.address", &*tx.host));
    }
    attributes.push(text("client.address", peer(tx.client).0));
    attributes.push(text("network.protocol.version", record::version(tx.version)));
    attributes.push(int("http.request.body.size", tx.request_bytes));
    attributes.push(int("http.response.body.size", tx.response_bytes));
    attributes.extend(tx.route.as_deref().map(|r| text("http.route", r)));
    attributes.extend(tx.status.map(|s| int("http.response.status_code", s.into())));
    attributes.extend(tx.verdict.map(|v: Verdict| text("verdict", v.as_str())));
    attributes.extend(tx.revision.map(|r| int("beamline.revision", r)));
    attributes.extend(tx.upstream.as_deref().map(|u| text("upstream", u)));
    attributes.extend(error.map(|e| text("error.type", e)));
    let mut server =
        Span { attributes, status: status(failed), ..frame.root(SpanKind::Server, name, tx.duration) };
    if tx.trace.parent.is_some() {
        server.flags |= SpanFlags::ContextIsRemoteMask as u32;
    }
    server.links.extend(tx.trace.link.iter().map(|r| link(&r.trace_id, &r.span_id, r.sampled, true)));
    spans.push(server);

    let upstream = tx.upstream.as_deref().unwrap_or_default();
    spans.extend(tx.filters.iter().map(|run| frame.filter(run)));
    spans.extend(tx.attempts.iter().map(|attempt| frame.attempt(attempt, method, upstream)));
    if let Some(queued) = &tx.queued {
        let destination = format!("{}/{upstream}", tx.tenant.as_deref().unwrap_or_default());
        spans.push(frame.producer(queued, &destination));
    }
}

fn deliver(delivery: DeliverySpan, spans: &mut Vec<Span>) {
    let frame = Frame { started: delivery.started, trace: &delivery.trace };
    let destination = format!("{}/{}", delivery.tenant, delivery.upstream);
    let failed = delivery.outcome != DeliverySpan::DELIVERED;
    let mut attributes = vec![
        text("tenant.id", &*delivery.tenant),
        text("request.id", &*delivery.request_id),
        text("upstream", &*delivery.upstream),
    ];
    attributes.extend(messaging("deliver", "process", &destination, &delivery.record_id));
    attributes.push(text("http.request.method", &*delivery.method));
    attributes.push(text("url.path", &*delivery.target));
    attributes.extend(delivery.status.map(|s| int("http.response.status_code", s.into())));
    attributes.push(int("beamline.queue.attempt", delivery.attempt.into()));
    attributes.push(text("beamline.queue.outcome", delivery.outcome));
    let waited = delivery.started.wall.duration_since(delivery.accepted).unwrap_or_default();
    attributes.push(millis("beamline.queue.wait_ms", waited));
    let error = delivery.error.or(failed.then_some(delivery.outcome));
    attributes.extend(error.map(|e| text("error.type", e)));
    let name = format!("deliver {destination}");
    let mut consumer = Span {
        attributes,
        status: status(failed),
        ..frame.root(SpanKind::Consumer, name, delivery.duration)
    };
    consumer.links.extend(
        delivery
            .trace
            .parent
            .iter()
            .map(|id| link(&delivery.trace.trace_id, id, delivery.trace.sampled, false)),
    );
    spans.push(consumer);
    spans.extend(
        delivery.attempts.iter().map(|attempt| frame.attempt(attempt, &delivery.method, &delivery.upstream)),
    );
}

#[cfg(test)]
mod tests;
