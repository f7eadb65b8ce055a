//! Why the control plane refused, or could not do, what it was asked for.

use beamline_filter_host::CompileError;
use beamline_model::{ByteSize, Digest, GrantRefusal, Limit, LimitClass, RevisionId, SecretName, TenantName};
use beamline_queue::{HandError, QueueError};
use beamline_store::StoreError;
use thiserror::Error;

use crate::UpstreamBacklog;

/// Why a call to [`crate::Control`] did nothing.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The token is another tenant's.
    #[error(
        "this token speaks for tenant {token}, not for tenant {wanted}: use a token of {wanted} or the operator's"
    )]
    OtherTenant {
        /// Whose token it is.
        token: TenantName,
        /// Whose thing was asked for.
        wanted: TenantName,
    },
    /// The token is a tenant's where the operator's is asked for.
    #[error("this token speaks for tenant {token}: only the operator's can {wanted}")]
    OperatorOnly {
        /// Whose token it is.
        token: TenantName,
        /// What was asked for, such as `create tenants`.
        wanted: &'static str,
    },
    /// The tenant has no active revision.
    #[error("tenant {0} has no active revision: apply a manifest first")]
    NoRevision(TenantName),
    /// There is nothing to go back to.
    #[error("tenant {0} has no revision before the active one: name the revision to go back to")]
    NoPrevious(TenantName),
    /// The manifest asks for what the tenant was not granted.
    #[error("the manifest is outside the tenant's grant: {}", listed(.0))]
    Grant(Vec<Uncovered>),
    /// A filter's module is a path, which only files can have.
    #[error(
        "{key}: expected a digest such as \"sha256:…\", found the local path {path:?}: upload the module and name its digest"
    )]
    ModulePath {
        /// The key in the manifest.
        key: String,
        /// The path.
        path: String,
    },
    /// A filter's module was never uploaded by this tenant.
    #[error("{key}: tenant {tenant} has no module {digest}: upload it first")]
    UnknownModule {
        /// The key in the manifest.
        key: String,
        /// The tenant.
        tenant: TenantName,
        /// The digest that was named.
        digest: Digest,
    },
    /// A filter's module is there, but this node cannot load it.
    #[error("{key}: the module cannot be loaded on this node: {problem}")]
    Unloadable {
        /// The key in the manifest.
        key: String,
        /// What stood against it.
        problem: String,
    },
    /// A filter's instances are to be kept, and never would be.
    #[error("{key}: {problem}")]
    NothingToKeep {
        /// The key in the manifest.
        key: String,
        /// Why not.
        problem: &'static str,
    },
    /// A module is longer than its tenant's limit class takes.
    #[error(
        "a module of the limit class {class} has at most {} bytes: build it with opt-level = \"s\", lto and strip, or ask the operator for another class",
        .limit.get()
    )]
    ModuleTooLarge {
        /// The class.
        class: LimitClass,
        /// What it takes.
        limit: ByteSize,
    },
    /// An uploaded module cannot be taken.
    #[error(transparent)]
    Module(#[from] CompileError),
    /// The tenant's modules would be too many, or too large together.
    #[error(
        "tenant {tenant} would have {wanted} {unit} of modules, more than its limit of {limit}: ask the operator for more room"
    )]
    Quota {
        /// The tenant.
        tenant: TenantName,
        /// How much it would be.
        wanted: u64,
        /// How much it may be.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// Something is to be sealed, and there is no key.
    #[error(
        "{what}, and this node has no seal key: make one with `beamline seal-key generate`, and start the node with --seal-key-file"
    )]
    NoSealKey {
        /// What needs one, such as `secrets are stored sealed`.
        what: String,
    },
    /// The manifest names a secret that is not set.
    #[error("{key}: tenant {tenant} has no secret {name}: set it with `beamline secret set {tenant} {name}`")]
    SecretNotSet {
        /// The key in the manifest.
        key: String,
        /// The tenant.
        tenant: TenantName,
        /// The secret that was named.
        name: SecretName,
    },
    /// The manifest names a secret that is set, but this node cannot open it.
    #[error("{key}: {problem}")]
    SecretUnavailable {
        /// The key in the manifest.
        key: String,
        /// What stood against it.
        problem: String,
    },
    /// The active revision names the secret that is to be removed.
    #[error(
        "the active revision of tenant {tenant} names secret {name} ({}): apply a manifest that does not, then remove it",
        .keys.join(", ")
    )]
    SecretInUse {
        /// The tenant.
        tenant: TenantName,
        /// The secret.
        name: SecretName,
        /// The keys of the manifest that name it.
        keys: Vec<String>,
    },
    /// The tenant has as many secrets as it may have.
    #[error("tenant {tenant} has {limit} secrets, as many as it may have: remove one that is not used")]
    TooManySecrets {
        /// The tenant.
        tenant: TenantName,
        /// How many it may have.
        limit: usize,
    },
    /// The tenant is being deleted.
    #[error("tenant {0} is being deleted: it takes no changes any more")]
    BeingDeleted(TenantName),
    /// What is to be deleted has requests in the queue.
    #[error(
        "{of} has requests in the queue ({}): delete it with --drain to have what waits delivered first, or with --discard-queue \
         to give all of it up",
        backlogs(.upstreams)
    )]
    Backlog {
        /// What is to be deleted, such as `tenant acme`.
        of: String,
        /// For which upstreams.
        upstreams: Vec<UpstreamBacklog>,
    },
    /// A manifest lacks upstreams of the active revision that have requests in the queue.
    #[error(
        "the manifest removes upstreams that have requests in the queue ({}): keep {names} until nothing waits (queue.mode = \
         \"never\" lets nothing more come), or apply it with --discard-queue to give these requests up",
        backlogs(.upstreams)
    )]
    RemovedBacklog {
        /// The upstreams' names.
        names: String,
        /// What waits for them.
        upstreams: Vec<UpstreamBacklog>,
    },
    /// The queue could not be asked, or did not do what it was asked for. What was changed before that stays changed.
    #[error("the queue did not answer ({0}): look at what was changed, and ask again")]
    Queue(HandError),
    /// A revision's manifest cannot be read by this version.
    #[error(
        "revision {revision} of tenant {tenant} cannot be read by this version ({problem}): apply its manifest anew"
    )]
    Unreadable {
        /// The tenant.
        tenant: TenantName,
        /// The revision.
        revision: RevisionId,
        /// What is wrong with it.
        problem: String,
    },
    /// The operator's token could not be kept; it was not made valid.
    #[error("the operator's token could not be written ({0}): make its place writable and start again")]
    Token(std::io::Error),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node is stopping. What was asked for may be done: it is then there at the next start.
    #[error("the node is stopping: ask again when it is back, and look first whether the change was made")]
    Stopped,
}

