//! Where spans are sent.

use std::{fmt, str::FromStr};

use http::Uri;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// A text that is not an OTLP endpoint. It is not repeated here beyond its scheme: an endpoint may hold credentials.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "OTLP endpoint is not valid: {0}; expected the base URL of a collector's HTTP receiver, such as \"http://127.0.0.1:4318\""
)]
pub struct InvalidEndpoint(&'static str);

/// The base URL of an OTLP/HTTP receiver; spans go to `/v1/traces` below it.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpEndpoint {
    traces: Uri,
}

impl OtlpEndpoint {
    /// The URL that spans are posted to.
    pub(crate) fn traces(&self) -> &Uri {
        &self.traces
    }
}

impl FromStr for OtlpEndpoint {
    type Err = InvalidEndpoint;

    fn from_str(s: &str) -> Result<Self, InvalidEndpoint> {
        let base: Uri = s.parse().map_err(|_| InvalidEndpoint("it is not a URL"))?;
        match base.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(InvalidEndpoint(
                    "https is not supported yet (send to a collector on this machine, which adds TLS)",
                ));
            }
            Some(_) => return Err(InvalidEndpoint("its scheme is not http")),
            None => return Err(InvalidEndpoint("it has no scheme")),
        }
        if base.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(InvalidEndpoint("it has no host, or a user name or password before it"));
        }
        if base.query().is_some() {
            return Err(InvalidEndpoint("it has a query"));
        }
        let path = format!("{}/v1/traces", base.path().trim_end_matches('/'));
        let mut parts = base.into_parts();
        parts.path_and_query = Some(path.parse().map_err(|_| InvalidEndpoint("its path is not valid"))?);
        let traces = Uri::from_parts(parts).map_err(|_| InvalidEndpoint("it is not a URL"))?;
        Ok(Self { traces })
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.traces.to_string();
        f.write_str(url.strip_suffix("/v1/traces").unwrap_or(&url))
    }
}

impl fmt::Debug for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for OtlpEndpoint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_go_below_the_base_url() {
        for (base, traces) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://otel.test/", "http://otel.test/v1/traces"),
            ("http://otel.test/tenant/a/", "http://otel.test/tenant/a/v1/traces"),
        ] {
            let endpoint: OtlpEndpoint = base.parse().unwrap();
            assert_eq!(endpoint.traces(), traces);
            assert_eq!(endpoint.to_string(), base.trim_end_matches('/'));
        }
    }

    #[test]
    fn a_bad_endpoint_says_what_is_expected_and_keeps_its_credentials() {
        for bad in [
            "",
            "127.0.0.1:4318",
            "https://a.test",
            "ftp://a.test",
            "http://user:hunter2@a.test",
            "http://a.test/?k=hunter2",
        ] {
            let error = bad.parse::<OtlpEndpoint>().unwrap_err().to_string();
            assert!(error.contains("expected the base URL") && !error.contains("hunter2"), "{error}");
        }
    }
}
