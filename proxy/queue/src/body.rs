//! Bodies on their way into the queue: in memory while small, then a file.

use std::{
    fs::File,
    future::poll_fn,
    io,
    path::Path,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use thiserror::Error;

use crate::{
    delivery::AttemptBody,
    idempotency::{BodyDigest, BodyHasher},
    settings::bounds::BODY_MEMORY,
    spool::{BodyFile, BodyName, Spool, body_path},
};

/// Why a body cannot be queued.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// It is longer than its limit. What was kept of it is discarded.
    #[error(
        "the body is longer than the {limit} bytes that may be queued: raise queue.max_body or send less"
    )]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The disk did not take it.
    #[error("the body could not be stored: {0}")]
    Disk(String),
}

/// A body that may become a record's: up to 32 KiB in memory, beyond that in a file that the spool thread writes.
///
/// Dropping it discards it, file and all. What stays in memory is copied, so that the buffers it came in can be reused.
#[derive(Debug)]
pub struct BodyBuffer {
    spool: Spool,
    limit: u64,
    len: u64,
    kept: Kept,
    hasher: Option<BodyHasher>,
}

#[derive(Debug)]
enum Kept {
    Memory(Vec<u8>),
    File(BodyFile),
    /// It failed, and nothing is kept.
    Nothing(BodyError),
}

/// A whole body, ready for the row that names it.
#[derive(Debug)]
pub(crate) enum SettledBody {
    Memory(Bytes),
    /// Synced, folder and all; removed when this is dropped without being kept.
    File(BodyFile, u64),
}

/// How a row holds its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredBody {
    Inline(Bytes),
    File { name: BodyName, len: u64 },
}

impl StoredBody {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Opens it in the folder of bodies. None where its file is missing or of another length: there is nothing whole to send.
    pub(crate) fn open(&self, bodies: &Path) -> io::Result<Option<AttemptBody>> {
        let (name, len) = match self {
            Self::Inline(bytes) => return Ok(Some(AttemptBody::Memory(bytes.clone()))),
            Self::File { name, len } => (*name, *len),
        };
        let file = match File::open(body_path(bodies, name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let is_whole = file.metadata()?.len() == len;
        Ok(is_whole.then(|| AttemptBody::File { file: Arc::new(file), len }))
    }
}

impl SettledBody {
    pub(crate) fn stored(&self) -> StoredBody {
        match self {
            Self::Memory(bytes) => StoredBody::Inline(bytes.clone()),
            Self::File(file, len) => StoredBody::File { name: file.name(), len: *len },
        }
    }
}

impl BodyBuffer {
    pub(crate) fn new(spool: Spool, limit: u64) -> Self {
        Self { spool, limit, len: 0, kept: Kept::Memory(Vec::new()), hasher: None }
    }

    /// The same, hashed as it comes: for requests that claim an `Idempotency-Key`. Call before the first byte.
    #[must_use]
    pub fn hashed(mut self) -> Self {
        self.hasher = Some(BodyHasher::default());
        self
    }

    /// The hash of what came so far, where it is hashed or nothing came.
    pub(crate) fn digest(&self) -> Option<BodyDigest> {
        match &self.hasher {
            Some(hasher) => Some(hasher.digest()),
            None => self.is_empty().then(|| BodyHasher::default().digest()),
        }
    }

    /// The bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most bytes that it takes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether it has outgrown memory and is a file.
    pub fn is_file(&self) -> bool {
        matches!(self.kept, Kept::File(_))
    }

    /// Ready when [`BodyBuffer::start_push`] may be called; pending while the disk is behind.
    ///
    /// # Errors
    /// What made an earlier part fail; the body cannot be queued then.
    pub fn poll_ready(&mut self, cx: &Context<'_>) -> Poll<Result<(), BodyError>> {
        match &self.kept {
            Kept::Memory(_) => Poll::Ready(Ok(())),
            Kept::File(file) => match file.poll_ready(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(BodyError::Disk(error)))),
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            },
            Kept::Nothing(error) => Poll::Ready(Err(error.clone())),
        }
    }

    /// Takes the next bytes. Call after [`BodyBuffer::poll_ready`] said ready: otherwise memory is not bounded.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] beyond the limit, and whatever failed before. Nothing is kept of the body then.
    pub fn start_push(&mut self, data: Bytes) -> Result<(), BodyError> {
        if let Kept::Nothing(error) = &self.kept {
            return Err(error.clone());
        }
        let len = self.len.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if len > self.limit {
            return Err(self.fail(BodyError::TooLarge { limit: self.limit }));
        }
        self.len = len;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&data);
        }
        match &mut self.kept {
            Kept::Memory(held) if held.len() + data.len() <= BODY_MEMORY => held.extend_from_slice(&data),
            Kept::Memory(held) => {
                let file = self.spool.file();
                if !held.is_empty() {
                    file.write(std::mem::take(held).into());
                }
                file.write(data);
                self.kept = Kept::File(file);
            }
            Kept::File(file) => file.write(data),
            Kept::Nothing(_) => unreachable!("answered above"),
        }
        Ok(())
    }

    /// Waits until there is room, then takes the bytes. Cancel safe: a dropped call has taken nothing.
    ///
    /// # Errors
    /// As [`BodyBuffer::poll_ready`] and [`BodyBuffer::start_push`].
    pub async fn push(&mut self, data: Bytes) -> Result<(), BodyError> {
        poll_fn(|cx| self.poll_ready(cx)).await?;
        self.start_push(data)
    }

    fn fail(&mut self, error: BodyError) -> BodyError {
        self.kept = Kept::Nothing(error.clone());
        error
    }

    /// The body on stable storage, if it is a file.
    pub(crate) async fn settle(self) -> Result<SettledBody, BodyError> {
        match self.kept {
            Kept::Memory(held) => Ok(SettledBody::Memory(held.into())),
            Kept::File(file) => {
                file.sync().await.map_err(BodyError::Disk)?;
                Ok(SettledBody::File(file, self.len))
            }
            Kept::Nothing(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spool")
    }
}
