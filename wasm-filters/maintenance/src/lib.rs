//! Answers in place of upstreams that are down for maintenance.
//!
//! Every request gets the same answer, but for paths and callers that are excepted. See `README.md` for the
//! configuration.

mod config;

use beamline_sdk::{Filter, Request, Verdict};

use crate::config::{Bypass, Config};

/// The filter.
struct Maintenance;

impl Filter for Maintenance {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        if !config.enabled || is_excepted(config, request) {
            return Verdict::next();
        }
        Verdict::respond(config.status.get())
            .header("content-type", &*config.content_type)
            .header("cache-control", "no-store")
            .header("retry-after", config.retry_after_seconds.to_string())
            .body(config.body.as_str())
            .into()
    }
}

beamline_sdk::export!(Maintenance);

fn is_excepted(config: &Config, request: &mut Request) -> bool {
    let by_header = config.bypass.as_ref().is_some_and(|bypass| may_bypass(bypass, request));
    by_header || {
        let path = if config.except_prefixes.is_empty() { String::new() } else { request.path() };
        config.except_prefixes.iter().any(|prefix| prefix.holds(&path))
    }
}

/// Whether the caller knows the word. It is taken off the request: what stands behind need not know it.
fn may_bypass(bypass: &Bypass, request: &mut Request) -> bool {
    let known =
        request.header(&bypass.header).is_some_and(|value| same(value.as_bytes(), bypass.value.as_bytes()));
    if known {
        request.remove_header(&bypass.header).expect("filters may change the field");
    }
    known
}

/// Equality in a time that does not tell how much of a guess was right.
fn same(found: &[u8], secret: &[u8]) -> bool {
    found.len() == secret.len() && found.iter().zip(secret).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn cases_come_out_as_they_say() {
        beamline_sdk::testing::run_cases::<super::Maintenance>(include_str!("../cases.json"));
    }
}
