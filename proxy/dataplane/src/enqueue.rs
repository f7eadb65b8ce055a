//! Puts a request in the durable queue and answers `202`, where the policy, the request and the failure allow it.
//!
//! What is stored is the request after the filters, with its forwarding fields, its credentials sealed or not at all, and
//! without what is set on requests to the upstream at the very end. The `202` is sent only after the commit. A client that
//! goes away before its body is whole queues nothing.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use beamline_control::{InjectedHeaders, TenantRuntime, UpstreamRuntime};
use beamline_filter_host::EnqueueOptions;
use beamline_http::{ErrorKind, RECEIPT_PATH, proxy_status};
use beamline_model::{Credentials, QueueMode, QueuePolicy};
use beamline_node_state::Reason;
use beamline_queue::{
    Backlog, BodyBuffer, BodyError, Demand, EnqueueError, KeyClaim, NewRecord, Receipt,
    Refusal as QueueRefusal, Reservation, TraceRef,
};
use beamline_telemetry::{QueuedRef, SpanId};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body::Body as _;

use crate::{
    body::{ClientBody, Counted},
    capture::{CaptureError, capture},
    credentials::{self, Bound, CREDENTIALS},
    filtered::Passed,
    forward::{Kept, Outbound, TRACEPARENT},
    idempotency::{self, Checked, IDEMPOTENCY_KEY},
    prefer::{PREFER, PREFERENCE_APPLIED, asks_for_async},
    respond::{Refusal, node_detail},
    transaction::Finishing,
    worker::Shared,
};

/// What a client is told to wait before it asks for its receipt, where the delivery is not delayed for longer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const MAX_ORDERING_KEY: usize = 256;
/// Of a request that began before its tenant or upstream was deleted.
const GONE: &str = "it was deleted meanwhile, and takes no more requests";

/// A request that may be queued if its upstream fails.
pub(crate) struct Eligibility {
    pub(crate) max_body: u64,
    /// The client sent `Prefer: respond-async`.
    asked: bool,
    /// The origin takes it twice as once.
    repeat_safe: bool,
    ordering_key: Option<String>,
    /// From its acceptance until it may be delivered.
    delay: Duration,
    /// From its acceptance until it expires.
    expiry: Duration,
    /// Room for it, taken before its body is read.
    reservation: Reservation,
    /// The claim on the client's key.
    claim: Option<KeyClaim>,
}

/// What is left of a request whose upstream failed before a response head.
pub(crate) struct Failed {
    pub(crate) head: Parts,
    pub(crate) kept: Kept,
    pub(crate) nothing_sent: bool,
    pub(crate) claim: Option<KeyClaim>,
}

fn is_repeat_safe(policy: &QueuePolicy, method: &Method, headers: &HeaderMap) -> bool {
    let by_key =
        policy.origin_honours_idempotency_key && headers.get(IDEMPOTENCY_KEY).is_some_and(|k| !k.is_empty());
    method.is_idempotent() || by_key
}

pub(crate) fn has_method(policy: &QueuePolicy, method: &Method) -> bool {
    policy.methods.iter().any(|m| m == method.as_str())
}

/// Why this request can never be queued under this policy, as a sentence.
fn obstacle(worker: &Shared, upstream: &UpstreamRuntime, outbound: &Outbound) -> Option<String> {
    let policy = &upstream.queue;
    let (parts, max) = (&outbound.parts, policy.max_body.get());
    if !has_method(policy, &parts.method) {
        return Some(format!("queue.methods has {}, not {}", policy.methods.join(", "), parts.method));
    }
    if !worker.still_has(upstream.cluster.key()) {
        return Some(GONE.into());
    }
    if parts.headers.contains_key(header::UPGRADE) {
        return Some("a request for an upgrade cannot be queued".into());
    }
    if credentials::carried(&parts.headers, &upstream.headers) {
        match policy.credentials {
            Credentials::Refuse => {
                return Some(
                    "the request carries credentials, which queue.credentials = \"refuse\" keeps out of the queue: \"strip\" \
                     queues such requests without them, \"seal\" with them"
                        .into(),
                );
            }
            Credentials::Seal if worker.seal_keys.is_none() => {
                return Some(
                    "the request carries credentials, and this node has no seal key to store them by".into(),
                );
            }
            Credentials::Strip | Credentials::Seal => {}
        }
    }
    let least = outbound.body.size_hint().lower();
    (least > max).then(|| format!("the body of {least} bytes is longer than queue.max_body = {max}"))
}

