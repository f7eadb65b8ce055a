//! What the control plane is given.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use beamline_model::LimitClasses;
use beamline_nats::Connections;
use beamline_seal::SealKeys;
use beamline_upstream::EgressNode;

/// Settings of [`crate::Control`].
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// Where this node serves its admin API: no tenant's upstream may be there. Default: none.
    pub admin_addresses: Vec<SocketAddr>,
    /// What tenants of each limit class may ask for. Default: [`LimitClasses::default`].
    pub limits: LimitClasses,
    /// The NATS connections that upstreams may name. Default: none.
    pub nats: Connections,
    /// The least time between two swaps of the snapshot; changes that come within it share the next one. A change
    /// that comes after a quiet time is swapped in at once. Default 20 ms.
    pub coalesce: Duration,
    /// How often a tenant with a module that could not be loaded is tried again. Default 30 s.
    pub reload_every: Duration,
    /// The most modules that a tenant may have. Default 4096.
    pub tenant_modules: usize,
    /// The most bytes that a tenant's modules may have together. Default 1 GiB.
    pub tenant_module_bytes: u64,
    /// What secrets are sealed and opened by. Default: none, and no secret can be set or used.
    pub seal_keys: Option<Arc<SealKeys>>,
    /// What requests of filters run on. Default: nothing, and none is sent.
    pub egress: Option<EgressNode>,
    /// The wall clock, for what is recorded; nothing is decided by it. Default [`SystemTime::now`].
    pub now: fn() -> SystemTime,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self {
            admin_addresses: Vec::new(),
            limits: LimitClasses::default(),
            nats: Connections::default(),
            coalesce: Duration::from_millis(20),
            reload_every: Duration::from_secs(30),
            tenant_modules: 4096,
            tenant_module_bytes: 1 << 30,
            seal_keys: None,
            egress: None,
            now: SystemTime::now,
        }
    }
}
