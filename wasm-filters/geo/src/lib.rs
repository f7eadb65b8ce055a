//! Routes or answers by the country that a CDN names.
//!
//! The CDN's word counts only where the connection is the CDN's: whoever reaches the node another way is of no country. See
//! `README.md` for the configuration.

mod config;
mod country;

use beamline_sdk::{Filter, Request, Verdict, address, properties};

use crate::{
    config::{Action, Config},
    country::Country,
};

/// The filter.
struct Geo;

impl Filter for Geo {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let action = match country(config, request) {
            Some(country) => config.rules.iter().find(|rule| rule.holds(country)).map(|rule| &rule.action),
            None => config.unknown.as_ref(),
        };
        match action {
            Some(Action::Upstream(upstream)) => Verdict::route(upstream.as_str()).into(),
            Some(Action::Respond(answer)) => Verdict::respond(answer.status.get())
                .header("content-type", "text/plain; charset=utf-8")
                .header("cache-control", "no-store")
                .body(answer.body.as_str())
                .into(),
            None => Verdict::next(),
        }
    }
}

/// The country that a trusted peer named, once and clearly.
fn country(config: &Config, request: &Request) -> Option<Country> {
    let peer = address::parse(&properties::snapshot().client_address)?;
    if !config.trusted_peers.iter().any(|network| network.contains(peer)) {
        return None;
    }
    match &*request.header_all(&config.header) {
        [value] => Country::from_bytes(value.as_bytes()),
        // Two lines: a peer that adds its own and passes on the client's cannot be told from the client.
        _ => None,
    }
}

beamline_sdk::export!(Geo);

#[cfg(test)]
mod tests {
    use beamline_sdk::{Verdict, testing::Call};
    use serde_json::json;

    use super::*;

    #[test]
    fn cases_come_out_as_they_say() {
        beamline_sdk::testing::run_cases::<Geo>(include_str!("../cases.json"));
    }

    #[test]
    fn two_lines_name_no_country() {
        let config = json!({
            "header": "cf-ipcountry",
            "trusted_peers": ["0.0.0.0/0"],
            "rules": [{ "countries": ["DE"], "upstream": "eu" }],
        });
        let call = |lines: &[&str]| {
            lines
                .iter()
                .fold(Call::get("/").config(config.clone()), |call, line| call.header("cf-ipcountry", line))
        };
        assert_eq!(call(&["DE"]).run::<Geo>().verdict, Verdict::route("eu").into());
        assert_eq!(call(&["DE", "DE"]).run::<Geo>().verdict, Verdict::next());
        let nowhere = call(&["DE"]).properties(|known| known.client_address = "unix".into());
        assert_eq!(nowhere.run::<Geo>().verdict, Verdict::next());
    }

    proptest::proptest! {
        #[test]
        fn a_country_is_two_letters_or_digits_whatever_comes(value in proptest::collection::vec(0_u8.., 0..5)) {
            let plain = value.len() == 2 && value.iter().all(u8::is_ascii_alphanumeric);
            proptest::prop_assert_eq!(Country::from_bytes(&value).is_some(), plain);
        }
    }
}
