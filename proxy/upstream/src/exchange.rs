//! One request on one connection: from the lease to the response's head, or to what can be said of the failure.

use std::{
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant as Deadline;

use crate::{
    BoxError, ErrorKind,
    body::{Progress, RequestBody},
    connection::Lease,
    socket::Socket,
};

/// An exchange that ended without a response head.
pub(crate) struct Broken {
    pub(crate) kind: ErrorKind,
    pub(crate) source: Option<BoxError>,
    /// The message, where hyper had not begun with it.
    pub(crate) message: Option<Request<RequestBody>>,
}

/// Sends `message` and waits for the response's head.
///
/// `timeout` counts from the end of the request's body, of which `progress` tells. While the body is still on its
/// way, an upstream that takes not a byte of it for that long is given up too.
///
/// Not to be continued once dropped: the connection is then closed.
pub(crate) async fn exchange(
    lease: Lease,
    message: Request<RequestBody>,
    now: Instant,
    timeout: Duration,
    progress: impl Fn() -> Progress,
) -> Result<Response<Incoming>, Broken> {
    let Lease { mut sender, line, .. } = lease;
    let socket = &*line.socket;
    socket.begin();
    let mut response = pin!(sender.try_send_request(message));
    line.park(sender);

    let mut timer = pin!(tokio::time::sleep_until(Deadline::from_std(now) + timeout));
    let mut written = socket.written();
    let outcome = std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = response.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        while timer.as_mut().poll(cx).is_ready() {
            let past = timer.deadline();
            match extended(past, timeout, progress(), socket, &mut written) {
                Some(deadline) => timer.as_mut().reset(deadline),
                None => return Poll::Ready(None),
            }
        }
        Poll::Pending
    })
    .await;

    let broken = match outcome {
        Some(Ok(response)) if response.status() != StatusCode::SWITCHING_PROTOCOLS => {
            line.heard(&response);
            return Ok(response);
        }
        Some(Ok(_)) => Broken {
            kind: ErrorKind::BadResponse,
            source: Some("101 Switching Protocols, which was not asked for".into()),
            message: None,
        },
        Some(Err(mut error)) => {
            let message = error.take_message();
            let error = error.into_error();
            let kind = match progress() {
                Progress::Failed => ErrorKind::RequestBody,
                _ if error.is_parse() => ErrorKind::BadResponse,
                // A body that is shorter than it said.
                _ if error.is_body_write_aborted() => ErrorKind::RequestBody,
                _ => ErrorKind::Reset,
            };
            Broken { kind, source: Some(error.into()), message }
        }
        None => Broken { kind: ErrorKind::ResponseTimeout, source: None, message: None },
    };
    // What is said now of the bytes that left must stay true, whatever hyper still holds.
    socket.give_up();
    Err(broken)
}

/// The next deadline, where the last one is not yet the end.
fn extended(
    past: Deadline,
    timeout: Duration,
    progress: Progress,
    socket: &Socket,
    written: &mut u64,
) -> Option<Deadline> {
    match progress {
        Progress::Ended(at) => Some(Deadline::from_std(at) + timeout).filter(|deadline| *deadline > past),
        // hyper is about to report it.
        Progress::Failed => Some(past + timeout),
        Progress::Untouched | Progress::Begun => {
            let stalls = socket.is_blocked() && socket.written() == *written;
            *written = socket.written();
            (!stalls).then_some(past + timeout)
        }
    }
}
