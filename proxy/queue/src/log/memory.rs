//! The log as a plain map: what the real one is compared with, and what simulations run on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use super::*;
use crate::view::{PAGE_MAX, RecordListing, path_of, request_view};

#[derive(Clone, Debug)]
struct Row {
    append: Append,
    front: bool,
    state: State,
    pauses: bool,
    attempts: u32,
    epoch: Option<u64>,
    due_ms: u64,
    blame: Option<Blame>,
    finished_ms: Option<u64>,
    note: Note,
    has_content: bool,
    response: Option<KeptResponse>,
}

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<Seq, Row>,
    last_seq: i64,
    epoch: u64,
    paused: BTreeSet<Lane>,
    rates: BTreeMap<Lane, Rate>,
    audit: Vec<AuditRow>,
}

/// A disk for memory logs: opening it again is what a restart is.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<Rows>>);

pub(crate) struct MemoryLog {
    disk: MemoryDisk,
    epoch: u64,
}

impl MemoryDisk {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap()
    }

    pub(crate) fn open(&self) -> MemoryLog {
        let mut rows = self.rows();
        rows.epoch += 1;
        MemoryLog { disk: self.clone(), epoch: rows.epoch }
    }

    /// The records that pause their key, for assertions.
    pub(crate) fn pausing(&self) -> Vec<Seq> {
        self.rows().rows.iter().filter(|(_, row)| row.pauses).map(|(seq, _)| *seq).collect()
    }

    /// Every record's state, for assertions.
    pub(crate) fn states(&self) -> Vec<(Seq, State)> {
        self.rows().rows.iter().map(|(seq, row)| (*seq, row.state)).collect()
    }
}

impl Row {
    fn is_attempt(&self, attempt: &AttemptRef) -> bool {
        self.state == State::Delivering
            && self.attempts == attempt.attempts
            && self.epoch == Some(attempt.epoch)
    }

    fn content(&self) -> Option<Content> {
        self.has_content.then(|| self.append.content.clone())
    }

    fn candidate(&self, seq: Seq) -> Candidate {
        Candidate {
            attempts: self.attempts,
            due_ms: self.due_ms,
            blame: self.blame,
            ..self.append.candidate(seq)
        }
    }

    /// The client's key that it has.
    fn scope(&self) -> Option<KeyScope> {
        self.append.key_use.filter(|_| has_key(self.state)).map(|used| used.scope)
    }

    fn is_erased(&self) -> bool {
        match self.state {
            State::Delivered { .. } => true,
            State::Dead { reason } => reason.is_erased(),
            _ => false,
        }
    }

    fn listing(&self, seq: Seq, key_paused: bool) -> RecordListing {
        let content = self.has_content.then_some(&self.append.content);
        RecordListing {
            seq: seq.0 as u64,
            id: self.append.id,
            upstream: self.append.lane.upstream.clone(),
            state: self.state,
            ordering_key: self.append.ordering_key.clone(),
            key_paused,
            bytes: self.append.size,
            accepted_ms: self.append.accepted_ms,
            due_ms: (self.state == State::Queued).then_some(self.due_ms),
            expires_ms: self.append.expires_ms,
            finished_ms: self.finished_ms,
            attempts: self.attempts,
            last_status: self.note.status,
            last_error: self.note.error.clone(),
            method: content.map(|content| content.method.clone()),
            path: content.map(|content| path_of(&content.target)),
        }
    }

    fn drop_response(&mut self) -> u64 {
        self.response.take().map_or(0, |kept| kept.bytes())
    }

    fn freed(&mut self) -> Option<BodyName> {
        let had = std::mem::take(&mut self.has_content);
        match self.append.content.body {
            StoredBody::File { name, .. } if had => Some(name),
            _ => None,
        }
    }
}

impl Rows {
    fn attempted(&mut self, attempt: &AttemptRef) -> Option<&mut Row> {
        self.rows.get_mut(&attempt.seq).filter(|row| row.is_attempt(attempt))
    }

