//! `/.well-known/beamline/requests/<receipt>`: `GET` tells what became of a queued request, `DELETE` cancels it. Before any
//! filter, on every host.

use std::{fmt, rc::Rc, time::Duration};

use beamline_control::TenantRuntime;
use beamline_http::{ErrorKind, RECEIPT_PATH, proxy_status};
use beamline_queue::{Cancellation, ReceiptView};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header, request::Parts};

use crate::{body::ClientBody, respond::Refusal, worker::Shared};

const LONGEST_WAIT: Duration = Duration::from_secs(60);

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
            let wait = preferred_wait(&parts.headers);
            if let Some(wait) = wait
                && view.state.is_open()
                && let Some(mut waiter) = worker.queue.waiter(view.id)
            {
                // It may have ended before anybody waited for it.
                view = ask().await?;
                if view.state.is_open() {
                    tokio::select! {
                        () = waiter.ended() => {}
                        () = tokio::time::sleep(wait) => {}
                        () = worker.drain_begins() => {}
                    }
                    view = ask().await?;
                }
            }
            let mut response = told(&view)?;
            if let Some(wait) = wait {
                let applied = HeaderValue::try_from(format!("wait={}", wait.as_secs()));
                let applied =
                    applied.map_err(|error| Refusal::new(ErrorKind::Internal, error.to_string()))?;
                response.headers_mut().insert("preference-applied", applied);
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

/// The longest that a client may wait for the end of its request: 1 to 60 s (`Prefer: wait=N`, RFC 7240, section 4.3).
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let seconds = preferences.flat_map(|value| value.split(',')).find_map(|preference| {
        let (name, seconds) = preference.split(';').next()?.split_once('=')?;
        let wanted = name.trim().eq_ignore_ascii_case("wait");
        wanted.then(|| seconds.trim().trim_matches('"').parse::<u64>().ok()).flatten()
    })?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(LONGEST_WAIT))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_as_rfc_7240_has_it() {
        for (value, seconds) in [
            ("wait=10", Some(10)),
            ("respond-async, wait=10", Some(10)),
            ("WAIT = \"7\"", Some(7)),
            ("wait=3; x=y", Some(3)),
            ("wait=3600", Some(60)),
            ("wait=0", None),
            ("wait=soon", None),
            ("wait", None),
            ("await=10", None),
        ] {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("prefer"),
                HeaderValue::from_static(value),
            )]);
            assert_eq!(preferred_wait(&headers), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(preferred_wait(&HeaderMap::new()), None);
    }
}
