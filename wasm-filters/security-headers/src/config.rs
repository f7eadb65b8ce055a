//! Which fields are set, and to what.

use beamline_sdk::field::{ChangeableField, FieldValue};
use serde::Deserialize;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Config {
    /// Names and values, in the order in which they are set.
    pub(crate) fields: Vec<(&'static str, FieldValue)>,
    pub(crate) remove: Vec<ChangeableField>,
    /// Whether they take the place of what the upstream says.
    pub(crate) overwrite: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    hsts: Option<Hsts>,
    content_security_policy: Option<FieldValue>,
    content_security_policy_report_only: Option<FieldValue>,
    content_type_options: bool,
    referrer_policy: Text,
    frame_options: Text,
    permissions_policy: Option<FieldValue>,
    cross_origin_opener_policy: Text,
    cross_origin_embedder_policy: Option<FieldValue>,
    cross_origin_resource_policy: Option<FieldValue>,
    remove: Vec<ChangeableField>,
    overwrite: bool,
}

/// A text that stands by default, or `false` for none.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected the value of a header field (visible ASCII on one line), or false for none"
)]
enum Text {
    Set(FieldValue),
    Unset(False),
}

/// `false`.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
struct False;

/// Strict-Transport-Security (RFC 6797).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hsts {
    max_age_seconds: u32,
    #[serde(default)]
    include_subdomains: bool,
    #[serde(default)]
    preload: bool,
}

/// What the preload list asks for: a year.
const PRELOAD_MIN: u32 = 31_536_000;

impl Default for Written {
    fn default() -> Self {
        Self {
            hsts: None,
            content_security_policy: None,
            content_security_policy_report_only: None,
            content_type_options: true,
            referrer_policy: Text::Set(value("strict-origin-when-cross-origin")),
            frame_options: Text::Set(value("DENY")),
            permissions_policy: None,
            cross_origin_opener_policy: Text::Set(value("same-origin")),
            cross_origin_embedder_policy: None,
            cross_origin_resource_policy: None,
            remove: ["server", "x-powered-by"].map(|name| name.parse().expect("a field")).into(),
            overwrite: true,
        }
    }
}

/// A value of ours.
fn value(text: &str) -> FieldValue {
    text.parse().expect("visible ASCII")
}

impl Text {
    fn into_option(self) -> Option<FieldValue> {
        match self {
            Self::Set(text) => Some(text),
            Self::Unset(False) => None,
        }
    }
}

impl TryFrom<bool> for False {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Err("expected false") } else { Ok(Self) }
    }
}

impl Hsts {
    fn value(&self) -> Result<FieldValue, &'static str> {
        if self.preload && !(self.include_subdomains && self.max_age_seconds >= PRELOAD_MIN) {
            return Err(
                "hsts: expected include_subdomains and max_age_seconds of at least 31536000 (a year) with preload",
            );
        }
        let subdomains = if self.include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if self.preload { "; preload" } else { "" };
        Ok(value(&["max-age=", &self.max_age_seconds.to_string(), subdomains, preload].concat()))
    }
}

impl TryFrom<Written> for Config {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let hsts = written.hsts.map(|hsts| hsts.value()).transpose()?;
        let fields = [
            ("strict-transport-security", hsts),
            ("content-security-policy", written.content_security_policy),
            ("content-security-policy-report-only", written.content_security_policy_report_only),
            ("x-content-type-options", written.content_type_options.then(|| value("nosniff"))),
            ("referrer-policy", written.referrer_policy.into_option()),
            ("x-frame-options", written.frame_options.into_option()),
            ("permissions-policy", written.permissions_policy),
            ("cross-origin-opener-policy", written.cross_origin_opener_policy.into_option()),
            ("cross-origin-embedder-policy", written.cross_origin_embedder_policy),
            ("cross-origin-resource-policy", written.cross_origin_resource_policy),
        ];
        let fields: Vec<_> = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Ok(Self { fields, remove: written.remove, overwrite: written.overwrite })
    }
}
