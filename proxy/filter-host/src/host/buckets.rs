//! `buckets`: the tenant's token buckets.

use beamline_model::Limit;

use super::CallState;
use crate::{
    bindings::beamline::edge::buckets,
    shared::{BucketError, Rate, Taken},
};

impl buckets::Host for CallState {
    fn take(
        &mut self,
        bucket: String,
        key: String,
        tokens: u32,
        rate: buckets::Rate,
    ) -> wasmtime::Result<Result<buckets::Taken, buckets::BucketError>> {
        self.count_call()?;
        let (state, most) = (self.view.state(), self.view.limits().bucket_keys.into());
        let rate = Rate { tokens: rate.tokens, period_ms: rate.period_ms, burst: rate.burst };
        let taken = state.buckets().take((&bucket, &key), tokens, rate, state.now(), most);
        Ok(match taken {
            Ok(Taken::Allowed(left)) => Ok(buckets::Taken::Allowed(left)),
            Ok(Taken::RetryAfter(wait)) => {
                Ok(buckets::Taken::RetryAfterMs(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
            }
            Err(error) => Err(match error {
                BucketError::InvalidKey => {
                    self.crossed(Limit::BucketSize);
                    buckets::BucketError::InvalidKey
                }
                BucketError::InvalidRate => {
                    self.crossed(Limit::BucketSize);
                    buckets::BucketError::InvalidRate
                }
                BucketError::TooManyKeys(limit) => {
                    self.crossed(limit);
                    buckets::BucketError::TooManyKeys
                }
            }),
        })
    }
}
