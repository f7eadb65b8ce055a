//! What happened: plain records that the pipeline and the queue fill, and that this crate reads.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{Method, Version, uri::PathAndQuery};

use crate::{RequestId, SpanId, TraceContext};

/// When something began, on both clocks: wall time to tell, monotonic time to measure.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// Wall time.
    pub wall: SystemTime,
    /// The same moment, monotonic.
    pub at: Instant,
}

impl Started {
    /// This moment.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), at: Instant::now() }
    }

    /// How long after this `moment` was; zero where it was before.
    pub fn offset_of(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.at)
    }
}

/// What the filter chain decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No filter decided: the manifest's default upstream.
    Next,
    /// A filter chose the upstream.
    Route,
    /// A filter answered.
    Respond,
    /// A filter put the request in the queue.
    Enqueue,
}

impl Verdict {
    /// As it is written: `next`, `route`, `respond` or `enqueue`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Route => "route",
            Self::Respond => "respond",
            Self::Enqueue => "enqueue",
        }
    }
}

/// One request from its head to the last byte of its response.
///
/// Made by [`Transaction::new`] when the head is there, filled along the pipeline, given to
/// [`WorkerTelemetry::finish`](crate::WorkerTelemetry::finish) once. Durations named `started` are offsets from the
/// transaction's own start.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// When the request's head had been read.
    pub started: Started,
    /// From then until the last byte of the response was handed to the connection, or the exchange was given up.
    pub duration: Duration,
    /// The request's own id.
    pub request_id: RequestId,
    /// Its place in a trace.
    pub trace: TraceContext,
    /// The tenant; none where no tenant has the host.
    pub tenant: Option<Arc<str>>,
    /// The revision of the tenant's manifest that served it.
    pub revision: Option<u64>,
    /// The method, as the client sent it.
    pub method: Method,
    /// `http`, or `https` on a connection with TLS.
    pub scheme: &'static str,
    /// The host that the client named, without port; empty where it named none.
    pub host: String,
    /// What the client asked for. Only its path is told, never its query.
    pub path: PathAndQuery,
    /// The HTTP version that the client speaks.
    pub version: Version,
    /// The other end of the client's connection.
    pub client: SocketAddr,
    /// A name of low cardinality for where the request went: the upstream's.
    pub route: Option<Arc<str>>,
    /// The status of the response; none where no head was sent.
    pub status: Option<u16>,
    /// Bytes of the request's body that were read.
    pub request_bytes: u64,
    /// Bytes of the response's body that were handed to the connection.
    pub response_bytes: u64,
    /// What the filter chain decided; none where the request did not get that far or the chain failed.
    pub verdict: Option<Verdict>,
    /// The upstream that the request was for.
    pub upstream: Option<Arc<str>>,
    /// Why it failed: the token of its problem type, such as `upstream-timeout`.
    pub error: Option<&'static str>,
    /// The queue's record, where the request was queued.
    pub queued: Option<QueuedRef>,
    /// The filters that ran, in order.
    pub filters: Vec<FilterRun>,
    /// What was tried at the upstream, in order.
    pub attempts: Vec<Attempt>,
}

impl Transaction {
    /// A transaction of which nothing but the request's head is known: no tenant, no answer, HTTP/1.1, `http`.
    pub fn new(
        started: Started,
        trace: TraceContext,
        method: Method,
        host: String,
        path: PathAndQuery,
        client: SocketAddr,
    ) -> Self {
        Self {
            started,
            duration: Duration::ZERO,
            request_id: RequestId::at(started.wall),
            trace,
            tenant: None,
            revision: None,
            method,
            scheme: "http",
            host,
            path,
            version: Version::HTTP_11,
            client,
            route: None,
            status: None,
            request_bytes: 0,
            response_bytes: 0,
            verdict: None,
            upstream: None,
            error: None,
            queued: None,
            filters: Vec::new(),
            attempts: Vec::new(),
        }
    }

    /// The filter that shaped the answer last: it failed or answered in a later phase, or ended the request's way through
    /// the chain, where it decided something other than `next` or failed. Where none did, one that failed when the answer
    /// was out of the door.
    pub(crate) fn deciding_filter(&self) -> Option<&FilterRun> {
        let decided = |f: &&FilterRun| f.failed() || !matches!(f.verdict, None | Some(Verdict::Next));
        let on_request = |f: &&FilterRun| FilterRun::ON_REQUESTS.contains(&f.phase);
        let at_the_end = |f: &&FilterRun| f.phase == FilterRun::FINISH;
        let later = self.filters.iter().rev().find(|f| !on_request(f) && !at_the_end(f) && decided(f));
        later
            .or_else(|| self.filters.iter().rev().find(on_request).filter(decided))
            .or_else(|| self.filters.iter().rev().find(|f| at_the_end(f) && f.failed()))
    }

