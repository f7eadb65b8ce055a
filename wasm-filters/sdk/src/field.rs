//! Names and values of header fields, checked once: where a configuration is read.
//!
//! A name that is mistyped, or that the host does not let a filter change, is then an error of the configuration, not one of every
//! request.
//!
//! ```
//! use beamline_sdk::field::{FieldName, SentField};
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     /// Where the account stands.
//!     account_header: FieldName,
//!     /// Where the upstream is told the plan.
//!     plan_header: SentField,
//! }
//!
//! let written = r#"{ "account_header": "X-Account", "plan_header": "x-plan" }"#;
//! let config: Config = serde_json::from_str(written).unwrap();
//! assert_eq!(&*config.account_header, "x-account");
//! for refused in ["x plan", "Connection", "x-forwarded-for", "tracestate"] {
//!     assert!(serde_json::from_value::<SentField>(refused.into()).is_err());
//! }
//! ```

use std::str::FromStr;

use crate::text::checked_text;

/// The name of a header field (RFC 9110, section 5.1), in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName(String);

/// A field that a filter may set and remove: none of [those that belong to the host](HOSTS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeableField(FieldName);

/// A field of a request that reaches its upstream as the filters left it: on every way there, also by the queue and as a message
/// of NATS. But for `authorization` and `cookie`: from a queue they come only where its policy keeps `credentials`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentField(FieldName);

/// The value of a header field: visible ASCII, with spaces only within it.
///
/// The host takes bytes beyond ASCII, too; what they mean, everybody knows in another way (RFC 9110, section 5.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldValue(String);

/// Fields that belong to the host: hop by hop, framing, and what the node vouches for.
pub const HOSTS: [&str; 17] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
    "via",
    "expect",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "proxy-status",
    "traceparent",
];

/// Fields that the node sets on a request or takes off it after its filters, beside those of [`HOSTS`], and `prefer`, which speaks to
/// the node and is not queued.
pub const NOT_SENT: [&str; 6] =
    ["baggage", "prefer", "proxy", "proxy-authorization", "tracestate", "x-request-id"];

/// What fields begin with that the node's deliveries and NATS keep for themselves.
pub const NOT_SENT_BEGINNINGS: [&str; 2] = ["beamline-", "nats-"];

/// Whether a text is a token (RFC 9110, section 5.6.2): what names of fields and of cookies, and methods, are.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl FromStr for FieldName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if !is_token(name) {
            return Err("expected the name of a header field, of letters, digits and !#$%&'*+-.^_`|~");
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl FromStr for ChangeableField {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let name: FieldName = name.parse()?;
        if HOSTS.contains(&&*name) {
            return Err("expected a field that filters may change: this one belongs to the proxy");
        }
        Ok(Self(name))
    }
}

impl FromStr for SentField {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let name: FieldName = name.parse()?;
        // CGI, and what follows it, has one name for `x-request-id` and `x_request_id`.
        let folded = name.replace('_', "-");
        if HOSTS.contains(&&*folded)
            || NOT_SENT.contains(&&*folded)
            || NOT_SENT_BEGINNINGS.iter().any(|beginning| folded.starts_with(beginning))
        {
            return Err(
                "expected a field that reaches the upstream as it is: this one the proxy sets or removes",
            );
        }
        Ok(Self(name))
    }
}

impl FromStr for FieldValue {
    type Err = &'static str;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let is_plain = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if value.is_empty() || value.trim_ascii().len() < value.len() || !is_plain {
            return Err(
                "expected the value of a header field: visible ASCII on one line, no space around it",
            );
        }
        Ok(Self(value.to_owned()))
    }
}

checked_text!(FieldName, ChangeableField, SentField, FieldValue);

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    fn read<F: DeserializeOwned>(text: &str) -> Result<F, String> {
        serde_json::from_value(text.into()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_tokens_in_lower_case() {
        assert_eq!(&*read::<FieldName>("X-Api-Key").unwrap(), "x-api-key");
        for name in ["", "x key", "x:key", ":path", "x-key\r\n", "x-k\u{e9}y", "x/key", "\"x\""] {
            let error = read::<FieldName>(name).unwrap_err();
            assert!(error.starts_with("expected the name of a header field"), "{name}: {error}");
            assert_eq!(read::<ChangeableField>(name).unwrap_err(), error);
            assert_eq!(read::<SentField>(name).unwrap_err(), error);
        }
    }

    #[test]
    fn fields_of_the_host_are_read_and_not_changed() {
        for name in HOSTS {
            assert_eq!(&*read::<FieldName>(name).unwrap(), name);
            assert!(
                read::<ChangeableField>(&name.to_uppercase()).unwrap_err().contains("belongs to the proxy")
            );
            assert!(read::<SentField>(name).is_err());
        }
        assert_eq!(&*read::<ChangeableField>("Server").unwrap(), "server");
    }

    #[test]
    fn what_the_node_sets_or_removes_later_is_not_sent() {
        for name in [
            "tracestate",
            "Baggage",
            "prefer",
            "proxy",
            "proxy-authorization",
            "x-request-id",
            "X_Request_Id",
            "x_forwarded_for",
            "beamline-attempt",
            "Nats-Msg-Id",
        ] {
            assert!(read::<ChangeableField>(name).is_ok(), "{name}");
            assert!(read::<SentField>(name).unwrap_err().contains("sets or removes"), "{name}");
        }
        for name in
            ["x-user", "authorization", "idempotency-key", "content-type", "proxy-plan", "x-beamline-a"]
        {
            assert_eq!(&*read::<SentField>(name).unwrap(), name);
        }
    }

    #[test]
    fn values_are_visible_and_on_one_line() {
        assert_eq!(&*read::<FieldValue>("text/html; charset=utf-8").unwrap(), "text/html; charset=utf-8");
        for value in ["", " a", "a ", "a\tb", "a\r\nset-cookie: b", "caf\u{e9}", "\0"] {
            assert!(read::<FieldValue>(value).unwrap_err().starts_with("expected the value of"), "{value}");
        }
    }
}
