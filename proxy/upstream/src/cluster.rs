//! What all threads share about one upstream: breaker, endpoint health, round robin, address policy.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use beamline_model::{Endpoint, GrantRefusal, NatsTarget, TenantName, UpstreamName, UpstreamSpec};

use crate::{
    BreakerSettings, Clock,
    breaker::{Breaker, BreakerState, Permit},
};

/// Which upstream a cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterKey {
    /// Whose it is.
    pub tenant: TenantName,
    /// Its name in the tenant's manifest.
    pub upstream: UpstreamName,
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.upstream)
    }
}

/// Where an upstream may send. Asked at each connect, after a name was resolved, and for each message to NATS.
pub trait AddressPolicy: Send + Sync {
    /// `Ok` where a connection to `addr` may be made.
    fn permits(&self, addr: SocketAddr) -> Result<(), GrantRefusal>;

    /// `Ok` where a message may be published to `target`.
    fn permits_subject(&self, target: &NatsTarget) -> Result<(), GrantRefusal>;
}

/// How an upstream fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// As it should be.
    Ready,
    /// It failed lately, one of its endpoints is left out, or it is due for a probe. Requests are sent.
    Degraded,
    /// Its breaker is open: requests are not sent.
    Down,
}

/// What a cluster is made with beside its manifest entry.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// The breaker's thresholds. For an endpoint among several the threshold is 2: there are others to try.
    pub breaker: BreakerSettings,
    /// The time the breaker goes by. Default: the machine's.
    pub clock: Clock,
    /// Randomness for the back-off's jitter. Default: the operating system's.
    pub random: fn() -> u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            breaker: BreakerSettings::default(),
            clock: Clock::system(),
            // Jitter alone hangs on it, so a system without randomness gets none.
            random: || getrandom::u64().unwrap_or(0),
        }
    }
}

/// One upstream of one tenant, shared by every thread that sends to it. It outlives configuration changes that
/// leave its manifest entry as it was, so that what was learned of its health is kept.
pub struct Cluster {
    id: u64,
    key: ClusterKey,
    spec: UpstreamSpec,
    policy: Arc<dyn AddressPolicy>,
    clock: Clock,
    random: fn() -> u64,
    breaker: Breaker,
    endpoints: Box<[EndpointHealth]>,
    /// Whose turn it is; counts up without end.
    turn: AtomicUsize,
}

/// What is known of one endpoint's health. Of use only where there are others to take in its place.
struct EndpointHealth {
    endpoint: Endpoint,
    breaker: Breaker,
}

/// Failures in a row after which an endpoint among several is left out for a while.
const ENDPOINT_THRESHOLD: u32 = 2;

impl Cluster {
    /// A cluster for one upstream of a manifest.
    pub fn new(key: ClusterKey, spec: &UpstreamSpec, policy: Arc<dyn AddressPolicy>) -> Arc<Self> {
        Self::with_settings(key, spec, policy, ClusterSettings::default())
    }

    /// The same with settings of one's own.
    pub fn with_settings(
        key: ClusterKey,
        spec: &UpstreamSpec,
        policy: Arc<dyn AddressPolicy>,
        settings: ClusterSettings,
    ) -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let ClusterSettings { breaker, clock, random } = settings;
        let health = |endpoint: &Endpoint| EndpointHealth {
            endpoint: endpoint.clone(),
            breaker: Breaker::new(BreakerSettings { threshold: ENDPOINT_THRESHOLD, ..breaker.clone() }),
        };
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            key,
            spec: spec.clone(),
            policy,
            clock,
            random,
            endpoints: spec.endpoints().iter().map(health).collect(),
            breaker: Breaker::new(breaker),
            turn: AtomicUsize::new(0),
        })
    }

    /// How the upstream fares now. Cheap: filters ask it for every request.
    pub fn state(&self) -> UpstreamState {
        match self.breaker.state(|| self.clock.now()) {
            BreakerState::Open(_) => UpstreamState::Down,
            BreakerState::Shaky => UpstreamState::Degraded,
            BreakerState::Closed if self.endpoints.len() < 2 => UpstreamState::Ready,
            BreakerState::Closed => {
                let sound =
                    |e: &EndpointHealth| matches!(e.breaker.state(|| self.clock.now()), BreakerState::Closed);
                if self.endpoints.iter().all(sound) { UpstreamState::Ready } else { UpstreamState::Degraded }
            }
        }
    }

    /// The manifest entry.
    pub fn spec(&self) -> &UpstreamSpec {
        &self.spec
    }

    /// Whose and which it is.
    pub fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// When to try again, for `Retry-After`: until the breaker's next probe, in whole seconds, at least one.
    pub fn retry_after(&self) -> Duration {
        let left = match self.breaker.state(|| self.clock.now()) {
            BreakerState::Open(left) => left,
            BreakerState::Closed | BreakerState::Shaky => Duration::ZERO,
        };
        Duration::from_secs((left.as_secs() + u64::from(left.subsec_nanos() > 0)).max(1))
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn policy(&self) -> &dyn AddressPolicy {
        &*self.policy
    }

    pub(crate) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    pub(crate) fn endpoint(&self, index: usize) -> &Endpoint {
        &self.endpoints[index].endpoint
    }

    /// Leave to send one request; `forced` even where the breaker is open.
    pub(crate) fn admit(&self, forced: bool) -> Option<Permit<'_>> {
        let now = || self.clock.now();
        if forced { Some(self.breaker.admit_forced(now)) } else { self.breaker.admit(now) }
    }

    /// Whose turn it is. Taken once for each request, so that a failover does not move the turns of others.
    pub(crate) fn turn(&self) -> usize {
        match self.endpoints.len() {
            1 => 0,
            count => self.turn.fetch_add(1, Ordering::Relaxed) % count,
        }
    }

    /// The next endpoint that was not tried yet: in turn, those that failed lately last.
    ///
    /// The permit is the endpoint's own; none where it is the only one, or taken for want of a better.
    pub(crate) fn pick(&self, turn: usize, tried: &[usize]) -> Option<(usize, Option<Permit<'_>>)> {
        let count = self.endpoints.len();
        if count == 1 {
            return tried.is_empty().then_some((0, None));
        }
        let untried = || (0..count).map(|i| (turn + i) % count).filter(|i| !tried.contains(i));
        untried()
            .find_map(|i| {
                self.endpoints[i].breaker.admit(|| self.clock.now()).map(|permit| (i, Some(permit)))
            })
            .or_else(|| untried().next().map(|i| (i, None)))
    }

    /// Takes note that the upstream answered.
    pub(crate) fn succeeded(&self, permit: Permit<'_>) {
        if permit.success() {
            tracing::info!(cluster = %self.key, "upstream is back: its breaker closed");
        }
    }

    /// Takes note that the upstream failed.
    pub(crate) fn failed(&self, permit: Permit<'_>, why: &'static str) {
        if permit.failure(self.clock.now(), (self.random)()) {
            tracing::warn!(cluster = %self.key, why, "upstream is down: its breaker opened");
        }
    }

    /// The same for one endpoint, which is no event of its own.
    pub(crate) fn endpoint_failed(&self, permit: Permit<'_>) {
        permit.failure(self.clock.now(), (self.random)());
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("key", &self.key)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}
