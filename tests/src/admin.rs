//! The admin API as a typed client: what `beamline tenant create`, `push`, `apply`, `show` and `rollback` do.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// How long one call may take; compiling a module is the longest.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A call that did not succeed.
#[derive(Debug)]
pub enum AdminError {
    /// The node answered, with a status other than 2xx. Nothing was changed.
    Refused {
        /// The status.
        status: u16,
        /// The problem document, or the answer's text where it is none.
        problem: Value,
    },
    /// No whole answer came. The change may have been made or not.
    Unknown(String),
}

impl AdminError {
    /// The last part of the problem's `type`, such as `host-taken`; empty where there is none.
    pub fn kind(&self) -> &str {
        match self {
            Self::Refused { problem, .. } => {
                problem["type"].as_str().and_then(|t| t.rsplit(['/', ':', '#']).next()).unwrap_or_default()
            }
            Self::Unknown(_) => "",
        }
    }

    /// The problem's `detail`; empty where there is none.
    pub fn detail(&self) -> &str {
        match self {
            Self::Refused { problem, .. } => problem["detail"].as_str().unwrap_or_default(),
            Self::Unknown(_) => "",
        }
    }

    /// The status, where the node answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unknown(_) => None,
        }
    }
}

impl std::fmt::Display for AdminError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { status, problem } => write!(f, "the admin API answered {status}: {problem}"),
            Self::Unknown(how) => write!(f, "the admin API gave no whole answer: {how}"),
        }
    }
}

impl std::error::Error for AdminError {}

/// What [`Admin::push`] tells of a module.
#[derive(Clone, Debug, Deserialize)]
pub struct Module {
    /// `sha256:…`, what a manifest names it by.
    pub digest: String,
    /// The phases it exports.
    #[serde(default)]
    pub phases: Vec<String>,
    /// What it imports.
    #[serde(default)]
    pub imports: Vec<String>,
    /// The tier that its request phase runs in: `reset` or `component`.
    #[serde(default)]
    pub tier: String,
    /// Its size in bytes.
    #[serde(default)]
    pub size: u64,
    /// What compiling it took.
    #[serde(default)]
    pub compile_ms: f64,
    /// Whether it was uploaded as a core module or as a component.
    #[serde(default)]
    pub kind: String,
    /// Whether the node had it already.
    #[serde(default)]
    pub cached: bool,
}

/// What [`Admin::apply`] and [`Admin::rollback`] led to.
#[derive(Clone, Debug, Deserialize)]
pub struct Applied {
    /// The active revision; none only for a dry run on a tenant without one.
    pub revision: Option<u64>,
    /// Whether anything changed.
    #[serde(default)]
    pub changed: bool,
    /// The difference, line by line.
    #[serde(default)]
    pub diff: Vec<String>,
}

/// The admin API of one node, seen with one token.
#[derive(Clone)]
pub struct Admin {
    agent: ureq::Agent,
    base: String,
    token: String,
}

