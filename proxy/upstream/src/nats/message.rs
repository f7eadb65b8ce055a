//! A request's head as a message's headers.

use beamline_model::NatsKind;
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

/// The headers of the message that `parts` becomes: its fields, names in the case that NATS clients look for, and what
/// else a request has.
pub(super) fn headers(parts: &Parts, cluster: &ClusterKey, kind: NatsKind) -> HeaderBlock {
    let mut block = HeaderBlock::new();
    // A name and a value of HTTP are a name and a value of NATS: what `http` holds has no CR, LF, NUL or colon out of place.
    let mut push = |name: &str, value: &[u8]| {
        if let Err(error) = block.push(name, value) {
            tracing::debug!(name, %error, "a field was left out of a message");
        }
    };
    push("Beamline-Method", parts.method.as_str().as_bytes());
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    push("Beamline-Target", target.as_bytes());
    for (name, value) in parts.headers.iter().filter(|(name, _)| passes(name)) {
        if *name == TRACEPARENT {
            push(name.as_str(), value.as_bytes());
        } else {
            push(&canonical(name.as_str()), value.as_bytes());
        }
    }
    if kind == NatsKind::Jetstream
        && let Some(id) = message_id(parts, cluster)
    {
        push("Nats-Msg-Id", &id);
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

/// What a stream knows a repetition by: the client's key or else the request's id, within its tenant and upstream.
fn message_id(parts: &Parts, cluster: &ClusterKey) -> Option<Vec<u8>> {
    let of = |headers: &HeaderMap, name: HeaderName| headers.get(name).filter(|v| !v.is_empty()).cloned();
    let own = parts.extensions.get::<OwnKey>().is_some();
    let key = of(&parts.headers, IDEMPOTENCY_KEY).filter(|_| !own);
    let (kind, id) = match key {
        Some(key) => ("key", key),
        None => ("request", of(&parts.headers, REQUEST_ID)?),
    };
    Some([format!("{cluster}/{kind}/").as_bytes(), id.as_bytes()].concat())
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
        let block = headers(&request.into_parts().0, &cluster, kind);
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
        assert!(has(&of(&fields, false), "Nats-Msg-Id: acme/orders/key/k1"));
        assert!(has(&of(&fields, true), "Nats-Msg-Id: acme/orders/request/r1"), "the key is ours");
        assert!(has(&of(&fields[1..], false), "Nats-Msg-Id: acme/orders/request/r1"));
        assert!(!of(&[], false).contains("Nats-Msg-Id"));
    }
}
