//! Limits rates by client address, by header or for the whole tenant.
//!
//! Each limit is a token bucket of the tenant on this node. See `README.md` for the configuration.

mod config;
mod fields;
mod key;

use beamline_sdk::{
    Filter, Request, ResponseFilter, ResponseHead, ResponseVerdict, Verdict,
    buckets::{self, Taken},
    context, log,
};

use crate::{
    config::{Config, Limit, OnTrouble},
    fields::Standing,
    key::Several,
};

/// The filter.
struct RateLimit;

impl Filter for RateLimit {
    type Config = Config;

    fn on_request(config: &Config, request: &mut Request) -> Verdict {
        let mut tightest: Option<Standing> = None;
        for limit in &config.limits {
            let key = match key::of(&limit.key, &config.address, request) {
                Ok(Some(key)) => key,
                // Who has not what the limit counts by is another limit's to count, or nobody's.
                Ok(None) => continue,
                Err(Several) => return refuse_several(limit),
            };
            match buckets::take(&limit.name, &key, 1, limit.rate) {
                Ok(Taken::Allowed(left)) => {
                    let standing = Standing::new(limit, left);
                    if tightest.as_ref().is_none_or(|known| standing.is_tighter_than(known)) {
                        tightest = Some(standing);
                    }
                }
                Ok(Taken::RetryAfterMs(wait)) => return refuse(config, limit, wait),
                Err(error) => {
                    log::warn!("limit {}: no token could be taken: {error:?}", limit.name);
                    if config.on_trouble == OnTrouble::Refuse {
                        return refuse(config, limit, 1000);
                    }
                }
            }
        }
        if config.tell
            && let Some(standing) = tightest
        {
            // The response's phase tells it as it stands here.
            context::set(standing.field()).expect("a name and a number are short");
        }
        Verdict::next()
    }
}

fn refuse_several(limit: &Limit) -> Verdict {
    log::info!("limit {}: expected one value of the field that it counts by, found several", limit.name);
    Verdict::refuse(400, "A field that requests are counted by stands there more than once.").into()
}

fn refuse(config: &Config, limit: &Limit, wait_ms: u64) -> Verdict {
    let seconds = wait_ms.div_ceil(1000).max(1).to_string();
    let mut answer = Verdict::refuse(429, "Too many requests. Please come back later.")
        .header("retry-after", seconds.as_str());
    if config.tell {
        answer = answer
            .header("ratelimit-policy", fields::policies(&config.limits))
            .header("ratelimit", fields::exhausted(limit, &seconds));
    }
    answer.into()
}

impl ResponseFilter for RateLimit {
    type Config = Config;

    fn on_response(config: &Config, _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
        let Some(standing) = context::get() else {
            return ResponseVerdict::next();
        };
        let told = response
            .set_header("ratelimit-policy", fields::policies(&config.limits))
            .and_then(|()| response.set_header("ratelimit", standing));
        if let Err(error) = told {
            log::warn!("what is left could not be told: {error:?}");
        }
        ResponseVerdict::next()
    }
}

beamline_sdk::export!(RateLimit: request, response);

#[cfg(test)]
mod tests;
