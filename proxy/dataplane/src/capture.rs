//! A request body that is kept while it streams, so that a request whose upstream fails can still be queued whole.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use beamline_queue::{BodyBuffer, BodyError};
use beamline_upstream::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{body::Counted, filtered::Passed};

/// The half that the upstream reads. The other half is [`Capture`].
pub(crate) struct CapturingBody(Rc<RefCell<Inner>>);

/// The half that the pipeline keeps: what was read so far, and the rest that is still to come.
pub(crate) struct Capture(Rc<RefCell<Inner>>);

struct Inner {
    body: Passed<Counted>,
    /// None once the body has outgrown what may be queued or its file failed: it then only streams.
    kept: Option<BodyBuffer>,
    why_not: Option<BodyError>,
    ended: bool,
}

/// Why a captured body cannot be queued.
#[derive(Debug)]
pub(crate) enum CaptureError {
    /// The client went away before its body was whole.
    ClientGone,
    /// It cannot be kept: too long, a disk error.
    NotKept(BodyError),
}

/// Splits a body into the half to send and the half to keep.
pub(crate) fn capture(body: Passed<Counted>, buffer: BodyBuffer) -> (CapturingBody, Capture) {
    let ended = body.is_end_stream();
    let inner = Rc::new(RefCell::new(Inner { body, kept: Some(buffer), why_not: None, ended }));
    (CapturingBody(Rc::clone(&inner)), Capture(inner))
}

impl Inner {
    fn drop_kept(&mut self, error: BodyError) {
        self.kept = None;
        self.why_not = Some(error);
    }
}

impl Inner {
    /// The next frame, kept on its way. A disk that is behind slows the client down, as a slow origin would.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(kept) = &mut self.kept
            && let Err(error) = ready!(kept.poll_ready(cx))
        {
            self.drop_kept(error);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(kept), Some(data)) = (&mut self.kept, frame.data_ref())
                    && let Err(error) = kept.start_push(data.clone())
                {
                    self.drop_kept(error);
                }
            }
            Some(Err(_)) => {}
            None => self.ended = true,
        }
        Poll::Ready(frame)
    }
}

impl Body for CapturingBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.borrow_mut().poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().body.size_hint()
    }
}

impl Capture {
    /// The whole body: what was read while it streamed and, read now, the rest.
    ///
    /// Called when the exchange has failed: the other half is gone, so nobody else takes frames.
    pub(crate) async fn whole(self) -> Result<BodyBuffer, CaptureError> {
        loop {
            {
                let mut inner = self.0.borrow_mut();
                if let Some(error) = inner.why_not.take() {
                    return Err(CaptureError::NotKept(error));
                }
                if (inner.ended || inner.body.is_end_stream())
                    && let Some(kept) = inner.kept.take()
                {
                    return Ok(kept);
                }
            }
            let frame = std::future::poll_fn(|cx| self.0.borrow_mut().poll_next(cx)).await;
            if let Some(Err(_)) = frame {
                return Err(CaptureError::ClientGone);
            }
        }
    }
}