    /// The spans that it makes when sampled.
    pub(crate) fn spans(&self) -> usize {
        1 + self.filters.len() + self.attempts.len() + usize::from(self.queued.is_some())
    }
}

/// One run of a filter.
#[derive(Clone, Debug)]
pub struct FilterRun {
    /// The filter's name in the manifest.
    pub name: Arc<str>,
    /// The digest of its module.
    pub module: Arc<str>,
    /// Its phase: [`FilterRun::REQUEST`], or a later one, such as `response`.
    pub phase: &'static str,
    /// When it began.
    pub started: Duration,
    /// How long it took, with what it waited for.
    pub duration: Duration,
    /// What it computed.
    pub cpu: Duration,
    /// [`FilterRun::OK`], or what went wrong: the token of a problem type, such as `filter-timeout`.
    pub outcome: &'static str,
    /// What it decided; none where it failed.
    pub verdict: Option<Verdict>,
}

impl FilterRun {
    /// The outcome of a run that ended as it should.
    pub const OK: &'static str = "ok";
    /// The phase of the request's head.
    pub const REQUEST: &'static str = "request";

    /// The phase after the last byte, which shapes no answer.
    const FINISH: &'static str = "finish";

    /// The phases that decide on a request.
    const ON_REQUESTS: [&'static str; 2] = [Self::REQUEST, "whole-request"];

    pub(crate) fn failed(&self) -> bool {
        self.outcome != Self::OK
    }
}

/// One attempt at an upstream.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its client span, as told to the upstream in `traceparent`. Attempts that shared one `traceparent` give the id
    /// to the last of them and new ones to those before.
    pub span_id: SpanId,
    /// The address that was tried.
    pub peer: SocketAddr,
    /// When it began.
    pub started: Duration,
    /// Until the response's head, or the failure.
    pub duration: Duration,
    /// The status of the response; none where no head came.
    pub status: Option<u16>,
    /// Why it failed: a token such as `connect-refused`.
    pub error: Option<&'static str>,
    /// How many attempts were before.
    pub resend_count: u32,
    /// What it was as a message, where the upstream is a NATS subject.
    pub messaging: Option<Messaging>,
}

/// An attempt that was a message.
#[derive(Clone, Debug)]
pub struct Messaging {
    /// `request` or `publish`.
    pub operation: &'static str,
    /// The subject.
    pub destination: Arc<str>,
}

/// The queue's record of a request.
#[derive(Clone, Debug)]
pub struct QueuedRef {
    /// The record's id. Not its secret.
    pub record_id: String,
    /// The producer span, which the record carries to its delivery.
    pub producer_span: SpanId,
    /// When the record was handed to the queue.
    pub started: Duration,
    /// Until its commit.
    pub duration: Duration,
}

/// One delivery from the queue: one attempt of the scheduler, with what was tried at the upstream for it.
#[derive(Clone, Debug)]
pub struct DeliverySpan {
    /// When it began.
    pub started: Started,
    /// Until its outcome was known.
    pub duration: Duration,
    /// The consumer span, made by [`TraceContext::resume`]: its parent is the producer span.
    pub trace: TraceContext,
    /// The tenant.
    pub tenant: Arc<str>,
    /// The upstream.
    pub upstream: Arc<str>,
    /// The record's id. Not its secret.
    pub record_id: String,
    /// The id of the request that was queued.
    pub request_id: String,
    /// The stored request's method.
    pub method: String,
    /// The stored request's target. Only its path is told, never its query.
    pub target: String,
    /// Which attempt of the scheduler this was, from 1.
    pub attempt: u32,
    /// When the record was committed.
    pub accepted: SystemTime,
    /// How it ended: [`DeliverySpan::DELIVERED`], `refused` (an answer other than 2xx), `not-sent` (nothing left the
    /// node), `broken` (no whole answer to what left) or `held` (the upstream is gone from the manifest).
    pub outcome: &'static str,
    /// The status of the upstream's response; none where no head came.
    pub status: Option<u16>,
    /// Why it failed: a token such as `connect-refused`.
    pub error: Option<&'static str>,
    /// What was tried at the upstream.
    pub attempts: Vec<Attempt>,
}

impl DeliverySpan {
    /// The outcome of a delivery that the upstream took.
    pub const DELIVERED: &'static str = "delivered";

    pub(crate) fn spans(&self) -> usize {
        1 + self.attempts.len()
    }
}

/// How much a guest's message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever debugs the filter.
    Debug,
    /// What happens normally.
    Info,
    /// What may need a look.
    Warn,
    /// What went wrong.
    Error,
}

