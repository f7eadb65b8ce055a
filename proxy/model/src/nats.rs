//! Where a `nats` upstream sends: an operator's connection and a subject, and what of both a tenant was granted.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ConnectionName;

/// The longest subject that is taken.
const SUBJECT_MAX: usize = 256;

/// A text that is no literal subject.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "NATS subject {0:?} is not valid: expected tokens of letters, digits, \"-\" and \"_\" joined by \".\", such as \"acme.orders\"; \
     wildcards, and the server's own subjects with \"$\" or \"_INBOX\", are nobody's"
)]
pub struct InvalidSubject(String);

/// A literal NATS subject, such as `acme.orders.new`: no wildcards, and none of the server's own (`$SYS`, `$JS`, `_INBOX`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(Arc<str>);

/// Whole leading tokens of subjects: `acme.orders` covers `acme.orders` and `acme.orders.new`, not `acme.ordersx`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectPrefix(Subject);

/// What a tenant may send to over one connection: `main=acme.orders`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubjectGrant {
    /// The connection, as the operator named it.
    pub connection: ConnectionName,
    /// The subjects within it.
    pub prefix: SubjectPrefix,
}

impl Subject {
    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same text, shared: for spans, which outlive a request.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl SubjectPrefix {
    /// Whether `subject` lies within the prefix.
    pub fn covers(&self, subject: &Subject) -> bool {
        let rest = subject.as_str().strip_prefix(self.0.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(s: &str) -> Result<Self, InvalidSubject> {
        let token =
            |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let literal = s.len() <= SUBJECT_MAX && s.split('.').all(token);
        if literal && !s.starts_with("_INBOX") {
            Ok(Self(s.into()))
        } else {
            Err(InvalidSubject(s.chars().take(80).collect()))
        }
    }
}

impl FromStr for SubjectPrefix {
    type Err = InvalidSubject;

    fn from_str(s: &str) -> Result<Self, InvalidSubject> {
        s.parse().map(Self)
    }
}

impl FromStr for SubjectGrant {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (connection, prefix) = s.split_once('=').ok_or_else(|| {
            let found: String = s.chars().take(80).collect();
            format!(
                "NATS grant {found:?} is not valid: expected CONNECTION=PREFIX, such as \"main=acme.orders\""
            )
        })?;
        let connection = connection.parse().map_err(|e: crate::InvalidName| e.to_string())?;
        let prefix = prefix.parse().map_err(|e: InvalidSubject| e.to_string())?;
        Ok(Self { connection, prefix })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SubjectPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SubjectGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.connection, self.prefix)
    }
}

crate::text::as_text!(Subject, SubjectGrant);

/// Where a `nats` upstream's requests go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsTarget {
    /// The connection, as the operator named it.
    pub connection: ConnectionName,
    /// What requests are published to.
    pub subject: Subject,
    /// What is expected in return.
    pub kind: NatsKind,
}

/// What a `nats` upstream expects in return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatsKind {
    /// A service's reply, which becomes the response.
    Request,
    /// A stream's acknowledgement: the response is `202` without a receipt.
    Jetstream,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_whole_tokens_only() {
        let prefix: SubjectPrefix = "acme.orders".parse().unwrap();
        let covers = |subject: &str| prefix.covers(&subject.parse().unwrap());
        assert!(covers("acme.orders") && covers("acme.orders.new"));
        for outside in ["acme.ordersx", "acme", "other.acme.orders"] {
            assert!(!covers(outside), "{outside}");
        }
    }

    #[test]
    fn subjects_reach_neither_wildcards_nor_the_servers_own() {
        let long = "a.".repeat(200) + "a";
        for bad in [
            "",
            "*",
            ">",
            "acme.>",
            "acme.*.new",
            "$SYS",
            "$JS.API",
            "_INBOX.x",
            "a..b",
            ".a",
            "a.",
            "a b",
            "a\r\nPUB x",
            "ä",
            &long,
        ] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
            assert!(bad.parse::<SubjectPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn grants_read_back_what_they_write() {
        let grant: SubjectGrant = "main=acme.orders".parse().unwrap();
        assert_eq!(grant.to_string(), "main=acme.orders");
        for bad in ["acme.orders", "=acme", "main=", "main=acme.>", "Main=acme"] {
            assert!(bad.parse::<SubjectGrant>().unwrap_err().contains("expected"), "{bad}");
        }
    }
}
