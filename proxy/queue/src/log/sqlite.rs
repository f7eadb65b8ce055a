//! The log in SQLite: WAL, `synchronous=FULL`, one writing connection, readers and checkpoints on their own.
//!
//! A group is one `BEGIN IMMEDIATE … COMMIT`, whose last act is the fsync of the WAL. The WAL is copied back by size:
//! by a second connection while it is small, by the writer between two groups when it has grown in spite of that. And by
//! age: what was erased is overwritten in the database at once, but copies of it are in the WAL, which is emptied
//! [`ERASE_AFTER`] later.

mod checkpoint;
mod intervene;
mod reader;
mod rows;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use beamline_model::{OnDead, TenantName};
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior,
    config::DbConfig, hooks::Wal, named_params, params, wal::CheckpointMode,
};

use self::{checkpoint::Checkpointer, reader::SqliteReader, rows::*};
use super::{
    Append, AttemptRef, Candidate, Change, Effect, End, Ended, Log, LogError, LogReader, Note, Pruned,
    Unpaused, codec, deed, has_key,
};
use crate::{
    body::StoredBody,
    disk,
    fault::Fault,
    record::{DeadReason, Lane, RecordId, Seq},
    response::NewResponse,
};

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

/// Lanes that were met: their rows are never changed nor deleted.
#[derive(Default)]
struct Lanes {
    ids: HashMap<Lane, i64>,
    names: RefCell<HashMap<i64, Lane>>,
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
            let effects = group.iter().map(|change| writer.apply(change)).collect::<Result<_, _>>()?;
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

/// One transaction's hands.
struct Writer<'a> {
    tx: &'a Transaction<'a>,
    lanes: &'a mut Lanes,
    /// Whether any content was.
    erased: Cell<bool>,
}

