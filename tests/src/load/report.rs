//! What a load run counted, each way to fail apart.

use std::{collections::BTreeMap, fmt, io, time::Duration};

use crate::histogram::Histogram;

/// How one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A whole response with a status that was expected.
    Good,
    /// A whole response with another status.
    BadStatus,
    /// The connection was refused.
    Refused,
    /// The connection could not be made for another reason.
    ConnectFailed,
    /// A connection that had carried a response before ended without one byte of the next. As HTTP/1.1 has no other
    /// way to end a kept connection, this can happen to a request that the server never saw (RFC 9112, section 9.3.1).
    IdleReset,
    /// A new connection ended without one byte of a response: it was accepted and then dropped.
    FreshReset,
    /// A response ended before its end.
    Cut,
    /// What came back is not HTTP/1.1.
    Malformed,
    /// No whole response came in time.
    TimedOut,
}

/// A request that did not end well.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// The number of a [labelled](super::Plan::labelled) request, which its `x-load` field carried.
    pub label: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The status, where a whole response came.
    pub status: u16,
    /// When, from the start of the run.
    pub at: Duration,
    /// How long after it was sent.
    pub after: Duration,
    /// How reading from its connection failed, where it did; none where that ended.
    pub error: Option<io::ErrorKind>,
}

/// The most failures that are kept one by one.
pub(super) const MAX_FAILURES: usize = 4096;

/// What a run counted.
#[derive(Clone, Default)]
pub struct Report {
    /// From the first request to the last response.
    pub elapsed: Duration,
    /// How often each outcome occurred.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// How often each status came.
    pub statuses: BTreeMap<u16, u64>,
    /// From a request's sending (with a rate: from when it was due) to its whole response; good ones only.
    pub latency: Histogram,
    /// The connections that were made.
    pub connections: u64,
    /// The connections that ended while no request was under way: nothing is lost by that.
    pub idle_closes: u64,
    /// The first failures, one by one.
    pub failures: Vec<Failure>,
}

impl Report {
    /// How often an outcome occurred.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// The good ones.
    pub fn good(&self) -> u64 {
        self.count(Outcome::Good)
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// All that did not end well.
    pub fn failed(&self) -> u64 {
        self.total() - self.good()
    }

    /// Good responses per second.
    pub fn rate(&self) -> f64 {
        self.good() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests in {:.2?} over {} connections ({:.0}/s): {:?}, statuses {:?}, {} idle closes; latency: {:?}",
            self.total(),
            self.elapsed,
            self.connections,
            self.rate(),
            self.outcomes,
            self.statuses,
            self.idle_closes,
            self.latency
        )?;
        for failure in self.failures.iter().take(5) {
            write!(f, "\n  {failure:?}")?;
        }
        Ok(())
    }
}
