//! Routes by a field of a JSON body.
//!
//! The body is read whole; of it one value is looked for, by a JSON Pointer (RFC 6901). See `README.md` for the
//! configuration.

mod config;
mod find;
mod media;
mod pointer;
mod scalar;

use beamline_sdk::{Body, Filter, Request, Verdict, WholeRequestFilter};

use crate::config::{Config, OnInvalid};

/// The filter.
struct JsonRouter;

impl Filter for JsonRouter {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        if !request.header_all("content-type").iter().any(|value| media::is_json(value.as_bytes())) {
            return Verdict::next();
        }
        let encodings = request.header_all("content-encoding");
        if encodings.iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Verdict::read_body();
        }
        trouble(config, 415, "expected a body without content-encoding: it decides where the request goes")
    }
}

impl WholeRequestFilter for JsonRouter {
    type Config = Config;

    fn on_whole_request(config: &Config, _: &mut Request, body: &mut Body) -> Verdict {
        match find::find(body.bytes(), &config.pointer) {
            Ok(found) => match config.rules.iter().find(|rule| rule.matches(&found)) {
                Some(rule) => Verdict::route(rule.upstream.as_str()).into(),
                None => Verdict::next(),
            },
            Err(find::NotJson) => {
                trouble(config, 400, "expected one JSON text in which no member that decides stands twice")
            }
        }
    }
}

fn trouble(config: &Config, status: u16, problem: &str) -> Verdict {
    match config.on_invalid {
        OnInvalid::Next => Verdict::next(),
        OnInvalid::Refuse => Verdict::refuse(status, problem).into(),
    }
}

beamline_sdk::export!(JsonRouter: request, whole_request);

#[cfg(test)]
mod tests;
