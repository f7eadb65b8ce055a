//! Countries, as CDNs name them.

use serde::{Deserialize, Deserializer, de::Error};

/// Two letters of ISO 3166-1, or what CDNs put in their place: `XX` for unknown, `T1` for Tor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Country([u8; 2]);

impl Country {
    /// Reads a country, in any case.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let code = <[u8; 2]>::try_from(bytes).ok()?;
        code.iter().all(u8::is_ascii_alphanumeric).then(|| Self(code.map(|byte| byte.to_ascii_uppercase())))
    }
}

impl<'de> Deserialize<'de> for Country {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_bytes(text.as_bytes())
            .ok_or_else(|| D::Error::custom("expected two letters or digits, such as DE or T1"))
    }
}
