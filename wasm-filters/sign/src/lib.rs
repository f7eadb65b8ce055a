//! Signs requests, so that an origin knows that they came by way of this proxy, and unchanged.
//!
//! HTTP Message Signatures (RFC 9421) with HMAC-SHA256 (its section 3.3.3), and digests of bodies (RFC 9530). See `README.md`
//! for the configuration and for what of both there is here.

mod base;
mod config;
mod date;
mod digest;

use beamline_sdk::{
    Body, Filter, HeaderError, Request, Verdict, WholeRequestFilter, clock, log, random, secrets,
};

use crate::{base::Base, config::Config};

/// The filter.
struct Sign;

impl Filter for Sign {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        if config.digest { Verdict::read_body() } else { sign(config, request, None) }
    }
}

impl WholeRequestFilter for Sign {
    type Config = Config;

    fn on_whole_request(config: &Config, request: &mut Request, body: &mut Body) -> Verdict {
        sign(config, request, Some(body.bytes()))
    }
}

/// Why a request is not sent on.
enum Trouble {
    /// The secret is not there, or too short to be one.
    NoKey,
    /// A field that is to be signed cannot be.
    Field(String),
    Head(HeaderError),
}

/// The least bytes of a key.
const MIN_KEY: usize = 16;

fn sign(config: &Config, request: &mut Request, body: Option<&[u8]>) -> Verdict {
    match add(config, request, body) {
        Ok(()) => match &config.upstream {
            Some(upstream) => Verdict::route(upstream.as_str()).into(),
            None => Verdict::next(),
        },
        Err(Trouble::NoKey) => {
            log::error!(
                "secret {}: expected at least {MIN_KEY} bytes: set it, and list it in the filter's secrets",
                config.secret
            );
            Verdict::refuse(503, "This request cannot be signed at the moment.").into()
        }
        Err(Trouble::Field(name)) => {
            log::info!("field {name}: expected visible ASCII, for it is to be signed");
            Verdict::refuse(400, "A field that is to be signed has characters that cannot be.").into()
        }
        Err(Trouble::Head(error)) => {
            log::warn!("the signature could not be put into the head: {error:?}");
            Verdict::refuse(503, "This request cannot be signed.").into()
        }
    }
}

fn add(config: &Config, request: &mut Request, body: Option<&[u8]>) -> Result<(), Trouble> {
    let key = secrets::get(&config.secret).filter(|key| key.len() >= MIN_KEY).ok_or(Trouble::NoKey)?;
    let created = clock::now_ms() / 1000;
    // What a client sends under these names is nobody's signature, whatever its label, and nobody's digest: by one that is not
    // signed, the body would seem to be.
    request.remove_header("content-digest").map_err(Trouble::Head)?;
    let mut set = |name: &str, value: &str| request.set_header(name, value).map_err(Trouble::Head);
    if let Some(body) = body {
        set("content-digest", &digest::sha256(body))?;
    }
    if config.date {
        set("date", &date::imf_fixdate(created))?;
    }
    let nonce = config.nonce.then(random::u64);
    let base = Base::of(config, request, body.is_some(), created, nonce)?;
    let signature = base.signed_by(&key);
    let mut set = |name: &str, value: &str| request.set_header(name, value).map_err(Trouble::Head);
    set("signature-input", &[&config.label, "=", &base.parameters].concat())?;
    set("signature", &[&config.label, "=:", &signature, ":"].concat())
}

beamline_sdk::export!(Sign: request, whole_request);

#[cfg(test)]
mod tests;
