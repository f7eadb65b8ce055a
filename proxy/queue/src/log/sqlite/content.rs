//! What a delivery sends, as it is read from its row: by readers, and by the writer where a delivery begins.

use rusqlite::{Connection, ToSql};

use super::{
    super::{Content, LogError, codec},
    rows::from_db,
};
use crate::{
    body::StoredBody,
    record::{RecordId, TraceRef},
};

macro_rules! select {
    ($column:literal) => {
        concat!(
            "SELECT r.id, r.accepted_ms, c.revision, c.method, c.target, c.host, c.headers, c.body, c.body_file, c.body_len,
                    c.trace_id, c.span_id, c.sampled, c.request_id, c.sealed
             FROM record r JOIN content c USING (seq) WHERE ",
            $column,
            " = ?1"
        )
    };
}
/// By its place in commit order.
pub(super) const BY_SEQ: &str = select!("r.seq");
/// By its id.
pub(super) const BY_ID: &str = select!("r.id");

/// What a look for a record's content comes to, where SQLite is well.
pub(super) enum Found {
    Content(Box<Content>),
    /// The record has none any more.
    Nothing,
    /// There is a row, and it makes no sense: what stands against it. Nothing that opening the log anew would mend.
    Unreadable(String),
}

impl Found {
    /// For readers, to whom what makes no sense is an error.
    pub(super) fn read(self) -> Result<Option<Content>, LogError> {
        match self {
            Self::Content(content) => Ok(Some(*content)),
            Self::Nothing => Ok(None),
            Self::Unreadable(why) => Err(LogError::Corrupt(why)),
        }
    }
}

/// Looks for the content of one record.
pub(super) fn content(connection: &Connection, by: &'static str, is: impl ToSql) -> Result<Found, LogError> {
    let row = connection.prepare_cached(by)?.query_row([is], |row| {
        let body =
            (row.get::<_, Option<Vec<u8>>>(7)?, row.get::<_, Option<String>>(8)?, from_db(row.get(9)?));
        let content = Content {
            id: RecordId::from_bytes(row.get(0)?),
            accepted_ms: from_db(row.get(1)?),
            revision: from_db(row.get(2)?),
            method: row.get(3)?,
            target: row.get(4)?,
            host: row.get(5)?,
            headers: Vec::new(),
            sealed: row.get::<_, Option<Vec<u8>>>(14)?.map(Into::into),
            body: StoredBody::Inline(bytes::Bytes::new()),
            trace: TraceRef { trace_id: row.get(10)?, span_id: row.get(11)?, sampled: row.get(12)? },
            request_id: row.get(13)?,
        };
        Ok((content, codec::decode(row.get_ref(6)?.as_blob()?), body))
    });
    let (mut content, headers, body) = match row {
        Ok(row) => row,
        Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(Found::Nothing),
        // Without a code it was not SQLite that failed, but what it gave.
        Err(error) if error.sqlite_error_code().is_none() => return Ok(Found::Unreadable(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let unreadable = |what: &str| Ok(Found::Unreadable(format!("record {} has {what}", content.id)));
    let Some(headers) = headers else { return unreadable("headers of an unknown form") };
    content.body = match body {
        (Some(bytes), None, _) => StoredBody::Inline(bytes.into()),
        (None, Some(name), len) => match name.parse() {
            Ok(name) => StoredBody::File { name, len },
            Err(()) => return unreadable("a body file of no valid name"),
        },
        _ => return unreadable("not exactly one body"),
    };
    content.headers = headers;
    Ok(Found::Content(Box::new(content)))
}
