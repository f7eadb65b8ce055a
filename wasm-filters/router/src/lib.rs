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
    use beamline_sdk::testing::{Call, run_cases};
    use proptest::{collection::vec, prop_assert_eq, proptest};
    use serde_json::json;

    use super::*;

    #[test]
    fn cases_come_out_as_they_say() {
        run_cases::<Router>(include_str!("../cases.json"));
    }

    proptest! {
        #[test]
        fn the_first_rule_with_whose_segments_a_path_begins_decides(
            prefixes in vec("(/[ab]{1,2}){1,2}", 0..4),
            path in "(/[ab]{0,2}){1,3}",
        ) {
            let rule = |(n, prefix): (usize, &String)| json!({ "prefix": prefix, "upstream": format!("u{n}") });
            let rules: Vec<_> = prefixes.iter().enumerate().map(rule).collect();
            let segments = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            let first = prefixes.iter().position(|prefix| segments(&path).starts_with(&segments(prefix)));
            let expected: Verdict = match first {
                Some(n) => Verdict::route(&*format!("u{n}")).into(),
                None => Verdict::next(),
            };
            prop_assert_eq!(Call::get(&path).config(json!({ "rules": rules })).run::<Router>().verdict, expected);
        }

        #[test]
        fn what_is_left_of_a_path_begins_with_one_slash(slashes in 0_usize..4, rest in "([a-z=~_-][a-z0-9/=~_-]{0,12})?") {
            let path = format!("/v2/{}{rest}", "/".repeat(slashes));
            let rules = json!({ "rules": [{ "prefix": "/v2", "upstream": "api", "strip_prefix": true }] });
            let expected: Verdict = Verdict::route("api").path(format!("/{rest}")).into();
            prop_assert_eq!(Call::get(&path).config(rules).run::<Router>().verdict, expected);
        }
    }
}
