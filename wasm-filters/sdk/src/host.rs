//! The host's functions: the real ones in a module, the ones of [`testing`](crate::testing) elsewhere.

#[cfg(target_family = "wasm")]
mod imported {
    use crate::raw::beamline::edge;
    pub(crate) use edge::http::RequestHead as Head;
    pub(crate) use edge::{
        buckets::take,
        clock::{elapsed_ns, now_ms},
        config::get as config,
        kv::{
            compare_and_set as kv_compare_and_set, delete as kv_delete, get as kv_get,
            increment as kv_increment, set as kv_set,
        },
        log::write as log,
        properties::snapshot as properties,
        random::get_u64 as random,
        upstreams::get as upstream,
    };
}

#[cfg(target_family = "wasm")]
pub(crate) use imported::*;

#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::host::*;
