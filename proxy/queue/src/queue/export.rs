//! Bodies of records for an export that asks for them: read where they lie, in pieces. Who gets them is in the audit first.

use std::{collections::BTreeMap, io};

use beamline_model::{TenantName, UpstreamName};
use bytes::{Bytes, BytesMut};
use tokio::{fs::File, io::AsyncReadExt as _, task};

use super::{HandError, Queue, QueueError};
use crate::{
    delivery::AttemptBody,
    log::{Act, Content, LogError},
    record::RecordId,
    spool::bodies_dir,
    view::RecordView,
};

/// The body of a record, as it was accepted.
pub struct RecordBody {
    from: Source,
    left: u64,
}

/// What there is of the body of a record.
pub enum ExportedBody {
    /// All of it.
    Whole(RecordBody),
    /// Nothing any more: its record was done with it.
    Erased,
    /// It should be there, and its file is missing or of another length.
    Lost,
}

enum Source {
    Memory(Bytes),
    File(File),
}

impl RecordBody {
    /// The bytes that are still to come.
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes: `most`, or as many as are left; none at the end.
    ///
    /// # Errors
    /// Where the disk does not give them, or fewer than there were.
    pub async fn next(&mut self, most: usize) -> io::Result<Bytes> {
        let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(most);
        let next = match &mut self.from {
            Source::Memory(bytes) => bytes.split_to(size),
            Source::File(file) => {
                let mut piece = BytesMut::zeroed(size);
                file.read_exact(&mut piece).await?;
                piece.freeze()
            }
        };
        self.left -= next.len() as u64;
        Ok(next)
    }
}

impl Queue {
    /// Notes in the audit that somebody gets the bodies of these records: a row for each of their upstreams. To be called
    /// before any of them is handed out.
    ///
    /// # Errors
    /// [`HandError::Unavailable`]: then they are not to be handed out.
    pub async fn note_bodies(
        &self,
        tenant: &TenantName,
        records: &[RecordView],
        actor: &str,
    ) -> Result<(), HandError> {
        let mut counts = BTreeMap::<&UpstreamName, u64>::new();
        for record in records.iter().filter(|record| record.request.is_some()) {
            *counts.entry(&record.listing.upstream).or_default() += 1;
        }
        for (upstream, records) in counts {
            self.act(tenant, actor, Act::Export { upstream: upstream.clone(), records }).await?;
        }
        Ok(())
    }

    /// The body of a record, wherever the record is in commit order by now.
    ///
    /// # Errors
    /// [`QueueError`] where it cannot be read now.
    pub async fn record_body(&self, id: RecordId) -> Result<ExportedBody, QueueError> {
        let Some(content) = self.content_of(id).await? else { return Ok(ExportedBody::Erased) };
        let bodies = bodies_dir(&self.0.settings.dir);
        let opened = task::spawn_blocking(move || content.body.open(&bodies)).await;
        match opened.map_err(io::Error::other).flatten().map_err(|error| unreadable(id, &error))? {
            Some(AttemptBody::Memory(bytes)) => {
                let left = bytes.len() as u64;
                return Ok(ExportedBody::Whole(RecordBody { from: Source::Memory(bytes), left }));
            }
            Some(AttemptBody::File { file, len }) => {
                let file = file.try_clone().map_err(|error| unreadable(id, &error))?;
                let from = Source::File(File::from_std(file));
                return Ok(ExportedBody::Whole(RecordBody { from, left: len }));
            }
            None => {}
        }
        // Its record was done with it since it was looked at, or it is lost.
        if !self.has_body(id).await? {
            return Ok(ExportedBody::Erased);
        }
        tracing::error!(record = %id, "the body of a record is lost: its file is missing or of another length");
        Ok(ExportedBody::Lost)
    }

    /// Whether the body of a record is not erased.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn has_body(&self, id: RecordId) -> Result<bool, QueueError> {
        Ok(self.content_of(id).await?.is_some())
    }

    async fn content_of(&self, id: RecordId) -> Result<Option<Content>, QueueError> {
        self.look(move |log| log.content_of(id)).await
    }
}

fn unreadable(id: RecordId, error: &io::Error) -> LogError {
    LogError::Failed(format!("the body of record {id} cannot be read now: {error}"))
}
