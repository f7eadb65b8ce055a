//! What a gateway removes from and adds to a head on its way through (RFC 9110, section 7.6).

use std::{fmt::Write as _, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

use crate::PSEUDONYM;

/// What the proxy knows of the exchange that a forwarded request should say.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// `http` or `https`, as the client spoke it.
    pub scheme: &'static str,
    /// Host and port as the client named them.
    pub host: &'a HeaderValue,
    /// The version that the request came in.
    pub version: Version,
}

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// CGI programs take it for the variable HTTP_PROXY.
const PROXY: HeaderName = HeaderName::from_static("proxy");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What one pass over the names found: one bit for each field that must go.
/// (A removal for each name, found or not, cost 8% of the proxy's own time.)
fn found(headers: &HeaderMap) -> u16 {
    headers.keys().fold(0, |found, name| {
        found
            | match name.as_str() {
                "connection" => 1,
                "keep-alive" => 1 << 1,
                "proxy-connection" => 1 << 2,
                "te" => 1 << 3,
                "transfer-encoding" => 1 << 4,
                "upgrade" => 1 << 5,
                "proxy-authorization" => 1 << 6,
                "proxy" => 1 << 7,
                "forwarded" => 1 << 8,
                "expect" => 1 << 9,
                _ => 0,
            }
    })
}

const REMOVED: [HeaderName; 10] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    PROXY,
    header::FORWARDED,
    header::EXPECT,
];
/// Of the bits above, those that a response loses too.
const IN_RESPONSES: u16 = 0b0011_1111;

