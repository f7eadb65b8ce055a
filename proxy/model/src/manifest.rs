//! The manifest: everything a tenant declares, as one document, applied as a whole.
//!
//! TOML in files, JSON through the admin API, one schema (version 1). [`Manifest::from_toml`] and
//! [`Manifest::from_json`] are the only ways in; what they return is consistent in itself. Whether a tenant's
//! grant covers it is asked by `control`.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    ByteSize, Digest, Duration, Egress, FilterLimits, FilterName, HostName, InjectedHeader, NatsTarget,
    OnStatus, SecretName, SecretRef, UpstreamName,
    misread::{misread, without_text},
};

/// A manifest that could not be taken, with where and why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// The text is not TOML or JSON of this schema. The message has line and key.
    #[error("{0}")]
    Syntax(String),
    /// The parts do not fit each other.
    #[error("{key}: {problem}")]
    Inconsistent {
        /// The key that is wrong, such as `filters[0].module`.
        key: String,
        /// What was expected, what was found, what to do.
        problem: String,
    },
}

/// A tenant's whole declaration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The schema's version: 1.
    pub version: u32,
    /// The hosts whose requests are this tenant's.
    pub hosts: Vec<HostName>,
    /// Where a request goes that no filter routes. Without it, such a request is answered `404 no-route`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_upstream: Option<UpstreamName>,
    /// The upstreams by name.
    #[serde(default)]
    pub upstreams: BTreeMap<UpstreamName, UpstreamSpec>,
    /// The filter chain, in the order in which it runs for requests.
    #[serde(default)]
    pub filters: Vec<FilterSpec>,
    /// Where filters may send requests of their own. By default nowhere.
    #[serde(default, skip_serializing_if = "Egress::is_empty")]
    pub egress: Egress,
    /// What becomes of the keys and values that filters store.
    #[serde(default, skip_serializing_if = "KvSpec::is_default")]
    pub kv: KvSpec,
    /// What each filter call may use.
    #[serde(default)]
    pub limits: FilterLimits,
}

/// What becomes of the keys and values that a tenant's filters store.
///
/// One word for all of them: keys belong to the filters that write them, and which of a filter's keys may be lost is nothing that
/// whoever writes the manifest can know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvSpec {
    /// Whether they outlive the node.
    pub durable: bool,
}

impl KvSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UpstreamText", into = "UpstreamText")]
pub struct UpstreamSpec {
    /// Where its requests go.
    pub target: UpstreamTarget,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// From the request's last byte until the response's head.
    pub response_timeout: Duration,
    /// Fields that each request to it gets, with secrets for values: set after the filters, in place of what a client or a
    /// filter sent, also at a delivery from the queue.
    pub headers: BTreeMap<InjectedHeader, SecretRef>,
    /// When and how requests to it are queued.
    pub queue: QueuePolicy,
}

/// Where an upstream's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamTarget {
    /// Over HTTP to endpoints that are alike, tried in turn. Not empty.
    Http(Vec<Endpoint>),
    /// To a NATS subject.
    Nats(NatsTarget),
}

/// An upstream as a manifest writes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamText {
    /// `host:port` of each endpoint; requests take them round robin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nats: Option<NatsTarget>,
    #[serde(default = "defaults::connect_timeout")]
    connect_timeout: Duration,
    #[serde(default = "defaults::response_timeout")]
    response_timeout: Duration,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<InjectedHeader, SecretRef>,
    #[serde(default)]
    queue: QueuePolicy,
}

impl TryFrom<UpstreamText> for UpstreamSpec {
    type Error = &'static str;

    fn try_from(text: UpstreamText) -> Result<Self, &'static str> {
        let UpstreamText { endpoints, nats, connect_timeout, response_timeout, headers, queue } = text;
        let target = match (endpoints, nats) {
            (Some(endpoints), None) if endpoints.is_empty() => {
                return Err("endpoints: expected at least one \"host:port\"; found none");
            }
            (Some(endpoints), None) => UpstreamTarget::Http(endpoints),
            (None, Some(nats)) => UpstreamTarget::Nats(nats),
            (Some(_), Some(_)) => {
                return Err("expected either endpoints or nats; found both: make them two upstreams");
            }
            (None, None) => return Err("expected either endpoints or nats; found neither"),
        };
        Ok(Self { target, connect_timeout, response_timeout, headers, queue })
    }
}

