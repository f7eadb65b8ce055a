//! Where a tenant's filters may send requests of their own.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{Endpoint, HostName};

/// The most rules of one manifest.
const RULES_MAX: usize = 64;

/// The `[egress]` of a manifest. By default nothing is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// What requests of filters may be sent to. What a name resolves to is held against the grant at each connect.
    pub allow: Vec<EgressRule>,
}

/// A scheme, a host and a port: `http://auth.internal:8080`, or `http://*.internal` for every host below a name. Without a port,
/// 80.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    host: HostRule,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostRule {
    Address(IpAddr),
    Name(HostName),
    /// Every host below it, not itself.
    Below(HostName),
}

impl Egress {
    /// Whether there is no rule, so that nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }

    /// Whether a rule allows requests to this endpoint.
    pub fn allows(&self, to: &Endpoint) -> bool {
        self.allow.iter().any(|rule| rule.allows(to))
    }

    /// Whether a rule names this endpoint in full, and not only what it is below.
    pub fn names(&self, to: &Endpoint) -> bool {
        self.allow.iter().any(|rule| !matches!(rule.host, HostRule::Below(_)) && rule.allows(to))
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.allow.len() > RULES_MAX {
            return Err(format!("expected at most {RULES_MAX} rules; found {}", self.allow.len()));
        }
        Ok(())
    }
}

impl EgressRule {
    /// The port of `http` where none is named.
    const HTTP: u16 = 80;

    /// The address that is allowed, where the rule names one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            HostRule::Address(ip) => Some(SocketAddr::new(ip, self.port)),
            HostRule::Name(_) | HostRule::Below(_) => None,
        }
    }

    fn allows(&self, to: &Endpoint) -> bool {
        match (&self.host, to) {
            (HostRule::Address(ip), Endpoint::Address(addr)) => *addr == SocketAddr::new(*ip, self.port),
            (HostRule::Name(name), Endpoint::Named(host, port)) => name == host && *port == self.port,
            (HostRule::Below(name), Endpoint::Named(host, port)) => {
                *port == self.port
                    && host.as_str().strip_suffix(name.as_str()).is_some_and(|below| below.ends_with('.'))
            }
            _ => false,
        }
    }
}

/// A host and port of a URL; without a port, `default`.
fn endpoint(authority: &str, default: u16) -> Option<Endpoint> {
    let has_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && (!host.contains(':') || host.ends_with(']'))
    });
    let whole = if has_port { authority.to_owned() } else { format!("{authority}:{default}") };
    whole.parse().ok()
}

impl Endpoint {
    /// Where a request for an `http` URL of this authority (`host`, or `host:port`) goes.
    pub fn of_http(authority: &str) -> Option<Self> {
        endpoint(authority, EgressRule::HTTP)
    }
}

impl FromStr for EgressRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(120).collect();
            format!(
                "egress rule {shown:?} is not valid: expected \"http://HOST\", \"http://HOST:PORT\" or \"http://*.HOST\"{why}"
            )
        };
        if text.starts_with("https://") {
            return Err(wrong("; this version sends no requests over TLS"));
        }
        let authority = text.strip_prefix("http://").ok_or_else(|| wrong(""))?;
        let (below, authority) = match authority.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, authority),
        };
        match endpoint(authority, Self::HTTP).ok_or_else(|| wrong(""))? {
            Endpoint::Address(_) if below => Err(wrong("")),
            Endpoint::Address(addr) => Ok(Self { host: HostRule::Address(addr.ip()), port: addr.port() }),
            Endpoint::Named(host, port) if below => Ok(Self { host: HostRule::Below(host), port }),
            Endpoint::Named(host, port) => Ok(Self { host: HostRule::Name(host), port }),
        }
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://")?;
        match &self.host {
            HostRule::Address(ip) => return write!(f, "{}", SocketAddr::new(*ip, self.port)),
            HostRule::Name(host) => write!(f, "{host}")?,
            HostRule::Below(host) => write!(f, "*.{host}")?,
        }
        if self.port == Self::HTTP { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

crate::text::as_text!(EgressRule);

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Egress {
        Egress { allow: texts.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[test]
    fn a_rule_allows_its_host_and_port_and_nothing_else() {
        let egress =
            rules(&["http://auth.test:8080", "http://*.api.test", "http://10.0.0.1", "http://[fd00::1]:81"]);
        for allowed in [
            "auth.test:8080",
            "AUTH.test:8080",
            "a.api.test",
            "a.b.api.test:80",
            "10.0.0.1",
            "10.0.0.1:80",
            "[fd00::1]:81",
        ] {
            let endpoint = Endpoint::of_http(allowed).unwrap();
            assert!(egress.allows(&endpoint), "{allowed}");
            assert_eq!(egress.names(&endpoint), !allowed.contains("api"), "{allowed}");
        }
        for refused in [
            "auth.test",
            "x.auth.test:8080",
            "api.test",
            "xapi.test",
            "a.api.test:81",
            "10.0.0.2",
            "10.0.0.1:81",
            "[fd00::1]",
        ] {
            assert!(!egress.allows(&Endpoint::of_http(refused).unwrap()), "{refused}");
        }
        assert!(
            Egress::default().is_empty() && !Egress::default().allows(&Endpoint::of_http("a.test").unwrap())
        );
    }

    #[test]
    fn a_rule_is_written_as_it_was() {
        for text in
            ["http://auth.test:8080", "http://*.api.test", "http://10.0.0.1:80", "http://[fd00::1]:81"]
        {
            assert_eq!(text.parse::<EgressRule>().unwrap().to_string(), text);
        }
        assert_eq!(
            "http://10.0.0.1".parse::<EgressRule>().unwrap().address(),
            Some("10.0.0.1:80".parse().unwrap())
        );
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_would_be_one() {
        for text in [
            "auth.test",
            "ftp://a.test",
            "http://",
            "http://a.test/path",
            "http://*",
            "http://*.10.0.0.1",
            "http://u@a.test",
            "http://a.test:0",
        ] {
            let error = text.parse::<EgressRule>().unwrap_err();
            assert!(error.contains("expected \"http://HOST\""), "{error}");
        }
        assert!("https://a.test".parse::<EgressRule>().unwrap_err().contains("no requests over TLS"));
        assert!(Egress { allow: vec!["http://a.test".parse().unwrap(); 65] }.check().is_err());
    }
}
