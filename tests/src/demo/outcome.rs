//! A claim that did not hold.

use std::fmt;

/// What was claimed, what was expected and what was found in its place.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) claim: String,
    pub(super) expected: String,
    pub(super) found: String,
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}; found {}", self.claim, self.expected, self.found)
    }
}

impl std::error::Error for Missed {}
