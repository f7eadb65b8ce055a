//! The queue by hand: what waits, what is dead, and what operators and tenants do about it.

use axum::extract::State;
use beamline_control::actor_name;
use beamline_model::{TenantName, TokenScope, UpstreamName};
use beamline_queue::{
    ExportPage, HandError, LaneStatus, Purged, QueueError, Rate, RecordPage, RecordQuery, RecordView,
    StateName,
};
use serde::{Deserialize, Serialize};

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::{Document, OrEmpty, Query, Record, Tenant, Upstream},
};

#[derive(Serialize)]
pub(crate) struct Lanes {
    upstreams: Vec<LaneStatus>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordsQuery {
    upstream: Option<UpstreamName>,
    state: Option<StateName>,
    ordering_key: Option<String>,
    /// Only records after this place in commit order.
    #[serde(default)]
    after: u64,
    #[serde(default = "page")]
    limit: usize,
}

impl RecordsQuery {
    fn of(self, tenant: TenantName) -> RecordQuery {
        let Self { upstream, state, ordering_key, after, limit } = self;
        RecordQuery { tenant, upstream, state, ordering_key, after, limit }
    }
}

const fn page() -> usize {
    100
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retry {
    /// Whether the origin may get it a second time.
    #[serde(default)]
    may_repeat: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Purge {
    /// Which records; without it, all that can be discarded.
    #[serde(default = "discardable")]
    states: Vec<StateName>,
}

impl Default for Purge {
    fn default() -> Self {
        Self { states: discardable() }
    }
}

fn discardable() -> Vec<StateName> {
    vec![StateName::Queued, StateName::Held, StateName::Dead]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    ordering_key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedRate {
    /// `null` for none. That it is left out says nothing, and is refused.
    #[serde(deserialize_with = "Option::deserialize")]
    per_second: Option<Rate>,
}

#[derive(Serialize)]
pub(crate) struct RateOf {
    upstream: UpstreamName,
    per_second: Option<Rate>,
}

#[derive(Serialize)]
pub(crate) struct ResumedKey {
    upstream: UpstreamName,
    ordering_key: String,
    /// The dead letters that paused it until now.
    records: u64,
}

#[derive(Serialize)]
pub(crate) struct Paused {
    upstream: UpstreamName,
    paused: bool,
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        let QueueError::Log(error) = error;
        HandError::Log(error).into()
    }
}

impl From<HandError> for Refusal {
    fn from(error: HandError) -> Self {
        let token = match &error {
            HandError::Unknown { .. } => "unknown-record",
            HandError::State { .. } => "record-state",
            HandError::MayRepeat { .. } => "may-repeat",
            HandError::Unavailable => "queue-unavailable",
            HandError::Log(_) => {
                tracing::warn!(%error, "the queue could not be read for the admin API");
                "queue-unavailable"
            }
        };
        Self::of(token, error.to_string())
    }
}

/// Refuses where an upstream is neither one of the tenant's active revision, nor one for which the queue keeps something.
async fn known(
    state: &AdminState,
    tenant: &TenantName,
    upstream: &UpstreamName,
    actor: &TokenScope,
) -> Result<(), Refusal> {
    let named = state.control.tenant(tenant, actor).await?.upstreams;
    if named.contains_key(upstream) {
        return Ok(());
    }
    if state.queue.lanes(Some(tenant)).await?.iter().any(|lane| lane.upstream == *upstream) {
        return Ok(());
    }
    let names: Vec<_> = named.keys().map(ToString::to_string).collect();
    Err(Refusal::of(
        "unknown-upstream",
        format!(
            "tenant {tenant} has no upstream {upstream}, and the queue keeps nothing for one: expected one of [{}]",
            names.join(", ")
        ),
    ))
}

/// Refuses for a tenant that does not exist, whom the queue knows nothing of.
async fn existing(state: &AdminState, tenant: &TenantName, actor: &TokenScope) -> Result<(), Refusal> {
    state.control.tenant(tenant, actor).await?;
    Ok(())
}

pub(crate) async fn lanes(
    State(state): State<AdminState>,
    Caller(actor): Caller,
) -> Result<Answer<Lanes>, Refusal> {
    let own = match &actor {
        TokenScope::Operator => None,
        TokenScope::Tenant(own) => Some(own),
    };
    Ok(ok(Lanes { upstreams: state.queue.lanes(own).await? }))
}

pub(crate) async fn records(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Query(query): Query<RecordsQuery>,
) -> Result<Answer<RecordPage>, Refusal> {
    existing(&state, &tenant, &actor).await?;
    Ok(ok(state.queue.records(query.of(tenant)).await?))
}

pub(crate) async fn export(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Query(query): Query<RecordsQuery>,
) -> Result<Answer<ExportPage>, Refusal> {
    existing(&state, &tenant, &actor).await?;
    Ok(ok(state.queue.export(query.of(tenant)).await?))
}

pub(crate) async fn record(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Record(id): Record,
) -> Result<Answer<RecordView>, Refusal> {
    existing(&state, &tenant, &actor).await?;
    Ok(ok(state.queue.record(&tenant, id).await?))
}

pub(crate) async fn retry(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Record(id): Record,
    OrEmpty(Retry { may_repeat }): OrEmpty<Retry>,
) -> Result<Answer<RecordView>, Refusal> {
    existing(&state, &tenant, &actor).await?;
    state.queue.retry(&tenant, id, may_repeat, &actor_name(&actor)).await?;
    Ok(ok(state.queue.record(&tenant, id).await?))
}

pub(crate) async fn discard(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Record(id): Record,
) -> Result<Answer<RecordView>, Refusal> {
    existing(&state, &tenant, &actor).await?;
    state.queue.discard(&tenant, id, &actor_name(&actor)).await?;
    Ok(ok(state.queue.record(&tenant, id).await?))
}

pub(crate) async fn purge(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Upstream(upstream): Upstream,
    OrEmpty(Purge { states }): OrEmpty<Purge>,
) -> Result<Answer<Purged>, Refusal> {
    known(&state, &tenant, &upstream, &actor).await?;
    if states.is_empty() || states.iter().any(|state| !discardable().contains(state)) {
        return Err(Refusal::of(
            "invalid-request",
            "the body: states: expected some of \"queued\", \"held\" and \"dead\": what is being delivered or is \
             delivered cannot be discarded",
        ));
    }
    Ok(ok(state.queue.purge(&tenant, &upstream, &states, &actor_name(&actor)).await?))
}

pub(crate) async fn pause(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Upstream(upstream): Upstream,
) -> Result<Answer<Paused>, Refusal> {
    set_paused(&state, &tenant, upstream, true, &actor).await
}

pub(crate) async fn resume(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Upstream(upstream): Upstream,
) -> Result<Answer<Paused>, Refusal> {
    set_paused(&state, &tenant, upstream, false, &actor).await
}

pub(crate) async fn resume_key(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Upstream(upstream): Upstream,
    Document(Key { ordering_key }): Document<Key>,
) -> Result<Answer<ResumedKey>, Refusal> {
    known(&state, &tenant, &upstream, &actor).await?;
    let records = state.queue.resume_key(&tenant, &upstream, &ordering_key, &actor_name(&actor)).await?;
    Ok(ok(ResumedKey { upstream, ordering_key, records }))
}

pub(crate) async fn rate(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Upstream(upstream): Upstream,
    Document(WantedRate { per_second }): Document<WantedRate>,
) -> Result<Answer<RateOf>, Refusal> {
    known(&state, &tenant, &upstream, &actor).await?;
    state.queue.set_rate(&tenant, &upstream, per_second, &actor_name(&actor)).await?;
    Ok(ok(RateOf { upstream, per_second }))
}

async fn set_paused(
    state: &AdminState,
    tenant: &TenantName,
    upstream: UpstreamName,
    paused: bool,
    actor: &TokenScope,
) -> Result<Answer<Paused>, Refusal> {
    known(state, tenant, &upstream, actor).await?;
    state.queue.set_paused(tenant, &upstream, paused, &actor_name(actor)).await?;
    Ok(ok(Paused { upstream, paused }))
}
