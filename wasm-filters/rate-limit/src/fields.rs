//! `RateLimit` and `RateLimit-Policy`, as the IETF's HTTPAPI working group drafts them
//! (draft-ietf-httpapi-ratelimit-headers): structured fields, RFC 9651.

use crate::config::Limit;

/// How much of a limit is left after a request.
pub(crate) struct Standing {
    /// The limit's name, a quoted string without anything to escape.
    name: String,
    left: u32,
    burst: u32,
}

impl Standing {
    pub(crate) fn new(limit: &Limit, left: u32) -> Self {
        Self { name: limit.name.clone(), left, burst: limit.rate.burst }
    }

    /// Whether less of it is left, in proportion, than of another.
    pub(crate) fn is_tighter_than(&self, other: &Self) -> bool {
        u64::from(self.left) * u64::from(other.burst) < u64::from(other.left) * u64::from(self.burst)
    }

    /// What the response's phase needs to know.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [&self.left.to_le_bytes(), self.name.as_bytes()].concat()
    }

    /// What [`to_bytes`](Self::to_bytes) wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (left, name) = bytes.split_first_chunk()?;
        let name = String::from_utf8(name.to_vec()).ok()?;
        Some(Self { name, left: u32::from_le_bytes(*left), burst: 1 })
    }

    pub(crate) fn field(&self) -> String {
        ["\"", &self.name, "\";r=", &self.left.to_string()].concat()
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
