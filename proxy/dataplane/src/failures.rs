//! What the log says of a filter that fails, beside the request's own record: why, where in its code, and when its
//! breaker opens or closes. None of it goes to clients.

use beamline_filter_host::{BreakerChange, FilterRun};
use beamline_telemetry::{Telemetry, Transaction};
use serde_json::json;

use crate::transaction::failure_kind;

/// Tells a run's failure, where it is to be told, and what it changed.
pub(crate) fn tell(
    telemetry: &Telemetry,
    record: &Transaction,
    run: &FilterRun,
    tenant: &str,
    revision: u64,
) {
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
