//! One rule: what a request must have, and where it goes then.

use std::time::Duration;

use beamline_sdk::{Method, Route, Verdict, path};
use serde::Deserialize;

use crate::{facts::Facts, header::HeaderMatches};

/// A rule whose parts fit each other.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Rule {
    path: PathMatch,
    methods: Vec<Method>,
    host: Option<String>,
    headers: HeaderMatches,
    upstream: String,
    timeout: Option<Duration>,
}

/// A rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    path: Option<String>,
    prefix: Option<String>,
    #[serde(default)]
    methods: Vec<Method>,
    host: Option<String>,
    #[serde(default)]
    headers: HeaderMatches,
    upstream: String,
    #[serde(default)]
    strip_prefix: bool,
    timeout_ms: Option<u32>,
}

/// What the path must be.
enum PathMatch {
    Any,
    Exact(String),
    /// Whole segments: `/v2` holds `/v2` and `/v2/x`, not `/v2x`.
    Prefix {
        prefix: String,
        strip: bool,
    },
}

impl Rule {
    /// Whether the request has all that this rule asks for.
    pub(crate) fn matches(&self, facts: &Facts) -> bool {
        self.path.matches(facts.path())
            && (self.methods.is_empty() || self.methods.iter().any(|method| **method == *facts.method()))
            && self.host.as_ref().is_none_or(|host| host == facts.host())
            && self.headers.hold(|name| facts.header(name))
    }

    /// Where a request goes that this rule matches.
    pub(crate) fn route(&self, facts: &Facts) -> Route {
        let mut route = Verdict::route(self.upstream.as_str());
        if let Some(mut path) = self.path.stripped(facts.path()) {
            if let Some(query) = facts.query() {
                path.push('?');
                path.push_str(&query);
            }
            route = route.path(path);
        }
        if let Some(timeout) = self.timeout {
            route = route.timeout(timeout);
        }
        route
    }

    pub(crate) fn header_names(&self) -> impl Iterator<Item = &str> {
        self.headers.names()
    }
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact,
            Self::Prefix { prefix, .. } => path::is_below(path, prefix),
        }
    }

    /// The path without the prefix, where the rule wants it gone. Always starts with one `/`.
    fn stripped(&self, path: &str) -> Option<String> {
        let Self::Prefix { prefix, strip: true } = self else {
            return None;
        };
        let rest = path.strip_prefix(prefix.as_str())?.trim_start_matches('/');
        Some(["/", rest].concat())
    }
}

impl TryFrom<Written> for Rule {
    type Error = &'static str;

    fn try_from(rule: Written) -> Result<Self, Self::Error> {
        let absolute = |path: &str| path.starts_with('/') && !path.contains('?');
        if rule.strip_prefix && rule.prefix.is_none() {
            return Err("strip_prefix: expected a prefix beside it");
        }
        let path = match (rule.path, rule.prefix) {
            (None, None) => PathMatch::Any,
            (Some(path), None) if absolute(&path) => PathMatch::Exact(path),
            (None, Some(prefix)) if absolute(&prefix) => {
                PathMatch::Prefix { prefix, strip: rule.strip_prefix }
            }
            (Some(_), Some(_)) => return Err("expected path or prefix, found both: remove one"),
            _ => return Err("expected path and prefix to start with / and to have no query"),
        };
        if !rule.host.as_deref().is_none_or(is_host) {
            return Err("host: expected a host without port, such as img.acme.test");
        }
        if rule.timeout_ms == Some(0) {
            return Err("timeout_ms: expected at least 1");
        }
        Ok(Self {
            path,
            methods: rule.methods,
            host: rule.host.map(|host| host.to_ascii_lowercase()),
            headers: rule.headers,
            upstream: rule.upstream,
            timeout: rule.timeout_ms.map(|ms| Duration::from_millis(ms.into())),
        })
    }
}

/// Whether a request can name this host. No request names a port or a pattern in this place.
fn is_host(host: &str) -> bool {
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte)),
        None => !host.is_empty() && host.bytes().all(name),
    }
}
