//! Running a filter in `cargo test`, without a node and without Wasm.
//!
//! ```
//! use beamline_sdk::{Filter, Request, Verdict, testing::Call, upstream};
//!
//! struct Fallback;
//!
//! impl Filter for Fallback {
//!     type Config = ();
//!
//!     fn on_request(_: &(), _: &mut Request) -> Verdict {
//!         if upstream::is_up("api") { Verdict::next() } else { Verdict::route("standby").into() }
//!     }
//! }
//!
//! let outcome = Call::get("/").upstream("api", upstream::State::Down).run::<Fallback>();
//! assert_eq!(outcome.verdict, Verdict::route("standby").into());
//! ```
//!
//! The head behaves as the host's does: names in any case, bytes as values, the same refusals of changes. Limits are
//! not modelled, neither CPU time nor memory.

mod cases;
mod head;
pub(crate) mod host;

use serde_json::Value;

pub use self::{cases::run_cases, head::Head};
use crate::{
    Filter, Request, Verdict, config,
    log::Level,
    upstream::{State, Status},
};

/// One call of a filter, and what its host would answer during it.
#[derive(Clone, Debug, Default)]
pub struct Call {
    head: Head,
    host: host::Host,
}

/// What a call led to.
#[derive(Debug)]
pub struct Outcome {
    /// What the filter decided.
    pub verdict: Verdict,
    /// The request's head with the filter's changes.
    pub head: Head,
    /// What the filter logged, in order.
    pub log: Vec<(Level, String)>,
}

impl Call {
    /// A call for a request with this method and target (path, and query after a `?`), to the host `example.test`.
    pub fn new(method: &str, target: &str) -> Self {
        Self { head: Head::new(method, target), host: host::Host::default() }
    }

    /// A call for a `GET` request.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// The host that the client named.
    pub fn host(mut self, host: &str) -> Self {
        self.head = self.head.with_host(host);
        self
    }

    /// One more header field of the request.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.head = self.head.with_header(name, value.as_ref());
        self
    }

    /// The filter's configuration; `null`, as where the manifest gives none, if this is not called.
    pub fn config(mut self, config: Value) -> Self {
        self.host.config = config;
        self
    }

    /// An upstream that the manifest has, with an empty queue.
    pub fn upstream(mut self, name: &str, state: State) -> Self {
        self.host.upstreams.insert(name.to_owned(), Status { state, queue_depth: 0 });
        self
    }

    /// What the host's randomness gives, each time. 0 if this is not called.
    pub fn random(mut self, value: u64) -> Self {
        self.host.random = value;
        self
    }

    /// Runs the filter.
    ///
    /// # Panics
    /// Where the filter does, or where its configuration is not valid: in a node, both end the call.
    #[track_caller]
    pub fn run<F: Filter>(self) -> Outcome {
        self.try_run::<F>().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs the filter.
    ///
    /// # Errors
    /// Where its configuration is not valid: what a node would log.
    ///
    /// # Panics
    /// Where the filter does.
    pub fn try_run<F: Filter>(self) -> Result<Outcome, String> {
        let Self { head, host } = self;
        let config = config::read::<F::Config>(&host.config.to_string())?;
        let (verdict, log) = host.during(|| F::on_request(&config, &mut Request::new(&head)));
        Ok(Outcome { verdict, head, log })
    }
}
