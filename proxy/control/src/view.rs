//! What the control plane answers, in the form in which the admin API writes it.

use std::collections::BTreeMap;

use beamline_filter_host::ModuleInfo;
use beamline_model::{FilterName, Grant, Manifest, RevisionId, SecretName, TenantName, UpstreamName};
use beamline_store::Deletion;
use serde::Serialize;

use crate::Unloaded;

/// What an apply or a rollback did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// The revision that is active now; none only for a dry run on a tenant without one.
    pub revision: Option<RevisionId>,
    /// Whether anything changed, or for a dry run would.
    pub changed: bool,
    /// The difference from what was active, line by line.
    pub diff: Vec<String>,
    /// Queued requests of removed upstreams that were discarded.
    pub discarded: u64,
}

/// How far a tenant's deletion is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeletionView {
    /// The tenant.
    pub tenant: TenantName,
    /// Whether it is gone. Where not, the node goes on.
    pub deleted: bool,
    /// Queued requests that were discarded by this call.
    pub discarded: u64,
    /// Queued requests that wait or are being delivered: what a drain waits for.
    pub waiting: u64,
    /// Dead letters: what a drain waits for too, since only a person can say what becomes of them.
    pub dead: u64,
}

/// What the queue keeps for an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamBacklog {
    /// The upstream.
    pub upstream: UpstreamName,
    /// Requests that wait or are being delivered.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
}

/// A tenant.
#[derive(Clone, Debug, Serialize)]
pub struct TenantView {
    /// Its name.
    pub name: TenantName,
    /// What it was granted.
    pub grant: Grant,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The active revision.
    pub revision: Option<RevisionId>,
    /// What a rollback without a number goes back to.
    pub previous: Option<RevisionId>,
    /// Where it is being deleted: what becomes of its queued requests.
    pub deletion: Option<Deletion>,
    /// Its upstreams.
    pub upstreams: BTreeMap<UpstreamName, UpstreamView>,
    /// The filters whose module this node could not load. Empty where all is well.
    pub unloaded: Vec<Unloaded>,
    /// The filters that failed too often and are left out for now on this node.
    pub suspended: Vec<Suspended>,
}

/// A filter whose breaker is not closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Suspended {
    /// The filter.
    pub filter: FilterName,
    /// Milliseconds until a request tries it again; 0 where the next one does, or one is trying.
    pub retry_ms: u64,
}

/// An upstream.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamView {
    /// `ready`, `degraded` or `down`.
    pub state: &'static str,
    /// Why no request can be sent to it: which secret is not to be had, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A module that was uploaded.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleView {
    /// What was found out about it.
    #[serde(flatten)]
    pub info: ModuleInfo,
    /// Whether nothing had to be compiled: the node had seen the content before.
    pub cached: bool,
}

/// A module of a tenant's.
#[derive(Clone, Debug, Serialize)]
pub struct ModuleListing {
    /// What was found out about it when it was uploaded.
    #[serde(flatten)]
    pub info: ModuleInfo,
    /// When this tenant first uploaded it, in milliseconds since the Unix epoch.
    pub pushed_ms: u64,
}

/// A revision in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RevisionListing {
    /// Its number.
    pub revision: RevisionId,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Whether it serves the tenant's traffic.
    pub active: bool,
}

/// A revision with its manifest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RevisionView {
    /// Its number, age and state.
    #[serde(flatten)]
    pub listing: RevisionListing,
    /// What it declares.
    pub manifest: Manifest,
}

/// A secret that was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretSet {
    /// Its name.
    pub name: SecretName,
    /// Whether there was none of that name.
    pub new: bool,
    /// When it was set, in milliseconds since the Unix epoch.
    pub set_ms: u64,
    /// The id of the key that it is sealed by.
    pub key: String,
}

/// A secret in a list: all of it but its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretListing {
    /// Its name.
    pub name: SecretName,
    /// When it was set, in milliseconds since the Unix epoch.
    pub set_ms: u64,
    /// The id of the key that it is sealed by. None where it is of a form that this version does not know.
    pub key: Option<String>,
    /// The keys of the active manifest that name it.
    pub used_by: Vec<String>,
}

/// The control plane in a few figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Tenants that serve traffic.
    pub tenants: usize,
    /// Swaps of the snapshot since the node started.
    pub generation: u64,
    /// Tenants with a module that this node could not load.
    pub unloaded: Vec<TenantName>,
}
