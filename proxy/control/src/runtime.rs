//! A tenant as data workers run it, and how it is made from a manifest.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use beamline_filter_host::{Chain, FilterConfig, FilterSetup, KeptInVain, TenantState};
use beamline_model::{
    ByteSize, FilterLimits, FilterName, Grant, GrantRefusal, HostName, InstanceLifetime, KvSpec, Manifest,
    NatsTarget, OnError, QueuePolicy, RevisionId, TenantName, UpstreamName, UpstreamSpec,
};
use beamline_nats::Connections;
use beamline_telemetry::GuestMetrics;
use beamline_upstream::{AddressPolicy, Cluster, ClusterKey, EgressClient, EgressNode};
use serde::Serialize;

use crate::{InjectedHeaders, check::permits_address};

/// One tenant at one revision, ready to serve. Immutable; a request holds it from its host's look-up to its end.
pub struct TenantRuntime {
    /// The tenant.
    pub name: TenantName,
    /// Its name as text, for logs and spans: cheap to clone.
    pub label: Arc<str>,
    /// The revision that this was made from.
    pub revision: RevisionId,
    /// The hosts whose requests are this tenant's.
    pub hosts: Vec<HostName>,
    /// The filters, in order. Where one's module could not be loaded, its calls fail as unavailable.
    pub chain: Chain,
    /// What each filter call may use.
    pub limits: FilterLimits,
    /// The upstreams by name.
    pub upstreams: HashMap<UpstreamName, Arc<UpstreamRuntime>>,
    /// Where a request goes that no filter routes; a key of `upstreams`.
    pub default_upstream: Option<UpstreamName>,
    /// How its filters send requests of their own.
    pub egress: Arc<EgressClient>,
    /// What its filters count on this node. Kept across revisions.
    pub metrics: Arc<GuestMetrics>,
    /// The filters whose module could not be loaded. Empty where all is well.
    pub unloaded: Vec<Unloaded>,
    /// Whether it is being deleted: it takes no request any more, and what it accepted is still delivered.
    pub leaving: bool,
}

/// One upstream of a tenant.
#[derive(Clone)]
pub struct UpstreamRuntime {
    /// Its name as text, for logs and spans: cheap to clone.
    pub label: Arc<str>,
    /// Its endpoints, breaker and balancing. Kept across revisions that dial it the same way, so that what is known
    /// of its health outlives a swap. Its own `spec().queue` may be an earlier revision's: `queue` below counts.
    pub cluster: Arc<Cluster>,
    /// What is set on each request to it, last of all.
    pub headers: InjectedHeaders,
    /// When requests to it are queued.
    pub queue: QueuePolicy,
}

/// A filter whose module could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unloaded {
    /// The filter.
    pub filter: FilterName,
    /// What stood against it.
    pub problem: String,
}

impl TenantRuntime {
    /// An upstream by the name that a filter gave, which need not be one.
    pub fn upstream(&self, name: &str) -> Option<&UpstreamRuntime> {
        self.upstreams.get(name).map(|upstream| &**upstream)
    }

    /// What lacks a secret, and why.
    pub fn without_secrets(&self) -> impl Iterator<Item = (Lacking<'_>, &str)> {
        without_secrets(&self.upstreams, &self.chain)
    }

    /// Whether every filter is loaded and every secret is to be had.
    pub(crate) fn is_whole(&self) -> bool {
        self.unloaded.is_empty() && self.without_secrets().next().is_none()
    }

    /// Whether the same is missing here and in `other`, for the same reasons.
    pub(crate) fn lacks_the_same(&self, other: &Self) -> bool {
        let secrets = |runtime: &Self| -> BTreeMap<String, String> {
            runtime.without_secrets().map(|(lacking, problem)| (lacking.key(), problem.to_owned())).collect()
        };
        self.unloaded == other.unloaded && secrets(self) == secrets(other)
    }

    /// The upstream of requests that no filter routes.
    pub fn default_upstream(&self) -> Option<&UpstreamRuntime> {
        self.default_upstream.as_ref().and_then(|name| self.upstream(name.as_str()))
    }
}

