//! What an origin's answer means for a queued record, where an upstream's manifest says other than the table does.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Statuses and what they mean. One status goes before its class; what is not named means what the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OnStatus(BTreeMap<StatusPattern, StatusMeans>);

/// One status, or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
enum StatusPattern {
    /// From 300 to 599.
    One(u16),
    /// Its first digit: 3, 4 or 5.
    Class(u16),
}

/// What becomes of a record that is answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusMeans {
    /// It was not taken: it is tried again, safe to repeat or not, after `Retry-After` or a back-off.
    Retry,
    /// It is refused for good: dead (rejected).
    Dead,
    /// It was taken, now or by an earlier attempt.
    Delivered,
}

impl OnStatus {
    /// What this status means, if anything was said of it.
    pub fn means(&self, status: u16) -> Option<StatusMeans> {
        let said = |pattern| self.0.get(&pattern).copied();
        said(StatusPattern::One(status)).or_else(|| said(StatusPattern::Class(status / 100)))
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for StatusPattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.as_bytes() {
            [class @ b'3'..=b'5', b'x', b'x'] => Ok(Self::Class(u16::from(class - b'0'))),
            [b'3'..=b'5', b'0'..=b'9', b'0'..=b'9'] => s.parse().map(Self::One).map_err(|_| s.to_owned()),
            _ => Err(format!(
                "status {s:?} is not one that can be given a meaning: expected one from \"300\" to \"599\", or a class: \"3xx\", \"4xx\" or \"5xx\""
            )),
        }
    }
}

impl TryFrom<String> for StatusPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(status) => write!(f, "{status}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl From<StatusPattern> for String {
    fn from(pattern: StatusPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_status_goes_before_its_class_and_the_rest_is_left_to_the_table() {
        let json = r#"{"409":"delivered","500":"dead","4xx":"retry"}"#;
        let on_status: OnStatus = serde_json::from_str(json).unwrap();
        for (status, means) in [
            (409, Some(StatusMeans::Delivered)),
            (404, Some(StatusMeans::Retry)),
            (500, Some(StatusMeans::Dead)),
            (503, None),
            (200, None),
            (302, None),
        ] {
            assert_eq!(on_status.means(status), means, "{status}");
        }
        assert_eq!(serde_json::to_string(&on_status).unwrap(), json);
    }

    #[test]
    fn what_is_no_failure_or_no_status_cannot_be_given_a_meaning() {
        for wrong in ["200", "2xx", "600", "40", "4000", "4XX", "", "xxx", "+40"] {
            let error = wrong.parse::<StatusPattern>().unwrap_err();
            assert!(error.contains("expected one from \"300\" to \"599\""), "{error}");
        }
    }
}
