//! What a filter decides.

use std::time::Duration;

use serde::Deserialize;

use crate::raw::beamline::edge::{http::Field, verdicts as raw};

/// What happens to the request.
///
/// [`Verdict::route`], [`Verdict::respond`] and [`Verdict::enqueue`] start a builder that `.into()` makes a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next filter decides; after the last one the manifest's default upstream is taken.
    Next,
    /// The chain ends; the request is sent to an upstream.
    Route(Route),
    /// The chain ends; the client gets this answer.
    Respond(Response),
    /// The chain ends; the request is queued and answered `202` with a receipt.
    Enqueue(Enqueue),
    /// The request's whole body is read, and this filter's phase `whole_request` decides.
    ReadBody,
}

/// What happens to a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseVerdict {
    /// It goes on to the client, by way of the filters before this one.
    Next,
    /// This takes its place, and goes on likewise.
    Respond(Response),
    /// The response's whole body is read, and this filter's phase `whole_response` decides.
    ReadBody,
}

/// Where a request is sent, and what of it is changed on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route(raw::Route);

/// An answer that the filter gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response(raw::Response);

/// A status that an answer can have: 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u16")]
pub struct Status(u16);

/// The durable queue that takes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueue(raw::Enqueue);

impl Verdict {
    /// The next filter decides; after the last one the manifest's default upstream is taken.
    pub fn next() -> Self {
        Self::Next
    }

    /// Sends the request to an upstream, by its name in the manifest.
    pub fn route(upstream: impl Into<String>) -> Route {
        Route(raw::Route { upstream: upstream.into(), path: None, host: None, timeout_ms: None })
    }

    /// Answers the request here, with a status from 200 to 599.
    pub fn respond(status: u16) -> Response {
        Response(raw::Response { status, headers: Vec::new(), body: Vec::new() })
    }

    /// Refuses the request, and says why in a problem document (RFC 9457), which nobody keeps. Headers can be added; what stands
    /// in `detail` every client sees.
    ///
    /// ```
    /// # use beamline_sdk::Verdict;
    /// # fn on_request() -> Verdict {
    /// Verdict::refuse(429, "Too many requests: come back in a second.").header("retry-after", "1").into()
    /// # }
    /// ```
    pub fn refuse(status: u16, detail: &str) -> Response {
        let detail = serde_json::to_string(detail).expect("a text can be written as JSON");
        Self::respond(status)
            .header("content-type", "application/problem+json")
            .header("cache-control", "no-store")
            .body(["{\"status\":", &status.to_string(), ",\"detail\":", &detail, "}"].concat())
    }

    /// Puts the request in the durable queue of an upstream whose queue mode is not `never`.
    pub fn enqueue(upstream: impl Into<String>) -> Enqueue {
        Enqueue(raw::Enqueue {
            upstream: upstream.into(),
            ordering_key: None,
            delay_ms: None,
            expiry_ms: None,
        })
    }

    /// Has the request's whole body read, up to the limit `body`. Then this filter's phase `whole_request`, which the module
    /// must have, decides.
    pub fn read_body() -> Self {
        Self::ReadBody
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn into_raw(self) -> raw::Verdict {
        match self {
            Self::Next => raw::Verdict::Next,
            Self::Route(route) => raw::Verdict::Route(route.0),
            Self::Respond(response) => raw::Verdict::Respond(response.0),
            Self::Enqueue(enqueue) => raw::Verdict::Enqueue(enqueue.0),
            Self::ReadBody => raw::Verdict::ReadBody,
        }
    }
}

impl ResponseVerdict {
    /// It goes on to the client, by way of the filters before this one.
    pub fn next() -> Self {
        Self::Next
    }

    /// Puts an answer in its place, with a status from 200 to 599.
    pub fn respond(status: u16) -> Response {
        Verdict::respond(status)
    }

    /// Puts a problem document (RFC 9457) in its place, as [`Verdict::refuse`].
    pub fn refuse(status: u16, detail: &str) -> Response {
        Verdict::refuse(status, detail)
    }

    /// Has the response's whole body read, up to the limit `body`. Then this filter's phase `whole_response`, which the
    /// module must have, decides.
    pub fn read_body() -> Self {
        Self::ReadBody
    }

    #[cfg(target_family = "wasm")]
    pub(crate) fn into_raw(self) -> raw::ResponseVerdict {
        match self {
            Self::Next => raw::ResponseVerdict::Next,
            Self::Respond(response) => raw::ResponseVerdict::Respond(response.0),
            Self::ReadBody => raw::ResponseVerdict::ReadBody,
        }
    }
}

impl Route {
    /// Asks the upstream for this path in place of the client's path and query. Starts with `/`; has a query of its
    /// own if it should have one.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// Names this host to the upstream in place of the client's.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.0.host = Some(host.into());
        self
    }

    /// Waits so long for the response's head, in place of the upstream's own time-out, which it never exceeds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.0.timeout_ms = Some(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        self
    }
}

impl Response {
    /// Adds a header field.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.0.headers.push(Field { name: name.into(), value: value.into() });
        self
    }

    /// The body. The host sets `content-length`.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = body.into();
        self
    }
}

impl Status {
    /// The status as a number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Status {
    type Error = &'static str;

    fn try_from(status: u16) -> Result<Self, Self::Error> {
        if (200..=599).contains(&status) { Ok(Self(status)) } else { Err("expected a status of 200 to 599") }
    }
}

impl Enqueue {
    /// Delivers requests with the same key, 1 to 256 bytes, in the order in which they were accepted.
    pub fn ordering_key(mut self, key: impl Into<String>) -> Self {
        self.0.ordering_key = Some(key.into());
        self
    }

    /// Delivers it no sooner than so long after it was accepted. Must be shorter than the time until it expires.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.0.delay_ms = Some(milliseconds(delay));
        self
    }

    /// Lets it expire so long after it was accepted, in place of the upstream's own expiry, which it never exceeds.
    pub fn expiry(mut self, expiry: Duration) -> Self {
        self.0.expiry_ms = Some(milliseconds(expiry));
        self
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(not(target_family = "wasm"))]
impl Route {
    pub(crate) fn as_raw(&self) -> &raw::Route {
        &self.0
    }
}

impl From<Route> for Verdict {
    fn from(route: Route) -> Self {
        Self::Route(route)
    }
}

#[cfg(not(target_family = "wasm"))]
impl Response {
    pub(crate) fn as_raw(&self) -> &raw::Response {
        &self.0
    }
}

impl From<Response> for Verdict {
    fn from(response: Response) -> Self {
        Self::Respond(response)
    }
}

impl From<Response> for ResponseVerdict {
    fn from(response: Response) -> Self {
        Self::Respond(response)
    }
}

#[cfg(not(target_family = "wasm"))]
impl Enqueue {
    pub(crate) fn as_raw(&self) -> &raw::Enqueue {
        &self.0
    }
}

impl From<Enqueue> for Verdict {
    fn from(enqueue: Enqueue) -> Self {
        Self::Enqueue(enqueue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_final_one() {
        for status in [200, 599] {
            assert_eq!(Status::try_from(status).map(Status::get), Ok(status));
        }
        for status in [0, 100, 199, 600] {
            assert!(Status::try_from(status).is_err(), "{status}");
        }
    }
}
