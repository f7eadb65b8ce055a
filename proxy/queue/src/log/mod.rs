//! The log: where records are kept. It knows rows and transactions, nothing of time or of deliveries.
//!
//! Two halves: a [`Log`] that one thread writes groups of [`Change`]s to, each group one durable transaction, and
//! [`LogReader`]s that read beside it. Changes say what they expect to find (`attempts`, `epoch`), so that one which
//! is applied twice, or comes from an outdated view, does nothing and says [`Effect::Stale`].
//!
//! The log keeps ordering keys in order: of the open records of a key only the first is at the *front*, and only
//! front records are ever handed to delivery. The change that ends a record brings the next one of its key to the
//! front in the same transaction. A dead record may *pause* its key: it keeps its place in the line, so that none that
//! comes after it gets to the front until somebody deals with it.

mod codec;
#[cfg(test)]
mod conformance;
mod deed;
#[cfg(test)]
pub(crate) mod memory;
mod sqlite;

use bytes::Bytes;
use thiserror::Error;

pub(crate) use sqlite::SqliteLog;

use crate::{
    body::StoredBody,
    idempotency::{Holder, KeyScope, KeyUse},
    rate::Rate,
    receipt::SecretHash,
    record::{DeadReason, Lane, ReceiptView, RecordId, Seq, State, StateName, TraceRef},
    response::{KeptResponse, NewResponse},
    spool::BodyName,
    view::{AuditRow, ExportPage, RecordPage, RecordQuery, RecordView},
};
use beamline_model::{OnDead, TenantName, UpstreamName};

/// Why the log could not do something.
#[derive(Debug, Error)]
pub enum LogError {
    /// The disk has no room.
    #[error("the queue's disk is full ({0}): free space or lower max_bytes")]
    Full(String),
    /// What is on disk is not a queue that this version can read.
    #[error("the queue's log is not usable: {0}")]
    Corrupt(String),
    /// Anything else that the disk or SQLite answers.
    #[error("the queue's log failed: {0}")]
    Failed(String),
}

/// A durable log, written by one thread.
pub(crate) trait Log: Send {
    /// Applies a group as one transaction. When it returns `Ok`, the group survives a power cut.
    /// After an error the group may be there or not, and the log must be [`Log::reopen`]ed before the next commit.
    fn commit(&mut self, group: &[Change]) -> Result<Vec<Effect>, LogError>;

    /// Opens the log anew after an error, and verifies that it is sound and takes a durable write.
    fn reopen(&mut self) -> Result<(), LogError>;

    /// A reader beside the log.
    fn reader(&self) -> Result<Box<dyn LogReader>, LogError>;

    /// Makes this log its process's own: takes the next epoch. The caller holds the owner's lock.
    fn take_over(&mut self) -> Result<(), LogError>;

    /// Gives up what [`Log::take_over`] took. Appends go on.
    fn let_go(&mut self);

    /// This owner's epoch: one more than that of the owner before. 0 where this is not the owner.
    fn epoch(&self) -> u64;

    /// Called between groups: what keeps the log small. The owner's affair.
    fn maintain(&mut self) -> Result<(), LogError>;
}

/// A view of the log for reading. Each call sees one moment.
pub(crate) trait LogReader: Send {
    /// The receipt's row, with what proves a right to see it.
    fn receipt(&mut self, id: RecordId) -> Result<Option<StoredReceipt>, LogError>;

    /// The answer that is kept for a record, whether its time is over or not.
    fn response(&mut self, id: RecordId) -> Result<Option<KeptResponse>, LogError>;

    /// The record that has a client's key.
    fn holder(&mut self, scope: &KeyScope) -> Result<Option<Holder>, LogError>;

    /// The queued records of `lane` that are at the front, the earliest due first.
    fn window(&mut self, lane: &Lane, limit: usize) -> Result<Vec<Candidate>, LogError>;

    /// What a delivery sends. None where the record has none any more.
    fn content(&mut self, seq: Seq) -> Result<Option<Content>, LogError>;

    /// The same of the record with this id, wherever it is in commit order by now.
    fn content_of(&mut self, id: RecordId) -> Result<Option<Content>, LogError>;

    /// Visits what the books are kept by, and every lane that has open records.
    fn census(&mut self, visit: &mut dyn FnMut(CensusRow)) -> Result<(), LogError>;

    /// Whether a record names this body file.
    fn names_body(&mut self, name: BodyName) -> Result<bool, LogError>;

