//! What the control plane remembers: tenants, grants, tokens' hashes, modules, revisions, sealed secrets and the audit.
//!
//! One trait, [`Store`], and one suite (`conformance`) that every implementation passes. The embedded
//! implementation is [`SqliteStore`]. Invariants, each held by a test:
//!
//! - *An answer is durable.* A method that changes something returns `Ok` only after the commit is on the disk, and an
//!   error only when it is certain that it is not made, or says that nobody knows.
//! - *A change is whole.* Each call is one transaction, its audit row included: all of it is there, or nothing.
//! - *A revision never changes*, and a tenant's revisions count from 1 without gaps.
//! - *A host has one tenant.*
//! - *Nobody writes over a change unseen.* What activates a revision names the one that it replaces; where that
//!   is no longer the active one, nothing is done ([`StoreError::Moved`]).
//! - *The audit only grows*, also past the end of a tenant.
//! - *Nothing of a tenant is deleted unannounced.* Its deletion is begun before it is done, so that others know.
//!
//! The store knows no rules of its own beyond these: grants are checked, modules compiled and manifests parsed
//! by its callers, secrets sealed. It never holds a token or a secret in the clear.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod record;
mod sqlite;

use beamline_model::{Digest, Grant, RevisionId, SecretName, TenantName, TokenHash, TokenScope};

pub use error::StoreError;
pub use record::{
    Activated, AuditRow, Deletion, KvBatch, KvRecord, KvRow, ModuleRecord, RevisionRecord, RevisionSummary,
    SecretRecord, Stamp, TenantRecord,
};
pub use sqlite::SqliteStore;

/// The most rows that one page of [`Store::revisions`] or [`Store::audit`] holds, whatever was asked for.
pub const PAGE_MAX: u32 = 1000;

/// What every store does.
///
/// Methods block, on the disk or on another process that writes: call them off the async runtimes' threads.
/// Each method is one transaction. The methods with a [`Stamp`] change something and write one row to the audit with it;
/// they return after the change is durable. After an error it was not made and never will be, with one exception:
/// [`StoreError::Unconfirmed`] means that it is not visible now, but may be after a restart.
pub trait Store: Send + Sync {
    /// Every token's hash with whom it speaks for.
    fn tokens(&self) -> Result<Vec<(TokenHash, TokenScope)>, StoreError>;

    /// Adds an operator token if there is none yet, and says whether it did.
    fn add_first_operator_token(&self, hash: &TokenHash, stamp: Stamp<'_>) -> Result<bool, StoreError>;

    /// Creates a tenant with its grant and its first token.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`]; [`StoreError::HostTaken`] where another tenant's grant holds one of the hosts.
    fn create_tenant(
        &self,
        name: &TenantName,
        grant: &Grant,
        token: &TokenHash,
        stamp: Stamp<'_>,
    ) -> Result<(), StoreError>;

    /// One tenant, or none of that name.
    fn tenant(&self, name: &TenantName) -> Result<Option<TenantRecord>, StoreError>;

    /// Every tenant, by name.
    fn tenants(&self) -> Result<Vec<TenantRecord>, StoreError>;

    /// Says that a tenant is being deleted, and what becomes of its queued requests. What is to be discarded stays so. Returns
    /// what is stored now.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    fn begin_deletion(
        &self,
        name: &TenantName,
        deletion: Deletion,
        stamp: Stamp<'_>,
    ) -> Result<Deletion, StoreError>;

    /// Deletes a tenant with its grant, hosts, tokens, revisions, secrets and what its filters stored, and the modules that
    /// no other tenant has. Its audit stays.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`]; [`StoreError::NotBeingDeleted`] where that did not [begin](Self::begin_deletion).
    fn delete_tenant(&self, name: &TenantName, stamp: Stamp<'_>) -> Result<(), StoreError>;

    /// Gives a module to a tenant. The content is kept once, however many tenants have it. A module that the
    /// tenant has already keeps the `info` of its first time, and no audit row is written.
    ///
    /// `info` is text that the store hands back as it came. Returns whether the module is new to the tenant.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    fn put_module(
        &self,
        tenant: &TenantName,
        digest: &Digest,
        bytes: &[u8],
        info: &str,
        stamp: Stamp<'_>,
    ) -> Result<bool, StoreError>;

