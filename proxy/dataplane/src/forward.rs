//! Sends a request to an upstream and its response to the client; where that fails, to the queue if it may go there.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use beamline_control::{TenantRuntime, UpstreamRuntime};
use beamline_http::{ErrorKind, Forwarding, request_for_upstream, response_for_client};
use beamline_model::HostName;
use beamline_telemetry::SpanId;
use beamline_upstream::{ErrorKind as UpstreamError, SendError, SendOptions, Sentness};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header, request::Parts, uri::PathAndQuery,
};
use http_body::Body as _;

use crate::{
    body::{ClientBody, Counted, RequestBody},
    capture::{Capture, capture},
    enqueue::{self, Failed, Queueing},
    filtered::Passed,
    idempotency::{self, Caller, Checked},
    respond::Refusal,
    transaction::Finishing,
    worker::Shared,
};

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The request's own id, told to the client and to the upstream. What a client sends as such is not passed on.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A client's request on its way out.
pub(crate) struct Outbound {
    pub(crate) client: SocketAddr,
    pub(crate) parts: Parts,
    /// As the filters leave it.
    pub(crate) body: Passed<Counted>,
    /// Who the caller of a request with an `Idempotency-Key` is, from before the filters.
    pub(crate) caller: Option<Caller>,
    timeout: Option<Duration>,
    host: Option<HostName>,
}

impl Outbound {
    pub(crate) fn new(
        client: SocketAddr,
        parts: Parts,
        body: Passed<Counted>,
        caller: Option<Caller>,
    ) -> Self {
        Self { client, parts, body, caller, timeout: None, host: None }
    }

    /// What a filter's `route` changes.
    pub(crate) fn rewrite(
        &mut self,
        path: Option<PathAndQuery>,
        host: Option<HostName>,
        timeout: Option<Duration>,
    ) {
        if let Some(path) = path {
            self.parts.uri = Uri::from(path);
        }
        self.host = host;
        self.timeout = timeout;
    }