    /// A page of a tenant's records, in commit order. Looks at a bounded number of rows: a page may be short, and there
    /// are more all the same where it says where the next one begins.
    fn records(&mut self, query: &RecordQuery) -> Result<RecordPage, LogError>;

    /// One record of a tenant, as it may be shown: without credentials, query or secrets.
    fn record(&mut self, tenant: &TenantName, id: RecordId) -> Result<Option<RecordView>, LogError>;

    /// When the first open record of the lane was accepted. None where there is none, or none within a bounded look.
    fn oldest(&mut self, lane: &Lane) -> Result<Option<u64>, LogError>;

    /// The lanes that are paused.
    fn paused(&mut self) -> Result<Vec<Lane>, LogError>;

    /// The lanes that have a rate.
    fn rates(&mut self) -> Result<Vec<(Lane, Rate)>, LogError>;

    /// How many ordering keys of each lane are paused, where any is.
    fn paused_keys(&mut self) -> Result<Vec<(Lane, u64)>, LogError>;

    /// At most `limit` rows of the audit after row `after`, oldest first: of one tenant, or of all.
    fn audit(
        &mut self,
        tenant: Option<&TenantName>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRow>, LogError>;
}

/// One change to the log. Times are wall-clock milliseconds.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A new record, `queued`; none where another record has its key.
    Append(Box<Append>),
    /// `queued → delivering`, owned by `epoch`.
    Begin { seq: Seq, attempts: u32, epoch: u64 },
    /// `delivering → queued`, to be tried again when `again` is due. Of `again`, only what an attempt changes is written.
    Retry { attempt: AttemptRef, again: Candidate, note: Note },
    /// The same for an attempt that was never marked, for not a byte of it could leave: the record was `queued` all the time.
    Miss { attempt: AttemptRef, again: Candidate, note: Note },
    /// `delivering → held`.
    Hold { attempt: AttemptRef },
    /// Every record of the lane: `held → queued`.
    Release { lane: Lane },
    /// `delivering → delivered | dead`. A delivered record's content goes at once. The origin's answer may be kept.
    Finish { attempt: AttemptRef, end: End, at_ms: u64, note: Note, response: Option<Box<NewResponse>> },
    /// Deletes up to `limit` kept answers whose time is over, the earliest first.
    Forget { now_ms: u64, limit: usize },
    /// The first `limit` open records past their expiry that are not being delivered: `→ dead(expired)`.
    Expire { now_ms: u64, limit: usize },
    /// An append that was refused: `→ dead(unconfirmed)` if it is there after all.
    Disown { id: RecordId, at_ms: u64 },
    /// Records `delivering` for an epoch before this one: `→ queued` where safe to repeat, else `→ dead(indeterminate)`.
    /// And held ones are `queued` again: whether their upstream is there, the new owner finds by trying.
    Recover { epoch: u64, now_ms: u64, limit: usize },
    /// Deletes up to `limit` finished records whose retention is over.
    Prune { now_ms: u64, delivered_before_ms: u64, dead_before_ms: u64, limit: usize },
    /// Deletes the `limit` oldest delivered records, and of erased ones where there are fewer.
    Trim { now_ms: u64, limit: usize },
    /// Deletes up to `limit` finished records of a tenant that is being deleted, before their retention is over.
    Clear { tenant: TenantName, now_ms: u64, limit: usize },
    /// What somebody does to records by hand.
    Intervene(Box<Intervention>),
}

/// What somebody does to a tenant's records by hand. Where it changes anything, its audit row is in the same transaction.
#[derive(Clone, Debug)]
pub(crate) struct Intervention {
    pub(crate) tenant: TenantName,
    /// On whose authority, such as `operator`. Never a token or a secret.
    pub(crate) actor: String,
    pub(crate) at_ms: u64,
    pub(crate) act: Act,
}

/// What is done by hand.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// `queued | held → dead(cancelled)`.
    Cancel { id: RecordId },
    /// `queued | held | dead → dead(discarded)`.
    Discard { id: RecordId },
    /// `dead → queued`, with as much time as it had at first; at its old place where it pauses its key, else with a new
    /// one in commit order. One that may have been taken only where it `may_repeat`.
    Requeue { id: RecordId, may_repeat: bool },
    /// Discards the first `limit` records of the lane in these states that come after `after` and not after `until`
    /// (without it: the last one there is).
    Purge { upstream: UpstreamName, states: Vec<StateName>, after: Seq, until: Option<Seq>, limit: usize },
    /// Of a paused lane no record is at the front, and none is begun.
    Pause { upstream: UpstreamName, paused: bool },
    /// So many deliveries of the lane may begin in a second; none: as many as can.
    Rate { upstream: UpstreamName, rate: Option<Rate> },
    /// The first `limit` dead records that pause this ordering key do so no more.
    ResumeKey { upstream: UpstreamName, key: String, limit: usize },
    /// Nothing but its audit row: the bodies of so many records of the lane are read.
    Export { upstream: UpstreamName, records: u64 },
}

