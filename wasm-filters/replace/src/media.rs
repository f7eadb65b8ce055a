//! Media types (RFC 9110, section 8.3.1).

use beamline_sdk::media;
use serde::Deserialize;

/// Which media types are meant: one, or all of a kind as `text/*`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct MediaRange(String);

impl MediaRange {
    /// Whether a `Content-Type` is one of these.
    pub(crate) fn holds(&self, content_type: &[u8]) -> bool {
        let essence = media::essence(content_type);
        match self.0.strip_suffix('*') {
            Some(kind) => essence.starts_with(kind.as_bytes()),
            None => essence == self.0.as_bytes(),
        }
    }
}

impl TryFrom<String> for MediaRange {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_token = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        match text.split_once('/') {
            Some((kind, sub)) if is_token(kind) && (sub == "*" || is_token(sub)) => {
                Ok(Self(text.to_ascii_lowercase()))
            }
            _ => Err("expected a media type such as text/html or text/*"),
        }
    }
}
