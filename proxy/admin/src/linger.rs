//! Refusals that reach their callers: what a caller is still sending is taken and thrown away before it is answered.
//!
//! A connection that is closed while its caller sends is reset, and the caller sees a broken pipe in place of the answer
//! that says what was wrong (RFC 9112, section 9.6). It stands behind the guard, so that nothing is taken of who has not
//! shown who they are. Who said `Expect: 100-continue` waits to be asked, and is not.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use bytes::Bytes;
use http::header;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;

/// The most bytes of a refused body that are taken.
const MAX_DISCARDED: u64 = 128 << 20;
/// How long they are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that comes back when whoever read it is done.
struct Lent(Arc<Mutex<Body>>);

impl Lent {
    fn body(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

/// Answers, and sees out what is left of the body where the answer is a refusal.
pub(crate) async fn see_out(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let lent = Body::new(Lent(Arc::clone(&body)));
    let answer = next.run(Request::from_parts(parts, lent)).await;
    let refused = answer.status().is_client_error() || answer.status().is_server_error();
    if refused && let Some(left) = Arc::into_inner(body) {
        let left = left.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Whatever comes of it, the answer is the same.
        let _ = tokio::time::timeout(PATIENCE, discard(left)).await;
    }
    answer
}

async fn discard(mut body: Body) {
    let mut taken = 0;
    while taken < MAX_DISCARDED
        && let Some(Ok(frame)) = body.frame().await
    {
        taken += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::{Router, middleware, routing::post};
    use http::StatusCode;
    use tower::ServiceExt as _;

    use super::*;

    /// A body of so many pieces of 1 MiB, which counts those that were taken; then nothing, for ever or at an end.
    struct Pieces {
        left: u64,
        ends: bool,
        taken: Arc<AtomicU64>,
    }

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            if self.left == 0 {
                return if self.ends { Poll::Ready(None) } else { Poll::Pending };
            }
            self.left -= 1;
            self.taken.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(vec![0; 1 << 20].into()))))
        }
    }

    /// How many pieces of such a body are taken by a route that answers `status` without reading.
    async fn taken(status: StatusCode, pieces: u64, ends: bool, expect: bool) -> u64 {
        let taken = Arc::new(AtomicU64::new(0));
        let body = Pieces { left: pieces, ends, taken: Arc::clone(&taken) };
        let mut request = http::Request::post("/").body(Body::new(body)).unwrap();
        if expect {
            request.headers_mut().insert(header::EXPECT, "100-continue".parse().unwrap());
        }
        let router: Router =
            Router::new().route("/", post(move || async move { status })).layer(middleware::from_fn(see_out));
        assert_eq!(router.oneshot(request).await.unwrap().status(), status);
        taken.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_refused_body_is_taken_within_bounds() {
        let refused = StatusCode::PAYLOAD_TOO_LARGE;
        assert_eq!(taken(refused, 5, true, false).await, 5);
        assert_eq!(taken(refused, 1_000, true, false).await, 128, "no more than the bound");
        assert_eq!(taken(refused, 3, false, false).await, 3, "one that stops is waited for in vain");
        assert_eq!(taken(refused, 5, true, true).await, 0, "its caller waits to be asked");
        assert_eq!(taken(StatusCode::OK, 5, true, false).await, 0, "nothing was refused");
    }
}
