//! The log in SQLite: WAL, `synchronous=FULL`, one writing connection, readers and checkpoints on their own.
//!
//! A group is one `BEGIN IMMEDIATE … COMMIT`, whose last act is the fsync of the WAL. The WAL is copied back by size:
//! by a second connection while it is small, by the writer between two groups when it has grown in spite of that. And by
//! age: what was erased is overwritten in the database at once, but copies of it are in the WAL, which is emptied
//! [`ERASE_AFTER`] later.

mod checkpoint;
mod content;
mod intervene;
mod reader;
mod rows;
mod writer;

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, TransactionBehavior, config::DbConfig, hooks::Wal, wal::CheckpointMode,
};

use self::{
    checkpoint::Checkpointer,
    reader::SqliteReader,
    rows::{from_db, to_db},
    writer::{Lanes, Writer},
};
use super::{Change, Effect, Log, LogError, LogReader};
use crate::{disk, fault::Fault, step_back};

/// From nothing to version 1, from there to 2, and so on: a new log takes the same steps as an old one.
const SCHEMAS: [&str; 7] = [
    include_str!("schema.sql"),
    include_str!("interventions.sql"),
    include_str!("keys.sql"),
    include_str!("responses.sql"),
    include_str!("holding.sql"),
    include_str!("credentials.sql"),
    include_str!("open.sql"),
];
const SCHEMA_VERSION: i64 = 7;
const _: () = assert!(SCHEMAS.len() == SCHEMA_VERSION as usize, "each version has its step");
/// "BLMQ": so that `file` and a person can tell what this database is.
const APPLICATION_ID: i64 = 0x424c_4d51;
/// Pages in the WAL that wake the checkpointer: 4 MiB.
const WAL_PAGES: i32 = 1000;
/// Pages in the WAL at which the writer itself stops to copy them back: 64 MiB.
const WAL_PAGES_MAX: i32 = 16_000;
/// What the WAL's file is cut down to when it starts anew, in bytes.
const WAL_FILE_KEPT: i64 = 16 << 20;
/// How long after a content was erased the WAL, which may hold it, is copied back and emptied.
const ERASE_AFTER: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(5);
/// Of the writing connection: KiB of the database in memory. A group's pages, with those that the next ones will want.
const CACHE_KIB: i64 = 16 << 10;

/// The log in one SQLite database.
pub(crate) struct SqliteLog {
    path: PathBuf,
    epoch: u64,
    open: Option<Open>,
}

/// What a failed commit makes useless, all of it.
struct Open {
    connection: Connection,
    lanes: Lanes,
    /// Pages in the WAL after the last commit.
    wal_pages: Arc<AtomicI32>,
    /// When to wake the checkpointer next.
    wake_at: i32,
    checkpointer: Checkpointer,
}

impl From<rusqlite::Error> for LogError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt(text),
            _ => Self::Failed(text),
        }
    }
}

