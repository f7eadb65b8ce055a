//! Answers preflights and tells browsers what other origins may do (Fetch, section 3.2).
//!
//! What the upstream says of it by itself is taken away: one place decides. See `README.md` for the configuration.

mod config;
mod origin;

use std::ops::Deref;

use beamline_sdk::{
    Filter, HeaderError, HeaderValue, Request, ResponseFilter, ResponseHead, ResponseVerdict, Verdict, log,
};

use crate::config::Config;

/// The filter.
struct Cors;

/// The fields of an answer that this filter alone sets.
const OWN: [&str; 7] = [
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-max-age",
    "access-control-expose-headers",
    "access-control-allow-private-network",
];

impl Filter for Cors {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let [origin, method] = request.headers(["origin", "access-control-request-method"]);
        let (Some(origin), Some(method)) = (origin, method) else {
            return Verdict::next();
        };
        if request.method() != "OPTIONS" {
            return Verdict::next();
        }
        let mut answer = Verdict::respond(204)
            .header("vary", "origin, access-control-request-method, access-control-request-headers");
        // A browser takes an answer without these fields for a no. What it would be about is not told.
        if let Some(allowed) = config.allowed_origin(Some(origin.as_bytes()))
            && config.methods.iter().any(|known| method == **known)
        {
            answer = answer
                .header("access-control-allow-origin", allowed)
                .header("access-control-allow-methods", list(&config.methods))
                .header("access-control-max-age", config.max_age_seconds.to_string());
            if !config.headers.is_empty() {
                answer = answer.header("access-control-allow-headers", list(&config.headers));
            }
            if config.credentials {
                answer = answer.header("access-control-allow-credentials", "true");
            }
        }
        answer.into()
    }
}

impl ResponseFilter for Cors {
    type Config = Config;

    fn on_response(config: &Config, request: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        let origin = request.header("origin");
        if let Err(error) = tell(config, origin, response) {
            log::warn!("what other origins may do could not be told: {error:?}");
        }
        ResponseVerdict::next()
    }
}

fn tell(
    config: &Config,
    origin: Option<HeaderValue>,
    response: &mut ResponseHead,
) -> Result<(), HeaderError> {
    for name in OWN {
        response.remove_header(name)?;
    }
    // Also where no origin was named: who keeps that response must not hand it to one.
    if config.varies() {
        response.vary("origin")?;
    }
    let Some(allowed) = config.allowed_origin(origin.as_ref().map(HeaderValue::as_bytes)) else {
        return Ok(());
    };
    response.set_header("access-control-allow-origin", allowed)?;
    if config.credentials {
        response.set_header("access-control-allow-credentials", "true")?;
    }
    if !config.expose.is_empty() {
        response.set_header("access-control-expose-headers", list(&config.expose))?;
    }
    Ok(())
}

/// Names as a field lists them.
fn list<N: Deref<Target = str>>(names: &[N]) -> String {
    names.iter().map(|name| &**name).collect::<Vec<_>>().join(", ")
}

beamline_sdk::export!(Cors: request, response);

#[cfg(test)]
mod tests;
