//! A token, as it comes with a request: parsed, and not yet believed.

use base64ct::{Base64UrlUnpadded, Encoding};
use beamline_sdk::{CookieName, Request};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::{jwk::Algorithm, refusal::Refusal};

/// A JSON Web Signature in compact form (RFC 7515, section 7.1).
pub(crate) struct Token<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) key_id: Option<String>,
    /// What the token says that it is (`typ`), as [`kind`] writes it.
    pub(crate) kind: Option<String>,
    /// What was signed: header and payload as they were sent.
    pub(crate) signed: &'a str,
    pub(crate) payload: Vec<u8>,
    pub(crate) signature: Vec<u8>,
}

/// What is read of a header. A key that stands in it, or a link to one, counts for nothing: whoever forges a token can put it
/// there.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(default, rename = "crit", deserialize_with = "is_there")]
    has_crit: bool,
}

/// Whatever it is, `null` among it.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// The most bytes of a token.
const MAX: usize = 8 << 10;

/// The request's token: what follows `Bearer` in `Authorization`, or the cookie of this name.
///
/// Which of two tokens a request is sent by, two readers might not agree on, and one of them would not be verified: several
/// count only where they are the same.
pub(crate) fn find(request: &Request, cookie: Option<&CookieName>) -> Result<Option<String>, Refusal> {
    let bearer = match &*request.header_all("authorization") {
        [] => None,
        [value] => bearer(value.to_str().ok_or(Refusal::Malformed)?),
        _ => return Err(Refusal::Malformed),
    };
    let cookies = cookie.map_or(Ok(Vec::new()), |name| {
        let cookies = request.cookies();
        let values = cookies.get_all(name).map(|value| value.to_str().map(str::to_owned));
        values.collect::<Option<_>>().ok_or(Refusal::Malformed)
    })?;
    let mut found = bearer.into_iter().chain(cookies);
    let first = found.next();
    if found.any(|other| Some(other) != first) { Err(Refusal::Malformed) } else { Ok(first) }
}

/// The token in an `Authorization`, whatever space stands before it. Another scheme's credentials are no bearer token.
fn bearer(value: &str) -> Option<String> {
    let value = value.trim();
    let (scheme, token) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// A type of tokens in the one form in which they are compared: a media type without `application/` (RFC 7515, section 4.1.9),
/// in lower case.
pub(crate) fn kind(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    text.strip_prefix("application/").map_or(text.clone(), str::to_owned)
}

impl<'a> Token<'a> {
    /// Reads a token.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > MAX {
            return Err(Refusal::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        // Without padding, without other characters, in the one form that each octet string has. A payload with a point in it
        // is refused here, too.
        let decode = |text| Base64UrlUnpadded::decode_vec(text).map_err(|_| Refusal::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Refusal::Malformed)?;
        if header.has_crit {
            return Err(Refusal::Critical);
        }
        Ok(Self {
            algorithm: Algorithm::named(&header.alg).ok_or(Refusal::Algorithm)?,
            key_id: header.kid,
            kind: header.typ.as_deref().map(kind),
            signed,
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }
}
