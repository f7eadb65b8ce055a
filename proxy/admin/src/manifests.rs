//! Manifests and the revisions that they become.

use axum::extract::State;
use beamline_control::{Applied, ApplyOptions, RevisionListing, RevisionView};
use beamline_model::{Manifest, RevisionId};
use serde::{Deserialize, Serialize};

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::{OrEmpty, Query, Raw, Revision, Tenant},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApplyQuery {
    /// Whether to say what would change in place of changing it.
    #[serde(default)]
    dry_run: bool,
    /// Whether to give up the queued requests of upstreams that the manifest removes.
    #[serde(default)]
    discard_queue: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevisionsQuery {
    /// Only revisions older than this one.
    before: Option<RevisionId>,
    /// The most that are wanted.
    #[serde(default = "page")]
    limit: u32,
}

const fn page() -> u32 {
    100
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollbackTo {
    /// The revision to go back to; without it, the one that was active before.
    #[serde(default)]
    revision: Option<RevisionId>,
    /// Whether to give up the queued requests of upstreams that it does not have.
    #[serde(default)]
    discard_queue: bool,
}

#[derive(Serialize)]
pub(crate) struct Revisions {
    revisions: Vec<RevisionListing>,
}

pub(crate) async fn apply(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Query(ApplyQuery { dry_run, discard_queue }): Query<ApplyQuery>,
    Raw(body): Raw,
) -> Result<Answer<Applied>, Refusal> {
    let manifest =
        Manifest::from_json(&body).map_err(|error| Refusal::of("invalid-manifest", error.to_string()))?;
    let options = ApplyOptions { dry_run, discard_queue };
    Ok(ok(state.control.apply(&tenant, manifest, options, &actor).await?))
}

pub(crate) async fn active(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
) -> Result<Answer<RevisionView>, Refusal> {
    Ok(ok(state.control.revision(&tenant, None, &actor).await?))
}

pub(crate) async fn revision(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Revision(revision): Revision,
) -> Result<Answer<RevisionView>, Refusal> {
    Ok(ok(state.control.revision(&tenant, Some(revision), &actor).await?))
}

pub(crate) async fn revisions(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Query(query): Query<RevisionsQuery>,
) -> Result<Answer<Revisions>, Refusal> {
    let revisions = state.control.revisions(&tenant, query.before, query.limit, &actor).await?;
    Ok(ok(Revisions { revisions }))
}

pub(crate) async fn rollback(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    OrEmpty(to): OrEmpty<RollbackTo>,
) -> Result<Answer<Applied>, Refusal> {
    Ok(ok(state.control.rollback(&tenant, to.revision, to.discard_queue, &actor).await?))
}