    fn holder(&self, scope: &KeyScope) -> Option<Holder> {
        let holds = |row: &&Row| row.scope() == Some(*scope);
        self.rows.values().find(holds).map(|row| Holder {
            id: row.append.id,
            fingerprint: row.append.key_use.expect("it has a key").fingerprint,
        })
    }

    /// The first of a key that others have to wait for, open or dead.
    fn first_in_line(&self, lane: &Lane, key: &str) -> Option<Seq> {
        let in_line = |row: &Row| row.state.is_open() || row.pauses;
        self.rows
            .iter()
            .find(|(_, r)| {
                in_line(r) && r.append.lane == *lane && r.append.ordering_key.as_deref() == Some(key)
            })
            .map(|(seq, _)| *seq)
    }

    fn promote(&mut self, lane: &Lane, key: &str) -> Option<Candidate> {
        let next = self.first_in_line(lane, key)?;
        let row = self.rows.get_mut(&next).expect("it was just found");
        let promoted = row.state.is_open() && !std::mem::replace(&mut row.front, true);
        promoted.then(|| row.candidate(next))
    }

    /// Whether this record pauses its key, or waits after one that does.
    fn is_key_paused(&self, seq: Seq) -> bool {
        let of = &self.rows[&seq];
        let same = |row: &Row| {
            row.append.lane == of.append.lane && row.append.ordering_key == of.append.ordering_key
        };
        of.pauses || of.state.is_open() && self.rows.range(..seq).any(|(_, row)| row.pauses && same(row))
    }

    /// The key of a record that is to pause it no more, unless it did not.
    fn unpause(&mut self, seq: Seq) -> Option<Unpaused> {
        let row = self.rows.get_mut(&seq)?;
        if !std::mem::take(&mut row.pauses) {
            return None;
        }
        let (lane, key) = (row.append.lane.clone(), row.append.ordering_key.clone()?);
        let promoted = self.promote(&lane, &key);
        Some(Unpaused { lane, key, records: 1, promoted })
    }

    fn end(&mut self, seq: Seq, end: End, at_ms: u64, note: Option<&Note>) -> Ended {
        let row = self.rows.get_mut(&seq).expect("the caller found it");
        row.state = end.state();
        row.front = false;
        row.epoch = None;
        row.finished_ms = Some(at_ms);
        if let Some(note) = note {
            row.note = note.clone();
        }
        let delivered = matches!(end, End::Delivered { .. });
        let erased = row.is_erased();
        let by_itself = matches!(end, End::Dead(reason) if reason.is_by_itself());
        row.pauses = by_itself && row.append.ordering_key.is_some() && row.append.on_dead == OnDead::PauseKey;
        let (pauses, accepted_ms) = (row.pauses, row.append.accepted_ms);
        let freed = if erased { row.freed() } else { None };
        let (id, size) = (row.append.id, row.append.size);
        let (lane, key) = (row.append.lane.clone(), row.append.ordering_key.clone());
        let promoted = key.as_deref().and_then(|key| self.promote(&lane, key));
        let released =
            self.rows[&seq].append.key_use.filter(|_| !has_key(end.state())).map(|used| used.scope);
        Ended {
            id,
            lane,
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
        }
    }

