//! The reset tier: a fresh sandbox for each request by putting a kept one back to its first state.
//!
//! A plain core module keeps all its state in one memory and its globals. Where a module qualifies ([`qualify`]), it
//! is rewritten when it is compiled ([`rewrite`]) so that each store leaves a mark. Each thread keeps one instance of
//! each module that it runs ([`shelf`]). After a request, what was marked is copied back from a snapshot of the
//! module's first state ([`kept`]); the next request finds what a fresh instance would have. Whatever goes wrong
//! ends the instance, and the next request gets one that is new.
//!
//! That is so for the request phase. A module's other phases run in the component tier, whatever their request phase
//! does: each call has a sandbox of its own, so that a module has nothing that both would share.
//!
//! The host drives the core module itself, without a component around it, and does the canonical ABI's work
//! ([`abi`]). Both tiers call the same host functions, and a module cannot tell which of them it runs in:
//! `docs/isolation.md` has the argument, the tests beside this module try to break it.

mod abi;
mod call;
mod guest;
mod image;
mod kept;
mod memory;
mod qualify;
mod rewrite;
mod shelf;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use call::on_request;
#[cfg(test)]
pub(crate) use image::MAX_IMAGES;
pub(crate) use kept::{Core, CoreEngine, Hold};
pub(crate) use memory::creator;
pub(crate) use qualify::{Unqualified, qualify};
pub(crate) use rewrite::{REWRITE_VERSION, rewrite};
#[cfg(test)]
pub(crate) use shelf::{IDLE_SWEEPS, MAX_BYTES, MAX_INSTANCES, MAX_NODE_BYTES, MAX_NODE_INSTANCES};
pub(crate) use shelf::{Item, Node, Place, Shelf, Shelves, keep_nothing_on_this_thread, sweep, use_own};
