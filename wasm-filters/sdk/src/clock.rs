//! Time, as the node has it: a sandbox has no clock of its own.
//!
//! ```
//! # use beamline_sdk::{clock, Request, Verdict};
//! # fn on_request(expires_at: u64) -> Verdict {
//! if expires_at <= clock::now_ms() / 1000 {
//!     return Verdict::respond(401).body("the token has expired\n").into();
//! }
//! # Verdict::next()
//! # }
//! ```

use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z, by the node's wall clock, which may be set forward or back.
pub fn now_ms() -> u64 {
    crate::host::now_ms()
}

/// How long ago this call began. Never goes back; counts while the call waits, too.
pub fn elapsed() -> Duration {
    Duration::from_nanos(crate::host::elapsed_ns())
}