/// What of a manifest lacks a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking<'a> {
    /// An upstream: its requests cannot be sent.
    Upstream(&'a UpstreamName),
    /// A filter: it runs without it.
    Filter(&'a FilterName),
}

impl Lacking<'_> {
    /// The key of the manifest that names the secret.
    pub(crate) fn key(self) -> String {
        match self {
            Self::Upstream(name) => format!("upstreams.{name}.headers"),
            Self::Filter(name) => format!("filters[{name}].secrets"),
        }
    }
}

/// What lacks a secret, and why.
fn without_secrets<'a>(
    upstreams: &'a HashMap<UpstreamName, Arc<UpstreamRuntime>>,
    chain: &'a Chain,
) -> impl Iterator<Item = (Lacking<'a>, &'a str)> {
    let upstreams = upstreams
        .iter()
        .filter_map(|(name, upstream)| Some((Lacking::Upstream(name), upstream.headers.problem()?)));
    let filters =
        chain.filters().filter_map(|filter| Some((Lacking::Filter(&filter.name), filter.config.problem()?)));
    upstreams.chain(filters)
}

/// A tenant's grant as it is asked at each connect.
struct Granted {
    grant: Arc<Grant>,
    admin: Arc<[SocketAddr]>,
}

impl AddressPolicy for Granted {
    fn permits(&self, addr: SocketAddr) -> Result<(), GrantRefusal> {
        permits_address(&self.grant, addr, &self.admin)
    }

    fn permits_subject(&self, target: &NatsTarget) -> Result<(), GrantRefusal> {
        self.grant.permits_subject(target)
    }
}

/// For tenants whose filters send nothing.
fn no_egress() -> Arc<EgressClient> {
    Arc::new(EgressClient::closed())
}

/// Everything of a runtime but its revision, which the store gives out when the change is committed.
pub(crate) struct Prepared {
    name: TenantName,
    hosts: Vec<HostName>,
    chain: Chain,
    limits: FilterLimits,
    upstreams: HashMap<UpstreamName, Arc<UpstreamRuntime>>,
    default_upstream: Option<UpstreamName>,
    egress: Arc<EgressClient>,
    metrics: Arc<GuestMetrics>,
    pub(crate) unloaded: Vec<Unloaded>,
    pub(crate) leaving: bool,
    /// What becomes of what its filters store; none where the manifest cannot be read.
    pub(crate) kv: Option<KvSpec>,
}

/// What a runtime needs of the node.
pub(crate) struct OnThisNode<'a> {
    /// Where it serves the admin API.
    pub(crate) admin: &'a Arc<[SocketAddr]>,
    pub(crate) nats: &'a Connections,
    pub(crate) egress: Option<&'a EgressNode>,
    /// The most that limits of the tenant's class can be.
    pub(crate) ceiling: &'a FilterLimits,
}

/// What of a manifest was made ready beforehand.
pub(crate) struct Ready {
    pub(crate) filters: Vec<FilterSetup>,
    pub(crate) unloaded: Vec<Unloaded>,
    /// Of upstreams that are not named here nothing is set.
    pub(crate) headers: HashMap<UpstreamName, InjectedHeaders>,
    pub(crate) metrics: Arc<GuestMetrics>,
}

