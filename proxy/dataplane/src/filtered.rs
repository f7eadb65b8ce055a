//! Bodies as the filters leave them: streamed through one filter after the other, or read whole by one.
//!
//! A body on which no filter has a say is [`Passed::Plain`], which costs nothing. Each filter that sees a body chunk by
//! chunk wraps it once more. Chunks are drawn from the other end: what the receiver does not take is not read.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use beamline_filter_host::{BodyStage, Failure};
use beamline_upstream::BoxError;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use thiserror::Error;

use crate::{phases::Later, transaction::failure_kind, worker::Shared};

/// The most bytes of a body that a filter is shown at once, beside what it kept.
const CHUNK: usize = 64 << 10;

/// A body, and what the filters make of it.
pub(crate) enum Passed<B> {
    /// As it comes.
    Plain(B),
    /// What was read of it, before what was not.
    Read(Box<Read<B>>),
    /// As a filter leaves it.
    Filtered(Box<Filtered<B>>),
}

/// A body that was read, whole or as far as there was room.
pub(crate) struct Read<B> {
    ahead: Option<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Option<Passed<B>>,
}

/// A filter that may not fail did, in the middle of a body: the body is broken off.
#[derive(Debug, Error)]
#[error("filter {filter}: {failure}")]
pub(crate) struct BrokenOff {
    pub(crate) filter: Box<str>,
    pub(crate) failure: Failure,
}

impl BrokenOff {
    /// The token that tells of it.
    pub(crate) fn token(&self) -> &'static str {
        failure_kind(&self.failure).token()
    }
}

/// What came of reading a body whole.
pub(crate) enum Whole {
    /// This.
    Read(Bytes),
    /// It is longer than the limit; what was read of it is not lost.
    TooLong,
}

impl<B> Passed<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    /// A body that is here.
    pub(crate) fn whole(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        let ahead = (!data.is_empty()).then_some(data);
        Self::Read(Box::new(Read { ahead, trailers, rest: None }))
    }

    /// Lets a filter see it chunk by chunk.
    pub(crate) fn through(self, worker: &Rc<Shared>, later: &Rc<Later>, stage: BodyStage) -> Self {
        let flow = Flow {
            body: self,
            rest: Bytes::new(),
            trailers: None,
            ended: false,
            stage,
            later: Rc::clone(later),
            worker: Rc::clone(worker),
        };
        Self::Filtered(Box::new(Filtered::Idle(Box::new(flow))))
    }

    /// Reads it, at most `limit` bytes. It is then as if it had not been read.
    ///
    /// # Errors
    /// Where it breaks off.
    pub(crate) async fn read_whole(&mut self, limit: u64) -> Result<Whole, BoxError> {
        let (mut first, mut data) = (Bytes::new(), BytesMut::new());
        while !self.is_end_stream() {
            let Some(frame) = self.frame().await else { break };
            match frame?.into_data() {
                Ok(chunk) if first.is_empty() && data.is_empty() => first = chunk,
                Ok(chunk) => {
                    if data.is_empty() {
                        data.extend_from_slice(&std::mem::take(&mut first));
                    }
                    data.extend_from_slice(&chunk);
                }
                Err(frame) => {
                    let read = if data.is_empty() { first } else { data.freeze() };
                    *self = Self::whole(read.clone(), frame.into_trailers().ok());
                    return Ok(Whole::Read(read));
                }
            }
            if (first.len() + data.len()) as u64 > limit {
                let ahead = Some(if data.is_empty() { first } else { data.freeze() });
                let rest = std::mem::replace(self, Self::whole(Bytes::new(), None));
                *self = Self::Read(Box::new(Read { ahead, trailers: None, rest: Some(rest) }));
                return Ok(Whole::TooLong);
            }
        }
        let read = if data.is_empty() { first } else { data.freeze() };
        *self = Self::whole(read.clone(), None);
        Ok(Whole::Read(read))
    }

    /// Looks at its beginning, where that is here already. It is then as if it had not been looked at.
    ///
    /// # Errors
    /// Where it breaks off right there.
    pub(crate) async fn look(&mut self) -> Result<(), BoxError> {
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut *self).poll_frame(cx))).await;
        let Poll::Ready(Some(frame)) = first else { return Ok(()) };
        let (ahead, trailers) = match frame?.into_data() {
            Ok(data) => (Some(data), None),
            Err(frame) => (None, frame.into_trailers().ok()),
        };
        let rest = std::mem::replace(self, Self::whole(Bytes::new(), None));
        // Nothing comes after trailers.
        let rest = trailers.is_none().then_some(rest);
        *self = Self::Read(Box::new(Read { ahead, trailers, rest }));
        Ok(())
    }

    /// Puts these bytes in the place of a body that was read whole; its trailers stay.
    pub(crate) fn replace(&mut self, data: Bytes) {
        let trailers = match self {
            Self::Read(read) => read.trailers.take(),
            Self::Plain(_) | Self::Filtered(_) => None,
        };
        *self = Self::whole(data, trailers);
    }

    /// Its length, where it is here whole and has no trailers, which only a body without a stated length can have.
    pub(crate) fn stated_length(&self) -> Option<usize> {
        match self {
            Self::Read(read) if read.rest.is_none() && read.trailers.is_none() => {
                Some(read.ahead.as_ref().map_or(0, Bytes::len))
            }
            _ => None,
        }
    }
}

