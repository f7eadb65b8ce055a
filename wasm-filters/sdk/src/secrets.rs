//! The secrets that the manifest lets this filter read.
//!
//! ```
//! # use beamline_sdk::{secrets, Request, Verdict};
//! # fn on_request() -> Verdict {
//! let Some(key) = secrets::get("signing-key") else {
//!     return Verdict::respond(503).body("no key to check with\n").into();
//! };
//! # let _ = key;
//! # Verdict::next()
//! # }
//! ```
//!
//! The operator or the tenant sets them with `beamline secret set`, and the filter's `secrets` in the manifest lists those that it
//! may read. What of them is logged by the filter as it is, the host cuts out.

/// The value of a secret. None where the filter's `secrets` do not list it, or where this node cannot open it: the node tells
/// which.
pub fn get(name: &str) -> Option<Vec<u8>> {
    crate::host::secret(name)
}
