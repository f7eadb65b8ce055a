//! Sends a request to an upstream and its response to the client; where that fails, to the queue if it may go there.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use beamline_control::{TenantRuntime, UpstreamRuntime};
use beamline_http::{ErrorKind, Forwarding, request_for_upstream, response_for_client};
use beamline_model::HostName;
use beamline_telemetry::SpanId;
use beamline_upstream::{ErrorKind as UpstreamError, SendError, SendOptions, Sentness};
use http::{HeaderName, HeaderValue, Request, Response, Uri, header, request::Parts, uri::PathAndQuery};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::{
    body::{ClientBody, Counted, RequestBody},
    capture::{Capture, capture},
    enqueue::{self, Failed, Queueing},
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
    pub(crate) body: Incoming,
    timeout: Option<Duration>,
    host: Option<HostName>,
}

impl Outbound {
    pub(crate) fn new(client: SocketAddr, parts: Parts, body: Incoming) -> Self {
        Self { client, parts, body, timeout: None, host: None }
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
    pub(crate) fn prepare(&mut self, exchange: &mut Finishing) {
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
        if let Some(host) = self.host.as_ref().and_then(|h| HeaderValue::from_str(h.as_str()).ok()) {
            parts.headers.insert(header::HOST, host);
        }
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
    let queueing = enqueue::consider(worker, upstream, &outbound)?;
    outbound.prepare(exchange);
    let queueing = match queueing {
        Queueing::Behind(eligible) => {
            return enqueue::behind_others(worker, exchange, tenant, upstream, outbound, eligible).await;
        }
        queueing => queueing,
    };

    let span = SpanId::random();
    outbound.parts.headers.insert(TRACEPARENT, exchange.trace().traceparent(span));
    let options = SendOptions { response_timeout: outbound.timeout, probe: false };
    upstream.headers.set(&mut outbound.parts.headers).map_err(|_| secret_unavailable(upstream))?;
    let (body, kept) = outgoing_body(worker, exchange, outbound.body, &queueing);
    let request = Request::from_parts(upstream_head(outbound.parts), body);

    match worker.pools.send(&upstream.cluster, request, options).await {
        Ok(sent) => {
            exchange.attempts(&sent.attempts, span);
            let (mut head, body) = sent.response.into_parts();
            response_for_client(&mut head.headers, head.version);
            Ok(Response::from_parts(head, ClientBody::upstream(body)))
        }
        Err(mut error) => {
            exchange.attempts(&error.attempts, span);
            let head = error.request.take().or(error.begun.take()).map(|request| request.into_parts().0);
            let refusal = refusal(upstream, &error);
            let nothing_sent = error.sent == Sentness::Nothing;
            // The client's own end, or an address outside the grant: no outage, nothing to wait for.
            let is_outage = !matches!(error.kind, UpstreamError::RequestBody | UpstreamError::Denied(_));
            // The other half of the body goes with the error: what follows reads what is left of it.
            drop(error);
            match (queueing, head) {
                (Queueing::OnFailure(eligible), Some(head)) if is_outage => {
                    let failed = Failed { head, kept, nothing_sent };
                    enqueue::on_failure(worker, exchange, tenant, upstream, eligible, failed, refusal).await
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
    exchange: &mut Finishing,
    body: Incoming,
    queueing: &Queueing,
) -> (RequestBody, Kept) {
    if body.is_end_stream() {
        return (RequestBody::Empty, Kept::Nothing);
    }
    let counted = Counted { incoming: body, bytes: exchange.count_request() };
    match queueing {
        Queueing::OnFailure(eligible) => {
            let (sent, kept) = capture(counted, worker.queue.body(eligible.max_body));
            (RequestBody::Kept(sent), Kept::Captured(kept))
        }
        _ => (RequestBody::Streamed(counted), Kept::Streamed),
    }
}

/// What the client is told where the request cannot be queued.
fn refusal<B>(upstream: &UpstreamRuntime, error: &SendError<B>) -> Refusal {
    let kind = match &error.kind {
        UpstreamError::BreakerOpen => ErrorKind::UpstreamUnavailable,
        UpstreamError::Dns
        | UpstreamError::ConnectRefused
        | UpstreamError::ConnectTimeout
        | UpstreamError::ConnectFailed => ErrorKind::UpstreamConnect,
        UpstreamError::Denied(_) => ErrorKind::UpstreamDenied,
        UpstreamError::Reset | UpstreamError::BadResponse => ErrorKind::UpstreamReset,
        UpstreamError::ResponseTimeout => ErrorKind::UpstreamTimeout,
        UpstreamError::RequestBody => ErrorKind::ClientGone,
    };
    // The address stays in the logs: clients have no business with it.
    let mut refusal =
        Refusal::new(kind, format!("upstream {}: {}", upstream.label, kind.row().title.to_lowercase()));
    refusal.proxy_status = Some(error.kind.proxy_status());
    if matches!(kind, ErrorKind::UpstreamUnavailable | ErrorKind::UpstreamConnect) {
        refusal = refusal.retry_after(upstream.cluster.retry_after().max(Duration::from_secs(1)));
    }
    refusal
}
