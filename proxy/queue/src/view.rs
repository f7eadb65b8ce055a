//! What people get to see of records: heads without credentials, targets without their query, no bodies and no secrets.

use beamline_model::{TenantName, UpstreamName};
use serde::Serialize;

use crate::{
    log::Content,
    rate::Rate,
    record::{RecordId, State, StateName},
};

/// The most records, or rows of the audit, that one page has.
pub const PAGE_MAX: usize = 1000;

/// Header fields whose values are shown. All others are told by name and length: what carries a credential has too many
/// names for a list of those.
const SHOWN: [&str; 14] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "expect",
    "prefer",
    "traceparent",
    "user-agent",
    "via",
];

/// Which of a tenant's records are asked for.
#[derive(Clone, Debug)]
pub struct RecordQuery {
    /// Whose.
    pub tenant: TenantName,
    /// Only those for this upstream.
    pub upstream: Option<UpstreamName>,
    /// Only those in this state.
    pub state: Option<StateName>,
    /// Only those of this ordering key.
    pub ordering_key: Option<String>,
    /// Only those after this place in commit order; 0 for all.
    pub after: u64,
    /// The most that are wanted; never more than [`PAGE_MAX`].
    pub limit: usize,
}

impl RecordQuery {
    /// Whether a record of the tenant and the upstream is one of those that are asked for.
    pub(crate) fn takes(&self, record: &RecordListing) -> bool {
        self.state.is_none_or(|state| state == record.state.name())
            && self.ordering_key.as_ref().is_none_or(|key| record.ordering_key.as_ref() == Some(key))
    }
}

/// A page of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecordPage {
    /// In commit order.
    pub records: Vec<RecordListing>,
    /// After which place the next page begins. None after the last one; a short page may have a next one.
    pub next: Option<u64>,
}

impl RecordPage {
    /// The first `limit` of these, up to the horizon: what was looked at. Beyond it there may be more.
    pub(crate) fn cut(mut records: Vec<RecordListing>, horizon: Option<u64>, limit: usize) -> Self {
        records.retain(|record| horizon.is_none_or(|horizon| record.seq <= horizon));
        records.sort_unstable_by_key(|record| record.seq);
        let cut = records.len() > limit;
        records.truncate(limit);
        let next = if cut { records.last().map(|record| record.seq) } else { horizon };
        Self { records, next }
    }
}

/// The version of the lines that exports write, in each of them: raised where a reader of the version before would misread one.
pub const EXPORT_VERSION: u64 = 1;

/// A page of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportPage {
    /// In commit order.
    pub records: Vec<RecordView>,
    /// After which place the next page begins. None after the last one; a short page may have a next one.
    pub next: Option<u64>,
}

/// A record in a list. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordListing {
    /// Its place in commit order. A record that is tried again by hand gets a new one, unless its key was paused for it.
    pub seq: u64,
    /// Its id.
    pub id: RecordId,
    /// Where it goes.
    pub upstream: UpstreamName,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: State,
    /// Its ordering key.
    pub ordering_key: Option<String>,
    /// Whether its ordering key is paused here: it is dead and what comes after it waits, or it waits after such a one.
    pub key_paused: bool,
    /// What it counts for in quotas, in bytes.
    pub bytes: u64,
    /// When it was accepted.
    pub accepted_ms: u64,
    /// When it is tried next, where it waits for its turn.
    pub due_ms: Option<u64>,
    /// When it stops being tried.
    pub expires_ms: u64,
    /// When it became delivered or dead.
    pub finished_ms: Option<u64>,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The status of the last answer from the origin, if there was any.
    pub last_status: Option<u16>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<String>,
    /// The method. None where the content is erased.
    pub method: Option<String>,
    /// The path, without the query. None where the content is erased.
    pub path: Option<String>,
}

/// A record as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordView {
    /// As in a list.
    #[serde(flatten)]
    pub listing: RecordListing,
    /// Whether the origin takes this request twice as once.
    pub repeat_safe: bool,
    /// What is left of the request. None where the content is erased.
    pub request: Option<RequestView>,
}

