//! NATS: which subjects a tenant may use. Connections, accounts, reconnects and acks come with the first `nats` upstream.
//!
//! Floor 1: knows nothing of tenants; a grant is a list of [`SubjectPrefix`].

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A text that is no subject prefix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "subject prefix {0:?} is not valid: expected tokens of letters, digits, \"-\" and \"_\" joined by \".\", such as \"acme.orders\""
)]
pub struct InvalidSubjectPrefix(String);

/// Whole leading tokens of NATS subjects: `acme.orders` covers `acme.orders` and `acme.orders.new`, not `acme.ordersx`.
///
/// Prefixes hold no wildcards, and `$` (the server's own subjects) is not a letter of theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectPrefix(String);

impl SubjectPrefix {
    /// Whether `subject` is one that this prefix grants to publish or ask on: within the prefix, without wildcards.
    pub fn covers(&self, subject: &str) -> bool {
        let rest = subject.strip_prefix(&self.0);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && is_literal(subject)
    }
}

fn is_literal(subject: &str) -> bool {
    subject.len() <= 256
        && subject.split('.').all(|token| {
            !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

impl FromStr for SubjectPrefix {
    type Err = InvalidSubjectPrefix;

    fn from_str(s: &str) -> Result<Self, InvalidSubjectPrefix> {
        if is_literal(s) {
            Ok(Self(s.to_owned()))
        } else {
            Err(InvalidSubjectPrefix(s.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for SubjectPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SubjectPrefix {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SubjectPrefix {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_whole_tokens_only() {
        let prefix: SubjectPrefix = "acme.orders".parse().unwrap();
        assert!(prefix.covers("acme.orders") && prefix.covers("acme.orders.new"));
        for outside in
            ["acme.ordersx", "acme", "acme.orders.", "acme.orders.*", "acme.orders.>", "other.acme.orders"]
        {
            assert!(!prefix.covers(outside), "{outside}");
        }
    }

    #[test]
    fn prefixes_reach_neither_wildcards_nor_the_servers_own_subjects() {
        for bad in ["", "*", ">", "acme.>", "$SYS", "$JS.API", "a..b", ".a", "a b", "a\r\nPUB x"] {
            assert!(bad.parse::<SubjectPrefix>().is_err(), "{bad}");
        }
    }
}