    /// One module of a tenant, or none where the tenant does not have it (whoever else does).
    fn module(&self, tenant: &TenantName, digest: &Digest) -> Result<Option<ModuleRecord>, StoreError>;

    /// Every module of a tenant, oldest first.
    fn modules(&self, tenant: &TenantName) -> Result<Vec<ModuleRecord>, StoreError>;

    /// A module's content. Whether a tenant may have it is asked with [`module`](Self::module).
    fn module_bytes(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError>;

    /// Adds the next revision of a tenant and makes it the active one.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`]; [`StoreError::Moved`] where the active revision is not `replaces`.
    fn commit_revision(
        &self,
        tenant: &TenantName,
        replaces: Option<RevisionId>,
        manifest: &str,
        stamp: Stamp<'_>,
    ) -> Result<Activated, StoreError>;

    /// Makes an earlier revision the active one.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`], [`StoreError::UnknownRevision`]; [`StoreError::Moved`] where the active
    /// revision is not `replaces`.
    fn activate_revision(
        &self,
        tenant: &TenantName,
        replaces: Option<RevisionId>,
        revision: RevisionId,
        stamp: Stamp<'_>,
    ) -> Result<Activated, StoreError>;

    /// One revision, or none of that number.
    fn revision(
        &self,
        tenant: &TenantName,
        revision: RevisionId,
    ) -> Result<Option<RevisionRecord>, StoreError>;

    /// At most `limit` revisions of a tenant without their manifests, newest first; with `before`, only older ones.
    fn revisions(
        &self,
        tenant: &TenantName,
        before: Option<RevisionId>,
        limit: u32,
    ) -> Result<Vec<RevisionSummary>, StoreError>;

    /// Sets a secret of a tenant, in place of what it was before. `sealed` is handed back as it came. Returns whether it is new.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`].
    fn set_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        sealed: &[u8],
        stamp: Stamp<'_>,
    ) -> Result<bool, StoreError>;

    /// Removes a secret of a tenant.
    ///
    /// # Errors
    /// [`StoreError::UnknownTenant`], [`StoreError::UnknownSecret`].
    fn remove_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        stamp: Stamp<'_>,
    ) -> Result<(), StoreError>;

    /// Replaces how a secret is sealed, its value being the same. Does nothing, and says so, where it is not `before` any
    /// more; when it was set stays.
    fn reseal_secret(
        &self,
        tenant: &TenantName,
        name: &SecretName,
        before: &[u8],
        after: &[u8],
        stamp: Stamp<'_>,
    ) -> Result<bool, StoreError>;

    /// A tenant's secrets by name; none for a tenant that does not exist.
    fn secrets(&self, tenant: &TenantName) -> Result<Vec<SecretRecord>, StoreError>;

    /// Stores what has changed of the keys and values of tenants' filters; tenants that do not exist (any more) are passed over.
    /// It is not in the audit, and may be repeated: a batch that failed may be there all the same, until the next one is.
    fn write_kv(&self, batches: &[KvBatch<'_>]) -> Result<(), StoreError>;

    /// What a tenant's filters have stored, by key, expired or not; nothing for a tenant that does not exist.
    fn kv(&self, tenant: &TenantName) -> Result<Vec<KvRecord>, StoreError>;

    /// At most `limit` rows of the audit, oldest first, after the row numbered `after` (0 is the beginning);
    /// with `tenant`, only that tenant's.
    fn audit(&self, tenant: Option<&TenantName>, after: u64, limit: u32)
    -> Result<Vec<AuditRow>, StoreError>;
}
