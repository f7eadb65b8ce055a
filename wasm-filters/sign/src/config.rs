//! What is signed, and as whom.

use beamline_sdk::field::SentField;
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
    pub(crate) fields: Vec<SentField>,
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
    fields: Vec<SentField>,
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

fn content_type() -> Vec<SentField> {
    vec!["content-type".parse().expect("a field that is sent")]
}

fn yes() -> bool {
    true
}

/// Fields that the signature is made of, or that are signed by `digest` or `date` as they are set then.
const OWN: [&str; 4] = ["signature", "signature-input", "content-digest", "date"];

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
        for (place, name) in written.fields.iter().enumerate() {
            if OWN.contains(&&**name) || written.fields[..place].contains(name) {
                let expected =
                    ": expected each once, and none of a signature's own (digest and date sign theirs)";
                return Err(["fields: ", name, expected].concat());
            }
        }
        Ok(Self {
            secret: written.secret,
            key_id: written.key_id,
            label: written.label,
            fields: written.fields,
            digest: written.digest,
            date: written.date,
            nonce: written.nonce,
            upstream: written.upstream,
        })
    }
}
