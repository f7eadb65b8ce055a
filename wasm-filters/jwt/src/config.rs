//! Whose tokens count, and by which keys.

use beamline_sdk::{CookieName, field::SentField};
use serde::Deserialize;

use crate::{
    jwk::{Algorithm, Jwk},
    token,
};

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Config {
    pub(crate) issuer: String,
    /// One of them must be the token's; any is, where there are none.
    pub(crate) audiences: Vec<String>,
    pub(crate) algorithms: Vec<Algorithm>,
    /// One of them must be the token's, as [`token::kind`] writes it; any is, where there are none.
    pub(crate) types: Vec<String>,
    pub(crate) keys: Vec<Jwk>,
    pub(crate) jwks: Option<Jwks>,
    pub(crate) leeway_seconds: u32,
    pub(crate) require_expiry: bool,
    /// Where a token is looked for beside `Authorization`.
    pub(crate) cookie: Option<CookieName>,
    /// Whether requests without a token pass.
    pub(crate) optional: bool,
    pub(crate) forward: Vec<Forward>,
    /// Whether `Authorization` is taken off.
    pub(crate) strip: bool,
}

/// A claim that the upstream gets in a field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Forward {
    pub(crate) claim: String,
    pub(crate) header: SentField,
}

/// A set of keys that is fetched.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Jwks {
    pub(crate) url: String,
    /// After so long it is fetched anew.
    #[serde(default = "five_minutes")]
    pub(crate) cache_seconds: u32,
    /// So long it counts where it cannot be.
    #[serde(default = "a_day")]
    pub(crate) stale_seconds: u32,
    #[serde(default = "a_second")]
    pub(crate) timeout_ms: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    issuer: String,
    audiences: Vec<String>,
    #[serde(default = "all")]
    algorithms: Vec<Algorithm>,
    #[serde(default)]
    types: Vec<String>,
    #[serde(default)]
    keys: Vec<Jwk>,
    jwks: Option<Jwks>,
    #[serde(default = "a_minute")]
    leeway_seconds: u32,
    #[serde(default = "yes")]
    require_expiry: bool,
    cookie: Option<CookieName>,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    forward: Vec<Forward>,
    #[serde(default)]
    strip: bool,
}

fn all() -> Vec<Algorithm> {
    vec![Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]
}

fn yes() -> bool {
    true
}

fn a_minute() -> u32 {
    60
}

fn five_minutes() -> u32 {
    300
}

fn a_day() -> u32 {
    86_400
}

fn a_second() -> u32 {
    1000
}

/// A URL is part of a key of `kv`, which has at most 256 bytes.
const MAX_URL: usize = 200;
const MAX_LEEWAY: u32 = 600;
/// A set is fetched no more often.
const MIN_CACHE: u32 = 10;

impl TryFrom<Written> for Config {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        if written.keys.is_empty() && written.jwks.is_none() {
            return Err("expected keys or jwks, found neither: no token would pass");
        }
        if written
            .jwks
            .as_ref()
            .is_some_and(|jwks| !jwks.url.starts_with("http://") || jwks.url.len() > MAX_URL)
        {
            return Err("jwks.url: expected http://… with at most 200 bytes");
        }
        if written.jwks.as_ref().is_some_and(|jwks| jwks.cache_seconds < MIN_CACHE) {
            return Err("jwks.cache_seconds: expected at least 10");
        }
        if written.jwks.as_ref().is_some_and(|jwks| jwks.timeout_ms == 0) {
            return Err("jwks.timeout_ms: expected at least 1");
        }
        if written.issuer.is_empty() {
            return Err("issuer: expected the token's iss, found nothing");
        }
        if written.leeway_seconds > MAX_LEEWAY {
            return Err("leeway_seconds: expected at most 600");
        }
        Ok(Self {
            issuer: written.issuer,
            audiences: written.audiences,
            algorithms: written.algorithms,
            types: written.types.iter().map(|text| token::kind(text)).collect(),
            keys: written.keys,
            jwks: written.jwks,
            leeway_seconds: written.leeway_seconds,
            require_expiry: written.require_expiry,
            cookie: written.cookie,
            optional: written.optional,
            forward: written.forward,
            strip: written.strip,
        })
    }
}
