//! What the proxy answers by itself: refusals as problem documents, receipts, filters' own responses.

use std::time::Duration;

use beamline_filter_host::Answer;
use beamline_http::{ErrorKind, Problem, proxy_status};
use beamline_node_state::Phase;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::{body::ClientBody, transaction::Finishing, worker::Shared};

/// Why a request goes no further.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: ErrorKind,
    /// A sentence for the client: what was expected, what was found, what to do.
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
    /// A closer `Proxy-Status` error type than the kind's own.
    pub(crate) proxy_status: Option<&'static str>,
    /// The methods that are allowed (RFC 9110, section 15.5.6).
    pub(crate) allow: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None, proxy_status: None, allow: None }
    }

    /// A method that is not one of `allow`.
    pub(crate) fn method_not_allowed(detail: &str, allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(ErrorKind::MethodNotAllowed, detail) }
    }

    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

/// The node's state as `Proxy-Status` details, where there is something to say.
pub(crate) fn node_detail(worker: &Shared) -> Option<&'static str> {
    match worker.phase() {
        Phase::Degraded => Some("node degraded"),
        Phase::Draining => Some("node draining"),
        Phase::Starting | Phase::Healthy => None,
    }
}

/// A refusal as a response.
pub(crate) fn problem(worker: &Shared, exchange: &mut Finishing, refusal: Refusal) -> Response<ClientBody> {
    exchange.record().error = Some(refusal.kind.token());
    let mut problem = Problem::of(refusal.kind).request_id(exchange.request_id());
    let error = refusal.proxy_status.or(problem.proxy_status.take());
    if !refusal.detail.is_empty() {
        problem = problem.detail(refusal.detail);
    }
    if let Some(after) = refusal.retry_after {
        problem = problem.retry_after(after);
    }
    let mut response = problem.into_response().map(ClientBody::full);
    if let Some(allow) = refusal.allow {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    proxy_status(response.headers_mut(), error, node_detail(worker));
    response
}

/// Whether a response of this status has a body (RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5).
pub(crate) fn allows_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

/// A filter's own response.
pub(crate) fn from_filter(answer: Answer) -> Response<ClientBody> {
    let Answer { status, headers, body } = answer;
    let mut response = Response::new(ClientBody::full(if allows_body(status) { body } else { Bytes::new() }));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
