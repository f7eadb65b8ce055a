//! Lets requests pass that carry a valid JSON Web Token.
//!
//! JSON Web Signature (RFC 7515) in its compact form with RS256, ES256 (RFC 7518) or EdDSA over Ed25519 (RFC 8037); keys as
//! JSON Web Keys (RFC 7517), in the configuration or fetched; claims by RFC 7519; and what RFC 8725 says of it all. See
//! `README.md` for the configuration.

mod claims;
mod config;
mod jwk;
mod keys;
mod refusal;
mod token;

use beamline_sdk::{Filter, Request, Verdict, clock, log};

use crate::{claims::Claims, config::Config, keys::Keys, refusal::Refusal, token::Token};

/// The filter.
struct Jwt;

impl Filter for Jwt {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        match check(config, request) {
            Ok(()) => Verdict::next(),
            Err(refusal) => {
                log::info!("{refusal}");
                refusal.into_verdict()
            }
        }
    }
}

fn check(config: &Config, request: &mut Request) -> Result<(), Refusal> {
    // Before all else: what a client claims of itself in these fields is nobody's claim.
    for forward in &config.forward {
        request.remove_header(&forward.header).map_err(|_| Refusal::Field)?;
    }
    let Some(text) = token::find(request, config.cookie.as_deref())? else {
        return if config.optional { Ok(()) } else { Err(Refusal::NoToken) };
    };
    let claims = verified(config, &text)?;
    for forward in &config.forward {
        if let Some(value) = claims.field(&forward.claim) {
            request.set_header(&forward.header, value).map_err(|_| Refusal::Field)?;
        }
    }
    if config.strip {
        request.remove_header("authorization").map_err(|_| Refusal::Field)?;
    }
    Ok(())
}

/// The claims of a token that one of the keys has signed, for us and now. Nothing of them is looked at before.
fn verified(config: &Config, text: &str) -> Result<Claims, Refusal> {
    let token = Token::parse(text)?;
    if !config.algorithms.contains(&token.algorithm) {
        return Err(Refusal::Algorithm);
    }
    let mut keys = Keys::get(config)?;
    if keys.of(&token).next().is_none() {
        keys.renew();
    }
    // Each try costs CPU time, which a token without a key id must not be able to multiply.
    let mut fitting = keys.of(&token).take(4).peekable();
    if fitting.peek().is_none() {
        return Err(Refusal::UnknownKey);
    }
    if !fitting.any(|key| key.has_signed(&token)) {
        return Err(Refusal::Signature);
    }
    let claims = Claims::read(&token.payload).ok_or(Refusal::Malformed)?;
    claims.check(config, clock::now_ms() / 1000)?;
    Ok(claims)
}

beamline_sdk::export!(Jwt);

#[cfg(test)]
mod tests;
