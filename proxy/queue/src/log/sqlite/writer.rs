//! One transaction's changes: each of the log's, as SQL.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use beamline_model::{OnDead, TenantName};
use rusqlite::{CachedStatement, OptionalExtension as _, Row, Transaction, named_params, params};

use super::{
    super::{
        Append, AttemptRef, Candidate, Change, Content, Effect, End, Ended, LogError, Note, Pruned, Unpaused,
        codec, deed, has_key,
    },
    content::{self, Found, content},
    rows::*,
};
use crate::{
    body::StoredBody,
    fault::Fault,
    record::{DeadReason, Lane, RecordId, Seq},
    response::NewResponse,
};

/// Lanes that were met: their rows are never changed nor deleted.
#[derive(Default)]
pub(super) struct Lanes {
    ids: HashMap<Lane, i64>,
    names: RefCell<HashMap<i64, Lane>>,
}

/// One transaction's hands.
pub(super) struct Writer<'a> {
    pub(super) tx: &'a Transaction<'a>,
    pub(super) lanes: &'a mut Lanes,
    /// Whether any content was.
    pub(super) erased: Cell<bool>,
}

impl Writer<'_> {
    pub(super) fn sql(&self, sql: &str) -> Result<CachedStatement<'_>, LogError> {
        Ok(self.tx.prepare_cached(sql)?)
    }

    pub(super) fn apply(&mut self, change: &Change) -> Result<Effect, LogError> {
        match change {
            Change::Append(append) => self.append(append),
            Change::Begin { seq, attempts, epoch } => match self.begin(*seq, *attempts, *epoch)? {
                true => Ok(Effect::Begun(self.to_send(*seq)?)),
                false => Ok(Effect::Stale),
            },
            Change::Retry { attempt, again, note } => self.retry(attempt, again, note),
            Change::Miss { attempt, again, note } => {
                match self.begin(attempt.seq, attempt.attempts.saturating_sub(1), attempt.epoch)? {
                    true => self.retry(attempt, again, note),
                    false => Ok(Effect::Stale),
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

    pub(super) fn lane_id(&mut self, lane: &Lane) -> Result<i64, LogError> {
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

    pub(super) fn lane_of(&self, id: i64) -> Result<Lane, LogError> {
        let mut names = self.lanes.names.borrow_mut();
        if let Some(lane) = names.get(&id) {
            return Ok(lane.clone());
        }
        let lane = lane_by_id(self.tx, id)?;
        names.insert(id, lane.clone());
        Ok(lane)
    }

    pub(super) fn append(&mut self, append: &Append) -> Result<Effect, LogError> {
        if let Some(key_use) = &append.key_use
            && let Some(holder) = holder(self.tx, &key_use.scope)?
        {
            return Ok(Effect::KeyTaken(holder));
        }
        let lane = self.lane_id(&append.lane)?;
        let key = append.ordering_key.as_deref();
        let front = Fault::IgnoreOrder.is_on() || self.is_front(lane, key, i64::MAX)?;
        // By number, here and in all that is done for each record: SQLite finds names by comparing them.
        let seq = self
            .sql(
                "INSERT INTO record (id, secret, lane, okey, on_dead, front, state, repeat_safe, size, accepted_ms, delay_ms, due_ms,
                                     expires_ms, scope, fingerprint)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?
            .insert(params![
                append.id.as_bytes(),
                append.secret.0,
                lane,
                key,
                append.on_dead == OnDead::PauseKey,
                front,
                append.repeat_safe,
                to_db(append.size),
                to_db(append.accepted_ms),
                to_db(append.delay_ms),
                to_db(append.due_ms()),
                to_db(append.expires_ms),
                append.key_use.map(|key_use| key_use.scope.0),
                append.key_use.map(|key_use| key_use.fingerprint.0),
            ])?;
        let content = &append.content;
        let (body, file, len) = match &content.body {
            StoredBody::Inline(bytes) => (Some(&bytes[..]), None, bytes.len() as u64),
            StoredBody::File { name, len } => (None, Some(name.to_string()), *len),
        };
        self.sql(
            "INSERT INTO content (seq, revision, method, target, host, headers, sealed, body, body_file, body_len, trace_id,
                                  span_id, sampled, request_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            seq,
            to_db(content.revision),
            content.method,
            content.target,
            content.host,
            codec::encode(&content.headers),
            content.sealed.as_deref(),
            body,
            file,
            to_db(len),
            content.trace.trace_id,
            content.trace.span_id,
            content.trace.sampled,
            content.request_id,
        ])?;
        Ok(Effect::Appended { seq: Seq(seq), front })
    }

    /// Whether none of the key is before this place that a record there has to wait for.
    pub(super) fn is_front(&self, lane: i64, key: Option<&str>, place: i64) -> Result<bool, LogError> {
        let Some(key) = key else { return Ok(true) };
        let open = self
            .sql("SELECT 1 FROM record WHERE lane = ?1 AND okey = ?2 AND okey IS NOT NULL AND open = 1 AND seq < ?3 LIMIT 1")?
            .exists(params![lane, key, place])?;
        Ok(!open && !self.is_paused_before(lane, key, place)?)
    }

    /// Whether a dead record of the key before this place pauses it.
    fn is_paused_before(&self, lane: i64, key: &str, place: i64) -> Result<bool, LogError> {
        Ok(self
            .sql("SELECT 1 FROM record WHERE lane = ?1 AND okey = ?2 AND pauses = 1 AND seq < ?3 LIMIT 1")?
            .exists(params![lane, key, place])?)
    }

    /// Whether the record is marked now.
    fn begin(&self, seq: Seq, attempts: u32, epoch: u64) -> Result<bool, LogError> {
        let begun = self
            .sql(
                "UPDATE record SET state = 1, attempts = attempts + 1, epoch = ?3
                 WHERE seq = ?1 AND state = 0 AND front = 1 AND attempts = ?2
                   AND NOT EXISTS (SELECT 1 FROM lane WHERE id = record.lane AND paused_ms IS NOT NULL)",
            )?
            .execute(params![seq.0, attempts, to_db(epoch)])?;
        if begun == 1 {
            return Ok(true);
        }
        // The same change once more, after a commit that failed and yet was there.
        Ok(self
            .sql("SELECT 1 FROM record WHERE seq = ?1 AND state = 1 AND attempts = ?2 AND epoch = ?3")?
            .exists(params![seq.0, attempts + 1, to_db(epoch)])?)
    }

    /// What is to be sent now. Content that makes no sense is as good as none: it is told, and the log goes on.
    fn to_send(&self, seq: Seq) -> Result<Option<Box<Content>>, LogError> {
        Ok(match content(self.tx, content::BY_SEQ, seq.0)? {
            Found::Content(content) => Some(content),
            Found::Nothing => None,
            Found::Unreadable(why) => {
                tracing::error!(seq = seq.0, why, "the content of a queued record cannot be read");
                None
            }
        })
    }

    pub(super) fn retry(
        &self,
        attempt: &AttemptRef,
        again: &Candidate,
        note: &Note,
    ) -> Result<Effect, LogError> {
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

    pub(super) fn hold(&self, attempt: &AttemptRef) -> Result<Effect, LogError> {
        let changed = self
            .sql(
                "UPDATE record SET state = 2, epoch = NULL, last_error = 'upstream-missing'
                 WHERE seq = ?1 AND state = 1 AND attempts = ?2 AND epoch = ?3",
            )?
            .execute(params![attempt.seq.0, attempt.attempts, to_db(attempt.epoch)])?;
        Ok(done_if(changed))
    }

    pub(super) fn release(&mut self, lane: &Lane) -> Result<Effect, LogError> {
        let lane = self.lane_id(lane)?;
        self.sql("UPDATE record SET state = 0 WHERE lane = ?1 AND state = 2")?.execute([lane])?;
        Ok(Effect::Done)
    }

    pub(super) fn finish(
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
    pub(super) fn keep(&self, seq: i64, response: &NewResponse) -> Result<u64, LogError> {
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
    pub(super) fn drop_response(&self, seq: i64) -> Result<u64, LogError> {
        let size: Option<i64> = self
            .sql("DELETE FROM response WHERE seq = ?1 RETURNING size")?
            .query_row([seq], |row| row.get(0))
            .optional()?;
        if size.is_some() {
            self.erased.set(true);
        }
        Ok(size.map_or(0, from_db))
    }

    pub(super) fn forget(&self, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
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
    pub(super) fn end(&self, seq: i64, end: End, at_ms: u64, note: Option<&Note>) -> Result<Ended, LogError> {
        self.end_if(seq, None, end, at_ms, note)?
            .ok_or_else(|| LogError::Corrupt(format!("record {seq} is not there any more")))
    }

    /// The same, where an attempt is given only if that is the one under way.
    pub(super) fn end_if(
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
        // Read, then written: what RETURNING gives passes through a table of its own each time, which costs more.
        let found = |row: &Row<'_>| {
            let id = RecordId::from_bytes(row.get(3)?);
            let (key, on_dead): (Option<String>, bool) = (row.get(1)?, row.get(5)?);
            let (lane, size) = (row.get::<_, i64>(0)?, from_db(row.get(2)?));
            Ok((lane, key, size, id, scope(row, 4)?, on_dead, from_db(row.get(6)?)))
        };
        let row = match attempt {
            None => self
                .sql("SELECT lane, okey, size, id, scope, on_dead, accepted_ms FROM record WHERE seq = ?1")?
                .query_row([seq], found),
            Some(attempt) => self
                .sql(
                    "SELECT lane, okey, size, id, scope, on_dead, accepted_ms FROM record
                     WHERE seq = ?1 AND state = 1 AND attempts = ?2 AND epoch = ?3",
                )?
                .query_row(params![seq, attempt.attempts, to_db(attempt.epoch)], found),
        };
        let Some((lane, key, size, id, scope, on_dead, accepted_ms)) = row.optional()? else {
            return Ok(None);
        };
        let pauses = by_itself && key.is_some() && on_dead;
        match note {
            None => self
                .sql(
                    "UPDATE record SET state = ?2, open = 0, reason = ?3, complete = ?4, finished_ms = ?5, epoch = NULL, front = 0,
                            pauses = ?6
                     WHERE seq = ?1",
                )?
                .execute(params![seq, state, reason, complete, to_db(at_ms), pauses])?,
            Some(note) => self
                .sql(
                    "UPDATE record SET state = ?2, open = 0, reason = ?3, complete = ?4, finished_ms = ?5, epoch = NULL, front = 0,
                            pauses = ?6, last_status = ?7, last_error = ?8
                     WHERE seq = ?1",
                )?
                .execute(params![
                    seq,
                    state,
                    reason,
                    complete,
                    to_db(at_ms),
                    pauses,
                    note.status,
                    note.error
                ])?,
        };
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
    pub(super) fn erase(&self, seq: i64) -> Result<Option<crate::spool::BodyName>, LogError> {
        let file: Option<Option<String>> = self
            .sql("SELECT body_file FROM content WHERE seq = ?1 AND body IS NULL")?
            .query_row([seq], |row| row.get(0))
            .optional()?;
        if self.sql("DELETE FROM content WHERE seq = ?1")?.execute([seq])? > 0 {
            self.erased.set(true);
        }
        Ok(file.flatten().and_then(|name| name.parse().ok()))
    }

    pub(super) fn promote(&self, lane: i64, name: &Lane, key: &str) -> Result<Option<Candidate>, LogError> {
        let sql = format!(
            "SELECT {CANDIDATE}, front FROM record
             WHERE lane = ?1 AND okey = ?2 AND okey IS NOT NULL AND open = 1 ORDER BY seq LIMIT 1"
        );
        let found = |row: &Row<'_>| Ok((candidate(row, name)?, row.get::<_, bool>("front")?));
        let first = self.sql(&sql)?.query_row(params![lane, key], found).optional()?;
        let Some((next, false)) = first else { return Ok(None) };
        if self.is_paused_before(lane, key, next.seq.0)? {
            return Ok(None);
        }
        self.sql("UPDATE record SET front = 1 WHERE seq = ?1")?.execute([next.seq.0])?;
        Ok(Some(next))
    }

    /// The key of a dead record that paused it and is gone, or is so no more.
    pub(super) fn unpause(&self, lane: i64, key: String, records: u64) -> Result<Unpaused, LogError> {
        let name = self.lane_of(lane)?;
        let promoted = self.promote(lane, &name, &key)?;
        Ok(Unpaused { lane: name, key, records, promoted })
    }

    pub(super) fn expire(&self, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
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

    pub(super) fn disown(&self, id: &[u8; 16], at_ms: u64) -> Result<Effect, LogError> {
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

    pub(super) fn recover(&self, epoch: u64, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
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

    pub(super) fn prune(
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

    pub(super) fn trim(&self, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        let mut seqs = Vec::new();
        for state in [DELIVERED, ERASED] {
            seqs.extend(self.seqs(
                "SELECT seq FROM record WHERE state = ?1 AND state >= 3 ORDER BY finished_ms LIMIT ?2",
                params![state, limit_to_db(limit - seqs.len())],
            )?);
        }
        self.delete(seqs, deed::Why::TooMany, now_ms)
    }

    pub(super) fn clear(&self, tenant: &TenantName, now_ms: u64, limit: usize) -> Result<Effect, LogError> {
        let seqs = self.seqs(
            "SELECT seq FROM record INDEXED BY record_lane
             WHERE lane IN (SELECT id FROM lane WHERE tenant = ?1) AND state >= 3 LIMIT ?2",
            params![tenant.as_str(), limit_to_db(limit)],
        )?;
        self.delete(seqs, deed::Why::TenantDeleted, now_ms)
    }

    pub(super) fn delete(&self, seqs: Vec<i64>, why: deed::Why, now_ms: u64) -> Result<Effect, LogError> {
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

    pub(super) fn seqs(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<i64>, LogError> {
        let mut statement = self.sql(sql)?;
        let rows = statement.query_map(params, |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn done_if(changed: usize) -> Effect {
    if changed == 1 { Effect::Done } else { Effect::Stale }
}
