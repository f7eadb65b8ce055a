//! Where keys come from: the configuration, and a set that is fetched and kept for a while.

use std::time::Duration;

use beamline_sdk::{
    buckets::{self, Rate, Taken},
    clock, kv, log, outbound,
};

use crate::{
    config::{Config, Jwks},
    jwk::{Jwk, JwkSet},
    refusal::Refusal,
    token::Token,
};

/// The keys that there are.
pub(crate) struct Keys<'a> {
    config: &'a Config,
    fetched: Vec<Jwk>,
    /// Whether the set was fetched in this call.
    is_new: bool,
}

/// At most one call of the node in so long fetches a set that is there already, whatever key ids tokens bring.
const BETWEEN_FETCHES: Rate = Rate { tokens: 1, period_ms: 10_000, burst: 1 };
/// For so long after a failure nobody tries where there is no set.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// What `kv` takes for a value, and the time before the set.
const MAX_SET: usize = (64 << 10) - 8;

impl<'a> Keys<'a> {
    /// The keys. A set that has grown old is fetched by one call, while others go on with the old one; a failure leaves it
    /// valid for as long as the configuration says.
    pub(crate) fn get(config: &'a Config) -> Result<Self, Refusal> {
        let Some(jwks) = &config.jwks else {
            return Ok(Self { config, fetched: Vec::new(), is_new: false });
        };
        let kept = kv::get(&key_of(jwks)).and_then(|value| {
            let (at, set) = value.split_first_chunk()?;
            Some((u64::from_le_bytes(*at), read(set)?))
        });
        let age = |at: u64| clock::now_ms().saturating_sub(at);
        let (fetched, is_new) = match kept {
            Some((at, set)) if age(at) < u64::from(jwks.cache_seconds) * 1000 => (set, false),
            Some((_, old)) => {
                may_fetch(jwks).then(|| fetch(jwks)).flatten().map_or((old, false), |set| (set, true))
            }
            None if kv::get(&failure_of(jwks)).is_some() => return Err(Refusal::NoKeys),
            None => match fetch(jwks) {
                Some(set) => (set, true),
                // Static keys are there all the same.
                None if !config.keys.is_empty() => (Vec::new(), true),
                None => return Err(Refusal::NoKeys),
            },
        };
        Ok(Self { config, fetched, is_new })
    }

    /// The keys that may have signed a token.
    pub(crate) fn of(&self, token: &Token) -> impl Iterator<Item = &Jwk> {
        self.config.keys.iter().chain(&self.fetched).filter(move |key| key.fits(token))
    }

    /// Fetches the set anew, because a token names a key that is not in it: the issuer may have made one.
    pub(crate) fn renew(&mut self) {
        let Some(jwks) = self.config.jwks.as_ref().filter(|jwks| !self.is_new && may_fetch(jwks)) else {
            return;
        };
        if let Some(set) = fetch(jwks) {
            self.fetched = set;
        }
    }
}

fn key_of(jwks: &Jwks) -> String {
    ["jwt-jwks ", &jwks.url].concat()
}

fn failure_of(jwks: &Jwks) -> String {
    ["jwt-failed ", &jwks.url].concat()
}

fn may_fetch(jwks: &Jwks) -> bool {
    matches!(buckets::take("jwt-fetch", &jwks.url, 1, BETWEEN_FETCHES), Ok(Taken::Allowed(_)))
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
    let kept = match &fetched {
        Ok((set, _)) => {
            let value = [&clock::now_ms().to_le_bytes(), &**set].concat();
            let ttl = u64::from(jwks.cache_seconds) + u64::from(jwks.stale_seconds);
            kv::set(&key_of(jwks), value, Some(Duration::from_secs(ttl)))
        }
        Err(problem) => {
            log::warn!("no keys from {}: {problem}", jwks.url);
            kv::set(&failure_of(jwks), [], Some(AFTER_FAILURE))
        }
    };
    if let Err(error) = kept {
        log::warn!(
            "what came from {} could not be kept: {error:?}: raise limits.kv_bytes or kv_entries",
            jwks.url
        );
    }
    fetched.ok().map(|(_, keys)| keys)
}
