//! What the log and the metrics say of a filter that fails or crosses a limit, beside the request's own record: why, where
//! in its code, and when its breaker opens or closes. None of it goes to clients, who get a [`detail`].

use beamline_control::TenantRuntime;
use beamline_filter_host::{BreakerChange, Failure, FilterRun};
use beamline_model::Limit;
use beamline_telemetry::{Telemetry, Transaction};
use serde_json::json;

use crate::transaction::failure_kind;

/// What clients are told of a filter's failure: with the name of the limit, where it crossed one.
pub(crate) fn detail(filter: &str, failure: &Failure) -> String {
    match failure.limit() {
        Some(limit) => format!("filter {filter}: {failure} (limit: {limit})"),
        None => format!("filter {filter}: {failure}"),
    }
}

/// Counts a run's failure and the limits that it crossed, and tells of these.
pub(crate) fn count(tenant: &TenantRuntime, record: &Transaction, run: &FilterRun) {
    let metrics = &tenant.metrics;
    let crossed = |limit: Limit| {
        metrics.crossed(&run.filter, limit.as_str(), tenant.revision.0, record.request_id);
    };
    if run.log.cut > 0 {
        crossed(Limit::Log);
    }
    if let Some(failure) = &run.failure {
        metrics.failed(&run.filter, failure_kind(failure).token());
        if let Some(limit) = failure.limit() {
            crossed(limit);
        }
    }
}

/// Tells a run's failure, where it is to be told, and what it changed.
pub(crate) fn tell(telemetry: &Telemetry, tenant: &TenantRuntime, record: &Transaction, run: &FilterRun) {
    let (tenant, revision) = (&*tenant.label, tenant.revision.0);
    if let Some(failure) = run.failure.as_ref().filter(|_| run.told) {
        let mut fields = json!({
            "tenant.id": tenant,
            "beamline.revision": revision,
            "error.type": failure_kind(failure).token(),
            "filter": &*run.filter,
            "module": run.module.as_deref(),
            "problem": failure.to_string(),
            "request.id": record.request_id.to_string(),
        });
        if let Some(backtrace) = &run.backtrace {
            fields["backtrace"] = json!(backtrace.lines().collect::<Vec<_>>());
        }
        telemetry.event("filter.failed", fields);
    }
    let Some(change) = run.breaker else { return };
    let mut fields = json!({
        "tenant.id": tenant,
        "beamline.revision": revision,
        "filter": &*run.filter,
        "module": run.module.as_deref(),
    });
    let name = match change {
        BreakerChange::Opened { backoff, failures } => {
            fields["failures"] = json!(failures);
            fields["backoff_ms"] = json!(backoff.as_millis());
            "filter.suspended"
        }
        BreakerChange::Closed => "filter.resumed",
    };
    telemetry.event(name, fields);
}