impl Writer<'_> {
    fn sql(&self, sql: &str) -> Result<CachedStatement<'_>, LogError> {
        Ok(self.tx.prepare_cached(sql)?)
    }

    fn apply(&mut self, change: &Change) -> Result<Effect, LogError> {
        match change {
            Change::Append(append) => self.append(append),
            Change::Begin { seq, attempts, epoch } => self.begin(*seq, *attempts, *epoch),
            Change::Retry { attempt, again, note } => self.retry(attempt, again, note),
            Change::Miss { attempt, again, note } => {
                match self.begin(attempt.seq, attempt.attempts.saturating_sub(1), attempt.epoch)? {
                    Effect::Done => self.retry(attempt, again, note),
                    effect => Ok(effect),
                }
            }
            Change::Hold { attempt } => self.hold(attempt),
            Change::Release { lane } => self.release(lane),
            Change::Finish { attempt, end, at_ms, note, response } => {
                self.finish(attempt, *end, *at_ms, note, response.as_deref())
            }
            Change::Forget { now_ms, limit } => self.forget(*now_ms, *limit),
            Change::Expire { now_ms, limit } => self.expire(*now_ms, *limit),
            Change::Disown { id, at_ms } => self.disown(id.as_bytes(), *at_ms),
            Change::Recover { epoch, now_ms, limit } => self.recover(*epoch, *now_ms, *limit),
            Change::Prune { now_ms, delivered_before_ms, dead_before_ms, limit } => {
                self.prune(*now_ms, (*delivered_before_ms, *dead_before_ms), *limit)
            }
            Change::Trim { now_ms, limit } => self.trim(*now_ms, *limit),
            Change::Clear { tenant, now_ms, limit } => self.clear(tenant, *now_ms, *limit),
            Change::Intervene(intervention) => self.intervene(intervention),
        }
    }

    fn lane_id(&mut self, lane: &Lane) -> Result<i64, LogError> {
        if let Some(id) = self.lanes.ids.get(lane) {
            return Ok(*id);
        }
        let names = params![lane.tenant.as_str(), lane.upstream.as_str()];
        self.sql("INSERT INTO lane (tenant, upstream) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
            .execute(names)?;
        let id = self
            .sql("SELECT id FROM lane WHERE tenant = ?1 AND upstream = ?2")?
            .query_row(names, |row| row.get(0))?;
        self.lanes.ids.insert(lane.clone(), id);
        Ok(id)
    }

    fn lane_of(&self, id: i64) -> Result<Lane, LogError> {
        let mut names = self.lanes.names.borrow_mut();
        if let Some(lane) = names.get(&id) {
            return Ok(lane.clone());
        }
        let lane = lane_by_id(self.tx, id)?;
        names.insert(id, lane.clone());
        Ok(lane)
    }

    fn append(&mut self, append: &Append) -> Result<Effect, LogError> {
        if let Some(key_use) = &append.key_use
            && let Some(holder) = holder(self.tx, &key_use.scope)?
        {
            return Ok(Effect::KeyTaken(holder));
        }
        let lane = self.lane_id(&append.lane)?;
        let key = append.ordering_key.as_deref();
        let front = Fault::IgnoreOrder.is_on() || self.is_front(lane, key, i64::MAX)?;
        let seq = self
            .sql(
                "INSERT INTO record (id, secret, lane, okey, on_dead, front, state, repeat_safe, size, accepted_ms, delay_ms, due_ms,
                                     expires_ms, scope, fingerprint)
                 VALUES (:id, :secret, :lane, :okey, :on_dead, :front, 0, :repeat_safe, :size, :accepted_ms, :delay_ms, :due_ms,
                         :expires_ms, :scope, :fingerprint)",
            )?
            .insert(named_params! {
                ":id": append.id.as_bytes(),
                ":secret": append.secret.0,
                ":lane": lane,
                ":okey": key,
                ":on_dead": append.on_dead == OnDead::PauseKey,
                ":front": front,
                ":repeat_safe": append.repeat_safe,
                ":size": to_db(append.size),
                ":accepted_ms": to_db(append.accepted_ms),
                ":delay_ms": to_db(append.delay_ms),
                ":due_ms": to_db(append.due_ms()),
                ":expires_ms": to_db(append.expires_ms),
                ":scope": append.key_use.map(|key_use| key_use.scope.0),
                ":fingerprint": append.key_use.map(|key_use| key_use.fingerprint.0),
            })?;
        let content = &append.content;
        let (body, file, len) = match &content.body {
            StoredBody::Inline(bytes) => (Some(&bytes[..]), None, bytes.len() as u64),
            StoredBody::File { name, len } => (None, Some(name.to_string()), *len),
        };
        self.sql(
            "INSERT INTO content (seq, revision, method, target, host, headers, sealed, body, body_file, body_len, trace_id,
                                  span_id, sampled, request_id)
             VALUES (:seq, :revision, :method, :target, :host, :headers, :sealed, :body, :body_file, :body_len, :trace_id,
                     :span_id, :sampled, :request_id)",
        )?
        .execute(named_params! {
            ":seq": seq,
            ":revision": to_db(content.revision),
            ":method": content.method,
            ":target": content.target,
            ":host": content.host,
            ":headers": codec::encode(&content.headers),
            ":sealed": content.sealed.as_deref(),
            ":body": body,
            ":body_file": file,
            ":body_len": to_db(len),
            ":trace_id": content.trace.trace_id,
            ":span_id": content.trace.span_id,
            ":sampled": content.trace.sampled,
            ":request_id": content.request_id,
        })?;
        Ok(Effect::Appended { seq: Seq(seq), front })
    }

    /// Whether none of the key is before this place that a record there has to wait for.
    fn is_front(&self, lane: i64, key: Option<&str>, place: i64) -> Result<bool, LogError> {
        let Some(key) = key else { return Ok(true) };
        let before = params![lane, key, place];
        let open = self
            .sql("SELECT 1 FROM record WHERE lane = ?1 AND okey = ?2 AND okey IS NOT NULL AND open = 1 AND seq < ?3 LIMIT 1")?
            .exists(before)?;
        let paused = || {
            self.sql(
                "SELECT 1 FROM record WHERE lane = ?1 AND okey = ?2 AND pauses = 1 AND seq < ?3 LIMIT 1",
            )?
            .exists(before)
            .map_err(LogError::from)
        };
        Ok(!open && !paused()?)
    }

    fn begin(&self, seq: Seq, attempts: u32, epoch: u64) -> Result<Effect, LogError> {
        let begun = self
            .sql(
                "UPDATE record SET state = 1, attempts = attempts + 1, epoch = ?3
                 WHERE seq = ?1 AND state = 0 AND front = 1 AND attempts = ?2
                   AND NOT EXISTS (SELECT 1 FROM lane WHERE id = record.lane AND paused_ms IS NOT NULL)",
            )?
            .execute(params![seq.0, attempts, to_db(epoch)])?;
        if begun == 1 {
            return Ok(Effect::Done);
        }
        // The same change once more, after a commit that failed and yet was there.
        let again = self
            .sql("SELECT 1 FROM record WHERE seq = ?1 AND state = 1 AND attempts = ?2 AND epoch = ?3")?
            .exists(params![seq.0, attempts + 1, to_db(epoch)])?;
        Ok(if again { Effect::Done } else { Effect::Stale })
    }

    fn retry(&self, attempt: &AttemptRef, again: &Candidate, note: &Note) -> Result<Effect, LogError> {
        let changed = self
            .sql(
                "UPDATE record SET state = 0, epoch = NULL, due_ms = ?4, delay_ms = ?9, failures = ?5, failing_since_ms = ?6,
                        last_status = ?7, last_error = ?8
                 WHERE seq = ?1 AND state = 1 AND attempts = ?2 AND epoch = ?3",
            )?
            .execute(params![
                attempt.seq.0,
                attempt.attempts,
                to_db(attempt.epoch),
                to_db(again.due_ms),
                again.blame.map_or(0, |b| b.failures),
                again.blame.map(|b| to_db(b.since_ms)),
                note.status,
                note.error,
                to_db(again.delay_ms),
            ])?;
        Ok(done_if(changed))
    }

    fn hold(&self, attempt: &AttemptRef) -> Result<Effect, LogError> {
        let changed = self
            .sql(
                "UPDATE record SET state = 2, epoch = NULL, last_error = 'upstream-missing'
                 WHERE seq = ?1 AND state = 1 AND attempts = ?2 AND epoch = ?3",
            )?
            .execute(params![attempt.seq.0, attempt.attempts, to_db(attempt.epoch)])?;
        Ok(done_if(changed))
    }

    fn release(&mut self, lane: &Lane) -> Result<Effect, LogError> {
        let lane = self.lane_id(lane)?;
        self.sql("UPDATE record SET state = 0 WHERE lane = ?1 AND state = 2")?.execute([lane])?;
        Ok(Effect::Done)
    }

    fn finish(
        &self,
        attempt: &AttemptRef,
        end: End,
        at_ms: u64,
        note: &Note,
        response: Option<&NewResponse>,
    ) -> Result<Effect, LogError> {
        let Some(mut ended) = self.end_if(attempt.seq.0, Some(attempt), end, at_ms, Some(note))? else {
            return Ok(Effect::Stale);
        };
        if let Some(response) = response {
            ended.response = self.keep(attempt.seq.0, response)?;
        }
        Ok(Effect::Ended(Box::new(ended)))
    }

    /// Keeps a record's answer; returns what it counts for.
    fn keep(&self, seq: i64, response: &NewResponse) -> Result<u64, LogError> {
        let (kept, bytes) = (&response.kept, response.kept.bytes());
        self.sql(
            "INSERT INTO response (seq, lane, status, size, until_ms, headers, body)
             SELECT seq, lane, :status, :size, :until_ms, :headers, :body FROM record WHERE seq = :seq",
        )?
        .execute(named_params! {
            ":seq": seq,
            ":status": kept.status,
            ":size": to_db(bytes),
            ":until_ms": to_db(kept.until_ms),
            ":headers": kept.whole.as_ref().map(|whole| codec::encode(&whole.headers)),
            ":body": kept.whole.as_ref().map(|whole| &whole.body[..]),
        })?;
        Ok(bytes)
    }

    /// Deletes the answer that is kept for a record; returns what it counted for.
    fn drop_response(&self, seq: i64) -> Result<u64, LogError> {
        let size: Option<i64> = self
            .sql("DELETE FROM response WHERE seq = ?1 RETURNING size")?
            .query_row([seq], |row| row.get(0))
            .optional()?;
        if size.is_some() {
            self.erased.set(true);
        }
        Ok(size.map_or(0, from_db))
    }

    fn forget(&self, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        let seqs = self.seqs(
            "SELECT seq FROM response WHERE until_ms <= ?1 ORDER BY until_ms, seq LIMIT ?2",
            params![to_db(now_ms), limit_to_db(limit)],
        )?;
        let mut freed = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let (lane, size): (i64, i64) = self
                .sql("DELETE FROM response WHERE seq = ?1 RETURNING lane, size")?
                .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
            freed.push((self.lane_of(lane)?, from_db(size)));
            self.erased.set(true);
        }
        let next: Option<i64> =
            self.sql("SELECT min(until_ms) FROM response")?.query_row([], |row| row.get(0))?;
        Ok(Effect::Forgotten { freed, next_ms: next.map(from_db) })
    }

    /// Ends a record that is open, and brings the next one of its key to the front.
    fn end(&self, seq: i64, end: End, at_ms: u64, note: Option<&Note>) -> Result<Ended, LogError> {
        self.end_if(seq, None, end, at_ms, note)?
            .ok_or_else(|| LogError::Corrupt(format!("record {seq} is not there any more")))
    }

    /// The same, where an attempt is given only if that is the one under way.
    fn end_if(
        &self,
        seq: i64,
        attempt: Option<&AttemptRef>,
        end: End,
        at_ms: u64,
        note: Option<&Note>,
    ) -> Result<Option<Ended>, LogError> {
        let (state, reason, complete) = match end {
            End::Delivered { response_complete } => (DELIVERED, None, Some(response_complete)),
            End::Dead(reason) if reason.is_erased() => (ERASED, Some(reason_to_db(reason)), None),
            End::Dead(reason) => (DEAD, Some(reason_to_db(reason)), None),
        };
        let by_itself = matches!(end, End::Dead(reason) if reason.is_by_itself());
        let row = self
            .sql(
                "UPDATE record SET state = :state, open = 0, reason = :reason, complete = :complete, finished_ms = :at_ms, epoch = NULL,
                        front = 0,
                        pauses = CASE WHEN :by_itself AND okey IS NOT NULL THEN on_dead ELSE 0 END,
                        last_status = CASE WHEN :noted THEN :status ELSE last_status END,
                        last_error = CASE WHEN :noted THEN :error ELSE last_error END
                 WHERE seq = :seq AND (:attempts IS NULL OR (state = 1 AND attempts = :attempts AND epoch = :epoch))
                 RETURNING lane, okey, size, id, scope, pauses, accepted_ms",
            )?
            .query_row(
                named_params! {
                    ":seq": seq,
                    ":state": state,
                    ":reason": reason,
                    ":complete": complete,
                    ":at_ms": to_db(at_ms),
                    ":by_itself": by_itself,
                    ":noted": note.is_some(),
                    ":status": note.and_then(|n| n.status),
                    ":error": note.and_then(|n| n.error.as_deref()),
                    ":attempts": attempt.map(|attempt| attempt.attempts),
                    ":epoch": attempt.map(|attempt| to_db(attempt.epoch)),
                },
                |row| {
                    let id = RecordId::from_bytes(row.get(3)?);
                    let key: Option<String> = row.get(1)?;
                    let (lane, size) = (row.get::<_, i64>(0)?, from_db(row.get(2)?));
                    Ok((lane, key, size, id, scope(row, 4)?, row.get(5)?, from_db(row.get(6)?)))
                },
            )
            .optional()?;
        let Some((lane, key, size, id, scope, pauses, accepted_ms)) = row else { return Ok(None) };
        let delivered = matches!(end, End::Delivered { .. });
        let erased = state != DEAD;
        let freed = if erased { self.erase(seq)? } else { None };
        let lane_name = self.lane_of(lane)?;
        let promoted = match &key {
            Some(key) => self.promote(lane, &lane_name, key)?,
            None => None,
        };
        let released = scope.filter(|_| !has_key(end.state()));
        Ok(Some(Ended {
            id,
            lane: lane_name,
            key,
            size,
            delivered,
            erased,
            accepted_ms,
            freed,
            promoted,
            released,
            response: 0,
            pauses,
        }))
    }

    /// Deletes a record's content; returns the file that held its body.
    fn erase(&self, seq: i64) -> Result<Option<crate::spool::BodyName>, LogError> {
        let file: Option<Option<String>> = self
            .sql("DELETE FROM content WHERE seq = ?1 RETURNING body_file")?
            .query_row([seq], |row| row.get(0))
            .optional()?;
        if file.is_some() {
            self.erased.set(true);
        }
        Ok(file.flatten().and_then(|name| name.parse().ok()))
    }

    fn promote(&self, lane: i64, name: &Lane, key: &str) -> Result<Option<Candidate>, LogError> {
        let sql = format!(
            "UPDATE record SET front = 1
             WHERE front = 0 AND seq = (SELECT min(seq) FROM record
                                        WHERE lane = ?1 AND okey = ?2 AND okey IS NOT NULL AND open = 1)
               AND NOT EXISTS (SELECT 1 FROM record AS dead
                               WHERE dead.lane = ?1 AND dead.okey = ?2 AND dead.pauses = 1 AND dead.seq < record.seq)
             RETURNING {CANDIDATE}"
        );
        Ok(self.sql(&sql)?.query_row(params![lane, key], |row| candidate(row, name)).optional()?)
    }

    /// The key of a dead record that paused it and is gone, or is so no more.
    fn unpause(&self, lane: i64, key: String, records: u64) -> Result<Unpaused, LogError> {
        let name = self.lane_of(lane)?;
        let promoted = self.promote(lane, &name, &key)?;
        Ok(Unpaused { lane: name, key, records, promoted })
    }

    fn expire(&self, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        let due = self.seqs(
            "SELECT seq FROM record WHERE open = 1 AND state <> 1 AND expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2",
            params![to_db(now_ms), limit_to_db(limit)],
        )?;
        let end = End::Dead(DeadReason::Expired);
        let ended: Vec<_> =
            due.into_iter().map(|seq| self.end(seq, end, now_ms, None)).collect::<Result<_, _>>()?;
        self.note_deeds(&deed::expired(&ended), now_ms)?;
        let next: Option<i64> = self
            .sql("SELECT expires_ms FROM record WHERE open = 1 AND state <> 1 ORDER BY expires_ms LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        Ok(Effect::Expired { ended, next_ms: next.map(from_db) })
    }

    fn disown(&self, id: &[u8; 16], at_ms: u64) -> Result<Effect, LogError> {
        let seq: Option<i64> = self
            .sql("SELECT seq FROM record WHERE id = ?1 AND state < 3")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        match seq {
            None => Ok(Effect::Stale),
            Some(seq) => {
                let end = End::Dead(DeadReason::Unconfirmed);
                Ok(Effect::Ended(Box::new(self.end(seq, end, at_ms, None)?)))
            }
        }
    }

    fn recover(&self, epoch: u64, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        self.sql("UPDATE record SET state = 0 WHERE state = 2")?.execute([])?;
        let orphaned = self.seqs(
            "SELECT seq FROM record WHERE state = 1 AND epoch < ?1 ORDER BY seq LIMIT ?2",
            params![to_db(epoch), limit_to_db(limit)],
        )?;
        let note = Note { status: None, error: Some("the node stopped during the delivery".into()) };
        let (mut requeued, mut ended) = (0, Vec::new());
        for seq in orphaned {
            let again = self
                .sql(
                    "UPDATE record SET state = 0, epoch = NULL, last_status = NULL, last_error = ?2
                     WHERE seq = ?1 AND repeat_safe = 1",
                )?
                .execute(params![seq, note.error])?;
            if again == 1 {
                requeued += 1;
            } else {
                ended.push(self.end(seq, End::Dead(DeadReason::Indeterminate), now_ms, Some(&note))?);
            }
        }
        Ok(Effect::Recovered { requeued, ended })
    }

    fn prune(
        &self,
        now_ms: u64,
        (delivered_before_ms, dead_before_ms): (u64, u64),
        limit: usize,
    ) -> Result<Effect, LogError> {
        let mut seqs = Vec::new();
        for (state, before) in
            [(DELIVERED, delivered_before_ms), (ERASED, delivered_before_ms), (DEAD, dead_before_ms)]
        {
            seqs.extend(self.seqs(
                "SELECT seq FROM record WHERE state = ?1 AND state >= 3 AND finished_ms < ?2 ORDER BY finished_ms LIMIT ?3",
                params![state, to_db(before), limit_to_db(limit - seqs.len())],
            )?);
        }
        self.delete(seqs, deed::Why::Retention, now_ms)
    }

    fn trim(&self, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        let mut seqs = Vec::new();
        for state in [DELIVERED, ERASED] {
            seqs.extend(self.seqs(
                "SELECT seq FROM record WHERE state = ?1 AND state >= 3 ORDER BY finished_ms LIMIT ?2",
                params![state, limit_to_db(limit - seqs.len())],
            )?);
        }
        self.delete(seqs, deed::Why::TooMany, now_ms)
    }

    fn clear(&self, tenant: &TenantName, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        let seqs = self.seqs(
            "SELECT seq FROM record INDEXED BY record_lane
             WHERE lane IN (SELECT id FROM lane WHERE tenant = ?1) AND state >= 3 LIMIT ?2",
            params![tenant.as_str(), limit_to_db(limit)],
        )?;
        self.delete(seqs, deed::Why::TenantDeleted, now_ms)
    }

    fn delete(&self, seqs: Vec<i64>, why: deed::Why, now_ms: u64) -> Result<Effect, LogError> {
        let mut pruned = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let freed = self.erase(seq)?;
            let response = self.drop_response(seq)?;
            let sql = format!(
                "DELETE FROM record WHERE seq = ?1
                 RETURNING lane, size, state, {HAS_KEY}, scope, accepted_ms, iif(pauses, okey, NULL)"
            );
            let (lane, size, state, has_key, scope, accepted_ms, paused): (
                i64,
                i64,
                u8,
                bool,
                _,
                i64,
                Option<String>,
            ) = self.sql(&sql)?.query_row([seq], |row| {
                let scope = scope(row, 4)?;
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, scope, row.get(5)?, row.get(6)?))
            })?;
            pruned.push(Pruned {
                lane: self.lane_of(lane)?,
                size: from_db(size),
                receipt: state != DEAD,
                accepted_ms: from_db(accepted_ms),
                freed,
                released: scope.filter(|_| has_key),
                response,
                unpaused: paused.map(|key| self.unpause(lane, key, 1)).transpose()?,
            });
        }
        self.note_deeds(&deed::deleted(&pruned, why), now_ms)?;
        Ok(Effect::Pruned {
            pruned,
            oldest_delivered_ms: oldest_receipt(self.tx)?,
            oldest_dead_ms: oldest_finish(self.tx, DEAD)?,
        })
    }

    fn seqs(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<i64>, LogError> {
        let mut statement = self.sql(sql)?;
        let rows = statement.query_map(params, |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn done_if(changed: usize) -> Effect {
    if changed == 1 { Effect::Done } else { Effect::Stale }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};
    use crate::{
        log::conformance::{append, lane},
        response::{KeptResponse, WholeResponse},
    };

    fn open(dir: &tempfile::TempDir) -> SqliteLog {
        let mut log = SqliteLog::open(&dir.path().join("queue.db")).unwrap();
        log.take_over().unwrap();
        log
    }

    fn appends(numbers: std::ops::Range<u64>) -> Vec<Change> {
        numbers.map(|n| Change::Append(append(n, None))).collect()
    }

    fn count(log: &SqliteLog) -> usize {
        log.reader().unwrap().window(&lane("acme"), usize::MAX).unwrap().len()
    }

    #[test]
    fn every_connection_is_as_durable_as_it_must_be() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir);
        let connection = &log.open.as_ref().unwrap().connection;
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(pragma("synchronous"), 2, "FULL");
        assert_eq!(pragma("wal_autocheckpoint"), 0);
        assert_eq!(pragma("secure_delete"), 1, "ON");
        assert_eq!(pragma("application_id"), APPLICATION_ID);
        assert!(connection.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG).unwrap());
    }

    #[test]
    fn a_full_disk_takes_nothing_of_the_group_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        log.commit(&appends(0..5)).unwrap();
        let connection = &log.open.as_ref().unwrap().connection;
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        connection.pragma_update(None, "max_page_count", pages + 2).unwrap();
        let error = log.commit(&appends(5..200)).unwrap_err();
        assert!(matches!(error, LogError::Full(_)), "{error}");
        let error = log.commit(&appends(200..201)).unwrap_err();
        assert!(error.to_string().contains("not reopened"), "{error}");
        assert!(log.maintain().is_err());
        log.reopen().unwrap();
        assert_eq!(count(&log), 5);
        log.commit(&appends(5..200)).unwrap();
        assert_eq!(count(&log), 200);
    }

    #[test]
    fn a_log_of_another_version_or_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.db");
        drop(open(&dir));
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
        let error = SqliteLog::open(&path).err().unwrap();
        let expected = format!("schema version 9, expected {SCHEMA_VERSION}");
        assert!(error.to_string().contains(&expected), "{error}");
        std::fs::write(&path, "this is no database, and long enough to be seen as none at all. ".repeat(20))
            .unwrap();
        let _ = std::fs::remove_file(dir.path().join("queue.db-wal"));
        assert!(matches!(SqliteLog::open(&path), Err(LogError::Corrupt(_))));
    }

    #[test]
    fn a_log_of_the_version_before_is_opened_and_keeps_what_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(SCHEMAS[0]).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection
            .execute_batch(
                "INSERT INTO lane VALUES (1, 'acme', 'api');
                 INSERT INTO record (seq, id, secret, lane, front, state, repeat_safe, size, accepted_ms, due_ms, expires_ms)
                 VALUES (7, x'00000000000000000000000000000001', zeroblob(32), 1, 1, 0, 1, 600, 1000, 1000, 50000);
                 INSERT INTO content VALUES (7, 3, 'POST', '/a?b', 'acme.test', x'01', x'2a', NULL, 1, zeroblob(16),
                                             zeroblob(8), 0, 'r');",
            )
            .unwrap();
        drop(connection);
        let mut log = open(&dir);
        assert_eq!(count(&log), 1);
        assert!(log.reader().unwrap().paused().unwrap().is_empty());
        let epoch = log.epoch();
        let effects = log.commit(&[Change::Begin { seq: Seq(7), attempts: 0, epoch }]).unwrap();
        assert_eq!(effects, [Effect::Done]);
        drop(log);
        drop(open(&dir));
        let version = |c: Connection| c.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        assert_eq!(version(Connection::open(&path).unwrap()).unwrap(), SCHEMA_VERSION);
    }

    fn by_hand(log: &mut SqliteLog, act: Act) -> Effect {
        let (tenant, actor) = ("acme".parse().unwrap(), "operator".into());
        let intervention = Intervention { tenant, actor, at_ms: 1, act };
        log.commit(&[Change::Intervene(Box::new(intervention))]).unwrap().remove(0)
    }

    #[test]
    fn a_page_and_a_purge_look_at_so_many_rows_and_say_where_they_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        log.commit(&appends(0..LOOK as u64 + 5)).unwrap();
        let mut reader = log.reader().unwrap();
        let mut page = |after| {
            let query = RecordQuery {
                tenant: "acme".parse().unwrap(),
                upstream: None,
                state: Some(StateName::Dead),
                ordering_key: None,
                after,
                limit: 10,
            };
            reader.records(&query).unwrap()
        };
        assert_eq!(page(0), RecordPage { records: vec![], next: Some(LOOK as u64) });
        assert_eq!(page(LOOK as u64), RecordPage::default());
        let purge = Act::Purge {
            upstream: "api".parse().unwrap(),
            states: vec![StateName::Dead],
            after: Seq(0),
            until: None,
            limit: 10,
        };
        let look = limit_to_db(LOOK);
        let stopped = Intervened { next: Some((Seq(look), Seq(look + 5))), ..Intervened::default() };
        assert_eq!(by_hand(&mut log, purge), Effect::Intervened(Box::new(stopped)));
    }

    #[test]
    fn the_audit_keeps_so_many_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        for seq in [1, 2, AUDIT_ROWS] {
            let connection = &log.open.as_ref().unwrap().connection;
            let row = "INSERT INTO audit VALUES (?1, 1, 'operator', 'queue.pause', 'acme', 'api', NULL, 0, '', NULL, NULL)";
            connection.execute(row, [to_db(seq)]).unwrap();
        }
        by_hand(&mut log, Act::Pause { upstream: "api".parse().unwrap(), paused: true });
        let rows = log.reader().unwrap().audit(None, 0, 100).unwrap();
        let seqs: Vec<_> = rows.iter().map(|row| row.seq).collect();
        assert_eq!(seqs, [2, AUDIT_ROWS, AUDIT_ROWS + 1]);
    }

    #[test]
    fn a_log_that_another_owner_took_over_is_not_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        let _other = open(&dir);
        let error = log.reopen().unwrap_err();
        assert!(error.to_string().contains("another owner"), "{error}");
    }

    /// Whether these bytes are in any file of the folder.
    fn anywhere(dir: &tempfile::TempDir, bytes: &[u8]) -> bool {
        let files =
            std::fs::read_dir(dir.path()).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
        files.into_iter().any(|file| memchr::memmem::find(&file, bytes).is_some())
    }

    #[test]
    fn what_was_erased_is_in_no_file_a_few_seconds_later() {
        const CANARY: &[u8] = b"c4n4ry";
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        // Of all sizes, so that they share pages and take many; every third record stays.
        let secret = |n: u64| !n.is_multiple_of(3);
        let text = |n: u64| if secret(n) { "c4n4ry" } else { "stays" };
        let records = |numbers: std::ops::Range<u64>| {
            numbers.map(|n| {
                let mut append = append(3 * n + 1, None);
                append.content.target = format!("/orders?token={}", text(n));
                append.content.headers.push(("x-key".into(), text(n).into()));
                let length = usize::try_from(n * 7919 % 30_000).unwrap()
                    / [1, 50, 500][usize::try_from(n % 3).unwrap()];
                append.content.body = StoredBody::Inline(text(n).repeat(1 + length / 5).into());
                Change::Append(append)
            })
        };
        for group in 0..6 {
            log.commit(&records(group * 50..(group + 1) * 50).collect::<Vec<_>>()).unwrap();
        }
        assert!(anywhere(&dir, CANARY));
        let epoch = log.epoch();
        let deliver = |n: u64| {
            let seq = Seq(i64::try_from(n).unwrap() + 1);
            let attempt = AttemptRef { seq, attempts: 1, epoch };
            let end = End::Delivered { response_complete: true };
            let begin = Change::Begin { seq, attempts: 0, epoch };
            let whole = WholeResponse { headers: Vec::new(), body: "c4n4ry".repeat(100).into() };
            let kept = KeptResponse { status: 200, until_ms: 2, whole: Some(whole) };
            let response = Some(Box::new(NewResponse { lane: lane("acme"), kept }));
            [begin, Change::Finish { attempt, end, at_ms: 1, note: Note::default(), response }]
        };
        // In an order that leaves holes everywhere.
        let order: Vec<_> = (0..300).map(|n| n * 83 % 300).filter(|n| secret(*n)).collect();
        for page in order.chunks(7) {
            log.commit(&page.iter().flat_map(|n| deliver(*n)).collect::<Vec<_>>()).unwrap();
            log.maintain().unwrap();
        }
        log.commit(&[Change::Forget { now_ms: 2, limit: 1000 }]).unwrap();
        let until = std::time::Instant::now() + 6 * ERASE_AFTER;
        while anywhere(&dir, CANARY) {
            assert!(std::time::Instant::now() < until, "it is still there");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(anywhere(&dir, b"stays"));
        assert_eq!(count(&log), 100);
        // A former owner's leavings go as well.
        log.commit(&records(300..302).collect::<Vec<_>>()).unwrap();
        assert!(anywhere(&dir, CANARY));
        log.commit(&deliver(301)).unwrap();
        log.commit(&deliver(300)).unwrap();
        log.commit(&[Change::Forget { now_ms: 2, limit: 1000 }]).unwrap();
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap()) {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
        assert!(anywhere(&copy, CANARY), "as a crash would leave it");
        let _log = open(&copy);
        let until = std::time::Instant::now() + 6 * ERASE_AFTER;
        while anywhere(&copy, CANARY) {
            assert!(std::time::Instant::now() < until, "it is still there after a restart");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[test]
    fn the_wal_stays_bounded_however_much_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        // 12 MiB of bodies in groups, each body erased by the next group.
        let big = |n| {
            let mut append = append(n * 3 + 1, None);
            append.content.body = StoredBody::Inline(vec![7; 30_000].into());
            Change::Append(append)
        };
        let (mut largest, epoch) = (0, log.epoch());
        for group in 0..20_i64 {
            let mut changes: Vec<_> = (0..20).map(|n| big(u64::try_from(group * 20 + n).unwrap())).collect();
            for seq in (group * 20 - 19..=group * 20).filter(|seq| *seq > 0).map(Seq) {
                let attempt = AttemptRef { seq, attempts: 1, epoch };
                let end = End::Delivered { response_complete: true };
                changes.push(Change::Begin { seq, attempts: 0, epoch });
                let note = Note::default();
                changes.push(Change::Finish { attempt, end, at_ms: 1, note, response: None });
            }
            log.commit(&changes).unwrap();
            log.maintain().unwrap();
            // The checkpointer works beside us; let it come to its end, as it does between real groups.
            log.open.as_ref().unwrap().checkpointer.wait();
            largest = largest.max(log.open.as_ref().unwrap().wal_pages.load(Ordering::Relaxed));
        }
        assert!(largest < 2 * WAL_PAGES + 500, "{largest} pages");
        let database = std::fs::metadata(dir.path().join("queue.db")).unwrap().len();
        assert!(database < 6 << 20, "erased bodies make room for new ones: {database} bytes");
    }
}
