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
    use beamline_sdk::testing::{Call, run_cases};
    use proptest::{collection::vec, prop_assert_eq, proptest};
    use serde_json::json;

    use super::*;
    use crate::point::POINTS;

    #[test]
    fn cases_come_out_as_they_say() {
        run_cases::<Canary>(include_str!("../cases.json"));
    }

    /// Hundredths of a percent as they are written.
    fn percent(points: u32) -> f64 {
        f64::from(points) / 100.0
    }

    proptest! {
        #[test]
        fn every_point_is_in_the_share_that_covers_it(shares in vec(0..=POINTS / 4, 1..5), point in 0..POINTS) {
            let share = |(n, points): (usize, &u32)| json!({ "upstream": format!("u{n}"), "percent": percent(*points) });
            let written: Vec<_> = shares.iter().enumerate().map(share).collect();
            let split: Split = serde_json::from_value(json!(written)).unwrap();
            // The line, point by point.
            let mut line = shares.iter().enumerate().flat_map(|(n, points)| std::iter::repeat_n(n, *points as usize));
            let expected = line.nth(point as usize).map(|n| format!("u{n}"));
            prop_assert_eq!(split.at(point).map(str::to_owned), expected);
        }

        #[test]
        fn a_share_that_grows_keeps_its_clients(key in "[a-z0-9]{1,20}", share in 0..=POINTS, more in 0..=POINTS) {
            let is_in = |points: u32| {
                let config = json!({
                    "split": [{ "upstream": "next", "percent": percent(points) }],
                    "sticky": { "header": "x-user" },
                });
                let outcome = Call::get("/").header("x-user", &key).config(config).run::<Canary>();
                let next: Verdict = Verdict::route("next").into();
                outcome.verdict == next
            };
            prop_assert_eq!(is_in(share) && !is_in((share + more).min(POINTS)), false);
        }
    }
}
