//! Which host a request is for, and the requests that nobody should forward.

use http::{HeaderValue, Method, Uri, header, request::Parts};
use thiserror::Error;

/// A request that is refused before anything of a tenant sees it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadRequest {
    /// RFC 9112, section 3.2.
    #[error("expected exactly one Host field; found {0}")]
    HostCount(usize),
    /// The host is not a name or an address with an optional port.
    #[error("the Host is not a host with an optional port")]
    HostForm,
    /// RFC 9112, section 3.2.2.
    #[error("the absolute-form target and the Host field name different hosts")]
    HostMismatch,
    /// CONNECT and `OPTIONS *` have no origin here.
    #[error("expected a target that starts with \"/\"")]
    Target,
}

/// Host and port that a client named, borrowed from its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The host as it was sent, without port. Compare it without regard to case.
    pub host: &'a str,
    /// Host and port as they were sent.
    pub whole: &'a str,
}

fn split(whole: &str) -> Result<Authority<'_>, BadRequest> {
    let (host, port) = if let Some(rest) = whole.strip_prefix('[') {
        let (inner, tail) = rest.split_once(']').ok_or(BadRequest::HostForm)?;
        inner.parse::<std::net::Ipv6Addr>().map_err(|_| BadRequest::HostForm)?;
        (inner, tail)
    } else {
        match whole.find(':') {
            Some(at) => whole.split_at(at),
            None => (whole, ""),
        }
    };
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|p| p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()));
    let host_ok = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    if host_ok && port_ok {
        Ok(Authority { host: host.strip_suffix('.').unwrap_or(host), whole })
    } else {
        Err(BadRequest::HostForm)
    }
}

/// The authority of a request: its one `Host` field, which an absolute-form target must agree with.
pub fn authority_of(parts: &Parts) -> Result<Authority<'_>, BadRequest> {
    let target_ok = parts.uri.path().starts_with('/') && parts.method != Method::CONNECT;
    if !target_ok {
        return Err(BadRequest::Target);
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let field: Option<&HeaderValue> = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::HostCount(parts.headers.get_all(header::HOST).iter().count()));
    }
    let field = field.ok_or(BadRequest::HostCount(0))?.to_str().map_err(|_| BadRequest::HostForm)?;
    let authority = split(field)?;
    if let Some(target) = Uri::authority(&parts.uri)
        && !target.as_str().eq_ignore_ascii_case(authority.whole)
    {
        return Err(BadRequest::HostMismatch);
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(target: &str, hosts: &[&str]) -> Result<String, BadRequest> {
        let mut builder = Request::builder().uri(target);
        for host in hosts {
            builder = builder.header("host", *host);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        authority_of(&parts).map(|a| a.host.to_owned())
    }

    #[test]
    fn one_host_names_the_tenant() {
        for (target, host, found) in [
            ("/", "acme.test", "acme.test"),
            ("/", "acme.test:8080", "acme.test"),
            ("/", "acme.test.", "acme.test"),
            ("/", "[::1]:80", "::1"),
            ("http://acme.test/x", "acme.test", "acme.test"),
        ] {
            assert_eq!(asked(target, &[host]).as_deref(), Ok(found));
        }
    }

    #[test]
    fn ambiguous_hosts_are_refused() {
        assert_eq!(asked("/", &[]), Err(BadRequest::HostCount(0)));
        assert_eq!(asked("/", &["a", "b"]), Err(BadRequest::HostCount(2)));
        assert_eq!(asked("http://a.test/", &["b.test"]), Err(BadRequest::HostMismatch));
        for bad in ["", "a b", "a:b", "a:123456", "user@a", "a/b", "[::1", "a,b"] {
            assert_eq!(asked("/", &[bad]), Err(BadRequest::HostForm), "{bad}");
        }
    }
}
