//! `RateLimit` and `RateLimit-Policy`, as the IETF's HTTPAPI working group drafts them
//! (draft-ietf-httpapi-ratelimit-headers): structured fields, RFC 9651.

use crate::config::Limit;

/// How much of a limit is left after a request.
pub(crate) struct Standing<'a> {
    limit: &'a Limit,
    left: u32,
}

impl<'a> Standing<'a> {
    pub(crate) fn new(limit: &'a Limit, left: u32) -> Self {
        Self { limit, left }
    }

    /// Whether less of it is left, in proportion, than of another.
    pub(crate) fn is_tighter_than(&self, other: &Self) -> bool {
        let (own, others) = (self.limit.rate.burst, other.limit.rate.burst);
        u64::from(self.left) * u64::from(others) < u64::from(other.left) * u64::from(own)
    }

    /// `RateLimit`.
    pub(crate) fn field(&self) -> String {
        ["\"", &self.limit.name, "\";r=", &self.left.to_string()].concat()
    }
}

/// `RateLimit` where nothing is left for so many seconds.
pub(crate) fn exhausted(limit: &Limit, seconds: &str) -> String {
    ["\"", &limit.name, "\";r=0;t=", seconds].concat()
}

/// `RateLimit-Policy`: how many requests at once, and how long it takes until as many are there again.
pub(crate) fn policies(limits: &[Limit]) -> String {
    let policy = |limit: &Limit| {
        let rate = limit.rate;
        let window = u64::from(rate.burst) * u64::from(rate.period_ms);
        let seconds = window.div_ceil(u64::from(rate.tokens) * 1000);
        ["\"", &limit.name, "\";q=", &rate.burst.to_string(), ";w=", &seconds.to_string()].concat()
    };
    limits.iter().map(policy).collect::<Vec<_>>().join(", ")
}
