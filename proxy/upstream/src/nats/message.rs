//! A request's head as a message's headers.

use beamline_model::{Digest, NatsKind};
use beamline_nats::HeaderBlock;
use http::{HeaderMap, HeaderName, header, request::Parts};

use crate::ClusterKey;

/// A request's extension: its `Idempotency-Key` is the proxy's own and differs from what was sent before it was queued.
/// A stream then knows repetitions by the request's id.
#[derive(Clone, Copy, Debug)]
pub struct OwnKey;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The headers of the message that `parts` and `payload` become: its fields, names in the case that NATS clients look
/// for, and what else a request has.
pub(super) fn headers(parts: &Parts, payload: &[u8], cluster: &ClusterKey, kind: NatsKind) -> HeaderBlock {
    let mut block = HeaderBlock::new();
    // A name and a value of HTTP are a name and a value of NATS: what `http` holds has no CR, LF, NUL or colon out of place.
    let mut push = |name: &str, value: &[u8]| {
        if let Err(error) = block.push(name, value) {
            tracing::debug!(name, %error, "a field was left out of a message");
        }
    };
    // First, before anything that a client wrote: no server takes another line for it.
    if kind == NatsKind::Jetstream
        && let Some(id) = message_id(parts, payload, cluster)
    {
        push("Nats-Msg-Id", &id);
    }
    push("Beamline-Method", parts.method.as_str().as_bytes());
    push("Beamline-Target", target(parts).as_bytes());
    for (name, value) in parts.headers.iter().filter(|(name, _)| passes(name)) {
        if *name == TRACEPARENT {
            push(name.as_str(), value.as_bytes());
        } else {
            push(&canonical(name.as_str()), value.as_bytes());
        }
    }
    block
}

/// Framing is HTTP's own, and what begins with `Nats-` speaks to the server.
fn passes(name: &HeaderName) -> bool {
    let framing = [header::CONTENT_LENGTH, header::TE, header::TRAILER, header::TRANSFER_ENCODING];
    !framing.contains(name)
        && !name.as_str().starts_with("nats-")
        && !["beamline-method", "beamline-target", "beamline-status"].contains(&name.as_str())
}

/// What a stream knows a repetition by: the client's key with a digest of what it is sent with, or else the request's
/// id, within its tenant and upstream.
fn message_id(parts: &Parts, payload: &[u8], cluster: &ClusterKey) -> Option<Vec<u8>> {
    let of = |headers: &HeaderMap, name: HeaderName| headers.get(name).filter(|v| !v.is_empty()).cloned();
    let own = parts.extensions.get::<OwnKey>().is_some();
    if let Some(key) = of(&parts.headers, IDEMPOTENCY_KEY).filter(|_| !own) {
        let digest = content(parts, payload).hex();
        return Some(
            [format!("{cluster}/key/").as_bytes(), key.as_bytes(), b"/", digest.as_bytes()].concat(),
        );
    }
    let id = of(&parts.headers, REQUEST_ID)?;
    Some([format!("{cluster}/request/").as_bytes(), id.as_bytes()].concat())
}

/// What tells requests of one key apart: a client may choose the key of another's, and a stream drops a repetition
/// unseen. Only of what a delivery from the queue has as it was: so of no credentials, which may be stripped.
fn content(parts: &Parts, payload: &[u8]) -> Digest {
    // As the queue stores them.
    let field = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let told = [parts.method.as_str(), field(header::HOST), target(parts), field(header::CONTENT_TYPE)];
    let mut content = Digest::of(payload).as_bytes().to_vec();
    for part in told {
        // Its length first: no two lists of parts are one text.
        content.extend_from_slice(&(part.len() as u64).to_be_bytes());
        content.extend_from_slice(part.as_bytes());
    }
    Digest::of(&content)
}

fn target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("/", |target| target.as_str())
}

