//! How many deliveries to an upstream may begin in a second, where somebody set a bound.

use std::{fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Serialize};

/// Deliveries a second, from 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Rate(NonZeroU32);

/// A number or a text that is no [`Rate`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} is not a rate: expected 1 to 10000 deliveries a second, such as \"5/s\"")]
pub struct InvalidRate {
    found: String,
}

impl Rate {
    const MAX: u32 = 10_000;

    /// How many a second.
    pub const fn per_second(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for Rate {
    type Error = InvalidRate;

    fn try_from(per_second: u32) -> Result<Self, InvalidRate> {
        let rate = NonZeroU32::new(per_second).filter(|rate| rate.get() <= Self::MAX).map(Self);
        rate.ok_or_else(|| InvalidRate { found: per_second.to_string() })
    }
}

impl From<Rate> for u32 {
    fn from(rate: Rate) -> Self {
        rate.per_second()
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let number = text.strip_suffix("/s").and_then(|number| number.parse::<u32>().ok());
        let rate = number.and_then(|number| Self::try_from(number).ok());
        rate.ok_or_else(|| InvalidRate { found: format!("{text:?}") })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.per_second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_from_1_to_10000_a_second() {
        for text in ["1/s", "5/s", "10000/s"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["0/s", "10001/s", "5", "5/m", "/s", "-1/s", "1.5/s", ""] {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a rate: expected 1 to 10000")), "{error}");
        }
        assert!(serde_json::from_str::<Rate>("0").is_err());
        assert_eq!(serde_json::from_str::<Rate>("7").unwrap().per_second(), 7);
    }
}
