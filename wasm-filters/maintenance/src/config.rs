//! What is answered, and who is excepted.

use beamline_sdk::path;
use serde::{Deserialize, Deserializer, de::Error};

/// The filter's configuration. Every field has a default: without any, everybody gets the default answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) enabled: bool,
    #[serde(deserialize_with = "status")]
    pub(crate) status: u16,
    pub(crate) retry_after_seconds: u32,
    pub(crate) content_type: String,
    pub(crate) body: String,
    pub(crate) except_prefixes: Vec<Prefix>,
    pub(crate) bypass: Option<Bypass>,
}

/// A header by which a caller gets through.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bypass {
    pub(crate) header: String,
    pub(crate) value: String,
}

/// A path prefix of whole segments: `/health` holds `/health` and `/health/live`, not `/healthy`.
pub(crate) struct Prefix(String);

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            status: 503,
            retry_after_seconds: 120,
            content_type: "text/plain; charset=utf-8".into(),
            body: "Down for maintenance. Please try again later.\n".into(),
            except_prefixes: Vec::new(),
            bypass: None,
        }
    }
}

impl Prefix {
    /// Whether a path lies at or below this prefix.
    pub(crate) fn holds(&self, path: &str) -> bool {
        path::is_below(path, &self.0)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let prefix = String::deserialize(deserializer)?;
        if prefix.starts_with('/') {
            Ok(Self(prefix))
        } else {
            Err(D::Error::custom("except_prefixes: expected paths that start with /"))
        }
    }
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    match u16::deserialize(deserializer)? {
        status @ 200..=599 => Ok(status),
        _ => Err(D::Error::custom("status: expected 200 to 599")),
    }
}
