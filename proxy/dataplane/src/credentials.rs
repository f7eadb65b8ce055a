//! The credentials of queued requests: sealed before the queue has them, opened for a delivery.
//!
//! The queue sees sealed bytes, and the data folder holds nothing that opens them. They are bound to their tenant, upstream and
//! request, so that what was sealed for one record opens for no other.

use beamline_control::InjectedHeaders;
use beamline_queue::Attempt;
use beamline_seal::{Context, OpenError, Plain, SealKeys};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// What a client proves itself by. Never stored in the clear.
pub(crate) const CREDENTIALS: [HeaderName; 3] =
    [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
/// Those of them that are meant for the origin, by the number that they are sealed under.
const FOR_THE_ORIGIN: [HeaderName; 2] = [header::AUTHORIZATION, header::COOKIE];

const PURPOSE: &str = "queued-credentials";

/// Why a delivery waits, as receipts and lists show it: a secret that is set on its request is not to be had.
pub(crate) const SECRET_UNAVAILABLE: &str = "secret-unavailable";
/// Why a delivery waits: its credentials are sealed by a key that this node does not have.
const KEY_MISSING: &str = "seal-key-missing";
/// Why a delivery waits: its credentials do not open by the key that they name.
const KEY_MISMATCH: &str = "seal-key-mismatch";
/// Why a delivery waits: its credentials are sealed in a form that this version does not know.
const FORM_UNKNOWN: &str = "seal-form-unknown";

/// Whether a delivery that waits for this reason waits for a key or a secret, and not for its upstream.
pub(crate) fn is_their_reason(reason: &str) -> bool {
    [SECRET_UNAVAILABLE, KEY_MISSING, KEY_MISMATCH, FORM_UNKNOWN].contains(&reason)
}

/// Whether a client sent credentials that are not replaced on the way.
pub(crate) fn carried(headers: &HeaderMap, injected: &InjectedHeaders) -> bool {
    CREDENTIALS.iter().any(|name| headers.contains_key(name) && !injected.contains(name))
}

/// What of a request its sealed credentials are bound to.
#[derive(Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) upstream: &'a str,
    pub(crate) request_id: &'a str,
}

impl Bound<'_> {
    fn parts(&self) -> [&str; 3] {
        [self.tenant, self.upstream, self.request_id]
    }
}

/// The client's credentials, sealed; none where it sent none that go on to the origin.
pub(crate) fn seal(
    keys: &SealKeys,
    bound: Bound<'_>,
    headers: &HeaderMap,
    injected: &InjectedHeaders,
) -> Option<Vec<u8>> {
    let mut written = Vec::new();
    for (number, name) in (0_u8..).zip(&FOR_THE_ORIGIN).filter(|(_, name)| !injected.contains(name)) {
        for value in headers.get_all(name) {
            let len = u32::try_from(value.len()).expect("a head is far shorter than 4 GiB");
            written.push(number);
            written.extend_from_slice(&len.to_be_bytes());
            written.extend_from_slice(value.as_bytes());
        }
    }
    let plain = Plain::new(written);
    (!plain.reveal().is_empty())
        .then(|| keys.seal(Context { purpose: PURPOSE, of: &bound.parts() }, plain.reveal()))
}

/// Adds the credentials that were stored with a record to its request.
///
/// # Errors
/// Why they cannot be had now: the record waits.
pub(crate) fn restore(
    keys: Option<&SealKeys>,
    attempt: &Attempt,
    headers: &mut HeaderMap,
) -> Result<(), &'static str> {
    let Some(sealed) = &attempt.sealed else { return Ok(()) };
    let bound = Bound {
        tenant: attempt.tenant.as_str(),
        upstream: attempt.upstream.as_str(),
        request_id: &attempt.request_id,
    };
    let opened = keys.ok_or(KEY_MISSING)?.open(Context { purpose: PURPOSE, of: &bound.parts() }, sealed);
    let opened = opened.map_err(|error| match error {
        OpenError::UnknownKey { .. } => KEY_MISSING,
        OpenError::Mismatch { .. } => KEY_MISMATCH,
        OpenError::Form => FORM_UNKNOWN,
    })?;
    let mut rest = opened.reveal();
    while !rest.is_empty() {
        let (name, value, after) = field(rest).ok_or(FORM_UNKNOWN)?;
        headers.append(name, value);
        rest = after;
    }
    Ok(())
}

