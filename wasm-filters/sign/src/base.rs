//! The signature base: what is signed, line by line (RFC 9421, section 2.5).

use base64ct::{Base64, Encoding};
use beamline_sdk::Request;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{Trouble, config::Config};

/// What is signed.
pub(crate) struct Base {
    lines: String,
    /// The list of what is signed, with its parameters, as `Signature-Input` tells it.
    pub(crate) parameters: String,
}

impl Base {
    /// The base of a request as it stands. Fields that it does not have are left out of the list.
    pub(crate) fn of(
        config: &Config,
        request: &Request,
        has_digest: bool,
        created: u64,
        nonce: Option<u64>,
    ) -> Result<Self, Trouble> {
        let mut base = Self { lines: String::new(), parameters: "(".to_owned() };
        base.add("@method", &request.method());
        base.add("@authority", &authority(request));
        base.add("@path", &request.path());
        // RFC 9421, section 2.2.7: with its `?`, which stands there also where there is no query.
        base.add("@query", &["?", &request.query().unwrap_or_default()].concat());
        let own = [("content-digest", has_digest), ("date", config.date)];
        let own = own.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name);
        for name in own.chain(config.fields.iter().map(|name| &**name)) {
            if let Some(value) = field(request, name)? {
                base.add(name, &value);
            }
        }
        base.parameters.push_str(");created=");
        base.parameters.push_str(&created.to_string());
        if let Some(nonce) = nonce {
            base.parameters.push_str(&[";nonce=\"", &nonce.to_string(), "\""].concat());
        }
        base.parameters.push_str(&[";keyid=\"", &config.key_id, "\";alg=\"hmac-sha256\""].concat());
        base.lines.push_str("\"@signature-params\": ");
        base.lines.push_str(&base.parameters);
        Ok(base)
    }

    fn add(&mut self, name: &str, value: &str) {
        self.lines.push_str(&["\"", name, "\": ", value, "\n"].concat());
        if self.parameters.len() > 1 {
            self.parameters.push(' ');
        }
        self.parameters.push_str(&["\"", name, "\""].concat());
    }

    /// A base whose lines are given.
    #[cfg(test)]
    pub(crate) fn from_lines(lines: &str) -> Self {
        Self { lines: lines.to_owned(), parameters: String::new() }
    }

    /// The signature with a key, in base64.
    pub(crate) fn signed_by(&self, key: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
        mac.update(self.lines.as_bytes());
        Base64::encode_string(&mac.finalize().into_bytes())
    }
}

/// The host as the client named it, in lower case, without the port that goes without saying.
fn authority(request: &Request) -> String {
    let host = request.header("host");
    let host = host.as_ref().and_then(|host| host.to_str()).map(str::to_ascii_lowercase);
    let host = host.unwrap_or_else(|| request.host());
    host.strip_suffix(":80").map_or(host.clone(), str::to_owned)
}

/// A field's value: all its lines, joined (RFC 9421, section 2.1). None where it is not there.
fn field(request: &Request, name: &str) -> Result<Option<String>, Trouble> {
    let lines = request.header_all(name);
    let mut joined = String::new();
    for (place, line) in lines.iter().enumerate() {
        let text = line.to_str().map(str::trim_ascii);
        let text =
            text.filter(|text| text.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t'));
        if place > 0 {
            joined.push_str(", ");
        }
        joined.push_str(text.ok_or_else(|| Trouble::Field(name.to_owned()))?);
    }
    Ok((!lines.is_empty()).then_some(joined))
}