impl Prepared {
    /// From a manifest and what was made ready of it. `current` is what serves the tenant now.
    pub(crate) fn new(
        name: &TenantName,
        grant: &Grant,
        OnThisNode { admin, nats, egress, ceiling }: OnThisNode<'_>,
        manifest: &Manifest,
        Ready { filters, unloaded, mut headers, metrics }: Ready,
        current: Option<&TenantRuntime>,
    ) -> Self {
        let policy: Arc<dyn AddressPolicy> =
            Arc::new(Granted { grant: Arc::new(grant.clone()), admin: Arc::clone(admin) });
        let upstreams = manifest
            .upstreams
            .iter()
            .map(|(upstream, spec)| {
                let kept = current
                    .and_then(|c| c.upstreams.get(upstream))
                    .filter(|before| dials_alike(before.cluster.spec(), spec));
                let cluster = kept.map_or_else(
                    || {
                        let key = ClusterKey { tenant: name.clone(), upstream: upstream.clone() };
                        Cluster::new(key, spec, Arc::clone(&policy))
                    },
                    |before| Arc::clone(&before.cluster),
                );
                let label = upstream.as_str().into();
                let headers = headers.remove(upstream).unwrap_or_default();
                let queue = queue_of(spec, nats);
                (upstream.clone(), Arc::new(UpstreamRuntime { label, cluster, headers, queue }))
            })
            .collect();
        // The operator may have lowered a ceiling since the manifest was applied.
        let limits = manifest.limits.within(ceiling);
        let mut chain = Chain::new(name.clone(), limits.clone(), filters);
        if let Some(current) = current {
            chain.succeed(&current.chain);
        }
        Self {
            name: name.clone(),
            hosts: manifest.hosts.clone(),
            chain,
            limits,
            upstreams,
            default_upstream: manifest.default_upstream.clone(),
            egress: egress.map_or_else(no_egress, |node| {
                let earlier = current.map(|current| &*current.egress);
                Arc::new(EgressClient::new(manifest.egress.clone(), policy, node, earlier))
            }),
            metrics,
            unloaded,
            leaving: false,
            kv: Some(manifest.kv),
        }
    }

    pub(crate) fn name(&self) -> &TenantName {
        &self.name
    }

    /// What its filters share.
    pub(crate) fn state(&self) -> &TenantState {
        self.chain.state()
    }

    /// What they may use and keep.
    pub(crate) fn limits(&self) -> &FilterLimits {
        &self.limits
    }

    /// The keys of the manifest that name a secret which is not to be had, and why.
    pub(crate) fn without_secrets(&self) -> impl Iterator<Item = (Lacking<'_>, &str)> {
        without_secrets(&self.upstreams, &self.chain)
    }

    /// The first key of the manifest by which instances were to be kept that never would be, and why.
    pub(crate) fn kept_in_vain(&self) -> Option<(String, &'static str)> {
        let KeptInVain { filter, key, problem } = self.chain.kept_in_vain().next()?;
        Some((format!("filters[{filter}].{key}"), problem))
    }

    /// For a tenant whose active revision cannot be read: its granted hosts answer that a filter is unavailable.
    pub(crate) fn unreadable(
        name: &TenantName,
        grant: &Grant,
        problem: String,
        metrics: Arc<GuestMetrics>,
    ) -> Self {
        let filter: FilterName = "manifest".parse().expect("\"manifest\" is a valid filter name");
        let setup = FilterSetup {
            name: filter.clone(),
            module: None,
            config: FilterConfig::new(&filter, "null"),
            on_error: OnError::FailClosed,
            lifetime: InstanceLifetime::Call,
        };
        let limits = FilterLimits::default();
        Self {
            name: name.clone(),
            hosts: grant.hosts.clone(),
            chain: Chain::new(name.clone(), limits.clone(), vec![setup]),
            limits,
            upstreams: HashMap::new(),
            default_upstream: None,
            egress: no_egress(),
            metrics,
            unloaded: vec![Unloaded { filter, problem }],
            leaving: false,
            kv: None,
        }
    }

    /// The runtime, as that revision.
    pub(crate) fn at(self, revision: RevisionId) -> Arc<TenantRuntime> {
        Arc::new(TenantRuntime {
            label: self.name.as_str().into(),
            name: self.name,
            revision,
            hosts: self.hosts,
            chain: self.chain,
            limits: self.limits,
            upstreams: self.upstreams,
            default_upstream: self.default_upstream,
            egress: self.egress,
            metrics: self.metrics,
            unloaded: self.unloaded,
            leaving: self.leaving,
        })
    }
}

