//! The claims of a token whose signature is valid (RFC 7519, section 4.1).

use serde_json::{Map, Value};

use crate::{config::Config, refusal::Refusal};

/// A token's claims. Of members that stand twice the last counts (RFC 7519, section 4).
#[derive(Debug)]
pub(crate) struct Claims(Map<String, Value>);

impl Claims {
    /// Reads the claims; none where they are no JSON object.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok().map(Self)
    }

    /// Whether the token is for us, and now, which is given in seconds since 1970.
    pub(crate) fn check(&self, config: &Config, now: u64) -> Result<(), Refusal> {
        if self.0.get("iss").and_then(Value::as_str) != Some(&config.issuer) {
            return Err(Refusal::Issuer);
        }
        if !config.audiences.is_empty() && !self.is_for(&config.audiences) {
            return Err(Refusal::Audience);
        }
        #[expect(clippy::cast_precision_loss, reason = "exact for 285 million years")]
        let (now, leeway) = (now as f64, f64::from(config.leeway_seconds));
        match self.time("exp")? {
            None if config.require_expiry => return Err(Refusal::NoExpiry),
            Some(expires) if now >= expires + leeway => return Err(Refusal::Expired),
            _ => {}
        }
        match self.time("nbf")? {
            Some(not_before) if now + leeway < not_before => Err(Refusal::NotYet),
            _ => Ok(()),
        }
    }

    /// Whether one of the token's audiences is one of ours. Either a text or a list of them.
    fn is_for(&self, ours: &[String]) -> bool {
        let is_ours = |audience: &Value| ours.iter().any(|our| audience.as_str() == Some(our));
        match self.0.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(is_ours),
            Some(audience) => is_ours(audience),
            None => false,
        }
    }

    /// A time in seconds since 1970. One that is no number does not pass for none.
    fn time(&self, name: &str) -> Result<Option<f64>, Refusal> {
        self.0.get(name).map(|time| time.as_f64().ok_or(Refusal::Malformed)).transpose()
    }

    /// A claim as it stands in a field: a text, a number, true or false. Texts of a list are separated by a space, as in OAuth's
    /// `scope`. Nothing else is handed on.
    ///
    /// # Errors
    /// [`Refusal::Field`] for a text that its reader would take for another: whitespace around a field's value is no part of it,
    /// and in a list's text it would make two of it.
    pub(crate) fn field(&self, name: &str) -> Result<Option<String>, Refusal> {
        Ok(match self.0.get(name) {
            Some(Value::String(text)) if text.trim() != text => return Err(Refusal::Field),
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(Value::Bool(boolean)) => Some(boolean.to_string()),
            Some(Value::Array(items)) => {
                let texts = items.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
                let is_other = |text: &&str| text.is_empty() || text.contains(char::is_whitespace);
                if texts.as_ref().is_some_and(|texts| texts.iter().any(is_other)) {
                    return Err(Refusal::Field);
                }
                texts.map(|texts| texts.join(" "))
            }
            Some(Value::Null | Value::Object(_)) | None => None,
        })
    }
}
