//! Copies the WAL back into the database from a connection and thread of its own, so that groups don't wait for it: by size
//! when the writer asks for it, and by age where it may hold what was erased.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, wal::CheckpointMode};

use super::{super::LogError, ERASE_AFTER, connect};

/// How long emptying the WAL waits for readers, and the writer for it.
const BUSY: Duration = Duration::from_millis(250);
/// When it is tried again where they stayed longer.
const ERASE_AGAIN: Duration = Duration::from_secs(1);

/// The checkpoint thread. Dropping it ends the thread, after the checkpoint that may be running.
pub(super) struct Checkpointer {
    wake: Option<SyncSender<Wish>>,
    /// Something was erased since the WAL was last emptied, or began to be.
    erased: Arc<AtomicBool>,
    failures: Receiver<LogError>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    /// Copy what can be copied now.
    Copy,
    /// Look whether something was erased.
    Look,
}

impl Checkpointer {
    pub(super) fn start(path: &Path) -> Result<Self, LogError> {
        let connection = connect(path)?;
        connection.busy_timeout(BUSY)?;
        let erased = Arc::new(AtomicBool::new(false));
        let (wake, woken) = sync_channel(1);
        let (fail, failures) = channel();
        let worker = Worker { connection, woken, erased: Arc::clone(&erased) };
        let thread = thread::Builder::new()
            .name("queue-checkpt".into())
            .spawn(move || {
                if let Err(error) = worker.run() {
                    // One report is enough: the log is reopened, and this thread with it.
                    let _ = fail.send(error.into());
                }
            })
            .map_err(|e| LogError::Failed(format!("the checkpoint thread could not be started: {e}")))?;
        Ok(Self { wake: Some(wake), erased, failures, thread: Some(thread) })
    }

    /// Asks for a checkpoint, unless one is asked for already.
    pub(super) fn wake(&self) {
        self.wish(Wish::Copy);
    }

    /// Says that a commit erased a content: the WAL is to be emptied in a while.
    pub(super) fn erased(&self) {
        if !self.erased.swap(true, Ordering::AcqRel) {
            self.wish(Wish::Look);
        }
    }

    fn wish(&self, wish: Wish) {
        // Where there is no room for it the thread has not looked yet, and then sees everything.
        if let Some(wake) = &self.wake {
            let _ = wake.try_send(wish);
        }
    }

    /// Returns when the thread has done what was asked of it before.
    #[cfg(test)]
    pub(super) fn wait(&self) {
        // There is room for one request: two go through only when the thread has taken the first and is at the second.
        let wake = self.wake.as_ref().expect("it runs");
        for _ in 0..2 {
            wake.send(Wish::Copy).expect("it runs");
        }
    }

    /// The error that ended the thread, if one did.
    pub(super) fn check(&self) -> Result<(), LogError> {
        match self.failures.try_recv() {
            Ok(error) => Err(error),
            Err(TryRecvError::Empty) => Ok(()),
            Err(TryRecvError::Disconnected) => Err(LogError::Failed("the checkpoint thread ended".into())),
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    connection: Connection,
    woken: Receiver<Wish>,
    erased: Arc<AtomicBool>,
}

impl Worker {
    fn run(self) -> rusqlite::Result<()> {
        // What an owner before this one erased may be in the WAL too.
        let mut empty_at = Some(Instant::now() + ERASE_AFTER);
        loop {
            let woken = match empty_at {
                None => self.woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.woken.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match woken {
                Ok(Wish::Copy) => {
                    self.checkpoint(CheckpointMode::PASSIVE)?;
                }
                Ok(Wish::Look) => {}
                Err(RecvTimeoutError::Timeout) => {
                    // What is erased from here on is for the next time.
                    self.erased.store(false, Ordering::Release);
                    // Most of it is copied beside the writer, which then waits for the rest.
                    self.checkpoint(CheckpointMode::PASSIVE)?;
                    let emptied = self.checkpoint(CheckpointMode::TRUNCATE)?;
                    empty_at = (!emptied).then(|| Instant::now() + ERASE_AGAIN);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            if empty_at.is_none() && self.erased.load(Ordering::Acquire) {
                empty_at = Some(Instant::now() + ERASE_AFTER);
            }
        }
    }

    /// Whether it was done: where others are in the way it is not.
    fn checkpoint(&self, mode: CheckpointMode) -> rusqlite::Result<bool> {
        match self.connection.wal_checkpoint_v2(None::<&str>, mode) {
            Ok(_) => Ok(true),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
