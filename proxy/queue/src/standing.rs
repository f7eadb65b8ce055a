//! What this process is to the queue: its owner or not, alone or in company.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    books::Books,
    owner::{Company, OwnerLock},
    writer::Writer,
};

/// Shared by the queue's front and its delivery.
pub(crate) struct Standing {
    /// None where nobody else can have the log open, for it is in no folder.
    company: Option<Mutex<Company>>,
    lock: PathBuf,
    books: Arc<Books>,
}

impl Standing {
    pub(crate) fn new(company: Option<Company>, lock: PathBuf, books: Arc<Books>) -> Self {
        Self { company: company.map(Mutex::new), lock, books }
    }

    fn company(&self) -> Option<MutexGuard<'_, Company>> {
        self.company.as_ref().map(|company| company.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The owner's lock, where it is free.
    pub(crate) fn try_lock(&self) -> Option<OwnerLock> {
        match OwnerLock::take(&self.lock) {
            Ok(lock) => Some(lock),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, lock = %self.lock.display(), "the owner's lock could not be taken");
                }
                None
            }
        }
    }

    /// The owner looks about: lets in who knocks, and notices when all have gone. The writer then counts what they left,
    /// and until it has, this process does not behave as one that is alone.
    pub(crate) fn look(&self, writer: &Writer) {
        let Some(mut company) = self.company() else { return };
        let looked = if company.is_alone() {
            company
                .is_knocking()
                .and_then(|knocking| if knocking { self.admit(&mut company) } else { Ok(()) })
        } else {
            company.have_all_gone().map(|gone| {
                if gone {
                    writer.alone_after(self.books.company());
                }
            })
        };
        if let Err(error) = looked {
            tracing::warn!(%error, "the locks of the queue's folder could not be looked at");
        }
    }

    /// The owner is about to let the queue go: whoever comes from now on is let in at once.
    pub(crate) fn become_guest(&self) {
        let Some(mut company) = self.company() else { return };
        self.books.in_company();
        if let Err(error) = company.become_guest() {
            tracing::warn!(%error, "the queue could not be shared; another process gets it when this one ends");
        }
    }

    fn admit(&self, company: &mut Company) -> io::Result<()> {
        // Before anybody is in who may add to the log.
        self.books.in_company();
        company.admit()
    }
}
