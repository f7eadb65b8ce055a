//! The host's functions: the real ones in a module, the ones of [`testing`](crate::testing) elsewhere.

#[cfg(target_family = "wasm")]
mod imported {
    use crate::raw::beamline::edge;
    pub(crate) use edge::http::{RequestHead as Head, ResponseHead};
    pub(crate) use edge::{
        config::get as config, context::get as context, log::write as log, random::get_u64 as random,
        upstreams::get as upstream,
    };

    pub(crate) fn set_context(value: &[u8]) -> Result<(), crate::context::TooLarge> {
        edge::context::set(value).map_err(|_| crate::context::TooLarge)
    }
}

#[cfg(target_family = "wasm")]
pub(crate) use imported::*;

#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::host::*;
