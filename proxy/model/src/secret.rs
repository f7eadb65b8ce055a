//! Secrets: values that a tenant sets, that are never shown again, and that its manifest names by `secret://name`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::SecretName;

/// How a manifest names a secret: `secret://origin-token`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretRef(SecretName);

impl SecretRef {
    const SCHEME: &str = "secret://";
    const EXPECTED: &str = "expected \"secret://NAME\"; found something else: set the value with `beamline secret set`, and name \
                            it here";

    /// The secret that is meant.
    pub const fn name(&self) -> &SecretName {
        &self.0
    }
}

impl FromStr for SecretRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What was found is not repeated: it may be the secret itself.
        let name = text.strip_prefix(Self::SCHEME).ok_or(Self::EXPECTED)?;
        name.parse().map(Self).map_err(|error: crate::InvalidName| error.to_string())
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::SCHEME, self.0)
    }
}

crate::text::as_text!(SecretRef);

/// A secret's value: 1 to 8192 bytes that a header field can carry. Wiped from memory when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

/// Why bytes are no secret's value. Never repeats them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidSecret {
    /// There are none, or too many.
    #[error("expected a value of 1 to {max} bytes; found {0}", max = SecretValue::MAX)]
    Length(usize),
    /// A byte that no header field carries.
    #[error(
        "expected a value that a header field can carry; found a control character at byte {0}: a line end at its end has to \
         be cut off"
    )]
    Control(usize),
    /// Space that a header field loses.
    #[error("expected a value without space or tabs around it, which a header field would lose")]
    Space,
}

impl SecretValue {
    /// The most bytes that a value can have.
    pub const MAX: usize = 8192;

    /// A value as somebody set it.
    ///
    /// # Errors
    /// [`InvalidSecret`].
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidSecret> {
        if bytes.is_empty() || bytes.len() > Self::MAX {
            return Err(InvalidSecret::Length(bytes.len()));
        }
        if let Some(at) = bytes.iter().position(|b| *b != b'\t' && b.is_ascii_control()) {
            return Err(InvalidSecret::Control(at));
        }
        if bytes.trim_ascii().len() < bytes.len() {
            return Err(InvalidSecret::Space);
        }
        Ok(Self(Zeroizing::new(bytes.to_vec())))
    }

    /// The value in the clear.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// A field that a manifest may set on requests to an upstream: in lower case, and none by which messages are framed or
/// routed, or that the proxy sets itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InjectedHeader(String);

impl InjectedHeader {
    /// Hop by hop (RFC 9110, section 7.6.1), framing, or the proxy's own.
    const NEVER: [&str; 19] = [
        "baggage",
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "idempotency-key",
        "keep-alive",
        "prefer",
        "proxy",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    ];
    const NEVER_BEGINNING: [&str; 3] = ["beamline-", "x-forwarded-", "x-request-id"];
    const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InjectedHeader {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let is_token =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
        let shown: String = name.chars().take(80).collect();
        if name.is_empty() || name.len() > Self::MAX || !name.bytes().all(is_token) {
            return Err(format!(
                "expected the name of a header field in lower case, such as \"authorization\"; found {shown:?}"
            ));
        }
        if Self::NEVER.contains(&name) || Self::NEVER_BEGINNING.iter().any(|begin| name.starts_with(begin)) {
            return Err(format!("{shown} is the proxy's own to set or to remove: choose another field"));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for InjectedHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for InjectedHeader {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InjectedHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_names_a_secret_and_anything_else_is_not_repeated() {
        let reference: SecretRef = "secret://origin-token".parse().unwrap();
        assert_eq!(
            (reference.name().as_str(), &*reference.to_string()),
            ("origin-token", "secret://origin-token")
        );
        let error = "Bearer s3cret".parse::<SecretRef>().unwrap_err();
        assert!(error.contains("expected \"secret://NAME\"") && !error.contains("s3cret"), "{error}");
        assert!("secret://Origin Token".parse::<SecretRef>().is_err());
    }

    #[test]
    fn a_value_is_what_a_header_field_can_carry_and_is_never_printed() {
        let value = SecretValue::new(b"Bearer s3\tcret\xff").unwrap();
        assert_eq!(value.reveal(), b"Bearer s3\tcret\xff");
        assert_eq!(format!("{value:?}"), "SecretValue(…)");
        assert_eq!(SecretValue::new(b""), Err(InvalidSecret::Length(0)));
        assert_eq!(SecretValue::new(&[b'x'; 8193]), Err(InvalidSecret::Length(8193)));
        assert_eq!(SecretValue::new(b"s3cret\n"), Err(InvalidSecret::Control(6)));
        assert_eq!(SecretValue::new(b"a\r\nhost: b"), Err(InvalidSecret::Control(1)));
        assert_eq!(SecretValue::new(b" s3cret"), Err(InvalidSecret::Space));
        assert_eq!(SecretValue::new(b"s3cret\t"), Err(InvalidSecret::Space));
    }

    #[test]
    fn a_field_that_frames_routes_or_is_the_proxys_cannot_be_set() {
        for good in ["authorization", "cookie", "x-api-key", "x-request-key"] {
            assert_eq!(good.parse::<InjectedHeader>().unwrap().as_str(), good);
        }
        for bad in
            InjectedHeader::NEVER.into_iter().chain(["beamline-attempt", "x-forwarded-for", "x-request-id"])
        {
            let error = bad.parse::<InjectedHeader>().unwrap_err();
            assert!(error.contains("the proxy's own"), "{error}");
        }
        for bad in ["", "Authorization", "a b", "a:b", "a\r\n", "é", &"a".repeat(65)] {
            let error = bad.parse::<InjectedHeader>().unwrap_err();
            assert!(error.contains("in lower case"), "{error}");
        }
    }
}