impl From<UpstreamSpec> for UpstreamText {
    fn from(spec: UpstreamSpec) -> Self {
        let UpstreamSpec { target, connect_timeout, response_timeout, headers, queue } = spec;
        let (endpoints, nats) = match target {
            UpstreamTarget::Http(endpoints) => (Some(endpoints), None),
            UpstreamTarget::Nats(nats) => (None, Some(nats)),
        };
        Self { endpoints, nats, connect_timeout, response_timeout, headers, queue }
    }
}

impl UpstreamSpec {
    /// The endpoints; none where requests go to NATS.
    pub fn endpoints(&self) -> &[Endpoint] {
        match &self.target {
            UpstreamTarget::Http(endpoints) => endpoints,
            UpstreamTarget::Nats(_) => &[],
        }
    }

    /// The NATS target, where requests go there.
    pub fn nats(&self) -> Option<&NatsTarget> {
        match &self.target {
            UpstreamTarget::Http(_) => None,
            UpstreamTarget::Nats(target) => Some(target),
        }
    }
}

/// `host:port`, where host is an address or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An address, dialled as it is.
    Address(SocketAddr),
    /// A name, resolved at connect; what it resolves to is held against the tenant's grant.
    Named(HostName, u16),
}

/// When a request to an upstream may be queued, and how its record is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueuePolicy {
    /// When a request is queued.
    pub mode: QueueMode,
    /// The methods that may be queued. GET, HEAD, CONNECT, OPTIONS and TRACE never can.
    pub methods: Vec<String>,
    /// The largest body that may be queued.
    pub max_body: ByteSize,
    /// How long a record may wait before it is dead (expired).
    pub expiry: Duration,
    /// Whether the origin treats a repeated `Idempotency-Key` as one request. Only then does a client's key make
    /// a request with a method such as POST safe to repeat.
    pub origin_honours_idempotency_key: bool,
    /// What puts records in order. By default nothing does: they are delivered in parallel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<OrderingKey>,
    /// What becomes of a request that carries `Authorization`, `Cookie` or `Proxy-Authorization`, which are never stored in
    /// the clear. Fields that the manifest itself sets on requests to the upstream don't count.
    pub credentials: Credentials,
    /// How long one record may block its ordering key by being refused, before it is dead (exhausted).
    pub key_block_max: Duration,
    /// What becomes of the rest of an ordering key when one of its records dies.
    pub on_dead: OnDead,
    /// What statuses of its origin mean for a record, where it is not what the table says.
    #[serde(skip_serializing_if = "OnStatus::is_empty")]
    pub on_status: OnStatus,
    /// What is kept of the origin's answer for the holder of the receipt. By default nothing: answers are content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_response: Option<KeepResponse>,
    /// The most deliveries in flight to this upstream at once.
    pub max_in_flight: u32,
}

/// Which answers of an origin are kept, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepResponse {
    /// The largest body that is kept; of a longer answer only the status is.
    pub max_size: ByteSize,
    /// From the end of the record until the answer is deleted.
    #[serde(rename = "for")]
    pub period: Duration,
}

/// When a request is queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueMode {
    /// Never, except where a filter says `enqueue` and the upstream's mode is another.
    #[default]
    Never,
    /// When the upstream failed and the client sent `Prefer: respond-async` (RFC 7240).
    Prefer,
    /// When the upstream failed, whether the client asked or not.
    OnFailure,
    /// Without trying the upstream: for origins that are to get their work only from the queue.
    Always,
}

/// What becomes of a request with credentials that would be queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credentials {
    /// It is not queued, for its origin would refuse it without them: the client gets the error instead of a `202`.
    #[default]
    Refuse,
    /// It is queued without them: for origins that don't need them.
    Strip,
    /// It is queued with them, sealed by a key that is not in the data folder.
    Seal,
}