impl Level {
    /// As it is written, in OpenTelemetry's severity names: `DEBUG`, `INFO`, `WARN` or `ERROR`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// One message that a filter wrote.
#[derive(Clone, Copy, Debug)]
pub struct GuestLog<'a> {
    /// When it was written.
    pub at: SystemTime,
    /// The filter's tenant.
    pub tenant: &'a str,
    /// The revision of the tenant's manifest.
    pub revision: u64,
    /// The request's place in a trace.
    pub trace: &'a TraceContext,
    /// The request that the filter ran for.
    pub request_id: RequestId,
    /// The filter's name in the manifest.
    pub filter: &'a str,
    /// How much it matters.
    pub level: Level,
    /// The message.
    pub message: &'a str,
    /// Bytes of this call's messages that its limit cut off.
    pub cut_bytes: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    //! Examples that the tests of this crate share.

    use super::*;
    use crate::Sampler;

    pub(crate) fn bare_transaction() -> Transaction {
        Transaction::new(
            Started::now(),
            TraceContext::start(None, false, &Sampler::ALWAYS),
            Method::GET,
            String::new(),
            PathAndQuery::from_static("/"),
            "192.0.2.7:4000".parse().unwrap(),
        )
    }

    pub(crate) fn attempt(status: Option<u16>) -> Attempt {
        Attempt {
            span_id: SpanId::random(),
            peer: "[2001:db8::1]:9001".parse().unwrap(),
            started: Duration::from_micros(300),
            duration: Duration::from_millis(2),
            status,
            error: status.is_none().then_some("connect-refused"),
            resend_count: 0,
            messaging: None,
        }
    }

    /// A transaction that has everything.
    pub(crate) fn full_transaction() -> Transaction {
        let name: Arc<str> = "orders".into();
        Transaction {
            duration: Duration::from_micros(12_345),
            tenant: Some("acme".into()),
            revision: Some(3),
            method: Method::POST,
            host: "acme.test".to_owned(),
            path: PathAndQuery::from_static("/orders/7?card=4111"),
            route: Some(Arc::clone(&name)),
            status: Some(202),
            request_bytes: 120,
            response_bytes: 17,
            verdict: Some(Verdict::Route),
            upstream: Some(name),
            error: Some("upstream-unavailable"),
            queued: Some(QueuedRef {
                record_id: "record-1".to_owned(),
                producer_span: SpanId::random(),
                started: Duration::from_millis(5),
                duration: Duration::from_millis(3),
            }),
            filters: vec![FilterRun {
                name: "router".into(),
                module: "sha256:00".into(),
                phase: FilterRun::REQUEST,
                started: Duration::from_micros(20),
                duration: Duration::from_micros(250),
                cpu: Duration::from_micros(40),
                outcome: FilterRun::OK,
                verdict: Some(Verdict::Route),
            }],
            attempts: vec![attempt(None), Attempt { resend_count: 1, ..attempt(Some(503)) }],
            ..bare_transaction()
        }
    }

    /// A delivery of the record that [`full_transaction`] made, with everything that a delivery can have.
    pub(crate) fn full_delivery() -> DeliverySpan {
        let tx = full_transaction();
        let producer = tx.queued.as_ref().unwrap().producer_span;
        DeliverySpan {
            started: Started { wall: tx.started.wall + Duration::from_secs(9), at: Instant::now() },
            duration: Duration::from_millis(4),
            trace: TraceContext::resume(tx.trace.trace_id, producer, true),
            tenant: "acme".into(),
            upstream: "orders".into(),
            record_id: "record-1".to_owned(),
            request_id: tx.request_id.to_string(),
            method: "POST".to_owned(),
            target: "/orders/7?card=4111".to_owned(),
            attempt: 2,
            accepted: tx.started.wall,
            outcome: "refused",
            status: Some(503),
            error: Some("upstream-unavailable"),
            attempts: vec![attempt(Some(503))],
        }
    }

    #[test]
    fn the_filter_that_decided_is_the_last_one_unless_it_let_the_request_pass() {
        let mut tx = full_transaction();
        assert_eq!(&*tx.deciding_filter().unwrap().name, "router");
        tx.filters[0].verdict = Some(Verdict::Next);
        assert!(tx.deciding_filter().is_none());
        tx.filters[0].outcome = "filter-trap";
        assert!(tx.deciding_filter().is_some());
        let later = FilterRun { name: "late".into(), phase: "response", ..tx.filters[0].clone() };
        tx.filters[0].outcome = FilterRun::OK;
        tx.filters.push(FilterRun { outcome: FilterRun::OK, verdict: Some(Verdict::Next), ..later.clone() });
        assert!(tx.deciding_filter().is_none());
        let end = FilterRun { name: "end".into(), phase: "finish", ..later.clone() };
        tx.filters.push(end.clone());
        assert_eq!(&*tx.deciding_filter().unwrap().name, "end", "nothing else is to be told");
        tx.filters.push(later);
        tx.filters.push(end);
        assert_eq!(&*tx.deciding_filter().unwrap().name, "late", "the end shapes no answer");
        assert!(bare_transaction().deciding_filter().is_none());
    }
}