impl<B> Body for Passed<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Plain(body) => Pin::new(body).poll_frame(cx),
            Self::Read(read) => {
                if let Some(data) = read.ahead.take() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                match &mut read.rest {
                    Some(rest) => Pin::new(rest).poll_frame(cx),
                    None => Poll::Ready(read.trailers.take().map(|t| Ok(Frame::trailers(t)))),
                }
            }
            Self::Filtered(filtered) => filtered.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Read(read) => {
                read.ahead.is_none()
                    && read.trailers.is_none()
                    && read.rest.as_ref().is_none_or(Self::is_end_stream)
            }
            Self::Filtered(filtered) => matches!(**filtered, Filtered::Ended),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Read(read) => match &read.rest {
                None if read.trailers.is_none() => {
                    SizeHint::with_exact(read.ahead.as_ref().map_or(0, |data| data.len() as u64))
                }
                _ => SizeHint::default(),
            },
            // A filter may make it longer or shorter.
            Self::Filtered(_) => SizeHint::default(),
        }
    }
}

/// A body that a filter sees chunk by chunk: at rest, or while a chunk is fetched and shown.
pub(crate) enum Filtered<B> {
    Idle(Box<Flow<B>>),
    Busy(Next<B>),
    Ended,
}

/// The next frame on its way; its flow comes back with it.
type Next<B> = Pin<Box<dyn Future<Output = (Box<Flow<B>>, NextFrame)>>>;

type NextFrame = Option<Result<Frame<Bytes>, BoxError>>;

/// The body's way through one filter.
pub(crate) struct Flow<B> {
    body: Passed<B>,
    /// What came and was not shown yet.
    rest: Bytes,
    trailers: Option<HeaderMap>,
    /// The last chunk was shown.
    ended: bool,
    stage: BodyStage,
    later: Rc<Later>,
    worker: Rc<Shared>,
}

impl<B> Filtered<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<NextFrame> {
        if matches!(self, Self::Idle(_))
            && let Self::Idle(mut flow) = std::mem::replace(self, Self::Ended)
        {
            *self = Self::Busy(Box::pin(async move {
                let frame = flow.next().await;
                (flow, frame)
            }));
        }
        let Self::Busy(next) = self else { return Poll::Ready(None) };
        let (flow, frame) = ready!(next.as_mut().poll(cx));
        let over = matches!(frame, None | Some(Err(_))) || flow.is_over();
        *self = if over { Self::Ended } else { Self::Idle(flow) };
        Poll::Ready(frame)
    }
}

impl<B> Flow<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    /// Nothing is left to give.
    fn is_over(&self) -> bool {
        self.ended && self.trailers.is_none()
    }

    async fn next(&mut self) -> NextFrame {
        while !self.ended {
            let chunk = match self.chunk().await {
                Ok(chunk) => chunk,
                Err(error) => return Some(Err(error)),
            };
            let (tenant, passage) = (&self.later.tenant, &self.later.passage);
            let shown =
                tenant.chain.on_chunk(&self.worker.engine, passage, &mut self.stage, chunk, self.ended);
            match shown.await {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Some(Ok(Frame::data(data))),
                Err(failure) => {
                    let filter = tenant.chain.name(self.stage.filter()).into();
                    let broken = BrokenOff { filter, failure };
                    self.later.told.break_off(&broken);
                    return Some(Err(broken.into()));
                }
            }
        }
        self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))
    }

    /// The next bytes to show; after the last of them `ended` is set.
    async fn chunk(&mut self) -> Result<Bytes, BoxError> {
        while self.rest.is_empty() && !self.ended {
            match self.body.frame().await.transpose()? {
                None => self.ended = true,
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.ended = true;
                    }
                },
            }
        }
        let chunk = self.rest.split_to(CHUNK.min(self.rest.len()));
        self.ended |= self.rest.is_empty() && self.body.is_end_stream();
        Ok(chunk)
    }
}

impl<B> Drop for Flow<B> {
    fn drop(&mut self) {
        self.later.told.ran(self.stage.take_run());
    }
}