    fn apply(&mut self, change: &Change) -> Effect {
        match change {
            Change::Append(append) => {
                if let Some(holder) = append.key_use.and_then(|used| self.holder(&used.scope)) {
                    return Effect::KeyTaken(holder);
                }
                let front = append
                    .ordering_key
                    .as_deref()
                    .is_none_or(|key| self.first_in_line(&append.lane, key).is_none());
                self.last_seq += 1;
                let seq = Seq(self.last_seq);
                let row = Row {
                    append: (**append).clone(),
                    front,
                    state: State::Queued,
                    pauses: false,
                    attempts: 0,
                    epoch: None,
                    due_ms: append.due_ms(),
                    blame: None,
                    finished_ms: None,
                    note: Note::default(),
                    has_content: true,
                    response: None,
                };
                self.rows.insert(seq, row);
                Effect::Appended { seq, front }
            }
            Change::Begin { seq, attempts, epoch } => match self.rows.get_mut(seq) {
                Some(row)
                    if row.state == State::Queued
                        && row.front
                        && row.attempts == *attempts
                        && !self.paused.contains(&row.append.lane) =>
                {
                    row.state = State::Delivering;
                    row.attempts += 1;
                    row.epoch = Some(*epoch);
                    Effect::Begun(row.content().map(Box::new))
                }
                Some(row)
                    if row.is_attempt(&AttemptRef { seq: *seq, attempts: attempts + 1, epoch: *epoch }) =>
                {
                    Effect::Begun(row.content().map(Box::new))
                }
                _ => Effect::Stale,
            },
            Change::Retry { attempt, again, note } => match self.attempted(attempt) {
                Some(row) => {
                    row.state = State::Queued;
                    row.epoch = None;
                    (row.due_ms, row.append.delay_ms) = (again.due_ms, again.delay_ms);
                    row.blame = again.blame;
                    row.note = note.clone();
                    Effect::Done
                }
                None => Effect::Stale,
            },
            Change::Miss { attempt, again, note } => {
                let AttemptRef { seq, attempts, epoch } = *attempt;
                let begin = Change::Begin { seq, attempts: attempts.saturating_sub(1), epoch };
                match self.apply(&begin) {
                    Effect::Begun(_) => {
                        let (attempt, again, note) = (*attempt, again.clone(), note.clone());
                        self.apply(&Change::Retry { attempt, again, note })
                    }
                    effect => effect,
                }
            }
            Change::Hold { attempt } => match self.attempted(attempt) {
                Some(row) => {
                    row.state = State::Held;
                    row.epoch = None;
                    row.note.error = Some("upstream-missing".into());
                    Effect::Done
                }
                None => Effect::Stale,
            },
            Change::Release { lane } => {
                for row in self.rows.values_mut() {
                    if row.append.lane == *lane && row.state == State::Held {
                        row.state = State::Queued;
                    }
                }
                Effect::Done
            }
            Change::Finish { attempt, end, at_ms, note, response } => match self.attempted(attempt) {
                Some(row) => {
                    row.response = response.as_ref().map(|response| response.kept.clone());
                    let bytes = row.response.as_ref().map_or(0, KeptResponse::bytes);
                    let ended = self.end(attempt.seq, *end, *at_ms, Some(note));
                    Effect::Ended(Box::new(Ended { response: bytes, ..ended }))
                }
                None => Effect::Stale,
            },
            Change::Forget { now_ms, limit } => {
                let mut over: Vec<_> = self
                    .rows
                    .iter()
                    .filter_map(|(seq, row)| Some((row.response.as_ref()?.until_ms, *seq)))
                    .filter(|(until_ms, _)| until_ms <= now_ms)
                    .collect();
                over.sort();
                over.truncate(*limit);
                let freed = over
                    .into_iter()
                    .map(|(_, seq)| {
                        let row = self.rows.get_mut(&seq).expect("it was just found");
                        (row.append.lane.clone(), row.drop_response())
                    })
                    .collect();
                let next_ms =
                    self.rows.values().filter_map(|row| Some(row.response.as_ref()?.until_ms)).min();
                Effect::Forgotten { freed, next_ms }
            }
            Change::Expire { now_ms, limit } => {
                let waiting = |row: &&Row| matches!(row.state, State::Queued | State::Held);
                let mut due: Vec<_> = self
                    .rows
                    .iter()
                    .filter(|(_, row)| waiting(row) && row.append.expires_ms <= *now_ms)
                    .map(|(seq, row)| (row.append.expires_ms, *seq))
                    .collect();
                due.sort();
                due.truncate(*limit);
                let end = End::Dead(DeadReason::Expired);
                let ended: Vec<_> =
                    due.into_iter().map(|(_, seq)| self.end(seq, end, *now_ms, None)).collect();
                self.note_deeds(deed::expired(&ended), *now_ms);
                let next_ms = self.rows.values().filter(waiting).map(|row| row.append.expires_ms).min();
                Effect::Expired { ended, next_ms }
            }
            Change::Disown { id, at_ms } => {
                let there = self
                    .rows
                    .iter()
                    .find(|(_, row)| row.append.id == *id && row.state.is_open())
                    .map(|(s, _)| *s);
                match there {
                    Some(seq) => {
                        let end = End::Dead(DeadReason::Unconfirmed);
                        Effect::Ended(Box::new(self.end(seq, end, *at_ms, None)))
                    }
                    None => Effect::Stale,
                }
            }
            Change::Recover { epoch, now_ms, limit } => {
                let note = Note { status: None, error: Some("the node stopped during the delivery".into()) };
                let (mut requeued, mut ended) = (0, vec![]);
                for row in self.rows.values_mut().filter(|row| row.state == State::Held) {
                    row.state = State::Queued;
                }
                let orphaned: Vec<_> = self
                    .rows
                    .iter()
                    .filter(|(_, r)| r.state == State::Delivering && r.epoch.is_some_and(|e| e < *epoch))
                    .map(|(seq, _)| *seq)
                    .take(*limit)
                    .collect();
                for seq in orphaned {
                    let row = self.rows.get_mut(&seq).expect("it was just found");
                    if row.append.repeat_safe {
                        row.state = State::Queued;
                        row.epoch = None;
                        row.note = note.clone();
                        requeued += 1;
                    } else {
                        ended.push(self.end(seq, End::Dead(DeadReason::Indeterminate), *now_ms, Some(&note)));
                    }
                }
                Effect::Recovered { requeued, ended }
            }
            Change::Prune { now_ms, delivered_before_ms, dead_before_ms, limit } => {
                let mut seqs = self.finished(Finished::Delivered, Some(*delivered_before_ms), *limit);
                for (which, before_ms) in
                    [(Finished::Erased, delivered_before_ms), (Finished::Dead, dead_before_ms)]
                {
                    seqs.extend(self.finished(which, Some(*before_ms), limit - seqs.len()));
                }
                self.delete(seqs, deed::Why::Retention, *now_ms)
            }
            Change::Trim { now_ms, limit } => {
                let mut seqs = self.finished(Finished::Delivered, None, *limit);
                seqs.extend(self.finished(Finished::Erased, None, limit - seqs.len()));
                self.delete(seqs, deed::Why::TooMany, *now_ms)
            }
            Change::Clear { tenant, now_ms, limit } => {
                let is_its = |row: &Row| row.append.lane.tenant == *tenant && !row.state.is_open();
                let its = self.rows.iter().filter(|(_, row)| is_its(row)).map(|(seq, _)| *seq);
                let seqs = its.take(*limit).collect();
                self.delete(seqs, deed::Why::TenantDeleted, *now_ms)
            }
            Change::Intervene(what) => self.intervene(what),
        }
    }

