//! Which origins may do what.

use serde::Deserialize;

use crate::origin::OriginPattern;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Config {
    origins: Origins,
    pub(crate) methods: Vec<String>,
    pub(crate) headers: Vec<String>,
    pub(crate) expose: Vec<String>,
    pub(crate) credentials: bool,
    pub(crate) max_age_seconds: u32,
}

/// Whose pages may read responses.
enum Origins {
    Any,
    These(Vec<OriginPattern>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    origins: Vec<String>,
    #[serde(default = "simple_methods")]
    methods: Vec<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    expose: Vec<String>,
    #[serde(default)]
    credentials: bool,
    #[serde(default = "ten_minutes")]
    max_age_seconds: u32,
}

fn simple_methods() -> Vec<String> {
    ["GET", "HEAD", "POST"].map(str::to_owned).to_vec()
}

fn ten_minutes() -> u32 {
    600
}

impl Config {
    /// What `Access-Control-Allow-Origin` says to a page of this origin; none where it may not.
    pub(crate) fn allowed_origin<'a>(&self, origin: &'a [u8]) -> Option<&'a [u8]> {
        match &self.origins {
            Origins::Any => Some(b"*"),
            Origins::These(patterns) => {
                patterns.iter().any(|pattern| pattern.holds(origin)).then_some(origin)
            }
        }
    }

    /// Whether responses differ by origin.
    pub(crate) fn varies(&self) -> bool {
        matches!(self.origins, Origins::These(_))
    }
}

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let origins = if written.origins == ["*"] {
            if written.credentials {
                return Err("origins: expected them by name where credentials are allowed, found *: \
                            every page of the Web could act as its reader"
                    .into());
            }
            Origins::Any
        } else {
            Origins::These(
                written.origins.iter().map(|text| OriginPattern::parse(text)).collect::<Result<_, _>>()?,
            )
        };
        for (key, names) in
            [("methods", &written.methods), ("headers", &written.headers), ("expose", &written.expose)]
        {
            // Beside credentials `*` is a name like others, to a browser.
            let all = |name: &String| name == "*" && !written.credentials && key != "methods";
            if !names.iter().all(|name| is_token(name) && (all(name) || name != "*")) {
                return Err([
                    key,
                    ": expected names, found something else (* stands for all of headers and expose, \
                                 without credentials)",
                ]
                .concat());
            }
        }
        Ok(Self {
            origins,
            methods: written.methods,
            headers: written.headers,
            expose: written.expose,
            credentials: written.credentials,
            max_age_seconds: written.max_age_seconds,
        })
    }
}

/// Whether a text is a token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether a `Vary` says `origin` already, or everything.
pub(crate) fn is_listed(vary: &[u8]) -> bool {
    vary.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"))
}
