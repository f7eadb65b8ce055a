//! What a queued request is, and what can become of it.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use beamline_model::{OnDead, RevisionId, TenantName, UpstreamName};
use serde::{Deserialize, Serialize, Serializer};

use crate::{BodyBuffer, KeyClaim, ResponseView};

/// The name of one record: 48 bits of wall time, then random ones, so that new rows lie side by side in the index.
///
/// It is no secret and gives no access: a [`crate::Receipt`] does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId([u8; 16]);

impl RecordId {
    /// A new id at `wall_ms`, milliseconds since the Unix epoch.
    ///
    /// # Panics
    /// Where the operating system has no randomness to give.
    pub fn generate(wall_ms: u64) -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes[6..]).expect("the operating system gives randomness");
        bytes[..6].copy_from_slice(&wall_ms.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// From its 16 bytes, the stored form.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// A text that is not a record's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record's id: expected 22 characters of base64url, as a list of records shows them")]
pub struct InvalidRecordId;

impl FromStr for RecordId {
    type Err = InvalidRecordId;

    fn from_str(text: &str) -> Result<Self, InvalidRecordId> {
        let mut bytes = [0; 16];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(16) => Ok(Self(bytes)),
            _ => Err(InvalidRecordId),
        }
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RecordId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// The place of a record in commit order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Seq(pub(crate) i64);

/// One upstream of one tenant: what records wait for, and what is probed as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lane {
    pub(crate) tenant: TenantName,
    pub(crate) upstream: UpstreamName,
}

/// The producer's place in a trace, so that the delivery can join it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceRef {
    /// The trace that the request was part of.
    pub trace_id: [u8; 16],
    /// The producer span that the enqueue made.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded.
    pub sampled: bool,
}

/// A request to store, as it is after the filters.
#[derive(Debug)]
pub struct NewRecord {
    /// Whose request it is.
    pub tenant: TenantName,
    /// The upstream it goes to, resolved by name again at delivery.
    pub upstream: UpstreamName,
    /// The manifest's revision that the filters ran under.
    pub revision: RevisionId,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The value of `Host`.
    pub host: String,
    /// The header fields, in order, without what a delivery makes anew (framing, hop-by-hop).
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its credentials, sealed by the caller: bytes that deliveries get back as they are, and nobody else.
    pub sealed: Option<Vec<u8>>,
    /// The body, whole.
    pub body: BodyBuffer,
    /// Records of one tenant, upstream and key are delivered in commit order, one at a time. Without it: in parallel.
    pub ordering_key: Option<String>,
    /// What becomes of its ordering key when it dies by itself.
    pub on_dead: OnDead,
    /// Whether the origin takes this request twice as once.
    pub repeat_safe: bool,
    /// From now until it may be delivered, and those of its ordering key that come after it.
    pub delay: Duration,
    /// From now until the record is dead (expired).
    pub expiry: Duration,
    /// The claim on the client's `Idempotency-Key`, where it sent one. The body is then a [`BodyBuffer::hashed`] one.
    pub claim: Option<KeyClaim>,
    /// Where its trace is.
    pub trace: TraceRef,
    /// The id that the client's request had in logs.
    pub request_id: String,
}

/// Where a record is in its life.
///
/// `queued → delivering → delivered | dead`, and `queued ⇄ held`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// Waits for its turn, its upstream, or its next attempt.
    Queued,
    /// An attempt began, and its end is not known yet.
    Delivering,
    /// The upstream is not in the tenant's active revision; it waits until it is.
    Held,
    /// The upstream took it.
    Delivered {
        /// Whether the response arrived whole; where not, the request was still taken.
        response_complete: bool,
    },
    /// It is not tried again.
    Dead {
        /// Why.
        reason: DeadReason,
    },
}

/// Why a record is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeadReason {
    /// Its ordering key was blocked by it for longer than a key may be.
    Exhausted,
    /// The origin answered 3xx or 4xx, or what its manifest says is a refusal; or no request can be made of it.
    Rejected,
    /// It waited longer than its policy allows.
    Expired,
    /// It may have been taken, and is not safe to repeat: a person decides.
    Indeterminate,
    /// Its client was refused because of a disk error, yet the record was found when the log was reopened. Never sent.
    Unconfirmed,
    /// The holder of its receipt withdrew it before it was tried again. Its content is erased.
    Cancelled,
    /// An operator or its tenant gave it up. Its content is erased.
    Discarded,
}

/// The name of a [`State`], without its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// [`State::Queued`].
    Queued,
    /// [`State::Delivering`].
    Delivering,
    /// [`State::Held`].
    Held,
    /// [`State::Delivered`].
    Delivered,
    /// [`State::Dead`].
    Dead,
}

impl StateName {
    /// The name as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivering => "delivering",
            Self::Held => "held",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

impl State {
    /// The state's name: `queued`, `delivering`, `held`, `delivered` or `dead`.
    pub const fn token(self) -> &'static str {
        self.name().as_str()
    }

    /// The state without what belongs to it.
    pub const fn name(self) -> StateName {
        match self {
            Self::Queued => StateName::Queued,
            Self::Delivering => StateName::Delivering,
            Self::Held => StateName::Held,
            Self::Delivered { .. } => StateName::Delivered,
            Self::Dead { .. } => StateName::Dead,
        }
    }

    /// Whether it may still be delivered.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Delivering | Self::Held)
    }
}

impl DeadReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Exhausted,
        Self::Rejected,
        Self::Expired,
        Self::Indeterminate,
        Self::Unconfirmed,
        Self::Cancelled,
        Self::Discarded,
    ];

    /// The reason's name, as in the record's JSON form.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Indeterminate => "indeterminate",
            Self::Unconfirmed => "unconfirmed",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
        }
    }

    /// Whether the record gave its content up when it died: there is nothing left to try again.
    pub const fn is_erased(self) -> bool {
        matches!(self, Self::Cancelled | Self::Discarded)
    }

    /// Whether the record died by itself, rather than by somebody's will or because its client was told no.
    pub const fn is_by_itself(self) -> bool {
        match self {
            Self::Exhausted | Self::Rejected | Self::Expired | Self::Indeterminate => true,
            Self::Unconfirmed | Self::Cancelled | Self::Discarded => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead { reason } => write!(f, "dead({})", reason.token()),
            state => f.write_str(state.token()),
        }
    }
}

/// What the holder of a receipt gets to see. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiptView {
    /// The record.
    pub id: RecordId,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: State,
    /// When it was accepted.
    pub accepted_ms: u64,
    /// When it stops being tried.
    pub expires_ms: u64,
    /// Attempts begun so far.
    pub attempts: u32,
    /// The status of the last answer from the origin, if there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why the last attempt failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When it became delivered or dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// The origin's answer, while it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseView>,
    /// Whether its ordering key is paused here: it is dead and what comes after it waits, or it waits after such a one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub key_paused: bool,
}
