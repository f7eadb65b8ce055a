//! `/.well-known/beamline/requests/<receipt>`: `GET` tells what became of a queued request, `DELETE` cancels it. Before any
//! filter, on every host.

use std::{fmt, rc::Rc, time::Duration};

use beamline_control::TenantRuntime;
use beamline_http::{ErrorKind, RECEIPT_PATH, proxy_status};
use beamline_queue::{Cancellation, ReceiptView, Waiter};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, header, request::Parts};

use crate::{
    body::ClientBody,
    prefer::{self, PREFERENCE_APPLIED},
    respond::Refusal,
    worker::Shared,
};

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
        _ => Err(Refusal::new(
            ErrorKind::MethodNotAllowed,
            "a receipt can be asked for with GET, and its request cancelled with DELETE",
        )),
    }
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
