//! The reader: one thread that reads the log beside the writer, for receipts and for delivery.

use std::{
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    log::{Candidate, CensusRow, Content, LogError, LogReader, StoredReceipt},
    record::{Lane, RecordId, Seq},
};

type Look = Box<dyn FnOnce(&mut dyn LogReader) + Send>;
type Reply<T> = oneshot::Sender<Result<T, LogError>>;

enum Command {
    Receipt {
        id: RecordId,
        reply: Reply<Option<StoredReceipt>>,
        place: OwnedSemaphorePermit,
    },
    Window {
        lane: Lane,
        limit: usize,
        reply: Reply<Vec<Candidate>>,
    },
    Content {
        seq: Seq,
        reply: Reply<Option<Content>>,
    },
    Scan {
        reply: Reply<Scan>,
    },
    /// Anything else that is asked for, seldom and not by requests.
    Look(Look),
    Stop(oneshot::Sender<()>),
}

/// What delivery has to know at start, and when it missed something.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Lanes with open records.
    pub(crate) lanes: Vec<Lane>,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) delivered_ms: Option<u64>,
    pub(crate) dead_ms: Option<u64>,
    /// Until when the first of the kept answers is kept.
    pub(crate) response_ms: Option<u64>,
}

/// The way to the reader thread, which ends when the last of these is dropped.
///
/// Unbounded as a channel; receipts hold a permit each, and delivery asks for one window a lane, and one content for each
/// delivery for which a connection has to be made first.
#[derive(Clone)]
pub(crate) struct Reader {
    commands: Sender<Command>,
}

impl Reader {
    pub(crate) fn start(log: Box<dyn LogReader>) -> io::Result<Self> {
        let (commands, inbox) = channel();
        thread::Builder::new().name("queue-reader".into()).spawn(move || serve(log, &inbox))?;
        Ok(Self { commands })
    }

    pub(crate) async fn receipt(
        &self,
        id: RecordId,
        place: OwnedSemaphorePermit,
    ) -> Result<Option<StoredReceipt>, LogError> {
        self.ask(|reply| Command::Receipt { id, reply, place }).await
    }

    pub(crate) async fn window(&self, lane: Lane, limit: usize) -> Result<Vec<Candidate>, LogError> {
        self.ask(|reply| Command::Window { lane, limit, reply }).await
    }

    pub(crate) async fn content(&self, seq: Seq) -> Result<Option<Content>, LogError> {
        self.ask(|reply| Command::Content { seq, reply }).await
    }

    pub(crate) async fn scan(&self) -> Result<Scan, LogError> {
        self.ask(|reply| Command::Scan { reply }).await
    }

    /// Has the reader's thread look at the log. The caller sees to it that few of these wait, and that each is short.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut dyn LogReader) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        self.ask(|reply| {
            Command::Look(Box::new(move |log| {
                let _ = reply.send(look(log));
            }))
        })
        .await
    }

    /// Returns when the log is no longer read.
    pub(crate) async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).is_ok() {
            let _ = done.await;
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LogError> {
        let closed = || LogError::Failed("the queue is closed".into());
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

fn serve(mut log: Box<dyn LogReader>, inbox: &Receiver<Command>) {
    while let Ok(command) = inbox.recv() {
        // Where nobody waits for the answer any more, it is dropped.
        match command {
            Command::Receipt { id, reply, place } => {
                let _ = reply.send(log.receipt(id));
                drop(place);
            }
            Command::Window { lane, limit, reply } => {
                let _ = reply.send(log.window(&lane, limit));
            }
            Command::Content { seq, reply } => {
                let _ = reply.send(log.content(seq));
            }
            Command::Scan { reply } => {
                let _ = reply.send(scan(&mut *log));
            }
            Command::Look(look) => look(&mut *log),
            Command::Stop(reply) => {
                drop(log);
                let _ = reply.send(());
                return;
            }
        }
    }
}

fn scan(log: &mut dyn LogReader) -> Result<Scan, LogError> {
    let mut scan = Scan::default();
    log.census(&mut |row| match row {
        CensusRow::Lane { lane, open: 1.., .. } => scan.lanes.push(lane),
        CensusRow::Responses { until_ms, .. } => {
            scan.response_ms = Some(scan.response_ms.map_or(until_ms, |first| first.min(until_ms)));
        }
        CensusRow::Lane { .. } | CensusRow::Key { .. } | CensusRow::Scope(_) => {}
        CensusRow::Earliest { expires_ms, delivered_ms, dead_ms } => {
            scan.expires_ms = expires_ms;
            scan.delivered_ms = delivered_ms;
            scan.dead_ms = dead_ms;
        }
    })?;
    Ok(scan)
}