/// What is to become of a request, as far as the queue has a say before it is sent.
pub(crate) enum Queueing {
    /// It is sent, and never queued.
    Never,
    /// It is sent, and queued where that fails.
    OnFailure(Eligibility),
    /// It is sent. The queue would take it after a failure, but has no room: then that is what the client is told.
    NoRoom { refusal: QueueRefusal, repeat_safe: bool },
    /// It is stored without a try: by its upstream's mode, or behind requests of its ordering key that wait already.
    AtOnce(Eligibility),
}

/// Decides that, by the policy, the request, its ordering key's backlog and the queue's room.
///
/// `has_claim`: it has a client's key, claimed on this node.
///
/// # Errors
/// Where it may only be stored and cannot be: its upstream's mode is `always`, or requests of its ordering key wait, past
/// which it would break their order.
pub(crate) fn consider(
    worker: &Shared,
    upstream: &UpstreamRuntime,
    outbound: &Outbound,
    has_claim: bool,
) -> Result<Queueing, Refusal> {
    let (policy, headers) = (&upstream.queue, &outbound.parts.headers);
    if policy.mode == QueueMode::Never {
        return Ok(Queueing::Never);
    }
    let asked = asks_for_async(headers);
    let demand = if asked { Demand::Asked } else { Demand::Unasked };
    let key = upstream.cluster.key();
    if let Some(ordering_key) = ordering_key(policy, &outbound.parts) {
        let behind = match worker.queue.backlog(&key.tenant, &key.upstream, &ordering_key) {
            Backlog::Empty => false,
            Backlog::Known => match obstacle(worker, upstream, outbound) {
                None => true,
                Some(why) => {
                    let why =
                        format!("requests of its ordering key wait, and it cannot wait behind them: {why}");
                    return Err(not_queueable(upstream, &why));
                }
            },
            // Beside another node, for as long as an upgrade takes: what cannot wait is not refused for it.
            Backlog::Possible => obstacle(worker, upstream, outbound).is_none(),
        };
        if behind {
            return at_once(worker, upstream, outbound, asked);
        }
    }
    let obstacle = obstacle(worker, upstream, outbound);
    // Claims are known to their own node alone. Beside another one the log decides which use of a key is the first.
    if has_claim && obstacle.is_none() && !worker.queue.is_alone() {
        return at_once(worker, upstream, outbound, asked);
    }
    // Other methods, such as GET, are no work for the queue, and are sent.
    if policy.mode == QueueMode::Always && has_method(policy, &outbound.parts.method) {
        return match obstacle {
            Some(why) => Err(not_queueable(upstream, &format!("its queue.mode is \"always\", and {why}"))),
            None => at_once(worker, upstream, outbound, asked),
        };
    }
    if policy.mode == QueueMode::Prefer && !asked || obstacle.is_some() {
        return Ok(Queueing::Never);
    }
    Ok(match Eligibility::reserve(worker, upstream, outbound, asked, demand) {
        Ok(eligible) => Queueing::OnFailure(eligible),
        Err(refusal) => {
            let repeat_safe = is_repeat_safe(policy, &outbound.parts.method, headers);
            Queueing::NoRoom { refusal, repeat_safe }
        }
    })
}

/// Whoever must wait may use the room that is kept for who asks.
fn at_once(
    worker: &Shared,
    upstream: &UpstreamRuntime,
    outbound: &Outbound,
    asked: bool,
) -> Result<Queueing, Refusal> {
    Eligibility::reserve(worker, upstream, outbound, asked, Demand::Asked)
        .map(Queueing::AtOnce)
        .map_err(|refusal| queue_refused(worker, &refusal))
}

