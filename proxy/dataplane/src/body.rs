//! The bodies of both directions, as one enum each, so that hyper can ask what it needs to know without a box.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use beamline_upstream::{BoxError, UpstreamBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use beamline_filter_host::BodyStage;

use crate::{
    capture::CapturingBody,
    connection::InFlight,
    filtered::{BrokenOff, Passed},
    phases::Later,
    transaction::Finishing,
    worker::Shared,
};

/// A response body on its way to a client. Dropping it ends the transaction that it carries.
pub(crate) struct ClientBody {
    content: Passed<Content>,
    /// Its end was seen.
    ended: bool,
    finishing: Option<Box<Finishing>>,
    /// Held for its drop.
    in_flight: Option<InFlight>,
}

/// Where a response body comes from.
pub(crate) enum Content {
    Full(Option<Bytes>),
    Upstream(UpstreamBody),
}

impl Body for Content {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}

impl ClientBody {
    pub(crate) fn full(bytes: Bytes) -> Self {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        Self::of(Content::Full(bytes))
    }

    pub(crate) fn upstream(body: UpstreamBody) -> Self {
        Self::of(Content::Upstream(body))
    }

    fn of(content: Content) -> Self {
        Self { content: Passed::Plain(content), ended: false, finishing: None, in_flight: None }
    }

    /// What is to be sent.
    pub(crate) fn content(&mut self) -> &mut Passed<Content> {
        &mut self.content
    }

    /// Lets a filter see it chunk by chunk.
    pub(crate) fn pass_through(&mut self, worker: &Rc<Shared>, later: &Rc<Later>, stage: BodyStage) {
        let content = std::mem::replace(&mut self.content, Passed::Plain(Content::Full(None)));
        self.content = content.through(worker, later, stage);
    }

    /// Has `finishing` count this body and end with it.
    pub(crate) fn finishing(mut self, finishing: Box<Finishing>) -> Self {
        self.finishing = Some(finishing);
        self
    }

    /// Counts its request as under way until it is dropped.
    pub(crate) fn during(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.content).poll_frame(cx);
        this.ended |= matches!(frame, Poll::Ready(None));
        if let Some(finishing) = &mut this.finishing {
            match &frame {
                Poll::Ready(Some(Ok(frame))) => finishing.sent(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(Some(Err(error))) => finishing.broken(error.downcast_ref().map(BrokenOff::token)),
                Poll::Ready(None) | Poll::Pending => {}
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        // What is held whole is as good as sent; a HEAD's is never asked for.
        let here =
            matches!(self.content, Passed::Plain(Content::Full(_))) || self.content.stated_length().is_some();
        let whole = self.ended || here || self.is_end_stream();
        // What filters did with it is told as it goes.
        self.content = Passed::Plain(Content::Full(None));
        if let Some(finishing) = self.finishing.take() {
            finishing.end(whole);
        }
        drop(self.in_flight.take());
    }
}

/// A request body on its way to an upstream.
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// Streamed as it comes.
    Streamed(Passed<Counted>),
    /// Streamed, and kept as it streams, so that the request can still be queued.
    Kept(CapturingBody),
}

/// A client's body whose bytes are counted for the access record.
pub(crate) struct Counted {
    incoming: Incoming,
    /// None where there is no body.
    bytes: Option<Rc<Cell<u64>>>,
}

impl Counted {
    /// As it comes from the client.
    pub(crate) fn new(incoming: Incoming, exchange: &mut Finishing) -> Self {
        let bytes = (!incoming.is_end_stream()).then(|| exchange.count_request());
        Self { incoming, bytes }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(bytes)) = (&frame, &self.bytes) {
            bytes.set(bytes.get() + frame.data_ref().map_or(0, |d| d.len() as u64));
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
            Self::Kept(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streamed(body) => body.is_end_stream(),
            Self::Kept(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streamed(body) => body.size_hint(),
            Self::Kept(body) => body.size_hint(),
        }
    }
}
