//! What a tenant's filters may see of their upstreams.

use std::sync::Arc;

use beamline_control::TenantRuntime;
use beamline_filter_host::{HostView, UpstreamState, UpstreamStatus};
use beamline_queue::Queue;

/// One tenant's surroundings, for one request.
pub(crate) struct TenantView {
    pub(crate) tenant: Arc<TenantRuntime>,
    pub(crate) queue: Queue,
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
}