impl Act {
    /// The action's name in the audit.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Cancel { .. } => "queue.cancel",
            Self::Discard { .. } => "queue.discard",
            Self::Requeue { .. } => "queue.retry",
            Self::Purge { .. } => "queue.purge",
            Self::Pause { paused: true, .. } => "queue.pause",
            Self::Pause { paused: false, .. } => "queue.resume",
            Self::Rate { .. } => "queue.rate",
            Self::ResumeKey { .. } => "queue.resume-key",
            Self::Export { .. } => "queue.export",
        }
    }

    /// Whether this act may be done to a record in this state.
    fn permit(&self, state: State) -> Result<(), Refused> {
        let dead = |reason: DeadReason| state == State::Dead { reason };
        let may = match self {
            Self::Cancel { .. } => matches!(state, State::Queued | State::Held),
            Self::Discard { .. } | Self::Purge { .. } => match state {
                State::Queued | State::Held => true,
                State::Dead { reason } => !reason.is_erased(),
                State::Delivering | State::Delivered { .. } => false,
            },
            Self::Requeue { may_repeat: false, .. } if dead(DeadReason::Indeterminate) => {
                return Err(Refused::MayRepeat);
            }
            Self::Requeue { .. } => match state {
                State::Dead { reason } => !reason.is_erased() && reason != DeadReason::Unconfirmed,
                _ => false,
            },
            Self::Pause { .. } | Self::Rate { .. } | Self::ResumeKey { .. } | Self::Export { .. } => true,
        };
        if may { Ok(()) } else { Err(Refused::State(state)) }
    }

    /// What becomes of a record that this ends.
    const fn reason(&self) -> DeadReason {
        match self {
            Self::Cancel { .. } => DeadReason::Cancelled,
            _ => DeadReason::Discarded,
        }
    }
}

/// Whether a record in this state has its client's key: as long as it may be delivered, was, or may have been and must not
/// be twice.
const fn has_key(state: State) -> bool {
    match state {
        State::Queued | State::Delivering | State::Held | State::Delivered { .. } => true,
        State::Dead { reason } => matches!(reason, DeadReason::Indeterminate),
    }
}

/// When a record expires that is queued again: it has as long as it had at first.
fn expires_again(accepted_ms: u64, expires_ms: u64, now_ms: u64) -> u64 {
    expires_ms.max(now_ms.saturating_add(expires_ms.saturating_sub(accepted_ms)))
}

/// A content for tests.
#[cfg(test)]
pub(crate) fn sample_content() -> Content {
    conformance::append(1, None).content
}

/// A rate for the audit.
fn told(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "none".into(), |rate| rate.to_string())
}

/// A page of records as they may be shown, with what is left of their requests. Ends early where the heads would be many
/// bytes.
pub(crate) fn export(log: &mut dyn LogReader, query: &RecordQuery) -> Result<ExportPage, LogError> {
    let page = log.records(query)?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    for listing in page.records {
        // One that was queued again between two looks has a new place, and comes there.
        if let Some(view) =
            log.record(&query.tenant, listing.id)?.filter(|view| view.listing.seq == listing.seq)
        {
            bytes += view.head_bytes();
            records.push(view);
        }
        if bytes >= EXPORT_BYTES {
            return Ok(ExportPage { records, next: Some(listing.seq) });
        }
    }
    Ok(ExportPage { records, next: page.next })
}

/// Of heads, after which a page of an export ends.
const EXPORT_BYTES: usize = 1 << 20;

/// What an export read, for the audit.
const BODIES: &str = "bodies";

/// The states that a purge took, for the audit.
fn listed(states: &[StateName]) -> String {
    states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(", ")
}

/// Rows of the audit that are kept: the oldest go beyond it, so that whoever can cancel what they send cannot fill the disk.
/// What the node does by itself has a row an hour, and cannot crowd out what people do.
const AUDIT_ROWS: u64 = 200_000;
/// Rows that one page of a list or a purge looks at, and one look for the oldest open record.
const LOOK: usize = 10_000;

