//! The node itself: what probes and operators ask.

use axum::extract::State;
use beamline_control::Status;
use beamline_node_state::{Phase, Reason, State as NodeStateNow};
use beamline_queue::Totals;
use serde::Serialize;

use crate::{
    AdminState,
    answer::{Answer, ok},
    problem::Refusal,
};

#[derive(Serialize)]
pub(crate) struct Ready {
    phase: Phase,
    /// Kinds of reasons without the names of tenants: anybody may ask.
    reasons: Vec<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct Live {
    live: bool,
}

#[derive(Serialize)]
pub(crate) struct StatusAnswer {
    version: &'static str,
    node: NodeStateNow,
    #[serde(flatten)]
    control: Status,
    queue: QueueAnswer,
}

/// [`Totals`], as the API names them.
#[derive(Serialize)]
struct QueueAnswer {
    open: u64,
    in_flight: u64,
    kept: u64,
    kept_bytes: u64,
    reserved_bytes: u64,
    receipts: u64,
    accepted: u64,
    delivered: u64,
    dead: u64,
    refused: u64,
    commits: u64,
}

impl From<Totals> for QueueAnswer {
    fn from(totals: Totals) -> Self {
        // Taken apart, so that a figure that is added later must be thought of here.
        let Totals {
            open,
            kept,
            kept_bytes,
            reserved_bytes,
            receipts,
            in_flight,
            accepted,
            delivered,
            dead,
            refused,
            commits,
        } = totals;
        Self {
            open,
            in_flight,
            kept,
            kept_bytes,
            reserved_bytes,
            receipts,
            accepted,
            delivered,
            dead,
            refused,
            commits,
        }
    }
}

pub(crate) async fn ready(State(state): State<AdminState>) -> Result<Answer<Ready>, Refusal> {
    let now = state.node.current();
    if !now.is_ready() {
        let doing = if now.phase == Phase::Draining { "draining" } else { "starting" };
        return Err(Refusal::of("not-ready", format!("the node is {doing}: send new traffic elsewhere")));
    }
    let mut reasons: Vec<_> = now.reasons.iter().map(kind).collect();
    reasons.dedup();
    Ok(ok(Ready { phase: now.phase, reasons }))
}

/// A reason as its serialised form names it.
pub(crate) const fn kind(reason: &Reason) -> &'static str {
    match reason {
        Reason::UpstreamDown(_) => "upstream-down",
        Reason::QueueUnavailable => "queue-unavailable",
        Reason::QueueFull => "queue-full",
        Reason::StoreUnavailable => "store-unavailable",
        Reason::ModuleUnavailable(_) => "module-unavailable",
        Reason::SecretUnavailable(_) => "secret-unavailable",
        Reason::TelemetryExport => "telemetry-export",
    }
}

pub(crate) async fn live(State(state): State<AdminState>) -> Result<Answer<Live>, Refusal> {
    match (state.liveness)() {
        Ok(()) => Ok(ok(Live { live: true })),
        Err(problem) => Err(Refusal::of("not-live", problem)),
    }
}

pub(crate) async fn status(State(state): State<AdminState>) -> Answer<StatusAnswer> {
    ok(StatusAnswer {
        version: env!("CARGO_PKG_VERSION"),
        node: state.node.current(),
        control: state.control.status(),
        queue: state.queue.totals().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_one_name_everywhere() {
        let reasons = [
            Reason::UpstreamDown("acme/api".into()),
            Reason::QueueUnavailable,
            Reason::QueueFull,
            Reason::StoreUnavailable,
            Reason::ModuleUnavailable("acme/router".into()),
            Reason::SecretUnavailable("acme/api".into()),
            Reason::TelemetryExport,
        ];
        for reason in reasons {
            assert_eq!(serde_json::to_value(&reason).unwrap()["reason"], kind(&reason));
        }
    }
}
