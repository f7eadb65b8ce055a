//! `/metrics`: what the node counts, as text for Prometheus and whoever reads its format.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use beamline_node_state::Phase;
use beamline_queue::{LaneStatus, Totals};
use beamline_telemetry::{Drops, Exposition};
use http::{HeaderValue, StatusCode, header};

use crate::{AdminState, node::kind};

pub(crate) async fn metrics(State(state): State<AdminState>) -> Response {
    let mut out = Exposition::new();
    write_node(&state, &mut out);
    match state.queue.lanes(None).await {
        Ok(lanes) => {
            out.family("beamline_queue_readable", [(vec![], 1)]);
            write_lanes(&lanes, &mut out);
        }
        Err(error) => {
            tracing::warn!(%error, "the queue's log could not be read for /metrics");
            out.family("beamline_queue_readable", [(vec![], 0)]);
        }
    }
    write_totals(&state.queue.totals(), &mut out);
    write_pinned(&state, &mut out);
    // What filters count may be long, and this thread has other requests.
    let guests = move || {
        state.telemetry.metrics().write_guests(&mut out);
        out.finish()
    };
    match tokio::task::spawn_blocking(guests).await {
        Ok(text) => {
            let media = HeaderValue::from_static(Exposition::CONTENT_TYPE);
            ([(header::CONTENT_TYPE, media)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "what the node counts could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn write_node(state: &AdminState, out: &mut Exposition) {
    let now = state.node.current();
    out.family("beamline_node_ready", [(vec![], u8::from(now.is_ready()))]);
    let phase = match now.phase {
        Phase::Starting => "starting",
        Phase::Healthy => "healthy",
        Phase::Degraded => "degraded",
        Phase::Draining => "draining",
    };
    out.family("beamline_node_phase", [(vec![phase], 1)]);
    let mut reasons: Vec<_> = now.reasons.iter().map(kind).collect();
    reasons.sort_unstable();
    let kinds = reasons.chunk_by(|a, b| a == b);
    out.family("beamline_node_degraded", kinds.map(|alike| (vec![alike[0]], alike.len())));
    let Drops { records, spans } = state.telemetry.dropped();
    let dropped = [(vec!["records"], records), (vec!["spans"], spans)];
    out.family("beamline_telemetry_dropped_total", dropped);
}

fn write_lanes(lanes: &[LaneStatus], out: &mut Exposition) {
    let mut each = |name, figure: fn(&LaneStatus) -> u64| {
        let samples = lanes.iter().map(|l| (vec![l.tenant.as_str(), l.upstream.as_str()], figure(l)));
        out.family(name, samples);
    };
    each("beamline_queue_records", |lane| lane.depth);
    each("beamline_queue_dead_letters", |lane| lane.dead);
    each("beamline_queue_bytes", |lane| lane.bytes);
    each("beamline_queue_paused", |lane| lane.paused.into());
    each("beamline_queue_accepted_total", |lane| lane.accepted);
    each("beamline_queue_delivered_total", |lane| lane.delivered);
    each("beamline_queue_died_total", |lane| lane.died);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ages = lanes.iter().filter_map(|lane| {
        let age = now.saturating_sub(std::time::Duration::from_millis(lane.oldest_ms?));
        Some((vec![lane.tenant.as_str(), lane.upstream.as_str()], age.as_secs_f64()))
    });
    out.family("beamline_queue_oldest_age_seconds", ages);
}

fn write_pinned(state: &AdminState, out: &mut Exposition) {
    let snapshot = state.control.snapshots().load_full();
    let tenants: Vec<_> =
        snapshot.tenants().filter_map(|t| Some((t.name.as_str(), t.chain.pinned()?))).collect();
    let held = tenants.iter().map(|(tenant, pinned)| (vec![*tenant], pinned.held));
    out.family("beamline_pinned_instances", held);
    let refused = tenants.iter().map(|(tenant, pinned)| (vec![*tenant], pinned.refused));
    out.family("beamline_pinned_refused_total", refused);
}

fn write_totals(totals: &Totals, out: &mut Exposition) {
    for (name, figure) in [
        ("beamline_queue_in_flight", totals.in_flight),
        ("beamline_queue_reserved_bytes", totals.reserved_bytes),
        ("beamline_queue_receipts", totals.receipts),
        ("beamline_queue_refused_total", totals.refused),
        ("beamline_queue_commits_total", totals.commits),
    ] {
        out.family(name, [(vec![], figure)]);
    }
}
