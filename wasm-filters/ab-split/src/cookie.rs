//! The cookie that a client keeps (RFC 6265).

use serde::{Deserialize, Deserializer, de::Error};

/// Its name and attributes.
pub(crate) struct Cookie {
    pub(crate) name: String,
    /// Everything that follows the value.
    attributes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    name: String,
    max_age_seconds: u32,
    secure: bool,
}

impl Default for Written {
    fn default() -> Self {
        Self { name: "ab".into(), max_age_seconds: 30 * 24 * 60 * 60, secure: true }
    }
}

impl Default for Cookie {
    fn default() -> Self {
        Self::from(Written::default())
    }
}

impl From<Written> for Cookie {
    fn from(written: Written) -> Self {
        let max_age = written.max_age_seconds.to_string();
        let secure = if written.secure { "; Secure" } else { "" };
        let attributes = ["; Path=/; Max-Age=", &max_age, "; HttpOnly; SameSite=Lax", secure].concat();
        Self { name: written.name, attributes }
    }
}

impl<'de> Deserialize<'de> for Cookie {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        if is_token(&written.name) {
            Ok(written.into())
        } else {
            Err(D::Error::custom("cookie: expected a name of letters, digits and !#$%&'*+-.^_`|~"))
        }
    }
}

impl Cookie {
    /// The `Set-Cookie` that gives it this value, which is a token.
    pub(crate) fn with(&self, value: &str) -> String {
        [&self.name, "=", value, &self.attributes].concat()
    }
}

/// Whether a text is a token (RFC 9110, section 5.6.2), which is what a cookie's name must be, and what its value may be
/// without a quote.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Whether a `Vary` says `cookie` already, or everything.
pub(crate) fn is_listed(vary: &[u8]) -> bool {
    vary.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"cookie"))
}
