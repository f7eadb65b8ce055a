//! Reading beside the writer: WAL readers neither wait for it nor make it wait.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    super::*,
    connect,
    content::{self, content},
    rows::*,
};
use crate::{
    record::{Lane, ReceiptView, RecordId, Seq, State},
    response::{KeptResponse, ResponseView, WholeResponse},
    spool::BodyName,
    view::{PAGE_MAX, RecordListing, path_of, request_view},
};

pub(super) struct SqliteReader {
    connection: Connection,
    lanes: HashMap<Lane, i64>,
    /// Of each lane, a place before which no record is open, or will be: new ones and those queued again only come after,
    /// but for those that pause their key.
    settled: HashMap<i64, i64>,
}

/// The columns that [`listing`] reads, [`KEY_PAUSED`] after them.
const LISTING: &str = "r.seq, r.id, r.state, r.reason, r.complete, r.okey, r.size, r.accepted_ms, r.due_ms, r.expires_ms, \
                       r.finished_ms, r.attempts, r.last_status, r.last_error, c.method, c.target";

fn listing(row: &Row<'_>, upstream: &UpstreamName) -> Result<RecordListing, LogError> {
    let state = state_from_db(row.get(2)?, row.get(3)?, row.get(4)?)?;
    Ok(RecordListing {
        seq: from_db(row.get(0)?),
        id: RecordId::from_bytes(row.get(1)?),
        upstream: upstream.clone(),
        state,
        ordering_key: row.get(5)?,
        key_paused: row.get(16)?,
        bytes: from_db(row.get(6)?),
        accepted_ms: from_db(row.get(7)?),
        due_ms: (state == State::Queued).then_some(from_db(row.get(8)?)),
        expires_ms: from_db(row.get(9)?),
        finished_ms: row.get::<_, Option<i64>>(10)?.map(from_db),
        attempts: row.get(11)?,
        last_status: row.get(12)?,
        last_error: row.get(13)?,
        method: row.get(14)?,
        path: row.get::<_, Option<String>>(15)?.map(|target| path_of(&target)),
    })
}

