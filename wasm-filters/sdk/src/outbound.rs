//! HTTP requests of the filter itself, to what the manifest's `egress.allow` names.
//!
//! ```
//! # use beamline_sdk::{outbound, Request, Verdict};
//! # fn on_request(user: &str) -> Verdict {
//! let check = outbound::get(format!("http://auth.internal/check?user={user}")).timeout_ms(500).send();
//! match check {
//!     Ok(answer) if answer.status == 200 => Verdict::next(),
//!     Ok(_) => Verdict::respond(403).into(),
//!     Err(error) => Verdict::respond(503).body(format!("{error:?}\n")).into(),
//! }
//! # }
//! ```
//!
//! The call waits for the whole answer, of at most 1 MiB; other requests don't. Its CPU time stands still meanwhile, but it must
//! end within 5 s in all. Keep what can be kept with [`kv`](crate::kv).

use crate::raw::beamline::edge::http::Field;
pub use crate::raw::beamline::edge::outbound::{IncomingResponse, OutboundError};

/// A request to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a request does nothing before it is sent"]
pub struct OutgoingRequest {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: Vec<Field>,
    pub(crate) body: Vec<u8>,
    pub(crate) timeout_ms: Option<u32>,
}

/// A `GET` of a URL.
pub fn get(url: impl Into<String>) -> OutgoingRequest {
    request("GET", url)
}

/// A `POST` to a URL.
pub fn post(url: impl Into<String>, body: impl Into<Vec<u8>>) -> OutgoingRequest {
    request("POST", url).body(body)
}

/// A request with any method but `CONNECT`.
pub fn request(method: impl Into<String>, url: impl Into<String>) -> OutgoingRequest {
    OutgoingRequest {
        method: method.into(),
        url: url.into(),
        headers: Vec::new(),
        body: Vec::new(),
        timeout_ms: None,
    }
}

impl OutgoingRequest {
    /// Adds a field.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push(Field { name: name.into(), value: value.into() });
        self
    }

    /// Sends this body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// How long all of it may take, in milliseconds; without this, 2000.
    pub fn timeout_ms(mut self, timeout_ms: u32) -> Self {
        self.timeout_ms = Some(timeout_ms);
        self
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends it, and waits for the whole answer.
    ///
    /// # Errors
    /// [`OutboundError`]. After `Broken` and `Timeout` the request may have been received.
    pub fn send(self) -> Result<IncomingResponse, OutboundError> {
        crate::host::send(self)
    }
}

impl IncomingResponse {
    /// The first value of a field, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|field| field.name == name).map(|field| &*field.value)
    }
}
