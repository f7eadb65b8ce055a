//! Tenants: created by the operator, looked at by themselves too.

use std::collections::BTreeMap;

use axum::extract::State;
use beamline_control::{Deletion, DeletionView, Suspended, TenantView, Unloaded, UpstreamView};
use beamline_model::{
    Grant, HostName, LimitClass, RevisionId, SubjectGrant, TenantName, UpstreamName, UpstreamRange,
};
use beamline_queue::Queue;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::{Document, Query, Tenant},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    name: TenantName,
    hosts: Vec<HostName>,
    #[serde(default)]
    upstream_ranges: Vec<UpstreamRange>,
    #[serde(default)]
    nats_subjects: Vec<SubjectGrant>,
    #[serde(default)]
    limit_class: LimitClass,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeleteQuery {
    /// What becomes of its queued requests; without it, it must have none.
    queued: Option<Deletion>,
}

#[derive(Serialize)]
pub(crate) struct Created {
    tenant: TenantName,
    /// In the clear, for this one time.
    token: String,
}

/// A tenant as `control` knows it, with what waits in its queues.
#[derive(Serialize)]
pub(crate) struct TenantAnswer {
    name: TenantName,
    hosts: Vec<HostName>,
    upstream_ranges: Vec<UpstreamRange>,
    nats_subjects: Vec<SubjectGrant>,
    limit_class: LimitClass,
    created_ms: u64,
    revision: Option<RevisionId>,
    previous: Option<RevisionId>,
    deletion: Option<Deletion>,
    upstreams: BTreeMap<UpstreamName, UpstreamAnswer>,
    unloaded: Vec<Unloaded>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    suspended: Vec<Suspended>,
}

#[derive(Serialize)]
struct UpstreamAnswer {
    #[serde(flatten)]
    view: UpstreamView,
    queue_depth: u64,
}

#[derive(Serialize)]
pub(crate) struct Tenants {
    tenants: Vec<TenantAnswer>,
}

fn answer(view: TenantView, queue: &Queue) -> TenantAnswer {
    let upstreams = view.upstreams.into_iter().map(|(upstream, view_of_it)| {
        let queue_depth = queue.depth(&view.name, &upstream);
        (upstream, UpstreamAnswer { view: view_of_it, queue_depth })
    });
    TenantAnswer {
        upstreams: upstreams.collect(),
        name: view.name,
        hosts: view.grant.hosts,
        upstream_ranges: view.grant.upstream_ranges,
        nats_subjects: view.grant.nats_subjects,
        limit_class: view.grant.limit_class,
        created_ms: view.created_ms,
        revision: view.revision,
        previous: view.previous,
        deletion: view.deletion,
        unloaded: view.unloaded,
        suspended: view.suspended,
    }
}

pub(crate) async fn create(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Document(new): Document<NewTenant>,
) -> Result<Answer<Created>, Refusal> {
    let NewTenant { name, hosts, upstream_ranges, nats_subjects, limit_class } = new;
    let grant = Grant { hosts, upstream_ranges, nats_subjects, limit_class };
    let token = state.control.create_tenant(name.clone(), grant, &actor).await?;
    Ok(Answer(StatusCode::CREATED, Created { tenant: name, token: token.reveal().to_owned() }))
}

pub(crate) async fn list(
    State(state): State<AdminState>,
    Caller(actor): Caller,
) -> Result<Answer<Tenants>, Refusal> {
    let tenants = state.control.tenants(&actor).await?;
    Ok(ok(Tenants { tenants: tenants.into_iter().map(|view| answer(view, &state.queue)).collect() }))
}

pub(crate) async fn show(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
) -> Result<Answer<TenantAnswer>, Refusal> {
    Ok(ok(answer(state.control.tenant(&tenant, &actor).await?, &state.queue)))
}

pub(crate) async fn delete(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Query(DeleteQuery { queued }): Query<DeleteQuery>,
) -> Result<Answer<DeletionView>, Refusal> {
    Ok(ok(state.control.delete_tenant(&tenant, queued, &actor).await?))
}