/// What becomes of an ordering key when one of its records dies by itself: rejected, exhausted, expired or indeterminate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDead {
    /// The next record of the key is delivered.
    #[default]
    Continue,
    /// What comes after it in its key waits until somebody retries or discards the dead letter, or resumes the key.
    PauseKey,
}

/// What a record's ordering key is taken from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderingKey {
    /// The request header whose value is the key; requests without it have no key.
    pub header: String,
}

/// One filter of the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSpec {
    /// Its name, unique in the chain: in logs, spans and errors.
    pub name: FilterName,
    /// The module: `sha256:…`, or in a file a path that starts with `./` or `/`, which `beamline apply` uploads.
    pub module: ModuleRef,
    /// The filter's own configuration, handed to it as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// What a trap, time-out or exhausted limit leads to.
    #[serde(default)]
    pub on_error: OnError,
    /// The secrets that the filter may read, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// Whether one instance of the module lives from the filter's first phase of a request to its last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pin_instance: bool,
    /// Requests that one instance of the module serves, one after the other. 1: each has a fresh one.
    #[serde(default = "defaults::reuse", skip_serializing_if = "defaults::is_fresh")]
    pub reuse: u32,
}

impl FilterSpec {
    /// The most secrets that one filter may read.
    pub const SECRETS_MAX: usize = 16;
    /// The most requests that one instance may serve.
    pub const REUSE_MAX: u32 = 10_000;

    /// How long an instance of its module lives.
    pub fn lifetime(&self) -> InstanceLifetime {
        match NonZeroU32::new(self.reuse) {
            _ if self.pin_instance => InstanceLifetime::Request,
            Some(requests) if requests.get() > 1 => InstanceLifetime::Requests(requests),
            _ => InstanceLifetime::Call,
        }
    }

    /// Whether what is said of its instances is of one mind.
    fn check_instances(&self) -> Result<(), (&'static str, String)> {
        if self.reuse == 0 || self.reuse > Self::REUSE_MAX {
            return Err(("reuse", format!("expected 1 to {}; found {}", Self::REUSE_MAX, self.reuse)));
        }
        if self.pin_instance && self.reuse > 1 {
            let problem = "expected either pin_instance or reuse; found both: an instance is held for one request, or serves several";
            return Err(("reuse", problem.into()));
        }
        Ok(())
    }
}

/// How long an instance of a filter's module lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InstanceLifetime {
    /// One call: each phase and each chunk of a body has a fresh one.
    #[default]
    Call,
    /// One request, from the filter's first phase to its last.
    Request,
    /// The request phases of so many requests of the tenant, one after the other.
    Requests(NonZeroU32),
}

/// What a failing filter leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The request is answered `503`.
    #[default]
    FailClosed,
    /// The request goes on as if the filter had said `next`, without the filter's changes.
    FailOpen,
}

/// How a manifest names a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleRef {
    /// By content: the only form a node takes.
    Digest(Digest),
    /// By a local path: only in files, until `beamline apply` has uploaded it.
    Path(String),
}

mod defaults {
    use crate::Duration;

    pub(super) fn connect_timeout() -> Duration {
        Duration::secs(2)
    }

    pub(super) fn response_timeout() -> Duration {
        Duration::secs(30)
    }

    pub(super) fn reuse() -> u32 {
        1
    }

    pub(super) fn is_fresh(requests: &u32) -> bool {
        *requests == reuse()
    }
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self {
            mode: QueueMode::Never,
            methods: ["POST", "PUT", "PATCH", "DELETE"].map(str::to_owned).to_vec(),
            max_body: ByteSize::mib(1),
            expiry: Duration::secs(24 * 3600),
            origin_honours_idempotency_key: false,
            ordering_key: None,
            credentials: Credentials::Refuse,
            key_block_max: Duration::secs(15 * 60),
            on_dead: OnDead::Continue,
            on_status: OnStatus::default(),
            keep_response: None,
            max_in_flight: 8,
        }
    }
}

impl Default for KeepResponse {
    fn default() -> Self {
        Self { max_size: ByteSize::kib(64), period: Duration::secs(3600) }
    }
}