/// An upstream's queue policy on this node: nothing is accepted for a NATS connection that is too large for it.
fn queue_of(spec: &UpstreamSpec, nats: &Connections) -> QueuePolicy {
    let mut queue = spec.queue.clone();
    if let Some(connection) = spec.nats().and_then(|target| nats.get(&target.connection)) {
        queue.max_body = queue.max_body.min(ByteSize::bytes(connection.max_body));
    }
    queue
}

/// Whether two specs reach the same endpoints in the same way, whatever they queue.
fn dials_alike(a: &UpstreamSpec, b: &UpstreamSpec) -> bool {
    // Taken apart, so that a field that is added later must be thought of here.
    let UpstreamSpec { target, connect_timeout, response_timeout, headers: _, queue: _ } = a;
    (target, connect_timeout, response_timeout) == (&b.target, &b.connect_timeout, &b.response_timeout)
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::mpsc::Sender;

    use beamline_telemetry::Metrics;
    use beamline_upstream::{AddressPolicy, Cluster, ClusterKey};

    use super::*;

    /// A runtime with hosts and nothing else.
    pub(crate) fn runtime(name: &str, revision: u64, hosts: &[&str]) -> Arc<TenantRuntime> {
        let name: TenantName = name.parse().unwrap();
        Arc::new(TenantRuntime {
            label: name.as_str().into(),
            revision: RevisionId(revision),
            hosts: hosts.iter().map(|h| h.parse().unwrap()).collect(),
            chain: Chain::new(name.clone(), FilterLimits::default(), vec![]),
            limits: FilterLimits::default(),
            upstreams: HashMap::new(),
            default_upstream: None,
            egress: no_egress(),
            metrics: Metrics::default().tenant(name.as_str()),
            unloaded: vec![],
            leaving: false,
            name,
        })
    }

    struct Tell(Sender<String>);

    impl AddressPolicy for Tell {
        fn permits(&self, _: SocketAddr) -> Result<(), GrantRefusal> {
            Ok(())
        }

        fn permits_subject(&self, _: &NatsTarget) -> Result<(), GrantRefusal> {
            Ok(())
        }
    }

    impl Drop for Tell {
        fn drop(&mut self) {
            let _ = self.0.send(std::thread::current().name().unwrap_or_default().to_owned());
        }
    }

    /// The runtime with a part that sends the name of the thread on which it is dropped.
    pub(crate) fn tell_when_dropped(
        mut runtime: Arc<TenantRuntime>,
        tell: Sender<String>,
    ) -> Arc<TenantRuntime> {
        let tenant = Arc::get_mut(&mut runtime).unwrap();
        let upstream: UpstreamName = "api".parse().unwrap();
        let spec: UpstreamSpec = serde_json::from_str(r#"{ "endpoints": ["127.0.0.1:1"] }"#).unwrap();
        let key = ClusterKey { tenant: tenant.name.clone(), upstream: upstream.clone() };
        let cluster = Cluster::new(key, &spec, Arc::new(Tell(tell)));
        let label = upstream.as_str().into();
        let headers = InjectedHeaders::default();
        let queue = spec.queue;
        tenant.upstreams.insert(upstream, Arc::new(UpstreamRuntime { label, cluster, headers, queue }));
        runtime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_is_held_against_the_grant() {
        let grant = Grant {
            upstream_ranges: vec!["127.0.0.1:9001-9090".parse().unwrap(), "93.184.216.0/24".parse().unwrap()],
            ..Grant::default()
        };
        let admin: SocketAddr = "127.0.0.1:9090".parse().unwrap();
        let policy = Granted { grant: Arc::new(grant), admin: [admin].into() };
        let asked = |addr: &str| policy.permits(addr.parse().unwrap());
        assert_eq!(asked("127.0.0.1:9001"), Ok(()));
        assert_eq!(asked("93.184.216.34:443"), Ok(()));
        assert!(matches!(asked("127.0.0.1:9090"), Err(GrantRefusal::Admin(_))));
        assert!(matches!(asked("169.254.169.254:80"), Err(GrantRefusal::Special(_))));
        assert!(matches!(asked("93.184.217.1:80"), Err(GrantRefusal::Address(_))));
    }
}
