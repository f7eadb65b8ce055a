//! The audit: what was done by whom, from the control plane's store and from the queue's log, as one list.

use std::{fmt, str::FromStr};

use axum::extract::State;
use beamline_model::{TenantName, TokenScope};
use beamline_queue::PAGE_MAX;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Value, json};

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::Query,
};

/// How far a reader of the audit has come in each of its two halves. To callers it is an opaque text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    control: u64,
    queue: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.control, self.queue)
    }
}

impl FromStr for Position {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('.').and_then(|(control, queue)| {
            Some(Self { control: control.parse().ok()?, queue: queue.parse().ok()? })
        });
        parsed.ok_or("expected the `next` of an earlier answer, such as \"12.7\"")
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Only rows about this tenant.
    tenant: Option<TenantName>,
    /// Only what comes after this position.
    #[serde(default)]
    after: Position,
    #[serde(default = "page")]
    limit: usize,
}

const fn page() -> usize {
    100
}

#[derive(Serialize)]
pub(crate) struct Audit {
    entries: Vec<Entry>,
    /// Where the next page begins, and where what is done later will be.
    next: Position,
}

/// One thing that was done.
#[derive(Serialize)]
struct Entry {
    at_ms: u64,
    actor: String,
    action: String,
    tenant: Option<TenantName>,
    detail: Value,
}

/// The halves are merged by time; each is in its own order in any case.
pub(crate) async fn list(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Query(AuditQuery { tenant, after, limit }): Query<AuditQuery>,
) -> Result<Answer<Audit>, Refusal> {
    // A tenant that names none means itself; one that names another is refused by `control`.
    let tenant = match (&actor, tenant) {
        (TokenScope::Tenant(own), None) => Some(own.clone()),
        (_, tenant) => tenant,
    };
    let tenant = tenant.as_ref();
    let limit = limit.clamp(1, PAGE_MAX);
    let wanted = u32::try_from(limit).unwrap_or(u32::MAX);
    let control = state.control.audit(tenant, after.control, wanted, &actor).await?;
    let queue = state.queue.audit(tenant, after.queue, limit).await?;
    let (mut control, mut queue) = (control.into_iter().peekable(), queue.into_iter().peekable());
    let (mut entries, mut next) = (Vec::new(), after);
    while entries.len() < limit {
        let queues_turn = match (control.peek(), queue.peek()) {
            (Some(c), Some(q)) => q.at_ms < c.at_ms,
            (None, _) => true,
            (Some(_), None) => false,
        };
        if queues_turn {
            let Some(row) = queue.next() else { break };
            next.queue = row.seq;
            entries.push(Entry {
                at_ms: row.at_ms,
                actor: row.actor,
                action: row.action,
                tenant: Some(row.tenant),
                detail: json!({
                    "upstream": row.upstream,
                    "record": row.record,
                    "count": row.count,
                    "of": row.detail,
                    "from_ms": row.accepted_ms.map(|(from, _)| from),
                    "until_ms": row.accepted_ms.map(|(_, until)| until),
                }),
            });
        } else {
            let Some(row) = control.next() else { break };
            next.control = row.seq;
            entries.push(Entry {
                at_ms: row.at_ms,
                actor: row.actor,
                action: row.action,
                tenant: row.tenant,
                detail: row.detail,
            });
        }
    }
    Ok(ok(Audit { entries, next }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_what_it_writes_and_nothing_else() {
        let position = Position { control: 12, queue: 7 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for bad in ["", "12", "12.", ".7", "12.7.1", "-1.0", "a.b"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