impl Manifest {
    /// The schema's version that this build reads and writes.
    pub const VERSION: u32 = 1;
    /// The most filters that a manifest may have.
    pub const FILTERS_MAX: usize = 64;

    /// Reads a manifest file. `file` is for messages.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(text)
            .map_err(|error| ManifestError::Syntax(misread(text, file, error.span(), error.message())))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads a manifest as the admin API takes it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let manifest: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let problem = error.inner().to_string();
            ManifestError::Syntax(format!("{}: {}", error.path(), without_text(&problem)))
        })?;
        json.end().map_err(|error| ManifestError::Syntax(format!("after the manifest: {error}")))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let wrong = |key: String, problem: String| Err(ManifestError::Inconsistent { key, problem });
        let known = || {
            let names: Vec<_> = self.upstreams.keys().map(UpstreamName::as_str).collect();
            if names.is_empty() {
                "no upstream is defined".to_owned()
            } else {
                format!("defined are {}", names.join(", "))
            }
        };
        if self.version != Self::VERSION {
            return wrong(
                "version".into(),
                format!("expected 1, the only schema this version reads; found {}", self.version),
            );
        }
        if self.hosts.is_empty() {
            return wrong(
                "hosts".into(),
                "expected at least one host, such as [\"acme.example\"]; found none".into(),
            );
        }
        if let Some((i, host)) = self.hosts.iter().enumerate().find(|(i, h)| self.hosts[..*i].contains(h)) {
            return wrong(format!("hosts[{i}]"), format!("host {host} is named twice: remove one"));
        }
        if let Some(name) = &self.default_upstream
            && !self.upstreams.contains_key(name)
        {
            return wrong("default_upstream".into(), format!("upstream {name} is not defined ({})", known()));
        }
        for (name, upstream) in &self.upstreams {
            if upstream.headers.len() > UpstreamSpec::HEADERS_MAX {
                return wrong(
                    format!("upstreams.{name}.headers"),
                    format!(
                        "expected at most {}; found {}",
                        UpstreamSpec::HEADERS_MAX,
                        upstream.headers.len()
                    ),
                );
            }
            upstream
                .queue
                .check()
                .or_else(|(key, problem)| wrong(format!("upstreams.{name}.queue.{key}"), problem))?;
        }
        let (most, found) = (Self::FILTERS_MAX, self.filters.len());
        if found > most {
            return wrong(
                "filters".into(),
                format!("expected at most {most}; found {found}: remove some, or make one of several"),
            );
        }
        for (i, filter) in self.filters.iter().enumerate() {
            if self.filters[..i].iter().any(|f| f.name == filter.name) {
                return wrong(
                    format!("filters[{i}].name"),
                    format!("filter {} is named twice: choose another name", filter.name),
                );
            }
            filter
                .check_instances()
                .or_else(|(key, problem)| wrong(format!("filters[{i}].{key}"), problem))?;
            if filter.secrets.len() > FilterSpec::SECRETS_MAX {
                return wrong(
                    format!("filters[{i}].secrets"),
                    format!("expected at most {}; found {}", FilterSpec::SECRETS_MAX, filter.secrets.len()),
                );
            }
        }
        self.egress.check().or_else(|problem| wrong("egress.allow".into(), problem))?;
        self.limits.check().or_else(|problem| wrong("limits".into(), problem))
    }

    /// The same manifest with each local path replaced by what `digest_of` gives for it.
    pub fn with_modules<E>(
        mut self,
        mut digest_of: impl FnMut(&str) -> Result<Digest, E>,
    ) -> Result<Self, E> {
        for filter in &mut self.filters {
            if let ModuleRef::Path(path) = &filter.module {
                filter.module = ModuleRef::Digest(digest_of(path)?);
            }
        }
        Ok(self)
    }

    /// The canonical JSON form: what a revision stores, and what two manifests are compared by.
    ///
    /// # Panics
    /// Never: every part of a manifest can be written as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("every part of a manifest can be written as JSON")
    }
}

impl UpstreamSpec {
    /// The most fields that a manifest may set on requests to one upstream.
    pub const HEADERS_MAX: usize = 16;
}