impl SqliteReader {
    pub(super) fn open(path: &Path) -> Result<Self, LogError> {
        let connection = connect(path)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(Self { connection, lanes: HashMap::new(), settled: HashMap::new() })
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
        let sql = format!(
            "SELECT r.lane, secret, state, reason, complete, accepted_ms, expires_ms, attempts, last_status, last_error,
                    finished_ms, status, until_ms, length(p.body), {KEY_PAUSED}
             FROM record AS r LEFT JOIN response AS p USING (seq) WHERE id = ?1"
        );
        let row = self
            .connection
            .prepare_cached(&sql)?
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
                    response: match row.get(11)? {
                        Some(status) => {
                            let size: Option<i64> = row.get(13)?;
                            Some(ResponseView {
                                status,
                                complete: size.is_some(),
                                size: size.map(from_db),
                                until_ms: from_db(row.get(12)?),
                            })
                        }
                        None => None,
                    },
                    key_paused: row.get(14)?,
                };
                Ok((row.get::<_, i64>(0)?, SecretHash(row.get(1)?), state, view))
            })
            .optional()?;
        let Some((lane, secret, (state, reason, complete), mut view)) = row else { return Ok(None) };
        view.state = state_from_db(state, reason, complete)?;
        Ok(Some(StoredReceipt { lane: lane_by_id(&self.connection, lane)?, secret, view }))
    }

    fn response(&mut self, id: RecordId) -> Result<Option<KeptResponse>, LogError> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT status, until_ms, headers, body FROM response p JOIN record r USING (seq) WHERE r.id = ?1",
            )?
            .query_row([id.as_bytes()], |row| {
                let whole = (row.get::<_, Option<Vec<u8>>>(2)?, row.get::<_, Option<Vec<u8>>>(3)?);
                Ok((row.get(0)?, from_db(row.get(1)?), whole))
            })
            .optional()?;
        let Some((status, until_ms, whole)) = row else { return Ok(None) };
        let corrupt = |what| LogError::Corrupt(format!("the answer to record {id} has {what}"));
        let whole = match whole {
            (Some(headers), Some(body)) => Some(WholeResponse {
                headers: codec::decode(&headers).ok_or_else(|| corrupt("headers of an unknown form"))?,
                body: body.into(),
            }),
            (None, None) => None,
            _ => return Err(corrupt("half of what it should have")),
        };
        Ok(Some(KeptResponse { status, until_ms, whole }))
    }

    fn holder(&mut self, scope: &KeyScope) -> Result<Option<Holder>, LogError> {
        holder(&self.connection, scope)
    }

    fn window(&mut self, lane: &Lane, limit: usize) -> Result<Vec<Candidate>, LogError> {
        let Some(id) = self.lane_id(lane)? else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT {CANDIDATE} FROM record WHERE lane = ?1 AND state = 0 AND front = 1
               AND NOT EXISTS (SELECT 1 FROM lane WHERE id = ?1 AND paused_ms IS NOT NULL)
             ORDER BY due_ms, seq LIMIT ?2"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![id, limit_to_db(limit)], |row| candidate(row, lane))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn content(&mut self, seq: Seq) -> Result<Option<Content>, LogError> {
        content(&self.connection, content::BY_SEQ, seq.0)?.read()
    }

    fn content_of(&mut self, id: RecordId) -> Result<Option<Content>, LogError> {
        content(&self.connection, content::BY_ID, id.as_bytes())?.read()
    }

    fn census(&mut self, visit: &mut dyn FnMut(CensusRow)) -> Result<(), LogError> {
        let tx = self.connection.transaction()?;
        let mut statement = tx.prepare(
            "SELECT tenant, upstream, total(state < 3), total(state NOT IN (3, 5)),
                    total(CASE WHEN state NOT IN (3, 5) THEN size ELSE 0 END), total(state IN (3, 5))
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
            "SELECT tenant, upstream, okey, count(*)
             FROM (SELECT lane, okey FROM record WHERE okey IS NOT NULL AND open = 1
                   UNION ALL SELECT lane, okey FROM record WHERE pauses = 1) AS line
             JOIN lane ON lane.id = line.lane GROUP BY line.lane, okey",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            visit(CensusRow::Key {
                lane: lane(&tenant, &upstream)?,
                key: row.get(2)?,
                line: from_db(row.get(3)?),
            });
        }
        let mut statement = tx.prepare(
            "SELECT tenant, upstream, total(size), min(until_ms) FROM response JOIN lane ON lane.id = response.lane
             GROUP BY response.lane",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            visit(CensusRow::Responses {
                lane: lane(&tenant, &upstream)?,
                bytes: row.get::<_, f64>(2)? as u64,
                until_ms: from_db(row.get(3)?),
            });
        }
        let mut statement =
            tx.prepare(&format!("SELECT scope FROM record WHERE {HAS_KEY} ORDER BY scope"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            visit(CensusRow::Scope(KeyScope(row.get(0)?)));
        }
        let expires: Option<i64> = tx
            .query_row(
                "SELECT expires_ms FROM record WHERE open = 1 ORDER BY expires_ms LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()?;
        visit(CensusRow::Earliest {
            expires_ms: expires.map(from_db),
            delivered_ms: oldest_receipt(&tx)?,
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

    fn records(&mut self, query: &RecordQuery) -> Result<RecordPage, LogError> {
        let tx = self.connection.transaction()?;
        let lanes: Vec<(i64, String)> = tx
            .prepare_cached(
                "SELECT id, upstream FROM lane WHERE tenant = ?1 AND (?2 IS NULL OR upstream = ?2) ORDER BY id",
            )?
            .query_map(
                params![query.tenant.as_str(), query.upstream.as_ref().map(UpstreamName::as_str)],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?
            .collect::<Result<_, _>>()?;
        let sql = format!(
            "SELECT {LISTING}, {KEY_PAUSED} FROM record r INDEXED BY record_lane LEFT JOIN content c ON c.seq = r.seq
             WHERE r.lane = ?1 AND r.seq > ?2 ORDER BY r.seq LIMIT ?3"
        );
        let mut statement = tx.prepare_cached(&sql)?;
        let limit = query.limit.clamp(1, PAGE_MAX);
        let look = (LOOK / lanes.len().max(1)).max(100);
        let mut records = Vec::new();
        // Up to where every lane was looked at.
        let mut horizon: Option<u64> = None;
        for (lane, upstream) in lanes {
            let upstream = name(&upstream, "upstream")?;
            let mut rows = statement.query(params![lane, to_db(query.after), limit_to_db(look)])?;
            let (mut looked, mut taken) = (0, 0);
            while let Some(row) = rows.next()? {
                let record = listing(row, &upstream)?;
                let seq = record.seq;
                looked += 1;
                if query.takes(&record) {
                    records.push(record);
                    taken += 1;
                }
                if looked == look || taken == limit {
                    horizon = Some(horizon.map_or(seq, |horizon| horizon.min(seq)));
                    break;
                }
            }
        }
        Ok(RecordPage::cut(records, horizon, limit))
    }

    fn record(&mut self, tenant: &TenantName, id: RecordId) -> Result<Option<RecordView>, LogError> {
        let sql = format!(
            "SELECT {LISTING}, {KEY_PAUSED}, r.repeat_safe, l.upstream FROM record r JOIN lane l ON l.id = r.lane
             LEFT JOIN content c ON c.seq = r.seq WHERE r.id = ?1 AND l.tenant = ?2"
        );
        let found = {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params![id.as_bytes(), tenant.as_str()])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let upstream: String = row.get(18)?;
            (listing(row, &name(&upstream, "upstream")?)?, row.get(17)?)
        };
        let (listing, repeat_safe) = found;
        let content = self.content(Seq(to_db(listing.seq)))?;
        Ok(Some(RecordView { listing, repeat_safe, request: content.as_ref().map(request_view) }))
    }

    fn oldest(&mut self, lane: &Lane) -> Result<Option<u64>, LogError> {
        let Some(id) = self.lane_id(lane)? else { return Ok(None) };
        let from = self.settled.get(&id).copied().unwrap_or(0);
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, state, accepted_ms, pauses FROM record INDEXED BY record_lane
             WHERE lane = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3",
        )?;
        let mut rows = statement.query(params![id, from, limit_to_db(LOOK)])?;
        let mut settled = from;
        let mut oldest = None;
        let mut so_far = true;
        while let Some(row) = rows.next()? {
            if so_far {
                settled = row.get(0)?;
            }
            if row.get::<_, u8>(1)? < DELIVERED {
                oldest = Some(from_db(row.get(2)?));
                break;
            }
            // One that pauses its key may be queued again at this place.
            so_far &= !row.get::<_, bool>(3)?;
        }
        drop(rows);
        drop(statement);
        self.settled.insert(id, settled);
        Ok(oldest)
    }

    fn paused(&mut self) -> Result<Vec<Lane>, LogError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tenant, upstream FROM lane WHERE paused_ms IS NOT NULL ORDER BY tenant, upstream",
        )?;
        let mut rows = statement.query([])?;
        let mut paused = Vec::new();
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            paused.push(lane(&tenant, &upstream)?);
        }
        Ok(paused)
    }

    fn rates(&mut self) -> Result<Vec<(Lane, Rate)>, LogError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tenant, upstream, per_second FROM lane WHERE per_second IS NOT NULL ORDER BY tenant, upstream",
        )?;
        let mut rows = statement.query([])?;
        let mut rates = Vec::new();
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            let rate = row.get::<_, u32>(2)?.try_into();
            let rate = rate.map_err(|error| LogError::Corrupt(format!("upstream {upstream}: {error}")))?;
            rates.push((lane(&tenant, &upstream)?, rate));
        }
        Ok(rates)
    }

    fn paused_keys(&mut self) -> Result<Vec<(Lane, u64)>, LogError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT tenant, upstream, count(DISTINCT okey) FROM record JOIN lane ON lane.id = record.lane
             WHERE pauses = 1 GROUP BY record.lane ORDER BY tenant, upstream",
        )?;
        let mut rows = statement.query([])?;
        let mut paused = Vec::new();
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(0)?, row.get(1)?);
            paused.push((lane(&tenant, &upstream)?, from_db(row.get(2)?)));
        }
        Ok(paused)
    }

    fn audit(
        &mut self,
        tenant: Option<&TenantName>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRow>, LogError> {
        // Two statements rather than one with `OR`: each then walks its own index in order.
        let select = "SELECT seq, at_ms, actor, action, tenant, upstream, record, count, detail, from_ms, until_ms \
             FROM audit WHERE";
        let sql = match tenant {
            Some(_) => format!("{select} tenant = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"),
            None => format!("{select} ?1 IS NULL AND seq > ?2 ORDER BY seq LIMIT ?3"),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let limit = limit_to_db(limit.min(PAGE_MAX));
        let mut rows = statement.query(params![tenant.map(TenantName::as_str), to_db(after), limit])?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            let (tenant, upstream): (String, String) = (row.get(4)?, row.get(5)?);
            let Lane { tenant, upstream } = lane(&tenant, &upstream)?;
            page.push(AuditRow {
                seq: from_db(row.get(0)?),
                at_ms: from_db(row.get(1)?),
                actor: row.get(2)?,
                action: row.get(3)?,
                tenant,
                upstream,
                record: row.get::<_, Option<[u8; 16]>>(6)?.map(RecordId::from_bytes),
                count: from_db(row.get(7)?),
                detail: row.get(8)?,
                accepted_ms: row
                    .get::<_, Option<i64>>(9)?
                    .zip(row.get(10)?)
                    .map(|(from, until)| (from_db(from), from_db(until))),
            });
        }
        Ok(page)
    }
}
