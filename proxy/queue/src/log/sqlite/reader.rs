//! Reading beside the writer: WAL readers neither wait for it nor make it wait.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{super::*, connect, rows::*};
use crate::{
    body::StoredBody,
    record::{Lane, ReceiptView, RecordId, Seq, State, TraceRef},
    spool::BodyName,
};

pub(super) struct SqliteReader {
    connection: Connection,
    lanes: HashMap<Lane, i64>,
}

impl SqliteReader {
    pub(super) fn open(path: &Path) -> Result<Self, LogError> {
        let connection = connect(path)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(Self { connection, lanes: HashMap::new() })
    }

    fn lane_id(&mut self, lane: &Lane) -> Result<Option<i64>, LogError> {
        if let Some(id) = self.lanes.get(lane) {
            return Ok(Some(*id));
        }
        let id = self
            .connection
            .prepare_cached("SELECT id FROM lane WHERE tenant = ?1 AND upstream = ?2")?
            .query_row([lane.tenant.as_str(), lane.upstream.as_str()], |row| row.get(0))
            .optional()?;
        if let Some(id) = id {
            self.lanes.insert(lane.clone(), id);
        }
        Ok(id)
    }
}

impl LogReader for SqliteReader {
    fn receipt(&mut self, id: RecordId) -> Result<Option<StoredReceipt>, LogError> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT lane, secret, state, reason, complete, accepted_ms, expires_ms, attempts, last_status, last_error,
                        finished_ms
                 FROM record WHERE id = ?1",
            )?
            .query_row([id.as_bytes()], |row| {
                let state = (row.get(2)?, row.get(3)?, row.get(4)?);
                let view = ReceiptView {
                    id,
                    state: State::Queued,
                    accepted_ms: from_db(row.get(5)?),
                    expires_ms: from_db(row.get(6)?),
                    attempts: row.get(7)?,
                    last_status: row.get(8)?,
                    last_error: row.get(9)?,
                    finished_ms: row.get::<_, Option<i64>>(10)?.map(from_db),
                };
                Ok((row.get::<_, i64>(0)?, SecretHash(row.get(1)?), state, view))
            })
            .optional()?;
        let Some((lane, secret, (state, reason, complete), mut view)) = row else { return Ok(None) };
        view.state = state_from_db(state, reason, complete)?;
        Ok(Some(StoredReceipt { lane: lane_by_id(&self.connection, lane)?, secret, view }))
    }

    fn window(&mut self, lane: &Lane, limit: usize) -> Result<Vec<Candidate>, LogError> {
        let Some(id) = self.lane_id(lane)? else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT {CANDIDATE} FROM record WHERE lane = ?1 AND state = 0 AND front = 1 ORDER BY due_ms, seq LIMIT ?2"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![id, limit_to_db(limit)], |row| candidate(row, lane))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn content(&mut self, seq: Seq) -> Result<Option<Content>, LogError> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT r.id, r.accepted_ms, c.revision, c.method, c.target, c.host, c.headers, c.body, c.body_file, c.body_len,
                        c.trace_id, c.span_id, c.sampled, c.request_id
                 FROM record r JOIN content c USING (seq) WHERE r.seq = ?1",
            )?
            .query_row([seq.0], |row| {
                let body = (row.get::<_, Option<Vec<u8>>>(7)?, row.get::<_, Option<String>>(8)?, from_db(row.get(9)?));
                let content = Content {
                    id: RecordId::from_bytes(row.get(0)?),
                    accepted_ms: from_db(row.get(1)?),
                    revision: from_db(row.get(2)?),
                    method: row.get(3)?,
                    target: row.get(4)?,
                    host: row.get(5)?,
                    headers: Vec::new(),
                    body: StoredBody::Inline(bytes::Bytes::new()),
                    trace: TraceRef { trace_id: row.get(10)?, span_id: row.get(11)?, sampled: row.get(12)? },
                    request_id: row.get(13)?,
                };
                Ok((content, row.get::<_, Vec<u8>>(6)?, body))
            })
            .optional()?;
        let Some((mut content, headers, body)) = row else { return Ok(None) };
        let corrupt = |what: &str| LogError::Corrupt(format!("record {} has {what}", content.id));
        let headers = codec::decode(&headers).ok_or_else(|| corrupt("headers of an unknown form"))?;
        content.body = match body {
            (Some(bytes), None, _) => StoredBody::Inline(bytes.into()),
            (None, Some(name), len) => StoredBody::File {
                name: name.parse().map_err(|()| corrupt("a body file of no valid name"))?,
                len,
            },
            _ => return Err(corrupt("not exactly one body")),
        };
        content.headers = headers;
        Ok(Some(content))
    }

    fn census(&mut self, visit: &mut dyn FnMut(CensusRow)) -> Result<(), LogError> {
        let tx = self.connection.transaction()?;
        let mut statement = tx.prepare(
            "SELECT tenant, upstream, total(state < 3), total(state <> 3), total(CASE WHEN state <> 3 THEN size ELSE 0 END),
                    total(state = 3)
             FROM record JOIN lane ON lane.id = record.lane GROUP BY record.lane",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            let count = |column| row.get::<_, f64>(column).map(|sum| sum as u64);
            visit(CensusRow::Lane {
                lane: lane(&tenant, &upstream)?,
                open: count(2)?,
                kept: count(3)?,
                kept_bytes: count(4)?,
                delivered: count(5)?,
            });
        }
        let mut statement = tx.prepare(
            "SELECT tenant, upstream, okey, count(*) FROM record JOIN lane ON lane.id = record.lane
             WHERE okey IS NOT NULL AND state < 3 GROUP BY record.lane, okey",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            visit(CensusRow::Key {
                lane: lane(&tenant, &upstream)?,
                key: row.get(2)?,
                open: from_db(row.get(3)?),
            });
        }
        let expires: Option<i64> = tx
            .query_row(
                "SELECT expires_ms FROM record WHERE state < 3 ORDER BY expires_ms LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()?;
        visit(CensusRow::Earliest {
            expires_ms: expires.map(from_db),
            delivered_ms: oldest_finish(&tx, DELIVERED)?,
            dead_ms: oldest_finish(&tx, DEAD)?,
        });
        Ok(())
    }

    fn names_body(&mut self, name: BodyName) -> Result<bool, LogError> {
        Ok(self
            .connection
            .prepare_cached("SELECT 1 FROM content WHERE body_file = ?1")?
            .exists([name.to_string()])?)
    }
}
