//! Kept connections of one thread: a stack per endpoint, newest on top.
//!
//! Newest first keeps few connections busy and lets the others grow old and go. A connection is in the stack only
//! while hyper says that it is free, and leaves it in the moment in which its task sees it end.
//!
//! What cannot be seen is an end that is still on its way. A request that may be sent twice simply is, should that
//! happen. For others (POST, or any request with a body) an endpoint must have shown that it keeps connections, the
//! connection must not have been idle for nearly as long as the endpoint was seen to allow, and the kernel is asked
//! before each use.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    rc::{Rc, Weak},
    sync::{Arc, Weak as ArcWeak},
    time::{Duration, Instant},
};

use beamline_nats::Connections;

use crate::{
    Cluster,
    connection::{Idle, Lease, Line},
    nats::Clients,
};

/// Bounds of a pool.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Idle connections kept for each endpoint of each cluster; further ones are closed. Default 256.
    pub idle_per_endpoint: usize,
    /// How long a connection may be idle before it is closed, give or take a quarter. Default 60 s.
    pub idle_timeout: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { idle_per_endpoint: 256, idle_timeout: Duration::from_secs(60) }
    }
}

/// The upstream connections of one thread. Cheap to clone, and every clone is the same pool.
///
/// Used inside a `LocalSet` or a local runtime with I/O and time, always the same one: connections are tasks there.
#[derive(Clone)]
pub struct Pools(Rc<Inner>);

struct Inner {
    settings: PoolSettings,
    nats: Clients,
    clusters: RefCell<HashMap<u64, Rc<ClusterPool>, BuildHasherDefault<ById>>>,
    /// Whether the task that closes old connections runs.
    sweeping: Cell<bool>,
}

/// One cluster's part of a pool.
pub(crate) struct ClusterPool {
    /// To let go of the connections when the cluster is gone.
    cluster: ArcWeak<Cluster>,
    endpoints: Box<[Rc<EndpointPool>]>,
}

/// The idle connections to one endpoint, and what was learned of how it treats them.
pub(crate) struct EndpointPool {
    bound: usize,
    /// Oldest first.
    idle: RefCell<Vec<Idle>>,
    /// The time after which the endpoint said that it closes an idle connection.
    announced: Cell<Option<Duration>>,
    /// The shortest time after which it was seen to.
    seen: Cell<Option<Seen>>,
    /// Whether a request succeeded on a kept connection.
    proven: Cell<bool>,
}

#[derive(Clone, Copy)]
struct Seen {
    idle: Duration,
    at: Instant,
}

impl Seen {
    /// What was seen counts for a while in proportion to it: an endpoint that closes early shows it again soon, and
    /// one that restarts, closing connections of every age, must not keep POSTs off kept connections for long.
    fn counts(&self, now: Instant) -> bool {
        now.duration_since(self.at) < Duration::from_secs(1) + 16 * self.idle
    }
}

/// How old a kept connection must be before it is tried with a request that cannot be repeated, while its endpoint
/// is unproven: an end that was sent along with the last response has arrived by then.
const SETTLED: Duration = Duration::from_millis(5);

/// What a request asks of a kept connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// It can be sent again.
    Any,
    /// It cannot.
    Sound,
    /// It cannot, and its body needs HTTP/1.1's chunks.
    SoundHttp11,
}

impl Pools {
    /// An empty pool with default bounds, and no NATS connections.
    pub fn new() -> Self {
        Self::with_settings(PoolSettings::default())
    }

    /// An empty pool without NATS connections.
    pub fn with_settings(settings: PoolSettings) -> Self {
        Self::make(settings, &Connections::default())
    }

    /// An empty pool with default bounds that reaches NATS by these connections.
    pub fn with_nats(connections: &Connections) -> Self {
        Self::make(PoolSettings::default(), connections)
    }

    fn make(settings: PoolSettings, connections: &Connections) -> Self {
        let (nats, clusters) = (Clients::new(connections), RefCell::default());
        Self(Rc::new(Inner { settings, nats, clusters, sweeping: Cell::new(false) }))
    }

    pub(crate) fn nats(&self) -> &Clients {
        &self.0.nats
    }

    /// Closes every idle connection. Those in use are closed or kept as ever when their exchange is over.
    pub fn close_idle(&self) {
        for cluster in self.0.clusters.borrow().values() {
            cluster.endpoints.iter().for_each(|e| e.close_idle());
        }
    }

    /// How many connections are idle.
    pub fn idle(&self) -> usize {
        let of = |c: &Rc<ClusterPool>| c.endpoints.iter().map(|e| e.idle.borrow().len()).sum::<usize>();
        self.0.clusters.borrow().values().map(of).sum()
    }