    fn intervene(&mut self, what: &Intervention) -> Effect {
        let mut done = Intervened::default();
        let (lane, record, count, detail) = match &what.act {
            Act::Cancel { id } | Act::Discard { id } | Act::Requeue { id, .. } => {
                let found = self
                    .rows
                    .iter()
                    .find(|(_, row)| row.append.id == *id && row.append.lane.tenant == what.tenant)
                    .map(|(seq, row)| (*seq, row.state, row.append.lane.clone()));
                let Some((seq, state, lane)) = found else { return Effect::Refused(Refused::Unknown) };
                if let Err(refused) = what.act.permit(state) {
                    return Effect::Refused(refused);
                }
                if let Act::Requeue { .. } = what.act {
                    done.requeued = Some(self.requeue(seq, what.at_ms));
                } else {
                    self.discard(seq, what, &mut done);
                }
                (lane, Some(*id), 1, format!("was {state}"))
            }
            Act::Purge { upstream, states, after, until, limit } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                let of_lane = |row: &Row| row.append.lane == lane;
                let last = self.rows.iter().filter(|(_, row)| of_lane(row)).map(|(seq, _)| *seq).max();
                let until = until.or(last).unwrap_or(Seq(0));
                let found: Vec<_> = self
                    .rows
                    .iter()
                    .filter(|(seq, row)| {
                        **seq > *after
                            && **seq <= until
                            && of_lane(row)
                            && states.contains(&row.state.name())
                            && what.act.permit(row.state).is_ok()
                    })
                    .map(|(seq, _)| *seq)
                    .take(*limit)
                    .collect();
                if found.len() == *limit {
                    done.next = Some((*found.last().unwrap_or(after), until));
                }
                found.iter().for_each(|seq| self.discard(*seq, what, &mut done));
                if found.is_empty() {
                    return Effect::Intervened(Box::new(done));
                }
                (lane, None, found.len() as u64, listed(states))
            }
            Act::Pause { upstream, paused } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                let changed =
                    if *paused { self.paused.insert(lane.clone()) } else { self.paused.remove(&lane) };
                if !changed {
                    return Effect::Intervened(Box::new(done));
                }
                (lane, None, 0, String::new())
            }
            Act::Rate { upstream, rate } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                let before = match rate {
                    Some(rate) => self.rates.insert(lane.clone(), *rate),
                    None => self.rates.remove(&lane),
                };
                if before == *rate {
                    return Effect::Intervened(Box::new(done));
                }
                (lane, None, 0, told(*rate))
            }
            Act::ResumeKey { upstream, key, limit } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                let is_it = |row: &Row| {
                    row.pauses && row.append.lane == lane && row.append.ordering_key.as_ref() == Some(key)
                };
                let pausing = self.rows.values_mut().filter(|row| is_it(row)).take(*limit);
                let records = pausing.map(|row| row.pauses = false).count() as u64;
                if records == 0 {
                    return Effect::Intervened(Box::new(done));
                }
                let promoted = self.promote(&lane, key);
                done.unpaused = Some(Unpaused { lane: lane.clone(), key: key.clone(), records, promoted });
                (lane, None, records, format!("key {key}"))
            }
            Act::Export { upstream, records } => {
                let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
                (lane, None, *records, BODIES.into())
            }
        };
        self.audit.push(AuditRow {
            seq: self.audit.len() as u64 + 1,
            at_ms: what.at_ms,
            actor: what.actor.clone(),
            action: what.act.name().into(),
            tenant: lane.tenant,
            upstream: lane.upstream,
            record,
            count,
            detail,
            accepted_ms: None,
        });
        Effect::Intervened(Box::new(done))
    }

    fn discard(&mut self, seq: Seq, what: &Intervention, done: &mut Intervened) {
        let reason = what.act.reason();
        let row = self.rows.get_mut(&seq).expect("the caller found it");
        if row.state.is_open() {
            done.ended.push(self.end(seq, End::Dead(reason), what.at_ms, None));
            return;
        }
        let released = row.scope();
        row.state = State::Dead { reason };
        row.finished_ms = Some(what.at_ms);
        let freed = row.freed();
        let (lane, size, response) = (row.append.lane.clone(), row.append.size, row.drop_response());
        let unpaused = self.unpause(seq);
        done.erased.push(Erased { lane, size, freed, released, response, unpaused });
    }

    fn requeue(&mut self, seq: Seq, now_ms: u64) -> Requeued {
        let mut row = self.rows.remove(&seq).expect("the caller found it");
        let response = row.drop_response();
        let had_key = has_key(row.state);
        if !had_key && row.append.key_use.is_some_and(|used| self.holder(&used.scope).is_some()) {
            row.append.key_use = None;
        }
        let key = row.append.ordering_key.clone();
        let paused = std::mem::take(&mut row.pauses);
        let new = if paused {
            seq
        } else {
            self.last_seq += 1;
            Seq(self.last_seq)
        };
        let first = key.as_deref().and_then(|key| self.first_in_line(&row.append.lane, key));
        row.front = first.is_none_or(|first| first > new);
        row.state = State::Queued;
        row.epoch = None;
        row.blame = None;
        row.finished_ms = None;
        row.due_ms = now_ms;
        row.append.delay_ms = 0;
        row.append.expires_ms = expires_again(row.append.accepted_ms, row.append.expires_ms, now_ms);
        let retaken = row.scope().filter(|_| !had_key);
        let candidate = row.candidate(new);
        let requeued =
            Requeued { candidate, key, front: row.front, size: row.append.size, retaken, response, paused };
        self.rows.insert(new, row);
        requeued
    }

    fn finished(&self, which: Finished, before_ms: Option<u64>, limit: usize) -> Vec<Seq> {
        let mut found: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| match row.state {
                State::Delivered { .. } => which == Finished::Delivered,
                State::Dead { reason } if reason.is_erased() => which == Finished::Erased,
                State::Dead { .. } => which == Finished::Dead,
                _ => false,
            })
            .map(|(seq, row)| (row.finished_ms.expect("finished rows say when"), *seq))
            .filter(|(at, _)| before_ms.is_none_or(|before| *at < before))
            .collect();
        found.sort();
        found.into_iter().take(limit).map(|(_, seq)| seq).collect()
    }

    fn oldest(&self, which: &[Finished]) -> Option<u64> {
        let firsts = which.iter().flat_map(|which| self.finished(*which, None, 1));
        firsts.filter_map(|seq| self.rows[&seq].finished_ms).min()
    }

    fn note_deeds(&mut self, deeds: Vec<deed::Deed>, now_ms: u64) {
        let (from, until) = deed::hour(now_ms);
        for deed in deeds {
            let is_its = |row: &&mut AuditRow| {
                row.actor == deed::NODE
                    && (&row.tenant, &row.upstream) == (&deed.lane.tenant, &deed.lane.upstream)
                    && (&row.action[..], &row.detail[..]) == (deed.action, deed.of)
                    && (from..until).contains(&row.at_ms)
            };
            if let Some(row) = self.audit.iter_mut().find(is_its) {
                row.count += deed.count;
                row.accepted_ms =
                    row.accepted_ms.map(|(from, until)| (from.min(deed.from_ms), until.max(deed.until_ms)));
                continue;
            }
            self.audit.push(AuditRow {
                seq: self.audit.len() as u64 + 1,
                at_ms: now_ms,
                actor: deed::NODE.into(),
                action: deed.action.into(),
                tenant: deed.lane.tenant,
                upstream: deed.lane.upstream,
                record: None,
                count: deed.count,
                detail: deed.of.into(),
                accepted_ms: Some((deed.from_ms, deed.until_ms)),
            });
        }
    }

    fn delete(&mut self, seqs: Vec<Seq>, why: deed::Why, now_ms: u64) -> Effect {
        let pruned: Vec<_> = seqs
            .into_iter()
            .map(|seq| {
                let unpaused = self.unpause(seq);
                let mut row = self.rows.remove(&seq).expect("it was just found");
                Pruned {
                    lane: row.append.lane.clone(),
                    size: row.append.size,
                    receipt: row.is_erased(),
                    accepted_ms: row.append.accepted_ms,
                    freed: row.freed(),
                    released: row.scope(),
                    response: row.drop_response(),
                    unpaused,
                }
            })
            .collect();
        self.note_deeds(deed::deleted(&pruned, why), now_ms);
        Effect::Pruned {
            pruned,
            oldest_delivered_ms: self.oldest(&RECEIPTS),
            oldest_dead_ms: self.oldest(&[Finished::Dead]),
        }
    }
}

