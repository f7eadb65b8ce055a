//! The limits, and what they count by.

use beamline_sdk::{address::Network, buckets::Rate, field::FieldName};
use serde::Deserialize;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(deserialize_with = "limits")]
    pub(crate) limits: Vec<Limit>,
    #[serde(default)]
    pub(crate) address: AddressFrom,
    #[serde(default)]
    pub(crate) on_trouble: OnTrouble,
    /// Whether clients are told what is left.
    #[serde(default = "yes")]
    pub(crate) tell: bool,
}

fn yes() -> bool {
    true
}

/// One limit.
#[derive(Deserialize)]
#[serde(try_from = "WrittenLimit")]
pub(crate) struct Limit {
    pub(crate) name: String,
    pub(crate) key: Key,
    pub(crate) rate: Rate,
}

/// What is counted by.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Key {
    Address,
    Tenant,
    Header(FieldName),
}

/// Where clients' addresses come from, behind other proxies.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AddressFrom {
    pub(crate) header: FieldName,
    pub(crate) trusted_proxies: Vec<Network>,
}

/// What becomes of a request for which no bucket could be had.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnTrouble {
    Pass,
    /// By default: who can use up the tenant's buckets must not be able to turn its limits off by it.
    #[default]
    Refuse,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimit {
    name: String,
    key: Key,
    requests: u32,
    per_seconds: u32,
    burst: Option<u32>,
}

impl Default for AddressFrom {
    fn default() -> Self {
        Self { header: "x-forwarded-for".parse().expect("a field's name"), trusted_proxies: Vec::new() }
    }
}

const MAX_TOKENS: u32 = 100_000;
const DAY: u32 = 86_400;

impl TryFrom<WrittenLimit> for Limit {
    type Error = &'static str;

    fn try_from(limit: WrittenLimit) -> Result<Self, Self::Error> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=32).contains(&limit.name.len()) || !limit.name.bytes().all(plain) {
            return Err("expected a name of 1 to 32 lower-case letters, digits and hyphens");
        }
        let burst = limit.burst.unwrap_or(limit.requests);
        if !(1..=MAX_TOKENS).contains(&limit.requests) || !(1..=MAX_TOKENS).contains(&burst) {
            return Err("expected requests and burst of 1 to 100000");
        }
        if !(1..=DAY).contains(&limit.per_seconds) {
            return Err("expected per_seconds of 1 to 86400");
        }
        if u64::from(burst) * u64::from(limit.per_seconds) > u64::from(limit.requests) * u64::from(DAY) {
            return Err("expected a burst that is there again within a day");
        }
        let rate = Rate { tokens: limit.requests, period_ms: limit.per_seconds * 1000, burst };
        Ok(Self { name: limit.name, key: limit.key, rate })
    }
}

/// A few limits of different names: a name is a bucket's.
fn limits<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Limit>, D::Error> {
    use serde::de::Error as _;
    let limits = Vec::<Limit>::deserialize(deserializer)?;
    let twice =
        |(place, limit): (usize, &Limit)| limits[..place].iter().any(|other| other.name == limit.name);
    if !(1..=8).contains(&limits.len()) || limits.iter().enumerate().any(twice) {
        return Err(D::Error::custom("expected 1 to 8, of different names"));
    }
    Ok(limits)
}
