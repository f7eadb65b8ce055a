//! A whole number within bounds: in flags and in the configuration file alike, refused where it stands.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounded<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Bounded<MIN, MAX> {
    fn new(value: u64) -> Result<Self, String> {
        match u32::try_from(value) {
            Ok(small) if (MIN..=MAX).contains(&small) => Ok(Self(small)),
            _ => Err(format!("expected {MIN} to {MAX}; found {value}")),
        }
    }

    pub(crate) fn get(self) -> u32 {
        self.0
    }
}

impl<const MIN: u32, const MAX: u32> FromStr for Bounded<MIN, MAX> {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        s.parse()
            .map_err(|_| format!("expected a whole number from {MIN} to {MAX}; found {s:?}"))
            .and_then(Self::new)
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(u64::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}
