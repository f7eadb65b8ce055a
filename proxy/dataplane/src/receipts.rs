//! `/.well-known/beamline/requests/<receipt>`: `GET` tells what became of a queued request, `DELETE` cancels it. Below it is
//! `/response`, the origin's answer, where it is kept. Before any filter, on every host.

use std::{fmt, rc::Rc, time::Duration};

use beamline_control::TenantRuntime;
use beamline_http::{ErrorKind, RECEIPT_PATH, proxy_status};
use beamline_queue::{Cancellation, ReceiptView, ResponseView, Waiter, WholeResponse};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts};

use crate::{
    body::ClientBody,
    prefer::{self, PREFERENCE_APPLIED},
    respond::Refusal,
    worker::Shared,
};

/// What follows a receipt where the origin's answer is asked for.
const RESPONSE: &str = "/response";

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
    if let Some(presented) = presented.strip_suffix(RESPONSE) {
        let view = worker.queue.receipt(&tenant.name, presented).await.map_err(unavailable)?;
        return kept_response(worker, &view.ok_or_else(unknown)?, &parts.method).await;
    }
    match parts.method {
        Method::GET | Method::HEAD => {
            let ask = async || {
                let view = worker.queue.receipt(&tenant.name, presented).await.map_err(unavailable)?;
                view.ok_or_else(unknown)
            };
            let mut view = ask().await?;
            let mut wait = prefer::wait(&parts.headers);
            if let Some(patience) = wait
                && view.state.is_open()
            {
                match worker.queue.waiter(view.id) {
                    Some(waiter) => {
                        // It may have ended before anybody waited for it.
                        view = ask().await?;
                        if view.state.is_open() {
                            until_ended(worker, waiter, patience).await;
                            view = ask().await?;
                        }
                    }
                    // Too many wait: this one is told how things stand, and that nothing was waited for.
                    None => wait = None,
                }
            }
            let mut response = told(&view)?;
            if let Some(applied) = wait.and_then(|wait| format!("wait={}", wait.as_secs()).try_into().ok()) {
                response.headers_mut().insert(PREFERENCE_APPLIED, applied);
            }
            Ok(response)
        }
        Method::DELETE => {
            let done = worker.queue.cancel(&tenant.name, presented).await.map_err(unavailable)?;
            match done.ok_or_else(unknown)? {
                Cancellation::Done(view) => told(&view),
                Cancellation::TooLate(view) => Err(Refusal::new(
                    ErrorKind::TooLateToCancel,
                    format!(
                        "only a request that is queued or held can be cancelled; this one is {}: ask with GET how it ends",
                        view.state
                    ),
                )),
            }
        }
        _ => Err(Refusal::method_not_allowed(
            "a receipt can be asked for with GET, and its request cancelled with DELETE",
            "GET, HEAD, DELETE",
        )),
    }
}

/// The origin's answer as it was, or why it is not to be had.
async fn kept_response(
    worker: &Shared,
    view: &ReceiptView,
    method: &Method,
) -> Result<Response<ClientBody>, Refusal> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let why = "the origin's answer can be asked for with GET";
        return Err(Refusal::method_not_allowed(why, "GET, HEAD"));
    }
    let not_kept = |why: &str| Refusal::new(ErrorKind::ResponseNotKept, why);
    match view.response {
        None if view.state.is_open() => {
            Err(not_kept("the request has not ended: its receipt tells when it has")
                .retry_after(Duration::from_secs(1)))
        }
        None => Err(not_kept(
            "no answer of the origin is kept: there was none, queue.keep_response does not ask for it, there was no room, or its time is over",
        )),
        Some(ResponseView { complete: false, .. }) => Err(not_kept(
            "the origin's answer did not come whole, or is longer than queue.keep_response allows: its receipt tells the status",
        )),
        Some(_) => {
            let kept = worker.queue.response(view.id).await.map_err(unavailable)?;
            let whole = kept.and_then(|kept| Some((kept.status, kept.whole?)));
            let (status, whole) = whole.ok_or_else(|| not_kept("its time is over in this moment"))?;
            replayed(status, whole)
        }
    }
}

/// A kept answer, for who asks for it later than its client would have.
fn replayed(status: u16, whole: WholeResponse) -> Result<Response<ClientBody>, Refusal> {
    let stored = |error: http::Error| Refusal::new(ErrorKind::Internal, format!("the kept answer: {error}"));
    let mut response = Response::new(ClientBody::full(whole.body));
    *response.status_mut() = StatusCode::from_u16(status).map_err(|error| stored(error.into()))?;
    let headers = response.headers_mut();
    for (name, value) in &whole.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| stored(error.into()))?;
        headers.append(name, HeaderValue::from_bytes(value).map_err(|error| stored(error.into()))?);
    }
    // It is for who holds the receipt, nobody is to take it for another type than it has, and a link in it must not carry
    // the receipt along.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    proxy_status(headers, None, Some("kept response of the origin"));
    Ok(response)
}

/// Returns when the record has ended, or patience has, or the node drains.
async fn until_ended(worker: &Shared, mut waiter: Waiter, patience: Duration) {
    tokio::select! {
        () = waiter.ended() => {}
        () = tokio::time::sleep(patience) => {}
        () = worker.drain_begins() => {}
    }
}

fn unavailable(error: impl fmt::Display) -> Refusal {
    tracing::warn!(%error, "a receipt could not be read, or its request not be cancelled");
    Refusal::new(ErrorKind::QueueUnavailable, "the queue does not answer now")
        .retry_after(Duration::from_secs(5))
}

fn told(view: &ReceiptView) -> Result<Response<ClientBody>, Refusal> {
    let json =
        serde_json::to_vec(view).map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
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