/// Removes what `Connection` names (RFC 9110, section 7.6.1), except fields whose loss would change what the
/// message means or who sends it: a client could otherwise strip them on their way to the origin.
fn remove_named(headers: &mut HeaderMap) {
    const KEPT: [&str; 6] = ["host", "content-length", "cookie", "authorization", "via", "x-forwarded-for"];
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|option| HeaderName::from_bytes(option.trim().as_bytes()).ok())
        .filter(|name| !KEPT.contains(&name.as_str()) && !REMOVED.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Carries out what a client's `Connection` says of the request's other fields, and removes it.
///
/// For before filters see the head: a client that names a field there takes away its own, not one that a filter sets. What is
/// hop by hop of itself stays until the head leaves ([`request_for_upstream`]).
pub fn without_connection_options(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        remove_named(headers);
        headers.remove(header::CONNECTION);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap, which: u16) {
    let found = found(headers) & which;
    if found == 0 {
        return;
    }
    // Trailers are asked for and announced end to end here, so that they pass (RFC 9110, section 6.5.1).
    let wants_trailers = found & (1 << 3) != 0
        && headers.get_all(header::TE).iter().any(|v| {
            v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
        });
    if found & 1 != 0 {
        remove_named(headers);
    }
    for (bit, name) in REMOVED.iter().enumerate().filter(|(bit, _)| found & (1 << bit) != 0) {
        debug_assert!(bit < 16);
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

fn add_via(headers: &mut HeaderMap, version: Version) {
    let ours = match version {
        Version::HTTP_10 => HeaderValue::from_static("1.0 beamline"),
        Version::HTTP_2 => HeaderValue::from_static("2 beamline"),
        _ => HeaderValue::from_static("1.1 beamline"),
    };
    headers.append(header::VIA, ours);
}

/// Makes a client's request head one for an upstream: hop-by-hop fields out, `Via` and `X-Forwarded-*` in.
///
/// What the client sent as `Forwarded` and `X-Forwarded-*` is dropped: nobody vouched for it.
/// `Expect` goes too: the proxy itself answers `100 Continue`.
pub fn request_for_upstream(headers: &mut HeaderMap, forwarding: &Forwarding<'_>) {
    // What is added here and by the caller, so that the map grows once.
    headers.reserve(8);
    remove_hop_by_hop(headers, u16::MAX);
    let mut client = String::with_capacity(45);
    let _ = write!(client, "{}", forwarding.client.to_canonical());
    if let Ok(client) = HeaderValue::try_from(client) {
        headers.insert(FORWARDED_FOR, client);
    }
    headers.insert(FORWARDED_HOST, forwarding.host.clone());
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(forwarding.scheme));
    add_via(headers, forwarding.version);
}

/// Makes an upstream's response head one for the client: hop-by-hop fields out, `Via` in.
pub fn response_for_client(headers: &mut HeaderMap, version: Version) {
    remove_hop_by_hop(headers, IN_RESPONSES);
    add_via(headers, version);
}

/// Gives a request that is made on behalf of another what that has of `Via`, and this proxy's own member: a loop of such
/// requests is then one that [`is_loop`] sees.
pub fn hand_on_via(from: &HeaderMap, to: &mut HeaderMap) {
    for via in from.get_all(header::VIA) {
        to.append(header::VIA, via.clone());
    }
    add_via(to, Version::HTTP_11);
}

/// Whether the request has been here before more often than any sane chain would have it.
///
/// `Via` members with this proxy's name are counted; a chain of several BeamLine nodes is fine.
pub fn is_loop(headers: &HeaderMap) -> bool {
    const MOST: usize = 8;
    headers.get(header::VIA).is_some()
        && headers
            .get_all(header::VIA)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter(|member| member.split_ascii_whitespace().nth(1) == Some(PSEUDONYM))
            .count()
            >= MOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_is_gone_before_filters_set_fields_of_that_name() {
        let mut headers = request(&[
            ("connection", "x-user, TE, cookie"),
            ("x-user", "forged"),
            ("te", "trailers"),
            ("cookie", "a=b"),
        ]);
        without_connection_options(&mut headers);
        assert_eq!(headers, request(&[("te", "trailers"), ("cookie", "a=b")]));
        headers.insert("x-user", HeaderValue::from_static("alice"));
        let host = HeaderValue::from_static("acme.test");
        let client = "192.0.2.7".parse().unwrap();
        let forwarding = Forwarding { client, scheme: "http", host: &host, version: Version::HTTP_11 };
        request_for_upstream(&mut headers, &forwarding);
        assert_eq!(headers["x-user"], "alice");
        assert_eq!(headers[header::TE], "trailers");
    }

    fn request(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn forwarded(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let host = HeaderValue::from_static("acme.test:8080");
        let forwarding = Forwarding {
            client: "192.0.2.7".parse().unwrap(),
            scheme: "http",
            host: &host,
            version: Version::HTTP_11,
        };
        request_for_upstream(&mut headers, &forwarding);
        headers
    }

    #[test]
    fn hop_by_hop_fields_and_what_connection_names_do_not_pass() {
        let headers = forwarded(&[
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("proxy", "http://evil.test"),
            ("expect", "100-continue"),
            ("x-kept", "1"),
        ]);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-kept"]);
    }

    #[test]
    fn connection_cannot_strip_what_the_origin_relies_on() {
        let headers = forwarded(&[
            ("connection", "cookie, x-forwarded-for, host"),
            ("cookie", "a=b"),
            ("host", "acme.test"),
        ]);
        assert_eq!(headers["cookie"], "a=b");
        assert_eq!(headers["host"], "acme.test");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
    }

    #[test]
    fn nothing_the_client_claims_of_itself_passes() {
        let headers = forwarded(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.1"),
        ]);
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "acme.test:8080");
        assert!(!headers.contains_key("forwarded"));
    }

    #[test]
    fn te_trailers_and_an_earlier_via_pass() {
        let headers = forwarded(&[("te", "gzip, trailers"), ("trailer", "x-sum"), ("via", "1.1 front")]);
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["trailer"], "x-sum");
        let via: Vec<_> = headers.get_all("via").iter().collect();
        assert_eq!(via, ["1.1 front", "1.1 beamline"]);
    }

    #[test]
    fn responses_lose_their_hop_by_hop_fields_too() {
        let mut headers =
            request(&[("connection", "close"), ("transfer-encoding", "chunked"), ("set-cookie", "a=b")]);
        response_for_client(&mut headers, Version::HTTP_11);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["via"], "1.1 beamline");
    }

    #[test]
    fn requests_on_behalf_of_requests_end_as_a_loop() {
        let mut headers = HeaderMap::new();
        headers.insert(header::VIA, HeaderValue::from_static("1.1 front"));
        let mut rounds = 0;
        while !is_loop(&headers) {
            let mut next = HeaderMap::new();
            hand_on_via(&headers, &mut next);
            (headers, rounds) = (next, rounds + 1);
        }
        assert_eq!((rounds, &headers[header::VIA]), (8, &HeaderValue::from_static("1.1 front")));
    }

    #[test]
    fn a_loop_ends_after_eight_rounds() {
        let mut headers = HeaderMap::new();
        for _ in 0..7 {
            headers.append(header::VIA, HeaderValue::from_static("1.1 beamline"));
        }
        assert!(!is_loop(&headers));
        headers.append(header::VIA, HeaderValue::from_static("1.1 other, 1.1 beamline"));
        assert!(is_loop(&headers));
    }
}
