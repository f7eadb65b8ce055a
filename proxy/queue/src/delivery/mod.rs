//! Delivery: what is tried when, and what becomes of it.
//!
//! [`machine`] decides, knowing nothing but events, times that are passed in, and a seed. The runner does as it says:
//! marks records `delivering` and gets what is to be sent, calls [`Deliver`], and records how it went.

mod backoff;
mod clock;
mod decide;
mod lane;
mod machine;
mod pace;
mod ring;
mod runner;
#[cfg(test)]
mod simulation;
mod window;

use std::{fs::File, future::Future, io, sync::Arc, time::Duration};

use beamline_model::{OnStatus, QueuePolicy, RevisionId, TenantName, UpstreamName};
use bytes::{Bytes, BytesMut};

use crate::{Keep, RecordId, TraceRef};

pub(crate) use machine::Policy;
pub use runner::{Delivery, DeliveryError};

/// One attempt to deliver a record, as [`Deliver`] gets it. When it is delivered it is marked `delivering` on disk.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The record.
    pub id: RecordId,
    /// Whose it is.
    pub tenant: TenantName,
    /// Where it goes: to be resolved in the tenant's active revision.
    pub upstream: UpstreamName,
    /// The revision that the filters ran under.
    pub revision: RevisionId,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The value for `Host`.
    pub host: String,
    /// The header fields, as they were stored.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its credentials, as the caller sealed them.
    pub sealed: Option<Bytes>,
    /// The body.
    pub body: AttemptBody,
    /// Which attempt this is, from 1.
    pub number: u32,
    /// When the request was accepted, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
    /// Where its trace is.
    pub trace: TraceRef,
    /// Whether the origin takes this request twice as once.
    pub repeat_safe: bool,
    /// The id that the client's request had in logs.
    pub request_id: String,
}

/// A stored body. Cloning it is cheap; each [`AttemptBody::reader`] begins at the start.
#[derive(Clone, Debug)]
pub enum AttemptBody {
    /// In memory, at most 32 KiB.
    Memory(Bytes),
    /// In a file, opened.
    File {
        /// The file. It may be removed from its folder while it is read.
        file: Arc<File>,
        /// Its length in bytes.
        len: u64,
    },
}

impl AttemptBody {
    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there is no body.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads it in pieces, from the start.
    pub fn reader(&self) -> BodyReader {
        BodyReader { body: self.clone(), position: 0 }
    }
}

/// Reads a stored body piece by piece.
#[derive(Debug)]
pub struct BodyReader {
    body: AttemptBody,
    position: u64,
}

impl BodyReader {
    const PIECE: u64 = 64 << 10;

    /// The bytes that are still to come.
    pub fn remaining(&self) -> u64 {
        self.body.len() - self.position
    }

    /// The next piece, at most 64 KiB, or none at the end. Reads the file at once, for which the delivery thread is there.
    ///
    /// # Errors
    /// What reading the file answers; `UnexpectedEof` where it is shorter than it was.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let size = self.remaining().min(Self::PIECE);
        if size == 0 {
            return Ok(None);
        }
        let piece = match &self.body {
            AttemptBody::Memory(bytes) => {
                self.position = bytes.len() as u64;
                return Ok(Some(bytes.clone()));
            }
            AttemptBody::File { file, .. } => {
                use std::os::unix::fs::FileExt as _;
                let mut piece = BytesMut::zeroed(usize::try_from(size).expect("at most 64 KiB"));
                file.read_exact_at(&mut piece, self.position)?;
                piece.freeze()
            }
        };
        self.position += size;
        Ok(Some(piece))
    }
}

/// What an attempt led to. The reasons are shown in receipts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The origin answered.
    Answered {
        /// The status.
        status: u16,
        /// `Retry-After`, as a length of time.
        retry_after: Option<Duration>,
        /// Whether the response's body arrived whole.
        complete: bool,
        /// What is kept of it for the receipt, should the record end with it.
        keep: Option<Keep>,
    },
    /// Not one byte of the request left: no breaker let it, or no connection stood.
    NotSent {
        /// A short token, such as `connect-refused`.
        reason: String,
    },
    /// Not one byte of the request left, for a reason that is not the upstream's state and may pass: its address is not
    /// granted, a secret or seal key is not to be had, or the record's body could not be read.
    Withheld {
        /// A short token, such as `denied`.
        reason: String,
    },
    /// What is stored can never be sent: no request can be made of it.
    Unsendable {
        /// What stands against it, in a few words.
        reason: String,
    },
    /// Bytes of the request may have left, and no response head came.
    Broken {
        /// A short token, such as `response-timeout`.
        reason: String,
    },
    /// The tenant's active revision has no such upstream.
    UpstreamMissing,
}

/// What an upstream's manifest says of its records, as the revision has it that is active now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What its answers mean, where not what the table says.
    pub on_status: OnStatus,
    /// How long one record may block its ordering key by being refused, before it is dead (exhausted).
    pub key_block_max: Duration,
}

impl Default for Rules {
    /// A manifest's own defaults.
    fn default() -> Self {
        let policy = QueuePolicy::default();
        Self { on_status: policy.on_status, key_block_max: policy.key_block_max.get() }
    }
}

/// Who sends records to their upstreams: the one thing that delivery needs from the floors above.
///
/// Called on delivery's own thread, so that neither this nor its futures need be `Send`.
pub trait Deliver: 'static {
    /// Sends one record. Dropped where it takes longer than the attempt time-out, and at shutdown.
    fn deliver(&self, attempt: Attempt) -> impl Future<Output = Outcome>;

    /// Whether there is a connection to this upstream, as far as is known without asking anyone: then [`Deliver::reach`] is
    /// not asked. By default that is never known.
    fn is_reachable(&self, tenant: &TenantName, upstream: &UpstreamName) -> bool {
        let _ = (tenant, upstream);
        false
    }

    /// Makes sure that the record could be sent: that there is a connection. Asked where [`Deliver::is_reachable`] does not know
    /// of one, before a record is marked `delivering` that is not safe to repeat, so that a crash while its upstream is down
    /// leaves no doubt about it. By default it always could.
    ///
    /// # Errors
    /// What its delivery would have come to, not a byte having left.
    fn reach(&self, attempt: &Attempt) -> impl Future<Output = Result<(), Outcome>> {
        let _ = attempt;
        std::future::ready(Ok(()))
    }

    /// The most deliveries in flight to this upstream at once; 0 is taken as 1.
    fn in_flight_cap(&self, tenant: &TenantName, upstream: &UpstreamName) -> u32;

    /// What becomes of this upstream's records; asked when an attempt has ended.
    fn rules(&self, tenant: &TenantName, upstream: &UpstreamName) -> Rules;
}
