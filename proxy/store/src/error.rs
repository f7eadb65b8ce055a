//! What can go wrong in a store.

use beamline_model::{HostName, RevisionId, SecretName, TenantName};
use thiserror::Error;

/// Why a store did not do what it was asked for.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is a tenant of that name.
    #[error("tenant {0} exists already: choose another name")]
    NameTaken(TenantName),
    /// Another tenant's grant holds the host.
    #[error("host {host} is held by tenant {tenant}: a host has one tenant, choose another host")]
    HostTaken {
        /// The host.
        host: HostName,
        /// Whose it is.
        tenant: TenantName,
    },
    /// There is no tenant of that name.
    #[error("tenant {0} does not exist: create it first")]
    UnknownTenant(TenantName),
    /// The tenant has no such revision.
    #[error("tenant {tenant} has no revision {revision}: list its revisions and choose one of them")]
    UnknownRevision {
        /// The tenant.
        tenant: TenantName,
        /// The number that was asked for.
        revision: RevisionId,
    },
    /// The tenant has no such secret.
    #[error("tenant {tenant} has no secret {name}: list its secrets and choose one of them")]
    UnknownSecret {
        /// The tenant.
        tenant: TenantName,
        /// The name that was asked for.
        name: SecretName,
    },
    /// The tenant is to be deleted, and nobody said so before.
    #[error("the deletion of tenant {0} has not begun: begin it first")]
    NotBeingDeleted(TenantName),
    /// Another change came first.
    #[error(
        "tenant {tenant} was changed by somebody else: expected {} to be active, found {}; look at what is there and try again",
        or_none(.expected),
        or_none(.found)
    )]
    Moved {
        /// The tenant.
        tenant: TenantName,
        /// The revision that the caller believed active.
        expected: Option<RevisionId>,
        /// The one that is.
        found: Option<RevisionId>,
    },
    /// What is stored cannot be read back: another version wrote it, or the storage is damaged.
    #[error(
        "the store holds a {what} that this version cannot read ({problem}): run the version that wrote it, or restore a backup"
    )]
    Damaged {
        /// What kind of thing.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The storage failed. Nothing of what was asked for was done, now or after a restart.
    #[error("the store could not {doing}, and nothing was changed: {source}")]
    Unavailable {
        /// What it was about to do.
        doing: &'static str,
        /// The storage's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The storage failed at the commit, and went on failing. The change is not to be seen now; if the process ends before
    /// the storage works again, it may be there at the next start.
    #[error(
        "the store could not {doing} for certain ({reason}): it is not done now, but may be after a restart; look at what is there \
         when the disk works again"
    )]
    Unconfirmed {
        /// What it was about to do.
        doing: &'static str,
        /// The storage's own errors.
        reason: String,
    },
}

fn or_none(revision: &Option<RevisionId>) -> String {
    revision.map_or_else(|| "no revision".to_owned(), |r| format!("revision {r}"))
}
