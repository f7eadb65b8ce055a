//! A BeamLine filter in about ten lines.
//!
//! A filter is a WebAssembly module that decides what happens to a request. BeamLine runs it in a fresh sandbox for
//! every request, unless a manifest says `reuse` or `pin_instance`: nothing a filter keeps in memory is there for the
//! next one, and nothing it does reaches another tenant. This crate holds what a filter says ([`Verdict`]), what it sees ([`Request`]) and what it may ask its
//! host ([`log`], [`random`], [`clock`], [`properties`], [`upstream`], [`kv`], [`buckets`],
//! [`metrics`], [`secrets`], [`outbound`]).
//!
//! A filter can also see and change the response, either body, whole or as it streams, and hear of the end: these are
//! further phases, each with a trait of its own, which [`export!`] lists.
//!
//! ```
//! use beamline_sdk::{Filter, Request, Verdict};
//!
//! struct Plans;
//!
//! impl Filter for Plans {
//!     type Config = ();
//!
//!     fn on_request(_: &(), request: &mut Request) -> Verdict {
//!         match request.header("x-plan") {
//!             Some(plan) if plan == "pro" => Verdict::route("pro").into(),
//!             _ => Verdict::next(),
//!         }
//!     }
//! }
//!
//! beamline_sdk::export!(Plans);
//! ```
//!
//! Built for `wasm32-unknown-unknown` as a `cdylib`, that is a module which `beamline push` takes as it is.
//! Built for the machine at hand, the same code runs in `cargo test`: see [`testing`].

pub mod address;
mod body;
pub mod buckets;
pub mod clock;
mod config;
pub mod context;
mod cookies;
pub mod field;
mod finish;
pub mod hash;
#[cfg(all(target_family = "wasm", feature = "heap"))]
mod heap;
mod host;
pub mod kv;
pub mod log;
pub mod media;
mod method;
pub mod metrics;
pub mod outbound;
pub mod path;
mod phase;
pub mod properties;
pub mod random;
pub mod raw;
mod request;
mod response;
pub mod secrets;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod text;
pub mod upstream;
mod verdict;

pub use body::{Body, Chunk, ChunkVerdict, Replacement};
pub use cookies::{CookieName, Cookies};
pub use finish::Outcome;
pub use method::Method;
pub use phase::{
    Filter, FinishFilter, RequestBodyFilter, ResponseBodyFilter, ResponseFilter, WholeRequestFilter,
    WholeResponseFilter,
};
pub use request::{HeaderError, HeaderValue, Request, Snapshot};
pub use response::{ResponseHead, ResponseSnapshot};
pub use verdict::{Enqueue, Response, ResponseVerdict, Route, Status, Verdict};

/// What [`export!`] needs; no part of the interface.
#[doc(hidden)]
#[cfg(target_family = "wasm")]
pub mod internal {
    pub use crate::phase::wasm::*;
}
