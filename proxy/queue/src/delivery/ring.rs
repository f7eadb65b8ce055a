//! Whose turn it is: round robin between tenants, and within a tenant between its upstreams.

use std::collections::{HashMap, VecDeque};

use beamline_model::{TenantName, UpstreamName};

use crate::record::Lane;

/// The lanes that can go now. Each is in it at most once, which the caller sees to.
#[derive(Debug, Default)]
pub(super) struct Ring {
    tenants: VecDeque<TenantName>,
    upstreams: HashMap<TenantName, VecDeque<UpstreamName>>,
}

impl Ring {
    pub(super) fn push(&mut self, lane: Lane) {
        let upstreams = self.upstreams.entry(lane.tenant.clone()).or_default();
        debug_assert!(!upstreams.contains(&lane.upstream), "a lane is in the ring once");
        if upstreams.is_empty() {
            self.tenants.push_back(lane.tenant);
        }
        upstreams.push_back(lane.upstream);
    }

    /// The next tenant's next lane; the tenant, if it has more, then waits for all others.
    pub(super) fn pop(&mut self) -> Option<Lane> {
        let tenant = self.tenants.pop_front()?;
        let upstreams = self.upstreams.get_mut(&tenant).expect("a tenant in the ring has upstreams in it");
        let upstream = upstreams.pop_front().expect("a tenant in the ring has upstreams in it");
        if upstreams.is_empty() {
            self.upstreams.remove(&tenant);
        } else {
            self.tenants.push_back(tenant.clone());
        }
        Some(Lane { tenant, upstream })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_many_upstreams_gets_no_more_turns_than_one_with_few() {
        let mut ring = Ring::default();
        let lane = |t: &str, u: &str| Lane { tenant: t.parse().unwrap(), upstream: u.parse().unwrap() };
        for (tenant, upstream) in [("big", "a"), ("big", "b"), ("big", "c"), ("small", "x")] {
            ring.push(lane(tenant, upstream));
        }
        let mut order = vec![];
        while let Some(lane) = ring.pop() {
            order.push(format!("{}/{}", lane.tenant, lane.upstream));
        }
        assert_eq!(order, ["big/a", "small/x", "big/b", "big/c"]);
    }
}