/// How a record is finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finished {
    Delivered,
    Erased,
    Dead,
}

const RECEIPTS: [Finished; 2] = [Finished::Delivered, Finished::Erased];

impl Log for MemoryLog {
    fn commit(&mut self, group: &[Change]) -> Result<Vec<Effect>, LogError> {
        let mut rows = self.disk.rows();
        Ok(group.iter().map(|change| rows.apply(change)).collect())
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(self.disk.clone()))
    }

    fn take_over(&mut self) -> Result<(), LogError> {
        let mut rows = self.disk.rows();
        rows.epoch += 1;
        self.epoch = rows.epoch;
        Ok(())
    }

    fn let_go(&mut self) {
        self.epoch = 0;
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn maintain(&mut self) -> Result<(), LogError> {
        Ok(())
    }
}

impl LogReader for MemoryDisk {
    fn receipt(&mut self, id: RecordId) -> Result<Option<StoredReceipt>, LogError> {
        let rows = self.rows();
        Ok(rows.rows.iter().find(|(_, row)| row.append.id == id).map(|(seq, row)| StoredReceipt {
            lane: row.append.lane.clone(),
            secret: row.append.secret,
            view: ReceiptView {
                id,
                state: row.state,
                accepted_ms: row.append.accepted_ms,
                expires_ms: row.append.expires_ms,
                attempts: row.attempts,
                last_status: row.note.status,
                last_error: row.note.error.clone(),
                finished_ms: row.finished_ms,
                response: row.response.as_ref().map(KeptResponse::view),
                key_paused: rows.is_key_paused(*seq),
            },
        }))
    }

