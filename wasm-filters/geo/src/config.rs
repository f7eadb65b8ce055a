//! Rules by country.

use beamline_sdk::{Status, address::Network, field::FieldName};
use serde::Deserialize;

use crate::country::Country;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The field that names the country.
    pub(crate) header: FieldName,
    /// Whose word counts.
    pub(crate) trusted_peers: Vec<Network>,
    pub(crate) rules: Vec<Rule>,
    /// What becomes of requests of no known country; the next filter decides where it is not said.
    pub(crate) unknown: Option<Action>,
}

/// What becomes of requests from some countries.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Rule {
    countries: Vec<Country>,
    pub(crate) action: Action,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    countries: Vec<Country>,
    upstream: Option<String>,
    respond: Option<Answer>,
}

/// What becomes of a request.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Upstream(String),
    Respond(Answer),
}

/// An answer in place of the upstream's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) body: String,
}

impl Rule {
    /// Whether a country is one of its own.
    pub(crate) fn holds(&self, country: Country) -> bool {
        self.countries.contains(&country)
    }
}

impl TryFrom<Written> for Rule {
    type Error = &'static str;

    fn try_from(rule: Written) -> Result<Self, Self::Error> {
        let action = match (rule.upstream, rule.respond) {
            (Some(upstream), None) => Action::Upstream(upstream),
            (None, Some(answer)) => Action::Respond(answer),
            _ => return Err("expected upstream or respond, one of them"),
        };
        Ok(Self { countries: rule.countries, action })
    }
}
