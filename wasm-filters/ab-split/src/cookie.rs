//! The cookie that a client keeps (RFC 6265).

use beamline_sdk::CookieName;
use serde::Deserialize;

/// Its name and attributes.
#[derive(Deserialize)]
#[serde(from = "Written")]
pub(crate) struct Cookie {
    pub(crate) name: CookieName,
    /// Everything that follows the value.
    attributes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    name: CookieName,
    max_age_seconds: u32,
    secure: bool,
}

impl Default for Written {
    fn default() -> Self {
        let name = "ab".parse().expect("a token");
        Self { name, max_age_seconds: 30 * 24 * 60 * 60, secure: true }
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

impl Cookie {
    /// The `Set-Cookie` that gives it this value, which is a token.
    pub(crate) fn with(&self, value: &str) -> String {
        [&*self.name, "=", value, &self.attributes].concat()
    }
}