    /// Makes the head one for an upstream: target in origin form, hop-by-hop fields out, forwarding fields in.
    pub(crate) fn prepare(&mut self, exchange: &mut Finishing, upstream: &UpstreamRuntime) {
        let parts = &mut self.parts;
        if parts.uri.authority().is_some() {
            let target = parts.uri.path_and_query().cloned();
            parts.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
        let host = parts.headers.get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        let forwarding =
            Forwarding { client: self.client.ip(), scheme: "http", host: &host, version: exchange.version() };
        request_for_upstream(&mut parts.headers, &forwarding);
        parts.headers.insert(REQUEST_ID, exchange.id_field());
        // What a remote tracer sent along belongs to a trace that is not continued here.
        for name in ["tracestate", "baggage"] {
            parts.headers.remove(name);
        }
        // A message's headers of these names are the server's and ours.
        if upstream.cluster.spec().nats().is_some() {
            remove_beginning(&mut parts.headers, &["nats-", "beamline-"]);
        }
        if let Some(host) = self.host.as_ref().and_then(|h| HeaderValue::from_str(h.as_str()).ok()) {
            parts.headers.insert(header::HOST, host);
        }
    }
}

fn remove_beginning(headers: &mut HeaderMap, beginnings: &[&str]) {
    let begins = |name: &&HeaderName| beginnings.iter().any(|b| name.as_str().starts_with(b));
    let found: Vec<HeaderName> = headers.keys().filter(begins).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Sends to `upstream`.
pub(crate) async fn send(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &TenantRuntime,
    upstream: &UpstreamRuntime,
    mut outbound: Outbound,
) -> Result<Response<ClientBody>, Refusal> {
    exchange.record().upstream = Some(upstream.label.clone());
    exchange.record().route = Some(upstream.label.clone());
    let claim = match idempotency::check(worker, exchange, upstream, &mut outbound).await? {
        Checked::Goes(claim) => claim,
        Checked::Answered(response) => return Ok(response),
    };
    let queueing = enqueue::consider(worker, upstream, &outbound, claim.is_some())?;
    outbound.prepare(exchange, upstream);
    let queueing = match queueing {
        Queueing::AtOnce(eligible) => {
            let stored =
                enqueue::without_a_try(worker, exchange, tenant, upstream, outbound, eligible, claim);
            return Box::pin(stored).await;
        }
        queueing => queueing,
    };

    let span = SpanId::random();
    outbound.parts.headers.insert(TRACEPARENT, exchange.trace().traceparent(span));
    let options = SendOptions { response_timeout: outbound.timeout, probe: false };
    upstream.headers.set(&mut outbound.parts.headers).map_err(|_| secret_unavailable(upstream))?;
    let (body, kept) = outgoing_body(worker, outbound.body, &queueing, claim.is_some());
    let request = Request::from_parts(upstream_head(outbound.parts), body);

    match worker.pools.send(&upstream.cluster, request, options).await {
        Ok(sent) => {
            exchange.attempts(&sent.attempts, upstream, span);
            let (mut head, body) = sent.response.into_parts();
            response_for_client(&mut head.headers, head.version);
            Ok(Response::from_parts(head, ClientBody::upstream(body)))
        }
        Err(mut error) => {
            exchange.attempts(&error.attempts, upstream, span);
            let head = error.request.take().or(error.begun.take()).map(|request| request.into_parts().0);
            let refusal = refusal(upstream, &error);
            let nothing_sent = error.sent == Sentness::Nothing;
            // The client's own end, what the grant does not cover, what is refused for good: no outage, nothing to wait for.
            let is_outage = !matches!(
                error.kind,
                UpstreamError::RequestBody
                    | UpstreamError::Denied(_)
                    | UpstreamError::Forbidden
                    | UpstreamError::Refused
                    | UpstreamError::TooLarge { .. }
            );
            // The other half of the body goes with the error: what follows reads what is left of it.
            drop(error);
            match (queueing, head) {
                (Queueing::OnFailure(eligible), Some(head)) if is_outage => {
                    let failed = Failed { head, kept, nothing_sent, claim };
                    let stored =
                        enqueue::on_failure(worker, exchange, tenant, upstream, eligible, failed, refusal);
                    Box::pin(stored).await
                }
                (Queueing::NoRoom { refusal, repeat_safe }, _)
                    if is_outage && (nothing_sent || repeat_safe) =>
                {
                    Err(enqueue::queue_refused(worker, &refusal))
                }
                _ => Err(refusal),
            }
        }
    }
}

fn secret_unavailable(upstream: &UpstreamRuntime) -> Refusal {
    // Which one it is was told to the operator when the upstream was made ready, and is no client's business.
    let detail =
        format!("upstream {}: a secret that its requests need is not to be had on this node", upstream.label);
    Refusal::new(ErrorKind::SecretUnavailable, detail)
}

/// hyper's client writes HTTP/1.1 whatever the client spoke.
fn upstream_head(mut parts: Parts) -> Parts {
    parts.version = http::Version::HTTP_11;
    parts
}

/// What goes to the upstream as the body, and what stays here of it.
pub(crate) enum Kept {
    /// There is no body.
    Nothing,
    /// It streams through; it cannot be had again.
    Streamed,
    /// It is kept as it streams.
    Captured(Capture),
}

fn outgoing_body(
    worker: &Shared,
    body: Passed<Counted>,
    queueing: &Queueing,
    has_key: bool,
) -> (RequestBody, Kept) {
    if body.is_end_stream() {
        return (RequestBody::Empty, Kept::Nothing);
    }
    match queueing {
        Queueing::OnFailure(eligible) => {
            let buffer = enqueue::body_buffer(worker, eligible.max_body, has_key);
            let (sent, kept) = capture(body, buffer);
            (RequestBody::Kept(sent), Kept::Captured(kept))
        }
        _ => (RequestBody::Streamed(body), Kept::Streamed),
    }
}

/// What the client is told where the request cannot be queued.
fn refusal<B>(upstream: &UpstreamRuntime, error: &SendError<B>) -> Refusal {
    let kind = match &error.kind {
        UpstreamError::BreakerOpen
        | UpstreamError::NoResponders
        | UpstreamError::StreamUnavailable
        | UpstreamError::NoRoom => ErrorKind::UpstreamUnavailable,
        UpstreamError::Dns
        | UpstreamError::ConnectRefused
        | UpstreamError::ConnectTimeout
        | UpstreamError::ConnectFailed
        | UpstreamError::Tls => ErrorKind::UpstreamConnect,
        UpstreamError::Denied(_) | UpstreamError::Forbidden => ErrorKind::UpstreamDenied,
        UpstreamError::Refused => ErrorKind::UpstreamRefused,
        UpstreamError::TooLarge { .. } => ErrorKind::PayloadTooLarge,
        UpstreamError::Reset | UpstreamError::BadResponse => ErrorKind::UpstreamReset,
        UpstreamError::ResponseTimeout => ErrorKind::UpstreamTimeout,
        UpstreamError::RequestBody => ErrorKind::ClientGone,
    };
    // The address stays in the logs: clients have no business with it.
    let why = match &error.kind {
        own @ (UpstreamError::TooLarge { .. } | UpstreamError::NoRoom) => own.to_string(),
        _ => kind.row().title.to_lowercase(),
    };
    let mut refusal = Refusal::new(kind, format!("upstream {}: {why}", upstream.label));
    refusal.proxy_status = Some(error.kind.proxy_status());
    if matches!(kind, ErrorKind::UpstreamUnavailable | ErrorKind::UpstreamConnect) {
        refusal = refusal.retry_after(upstream.cluster.retry_after().max(Duration::from_secs(1)));
    }
    refusal
}