    pub(crate) fn of(&self, cluster: &Arc<Cluster>) -> Rc<ClusterPool> {
        if let Some(pool) = self.0.clusters.borrow().get(&cluster.id()) {
            return Rc::clone(pool);
        }
        let endpoint = |_| {
            Rc::new(EndpointPool {
                bound: self.0.settings.idle_per_endpoint,
                idle: RefCell::default(),
                announced: Cell::new(None),
                seen: Cell::new(None),
                proven: Cell::new(false),
            })
        };
        let pool = Rc::new(ClusterPool {
            cluster: Arc::downgrade(cluster),
            endpoints: (0..cluster.endpoint_count()).map(endpoint).collect(),
        });
        self.0.clusters.borrow_mut().insert(cluster.id(), Rc::clone(&pool));
        if !self.0.sweeping.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0), self.0.settings.idle_timeout / 4));
        }
        pool
    }
}

impl Default for Pools {
    fn default() -> Self {
        Self::new()
    }
}

async fn sweep(pools: Weak<Inner>, period: Duration) {
    loop {
        tokio::time::sleep(period.max(Duration::from_millis(1))).await;
        let Some(inner) = pools.upgrade() else { return };
        let now = Instant::now();
        let mut clusters = inner.clusters.borrow_mut();
        clusters.retain(|_, pool| {
            pool.cluster.strong_count() > 0 && pool.keeps_any(now, inner.settings.idle_timeout)
        });
        if clusters.is_empty() {
            inner.sweeping.set(false);
            return;
        }
    }
}

impl ClusterPool {
    pub(crate) fn endpoint(&self, index: usize) -> &Rc<EndpointPool> {
        &self.endpoints[index]
    }

    /// Closes what is too old; false where nothing is left, in the pool or on its way there.
    fn keeps_any(&self, now: Instant, timeout: Duration) -> bool {
        self.endpoints.iter().fold(false, |any, endpoint| {
            let mut idle = endpoint.idle.borrow_mut();
            idle.retain(|i| now.duration_since(i.since) < timeout);
            any || Rc::weak_count(endpoint) > 0
        })
    }
}

impl EndpointPool {
    /// The kept connection that suits best, newest first.
    pub(crate) fn take(&self, demand: Demand) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        if demand == Demand::Any {
            while let Some(Idle { sender, line, .. }) = idle.pop() {
                if sender.is_ready() {
                    return Some(Lease { sender, line, reused: true });
                }
            }
            return None;
        }

        let now = Instant::now();
        let limit = self.limit(now);
        let youngest = if self.proven.get() { Duration::ZERO } else { SETTLED };
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let candidate = &idle[at];
            let age = now.duration_since(candidate.since);
            if limit.is_some_and(|limit| age > limit - limit / 4) {
                return None; // Those below are older still.
            }
            if age < youngest || demand == Demand::SoundHttp11 && !candidate.line.speaks_http11() {
                continue;
            }
            let Idle { sender, line, .. } = idle.remove(at);
            if sender.is_ready() && line.socket.still_stands() {
                return Some(Lease { sender, line, reused: true });
            }
        }
        None
    }

    /// A request got its response on a kept connection.
    pub(crate) fn proved(&self) {
        self.proven.set(true);
    }

    /// The endpoint says that it closes connections that were idle for so long.
    pub(crate) fn announced(&self, idle: Duration) {
        self.announced.set(Some(idle));
    }

    /// The idle time after which the endpoint must be expected to close a connection.
    fn limit(&self, now: Instant) -> Option<Duration> {
        let seen = self.seen.get().filter(|seen| seen.counts(now));
        self.announced.get().into_iter().chain(seen.map(|seen| seen.idle)).min()
    }

    pub(crate) fn put(&self, connection: Idle) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.bound {
            idle.push(connection);
        }
    }

    /// Whether one is idle that was not seen to end.
    pub(crate) fn has_idle(&self) -> bool {
        self.idle.borrow().iter().rev().any(|idle| idle.sender.is_ready())
    }

    /// The connection ended. Where it was idle, its endpoint closed it.
    pub(crate) fn lost(&self, line: &Line) {
        let mut idle = self.idle.borrow_mut();
        if let Some(at) = idle.iter().position(|i| std::ptr::eq(&*i.line, line)) {
            let now = Instant::now();
            let age = now.duration_since(idle.remove(at).since);
            if age < SETTLED {
                self.proven.set(false);
            }
            if self.seen.get().is_none_or(|seen| age <= seen.idle || !seen.counts(now)) {
                self.seen.set(Some(Seen { idle: age, at: now }));
            }
        }
    }

    fn close_idle(&self) {
        self.idle.borrow_mut().clear();
    }
}

/// Cluster numbers are their own hash: they are handed out in turn and nobody chooses them.
#[derive(Default)]
struct ById(u64);

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        // hashbrown takes its control bits from the top seven.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
