//! What a filter remembers of a request, from one of its phases to the next.
//!
//! Every phase runs in a fresh instance, unless the manifest says otherwise, so what one wants a later one to know it
//! hands to the host: at most [`MAX`] bytes, for this filter and this request alone.
//!
//! ```
//! use beamline_sdk::{Filter, Request, Response, ResponseFilter, ResponseHead, ResponseVerdict, Verdict, context};
//!
//! struct Plans;
//!
//! impl Filter for Plans {
//!     type Config = ();
//!
//!     fn on_request(_: &(), request: &mut Request) -> Verdict {
//!         if let Some(plan) = request.header("x-plan") {
//!             context::set(plan).expect("a header is short");
//!         }
//!         Verdict::next()
//!     }
//! }
//!
//! impl ResponseFilter for Plans {
//!     type Config = ();
//!
//!     fn on_response(_: &(), _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
//!         if let Some(plan) = context::get() {
//!             response.set_header("x-plan", plan).expect("it came as a header");
//!         }
//!         ResponseVerdict::next()
//!     }
//! }
//!
//! beamline_sdk::export!(Plans: request, response);
//! ```

use std::fmt;

/// The most bytes that can be remembered: 4 KiB.
pub const MAX: usize = 4 << 10;

/// More than [`MAX`] bytes were to be remembered. What was remembered before is, still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// What the last call of this filter for this request set, or none.
///
/// Calls that overlap, as of a request's body and its response, see what had been set when they began.
pub fn get() -> Option<Vec<u8>> {
    crate::host::context()
}

/// Remembers this in place of what was remembered. Counts only where the call does not fail.
///
/// # Errors
/// More than [`MAX`] bytes.
pub fn set(value: impl AsRef<[u8]>) -> Result<(), TooLarge> {
    crate::host::set_context(value.as_ref())
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a context has at most {MAX} bytes: keep less of the request")
    }
}

impl std::error::Error for TooLarge {}
