//! Sends queued records to their upstreams: the queue decides when, this knows how.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use beamline_control::{Snapshot, UpstreamRuntime};
use beamline_model::{QueuePolicy, TenantName, UpstreamName};
use beamline_queue::{Attempt, BodyReader, Deliver, Outcome, Rules};
use beamline_seal::SealKeys;
use beamline_telemetry::{DeliverySpan, SpanId, Started, Telemetry, TraceContext, TraceId};
use beamline_upstream::{BoxError, ErrorKind, Pools, SendOptions, Sentness, UpstreamBody};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;

use crate::{credentials, forward::TRACEPARENT, retry_after::retry_after};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Which attempt this is, from 1.
const ATTEMPT: HeaderName = HeaderName::from_static("beamline-attempt");
/// When the request was accepted: seconds since the Unix epoch, with milliseconds.
const ACCEPTED: HeaderName = HeaderName::from_static("beamline-accepted");

/// The most of a response's body that is read for the sake of its connection and of knowing whether it is whole.
const MAX_RESPONSE: u64 = 16 << 20;

/// Delivers over HTTP with connections of its own. Lives on the delivery thread.
pub struct DeliverOverHttp {
    snapshots: Arc<ArcSwap<Snapshot>>,
    seal_keys: Option<Arc<SealKeys>>,
    telemetry: Telemetry,
    pools: Pools,
}

/// `DeliverOverHttp` before it is on its thread.
pub struct Deliverer {
    snapshots: Arc<ArcSwap<Snapshot>>,
    seal_keys: Option<Arc<SealKeys>>,
    telemetry: Telemetry,
}

impl Deliverer {
    /// Finds upstreams in the newest of `snapshots` at each delivery, and opens stored credentials by `seal_keys`.
    pub fn new(
        snapshots: Arc<ArcSwap<Snapshot>>,
        seal_keys: Option<Arc<SealKeys>>,
        telemetry: Telemetry,
    ) -> Self {
        Self { snapshots, seal_keys, telemetry }
    }

    /// On the delivery thread: ready to deliver.
    pub fn on_this_thread(self) -> DeliverOverHttp {
        DeliverOverHttp {
            snapshots: self.snapshots,
            seal_keys: self.seal_keys,
            telemetry: self.telemetry,
            pools: Pools::new(),
        }
    }
}

/// A stored body on its way out.
struct StoredBody(BodyReader);

impl Body for StoredBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.next_piece().map(|piece| piece.map(Frame::data)).map_err(Into::into).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.0.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.remaining())
    }
}

impl DeliverOverHttp {
    fn upstream(&self, tenant: &TenantName, upstream: &UpstreamName) -> Option<UpstreamRuntime> {
        self.snapshots.load().by_name(tenant)?.upstreams.get(upstream).cloned()
    }

    /// A record's request, with the credentials that were stored with it and what is set on requests to its upstream.
    fn request(
        &self,
        attempt: &Attempt,
        upstream: &UpstreamRuntime,
        trace: &TraceContext,
        span: SpanId,
    ) -> Result<Request<StoredBody>, Outcome> {
        let withheld = |reason: &str| Outcome::Withheld { reason: reason.to_owned() };
        let mut request = request(attempt, trace, span).map_err(|reason| Outcome::Unsendable { reason })?;
        let headers = request.headers_mut();
        credentials::restore(self.seal_keys.as_deref(), attempt, headers).map_err(withheld)?;
        upstream.headers.set(headers).map_err(|_| withheld(credentials::SECRET_UNAVAILABLE))?;
        Ok(request)
    }

    /// What the active revision says of an upstream's queue, if it has that upstream.
    fn policy<T>(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        of: impl FnOnce(&QueuePolicy) -> T,
    ) -> Option<T> {
        self.snapshots.load().by_name(tenant)?.upstreams.get(upstream).map(|upstream| of(&upstream.queue))
    }
}

impl Deliver for DeliverOverHttp {
    async fn deliver(&self, attempt: Attempt) -> Outcome {
        let started = Started::now();
        let trace = resumed(&attempt);
        let mut attempts = Vec::new();
        let outcome = match self.upstream(&attempt.tenant, &attempt.upstream) {
            None => Outcome::UpstreamMissing,
            Some(upstream) => {
                let span = SpanId::random();
                match self.request(&attempt, &upstream, &trace, span) {
                    Err(outcome) => outcome,
                    Ok(request) => {
                        // The queue paces itself, so the breaker does not stand in its way: its probe is the breaker's.
                        let options = SendOptions { response_timeout: None, probe: true };
                        let (outcome, tried) =
                            match self.pools.send(&upstream.cluster, request, options).await {
                                Ok(sent) => (answered(sent.response).await, sent.attempts),
                                Err(error) => {
                                    let reason = error.kind.token().to_owned();
                                    let outcome = match (error.sent, &error.kind) {
                                        (Sentness::Maybe, _) => Outcome::Broken { reason },
                                        // Not the upstream's doing: it may be as well as ever.
                                        (
                                            Sentness::Nothing,
                                            ErrorKind::Denied(_) | ErrorKind::RequestBody,
                                        ) => Outcome::Withheld { reason },
                                        (Sentness::Nothing, _) => Outcome::NotSent { reason },
                                    };
                                    (outcome, error.attempts)
                                }
                            };
                        attempts = crate::transaction::attempt_records(&tried, &started, span);
                        outcome
                    }
                }
            }
        };
        self.telemetry.delivery_span(span_of(&attempt, started, trace, &outcome, attempts));
        outcome
    }