impl QueuePolicy {
    fn check(&self) -> Result<(), (&'static str, String)> {
        const NEVER: [&str; 5] = ["GET", "HEAD", "CONNECT", "OPTIONS", "TRACE"];
        if let Some(method) = self.methods.iter().find(|m| NEVER.contains(&m.as_str())) {
            return Err(("methods", format!("{method} requests can never be queued: remove it")));
        }
        if let Some(method) = self
            .methods
            .iter()
            .find(|m| m.is_empty() || !m.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'))
        {
            return Err((
                "methods",
                format!("expected methods in capitals such as \"POST\"; found {method:?}"),
            ));
        }
        if self.max_body > ByteSize::mib(256) {
            return Err(("max_body", format!("expected at most 256MiB; found {}", self.max_body)));
        }
        if self.max_in_flight == 0 || self.max_in_flight > 1024 {
            return Err(("max_in_flight", format!("expected 1 to 1024; found {}", self.max_in_flight)));
        }
        if let Some(keep) = &self.keep_response {
            if keep.max_size > ByteSize::kib(256) {
                return Err((
                    "keep_response.max_size",
                    format!("expected at most 256KiB; found {}", keep.max_size),
                ));
            }
            if keep.period > Duration::secs(7 * 24 * 3600) {
                return Err(("keep_response.for", format!("expected at most 7d; found {}", keep.period)));
            }
        }
        if let Some(key) = &self.ordering_key {
            let token = !key.header.is_empty()
                && key.header.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            if !token {
                return Err((
                    "ordering_key.header",
                    format!("expected a header name; found {:?}", key.header),
                ));
            }
        }
        Ok(())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "endpoint {s:?} is not valid: expected \"host:port\", such as \"127.0.0.1:9001\" or \"api.internal:443\""
            )
        };
        if let Ok(addr) = s.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(wrong()) } else { Ok(Self::Address(addr)) };
        }
        let (host, port) = s.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(wrong)?;
        let host: HostName = host.parse().map_err(|_| wrong())?;
        if host.as_str().parse::<IpAddr>().is_ok() {
            return Err(wrong());
        }
        Ok(Self::Named(host, port))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Named(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for ModuleRef {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.starts_with("sha256:") {
            s.parse().map(Self::Digest).map_err(|e: crate::InvalidDigest| e.to_string())
        } else if s.starts_with("./") || s.starts_with("../") || s.starts_with('/') {
            Ok(Self::Path(s.to_owned()))
        } else {
            Err(format!(
                "module {s:?} is not valid: expected \"sha256:…\", or in a file a path that starts with \"./\", \"../\" or \"/\""
            ))
        }
    }
}

impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Path(path) => path.fmt(f),
        }
    }
}

crate::text::as_text!(Endpoint, ModuleRef);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_has_a_bounded_number_of_filters() {
        let with = |filters: usize| {
            let filter = |i| format!("[[filters]]\nname = \"f{i}\"\nmodule = \"./f.wasm\"\n");
            let filters: String = (0..filters).map(filter).collect();
            Manifest::from_toml(&format!("version = 1\nhosts = [\"a.test\"]\n{filters}"), "m.toml")
        };
        assert_eq!(with(64).unwrap().filters.len(), 64);
        let problem = with(65).unwrap_err().to_string();
        assert_eq!(problem, "filters: expected at most 64; found 65: remove some, or make one of several");
    }

    const GOOD: &str = r#"
version = 1
hosts = ["acme.test"]
default_upstream = "api"

[upstreams.api]
endpoints = ["127.0.0.1:9001", "api.internal:80"]
[upstreams.api.queue]
mode = "on-failure"
ordering_key = { header = "x-account" }

[[filters]]
name = "router"
module = "./router.wasm"
config = { rules = [{ prefix = "/v2", upstream = "api" }] }

