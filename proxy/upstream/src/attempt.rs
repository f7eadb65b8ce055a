//! What was tried for one request: the material of client spans.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use http::StatusCode;
use smallvec::SmallVec;

use crate::ErrorKind;

/// The attempts of one request, in order. One is the rule, so one is kept without an allocation.
pub type Attempts = SmallVec<[AttemptInfo; 1]>;

/// One attempt: a connection that could not be made, or a request that was sent.
///
/// A kept connection that turned out closed before a byte of the request left is not an attempt.
#[derive(Clone, Debug)]
pub struct AttemptInfo {
    /// The address; none where the endpoint's name could not be resolved.
    pub peer: Option<SocketAddr>,
    /// Whether the connection had served a request before.
    pub reused: bool,
    /// When the attempt began: before the connection was made, where one was made for it.
    pub started: Instant,
    /// Until the response's head, or until the failure.
    pub duration: Duration,
    /// What ended it, where no response head came.
    pub error: Option<ErrorKind>,
    /// The response's status.
    pub status: Option<StatusCode>,
}