/// A new record's row.
#[derive(Clone, Debug)]
pub(crate) struct Append {
    pub(crate) id: RecordId,
    pub(crate) secret: SecretHash,
    pub(crate) lane: Lane,
    pub(crate) ordering_key: Option<String>,
    pub(crate) on_dead: OnDead,
    pub(crate) repeat_safe: bool,
    pub(crate) accepted_ms: u64,
    /// From its acceptance until it may be tried.
    pub(crate) delay_ms: u64,
    pub(crate) expires_ms: u64,
    /// What it counts for in quotas.
    pub(crate) size: u64,
    /// What its client used an `Idempotency-Key` for.
    pub(crate) key_use: Option<KeyUse>,
    pub(crate) content: Content,
}

impl Append {
    /// When it may be tried.
    pub(crate) fn due_ms(&self) -> u64 {
        self.accepted_ms.saturating_add(self.delay_ms)
    }

    /// The record as delivery sees it, once it is in the log and at the front.
    pub(crate) fn candidate(&self, seq: Seq) -> Candidate {
        Candidate {
            seq,
            lane: self.lane.clone(),
            accepted_ms: self.accepted_ms,
            attempts: 0,
            due_ms: self.due_ms(),
            delay_ms: self.delay_ms,
            expires_ms: self.expires_ms,
            repeat_safe: self.repeat_safe,
            keyed: self.ordering_key.is_some(),
            size: self.size,
            blame: None,
        }
    }
}

/// What a delivery sends, and with which trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) id: RecordId,
    pub(crate) revision: u64,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// Credentials, sealed by the caller. Goes with the rest of the content.
    pub(crate) sealed: Option<Bytes>,
    pub(crate) body: StoredBody,
    pub(crate) accepted_ms: u64,
    pub(crate) trace: TraceRef,
    pub(crate) request_id: String,
}

/// One attempt of this owner: the record, and how many attempts it has had, this one among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptRef {
    pub(crate) seq: Seq,
    pub(crate) attempts: u32,
    pub(crate) epoch: u64,
}

/// What an attempt led to, for receipts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<String>,
}

/// What a record itself is to blame for: the origin could be reached and did not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blame {
    /// How often.
    pub(crate) failures: u32,
    /// Since when.
    pub(crate) since_ms: u64,
}

/// How a record ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Delivered { response_complete: bool },
    Dead(DeadReason),
}

impl End {
    /// What the record then is.
    const fn state(self) -> State {
        match self {
            Self::Delivered { response_complete } => State::Delivered { response_complete },
            Self::Dead(reason) => State::Dead { reason },
        }
    }
}

/// A record that delivery may try: queued, and at the front of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) seq: Seq,
    pub(crate) lane: Lane,
    pub(crate) accepted_ms: u64,
    /// Attempts begun so far.
    pub(crate) attempts: u32,
    /// When it may be tried: the time of its acceptance with its delay, or of its next attempt.
    pub(crate) due_ms: u64,
    /// How long it was to wait when `due_ms` was set: since its acceptance, or since its last attempt.
    pub(crate) delay_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) repeat_safe: bool,
    pub(crate) keyed: bool,
    /// What it counts for in quotas, and in its tenant's turn.
    pub(crate) size: u64,
    /// Whether the origin has been refusing it.
    pub(crate) blame: Option<Blame>,
}

/// A record that became delivered or dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) id: RecordId,
    pub(crate) lane: Lane,
    pub(crate) key: Option<String>,
    pub(crate) size: u64,
    pub(crate) delivered: bool,
    /// Whether its content went with it, and only its receipt is left.
    pub(crate) erased: bool,
    pub(crate) accepted_ms: u64,
    /// The file that no row names any more, to be removed.
    pub(crate) freed: Option<BodyName>,
    /// The next record of its key, now at the front.
    pub(crate) promoted: Option<Candidate>,
    /// The client's key that it has no more.
    pub(crate) released: Option<KeyScope>,
    /// Bytes of the origin's answer that is kept now.
    pub(crate) response: u64,
    /// Whether it keeps its place in its key and those after it wait.
    pub(crate) pauses: bool,
}

/// Dead records that paused their key and no longer do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unpaused {
    pub(crate) lane: Lane,
    pub(crate) key: String,
    /// How many.
    pub(crate) records: u64,
    /// The next record of the key, now at the front.
    pub(crate) promoted: Option<Candidate>,
}

