//! The log as a plain map: what the real one is compared with, and what simulations run on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::*;
use crate::record::State;

#[derive(Clone, Debug)]
struct Row {
    append: Append,
    front: bool,
    state: State,
    attempts: u32,
    epoch: Option<u64>,
    due_ms: u64,
    blame: Option<Blame>,
    finished_ms: Option<u64>,
    note: Note,
    has_content: bool,
}

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<Seq, Row>,
    last_seq: i64,
    epoch: u64,
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

    fn candidate(&self, seq: Seq) -> Candidate {
        Candidate {
            attempts: self.attempts,
            due_ms: self.due_ms,
            blame: self.blame,
            ..self.append.candidate(seq)
        }
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

    fn first_of_key(&self, lane: &Lane, key: &str) -> Option<Seq> {
        self.rows
            .iter()
            .find(|(_, r)| {
                r.state.is_open() && r.append.lane == *lane && r.append.ordering_key.as_deref() == Some(key)
            })
            .map(|(seq, _)| *seq)
    }

    fn end(&mut self, seq: Seq, end: End, at_ms: u64, note: Option<&Note>) -> Ended {
        let row = self.rows.get_mut(&seq).expect("the caller found it");
        row.state = match end {
            End::Delivered { response_complete } => State::Delivered { response_complete },
            End::Dead(reason) => State::Dead { reason },
        };
        row.front = false;
        row.epoch = None;
        row.finished_ms = Some(at_ms);
        if let Some(note) = note {
            row.note = note.clone();
        }
        let delivered = matches!(end, End::Delivered { .. });
        let freed = if delivered { row.freed() } else { None };
        let (lane, key, size) = (row.append.lane.clone(), row.append.ordering_key.clone(), row.append.size);
        let promoted = key.as_deref().and_then(|key| self.first_of_key(&lane, key)).and_then(|next| {
            let row = self.rows.get_mut(&next).expect("it was just found");
            (!std::mem::replace(&mut row.front, true)).then(|| row.candidate(next))
        });
        Ended { lane, key, size, delivered, freed, promoted }
    }

    fn apply(&mut self, change: &Change) -> Effect {
        match change {
            Change::Append(append) => {
                let front = append
                    .ordering_key
                    .as_deref()
                    .is_none_or(|key| self.first_of_key(&append.lane, key).is_none());
                self.last_seq += 1;
                let seq = Seq(self.last_seq);
                let row = Row {
                    append: (**append).clone(),
                    front,
                    state: State::Queued,
                    attempts: 0,
                    epoch: None,
                    due_ms: append.accepted_ms,
                    blame: None,
                    finished_ms: None,
                    note: Note::default(),
                    has_content: true,
                };
                self.rows.insert(seq, row);
                Effect::Appended { seq, front }
            }
            Change::Begin { seq, attempts, epoch } => match self.rows.get_mut(seq) {
                Some(row) if row.state == State::Queued && row.front && row.attempts == *attempts => {
                    row.state = State::Delivering;
                    row.attempts += 1;
                    row.epoch = Some(*epoch);
                    Effect::Done
                }
                Some(row)
                    if row.is_attempt(&AttemptRef { seq: *seq, attempts: attempts + 1, epoch: *epoch }) =>
                {
                    Effect::Done
                }
                _ => Effect::Stale,
            },
            Change::Retry { attempt, again, note } => match self.attempted(attempt) {
                Some(row) => {
                    row.state = State::Queued;
                    row.epoch = None;
                    row.due_ms = again.due_ms;
                    row.blame = again.blame;
                    row.note = note.clone();
                    Effect::Done
                }
                None => Effect::Stale,
            },
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
            Change::Finish { attempt, end, at_ms, note } => match self.attempted(attempt) {
                Some(_) => Effect::Ended(Box::new(self.end(attempt.seq, *end, *at_ms, Some(note)))),
                None => Effect::Stale,
            },
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
                let ended = due.into_iter().map(|(_, seq)| self.end(seq, end, *now_ms, None)).collect();
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
            Change::Prune { delivered_before_ms, dead_before_ms, limit } => {
                let mut seqs = self.finished(true, Some(*delivered_before_ms), *limit);
                seqs.extend(self.finished(false, Some(*dead_before_ms), limit - seqs.len()));
                self.delete(seqs)
            }
            Change::Trim { limit } => {
                let seqs = self.finished(true, None, *limit);
                self.delete(seqs)
            }
        }
    }

    fn finished(&self, delivered: bool, before_ms: Option<u64>, limit: usize) -> Vec<Seq> {
        let mut found: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| {
                !row.state.is_open() && matches!(row.state, State::Delivered { .. }) == delivered
            })
            .map(|(seq, row)| (row.finished_ms.expect("finished rows say when"), *seq))
            .filter(|(at, _)| before_ms.is_none_or(|before| *at < before))
            .collect();
        found.sort();
        found.into_iter().take(limit).map(|(_, seq)| seq).collect()
    }

    fn oldest(&self, delivered: bool) -> Option<u64> {
        self.finished(delivered, None, 1).first().and_then(|seq| self.rows[seq].finished_ms)
    }

    fn delete(&mut self, seqs: Vec<Seq>) -> Effect {
        let pruned = seqs
            .into_iter()
            .map(|seq| {
                let mut row = self.rows.remove(&seq).expect("it was just found");
                Pruned {
                    lane: row.append.lane.clone(),
                    size: row.append.size,
                    delivered: matches!(row.state, State::Delivered { .. }),
                    freed: row.freed(),
                }
            })
            .collect();
        Effect::Pruned { pruned, oldest_delivered_ms: self.oldest(true), oldest_dead_ms: self.oldest(false) }
    }
}

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
        Ok(rows.rows.values().find(|row| row.append.id == id).map(|row| StoredReceipt {
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
            },
        }))
    }

    fn window(&mut self, lane: &Lane, limit: usize) -> Result<Vec<Candidate>, LogError> {
        let rows = self.rows();
        let mut due: Vec<_> = rows
            .rows
            .iter()
            .filter(|(_, row)| row.append.lane == *lane && row.state == State::Queued && row.front)
            .map(|(seq, row)| row.candidate(*seq))
            .collect();
        due.sort_by_key(|candidate| (candidate.due_ms, candidate.seq));
        due.truncate(limit);
        Ok(due)
    }

    fn content(&mut self, seq: Seq) -> Result<Option<Content>, LogError> {
        let rows = self.rows();
        Ok(rows.rows.get(&seq).filter(|row| row.has_content).map(|row| row.append.content.clone()))
    }

    fn census(&mut self, visit: &mut dyn FnMut(CensusRow)) -> Result<(), LogError> {
        let rows = self.rows();
        let mut lanes: BTreeMap<Lane, (u64, u64, u64, u64)> = BTreeMap::new();
        let mut keys: BTreeMap<(Lane, String), u64> = BTreeMap::new();
        for row in rows.rows.values() {
            let lane = lanes.entry(row.append.lane.clone()).or_default();
            lane.0 += u64::from(row.state.is_open());
            if matches!(row.state, State::Delivered { .. }) {
                lane.3 += 1;
            } else {
                lane.1 += 1;
                lane.2 += row.append.size;
            }
            if let Some(key) = row.append.ordering_key.as_ref().filter(|_| row.state.is_open()) {
                *keys.entry((row.append.lane.clone(), key.clone())).or_default() += 1;
            }
        }
        for (lane, (open, kept, kept_bytes, delivered)) in lanes {
            visit(CensusRow::Lane { lane, open, kept, kept_bytes, delivered });
        }
        for ((lane, key), open) in keys {
            visit(CensusRow::Key { lane, key, open });
        }
        visit(CensusRow::Earliest {
            expires_ms: rows
                .rows
                .values()
                .filter(|row| row.state.is_open())
                .map(|row| row.append.expires_ms)
                .min(),
            delivered_ms: rows.oldest(true),
            dead_ms: rows.oldest(false),
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
}
