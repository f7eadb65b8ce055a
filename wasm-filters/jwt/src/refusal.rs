//! Why a request does not pass, and what its client is told (RFC 6750, section 3).

use std::fmt;

use beamline_sdk::Verdict;

/// Why a request does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoToken,
    /// More than one token, or something else than a token.
    Malformed,
    Algorithm,
    /// An extension that must be understood, and is not (RFC 7515, section 4.1.11).
    Critical,
    Type,
    UnknownKey,
    Signature,
    Issuer,
    Audience,
    NoExpiry,
    Expired,
    NotYet,
    /// A claim that fits no field, or a field that belongs to the host.
    Field,
    /// No keys are to be had: not the client's fault.
    NoKeys,
}

impl Refusal {
    pub(crate) fn into_verdict(self) -> Verdict {
        let status = if self == Self::NoKeys { 503 } else { 401 };
        let answer = Verdict::refuse(status, &self.to_string());
        match self {
            Self::NoKeys => answer.header("retry-after", "2"),
            // Without a token there is no error to be told of; a parameter there must be.
            Self::NoToken => answer.header("www-authenticate", "Bearer realm=\"jwt\""),
            _ => answer.header(
                "www-authenticate",
                format!("Bearer error=\"invalid_token\", error_description=\"{self}\""),
            ),
        }
        .into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoToken => "expected a bearer token, found none",
            Self::Malformed => "expected one JSON Web Token, signed and in compact form",
            Self::Algorithm => "the token's algorithm is not accepted",
            Self::Critical => "the token has critical extensions, of which none is understood",
            Self::Type => "the token's type is not accepted",
            Self::UnknownKey => "the token's key is not known",
            Self::Signature => "the token's signature is not valid",
            Self::Issuer => "the token is another issuer's",
            Self::Audience => "the token is for another audience",
            Self::NoExpiry => "expected a token that expires",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::Field => "a claim of the token cannot be handed on",
            Self::NoKeys => "there are no keys to check tokens with at the moment",
        })
    }
}
