//! What a tenant's filters may see of their upstreams.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use beamline_control::TenantRuntime;
use beamline_filter_host::{
    Exchange, HostView, Metric, MetricRefusal, MetricUpdate, OutboundError, OutboundRequest,
    OutboundResponse, Properties, TenantState, UpstreamState, UpstreamStatus,
};
use beamline_model::{FilterLimits, Limit};
use beamline_queue::Queue;
use beamline_telemetry::{Counted, RequestId, TraceId, Transaction, Update};
use beamline_upstream::{EgressError, EgressRequest, EgressResponse};

use crate::worker::Shared;

/// Requests that the filters of one request send, over all their phases and chunks.
const MAX_SENT: u32 = 64;

/// One tenant's surroundings, for one request.
pub(crate) struct TenantView {
    tenant: Arc<TenantRuntime>,
    queue: Queue,
    client: SocketAddr,
    request_id: RequestId,
    trace_id: TraceId,
    /// Requests that its filters have sent.
    sent: AtomicU32,
}

impl TenantView {
    /// For a request, as its record has it so far.
    pub(crate) fn new(worker: &Shared, tenant: &Arc<TenantRuntime>, record: &Transaction) -> Self {
        Self {
            tenant: Arc::clone(tenant),
            queue: worker.queue.clone(),
            client: record.client,
            request_id: record.request_id,
            trace_id: record.trace.trace_id,
            sent: AtomicU32::new(0),
        }
    }
}

impl HostView for TenantView {
    fn upstream(&self, name: &str) -> Option<UpstreamStatus> {
        let upstream = self.tenant.upstream(name)?;
        let key = upstream.cluster.key();
        Some(UpstreamStatus {
            state: match upstream.cluster.state() {
                beamline_upstream::UpstreamState::Ready => UpstreamState::Ready,
                beamline_upstream::UpstreamState::Degraded => UpstreamState::Degraded,
                beamline_upstream::UpstreamState::Down => UpstreamState::Down,
            },
            queue_depth: self.queue.depth(&key.tenant, &key.upstream),
        })
    }
    fn properties(&self) -> Properties {
        Properties {
            client: self.client,
            request_id: self.request_id.to_string(),
            trace_id: self.trace_id.to_string(),
            tenant: self.tenant.label.to_string(),
            revision: self.tenant.revision.0,
            scheme: "http",
            tls_server_name: None,
        }
    }

    fn state(&self) -> &TenantState {
        self.tenant.chain.state()
    }

    fn limits(&self) -> &FilterLimits {
        &self.tenant.limits
    }

    fn crossed(&self, filter: &str, limit: Limit) {
        self.tenant.metrics.crossed(filter, limit.as_str(), self.tenant.revision.0, self.request_id);
    }

    fn send(&self, request: OutboundRequest) -> Exchange {
        if self.sent.fetch_add(1, Ordering::Relaxed) >= MAX_SENT {
            return Box::pin(async { Err(OutboundError::TooMany) });
        }
        let OutboundRequest { method, url, headers, body, timeout } = request;
        let sent = self.tenant.egress.send(EgressRequest { method, url, headers, body, timeout });
        Box::pin(async move {
            match sent.await {
                Ok(EgressResponse { status, headers, body }) => {
                    Ok(OutboundResponse { status, headers, body })
                }
                Err(error) => Err(match error {
                    EgressError::Invalid(problem) => OutboundError::Invalid(problem.to_owned()),
                    EgressError::NotAllowed => OutboundError::NotAllowed,
                    EgressError::Connect(problem) => OutboundError::Connect(problem),
                    EgressError::Timeout => OutboundError::Timeout,
                    EgressError::TooLong => OutboundError::TooLong(error.to_string()),
                    EgressError::TooLarge => OutboundError::TooLarge,
                    EgressError::NoRoom => OutboundError::NoRoom(error.to_string()),
                    EgressError::Broken(problem) => OutboundError::Broken(problem),
                }),
            }
        })
    }

    fn count(&self, filter: &str, metric: Metric<'_>) -> Result<(), MetricRefusal> {
        use beamline_telemetry::MetricRefusal as R;
        let update = match metric.update {
            MetricUpdate::Count(by) => Update::Count(by),
            MetricUpdate::Observe(value) => Update::Observe(value),
        };
        let metrics = &self.tenant.metrics;
        let counted = metrics.update(filter, metric.name, metric.labels, update);
        if matches!(counted, Ok(Counted::Folded) | Err(R::TooManyNames)) {
            self.crossed(filter, Limit::Series);
        }
        counted.map(|_| ()).map_err(|refusal| match refusal {
            R::InvalidName => MetricRefusal::InvalidName,
            R::InvalidLabel => MetricRefusal::InvalidLabel,
            R::InvalidValue => MetricRefusal::InvalidValue,
            R::OtherKind => MetricRefusal::OtherKind,
            R::TooManyNames => MetricRefusal::TooManyNames,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_tells_how_many_requests_the_filters_of_one_send() {
        let page = include_str!("../../../docs/reference/limits.md");
        let what = "requests that the filters of one request send, over all their phases and chunks";
        assert!(page.contains(&format!("| {what} | {MAX_SENT} |")), "{MAX_SENT}");
    }
}