/// A connection with everything set that durability needs.
fn connect(path: &Path) -> Result<Connection, LogError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(LogError::Failed(format!(
            "journal mode WAL is not possible for {} (SQLite answered {mode:?}): use a local file system",
            path.display()
        )));
    }
    let synchronous = if Fault::SkipFsync.is_on() { "OFF" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", WAL_FILE_KEPT)?;
    // ON, not FAST: pages that become free are overwritten too, and it is there that most of a body is.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    // Plans don't depend on what is bound. Else SQLite prepares many of these statements anew each time that they are used.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

impl SqliteLog {
    /// Opens or makes the log at `path`. Until [`Log::take_over`] it is not the owner's.
    pub(crate) fn open(path: &Path) -> Result<Self, LogError> {
        let mut connection = connect(path)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version = tx.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
        let Some(steps) = usize::try_from(version).ok().and_then(|version| SCHEMAS.get(version..)) else {
            return Err(LogError::Corrupt(format!(
                "{} has schema version {version}, expected {SCHEMA_VERSION} or an earlier one: it was written by another \
                 version of BeamLine",
                path.display()
            )));
        };
        if !steps.is_empty() {
            steps.iter().try_for_each(|step| tx.execute_batch(step))?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        tx.commit()?;
        if let Some(dir) = path.parent() {
            disk::sync_dir(dir).map_err(|e| LogError::Failed(format!("{}: {e}", dir.display())))?;
        }
        Ok(Self { path: path.to_owned(), epoch: 0, open: Some(Open::new(connection, path)?) })
    }
}

impl Open {
    fn new(mut connection: Connection, path: &Path) -> Result<Self, LogError> {
        let wal_pages = Arc::new(AtomicI32::new(0));
        let pages = Arc::clone(&wal_pages);
        connection.wal_hook(Some(move |_: &mut Wal, now| {
            pages.store(now, Ordering::Relaxed);
            Ok(())
        }))?;
        let checkpointer = Checkpointer::start(path)?;
        Ok(Self { connection, lanes: Lanes::default(), wal_pages, wake_at: WAL_PAGES, checkpointer })
    }
}

impl Log for SqliteLog {
    fn commit(&mut self, group: &[Change]) -> Result<Vec<Effect>, LogError> {
        let open = self.open.as_mut().ok_or_else(must_reopen)?;
        let committed = (|| {
            let tx = open.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut writer = Writer { tx: &tx, lanes: &mut open.lanes, erased: Cell::new(false) };
            // A client waits for an append: then the group is done with as soon as can be.
            let steps_back = !group.iter().any(|change| matches!(change, Change::Append(_)));
            let mut effects = Vec::with_capacity(group.len());
            for (n, change) in group.iter().enumerate() {
                if steps_back {
                    step_back(n);
                }
                effects.push(writer.apply(change)?);
            }
            let erased = writer.erased.get();
            tx.commit()?;
            if erased {
                open.checkpointer.erased();
            }
            Ok(effects)
        })();
        if committed.is_err() {
            self.open = None;
        }
        committed
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        self.open = None;
        let connection = connect(&self.path)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        // What is in the WAL goes to the database and both are fsynced, however far earlier attempts came.
        connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE)?;
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(LogError::Corrupt(format!("{}: {check}", self.path.display())));
        }
        // And it takes a durable write, where this is the owner of the same owner. One that changes something: SQLite writes
        // no page that stays as it is, and this one must be written over what the failed commit left in the WAL.
        let owned = connection.execute(
            "INSERT INTO meta SELECT 'reopened', 1 FROM meta WHERE name = 'epoch' AND (value = ?1 OR ?1 = 0)
             ON CONFLICT (name) DO UPDATE SET value = value + 1",
            [to_db(self.epoch)],
        )?;
        if owned != 1 {
            return Err(LogError::Corrupt(format!(
                "{} has another owner than this process: stop one of them",
                self.path.display()
            )));
        }
        self.open = Some(Open::new(connection, &self.path)?);
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(SqliteReader::open(&self.path)?))
    }

    fn take_over(&mut self) -> Result<(), LogError> {
        let open = self.open.as_mut().ok_or_else(must_reopen)?;
        let taken = (|| {
            let tx = open.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let epoch: i64 = tx.query_row(
                "UPDATE meta SET value = value + 1 WHERE name = 'epoch' RETURNING value",
                [],
                |row| row.get(0),
            )?;
            tx.commit()?;
            Ok::<_, LogError>(epoch)
        })();
        if taken.is_err() {
            self.open = None;
        }
        self.epoch = from_db(taken?);
        Ok(())
    }

    fn let_go(&mut self) {
        self.epoch = 0;
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn maintain(&mut self) -> Result<(), LogError> {
        if self.epoch == 0 {
            return Ok(());
        }
        let open = self.open.as_mut().ok_or_else(must_reopen)?;
        let tended = open.tend_wal();
        if tended.is_err() {
            self.open = None;
        }
        tended
    }
}

impl Open {
    fn tend_wal(&mut self) -> Result<(), LogError> {
        self.checkpointer.check()?;
        let pages = self.wal_pages.load(Ordering::Relaxed);
        if pages >= WAL_PAGES_MAX {
            // Waits for readers up to the busy time-out; a reader that stays longer is tried again after the next group.
            match self.connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::RESTART) {
                Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => {
                    return Err(error.into());
                }
                _ => {}
            }
            self.wake_at = WAL_PAGES;
        } else if pages >= self.wake_at {
            self.checkpointer.wake();
            self.wake_at = pages + WAL_PAGES;
        } else if pages < WAL_PAGES {
            self.wake_at = WAL_PAGES;
        }
        Ok(())
    }
}

fn must_reopen() -> LogError {
    LogError::Failed("it was not reopened after an error".into())
}

#[cfg(test)]
mod tests;
