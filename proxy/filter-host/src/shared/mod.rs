//! What the filters of one tenant share on this node: kept from request to request and over changes of its revision, gone
//! with the tenant. No other tenant's calls can reach it, for they have no reference to it.

mod buckets;
mod durable;
mod expiring;
mod kv;
mod room;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use self::durable::{Keeper, KvChanges, KvEntry, Restored, TenantKv};
use self::room::Room;
pub(crate) use self::{
    buckets::{BucketError, Buckets, Rate, Taken},
    kv::{Kv, KvError, Quota},
};

/// The most that keys, values and buckets of all tenants take together, so that no number of tenants fills a node's memory.
pub(crate) const NODE_BYTES: u64 = 1 << 30;

/// One budget for the process, as its memory is one.
static NODE: Room = Room::of(NODE_BYTES);

/// One tenant's keys and values, and its token buckets. Costs next to nothing before something is kept.
pub struct TenantState {
    since: Instant,
    kv: OnceLock<Arc<Kv>>,
    buckets: OnceLock<Buckets>,
    settled: AtomicBool,
}

impl Default for TenantState {
    fn default() -> Self {
        Self::new()
    }
}

impl TenantState {
    /// Nothing kept.
    pub fn new() -> Self {
        Self {
            since: Instant::now(),
            kv: OnceLock::new(),
            buckets: OnceLock::new(),
            settled: AtomicBool::new(false),
        }
    }

    /// The time by which everything of the tenant expires.
    pub(crate) fn now(&self) -> Duration {
        self.since.elapsed()
    }

    /// Lets go of all that has expired: what a tenant whose filters are not called kept is no longer in the way of others.
    /// Takes up to a second where that is much.
    pub fn sweep(&self) {
        let now = self.now();
        if let Some(kv) = self.kv.get() {
            kv.sweep(now);
        }
        if let Some(buckets) = self.buckets.get() {
            buckets.sweep(now);
        }
    }

    pub(crate) fn kv(&self) -> &Arc<Kv> {
        self.kv.get_or_init(|| Arc::new(Kv::within(&NODE)))
    }

    /// Whether what was stored of its keys before is here again, or is not to be.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// It is settled from now on; whether it was already.
    pub fn settle(&self) -> bool {
        self.settled.swap(true, Ordering::Relaxed)
    }

    /// Its keys and values, for whoever keeps them.
    pub fn durable(&self) -> TenantKv {
        TenantKv { kv: Arc::clone(self.kv()), since: self.since }
    }

    /// Its keys and values, where somebody keeps them.
    pub fn kept(&self) -> Option<TenantKv> {
        self.kv.get()?;
        Some(self.durable()).filter(TenantKv::is_kept)
    }

    pub(crate) fn buckets(&self) -> &Buckets {
        self.buckets.get_or_init(|| Buckets::within(&NODE))
    }
}

impl fmt::Debug for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantState")
    }
}
