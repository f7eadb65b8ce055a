//! Which fields are set, and to what.

use serde::Deserialize;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Config {
    /// Names and values, in the order in which they are set.
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) remove: Vec<String>,
    /// Whether they take the place of what the upstream says.
    pub(crate) overwrite: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    hsts: Option<Hsts>,
    content_security_policy: Option<String>,
    content_security_policy_report_only: Option<String>,
    content_type_options: bool,
    referrer_policy: Text,
    frame_options: Text,
    permissions_policy: Option<String>,
    cross_origin_opener_policy: Text,
    cross_origin_embedder_policy: Option<String>,
    cross_origin_resource_policy: Option<String>,
    remove: Vec<String>,
    overwrite: bool,
}

/// A text that stands by default, or `false` for none.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, or false for none")]
enum Text {
    Set(String),
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
            referrer_policy: Text::Set("strict-origin-when-cross-origin".into()),
            frame_options: Text::Set("DENY".into()),
            permissions_policy: None,
            cross_origin_opener_policy: Text::Set("same-origin".into()),
            cross_origin_embedder_policy: None,
            cross_origin_resource_policy: None,
            remove: ["server", "x-powered-by"].map(str::to_owned).to_vec(),
            overwrite: true,
        }
    }
}

impl Text {
    fn into_option(self) -> Option<String> {
        match self {
            Self::Set(text) => Some(text),
            Self::Unset(False) => None,
        }
    }
}

impl TryFrom<bool> for False {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Err("expected a text, or false for none") } else { Ok(Self) }
    }
}

impl Hsts {
    fn value(&self) -> Result<String, &'static str> {
        if self.preload && !(self.include_subdomains && self.max_age_seconds >= PRELOAD_MIN) {
            return Err(
                "hsts: expected include_subdomains and max_age_seconds of at least 31536000 (a year) with preload",
            );
        }
        let subdomains = if self.include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if self.preload { "; preload" } else { "" };
        Ok(["max-age=", &self.max_age_seconds.to_string(), subdomains, preload].concat())
    }
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let hsts = written.hsts.map(|hsts| hsts.value()).transpose()?;
        let fields = [
            ("strict-transport-security", hsts),
            ("content-security-policy", written.content_security_policy),
            ("content-security-policy-report-only", written.content_security_policy_report_only),
            ("x-content-type-options", written.content_type_options.then(|| "nosniff".to_owned())),
            ("referrer-policy", written.referrer_policy.into_option()),
            ("x-frame-options", written.frame_options.into_option()),
            ("permissions-policy", written.permissions_policy),
            ("cross-origin-opener-policy", written.cross_origin_opener_policy.into_option()),
            ("cross-origin-embedder-policy", written.cross_origin_embedder_policy),
            ("cross-origin-resource-policy", written.cross_origin_resource_policy),
        ];
        let fields: Vec<_> = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        if let Some((name, _)) = fields.iter().find(|(_, value)| !is_value(value)) {
            return Err([name, ": expected visible ASCII and spaces, on one line"].concat());
        }
        if let Some(name) = written.remove.iter().find(|name| !is_name(name)) {
            return Err(["remove: ", name, ": expected names of fields"].concat());
        }
        Ok(Self { fields, remove: written.remove, overwrite: written.overwrite })
    }
}

/// Whether a text is a field's name (RFC 9110, section 5.1).
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn is_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}