[limits]
cpu = "20ms"
"#;

    #[test]
    fn a_file_becomes_a_manifest_and_json_reads_back() {
        let manifest = Manifest::from_toml(GOOD, "acme.toml").unwrap();
        assert_eq!(manifest.limits.cpu, Duration::millis(20));
        assert_eq!(manifest.upstreams.values().next().unwrap().queue.mode, QueueMode::OnFailure);
        assert_eq!(Manifest::from_json(manifest.to_json().as_bytes()).unwrap(), manifest);
    }

    #[test]
    fn an_instance_lives_for_a_call_a_request_or_several() {
        let with = |text: &str| {
            let manifest = GOOD.replace("name = \"router\"", &format!("name = \"router\"\n{text}"));
            Manifest::from_toml(&manifest, "acme.toml")
        };
        let several = NonZeroU32::new(FilterSpec::REUSE_MAX).unwrap();
        for (text, lifetime, stored) in [
            ("", InstanceLifetime::Call, false),
            ("pin_instance = false\nreuse = 1", InstanceLifetime::Call, false),
            ("pin_instance = true", InstanceLifetime::Request, true),
            ("reuse = 10000", InstanceLifetime::Requests(several), true),
        ] {
            let manifest = with(text).unwrap();
            assert_eq!(manifest.filters[0].lifetime(), lifetime, "{text}");
            let json = manifest.to_json();
            assert_eq!(json.contains("pin_instance\":true") || json.contains("reuse"), stored, "{json}");
            assert_eq!(Manifest::from_json(json.as_bytes()).unwrap(), manifest);
        }
        for (text, expected) in [
            ("reuse = 0", "filters[0].reuse: expected 1 to 10000; found 0"),
            ("reuse = 10001", "filters[0].reuse: expected 1 to 10000; found 10001"),
            (
                "pin_instance = true\nreuse = 2",
                "filters[0].reuse: expected either pin_instance or reuse; found both",
            ),
        ] {
            let error = with(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_upstream_is_of_one_kind() {
        let nats = r#"nats = { connection = "main", subject = "acme.orders.new", kind = "jetstream" }"#;
        let endpoints = r#"endpoints = ["127.0.0.1:9001", "api.internal:80"]"#;
        let manifest = Manifest::from_toml(&GOOD.replace(endpoints, nats), "acme.toml").unwrap();
        assert_eq!(
            manifest.upstreams.values().next().unwrap().nats().unwrap().subject.as_str(),
            "acme.orders.new"
        );
        assert_eq!(Manifest::from_json(manifest.to_json().as_bytes()).unwrap(), manifest);
        for (text, expected) in [
            (format!("{endpoints}\n{nats}"), "expected either endpoints or nats; found both"),
            (String::new(), "expected either endpoints or nats; found neither"),
            ("endpoints = []".into(), "endpoints: expected at least one \"host:port\"; found none"),
            (nats.replace("orders.new", ">"), "NATS subject \"acme.>\" is not valid"),
            (nats.replace("acme.orders.new", "$JS.API.INFO"), "NATS subject \"$JS.API.INFO\" is not valid"),
            (nats.replace("jetstream", "publish"), "unknown variant `publish`"),
        ] {
            let error = Manifest::from_toml(&GOOD.replace(endpoints, &text), "acme.toml").unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("acme.toml:") && error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn an_http_upstream_is_stored_as_it_always_was() {
        let stored = concat!(
            r#"{"version":1,"hosts":["acme.test"],"upstreams":{"api":{"endpoints":["127.0.0.1:9001"],"#,
            r#""connect_timeout":"2s","response_timeout":"30s","queue":{"#
        );
        let manifest = Manifest::from_toml(
            "version = 1\nhosts = [\"acme.test\"]\n[upstreams.api]\nendpoints = [\"127.0.0.1:9001\"]\n",
            "acme.toml",
        );
        let json = manifest.unwrap().to_json();
        assert!(json.starts_with(stored), "{json}");
    }

    #[test]
    fn errors_in_json_name_the_key() {
        let json = r#"{"version":1,"hosts":["a.test"],"limits":{"memory":"1TiB"}}"#;
        let error = Manifest::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("limits.memory: \"1TiB\" is not a size"), "{error}");
        assert!(Manifest::from_json(br#"{"version":1,"hosts":["a.test"]} more"#).is_err());
    }

    #[test]
    fn the_reference_page_shows_every_key() {
        let page = include_str!("../../../docs/reference/manifest.md");
        let shown = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let manifest = Manifest::from_toml(shown, "manifest.md").unwrap();
        let all = serde_json::to_value(&manifest).unwrap();
        let mut keys = Vec::new();
        fn collect(value: &serde_json::Value, keys: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| {
                    keys.push(key.clone());
                    collect(value, keys);
                }),
                serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, keys)),
                _ => {}
            }
        }
        collect(&all, &mut keys);
        let words: std::collections::BTreeSet<_> =
            shown.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).collect();
        for key in keys {
            assert!(words.contains(&*key), "docs/reference/manifest.md does not show {key}");
        }
    }

    #[test]
    fn errors_name_file_line_key_and_what_would_be_right() {
        for (from, to, expected) in [
            ("\"acme.test\"", "\"acme test\"", "acme.toml:3: "),
            ("cpu = \"20ms\"", "cpus = \"20ms\"", "acme.toml:18: unknown field `cpus`"),
            (
                "default_upstream = \"api\"",
                "default_upstream = \"apo\"",
                "default_upstream: upstream apo is not defined (defined are api)",
            ),
            ("127.0.0.1:9001", "127.0.0.1", "expected \"host:port\""),
            ("cpu = \"20ms\"", "cpu = \"20s\"", "beyond the ceiling of 1s"),
            ("./router.wasm", "router.wasm", "expected \"sha256:…\""),
            ("mode = \"on-failure\"", "mode = \"sometimes\"", "acme.toml:9: unknown variant `sometimes`"),
            ("mode = \"on-failure\"", "methods = [\"GET\"]", "GET requests can never be queued"),
            (
                "mode = \"on-failure\"",
                "on_status = { 200 = \"dead\" }",
                "expected one from \"300\" to \"599\"",
            ),
            (
                "mode = \"on-failure\"",
                "keep_response = { max_size = \"1MiB\" }",
                "keep_response.max_size: expected at most 256KiB; found 1MiB",
            ),
            (
                "mode = \"on-failure\"",
                "keep_response = { for = \"8d\" }",
                "keep_response.for: expected at most 7d; found 8d",
            ),
            ("mode = \"on-failure\"", "on_status = { 409 = \"again\" }", "unknown variant `again`"),
            ("mode = \"on-failure\"", "on_dead = \"pause\"", "unknown variant `pause`"),
            (
                "[upstreams.api.queue]",
                "headers = { authorization = \"s3cret\" }\n[upstreams.api.queue]",
                "expected \"secret://NAME\"; found something else",
            ),
            (
                "[upstreams.api.queue]",
                "headers = { host = \"secret://a\" }\n[upstreams.api.queue]",
                "host is the proxy's own",
            ),
        ] {
            let error = Manifest::from_toml(&GOOD.replace(from, to), "acme.toml").unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
            assert!(!error.contains("s3cret"), "what may be a secret is not repeated: {error}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_repeated_wherever_it_was_put() {
        for (text, key) in [
            ("headers = { Authorization = \"Bearer s3cret\" }", "in `headers`"),
            ("headers = { authorization = [\"s3cret\"] }", "in `headers`"),
            ("headers = \"Bearer s3cret\"", "in `headers`"),
            ("password = \"s3cret\"", "in `password`"),
            ("connect_timeout = [\"s3cret\"]", "in `connect_timeout`"),
            ("headers \"s3cret\"", "acme.toml:8: "),
            ("headers = { authorization =\n\"s3cret\" }", "acme.toml:"),
        ] {
            let text = GOOD.replace("[upstreams.api.queue]", &format!("{text}\n[upstreams.api.queue]"));
            let error = Manifest::from_toml(&text, "acme.toml").unwrap_err().to_string();
            assert!(error.contains(key) && !error.contains("s3cret"), "{text}: {error}");
        }
        let json = br#"{"version":1,"hosts":["a.test"],"upstreams":{"api":{"headers":"Bearer s3cret"}}}"#;
        let error = Manifest::from_json(json).unwrap_err().to_string();
        assert!(error.starts_with("upstreams.api") && !error.contains("s3cret"), "{error}");
    }
}
