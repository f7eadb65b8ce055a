//! Splits clients over variants, and keeps each with its own by a cookie.
//!
//! The cookie has the variant's name. A client without one, or with one that names no variant, is dealt one by chance and
//! gets the cookie with its response. See `README.md` for the configuration.

mod config;
mod cookie;

use beamline_sdk::{
    Filter, HeaderError, Request, ResponseFilter, ResponseHead, ResponseVerdict, Verdict, context, log,
    random,
};

use crate::config::{Config, Variant};

/// The filter.
struct AbSplit;

impl Filter for AbSplit {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let known =
            request.cookie(&config.cookie.name).and_then(|name| config.variants.named(name.as_bytes()));
        let variant = known.unwrap_or_else(|| deal(config));
        // Removed first: a head that takes nothing more must not keep what the client says.
        if let Some(header) = &config.header
            && let Err(error) =
                request.remove_header(header).and_then(|()| request.set_header(header, &variant.name))
        {
            log::warn!("header {} could not be set: {error:?}", &**header);
        }
        match &variant.upstream {
            Some(upstream) => Verdict::route(upstream.as_str()).into(),
            None => Verdict::next(),
        }
    }
}

/// A variant by chance, which the response's phase is told of.
fn deal(config: &Config) -> &Variant {
    let variant = config.variants.at(random::below(config.variants.sum()));
    context::set(&variant.name).expect("a variant's name is short");
    variant
}

impl ResponseFilter for AbSplit {
    type Config = Config;

    fn on_response(config: &Config, _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        if let Err(error) = tell(config, response) {
            log::warn!("the cookie {} could not be set: {error:?}", &*config.cookie.name);
        }
        ResponseVerdict::next()
    }
}

fn tell(config: &Config, response: &mut ResponseHead) -> Result<(), HeaderError> {
    // Whoever keeps this response must not hand it to a client of another variant, with or without a cookie.
    response.vary("cookie")?;
    // What a client claims is no reason to repeat it: only what was dealt here is in the context.
    let dealt = context::get().and_then(|name| config.variants.named(&name));
    if let Some(variant) = dealt {
        response.append_header("set-cookie", config.cookie.with(&variant.name))?;
    }
    Ok(())
}

beamline_sdk::export!(AbSplit: request, response);

#[cfg(test)]
mod tests;