/// The first field, and what follows it.
fn field(written: &[u8]) -> Option<(HeaderName, HeaderValue, &[u8])> {
    let (number, rest) = written.split_first()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (value, after) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(true);
    Some((FOR_THE_ORIGIN.get(usize::from(*number))?.clone(), value, after))
}

#[cfg(test)]
mod tests {
    use beamline_model::RevisionId;
    use beamline_queue::{AttemptBody, RecordId, TraceRef};
    use beamline_seal::KeyLine;

    use super::*;

    fn keys(id: &str) -> SealKeys {
        SealKeys::parse(KeyLine::generate(&id.parse().unwrap()).reveal()).unwrap()
    }

    fn attempt(request_id: &str, sealed: Vec<u8>) -> Attempt {
        Attempt {
            id: RecordId::from_bytes([1; 16]),
            tenant: "acme".parse().unwrap(),
            upstream: "api".parse().unwrap(),
            revision: RevisionId(1),
            method: "POST".into(),
            target: "/".into(),
            host: "acme.test".into(),
            headers: Vec::new(),
            sealed: Some(sealed.into()),
            body: AttemptBody::Memory(bytes::Bytes::new()),
            number: 1,
            accepted_ms: 1,
            trace: TraceRef::default(),
            repeat_safe: false,
            request_id: request_id.into(),
        }
    }

    fn client() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append("authorization", HeaderValue::from_static("Bearer s3cret"));
        headers.append("cookie", HeaderValue::from_static("a=s3cret"));
        headers.append("cookie", HeaderValue::from_static("b=s3cret"));
        headers.append("accept", HeaderValue::from_static("*/*"));
        headers
    }

    const BOUND: Bound<'_> = Bound { tenant: "acme", upstream: "api", request_id: "r1" };

    #[test]
    fn what_was_sealed_is_there_again_for_its_own_record_alone() {
        let keys = keys("k");
        let sealed = seal(&keys, BOUND, &client(), &InjectedHeaders::default()).unwrap();
        assert!(!sealed.windows(6).any(|w| w == b"s3cret"));
        let mut headers = HeaderMap::new();
        restore(Some(&keys), &attempt("r1", sealed.clone()), &mut headers).unwrap();
        assert_eq!(headers["authorization"], "Bearer s3cret");
        let cookies: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=s3cret", "b=s3cret"]);
        assert_eq!(headers.len(), 3, "and nothing else");
        assert!(!format!("{headers:?}").contains("s3cret"), "{headers:?}");
        let other = restore(Some(&keys), &attempt("r2", sealed), &mut headers);
        assert_eq!(other, Err(KEY_MISMATCH));
    }

    #[test]
    fn without_its_key_a_record_waits() {
        let sealed = seal(&keys("old"), BOUND, &client(), &InjectedHeaders::default()).unwrap();
        let mut headers = HeaderMap::new();
        for (keys, reason) in
            [(None, KEY_MISSING), (Some(keys("new")), KEY_MISSING), (Some(keys("old")), KEY_MISMATCH)]
        {
            let refused = restore(keys.as_ref(), &attempt("r1", sealed.clone()), &mut headers).unwrap_err();
            assert_eq!(refused, reason);
            assert!(is_their_reason(refused));
        }
        assert!(headers.is_empty() && !is_their_reason("denied"));
    }

    #[test]
    fn a_request_without_credentials_has_nothing_to_seal() {
        let mut headers = client();
        assert!(carried(&headers, &InjectedHeaders::default()));
        for name in CREDENTIALS {
            headers.remove(name);
        }
        assert!(!carried(&headers, &InjectedHeaders::default()));
        assert_eq!(seal(&keys("k"), BOUND, &headers, &InjectedHeaders::default()), None);
    }
}
