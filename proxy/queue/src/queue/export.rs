//! Bodies of records for an export that asks for them: read where they lie, in pieces. Who gets them is in the audit first.

use std::{collections::BTreeMap, io};

use beamline_model::{TenantName, UpstreamName};
use bytes::{Bytes, BytesMut};
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{HandError, Queue, QueueError};
use crate::{
    body::StoredBody,
    log::{Act, Content, LogError},
    record::Seq,
    spool::{bodies_dir, body_path},
    view::{RecordListing, RecordView},
};

/// The body of a record, as it was accepted.
pub struct RecordBody {
    from: Source,
    left: u64,
}

enum Source {
    Memory(Bytes),
    File(File),
}

impl RecordBody {
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

    /// The body of a record. None where it is erased by now.
    ///
    /// # Errors
    /// [`QueueError`] where it should be there and cannot be read.
    pub async fn record_body(&self, record: &RecordListing) -> Result<Option<RecordBody>, QueueError> {
        let Some(content) = self.content_of(record).await? else { return Ok(None) };
        let (name, len) = match content.body {
            StoredBody::Inline(bytes) => {
                let left = bytes.len() as u64;
                return Ok(Some(RecordBody { from: Source::Memory(bytes), left }));
            }
            StoredBody::File { name, len } => (name, len),
        };
        let path = body_path(&bodies_dir(&self.0.settings.dir), name);
        let opened = async {
            let file = File::open(path).await?;
            match file.metadata().await?.len() {
                found if found == len => Ok(file),
                found => Err(io::Error::other(format!("expected {len} bytes; found {found}"))),
            }
        };
        match opened.await {
            Ok(file) => Ok(Some(RecordBody { from: Source::File(file), left: len })),
            // Its record was done with it since it was looked at, or it is lost.
            Err(error) => match self.content_of(record).await? {
                None => Ok(None),
                Some(_) => {
                    Err(LogError::Failed(format!("the body of record {} is lost: {error}", record.id)).into())
                }
            },
        }
    }

    async fn content_of(&self, record: &RecordListing) -> Result<Option<Content>, QueueError> {
        let (Ok(seq), id) = (i64::try_from(record.seq).map(Seq), record.id) else { return Ok(None) };
        let content = self.look(move |log| log.content(seq)).await?;
        Ok(content.filter(|content| content.id == id))
    }
}