impl RecordView {
    /// About how much of it is head.
    pub(crate) fn head_bytes(&self) -> usize {
        let path = self.listing.path.as_ref().map_or(0, String::len);
        let fields = self.request.iter().flat_map(|request| &request.headers);
        path + fields
            .map(|field| field.name.len() + field.value.as_ref().map_or(0, String::len))
            .sum::<usize>()
    }
}

/// A stored request as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestView {
    /// The value of `Host`.
    pub host: String,
    /// The header fields, in order.
    pub headers: Vec<HeaderView>,
    /// The length of the body.
    pub body_bytes: u64,
    /// The revision that the filters ran under.
    pub revision: u64,
    /// The id that the client's request had in logs.
    pub request_id: String,
}

/// A header field as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderView {
    /// Its name.
    pub name: String,
    /// Its value, where it is one that carries no credential.
    pub value: Option<String>,
    /// The length of its value.
    pub bytes: usize,
}

/// How one upstream's part of the queue fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneStatus {
    /// Whose.
    pub tenant: TenantName,
    /// Which.
    pub upstream: UpstreamName,
    /// Records that wait or are being delivered.
    pub depth: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes of both, and of answers that are kept for receipts.
    pub bytes: u64,
    /// Records accepted since the queue was opened, by this process.
    pub accepted: u64,
    /// Records delivered since then.
    pub delivered: u64,
    /// Records that became dead since then.
    pub died: u64,
    /// When the first of the open records was accepted, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<u64>,
    /// Whether deliveries are paused.
    pub paused: bool,
    /// How many deliveries may begin in a second. None: as many as can.
    pub per_second: Option<Rate>,
    /// Ordering keys that are paused because a record of theirs died.
    pub paused_keys: u64,
}

/// One row of the queue's audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number: later rows have greater ones.
    pub seq: u64,
    /// Wall time in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// On whose authority: `operator`, `tenant/<name>`, `receipt` for who holds one, or `node` for what it does by itself.
    pub actor: String,
    /// What was done, such as `queue.discard`.
    pub action: String,
    /// To whose records.
    pub tenant: TenantName,
    /// To those of which upstream.
    pub upstream: UpstreamName,
    /// To which record, where it was one.
    pub record: Option<RecordId>,
    /// To how many.
    pub count: u64,
    /// What the record was before, which states were purged, or what the node ended or deleted.
    pub detail: String,
    /// Of what the node did: when the first of the records was accepted, and when the last.
    pub accepted_ms: Option<(u64, u64)>,
}

/// A target without its query, which may hold secrets.
pub(crate) fn path_of(target: &str) -> String {
    target.split(['?', '#']).next().unwrap_or_default().to_owned()
}

pub(crate) fn request_view(content: &Content) -> RequestView {
    let header = |(name, value): &(String, Vec<u8>)| HeaderView {
        name: name.clone(),
        value: SHOWN
            .iter()
            .any(|shown| name.eq_ignore_ascii_case(shown))
            .then(|| String::from_utf8_lossy(value).into_owned()),
        bytes: value.len(),
    };
    RequestView {
        host: content.host.clone(),
        headers: content.headers.iter().map(header).collect(),
        body_bytes: content.body.len(),
        revision: content.revision,
        request_id: content.request_id.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_no_query() {
        for (target, path) in [("/a/b?token=1", "/a/b"), ("/a", "/a"), ("/a#b", "/a"), ("?x", "")] {
            assert_eq!(path_of(target), path);
        }
    }

    #[test]
    fn only_values_that_carry_no_credential_are_shown() {
        let mut content = crate::log::sample_content();
        content.headers = [
            ("Content-Type", "text/plain"),
            ("Authorization", "Bearer s3cret"),
            ("Cookie", "s=s3cret"),
            ("X-Api-Key", "s3cret"),
            ("X-Anything", "s3cret"),
        ]
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .to_vec();
        content.sealed = Some(bytes::Bytes::from_static(b"s3cret"));
        let view = request_view(&content);
        let text = serde_json::to_string(&view).unwrap();
        assert!(!text.contains("s3cret") && text.contains("Authorization"), "{text}");
        assert_eq!(view.headers[0].value.as_deref(), Some("text/plain"));
        assert_eq!((view.headers[1].value.as_deref(), view.headers[1].bytes), (None, 13));
    }
}
