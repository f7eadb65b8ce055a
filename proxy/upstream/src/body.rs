//! Bodies on their way: the request's into a connection and back out of it, the response's to the caller.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::socket::Socket;

/// An error of any kind, as request bodies give them.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A response's body, streamed from the upstream with back-pressure.
///
/// Its connection goes back to the pool by itself when the body has ended on the wire. Dropped before that, the
/// connection is closed.
#[derive(Debug)]
pub struct UpstreamBody(Source);

#[derive(Debug)]
enum Source {
    Streamed {
        incoming: Incoming,
        peer: SocketAddr,
    },
    /// A message's payload, which came whole. None when it was taken.
    Whole(Option<Bytes>),
}

/// A response body that ended before it was whole. What was passed on of it cannot be made good: the response to
/// the client must be cut off, never ended as if it were whole.
#[derive(Debug, thiserror::Error)]
#[error("upstream at {peer} broke its response body off before the end")]
pub struct BrokenBody {
    peer: SocketAddr,
    source: hyper::Error,
}

impl UpstreamBody {
    pub(crate) fn new(incoming: Incoming, peer: SocketAddr) -> Self {
        Self(Source::Streamed { incoming, peer })
    }

    pub(crate) fn whole(payload: Bytes) -> Self {
        Self(Source::Whole((!payload.is_empty()).then_some(payload)))
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        match &mut self.get_mut().0 {
            Source::Streamed { incoming, peer } => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|f| f.map_err(|source| BrokenBody { peer: *peer, source })))
            }
            Source::Whole(payload) => Poll::Ready(payload.take().map(|p| Ok(Frame::data(p)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Streamed { incoming, .. } => incoming.is_end_stream(),
            Source::Whole(payload) => payload.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Streamed { incoming, .. } => incoming.size_hint(),
            Source::Whole(payload) => SizeHint::with_exact(payload.as_ref().map_or(0, |p| p.len() as u64)),
        }
    }
}

/// How far a request's body got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing was taken from it.
    Untouched,
    /// Frames were taken.
    Begun,
    /// The last frame was taken, at that time.
    Ended(Instant),
    /// It failed.
    Failed,
}

/// A request body lent to a connection. The sender keeps it too, and takes it back where the connection fails.
pub(crate) struct Lent<B> {
    body: RefCell<Option<B>>,
    progress: Cell<Progress>,
}

/// [`Lent`] without its type: connections carry the bodies of every caller.
pub(crate) trait Lendable {
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>>;
    fn is_end_stream(&self) -> bool;
    fn size_hint(&self) -> SizeHint;
}

impl<B> Lent<B> {
    pub(crate) fn new(body: B) -> Rc<Self> {
        Rc::new(Self { body: RefCell::new(Some(body)), progress: Cell::new(Progress::Untouched) })
    }

    pub(crate) fn take_back(&self) -> Option<B> {
        self.body.borrow_mut().take()
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.get()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the request was given up, its body taken back")]
struct TakenBack;

impl<B> Lendable for Lent<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut body = self.body.borrow_mut();
        let Some(body) = body.as_mut() else { return Poll::Ready(Some(Err(TakenBack.into()))) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        let ended = match &frame {
            None => true,
            Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
            Some(Err(_)) => false,
        };
        self.progress.set(match &frame {
            Some(Err(_)) => Progress::Failed,
            _ if ended => Progress::Ended(Instant::now()),
            _ => Progress::Begun,
        });
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.borrow().as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.borrow().as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// The one body type of all upstream connections.
pub(crate) enum RequestBody {
    /// No body: the common case, without an allocation.
    Empty,
    /// A body that its sender still holds.
    Lent { body: Rc<dyn Lendable>, socket: Rc<Socket> },
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &*self {
            Self::Empty => Poll::Ready(None),
            // Its sender has it back, and may have lent it to the next connection.
            Self::Lent { socket, .. } if socket.is_given_up() => Poll::Ready(Some(Err(TakenBack.into()))),
            // Nobody reads it any more. The connection lives on for the response that may be waiting there.
            Self::Lent { socket, .. } if socket.is_deaf() => Poll::Pending,
            Self::Lent { body, .. } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Lent { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Lent { body, .. } => body.size_hint(),
        }
    }
}
