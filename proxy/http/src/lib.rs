//! HTTP's rules for a gateway, without I/O: what is removed, added and refused on the way through, and what an error looks like.
//!
//! The pipeline, the filter host and the admin API all answer and edit through here, so that a rule stands once.
//! RFC 9110 (semantics), 9112 (HTTP/1.1), 9209 (`Proxy-Status`), 9457 (problem documents).

mod edit;
mod error;
mod forward;
mod host;
mod problem;

pub use edit::{HeadEditError, MAX_FIELDS, MAX_HEAD_BYTES, append, checked_field, remove, set};
pub use error::{ERRORS, ErrorKind, ErrorRow};
pub use forward::{
    Forwarding, hand_on_via, is_loop, request_for_upstream, response_for_client, without_connection_options,
};
pub use host::{Authority, BadRequest, authority_of};
pub use problem::{PROBLEM_JSON, Problem, proxy_status};

/// The path below which BeamLine itself answers, on every tenant's hosts and before any filter.
pub const RESERVED_PATH: &str = "/.well-known/beamline/";

/// Where receipts are asked for: `<RECEIPT_PATH><receipt>`.
pub const RECEIPT_PATH: &str = "/.well-known/beamline/requests/";

/// The name by which this proxy goes in `Via`, `Proxy-Status` and `Server`.
pub const PSEUDONYM: &str = "beamline";
