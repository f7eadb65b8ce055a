//! `GET /.well-known/beamline/requests/<receipt>`: what became of a queued request. Before any filter, on every host.

use std::rc::Rc;

use beamline_control::TenantRuntime;
use beamline_http::{ErrorKind, RECEIPT_PATH, proxy_status};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, header, request::Parts};

use crate::{body::ClientBody, respond::Refusal, worker::Shared};

/// Answers everything below the reserved path. Unknown, malformed and foreign receipts are the same `404`.
pub(crate) async fn answer(
    worker: &Rc<Shared>,
    tenant: &TenantRuntime,
    parts: &Parts,
) -> Result<Response<ClientBody>, Refusal> {
    let unknown = || {
        Refusal::new(
            ErrorKind::UnknownReceipt,
            "the receipt is unknown to this host, or its record was removed after its retention",
        )
    };
    let presented = parts.uri.path().strip_prefix(RECEIPT_PATH).ok_or_else(unknown)?;
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(Refusal::new(ErrorKind::MethodNotAllowed, "a receipt can be asked for with GET"));
    }
    let view = worker.queue.receipt(&tenant.name, presented).await.map_err(|error| {
        tracing::warn!(%error, "a receipt could not be read");
        Refusal::new(ErrorKind::QueueUnavailable, "the queue cannot be read now")
            .retry_after(std::time::Duration::from_secs(5))
    })?;
    let view = view.ok_or_else(unknown)?;
    let json =
        serde_json::to_vec(&view).map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
    let mut response = Response::new(ClientBody::full(Bytes::from(json)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if view.state.is_open() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    proxy_status(headers, None, None);
    Ok(response)
}