/// What a caller can do about a [`ControlError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlErrorKind {
    /// Come with another token.
    Forbidden,
    /// Name something that exists.
    NotFound,
    /// Look at what is there, and try again or choose another name.
    Conflict,
    /// Change what was sent.
    Refused,
    /// Send less.
    TooLarge,
    /// Try again later; the node is at fault.
    Unavailable,
}

impl ControlError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ControlErrorKind {
        self.class().0
    }

    /// A stable name: the last part of a problem document's `type`.
    pub fn token(&self) -> &'static str {
        self.class().1
    }

    /// The limit that a module crossed, where that is why it was refused.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::ModuleTooLarge { .. } => Some(Limit::ModuleSize),
            Self::Module(error) => error.limit(),
            _ => None,
        }
    }

    fn class(&self) -> (ControlErrorKind, &'static str) {
        use ControlErrorKind::{Conflict, Forbidden, NotFound, Refused, TooLarge, Unavailable};
        match self {
            Self::OtherTenant { .. } => (Forbidden, "other-tenant"),
            Self::OperatorOnly { .. } => (Forbidden, "operator-only"),
            Self::NoRevision(_) => (NotFound, "no-revision"),
            Self::NoPrevious(_) => (Conflict, "no-previous-revision"),
            Self::Grant(_) => (Refused, "outside-grant"),
            Self::ModulePath { .. } => (Refused, "module-path"),
            Self::UnknownModule { .. } => (Refused, "unknown-module"),
            Self::Unloadable { .. } => (Unavailable, "module-unloadable"),
            Self::NothingToKeep { .. } => (Refused, "nothing-to-keep"),
            Self::Module(CompileError::Host(_)) => (Unavailable, "compiler-unavailable"),
            Self::Module(_) => (Refused, "module-rejected"),
            Self::ModuleTooLarge { .. } => (TooLarge, "body-too-large"),
            Self::Quota { .. } => (TooLarge, "module-quota"),
            Self::BeingDeleted(_) => (Conflict, "being-deleted"),
            Self::Backlog { .. } | Self::RemovedBacklog { .. } => (Conflict, "backlog"),
            Self::Queue(_) => (Unavailable, "queue-unavailable"),
            Self::NoSealKey { .. } => (Conflict, "no-seal-key"),
            Self::SecretNotSet { .. } => (Refused, "secret-not-set"),
            Self::SecretUnavailable { .. } => (Unavailable, "secret-unavailable"),
            Self::SecretInUse { .. } => (Conflict, "secret-in-use"),
            Self::TooManySecrets { .. } => (TooLarge, "secret-quota"),
            Self::Unreadable { .. } => (Unavailable, "revision-unreadable"),
            Self::Token(_) => (Unavailable, "token-unwritable"),
            Self::Stopped => (Unavailable, "stopping"),
            Self::Store(error) => match error {
                StoreError::NameTaken(_) => (Conflict, "tenant-exists"),
                StoreError::HostTaken { .. } => (Conflict, "host-taken"),
                StoreError::UnknownTenant(_) => (NotFound, "unknown-tenant"),
                StoreError::UnknownRevision { .. } => (NotFound, "unknown-revision"),
                StoreError::UnknownSecret { .. } => (NotFound, "unknown-secret"),
                StoreError::Moved { .. } => (Conflict, "changed-meanwhile"),
                // Only this crate begins and ends deletions, so that somebody else did.
                StoreError::NotBeingDeleted(_) => (Conflict, "changed-meanwhile"),
                StoreError::Damaged { .. } => (Unavailable, "store-damaged"),
                StoreError::Unavailable { .. } => (Unavailable, "store-unavailable"),
                StoreError::Unconfirmed { .. } => (Unavailable, "store-unconfirmed"),
            },
        }
    }
}

impl From<HandError> for ControlError {
    fn from(error: HandError) -> Self {
        Self::Queue(error)
    }
}

impl From<QueueError> for ControlError {
    fn from(QueueError::Log(error): QueueError) -> Self {
        Self::Queue(error.into())
    }
}

fn backlogs(upstreams: &[UpstreamBacklog]) -> String {
    let told: Vec<_> = upstreams
        .iter()
        .map(|lane| format!("upstream {}: {} waiting, {} dead", lane.upstream, lane.waiting, lane.dead))
        .collect();
    told.join("; ")
}

/// One thing of a manifest that no grant covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncovered {
    /// Its key in the manifest, such as `upstreams.api.endpoints[0]`.
    pub key: String,
    /// Why it is refused.
    pub refusal: GrantRefusal,
}

fn listed(uncovered: &[Uncovered]) -> String {
    let lines: Vec<_> = uncovered.iter().map(|u| format!("{}: {}", u.key, u.refusal)).collect();
    lines.join("; ")
}
