//! Token buckets of the tenant, shared by all its filters and all workers of the node.
//!
//! ```
//! # use beamline_sdk::{buckets::{self, Rate, Taken}, Request, Verdict};
//! # fn on_request(api_key: &str) -> Verdict {
//! // Ten requests a second for each key, up to fifty at once.
//! match buckets::take("api", api_key, 1, Rate::per_second(10).burst(50)) {
//!     Ok(Taken::RetryAfterMs(wait)) => {
//!         Verdict::respond(429).header("retry-after", wait.div_ceil(1000).to_string()).into()
//!     }
//!     // More keys than `limits.bucket_keys`: the filter decides, here in favour of the client.
//!     Ok(Taken::Allowed(_)) | Err(_) => Verdict::next(),
//! }
//! # }
//! ```

pub use crate::raw::beamline::edge::buckets::{BucketError, Rate, Taken};

impl Rate {
    /// So many tokens a second, evenly, and as many at once.
    pub const fn per_second(tokens: u32) -> Self {
        Self { tokens, period_ms: 1000, burst: tokens }
    }

    /// So many tokens a minute, evenly, and as many at once.
    pub const fn per_minute(tokens: u32) -> Self {
        Self { tokens, period_ms: 60_000, burst: tokens }
    }

    /// What a bucket holds at most: how many can be taken at once. At most 100,000, and so many that an empty bucket is full
    /// within a day.
    pub const fn burst(self, burst: u32) -> Self {
        Self { burst, ..self }
    }
}

/// Takes tokens from the bucket of a key, all or none. A new bucket is full.
///
/// # Errors
/// [`BucketError::InvalidKey`] where bucket and key have more than 256 bytes together; [`BucketError::InvalidRate`] where a
/// part of the rate is beyond its bounds or `tokens` are more than the burst; [`BucketError::TooManyKeys`] where the tenant has
/// as many buckets that are not full as `limits.bucket_keys` allows, or the node has no memory for more.
pub fn take(bucket: &str, key: &str, tokens: u32, rate: Rate) -> Result<Taken, BucketError> {
    crate::host::take(bucket, key, tokens, rate)
}
