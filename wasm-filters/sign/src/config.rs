//! What is signed, and as whom.

use serde::Deserialize;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Config {
    /// The secret that is the key.
    pub(crate) secret: String,
    pub(crate) key_id: String,
    pub(crate) label: String,
    /// Fields that are signed where they are there, in lower case.
    pub(crate) fields: Vec<String>,
    /// Whether the body is read, and its digest signed.
    pub(crate) digest: bool,
    /// Whether `Date` is set and signed.
    pub(crate) date: bool,
    /// Whether each signature has a number of its own.
    pub(crate) nonce: bool,
    /// Where signed requests go; the next filter decides where there is none.
    pub(crate) upstream: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    secret: String,
    key_id: String,
    #[serde(default = "beamline")]
    label: String,
    #[serde(default = "content_type")]
    fields: Vec<String>,
    #[serde(default = "yes")]
    digest: bool,
    #[serde(default)]
    date: bool,
    #[serde(default = "yes")]
    nonce: bool,
    upstream: Option<String>,
}

fn beamline() -> String {
    "beamline".into()
}

fn content_type() -> Vec<String> {
    vec!["content-type".into()]
}

fn yes() -> bool {
    true
}

/// Fields that are set or removed after the signature was made, or signed already; with them `proxy` and all that begin with `proxy-`. A signature over them never holds.
const NOT_SIGNED: [&str; 20] = [
    "signature",
    "signature-input",
    "content-digest",
    "date",
    "connection",
    "transfer-encoding",
    "content-length",
    "via",
    "x-forwarded-for",
    "forwarded",
    "traceparent",
    "tracestate",
    "baggage",
    "x-request-id",
    "x-forwarded-host",
    "x-forwarded-proto",
    "keep-alive",
    "te",
    "upgrade",
    "expect",
];

impl TryFrom<Written> for Config {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let key_id = written.key_id.as_bytes();
        if key_id.is_empty() || !key_id.iter().all(|b| (b' '..=b'~').contains(b) && !b"\"\\".contains(b)) {
            return Err("key_id: expected visible ASCII without quotes and backslashes".into());
        }
        let label = written.label.as_bytes();
        if !label.first().is_some_and(u8::is_ascii_lowercase)
            || !label.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.*".contains(b))
        {
            return Err("label: expected lower-case letters, digits and _-.*, a letter first".into());
        }
        let fields: Vec<_> = written.fields.iter().map(|name| name.to_ascii_lowercase()).collect();
        for (place, name) in fields.iter().enumerate() {
            let is_token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
            if name.is_empty() || !is_token || fields[..place].contains(name) {
                return Err(["fields: ", name, ": expected names of fields, each once"].concat());
            }
            if NOT_SIGNED.contains(&&**name) || name == "proxy" || name.starts_with("proxy-") {
                let why = ": expected none that the proxy sets or removes later, or that is signed by digest or date";
                return Err(["fields: ", name, why].concat());
            }
        }
        Ok(Self {
            secret: written.secret,
            key_id: written.key_id,
            label: written.label,
            fields,
            digest: written.digest,
            date: written.date,
            nonce: written.nonce,
            upstream: written.upstream,
        })
    }
}
