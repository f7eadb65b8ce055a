//! Lets requests pass that carry a valid JSON Web Token.
//!
//! JSON Web Signature (RFC 7515) in its compact form with RS256, ES256 (RFC 7518) or EdDSA over Ed25519 (RFC 8037); keys as
//! JSON Web Keys (RFC 7517), in the configuration or fetched; claims by RFC 7519; and of RFC 8725 what is for a verifier to
//! do. See `README.md` for the configuration.

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

/// Of every field that is removed: it is none of the host's, nor one that passes for one of them.
const CHANGEABLE: &str = "filters may change the field";

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
    remove_forwarded(config, request);
    let found = token::find(request, config.cookie.as_ref())?;
    if config.strip {
        request.remove_header("authorization").expect(CHANGEABLE);
    }
    let Some(text) = found else {
        return if config.optional { Ok(()) } else { Err(Refusal::NoToken) };
    };
    let claims = verified(config, &text)?;
    for forward in &config.forward {
        if let Some(value) = claims.field(&forward.claim)? {
            request.set_header(&forward.header, value).map_err(|_| Refusal::Field)?;
        }
    }
    Ok(())
}

/// Takes the fields that claims are handed on in off a request, and those that pass for them: CGI and what follows it
/// (`HTTP_X_USER`) has one name for `X-User` and `X_User`.
fn remove_forwarded(config: &Config, request: &mut Request) {
    if config.forward.is_empty() {
        return;
    }
    let folded = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let forwarded: Vec<_> = config.forward.iter().map(|forward| folded(&forward.header)).collect();
    for field in request.snapshot().fields {
        if forwarded.contains(&folded(&field.name)) {
            request.remove_header(&field.name).expect(CHANGEABLE);
        }
    }
}

/// The claims of a token that one of the keys has signed, for us and now. Nothing of them is looked at before.
fn verified(config: &Config, text: &str) -> Result<Claims, Refusal> {
    let token = Token::parse(text)?;
    if !config.algorithms.contains(&token.algorithm) {
        return Err(Refusal::Algorithm);
    }
    if !config.types.is_empty() && !token.kind.as_ref().is_some_and(|kind| config.types.contains(kind)) {
        return Err(Refusal::Type);
    }
    let mut keys = Keys::get(config);
    if !keys.of(&token).next().is_some_and(|key| key.is_named_by(&token)) {
        keys.renew();
    }
    // Each try costs CPU time, which a token without a key id must not be able to multiply.
    let mut fitting = keys.of(&token).take(4).peekable();
    if fitting.peek().is_none() {
        return Err(if keys.are_incomplete() { Refusal::NoKeys } else { Refusal::UnknownKey });
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
