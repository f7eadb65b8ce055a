//! Bodies as the filters leave them: streamed through one filter after the other, or read whole by one.
//!
//! A body on which no filter has a say is [`Passed::Plain`], which costs nothing. Each filter that sees a body chunk by
//! chunk wraps it once more. Chunks are drawn from the other end: what the receiver does not take is not read.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use beamline_filter_host::{BodyStage, Failure};
use beamline_upstream::BoxError;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use thiserror::Error;
use tokio::{task::yield_now, time::timeout};

use crate::{failures::detail, phases::Later, room::Kept, transaction::failure_kind, worker::Shared};

/// The most bytes of a body that a filter is shown at once, beside what it kept.
const CHUNK: usize = 64 << 10;
/// How long what comes next of a body that is read whole may take.
pub(crate) const NEXT_PIECE: Duration = Duration::from_secs(30);
/// How long the chunks of a body that is here may keep a worker from its other work.
const TURN: Duration = Duration::from_millis(1);

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
    /// Its room, where it was kept for a filter.
    kept: Option<Kept>,
}

/// A filter that may not fail did, in the middle of a body: the body is broken off.
#[derive(Debug, Error)]
#[error("{}", detail(.filter, .failure))]
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
    /// The worker has no room for it; what was read of it is not lost.
    NoRoom,
    /// Nothing more of it came in time.
    Stalled,
}