impl Admin {
    /// At this address, with this bearer token.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A kept connection to a node that was killed meanwhile would blur what happened to a call.
            .max_idle_connections(0)
            .timeout_global(Some(TIMEOUT))
            .build()
            .new_agent();
        Self { agent, base: format!("http://{address}"), token: token.to_owned() }
    }

    /// The same API seen with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Creates a tenant with its grant; gives the tenant's token.
    ///
    /// # Errors
    /// As for every call: [`AdminError`].
    pub fn create_tenant(&self, name: &str, hosts: &[&str], ranges: &[&str]) -> Result<String, AdminError> {
        self.create_tenant_with(&json!({ "name": name, "hosts": hosts, "upstream_ranges": ranges }))
    }

    /// Creates a tenant as this document says; gives the tenant's token.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn create_tenant_with(&self, body: &Value) -> Result<String, AdminError> {
        let created: Value = self.call("POST", "/v1/tenants", Body::Json(body))?;
        created["token"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| AdminError::Unknown(format!("expected a token in the answer; found {created}")))
    }

    /// Uploads a module of a tenant.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn push(&self, tenant: &str, wasm: &[u8]) -> Result<Module, AdminError> {
        self.call("POST", &format!("/v1/tenants/{tenant}/modules"), Body::Bytes(wasm))
    }

    /// Applies a manifest. When this returns, the new revision serves.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn apply(&self, tenant: &str, manifest: &Value) -> Result<Applied, AdminError> {
        self.call("PUT", &format!("/v1/tenants/{tenant}/manifest"), Body::Json(manifest))
    }

    /// Applies a manifest and gives up the queued requests of upstreams that it removes.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn apply_discarding(&self, tenant: &str, manifest: &Value) -> Result<Applied, AdminError> {
        self.call("PUT", &format!("/v1/tenants/{tenant}/manifest?discard_queue=true"), Body::Json(manifest))
    }

    /// What applying a manifest would change.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn dry_run(&self, tenant: &str, manifest: &Value) -> Result<Applied, AdminError> {
        self.call("PUT", &format!("/v1/tenants/{tenant}/manifest?dry_run=true"), Body::Json(manifest))
    }

    /// Activates an earlier revision again: the one named, or the one before the active one.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn rollback(&self, tenant: &str, revision: Option<u64>) -> Result<Applied, AdminError> {
        let body = revision.map_or_else(|| json!({}), |n| json!({ "revision": n }));
        self.call("POST", &format!("/v1/tenants/{tenant}/rollback"), Body::Json(&body))
    }

    /// A tenant as the node sees it: grant, active revision and so on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn show(&self, tenant: &str) -> Result<Value, AdminError> {
        self.get(&format!("/v1/tenants/{tenant}"))
    }

    /// The active manifest.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn manifest(&self, tenant: &str) -> Result<Value, AdminError> {
        self.get(&format!("/v1/tenants/{tenant}/manifest"))
    }

    /// Any other GET, its path from `/v1` on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn get(&self, path: &str) -> Result<Value, AdminError> {
        self.call("GET", path, Body::None)
    }

    /// Any other POST, its path from `/v1` on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn post(&self, path: &str, document: &Value) -> Result<Value, AdminError> {
        self.call("POST", path, Body::Json(document))
    }

    /// What `/metrics` answers: text.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn metrics(&self) -> Result<String, AdminError> {
        let unknown = |error: ureq::Error| AdminError::Unknown(error.to_string());
        let answer = self
            .agent
            .get(format!("{}/metrics", self.base))
            .header("authorization", format!("Bearer {}", self.token))
            .call();
        let mut answer = answer.map_err(unknown)?;
        let text = answer.body_mut().read_to_string().map_err(unknown)?;
        match answer.status().as_u16() {
            200 => Ok(text),
            status => Err(AdminError::Refused { status, problem: text.into() }),
        }
    }

    /// The lines of one family in `/metrics`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn metrics_of(&self, family: &str) -> Result<Vec<String>, AdminError> {
        let is_of = |line: &&str| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']));
        Ok(self.metrics()?.lines().filter(is_of).map(str::to_owned).collect())
    }

    /// Sets a secret of a tenant.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn set_secret(&self, tenant: &str, name: &str, value: &str) -> Result<Value, AdminError> {
        self.call("PUT", &format!("/v1/tenants/{tenant}/secrets/{name}"), Body::Bytes(value.as_bytes()))
    }

    /// Any DELETE, its path from `/v1` on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn delete(&self, path: &str) -> Result<Value, AdminError> {
        self.call("DELETE", path, Body::None)
    }

    fn call<T: DeserializeOwned>(&self, method: &str, path: &str, body: Body<'_>) -> Result<T, AdminError> {
        let unknown = |error: ureq::Error| AdminError::Unknown(format!("{method} {path}: {error}"));
        let (kind, bytes) = match body {
            Body::None => (None, Vec::new()),
            Body::Json(value) => (Some("application/json"), value.to_string().into_bytes()),
            Body::Bytes(bytes) => (Some("application/octet-stream"), bytes.to_vec()),
        };
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", self.token));
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let request = request.body(bytes).map_err(|error| AdminError::Unknown(error.to_string()))?;
        let mut response = self.agent.run(request).map_err(unknown)?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(unknown)?;
        if !(200..300).contains(&status) {
            let problem = serde_json::from_str(&text).unwrap_or(Value::String(text));
            return Err(AdminError::Refused { status, problem });
        }
        serde_json::from_str(&text).map_err(|error| {
            AdminError::Unknown(format!("{method} {path} answered {status}, but {error}: {text}"))
        })
    }
}

enum Body<'a> {
    None,
    Json(&'a Value),
    Bytes(&'a [u8]),
}

/// A manifest with one upstream `origin` at `endpoint`, taken by default: the smallest that proxies.
pub fn manifest(host: &str, endpoint: SocketAddr) -> Value {
    json!({
        "version": 1,
        "hosts": [host],
        "default_upstream": "origin",
        "upstreams": { "origin": { "endpoints": [endpoint.to_string()] } },
    })
}
