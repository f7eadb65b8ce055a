//! Sizes and durations as people write them: `64KiB`, `250ms`.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A size or duration that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{found:?} is not a {kind}: expected {expected}")]
pub struct InvalidUnit {
    kind: &'static str,
    found: String,
    expected: &'static str,
}

/// A number of bytes, written `512B`, `64KiB`, `16MiB` or `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// A length of time from 1 ms to 365 days, written `250ms`, `30s`, `15m`, `24h` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(std::time::Duration);

const BYTES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const MILLIS: [(&str, u64); 5] =
    [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
const YEAR_MS: u64 = 365 * 86_400_000;

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.trim_end().parse::<u64>().ok()?.checked_mul(*factor)
}

fn written(value: u64, units: &[(&str, u64)]) -> String {
    let mut by_size: Vec<_> = units.to_vec();
    by_size.sort_by_key(|(_, factor)| std::cmp::Reverse(*factor));
    let (unit, factor) = by_size
        .iter()
        .find(|(_, f)| value >= *f && value.is_multiple_of(*f))
        .copied()
        .unwrap_or(by_size[by_size.len() - 1]);
    format!("{}{unit}", value / factor)
}

impl ByteSize {
    /// `n` bytes.
    pub const fn bytes(n: u64) -> Self {
        Self(n)
    }

    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Duration {
    /// `n` milliseconds.
    pub const fn millis(n: u64) -> Self {
        Self(std::time::Duration::from_millis(n))
    }

    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(std::time::Duration::from_secs(n))
    }

    /// As the standard library's type.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = InvalidUnit;

    fn from_str(s: &str) -> Result<Self, InvalidUnit> {
        scaled(s, &BYTES).map(Self).ok_or_else(|| InvalidUnit {
            kind: "size",
            found: s.chars().take(40).collect(),
            expected: "a whole number and one of B, KiB, MiB, GiB, such as \"64KiB\"",
        })
    }
}

impl FromStr for Duration {
    type Err = InvalidUnit;

    fn from_str(s: &str) -> Result<Self, InvalidUnit> {
        match scaled(s, &MILLIS) {
            Some(ms @ 1..=YEAR_MS) => Ok(Self::millis(ms)),
            _ => Err(InvalidUnit {
                kind: "duration",
                found: s.chars().take(40).collect(),
                expected: "a whole number and one of ms, s, m, h, d, such as \"250ms\", from 1ms to 365d",
            }),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(self.0, &BYTES))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&written(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX), &MILLIS))
    }
}

crate::text::as_text!(ByteSize, Duration);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_units_say_what_is_expected() {
        for bad in ["", "5", "5 parsecs", "-1s", "1.5s", "99999999999999d", "0s"] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
        assert!("5KB".parse::<ByteSize>().unwrap_err().to_string().contains("KiB"));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes: u64, ms in 1..YEAR_MS) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
            prop_assert_eq!(Duration::millis(ms).to_string().parse::<Duration>().unwrap(), Duration::millis(ms));
        }
    }
}