impl<B> Passed<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    /// A body that is here.
    pub(crate) fn whole(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        let ahead = (!data.is_empty()).then_some(data);
        Self::Read(Box::new(Read { ahead, trailers, rest: None, kept: None }))
    }

    /// Lets a filter see it chunk by chunk.
    pub(crate) fn through(self, worker: &Rc<Shared>, later: &Rc<Later>, stage: BodyStage) -> Self {
        let flow = Flow {
            body: self,
            rest: Bytes::new(),
            trailers: None,
            ended: false,
            busy: Duration::ZERO,
            kept: Kept::nothing(&worker.room, &later.tenant.label),
            stage,
            later: Rc::clone(later),
            worker: Rc::clone(worker),
        };
        Self::Filtered(Box::new(Filtered::Idle(Box::new(flow))))
    }

    /// Reads it, at most `limit` bytes, where there is room for them, which is `kept`, and each piece comes within `patience`.
    /// It is then as if it had not been read.
    ///
    /// # Errors
    /// Where it breaks off.
    pub(crate) async fn read_whole(
        &mut self,
        limit: u64,
        mut kept: Kept,
        patience: Duration,
    ) -> Result<Whole, BoxError> {
        if let Self::Read(read) = self
            && read.rest.is_none()
        {
            let here = read.ahead.clone().unwrap_or_default();
            return Ok(if here.len() as u64 > limit { Whole::TooLong } else { Whole::Read(here) });
        }
        // Its sender may wait to hear that it is wanted.
        if self.size_hint().lower() > limit {
            return Ok(Whole::TooLong);
        }
        let (mut first, mut data) = (Bytes::new(), BytesMut::new());
        let (mut trailers, mut refused) = (None, None);
        while refused.is_none() && !self.is_end_stream() {
            let Ok(frame) = timeout(patience, self.frame()).await else { return Ok(Whole::Stalled) };
            let Some(frame) = frame else { break };
            match frame?.into_data() {
                Ok(chunk) if first.is_empty() && data.is_empty() => first = chunk,
                Ok(chunk) => {
                    if data.is_empty() {
                        data.extend_from_slice(&std::mem::take(&mut first));
                    }
                    data.extend_from_slice(&chunk);
                }
                Err(frame) => {
                    trailers = frame.into_trailers().ok();
                    break;
                }
            }
            let length = (first.len() + data.len()) as u64;
            if length > limit {
                refused = Some(Whole::TooLong);
            } else if !kept.grow(length) {
                refused = Some(Whole::NoRoom);
            }
        }
        let read = if data.is_empty() { first } else { data.freeze() };
        let rest = std::mem::replace(self, Self::whole(Bytes::new(), None));
        *self = Self::Read(Box::new(Read {
            ahead: (!read.is_empty()).then(|| read.clone()),
            trailers,
            rest: refused.is_some().then_some(rest),
            kept: Some(kept),
        }));
        Ok(refused.unwrap_or(Whole::Read(read)))
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
        *self = Self::Read(Box::new(Read { ahead, trailers, rest, kept: None }));
        Ok(())
    }

    /// Puts these bytes in the place of a body that was read whole; its trailers stay.
    pub(crate) fn replace(&mut self, data: Bytes) {
        let (trailers, mut kept) = match self {
            Self::Read(read) => (read.trailers.take(), read.kept.take()),
            Self::Plain(_) | Self::Filtered(_) => (None, None),
        };
        if let Some(kept) = &mut kept {
            kept.set(data.len() as u64);
        }
        let ahead = (!data.is_empty()).then_some(data);
        *self = Self::Read(Box::new(Read { ahead, trailers, rest: None, kept }));
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
    /// How long chunks were shown since the worker last had its turn.
    busy: Duration,
    /// The room of what the filter holds back.
    kept: Kept,
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
            // One after the other, the chunks of a body that is here would leave the worker no turn.
            if self.busy > TURN {
                yield_now().await;
                self.busy = Duration::ZERO;
            }
            let began = Instant::now();
            let most = self.stage.held() + chunk.len();
            self.stage.may_hold(self.kept.grow(most as u64));
            let (tenant, passage) = (&self.later.tenant, &self.later.passage);
            let shown =
                tenant.chain.on_chunk(&self.worker.engine, passage, &mut self.stage, chunk, self.ended);
            let shown = shown.await;
            self.busy += began.elapsed();
            self.kept.set(self.stage.held() as u64);
            match shown {
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::room::Room;

    /// A body of these pieces, and then of nothing for ever, where it does not end.
    struct Pieces {
        left: VecDeque<&'static str>,
        ends: bool,
        stated: u64,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            match self.left.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece.into())))),
                None if self.ends => Poll::Ready(None),
                None => Poll::Pending,
            }
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::new();
            hint.set_lower(self.stated);
            hint
        }
    }

    fn body(ends: bool, stated: u64) -> Passed<Pieces> {
        Passed::Plain(Pieces { left: ["one ", "two ", "three"].into(), ends, stated })
    }

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(600);

    async fn text(body: Passed<Pieces>) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_body_that_is_read_whole_is_bounded_in_length_room_and_time() {
        // A tenant's half is 20.
        let room = Room::of(40);
        let nothing = || Kept::nothing(&room, &"acme".into());
        let mut whole = body(true, 0);
        for _ in 0..2 {
            assert!(
                matches!(whole.read_whole(13, nothing(), LATE).await, Ok(Whole::Read(data)) if data == "one two three")
            );
        }
        // Its room is taken for as long as it is there.
        let mut other = body(true, 0);
        assert!(matches!(other.read_whole(13, nothing(), LATE).await, Ok(Whole::NoRoom)));
        assert_eq!(text(other).await, "one two three", "nothing of it is lost");
        drop(whole);
        let mut other = body(true, 0);
        assert!(matches!(other.read_whole(13, nothing(), LATE).await, Ok(Whole::Read(_))));
        drop(other);

        let mut long = body(true, 0);
        assert!(matches!(long.read_whole(12, nothing(), LATE).await, Ok(Whole::TooLong)));
        assert_eq!(text(long).await, "one two three");
        let mut stated = body(true, 13);
        assert!(matches!(stated.read_whole(12, nothing(), LATE).await, Ok(Whole::TooLong)));
        assert!(
            matches!(stated, Passed::Plain(pieces) if pieces.left.len() == 3),
            "none of it was asked for"
        );
        let mut stalled = body(false, 0);
        assert!(matches!(stalled.read_whole(100, nothing(), SOON).await, Ok(Whole::Stalled)));
        assert!(nothing().grow(20), "all of the room was given back");
    }
}
