//! The control plane's core: what was declared becomes what runs.
//!
//! A tenant's manifest is held against its grant, kept as a revision in the store, its modules are compiled and
//! loaded, and the result, a [`TenantRuntime`], becomes part of the [`Snapshot`] that data workers read.
//! Invariants, each held by a test:
//!
//! - *This crate alone replaces the snapshot.* Workers read it and never wait for anything here.
//! - *A change is durable before it is visible, and visible before it is answered.*
//! - *A change costs its tenant.* Every other tenant's runtime is the same `Arc` before and after.
//! - *What no grant covers is refused by name*, at apply; resolved addresses again at each connect.
//! - *A tenant's changes happen one after the other*, and once begun run to their end, though the caller went away.
//! - *A token reaches its tenant alone.* Each method takes the actor and refuses what it may not.
//! - *A module that cannot be loaded never stops the node*: its filter fails as its `on_error` says, and it is tried again.
//! - *A secret goes in and never out*: the store has it sealed, what runs has it in a field of a request, and nothing shows it.
//! - *What waits in the queue is never left without its upstream by a change that did not say so*: deleting a tenant or an upstream
//!   with a backlog is refused, or the backlog is drained or discarded first.
//! - *What filters store durably is there before the tenant's first request*, and goes with the tenant.
//! - *What was replaced is dropped on the reaper's thread*, never on a data worker's.

mod actor;
mod check;
mod control;
mod diff;
mod error;
mod injected;
mod keeper;
mod modules;
mod publish;
mod reaper;
mod runtime;
mod settings;
mod snapshot;
mod stored;
mod turns;
mod view;

pub use actor::named as actor_name;
pub use beamline_store::Deletion;
pub use control::{ApplyOptions, Control, SECRETS_MAX, Upload};
pub use error::{ControlError, ControlErrorKind, Uncovered};
pub use injected::InjectedHeaders;
pub use runtime::{Lacking, TenantRuntime, Unloaded, UpstreamRuntime};
pub use settings::ControlSettings;
pub use snapshot::Snapshot;
pub use view::{
    Applied, DeletionView, ModuleListing, ModuleView, RevisionListing, RevisionView, SecretListing,
    SecretSet, Status, Suspended, TenantView, UpstreamBacklog, UpstreamView,
};
