//! What is done by hand: each act and its audit row in the transaction of the group.

use rusqlite::{OptionalExtension as _, named_params, params};

use super::{
    super::{
        deed::{Deed, NODE},
        *,
    },
    rows::*,
    writer::Writer,
};
use crate::record::{Lane, RecordId, Seq, State};

impl Writer<'_> {
    pub(super) fn intervene(&mut self, what: &Intervention) -> Result<Effect, LogError> {
        match &what.act {
            Act::Cancel { id } | Act::Discard { id } | Act::Requeue { id, .. } => self.one(what, *id),
            Act::Purge { upstream, states, after, until, limit } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                self.purge(what, &lane, states, *after, *until, *limit)
            }
            Act::Pause { upstream, paused } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                self.pause(what, &lane, *paused)
            }
            Act::Rate { upstream, rate } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                self.rate(what, &lane, *rate)
            }
            Act::ResumeKey { upstream, key, limit } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                self.resume_key(what, &lane, key, *limit)
            }
            Act::Export { upstream, records } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                self.audit(what, &lane, None, *records, BODIES)?;
                Ok(Effect::Intervened(Box::default()))
            }
        }
    }

    fn one(&mut self, what: &Intervention, id: RecordId) -> Result<Effect, LogError> {
        let found = self
            .sql(
                "SELECT seq, state, reason, complete, upstream FROM record JOIN lane ON lane.id = record.lane
                 WHERE record.id = ?1 AND tenant = ?2",
            )?
            .query_row(params![id.as_bytes(), what.tenant.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get::<_, String>(4)?))
            })
            .optional()?;
        let Some((seq, state, reason, complete, upstream)) = found else {
            return Ok(Effect::Refused(Refused::Unknown));
        };
        let state = state_from_db(state, reason, complete)?;
        if let Err(refused) = what.act.permit(state) {
            return Ok(Effect::Refused(refused));
        }
        let mut done = Intervened::default();
        if let Act::Requeue { .. } = what.act {
            done.requeued = Some(self.requeue(seq, state, what.at_ms)?);
        } else {
            self.discard(seq, state, what, &mut done)?;
        }
        let lane = lane(what.tenant.as_str(), &upstream)?;
        self.audit(what, &lane, Some(id), 1, &format!("was {state}"))?;
        Ok(Effect::Intervened(Box::new(done)))
    }

    /// Ends an open record, or erases a dead letter.
    fn discard(
        &self,
        seq: i64,
        state: State,
        what: &Intervention,
        done: &mut Intervened,
    ) -> Result<(), LogError> {
        let reason = what.act.reason();
        if state.is_open() {
            done.ended.push(self.end(seq, End::Dead(reason), what.at_ms, None)?);
            return Ok(());
        }
        let freed = self.erase(seq)?;
        let response = self.drop_response(seq)?;
        let paused: Option<String> = self
            .sql("SELECT okey FROM record WHERE seq = ?1 AND pauses = 1")?
            .query_row([seq], |row| row.get(0))
            .optional()?;
        let (lane, size, scope): (i64, i64, _) = self
            .sql(
                "UPDATE record SET state = ?2, reason = ?3, finished_ms = ?4, pauses = 0 WHERE seq = ?1
                 RETURNING lane, size, scope",
            )?
            .query_row(params![seq, ERASED, reason_to_db(reason), to_db(what.at_ms)], |row| {
                Ok((row.get(0)?, row.get(1)?, scope(row, 2)?))
            })?;
        let released = scope.filter(|_| has_key(state));
        let unpaused = paused.map(|key| self.unpause(lane, key, 1)).transpose()?;
        let (lane, size) = (self.lane_of(lane)?, from_db(size));
        done.erased.push(Erased { lane, size, freed, released, response, unpaused });
        Ok(())
    }

    /// A dead letter is queued again: before those that wait because of it, else behind everything that is in the log. It
    /// has its client's key again, unless another record has it by now.
    fn requeue(&self, seq: i64, state: State, now_ms: u64) -> Result<Requeued, LogError> {
        let response = self.drop_response(seq)?;
        let retaken = if has_key(state) { None } else { self.retake_key(seq)? };
        let (lane, key, size, accepted_ms, expires_ms): (i64, Option<String>, i64, i64, i64) = self
            .sql("SELECT lane, okey, size, accepted_ms, expires_ms FROM record WHERE seq = ?1")?
            .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
        let expires_ms = expires_again(from_db(accepted_ms), from_db(expires_ms), now_ms);
        let paused = self.sql("SELECT 1 FROM record WHERE seq = ?1 AND pauses = 1")?.exists([seq])?;
        // The row's number is its place. That of the last append is counted here too, so that none is used twice.
        let new: i64 = if paused {
            seq
        } else {
            self.sql("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'record' RETURNING seq")?
                .query_row([], |row| row.get(0))?
        };
        let front = self.is_front(lane, key.as_deref(), new)?;
        let name = self.lane_of(lane)?;
        let sql = format!(
            "UPDATE record SET seq = :new, state = 0, open = 1, front = :front, reason = NULL, complete = NULL, epoch = NULL,
                    finished_ms = NULL, failures = 0, failing_since_ms = NULL, due_ms = :now, delay_ms = 0,
                    expires_ms = :expires, pauses = 0
             WHERE seq = :seq RETURNING {CANDIDATE}"
        );
        let candidate = self.sql(&sql)?.query_row(
            named_params! { ":new": new, ":front": front, ":now": to_db(now_ms), ":expires": to_db(expires_ms), ":seq": seq },
            |row| candidate(row, &name),
        )?;
        self.sql("UPDATE content SET seq = ?2 WHERE seq = ?1")?.execute([seq, new])?;
        Ok(Requeued { candidate, key, front, size: from_db(size), retaken, response, paused })
    }

    /// The client's key that a record will have again; one that another has is forgotten.
    fn retake_key(&self, seq: i64) -> Result<Option<KeyScope>, LogError> {
        let of_record =
            self.sql("SELECT scope FROM record WHERE seq = ?1")?.query_row([seq], |row| scope(row, 0))?;
        let Some(of_record) = of_record else { return Ok(None) };
        if holder(self.tx, &of_record)?.is_none() {
            return Ok(Some(of_record));
        }
        self.sql("UPDATE record SET scope = NULL, fingerprint = NULL WHERE seq = ?1")?.execute([seq])?;
        Ok(None)
    }

    fn purge(
        &mut self,
        what: &Intervention,
        lane: &Lane,
        states: &[StateName],
        after: Seq,
        until: Option<Seq>,
        limit: usize,
    ) -> Result<Effect, LogError> {
        let mut done = Intervened::default();
        let id: Option<i64> = self
            .sql("SELECT id FROM lane WHERE tenant = ?1 AND upstream = ?2")?
            .query_row([lane.tenant.as_str(), lane.upstream.as_str()], |row| row.get(0))
            .optional()?;
        let Some(id) = id else { return Ok(Effect::Intervened(Box::new(done))) };
        let until = match until {
            Some(until) => until.0,
            None => self
                .sql("SELECT coalesce(max(seq), 0) FROM record WHERE lane = ?1")?
                .query_row([id], |row| row.get(0))?,
        };
        let mut found = Vec::new();
        let (mut looked, mut last) = (0, after.0);
        {
            let mut statement = self.sql(
                "SELECT seq, state, reason, complete FROM record INDEXED BY record_lane
                 WHERE lane = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
            )?;
            let mut rows = statement.query(params![id, after.0, until, limit_to_db(LOOK)])?;
            while found.len() < limit
                && let Some(row) = rows.next()?
            {
                (looked, last) = (looked + 1, row.get(0)?);
                let state = state_from_db(row.get(1)?, row.get(2)?, row.get(3)?)?;
                if states.contains(&state.name()) && what.act.permit(state).is_ok() {
                    found.push((last, state));
                }
            }
        }
        if found.len() == limit || looked == LOOK {
            done.next = Some((Seq(last), Seq(until)));
        }
        for (seq, state) in &found {
            self.discard(*seq, *state, what, &mut done)?;
        }
        if !found.is_empty() {
            self.audit(what, lane, None, found.len() as u64, &listed(states))?;
        }
        Ok(Effect::Intervened(Box::new(done)))
    }

    fn pause(&mut self, what: &Intervention, lane: &Lane, paused: bool) -> Result<Effect, LogError> {
        let id = self.lane_id(lane)?;
        let changed = self
            .sql("UPDATE lane SET paused_ms = ?2 WHERE id = ?1 AND (paused_ms IS NULL) = ?3")?
            .execute(params![id, paused.then(|| to_db(what.at_ms)), paused])?;
        if changed == 1 {
            self.audit(what, lane, None, 0, "")?;
        }
        Ok(Effect::Intervened(Box::default()))
    }

    fn rate(&mut self, what: &Intervention, lane: &Lane, rate: Option<Rate>) -> Result<Effect, LogError> {
        let id = self.lane_id(lane)?;
        let changed = self
            .sql("UPDATE lane SET per_second = ?2 WHERE id = ?1 AND per_second IS NOT ?2")?
            .execute(params![id, rate.map(Rate::per_second)])?;
        if changed == 1 {
            self.audit(what, lane, None, 0, &told(rate))?;
        }
        Ok(Effect::Intervened(Box::default()))
    }

    fn resume_key(
        &mut self,
        what: &Intervention,
        lane: &Lane,
        key: &str,
        limit: usize,
    ) -> Result<Effect, LogError> {
        let id = self.lane_id(lane)?;
        let records = self
            .sql(
                "UPDATE record SET pauses = 0
                 WHERE seq IN (SELECT seq FROM record WHERE lane = ?1 AND okey = ?2 AND pauses = 1 ORDER BY seq LIMIT ?3)",
            )?
            .execute(params![id, key, limit_to_db(limit)])? as u64;
        let mut done = Intervened::default();
        if records > 0 {
            done.unpaused = Some(self.unpause(id, key.to_owned(), records)?);
            self.audit(what, lane, None, records, &format!("key {key}"))?;
        }
        Ok(Effect::Intervened(Box::new(done)))
    }

    fn audit(
        &self,
        what: &Intervention,
        lane: &Lane,
        record: Option<RecordId>,
        count: u64,
        detail: &str,
    ) -> Result<(), LogError> {
        let seq = self
            .sql(
                "INSERT INTO audit (at_ms, actor, action, tenant, upstream, record, count, detail)
                 VALUES (:at_ms, :actor, :action, :tenant, :upstream, :record, :count, :detail)",
            )?
            .insert(named_params! {
                ":at_ms": to_db(what.at_ms),
                ":actor": what.actor,
                ":action": what.act.name(),
                ":tenant": lane.tenant.as_str(),
                ":upstream": lane.upstream.as_str(),
                ":record": record.map(|id| *id.as_bytes()),
                ":count": to_db(count),
                ":detail": detail,
            })?;
        self.trim_audit(seq)
    }

    fn trim_audit(&self, last: i64) -> Result<(), LogError> {
        self.sql("DELETE FROM audit WHERE seq <= ?1")?.execute([last - to_db(AUDIT_ROWS)])?;
        Ok(())
    }

    /// Adds what the node did by itself to the rows of this hour.
    pub(super) fn note_deeds(&self, deeds: &[Deed], now_ms: u64) -> Result<(), LogError> {
        let (from_ms, until_ms) = deed::hour(now_ms);
        for deed in deeds {
            let lane = [deed.lane.tenant.as_str(), deed.lane.upstream.as_str()];
            let seq: Option<i64> = self
                .sql(
                    "SELECT seq FROM audit WHERE actor = 'node' AND tenant = ?1 AND upstream = ?2 AND action = ?3
                       AND detail = ?4 AND at_ms >= ?5 AND at_ms < ?6 LIMIT 1",
                )?
                .query_row(
                    params![lane[0], lane[1], deed.action, deed.of, to_db(from_ms), to_db(until_ms)],
                    |row| row.get(0),
                )
                .optional()?;
            let (count, first, last) = (to_db(deed.count), to_db(deed.from_ms), to_db(deed.until_ms));
            if let Some(seq) = seq {
                self.sql(
                    "UPDATE audit SET count = count + ?2, from_ms = min(from_ms, ?3), until_ms = max(until_ms, ?4)
                     WHERE seq = ?1",
                )?
                .execute([seq, count, first, last])?;
                continue;
            }
            let seq = self
                .sql(
                    "INSERT INTO audit (at_ms, actor, action, tenant, upstream, count, detail, from_ms, until_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                )?
                .insert(params![
                    to_db(now_ms),
                    NODE,
                    deed.action,
                    lane[0],
                    lane[1],
                    count,
                    deed.of,
                    first,
                    last
                ])?;
            self.trim_audit(seq)?;
        }
        Ok(())
    }
}
