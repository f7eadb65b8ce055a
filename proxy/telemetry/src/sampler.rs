//! Which traces are recorded: a ratio, decided on the trace id, so that every node decides alike.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::TraceId;

/// A ratio that is not a number from 0 to 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "sample ratio {0} is not valid: expected a number from 0 (no trace) to 1 (every trace), such as 0.05"
)]
pub struct InvalidRatio(String);

/// Takes a share of all traces. The default takes every one.
///
/// A trace is taken where the last 56 bits of its id, which W3C Trace Context level 2 calls random, are at or above a
/// threshold: as OpenTelemetry's consistent probability sampling, so that a service behind with a higher ratio has
/// every trace that is taken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    threshold: u64,
}

/// One above the largest random part of a trace id.
const RANGE: u64 = 1 << 56;

impl Sampler {
    /// Takes every trace.
    pub const ALWAYS: Self = Self { threshold: 0 };
    /// Takes none.
    pub const NEVER: Self = Self { threshold: RANGE };

    /// Takes the share `ratio` of all traces, from 0 to 1.
    pub fn ratio(ratio: f64) -> Result<Self, InvalidRatio> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(InvalidRatio(ratio.to_string()));
        }
        // Exact at both ends: 2^56 is a power of two, and the product of it with a ratio in 0..=1 fits in a u64.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "the value is in 0..=2^56"
        )]
        let threshold = ((1.0 - ratio) * RANGE as f64) as u64;
        Ok(Self { threshold })
    }

    /// Whether the trace is recorded.
    pub fn takes(self, trace: TraceId) -> bool {
        let [.., a, b, c, d, e, f, g] = *trace.as_bytes();
        u64::from_be_bytes([0, a, b, c, d, e, f, g]) >= self.threshold
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::ALWAYS
    }
}

impl FromStr for Sampler {
    type Err = InvalidRatio;

    fn from_str(s: &str) -> Result<Self, InvalidRatio> {
        let ratio = s.parse().map_err(|_| InvalidRatio(format!("{:?}", crate::redact::cut(s, 40))))?;
        Self::ratio(ratio)
    }
}

impl<'de> Deserialize<'de> for Sampler {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::ratio(f64::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ratio_takes_its_share() {
        let sampler = Sampler::ratio(0.25).unwrap();
        let taken = (0..40_000).filter(|_| sampler.takes(TraceId::random())).count();
        assert!((9_400..10_600).contains(&taken), "took {taken} of 40000");
    }

    #[test]
    fn the_ends_are_exact() {
        let lowest = TraceId::from_bytes([0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let highest = TraceId::from_bytes([0xff; 16]).unwrap();
        assert_eq!((Sampler::ratio(1.0), Sampler::ratio(0.0)), (Ok(Sampler::ALWAYS), Ok(Sampler::NEVER)));
        assert!(Sampler::ALWAYS.takes(lowest));
        assert!(!Sampler::NEVER.takes(highest));
    }

    #[test]
    fn settings_may_write_a_ratio_with_or_without_a_fraction() {
        for (text, ratio) in [("0.5", 0.5), ("1", 1.0), ("0", 0.0)] {
            assert_eq!(serde_json::from_str::<Sampler>(text).unwrap(), Sampler::ratio(ratio).unwrap());
        }
        assert!(
            serde_json::from_str::<Sampler>("2")
                .unwrap_err()
                .to_string()
                .contains("expected a number from 0")
        );
    }

    #[test]
    fn a_bad_ratio_says_what_is_expected() {
        for bad in ["-0.1", "1.5", "NaN", "lots", ""] {
            let error = bad.parse::<Sampler>().unwrap_err().to_string();
            assert!(error.contains("expected a number from 0"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_higher_ratio_takes_all_that_a_lower_one_takes(id: [u8; 16], a in 0.0..=1.0f64, b in 0.0..=1.0f64) {
            prop_assume!(id != [0; 16]);
            let id = TraceId::from_bytes(id).unwrap();
            let (low, high) = (Sampler::ratio(a.min(b)).unwrap(), Sampler::ratio(a.max(b)).unwrap());
            prop_assert!(!low.takes(id) || high.takes(id));
        }
    }
}
