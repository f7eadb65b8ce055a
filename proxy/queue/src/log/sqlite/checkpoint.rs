//! Copies the WAL back into the database from a connection and thread of its own, so that groups don't wait for it.

use std::{
    path::Path,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel},
    thread::{self, JoinHandle},
};

use rusqlite::{ErrorCode, wal::CheckpointMode};

use super::{super::LogError, connect};

/// The checkpoint thread. Dropping it ends the thread, after the checkpoint that may be running.
pub(super) struct Checkpointer {
    wake: Option<SyncSender<()>>,
    failures: Receiver<LogError>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    pub(super) fn start(path: &Path) -> Result<Self, LogError> {
        let connection = connect(path)?;
        let (wake, woken) = sync_channel(1);
        let (fail, failures) = channel();
        let thread = thread::Builder::new()
            .name("queue-checkpt".into())
            .spawn(move || {
                while woken.recv().is_ok() {
                    match connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE) {
                        Ok(_) => {}
                        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                        Err(error) => {
                            // One report is enough: the log is reopened, and this thread with it.
                            let _ = fail.send(error.into());
                            return;
                        }
                    }
                }
            })
            .map_err(|e| LogError::Failed(format!("the checkpoint thread could not be started: {e}")))?;
        Ok(Self { wake: Some(wake), failures, thread: Some(thread) })
    }

    /// Asks for a checkpoint, unless one is asked for already.
    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            let _ = wake.try_send(());
        }
    }

    /// Returns when the thread has done what was asked of it before.
    #[cfg(test)]
    pub(super) fn wait(&self) {
        // There is room for one request: two go through only when the thread has taken the first and is at the second.
        let wake = self.wake.as_ref().expect("it runs");
        for _ in 0..2 {
            wake.send(()).expect("it runs");
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
