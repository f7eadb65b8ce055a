//! Where an export writes to: the body of its answer, a piece at a time, and how long its caller may take.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::BoxError;
use bytes::Bytes;
use http_body::Frame;
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

/// How long a caller may take nothing of what is there for it. Then its place is another's.
const STALL: Duration = Duration::from_secs(60);
/// How long an export may take, however much its caller takes of it.
const WHOLE: Duration = Duration::from_secs(30 * 60);

/// Of an answer. One whose last piece is not its end breaks off.
enum Piece {
    Text(Bytes),
    End,
}

/// The end of an answer's body that is written to.
pub(super) struct Outlet {
    to: mpsc::Sender<Piece>,
    /// When its time is over.
    until: Instant,
}

/// What came of waiting for a caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It takes more.
    Room,
    /// It is time to look whether it still may.
    Look,
}

/// The body of the answer.
#[derive(Debug)]
pub(super) struct Pieces(mpsc::Receiver<Piece>);

/// An answer's body and where it is written; its time begins.
pub(super) fn open() -> (Outlet, Pieces) {
    let (to, body) = mpsc::channel(1);
    (Outlet { to, until: Instant::now() + WHOLE }, Pieces(body))
}

impl Outlet {
    /// Waits until there is room for a piece, until `look` at the latest. The caller has been waited for since `since`.
    ///
    /// # Errors
    /// Where the caller went away, took nothing for too long, or has had its time.
    pub(super) async fn room(&self, since: Instant, look: Instant) -> Result<Wait, BoxError> {
        let stalled = since + STALL;
        let now = Instant::now();
        if now >= self.until {
            return Err(format!("it took longer than {} s", WHOLE.as_secs()).into());
        }
        if now >= stalled {
            return Err(format!("its caller took nothing for {} s", STALL.as_secs()).into());
        }
        if now >= look {
            return Ok(Wait::Look);
        }
        match time::timeout_at(look.min(stalled).min(self.until), self.to.reserve()).await {
            // The room stays: nobody else writes.
            Ok(Ok(_)) => Ok(Wait::Room),
            Ok(Err(_)) => Err("its caller went away".into()),
            // Which of the three it was is seen when it is waited on.
            Err(_) => Ok(Wait::Look),
        }
    }

    /// Writes a piece, for which there is room.
    pub(super) async fn send(&self, text: String) -> Result<(), BoxError> {
        self.put(Piece::Text(text.into())).await
    }

    /// Ends the answer, for which there is room.
    pub(super) async fn end(&self) -> Result<(), BoxError> {
        self.put(Piece::End).await
    }

    async fn put(&self, piece: Piece) -> Result<(), BoxError> {
        self.to.send(piece).await.map_err(|_| "its caller went away".into())
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Text(text)) => Some(Ok(Frame::data(text))),
            Some(Piece::End) => None,
            None => Some(Err("it broke off".into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

    #[tokio::test]
    async fn an_answer_without_its_end_breaks_off() {
        for whole in [true, false] {
            let (to, body) = mpsc::channel(3);
            to.send(Piece::Text("line\n".into())).await.unwrap();
            if whole {
                to.send(Piece::End).await.unwrap();
            }
            drop(to);
            let read = Pieces(body).collect().await;
            assert_eq!(read.map(|read| read.to_bytes()).ok(), whole.then(|| "line\n".into()));
        }
    }

    /// Waits for room as an export does, and looks every so often; how often it looked, and what came of it.
    async fn waited(to: &Outlet, every: Duration) -> (u32, Result<(), String>) {
        let since = Instant::now();
        let (mut looks, mut look) = (0, since + every);
        loop {
            match to.room(since, look).await {
                Ok(Wait::Room) => return (looks, Ok(())),
                Ok(Wait::Look) => (looks, look) = (looks + 1, Instant::now() + every),
                Err(error) => return (looks, Err(error.to_string())),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_is_cut_off_and_looked_at_until_then() {
        let (to, body) = open();
        assert_eq!(waited(&to, Duration::from_secs(5)).await, (0, Ok(())));
        to.send("taken by nobody".into()).await.unwrap();
        let began = Instant::now();
        let (looks, end) = waited(&to, Duration::from_secs(7)).await;
        assert_eq!((looks, end.unwrap_err().as_str()), (9, "its caller took nothing for 60 s"));
        assert_eq!(began.elapsed().as_secs(), STALL.as_secs());
        drop(body);
        assert_eq!(waited(&to, NEVER).await.1.unwrap_err(), "its caller went away");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_a_little_now_and_then_has_its_time_and_no_more() {
        let (to, mut body) = open();
        let began = Instant::now();
        let slow = tokio::spawn(async move {
            while let Some(Ok(_)) = body.frame().await {
                time::sleep(STALL - Duration::from_secs(1)).await;
            }
        });
        let end = loop {
            if let (_, Err(error)) = waited(&to, NEVER).await {
                break error;
            }
            to.send("a little".into()).await.unwrap();
        };
        assert_eq!(
            (end.as_str(), began.elapsed().as_secs()),
            ("it took longer than 1800 s", WHOLE.as_secs())
        );
        drop(to);
        slow.await.unwrap();
    }
}
