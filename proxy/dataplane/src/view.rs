//! What a tenant's filters may see of their upstreams.

use std::{net::SocketAddr, sync::Arc};

use beamline_control::TenantRuntime;
use beamline_filter_host::{HostView, Properties, TenantState, UpstreamState, UpstreamStatus};
use beamline_model::FilterLimits;
use beamline_queue::Queue;
use beamline_telemetry::{RequestId, TraceId, Transaction};

use crate::worker::Shared;

/// One tenant's surroundings, for one request.
pub(crate) struct TenantView {
    tenant: Arc<TenantRuntime>,
    queue: Queue,
    client: SocketAddr,
    request_id: RequestId,
    trace_id: TraceId,
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
}
