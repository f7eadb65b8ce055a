//! Names: each a string that was checked once, cheap to clone.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A name that does not have the form its kind asks for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {found:?} is not valid: expected {expected}")]
pub struct InvalidName {
    kind: &'static str,
    found: String,
    expected: &'static str,
}

/// Lower-case letters, digits and inner hyphens: the form of every name that people choose.
fn is_label(s: &str, max: usize) -> bool {
    !s.is_empty()
        && s.len() <= max
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-')
}

fn is_host(s: &str) -> bool {
    s.len() <= 253 && !s.is_empty() && s.split('.').all(|l| is_label(l, 63))
        || s.parse::<std::net::IpAddr>().is_ok()
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $expected:literal, $check:expr, $fold:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(s: &str) -> Result<Self, InvalidName> {
                let fold: fn(&str) -> String = $fold;
                let check: fn(&str) -> bool = $check;
                let folded = fold(s);
                if check(&folded) {
                    Ok(Self(folded.into()))
                } else {
                    Err(InvalidName { kind: $kind, found: s.chars().take(80).collect(), expected: $expected })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// A tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    TenantName, "tenant name", "1 to 63 lower-case letters, digits and inner hyphens", |s| is_label(s, 63), |s| s.to_owned()
);
name_type!(
    /// An upstream of a tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    UpstreamName, "upstream name", "1 to 63 lower-case letters, digits and inner hyphens", |s| is_label(s, 63), |s| s.to_owned()
);
name_type!(
    /// A filter of a tenant's chain: 1 to 63 lower-case letters, digits and inner hyphens.
    FilterName, "filter name", "1 to 63 lower-case letters, digits and inner hyphens", |s| is_label(s, 63), |s| s.to_owned()
);
name_type!(
    /// A NATS connection of the node's configuration: 1 to 63 lower-case letters, digits and inner hyphens.
    ConnectionName, "connection name", "1 to 63 lower-case letters, digits and inner hyphens", |s| is_label(s, 63), |s| s.to_owned()
);
name_type!(
    /// A secret of a tenant: 1 to 63 lower-case letters, digits and inner hyphens.
    SecretName, "secret name", "1 to 63 lower-case letters, digits and inner hyphens", |s| is_label(s, 63), |s| s.to_owned()
);
name_type!(
    /// An exact host as clients name it, without port; folded to lower case, a final dot removed.
    HostName, "host", "a DNS name or an IP address, without port or path",
    is_host, |s| s.strip_suffix('.').unwrap_or(s).to_ascii_lowercase()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_fold_case_and_final_dot() {
        assert_eq!("Acme.TEST.".parse::<HostName>().unwrap().as_str(), "acme.test");
    }

    #[test]
    fn bad_names_say_what_is_expected() {
        for bad in ["", "A", "-a", "a-", "a b", "a/b", &"a".repeat(64)] {
            let error = bad.parse::<TenantName>().unwrap_err().to_string();
            assert!(error.contains("expected 1 to 63"), "{error}");
        }
        for bad in ["", "a..b", "a:80", "a/b", "-a.test", "*.test"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }
}
