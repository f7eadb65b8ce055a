//! What is answered, and who is excepted.

use beamline_sdk::{
    Status,
    field::{ChangeableField, FieldValue},
    path,
};
use serde::{Deserialize, Deserializer, de::Error};

/// The filter's configuration. Every field has a default: without any, everybody gets the default answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) enabled: bool,
    pub(crate) status: Status,
    pub(crate) retry_after_seconds: u32,
    pub(crate) content_type: FieldValue,
    pub(crate) body: String,
    pub(crate) except_prefixes: Vec<Prefix>,
    pub(crate) bypass: Option<Bypass>,
}

/// A header by which a caller gets through.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bypass {
    pub(crate) header: ChangeableField,
    pub(crate) value: FieldValue,
}

/// A path prefix of whole segments: `/health` holds `/health` and `/health/live`, not `/healthy`.
pub(crate) struct Prefix(String);

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            status: Status::try_from(503).expect("a status"),
            retry_after_seconds: 120,
            content_type: "text/plain; charset=utf-8".parse().expect("visible ASCII"),
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
            Err(D::Error::custom("expected a path that starts with /"))
        }
    }
}