/// A finished record that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) lane: Lane,
    pub(crate) size: u64,
    /// Whether only its receipt was left: it was delivered, or erased by hand.
    pub(crate) receipt: bool,
    pub(crate) accepted_ms: u64,
    pub(crate) freed: Option<BodyName>,
    /// The client's key that it had until then.
    pub(crate) released: Option<KeyScope>,
    /// Bytes of its kept answer, which went with it.
    pub(crate) response: u64,
    /// Where it paused its key.
    pub(crate) unpaused: Option<Unpaused>,
}

/// A dead letter whose content was erased by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Erased {
    pub(crate) lane: Lane,
    pub(crate) size: u64,
    pub(crate) freed: Option<BodyName>,
    /// The client's key that it had until then.
    pub(crate) released: Option<KeyScope>,
    /// Bytes of its kept answer, which went with it.
    pub(crate) response: u64,
    /// Where it paused its key.
    pub(crate) unpaused: Option<Unpaused>,
}

/// A dead letter that is queued again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requeued {
    pub(crate) candidate: Candidate,
    pub(crate) key: Option<String>,
    /// Whether it is at the front of its key.
    pub(crate) front: bool,
    pub(crate) size: u64,
    /// The client's key that it has again.
    pub(crate) retaken: Option<KeyScope>,
    /// Bytes of its kept answer, which is deleted: there will be another.
    pub(crate) response: u64,
    /// Whether it paused its key, and so has its old place.
    pub(crate) paused: bool,
}

/// What an intervention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intervened {
    /// Open records that ended.
    pub(crate) ended: Vec<Ended>,
    pub(crate) erased: Vec<Erased>,
    pub(crate) requeued: Option<Requeued>,
    /// By `ResumeKey`, where the key was paused.
    pub(crate) unpaused: Option<Unpaused>,
    /// Of a purge: after which record its next page begins, and where its last one ends. None where it is done.
    pub(crate) next: Option<(Seq, Seq)>,
}

/// Why an intervention did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The tenant has no such record.
    Unknown,
    /// Not with a record in this state.
    State(State),
    /// It may have been taken already.
    MayRepeat,
}

/// What a change did, in the order of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The record's place, and whether it is at the front of its key (always so without a key).
    Appended { seq: Seq, front: bool },
    /// By `Append`: this record has its key, and nothing was appended.
    KeyTaken(Holder),
    /// By `Begin`: what is to be sent, or none where it is lost.
    Begun(Option<Box<Content>>),
    /// Done as asked, and there is nothing more to say of it.
    Done,
    /// The record was not as the change expected; nothing was done.
    Stale,
    /// By `Finish`, or by `Disown` of a record that was there.
    Ended(Box<Ended>),
    /// By `Expire`: what ended, and when the next one expires.
    Expired { ended: Vec<Ended>, next_ms: Option<u64> },
    /// By `Recover`: how many are queued again, which are dead.
    Recovered { requeued: usize, ended: Vec<Ended> },
    /// By `Prune`, `Trim` and `Clear`: what went, and the earliest finish of what is left: of records of which only the receipt
    /// is left, and of dead letters.
    Pruned { pruned: Vec<Pruned>, oldest_delivered_ms: Option<u64>, oldest_dead_ms: Option<u64> },
    /// By `Forget`: the bytes of each answer, and until when the next one is kept.
    Forgotten { freed: Vec<(Lane, u64)>, next_ms: Option<u64> },
    /// By `Intervene`.
    Intervened(Box<Intervened>),
    /// By `Intervene`: nothing was done.
    Refused(Refused),
}

/// A receipt's row.
#[derive(Clone, Debug)]
pub(crate) struct StoredReceipt {
    pub(crate) lane: Lane,
    pub(crate) secret: SecretHash,
    pub(crate) view: ReceiptView,
}

/// One line of the census.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CensusRow {
    /// A lane: its open records; open ones and dead letters with their bytes; those of which only the receipt is left.
    Lane { lane: Lane, open: u64, kept: u64, kept_bytes: u64, delivered: u64 },
    /// A lane's kept answers: their bytes, and until when the first is kept. Only of lanes that have any.
    Responses { lane: Lane, bytes: u64, until_ms: u64 },
    /// A client's key that a record has.
    Scope(KeyScope),
    /// An ordering key with records that others have to wait for: open ones, and dead ones that pause it.
    Key { lane: Lane, key: String, line: u64 },
    /// The earliest expiry of open records, the earliest finish of those of which only the receipt is left, and of dead
    /// letters.
    Earliest { expires_ms: Option<u64>, delivered_ms: Option<u64>, dead_ms: Option<u64> },
}
