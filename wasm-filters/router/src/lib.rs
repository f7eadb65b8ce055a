//! Routes by path, method, host and headers, as rules in its configuration say.
//!
//! The first rule that matches decides; where none does, the next filter. See `README.md` for the configuration.

mod facts;
mod header;
mod rule;

use beamline_sdk::{Filter, Request, Verdict};
use serde::Deserialize;

use crate::{facts::Facts, rule::Rule};

/// The filter.
struct Router;

/// Its configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    rules: Vec<Rule>,
}

impl Filter for Router {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let facts = Facts::of(request, &config.rules);
        match config.rules.iter().find(|rule| rule.matches(&facts)) {
            Some(rule) => rule.route(&facts).into(),
            None => Verdict::next(),
        }
    }
}

beamline_sdk::export!(Router);

#[cfg(test)]
mod tests {
    #[test]
    fn cases_come_out_as_they_say() {
        beamline_sdk::testing::run_cases::<super::Router>(include_str!("../cases.json"));
    }
}
