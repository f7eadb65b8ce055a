//! A client's `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a request that comes again while the queue
//! has its record, or remembers it, is answered with that record's receipt instead of being sent or queued a second time.

use std::{rc::Rc, time::Duration};

use beamline_control::UpstreamRuntime;
use beamline_http::ErrorKind;
use beamline_model::QueueMode;
use beamline_node_state::Reason;
use beamline_queue::{
    BodyDigest, BodyHasher, Fingerprint, KeyClaim, KeyLook, KeyedUse, LogError, QueueError,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body_util::BodyExt as _;

use crate::{
    body::{ClientBody, Counted},
    enqueue::{accepted_before, client_gone, has_method},
    filtered::Passed,
    forward::Outbound,
    respond::Refusal,
    transaction::Finishing,
    worker::Shared,
};

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY: usize = 255;
/// What a client is told to wait for the request that uses its key.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What a caller shows to prove who it is, so that one's key is nobody else's.
#[derive(Debug)]
pub(crate) struct Caller(Vec<HeaderValue>);

/// What becomes of a request as far as its key has a say.
pub(crate) enum Checked {
    /// It goes on. While the claim lives, others that use its key are told to wait.
    Goes(Option<KeyClaim>),
    /// It was accepted before.
    Answered(Response<ClientBody>),
}

impl Caller {
    fn of(headers: &HeaderMap) -> Self {
        let names = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
        Self(names.iter().flat_map(|name| headers.get_all(name)).cloned().collect())
    }

    /// Of a request that has a key, before filters change what it carries.
    pub(crate) fn of_keyed(headers: &HeaderMap) -> Option<Self> {
        headers.contains_key(IDEMPOTENCY_KEY).then(|| Self::of(headers))
    }
}

/// The client's key. An empty one is none.
fn key(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Refusal> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let wrong = |found: String| {
        let expected = format!("Idempotency-Key: expected one field of at most {MAX_KEY} bytes");
        Err(Refusal::new(ErrorKind::BadRequest, format!("{expected}; found {found}")))
    };
    match (keys.next(), keys.count()) {
        (Some(key), 0) if key.len() > MAX_KEY => wrong(format!("one of {} bytes", key.len())),
        (Some(key), 0) => Ok((!key.is_empty()).then_some(key)),
        (Some(_), others) => wrong(format!("{} fields", others + 1)),
        (None, _) => Ok(None),
    }
}

/// Asks whether the request's key was used before. It is claimed for requests that the queue may come to store.
///
/// # Errors
/// A key that is none, that is used by a request under way, or was used for another request.
pub(crate) async fn check(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    upstream: &UpstreamRuntime,
    outbound: &mut Outbound,
) -> Result<Checked, Refusal> {
    let (policy, parts) = (&upstream.queue, &outbound.parts);
    let claims = policy.mode != QueueMode::Never && has_method(policy, &parts.method);
    if parts.method.is_safe() || !(claims || worker.queue.has_used_keys()) {
        return Ok(Checked::Goes(None));
    }
    match key(&parts.headers)?.cloned() {
        None => Ok(Checked::Goes(None)),
        Some(key) => Box::pin(look_up(worker, exchange, upstream, outbound, key, claims)).await,
    }
}

async fn look_up(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    upstream: &UpstreamRuntime,
    outbound: &mut Outbound,
    key: HeaderValue,
    claims: bool,
) -> Result<Checked, Refusal> {
    let parts = &outbound.parts;
    // A key that a filter set belongs to whom the filter let pass.
    let of_filters;
    let caller = match &outbound.caller {
        Some(caller) => caller,
        None => {
            of_filters = Caller::of(&parts.headers);
            &of_filters
        }
    };
    let credentials: Vec<_> = caller.0.iter().map(HeaderValue::as_bytes).collect();
    let destination = upstream.cluster.key();
    let what = KeyedUse {
        tenant: &destination.tenant,
        upstream: &destination.upstream,
        host: &exchange.record().host.clone(),
        method: parts.method.as_str(),
        path: parts.uri.path(),
        key: key.as_bytes(),
        credentials: &credentials,
    };
    let used = match worker.queue.look_up_key(&what, claims).await {
        Ok(KeyLook::Free(claim)) => return Ok(Checked::Goes(claim)),
        Ok(KeyLook::InUse) => {
            return Err(Refusal::new(
                ErrorKind::IdempotencyKeyInUse,
                "another request with this Idempotency-Key is under way: send this one again when that has ended",
            )
            .retry_after(TRY_AGAIN));
        }
        Ok(KeyLook::Used(used)) => used,
        // Sent without knowing, it could be done twice.
        Err(QueueError::Log(error)) => return Err(unknown(worker, &error)),
    };
    let body = digest(&mut outbound.body).await?;
    let parts = &outbound.parts;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let content_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    match used.receipt(&Fingerprint::of(target, content_type, &body)) {
        Some(receipt) => Ok(Checked::Answered(accepted_before(worker, receipt, &parts.headers))),
        None => Err(reused()),
    }
}

/// Whether the key was used before cannot be told.
fn unknown(worker: &Shared, error: &LogError) -> Refusal {
    tracing::warn!(%error, "whether an Idempotency-Key was used before could not be read");
    worker.node.failed(Reason::QueueUnavailable);
    let why = "whether this Idempotency-Key was used before cannot be told now; the request was not sent";
    Refusal::new(ErrorKind::QueueUnavailable, why).retry_after(TRY_AGAIN)
}

/// The key was used for another request.
pub(crate) fn reused() -> Refusal {
    Refusal::new(
        ErrorKind::IdempotencyKeyReused,
        "this Idempotency-Key was used for a request with another query, content type or body: send this one under a key of its own",
    )
}

/// The hash of a body that nobody needs any more.
async fn digest(body: &mut Passed<Counted>) -> Result<BodyDigest, Refusal> {
    let mut hasher = BodyHasher::default();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(|_| client_gone())?.data_ref() {
            hasher.update(data);
        }
    }
    Ok(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(keys: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for key in keys {
            headers.append(IDEMPOTENCY_KEY, key.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_key_is_one_field_of_1_to_255_bytes() {
        let longest = "k".repeat(MAX_KEY);
        for (keys, expected) in [
            (&[][..], Some(None)),
            (&[""], Some(None)),
            (&["k"], Some(Some("k"))),
            (&["\"k\""], Some(Some("\"k\""))),
            (&[&longest], Some(Some(&longest))),
            (&[&format!("{longest}k")], None),
            (&["k", "k"], None),
            (&["k", ""], None),
        ] as [(&[&str], Option<Option<&str>>); 8]
        {
            let headers = headers(keys);
            match (key(&headers), expected) {
                (Ok(found), Some(expected)) => {
                    assert_eq!(found.map(HeaderValue::as_bytes), expected.map(str::as_bytes));
                }
                (Err(refusal), None) => assert_eq!(refusal.kind, ErrorKind::BadRequest, "{refusal:?}"),
                (found, _) => panic!("{keys:?}: {found:?}"),
            }
        }
    }
}
