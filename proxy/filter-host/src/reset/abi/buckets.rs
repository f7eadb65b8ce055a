//! `buckets`: the tenant's token buckets.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, Lift, parts};
use crate::{
    bindings::beamline::edge::buckets::{BucketError, Host as _, Rate, Taken},
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/buckets@0.1.0";
const TAKE: &str = "take";
/// Of `result<taken, bucket-error>`: what is in it stands at 8, and what is in `taken` 8 bytes further on.
const TAKEN: (usize, u32) = (24, 8);

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function {
        interface: NAME,
        name: TAKE,
        // Bucket, key, tokens, the rate's three numbers, and where the result goes.
        params: &[I32; 9],
        results: &[],
        allocates: false,
    }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        TAKE,
        |mut caller: Caller<'_, Guest>,
         bucket: u32,
         bucket_len: u32,
         key: u32,
         key_len: u32,
         wanted: u32,
         tokens: u32,
         period_ms: u32,
         burst: u32,
         ret: u32|
         -> Result<()> {
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let mut lift = Lift::new(memory);
            let bucket = lift.string(bucket, bucket_len)?.to_owned();
            let key = lift.string(key, key_len)?.to_owned();
            let result = call.take(bucket, key, wanted, Rate { tokens, period_ms, burst })?;
            let at = guest.lowering.begin(memory, ret, TAKEN)?;
            let l = &mut guest.lowering;
            l.byte(at, result.is_err().into());
            match result {
                Ok(Taken::Allowed(left)) => {
                    l.byte(at.at(8), 0);
                    l.quad(at.at(16), left);
                }
                Ok(Taken::RetryAfterMs(wait)) => {
                    l.byte(at.at(8), 1);
                    l.word(at.at(16), wait);
                }
                Err(error) => l.byte(
                    at.at(8),
                    match error {
                        BucketError::InvalidKey => 0,
                        BucketError::InvalidRate => 1,
                        BucketError::TooManyKeys => 2,
                    },
                ),
            }
            guest.lower(memory)?;
            Ok(())
        },
    )?;
    Ok(())
}