    fn response(&mut self, id: RecordId) -> Result<Option<KeptResponse>, LogError> {
        let rows = self.rows();
        Ok(rows.rows.values().find(|row| row.append.id == id).and_then(|row| row.response.clone()))
    }

    fn holder(&mut self, scope: &KeyScope) -> Result<Option<Holder>, LogError> {
        Ok(self.rows().holder(scope))
    }

    fn window(&mut self, lane: &Lane, limit: usize) -> Result<Vec<Candidate>, LogError> {
        let rows = self.rows();
        let mut due: Vec<_> = rows
            .rows
            .iter()
            .filter(|(_, row)| row.append.lane == *lane && row.state == State::Queued && row.front)
            .filter(|(_, row)| !rows.paused.contains(&row.append.lane))
            .map(|(seq, row)| row.candidate(*seq))
            .collect();
        due.sort_by_key(|candidate| (candidate.due_ms, candidate.seq));
        due.truncate(limit);
        Ok(due)
    }

    fn content(&mut self, seq: Seq) -> Result<Option<Content>, LogError> {
        let rows = self.rows();
        Ok(rows.rows.get(&seq).and_then(Row::content))
    }

    fn content_of(&mut self, id: RecordId) -> Result<Option<Content>, LogError> {
        let rows = self.rows();
        let found = rows.rows.values().find(|row| row.append.id == id && row.has_content);
        Ok(found.map(|row| row.append.content.clone()))
    }