/// `x-request-id` as `X-Request-Id`.
fn canonical(name: &str) -> String {
    let mut first = true;
    name.chars()
        .map(|c| {
            let shown = if first { c.to_ascii_uppercase() } else { c };
            first = c == '-';
            shown
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn block(fields: &[(&'static str, &'static str)], own: bool, kind: NatsKind) -> String {
        let mut request = Request::post("/in?a=b").body(()).unwrap();
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        if own {
            request.extensions_mut().insert(OwnKey);
        }
        let cluster = ClusterKey { tenant: "acme".parse().unwrap(), upstream: "orders".parse().unwrap() };
        let block = headers(&request.into_parts().0, b"an order", &cluster, kind);
        String::from_utf8(block.as_bytes().to_vec()).unwrap()
    }

    fn has(block: &str, line: &str) -> bool {
        block.lines().any(|l| l == line)
    }

    #[test]
    fn a_head_becomes_headers_without_framing_and_without_the_servers_own() {
        let fields = [
            ("host", "acme.test"),
            ("content-length", "5"),
            ("te", "trailers"),
            ("nats-msg-id", "forged"),
            ("nats-rollup", "all"),
            ("beamline-target", "/forged"),
            ("traceparent", "00-1"),
            ("x-account", "a"),
            ("x-account", "b"),
        ];
        let block = block(&fields, false, NatsKind::Request);
        for line in [
            "Beamline-Method: POST",
            "Beamline-Target: /in?a=b",
            "Host: acme.test",
            "traceparent: 00-1",
            "X-Account: a",
            "X-Account: b",
        ] {
            assert!(has(&block, line), "{line}");
        }
        for gone in ["forged", "Nats-", "Content-Length", "Te:"] {
            assert!(!block.contains(gone), "{gone}");
        }
    }

    #[test]
    fn a_stream_knows_a_repetition_by_the_clients_key_or_the_requests_id() {
        let fields = [("idempotency-key", "k1"), ("x-request-id", "r1")];
        let of = |fields, own| block(fields, own, NatsKind::Jetstream);
        let keyed = of(&fields, false);
        assert!(keyed.starts_with("NATS/1.0\r\nNats-Msg-Id: acme/orders/key/k1/"), "first: {keyed}");
        assert!(has(&of(&fields, true), "Nats-Msg-Id: acme/orders/request/r1"), "the key is ours");
        assert!(has(&of(&fields[1..], false), "Nats-Msg-Id: acme/orders/request/r1"));
        assert!(!of(&[], false).contains("Nats-Msg-Id"));
    }

    #[test]
    fn other_requests_of_one_key_have_other_ids_and_repetitions_the_same() {
        type Fields<'a> = &'a [(&'static str, &'static str)];
        let id = |method: &str, target: &str, fields: Fields<'_>, payload: &[u8]| {
            let request = Request::builder().method(method).uri(target).header("idempotency-key", "k1");
            let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let parts = request.body(()).unwrap().into_parts().0;
            let cluster = ClusterKey { tenant: "acme".parse().unwrap(), upstream: "orders".parse().unwrap() };
            message_id(&parts, payload, &cluster).unwrap()
        };
        let (host, json) = (("host", "acme.test"), ("content-type", "application/json"));
        let first = id("POST", "/in", &[host, json], b"1");
        for other in [
            id("PUT", "/in", &[host, json], b"1"),
            id("POST", "/in?a", &[host, json], b"1"),
            id("POST", "/in", &[("host", "b.test"), json], b"1"),
            id("POST", "/in", &[host], b"1"),
            id("POST", "/in", &[host, json], b"2"),
            id("POST", "/in", &[host, json], b""),
            // The same letters, cut elsewhere.
            id("POST", "/inapplication", &[host, ("content-type", "/json")], b"1"),
        ] {
            assert_ne!(other, first);
        }
        // What differs between a live attempt and its delivery.
        let fields: Fields<'_> = &[
            host,
            json,
            ("authorization", "Basic eDp5"),
            ("cookie", "a=b"),
            ("x-request-id", "r2"),
            ("traceparent", "00-1"),
            ("beamline-attempt", "1"),
        ];
        assert_eq!(id("POST", "/in", fields, b"1"), first);
    }
}