    fn in_flight_cap(&self, tenant: &TenantName, upstream: &UpstreamName) -> u32 {
        self.policy(tenant, upstream, |queue| queue.max_in_flight).unwrap_or(1)
    }

    fn rules(&self, tenant: &TenantName, upstream: &UpstreamName) -> Rules {
        let rules = |queue: &QueuePolicy| Rules {
            on_status: queue.on_status.clone(),
            key_block_max: queue.key_block_max.get(),
        };
        self.policy(tenant, upstream, rules).unwrap_or_default()
    }
}

/// The delivery's place in the trace of the request that was accepted.
fn resumed(attempt: &Attempt) -> TraceContext {
    let trace = attempt.trace;
    match (TraceId::from_bytes(trace.trace_id), SpanId::from_bytes(trace.span_id)) {
        (Some(trace_id), Some(producer)) => TraceContext::resume(trace_id, producer, trace.sampled),
        _ => TraceContext::resume(TraceId::random(), SpanId::random(), false),
    }
}

fn request(attempt: &Attempt, trace: &TraceContext, span: SpanId) -> Result<Request<StoredBody>, String> {
    let mut headers = HeaderMap::with_capacity(attempt.headers.len() + 6);
    let mut put = |name: &str, value: &[u8]| {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| e.to_string())?;
        headers.append(name, HeaderValue::from_bytes(value).map_err(|e| e.to_string())?);
        Ok::<_, String>(())
    };
    put(header::HOST.as_str(), attempt.host.as_bytes())?;
    for (name, value) in &attempt.headers {
        put(name, value)?;
    }
    // A key of ours lets an origin that looks recognise a repetition; it does not make the record safe to repeat.
    if !headers.contains_key(IDEMPOTENCY_KEY) {
        let key = HeaderValue::try_from(attempt.id.to_string()).map_err(|e| e.to_string())?;
        headers.insert(IDEMPOTENCY_KEY, key);
    }
    headers.insert(ATTEMPT, HeaderValue::from(attempt.number));
    let accepted = format!("{}.{:03}", attempt.accepted_ms / 1000, attempt.accepted_ms % 1000);
    headers.insert(ACCEPTED, HeaderValue::try_from(accepted).map_err(|e| e.to_string())?);
    headers.insert(TRACEPARENT, trace.traceparent(span));
    // Some methods say that they have no body; the others say how long theirs is, though it be empty.
    if !attempt.body.is_empty() || matches!(attempt.method.as_str(), "POST" | "PUT" | "PATCH") {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(attempt.body.len()));
    }
    let mut request = Request::new(StoredBody(attempt.body.reader()));
    *request.method_mut() = attempt.method.parse().map_err(|_| format!("method {:?}", attempt.method))?;
    *request.uri_mut() = attempt.target.parse().map_err(|_| "the stored target".to_owned())?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Reads a response to its end: only then is it known to be whole, and its connection can be used again.
async fn answered(response: http::Response<UpstreamBody>) -> Outcome {
    let (head, mut body) = response.into_parts();
    let mut read = 0;
    let complete = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, |d| d.len() as u64),
        }
        // Longer than anybody needs of a delivery's answer: taken as whole, its connection given up.
        if read > MAX_RESPONSE {
            break true;
        }
    };
    let retry_after = retry_after(&head.headers, SystemTime::now());
    Outcome::Answered { status: head.status.as_u16(), retry_after, complete }
}

fn span_of(
    attempt: &Attempt,
    started: Started,
    trace: TraceContext,
    outcome: &Outcome,
    attempts: Vec<beamline_telemetry::Attempt>,
) -> DeliverySpan {
    let (name, status, error) = match outcome {
        Outcome::Answered { status: status @ 200..=299, .. } => {
            (DeliverySpan::DELIVERED, Some(*status), None)
        }
        Outcome::Answered { status, .. } => ("refused", Some(*status), Some("refused")),
        Outcome::NotSent { .. } => ("not-sent", None, Some("upstream-connect")),
        Outcome::Withheld { reason } if credentials::is_their_reason(reason) => {
            ("not-sent", None, Some("secret-unavailable"))
        }
        Outcome::Withheld { .. } => ("not-sent", None, Some("upstream-denied")),
        Outcome::Unsendable { .. } => ("not-sent", None, Some("bad-request")),
        Outcome::Broken { .. } => ("broken", None, Some("upstream-reset")),
        Outcome::UpstreamMissing => ("held", None, Some("upstream-missing")),
    };
    DeliverySpan {
        started,
        duration: started.at.elapsed(),
        trace,
        tenant: attempt.tenant.as_str().into(),
        upstream: attempt.upstream.as_str().into(),
        record_id: attempt.id.to_string(),
        request_id: attempt.request_id.clone(),
        method: attempt.method.clone(),
        target: attempt.target.clone(),
        attempt: attempt.number,
        accepted: UNIX_EPOCH + Duration::from_millis(attempt.accepted_ms),
        outcome: name,
        status,
        error,
        attempts,
    }
}