/// What puts the request in order, where the policy names it and the request has it. Reads are in no order.
fn ordering_key(policy: &QueuePolicy, parts: &Parts) -> Option<String> {
    if parts.method.is_safe() || parts.method == Method::CONNECT {
        return None;
    }
    let value = parts.headers.get(&policy.ordering_key.as_ref()?.header)?;
    let fits = !value.is_empty() && value.len() <= MAX_ORDERING_KEY;
    fits.then(|| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

impl Eligibility {
    /// Takes room for the request, before its body is read.
    fn reserve(
        worker: &Shared,
        upstream: &UpstreamRuntime,
        outbound: &Outbound,
        asked: bool,
        demand: Demand,
    ) -> Result<Self, QueueRefusal> {
        let (policy, headers) = (&upstream.queue, &outbound.parts.headers);
        let max_body = policy.max_body.get();
        let head: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
        let most = outbound.body.size_hint().upper().unwrap_or(max_body).min(max_body);
        let reservation = worker.queue.reserve(&upstream.cluster.key().tenant, most + head as u64, demand)?;
        Ok(Self {
            max_body,
            asked,
            repeat_safe: is_repeat_safe(policy, &outbound.parts.method, headers),
            ordering_key: ordering_key(policy, &outbound.parts),
            delay: Duration::ZERO,
            expiry: policy.expiry.get(),
            reservation,
            claim: None,
        })
    }
}

/// Queues the request without trying its upstream.
pub(crate) async fn without_a_try(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &TenantRuntime,
    upstream: &UpstreamRuntime,
    outbound: Outbound,
    mut queueing: Eligibility,
    claim: Option<KeyClaim>,
) -> Result<Response<ClientBody>, Refusal> {
    queueing.claim = claim;
    let body = read_whole(worker, upstream, outbound.body, &queueing).await?;
    store(worker, exchange, tenant, upstream, queueing, &outbound.parts, body).await
}

/// What keeps a body of at most `limit` bytes, hashed where the request has a key.
pub(crate) fn body_buffer(worker: &Shared, limit: u64, has_key: bool) -> BodyBuffer {
    let buffer = worker.queue.body(limit);
    if has_key { buffer.hashed() } else { buffer }
}

async fn read_whole(
    worker: &Shared,
    upstream: &UpstreamRuntime,
    body: Passed<Counted>,
    queueing: &Eligibility,
) -> Result<BodyBuffer, Refusal> {
    let buffer = body_buffer(worker, queueing.max_body, queueing.claim.is_some());
    match capture(body, buffer).1.whole().await {
        Ok(body) => Ok(body),
        Err(CaptureError::ClientGone) => Err(client_gone()),
        Err(CaptureError::NotKept(error @ BodyError::TooLarge { .. })) => {
            Err(not_queueable(upstream, &error.to_string()))
        }
        Err(CaptureError::NotKept(error)) => Err(unavailable(worker, &error.to_string())),
    }
}

fn not_queueable(upstream: &UpstreamRuntime, why: &str) -> Refusal {
    Refusal::new(ErrorKind::NotQueueable, format!("upstream {}: {why}", upstream.label))
}

/// After a failed exchange: queues the request where that is honest, else gives back `refusal`.
pub(crate) async fn on_failure(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &TenantRuntime,
    upstream: &UpstreamRuntime,
    mut queueing: Eligibility,
    failed: Failed,
    refusal: Refusal,
) -> Result<Response<ClientBody>, Refusal> {
    // Bytes left and the origin may have acted on them: only what it takes twice as once may be sent again.
    if !failed.nothing_sent && !queueing.repeat_safe {
        return Err(refusal);
    }
    queueing.claim = failed.claim;
    let body = match failed.kept {
        Kept::Nothing => worker.queue.body(0),
        Kept::Streamed => return Err(refusal),
        Kept::Captured(kept) => match kept.whole().await {
            Ok(body) => body,
            Err(CaptureError::ClientGone) => return Err(client_gone()),
            // Too long is the client's affair: it gets the upstream's error, as without a queue.
            Err(CaptureError::NotKept(BodyError::TooLarge { .. })) => return Err(refusal),
            Err(CaptureError::NotKept(error)) => return Err(unavailable(worker, &error.to_string())),
        },
    };
    store(worker, exchange, tenant, upstream, queueing, &failed.head, body).await
}

/// Because a filter said so: queues the request without trying its upstream.
pub(crate) async fn by_verdict(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &TenantRuntime,
    upstream: &UpstreamRuntime,
    mut outbound: Outbound,
    options: EnqueueOptions,
) -> Result<Response<ClientBody>, Refusal> {
    exchange.record().upstream = Some(upstream.label.clone());
    exchange.record().route = Some(upstream.label.clone());
    if upstream.queue.mode == QueueMode::Never {
        return Err(not_queueable(
            upstream,
            "a filter queued a request to it, but its queue.mode is \"never\"",
        ));
    }
    let (delay, expiry) = times(&upstream.queue, &options).map_err(|why| not_queueable(upstream, &why))?;
    let claim = match idempotency::check(worker, exchange, upstream, &mut outbound).await? {
        Checked::Goes(claim) => claim,
        Checked::Answered(response) => return Ok(response),
    };
    if let Some(why) = obstacle(worker, upstream, &outbound) {
        return Err(not_queueable(upstream, &why));
    }
    let asked = asks_for_async(&outbound.parts.headers);
    let mut queueing = Eligibility::reserve(worker, upstream, &outbound, asked, Demand::Asked)
        .map_err(|error| queue_refused(worker, &error))?;
    queueing.claim = claim;
    (queueing.delay, queueing.expiry) = (delay, expiry);
    if options.ordering_key.is_some() {
        queueing.ordering_key = options.ordering_key;
    }
    outbound.prepare(exchange, upstream);
    let body = read_whole(worker, upstream, outbound.body, &queueing).await?;
    store(worker, exchange, tenant, upstream, queueing, &outbound.parts, body).await
}

/// From a request's acceptance until it may be delivered, and until it expires: as a filter wants it, within the policy.
fn times(policy: &QueuePolicy, options: &EnqueueOptions) -> Result<(Duration, Duration), String> {
    let delay = options.delay.unwrap_or_default();
    let expiry = options.expiry.map_or(policy.expiry.get(), |asked| asked.min(policy.expiry.get()));
    if delay < expiry {
        return Ok((delay, expiry));
    }
    Err(format!(
        "a filter delays the request by {} ms, but it expires {} ms after it is accepted: expected a delay that is shorter \
         than expiry-ms and queue.expiry = {}",
        delay.as_millis(),
        expiry.as_millis(),
        policy.expiry
    ))
}

pub(crate) fn client_gone() -> Refusal {
    Refusal::new(ErrorKind::ClientGone, "the request's body ended early")
}

fn unavailable(worker: &Shared, why: &str) -> Refusal {
    tracing::warn!(why, "a request could not be queued");
    worker.node.failed(Reason::QueueUnavailable);
    Refusal::new(
        ErrorKind::QueueUnavailable,
        "the queue's disk did not take the request; nothing was accepted",
    )
    .retry_after(Duration::from_secs(5))
}

pub(crate) fn queue_refused(worker: &Shared, refusal: &QueueRefusal) -> Refusal {
    match refusal {
        QueueRefusal::Full { retry_after, .. } => {
            worker.node.failed(Reason::QueueFull);
            Refusal::new(ErrorKind::QueueFull, refusal.to_string()).retry_after(*retry_after)
        }
        QueueRefusal::Unavailable { .. } => unavailable(worker, &refusal.to_string()),
        QueueRefusal::Unconfirmed => {
            worker.node.failed(Reason::QueueUnavailable);
            Refusal::new(ErrorKind::QueueUnconfirmed, refusal.to_string())
        }
    }
}

/// The fields that a record keeps: all but framing, credentials, and what each delivery makes or sets anew.
fn stored_headers(headers: &HeaderMap, injected: &InjectedHeaders) -> Vec<(String, Vec<u8>)> {
    const NOT_STORED: [HeaderName; 6] =
        [header::CONTENT_LENGTH, header::HOST, header::TE, header::TRAILER, TRACEPARENT, PREFER];
    headers
        .iter()
        .filter(|(name, _)| ![&NOT_STORED[..], &CREDENTIALS].iter().any(|names| names.contains(name)))
        .filter(|(name, _)| !injected.contains(name))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

async fn store(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &TenantRuntime,
    upstream: &UpstreamRuntime,
    queueing: Eligibility,
    head: &Parts,
    body: BodyBuffer,
) -> Result<Response<ClientBody>, Refusal> {
    let key = upstream.cluster.key();
    if !worker.still_has(key) {
        return Err(not_queueable(upstream, GONE));
    }
    let (trace, producer, began) = (exchange.trace(), SpanId::random(), Instant::now());
    let request_id = exchange.request_id();
    let bound =
        Bound { tenant: key.tenant.as_str(), upstream: key.upstream.as_str(), request_id: &request_id };
    let keys = worker.seal_keys.as_ref().filter(|_| upstream.queue.credentials == Credentials::Seal);
    let sealed = keys.and_then(|keys| credentials::seal(keys, bound, &head.headers, &upstream.headers));
    let record = NewRecord {
        tenant: key.tenant.clone(),
        upstream: key.upstream.clone(),
        revision: tenant.revision,
        method: head.method.as_str().to_owned(),
        target: head.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        host: head.headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned(),
        headers: stored_headers(&head.headers, &upstream.headers),
        sealed,
        body,
        ordering_key: queueing.ordering_key,
        on_dead: upstream.queue.on_dead,
        repeat_safe: queueing.repeat_safe,
        delay: queueing.delay,
        expiry: queueing.expiry,
        claim: queueing.claim,
        trace: TraceRef {
            trace_id: *trace.trace_id.as_bytes(),
            span_id: *producer.as_bytes(),
            sampled: trace.sampled,
        },
        request_id,
    };
    let accepted = worker.queue.enqueue(record, queueing.reservation).await.map_err(|error| match error {
        EnqueueError::Refused(refusal) => queue_refused(worker, &refusal),
        EnqueueError::KeyReused => idempotency::reused(),
        EnqueueError::TooLarge { .. } => not_queueable(upstream, &error.to_string()),
        error => unavailable(worker, &error.to_string()),
    })?;
    worker.node.worked(&Reason::QueueUnavailable);
    worker.node.worked(&Reason::QueueFull);
    let record = exchange.record();
    record.queued = Some(QueuedRef {
        record_id: accepted.id.to_string(),
        producer_span: producer,
        started: record.started.offset_of(began),
        duration: began.elapsed(),
    });
    let ask_again = ASK_AGAIN.max(queueing.delay);
    Ok(accepted_response(worker, &accepted.receipt, queueing.asked, "queued", ask_again))
}

/// The answer to a request that comes again: where to ask what became of the first.
pub(crate) fn accepted_before(
    worker: &Shared,
    receipt: &Receipt,
    headers: &HeaderMap,
) -> Response<ClientBody> {
    accepted_response(worker, receipt, asks_for_async(headers), "accepted before", ASK_AGAIN)
}

/// Marks the answer to a request that was accepted: filters may change it, but their failing does not take it back.
#[derive(Clone, Copy)]
pub(crate) struct Accepted;

/// `202 Accepted` with where to ask what became of it.
fn accepted_response(
    worker: &Shared,
    receipt: &Receipt,
    asked: bool,
    how: &str,
    ask_again: Duration,
) -> Response<ClientBody> {
    let location = format!("{RECEIPT_PATH}{receipt}");
    // Nothing in it needs an escape: a receipt is made of digits, letters, hyphens, underscores and a dot.
    let body = format!(r#"{{"status":"accepted","receipt":"{location}"}}"#);
    let mut response = Response::new(ClientBody::full(Bytes::from(body)));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.extensions_mut().insert(Accepted);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from(ask_again.as_secs()));
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(header::LOCATION, location);
    }
    if asked {
        headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
    }
    let details = match node_detail(worker) {
        Some(node) => &*format!("{how}; {node}"),
        None => how,
    };
    proxy_status(headers, None, Some(details));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_origin_takes_twice_as_once_is_repeat_safe() {
        let mut policy = QueuePolicy::default();
        let none = HeaderMap::new();
        let keyed = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static("k1"))]);
        assert!(is_repeat_safe(&policy, &Method::PUT, &none));
        assert!(!is_repeat_safe(&policy, &Method::POST, &none));
        assert!(
            !is_repeat_safe(&policy, &Method::POST, &keyed),
            "the origin did not promise to honour the key"
        );
        policy.origin_honours_idempotency_key = true;
        assert!(is_repeat_safe(&policy, &Method::POST, &keyed));
        assert!(!is_repeat_safe(&policy, &Method::POST, &none));
    }

    #[test]
    fn a_filter_shortens_the_time_until_expiry_and_delays_within_it() {
        let policy = QueuePolicy { expiry: beamline_model::Duration::secs(60), ..QueuePolicy::default() };
        let (ms, minute) = (Duration::from_millis, Duration::from_secs(60));
        let asked = |delay: Option<u64>, expiry: Option<u64>| {
            let (delay, expiry) = (delay.map(Duration::from_millis), expiry.map(Duration::from_millis));
            times(&policy, &EnqueueOptions { ordering_key: None, delay, expiry })
        };
        assert_eq!(asked(None, None), Ok((Duration::ZERO, minute)));
        assert_eq!(asked(Some(500), Some(900)), Ok((ms(500), ms(900))));
        assert_eq!(
            asked(Some(59_999), Some(u64::MAX)),
            Ok((ms(59_999), minute)),
            "never later than the policy says"
        );
        for (delay, expiry) in [(60_000, None), (u64::MAX, None), (900, Some(900)), (0, Some(0))] {
            let refused = asked(Some(delay), expiry).unwrap_err();
            assert!(refused.contains("shorter than expiry-ms and queue.expiry = "), "{refused}");
        }
    }

    #[test]
    fn credentials_and_framing_are_not_stored() {
        let names = [
            "authorization",
            "cookie",
            "proxy-authorization",
            "content-length",
            "host",
            "traceparent",
            "x-kept",
        ];
        let headers: HeaderMap =
            names.iter().map(|n| (HeaderName::from_static(n), HeaderValue::from_static("v"))).collect();
        assert_eq!(
            stored_headers(&headers, &InjectedHeaders::default()),
            [("x-kept".to_owned(), b"v".to_vec())]
        );
    }
}
