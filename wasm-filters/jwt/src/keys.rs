//! Where keys come from: the configuration, and a set that is fetched and kept for a while.

use std::time::Duration;

use beamline_sdk::{clock, kv, log, outbound};

use crate::{
    config::{Config, Jwks},
    jwk::{Jwk, JwkSet},
    token::Token,
};

/// The keys that there are.
pub(crate) struct Keys<'a> {
    config: &'a Config,
    /// None where there should be a set, and it is not to be had.
    fetched: Option<Vec<Jwk>>,
    /// Whether this call has fetched the set, or found that another does.
    tried: bool,
}

/// At most one call of the node in so long fetches a set that is there already, whatever key ids tokens bring.
const BETWEEN_FETCHES: Duration = Duration::from_secs(10);
/// The same where there is no set.
const BETWEEN_TRIES: Duration = Duration::from_secs(2);
/// What `kv` takes for a value, and the time before the set.
const MAX_SET: usize = (64 << 10) - 8;

impl<'a> Keys<'a> {
    /// The keys. A set that is not there, or has grown old, is fetched by one call; others go on with what there is. A
    /// failure leaves an old set valid for as long as the configuration says.
    pub(crate) fn get(config: &'a Config) -> Self {
        let Some(jwks) = &config.jwks else {
            return Self { config, fetched: Some(Vec::new()), tried: false };
        };
        let kept = kv::get(&key_of(jwks)).and_then(|value| {
            let (at, set) = value.split_first_chunk()?;
            Some((u64::from_le_bytes(*at), read(set)?))
        });
        let (old, between) = match kept {
            Some((at, set)) if clock::now_ms().saturating_sub(at) < u64::from(jwks.cache_seconds) * 1000 => {
                return Self { config, fetched: Some(set), tried: false };
            }
            Some((_, old)) => (Some(old), BETWEEN_FETCHES),
            None => (None, BETWEEN_TRIES),
        };
        let fetched = may_fetch(jwks, between).then(|| fetch(jwks)).flatten().or(old);
        Self { config, fetched, tried: true }
    }

    /// The keys that may have signed a token: first those that it names, then those that have no name.
    pub(crate) fn of(&self, token: &Token) -> impl Iterator<Item = &Jwk> {
        let all = || self.config.keys.iter().chain(self.fetched.iter().flatten());
        all()
            .filter(move |key| key.is_named_by(token))
            .chain(all().filter(move |key| key.fits(token) && !key.is_named_by(token)))
    }

    /// Whether a set is missing in which there may be other keys.
    pub(crate) fn are_incomplete(&self) -> bool {
        self.fetched.is_none()
    }

    /// Fetches the set anew, because a token names a key that is not in it: the issuer may have made one.
    pub(crate) fn renew(&mut self) {
        let jwks = self.config.jwks.as_ref().filter(|jwks| !self.tried && may_fetch(jwks, BETWEEN_FETCHES));
        if let Some(set) = jwks.and_then(fetch) {
            self.fetched = Some(set);
        }
    }
}

fn key_of(jwks: &Jwks) -> String {
    ["jwt-jwks ", &jwks.url].concat()
}

fn lease_of(jwks: &Jwks) -> String {
    ["jwt-fetch ", &jwks.url].concat()
}

/// How long a set is kept.
fn kept_for(jwks: &Jwks) -> Duration {
    Duration::from_secs(u64::from(jwks.cache_seconds) + u64::from(jwks.stale_seconds))
}

/// Whether this call is the one to fetch the set: none on this node has begun to in this time. No tokens, however many, and
/// no issuer, however slow, make more fetches of it.
///
/// The lease stays where it is once it is over, so that it can be taken again in a store that is full.
fn may_fetch(jwks: &Jwks, between: Duration) -> bool {
    let now = clock::now_ms();
    let lease = kv::get(&lease_of(jwks));
    let taken = lease.as_deref().and_then(|at| at.try_into().ok()).map(u64::from_le_bytes);
    // One that lies ahead is of a clock that was set back since.
    if taken.and_then(|at| now.checked_sub(at)).is_some_and(|ago| u128::from(ago) < between.as_millis()) {
        return false;
    }
    let ttl = kept_for(jwks).max(BETWEEN_FETCHES);
    let leased = kv::compare_and_set(&lease_of(jwks), lease.as_deref(), now.to_le_bytes(), Some(ttl));
    leased.unwrap_or_else(|error| {
        not_kept(jwks, error);
        false
    })
}

fn not_kept(jwks: &Jwks, error: kv::KvError) {
    log::warn!("keys from {} could not be kept: {error:?}: raise limits.kv_bytes or kv_entries", jwks.url);
}

fn read(set: &[u8]) -> Option<Vec<Jwk>> {
    serde_json::from_slice::<JwkSet>(set).ok().map(|set| set.keys)
}

/// Fetches the set and keeps it. Why that failed is in the log.
fn fetch(jwks: &Jwks) -> Option<Vec<Jwk>> {
    let answer = outbound::get(jwks.url.as_str())
        .header("accept", "application/jwk-set+json, application/json")
        .timeout_ms(jwks.timeout_ms)
        .send();
    let fetched = match answer {
        Ok(answer) if answer.status == 200 && answer.body.len() <= MAX_SET => match read(&answer.body) {
            Some(keys) => Ok((answer.body, keys)),
            None => Err("expected a set of keys (RFC 7517), found something else".to_owned()),
        },
        Ok(answer) => Err(format!(
            "status {}, {} bytes: expected 200 and at most {MAX_SET}",
            answer.status,
            answer.body.len()
        )),
        Err(error) => Err(format!("{error:?}")),
    };
    match fetched {
        Ok((set, keys)) => {
            let value = [&clock::now_ms().to_le_bytes(), &*set].concat();
            if let Err(error) = kv::set(&key_of(jwks), value, Some(kept_for(jwks))) {
                not_kept(jwks, error);
            }
            Some(keys)
        }
        Err(problem) => {
            log::warn!("no keys from {}: {problem}", jwks.url);
            None
        }
    }
}
