//! Splits traffic over upstreams by percentage, sticky where a client can be told apart.
//!
//! A request's point on a line of 10,000 decides: a stable hash of the client's key where there is one, else the
//! host's randomness. Shares lie on the line one after the other; a point beyond them is the next filter's. See
//! `README.md` for the configuration.

mod point;
mod split;

use beamline_sdk::{CookieName, Filter, Request, Verdict, field::FieldName};
use serde::Deserialize;

use crate::split::Split;

/// The filter.
struct Canary;

/// Its configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    split: Split,
    sticky: Option<Sticky>,
    /// Mixed into the hash, so that two canaries do not pick the same clients.
    #[serde(default)]
    salt: String,
}

/// What tells clients apart.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sticky {
    Header(FieldName),
    Cookie(CookieName),
}

impl Filter for Canary {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let key = match &config.sticky {
            Some(Sticky::Header(name)) => request.header(name),
            Some(Sticky::Cookie(name)) => request.cookie(name),
            None => None,
        };
        let point = match key {
            Some(key) => point::of(config.salt.as_bytes(), key.as_bytes()),
            None => point::random(),
        };
        match config.split.at(point) {
            Some(upstream) => Verdict::route(upstream).into(),
            None => Verdict::next(),
        }
    }
}

beamline_sdk::export!(Canary);

#[cfg(test)]
mod tests {
    #[test]
    fn cases_come_out_as_they_say() {
        beamline_sdk::testing::run_cases::<super::Canary>(include_str!("../cases.json"));
    }
}