    fn census(&mut self, visit: &mut dyn FnMut(CensusRow)) -> Result<(), LogError> {
        let rows = self.rows();
        let mut lanes: BTreeMap<Lane, (u64, u64, u64, u64)> = BTreeMap::new();
        let mut keys: BTreeMap<(Lane, String), u64> = BTreeMap::new();
        for row in rows.rows.values() {
            let lane = lanes.entry(row.append.lane.clone()).or_default();
            lane.0 += u64::from(row.state.is_open());
            if row.is_erased() {
                lane.3 += 1;
            } else {
                lane.1 += 1;
                lane.2 += row.append.size;
            }
            let in_line = row.state.is_open() || row.pauses;
            if let Some(key) = row.append.ordering_key.as_ref().filter(|_| in_line) {
                *keys.entry((row.append.lane.clone(), key.clone())).or_default() += 1;
            }
        }
        for (lane, (open, kept, kept_bytes, delivered)) in lanes {
            visit(CensusRow::Lane { lane, open, kept, kept_bytes, delivered });
        }
        for ((lane, key), line) in keys {
            visit(CensusRow::Key { lane, key, line });
        }
        let mut responses: BTreeMap<Lane, (u64, u64)> = BTreeMap::new();
        for row in rows.rows.values() {
            if let Some(kept) = &row.response {
                let of_lane = responses.entry(row.append.lane.clone()).or_insert((0, u64::MAX));
                *of_lane = (of_lane.0 + kept.bytes(), of_lane.1.min(kept.until_ms));
            }
        }
        for (lane, (bytes, until_ms)) in responses {
            visit(CensusRow::Responses { lane, bytes, until_ms });
        }
        let scopes: BTreeSet<_> = rows.rows.values().filter_map(Row::scope).collect();
        scopes.into_iter().for_each(|scope| visit(CensusRow::Scope(scope)));
        visit(CensusRow::Earliest {
            expires_ms: rows
                .rows
                .values()
                .filter(|row| row.state.is_open())
                .map(|row| row.append.expires_ms)
                .min(),
            delivered_ms: rows.oldest(&RECEIPTS),
            dead_ms: rows.oldest(&[Finished::Dead]),
        });
        Ok(())
    }

