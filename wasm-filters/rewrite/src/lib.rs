//! Rewrites paths on their way to an upstream, or redirects.
//!
//! The first rule that matches decides; where none does, the next filter. See `README.md` for the configuration.

mod query;
mod rule;
mod template;

use beamline_sdk::{Filter, Request, Verdict, path};
use serde::Deserialize;

use crate::rule::{Action, Rule};

/// The filter.
struct Rewrite;

/// Its configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    rules: Vec<Rule>,
}

impl Filter for Rewrite {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let path = request.path();
        // To an origin such a path may lie elsewhere than its text says: it is nobody's to rewrite.
        if path::has_dot_segments(&path) {
            return Verdict::next();
        }
        let Some((rule, captured)) = config.rules.iter().find_map(|rule| Some((rule, rule.matches(&path)?)))
        else {
            return Verdict::next();
        };
        let target = rule.target(&captured, request.query().as_deref());
        match rule.action() {
            Action::Upstream(upstream) => Verdict::route(upstream.as_str()).path(target).into(),
            Action::Redirect(status) => Verdict::respond(*status).header("location", target).into(),
        }
    }
}

beamline_sdk::export!(Rewrite);

#[cfg(test)]
mod tests;
