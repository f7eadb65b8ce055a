//! A token, as it comes with a request: parsed, and not yet believed.

use base64ct::{Base64UrlUnpadded, Encoding};
use beamline_sdk::{HeaderValue, Request};
use serde::{Deserialize, de::IgnoredAny};

use crate::{jwk::Algorithm, refusal::Refusal};

/// A JSON Web Signature in compact form (RFC 7515, section 7.1).
pub(crate) struct Token<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) key_id: Option<String>,
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
    crit: Option<IgnoredAny>,
}

/// The most bytes of a token.
const MAX: usize = 8 << 10;

/// The request's token: what follows `Bearer` in `Authorization`, else the cookie of this name.
pub(crate) fn find(request: &Request, cookie: Option<&str>) -> Result<Option<String>, Refusal> {
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).ok_or(Refusal::Malformed);
    match &*request.header_all("authorization") {
        [] => cookie.and_then(|name| request.cookie(name)).as_ref().map(text).transpose(),
        [value] => {
            let value = text(value)?;
            let (scheme, token) = value.split_once(' ').unwrap_or((&value, ""));
            // Another scheme's credentials are no bearer token.
            Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' ').to_owned()))
        }
        // Which of two tokens a request is sent by, two readers might not agree on.
        _ => Err(Refusal::Malformed),
    }
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
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        Ok(Self {
            algorithm: Algorithm::named(&header.alg).ok_or(Refusal::Algorithm)?,
            key_id: header.kid,
            signed,
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }
}
