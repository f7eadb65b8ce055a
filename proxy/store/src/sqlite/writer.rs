//! The one connection that writes, and what is true after its disk failed.
//!
//! When a commit fails, its frames may lie in the write-ahead log all the same: they are not seen now, but a process that
//! opens the database after a crash would find them. So the log is opened anew and something else is written to it,
//! durably, before the failed change is answered: that lies where the failed change lay, and then no is the truth.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, TransactionBehavior};
use serde_json::json;

use super::{
    audit, connect,
    row::{self, failed},
};
use crate::{Stamp, StoreError};

/// How long a change whose commit failed waits for the truth.
const UNCONFIRMED_AFTER: Duration = Duration::from_secs(5);
const SETTLE_FIRST: Duration = Duration::from_millis(50);
const SETTLE_LAST: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    pub(super) conn: Connection,
    path: PathBuf,
    /// A change whose commit failed, until it is settled.
    doubtful: Option<Doubt>,
}

/// A change of which nobody knows whether it is there: the last row that it wrote to the audit, which every change does.
struct Doubt {
    row: Option<audit::LastRow>,
    /// What the commit answered.
    error: String,
}

impl Writer {
    pub(super) const fn new(conn: Connection, path: PathBuf) -> Self {
        Self { conn, path, doubtful: None }
    }

    /// Runs `work` in one write transaction and returns after its commit is on the disk.
    ///
    /// # Errors
    /// Those of `work`, and [`StoreError::Unavailable`]: nothing was changed. [`StoreError::Unconfirmed`] where a commit
    /// failed and the disk does not work again in time to tell.
    pub(super) fn write<T>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Nothing is written past a change that is in doubt.
        self.settle().map_err(failed(doing))?;
        let tx =
            self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(doing))?;
        let done = work(&tx)?;
        let row = audit::last(&tx).map_err(failed(doing))?;
        let Err(error) = tx.commit() else { return Ok(done) };
        self.doubtful = Some(Doubt { row, error: error.to_string() });
        match self.truth() {
            Ok(true) => Ok(done),
            Ok(false) => Err(row::failed(doing)(error)),
            Err(reason) => Err(StoreError::Unconfirmed { doing, reason }),
        }
    }

    /// As [`write`](Self::write), for what is written again where it fails, and leaves nothing in the audit: whether a commit that
    /// failed was made after all is nobody's question then.
    pub(super) fn write_again(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.settle().map_err(failed(doing))?;
        let tx =
            self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(doing))?;
        work(&tx)?;
        tx.commit().map_err(failed(doing))
    }

    /// Whether the change in doubt was made after all. An error where the disk does not say so in time.
    fn truth(&mut self) -> Result<bool, String> {
        let until = Instant::now() + UNCONFIRMED_AFTER;
        let mut pause = SETTLE_FIRST;
        loop {
            thread::sleep(pause);
            match self.settle() {
                Ok(made) => return Ok(made),
                Err(error) if Instant::now() >= until => {
                    let commit = self.doubtful.as_ref().map_or("", |doubt| &doubt.error);
                    return Err(format!("its commit failed: {commit}; since then: {error}"));
                }
                Err(_) => pause = (pause * 2).min(SETTLE_LAST),
            }
        }
    }

    /// Opens the database anew after a failed commit and writes to it. Returns whether the change in doubt was made.
    fn settle(&mut self) -> rusqlite::Result<bool> {
        let Some(doubt) = &self.doubtful else { return Ok(false) };
        let mut conn = connect(&self.path)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made = doubt.row.is_some() && audit::last(&tx)? == doubt.row;
        // A row that was not there before: SQLite writes no page that stays as it is.
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let stamp = Stamp { at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX), actor: "node" };
        let detail = json!({ "error": doubt.error, "change_made": made });
        audit::insert(&tx, stamp, "store.recovered", None, &detail)?;
        tx.commit()?;
        self.conn = conn;
        self.doubtful = None;
        Ok(made)
    }
}
