//! Sends queued records to their upstreams: the queue decides when, this knows how.

use std::{
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use beamline_control::{Snapshot, UpstreamRuntime};
use beamline_http::response_for_client;
use beamline_model::{KeepResponse, QueuePolicy, TenantName, UpstreamName};
use beamline_nats::Connections;
use beamline_queue::{Attempt, BodyReader, Deliver, Keep, Outcome, Rules, WholeResponse};
use beamline_seal::SealKeys;
use beamline_telemetry::{DeliverySpan, SpanId, Started, Telemetry, TraceContext, TraceId, WorkerTelemetry};
use beamline_upstream::{BoxError, ErrorKind, OwnKey, Pools, SendOptions, Sentness, UpstreamBody};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::MissedTickBehavior;

use crate::{
    credentials,
    forward::TRACEPARENT,
    idempotency::IDEMPOTENCY_KEY,
    retry_after::retry_after,
    transaction::{self, messaging},
    worker::TICK,
};

/// Which attempt this is, from 1.
const ATTEMPT: HeaderName = HeaderName::from_static("beamline-attempt");
/// When the request was accepted: seconds since the Unix epoch, with milliseconds.
const ACCEPTED: HeaderName = HeaderName::from_static("beamline-accepted");

const SET_COOKIE2: HeaderName = HeaderName::from_static("set-cookie2");

/// The most of a response's body that is read for the sake of its connection and of knowing whether it is whole.
const MAX_RESPONSE: u64 = 16 << 20;
/// The longest head that is kept for a receipt: names and values.
const MAX_KEPT_HEAD: usize = 16 << 10;

/// Delivers over HTTP and NATS with connections of its own. Lives on the delivery thread.
pub struct DeliverToUpstreams {
    snapshots: Arc<ArcSwap<Snapshot>>,
    seal_keys: Option<Arc<SealKeys>>,
    telemetry: Rc<WorkerTelemetry>,
    pools: Pools,
}

/// `DeliverToUpstreams` before it is on its thread.
pub struct Deliverer {
    snapshots: Arc<ArcSwap<Snapshot>>,
    seal_keys: Option<Arc<SealKeys>>,
    telemetry: Telemetry,
    nats: Connections,
}

impl Deliverer {
    /// Finds upstreams in the newest of `snapshots` at each delivery, and opens stored credentials by `seal_keys`.
    pub fn new(
        snapshots: Arc<ArcSwap<Snapshot>>,
        seal_keys: Option<Arc<SealKeys>>,
        telemetry: Telemetry,
        nats: Connections,
    ) -> Self {
        Self { snapshots, seal_keys, telemetry, nats }
    }

    /// On the delivery thread, within its [`tokio::task::LocalSet`]: ready to deliver.
    pub fn on_this_thread(self) -> DeliverToUpstreams {
        let telemetry = Rc::new(self.telemetry.worker());
        tokio::task::spawn_local(flush_regularly(Rc::downgrade(&telemetry)));
        DeliverToUpstreams {
            snapshots: self.snapshots,
            seal_keys: self.seal_keys,
            telemetry,
            pools: Pools::with_nats(&self.nats),
        }
    }
}

/// Hands over what was told, as workers do; what is left when deliveries end is handed over by its drop.
async fn flush_regularly(telemetry: Weak<WorkerTelemetry>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(telemetry) = telemetry.upgrade() else { return };
        telemetry.flush();
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

impl DeliverToUpstreams {
    fn upstream(&self, tenant: &TenantName, upstream: &UpstreamName) -> Option<Arc<UpstreamRuntime>> {
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

impl Deliver for DeliverToUpstreams {
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
                                Ok(sent) => {
                                    let keep = upstream.queue.keep_response;
                                    (answered(sent.response, keep).await, sent.attempts)
                                }
                                Err(error) => (unanswered(error.sent, &error.kind), error.attempts),
                            };
                        attempts = transaction::attempt_records(&tried, &started, span, messaging(&upstream));
                        outcome
                    }
                }
            }
        };
        self.telemetry.delivery(span_of(&attempt, started, trace, &outcome, attempts));
        outcome
    }

    fn is_reachable(&self, tenant: &TenantName, upstream: &UpstreamName) -> bool {
        // An upstream that is gone is told when the record is delivered.
        self.upstream(tenant, upstream).is_none_or(|upstream| self.pools.is_reachable(&upstream.cluster))
    }

    async fn reach(&self, attempt: &Attempt) -> Result<(), Outcome> {
        // An upstream that is gone is told when the record is delivered.
        let Some(upstream) = self.upstream(&attempt.tenant, &attempt.upstream) else { return Ok(()) };
        let started = Started::now();
        let Err(unreached) = self.pools.reach(&upstream.cluster).await else { return Ok(()) };
        let outcome = unanswered(Sentness::Nothing, &unreached.kind);
        let (trace, span) = (resumed(attempt), SpanId::random());
        let tried = transaction::attempt_records(&unreached.attempts, &started, span, messaging(&upstream));
        self.telemetry.delivery(span_of(attempt, started, trace, &outcome, tried));
        Err(outcome)
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
    let own_key = !headers.contains_key(IDEMPOTENCY_KEY);
    if own_key {
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
    if own_key {
        request.extensions_mut().insert(OwnKey);
    }
    Ok(request)
}

/// What it means for a record that no response came.
fn unanswered(sent: Sentness, kind: &ErrorKind) -> Outcome {
    let reason = kind.token().to_owned();
    match (sent, kind) {
        (Sentness::Maybe, _) => Outcome::Broken { reason },
        // Not the upstream's doing: it may be as well as ever.
        (
            Sentness::Nothing,
            ErrorKind::Denied(_) | ErrorKind::Forbidden | ErrorKind::NoRoom | ErrorKind::RequestBody,
        ) => Outcome::Withheld { reason },
        (Sentness::Nothing, ErrorKind::Refused | ErrorKind::TooLarge { .. }) => {
            Outcome::Unsendable { reason }
        }
        (Sentness::Nothing, _) => Outcome::NotSent { reason },
    }
}

/// Reads a response to its end: only then is it known to be whole, and its connection can be used again.
///
/// Of it is kept what the manifest says, should the record end with it.
async fn answered(response: http::Response<UpstreamBody>, keep: Option<KeepResponse>) -> Outcome {
    let (mut head, mut body) = response.into_parts();
    let retry_after = retry_after(&head.headers, SystemTime::now());
    let mut read = 0;
    // As much as may be kept; none where it is not to be, or is longer.
    let mut kept = keep.map(|_| BytesMut::new());
    let complete = loop {
        match body.frame().await {
            None => break true,
            Some(Err(_)) => {
                kept = None;
                break false;
            }
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                read += data.len() as u64;
                if keep.is_some_and(|keep| read > keep.max_size.get()) {
                    kept = None;
                } else if let Some(kept) = &mut kept {
                    kept.extend_from_slice(data);
                }
            }
        }
        // Longer than anybody needs of a delivery's answer: taken as whole, its connection given up.
        if read > MAX_RESPONSE {
            break true;
        }
    };
    let keep = keep.map(|keep| {
        let whole = kept.and_then(|body| whole(&mut head, body.freeze()));
        Keep { period: keep.period.get(), whole }
    });
    Outcome::Answered { status: head.status.as_u16(), retry_after, complete, keep }
}

/// An answer as its client would have got it, but for cookies: they are for a browser that waits for it, not for whoever
/// holds the receipt. None where its head is too long.
fn whole(head: &mut response::Parts, body: Bytes) -> Option<WholeResponse> {
    let headers = &mut head.headers;
    response_for_client(headers, head.version);
    for name in [header::SET_COOKIE, SET_COOKIE2, header::CONTENT_LENGTH, header::TRAILER] {
        headers.remove(name);
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let stored = headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    (bytes <= MAX_KEPT_HEAD).then(|| WholeResponse { headers: stored.collect(), body })
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