    fn names_body(&mut self, name: BodyName) -> Result<bool, LogError> {
        let rows = self.rows();
        Ok(rows.rows.values().any(|row| {
            row.has_content
                && matches!(row.append.content.body, StoredBody::File { name: stored, .. } if stored == name)
        }))
    }

    fn records(&mut self, query: &RecordQuery) -> Result<RecordPage, LogError> {
        let rows = self.rows();
        let limit = query.limit.clamp(1, PAGE_MAX);
        let found: Vec<_> = rows
            .rows
            .iter()
            .filter(|(seq, row)| {
                seq.0 as u64 > query.after
                    && row.append.lane.tenant == query.tenant
                    && query.upstream.as_ref().is_none_or(|upstream| row.append.lane.upstream == *upstream)
            })
            .map(|(seq, row)| row.listing(*seq, rows.is_key_paused(*seq)))
            .filter(|record| query.takes(record))
            .take(limit)
            .collect();
        let horizon = (found.len() == limit).then(|| found[limit - 1].seq);
        Ok(RecordPage::cut(found, horizon, limit))
    }

    fn record(&mut self, tenant: &TenantName, id: RecordId) -> Result<Option<RecordView>, LogError> {
        let rows = self.rows();
        let found = rows.rows.iter().find(|(_, r)| r.append.id == id && r.append.lane.tenant == *tenant);
        Ok(found.map(|(seq, row)| RecordView {
            listing: row.listing(*seq, rows.is_key_paused(*seq)),
            repeat_safe: row.append.repeat_safe,
            request: row.has_content.then(|| request_view(&row.append.content)),
        }))
    }

    fn oldest(&mut self, lane: &Lane) -> Result<Option<u64>, LogError> {
        let rows = self.rows();
        let first = rows.rows.values().find(|row| row.state.is_open() && row.append.lane == *lane);
        Ok(first.map(|row| row.append.accepted_ms))
    }

    fn paused(&mut self) -> Result<Vec<Lane>, LogError> {
        Ok(self.rows().paused.iter().cloned().collect())
    }

    fn rates(&mut self) -> Result<Vec<(Lane, Rate)>, LogError> {
        Ok(self.rows().rates.iter().map(|(lane, rate)| (lane.clone(), *rate)).collect())
    }

    fn paused_keys(&mut self) -> Result<Vec<(Lane, u64)>, LogError> {
        let rows = self.rows();
        let mut keys: BTreeMap<Lane, BTreeSet<&str>> = BTreeMap::new();
        for row in rows.rows.values().filter(|row| row.pauses) {
            keys.entry(row.append.lane.clone()).or_default().extend(row.append.ordering_key.as_deref());
        }
        Ok(keys.into_iter().map(|(lane, keys)| (lane, keys.len() as u64)).collect())
    }

    fn audit(
        &mut self,
        tenant: Option<&TenantName>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRow>, LogError> {
        let rows = self.rows();
        let wanted = |row: &&AuditRow| row.seq > after && tenant.is_none_or(|tenant| row.tenant == *tenant);
        Ok(rows.audit.iter().filter(wanted).take(limit).cloned().collect())
    }
}
