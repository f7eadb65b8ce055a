//! `outbound`: requests of the filter itself. The call waits for the answer, its CPU clock and its worker do not.

use std::{future::Future, pin::Pin, time::Duration};

use ::http::{HeaderMap, Method, StatusCode, Uri};
use bytes::Bytes;

use super::{CallState, http::fields};
use crate::{bindings::beamline::edge::outbound, call};

/// How long a request may take that does not say so.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A request of a filter.
#[derive(Debug)]
pub struct OutboundRequest {
    /// Its method.
    pub method: Method,
    /// Its URL, which may be of any form.
    pub url: Uri,
    /// Its fields, by the rules of `beamline_http::append`.
    pub headers: HeaderMap,
    /// Its body, of any size.
    pub body: Bytes,
    /// How long all of it may take.
    pub timeout: Duration,
}

/// The answer to a request of a filter.
#[derive(Debug)]
pub struct OutboundResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundError {
    /// A part of the request is not valid.
    Invalid(String),
    /// The manifest does not allow it.
    NotAllowed,
    /// The address is beyond the grant.
    Denied,
    /// No connection could be made.
    Connect,
    /// Not in time.
    Timeout,
    /// The answer is too large.
    TooLarge,
    /// The exchange broke.
    Broken,
}

/// An exchange under way, which ends with its drop. Polled on any thread, within no runtime.
pub type Exchange = Pin<Box<dyn Future<Output = Result<OutboundResponse, OutboundError>> + Send>>;

fn checked(request: outbound::OutgoingRequest) -> Result<OutboundRequest, String> {
    let method = Method::from_bytes(request.method.as_bytes())
        .map_err(|_| "method: expected a token such as \"GET\"".to_owned())?;
    let url = request.url.parse().map_err(|error| format!("url: {error}"))?;
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for field in &request.headers {
        beamline_http::append(&mut headers, &field.name, &field.value)
            .map_err(|error| format!("headers: {:?}: {error}", field.name))?;
    }
    let timeout = request.timeout_ms.map_or(TIMEOUT, |ms| Duration::from_millis(ms.into()));
    Ok(OutboundRequest { method, url, headers, body: request.body.into(), timeout })
}

fn told(error: OutboundError) -> outbound::OutboundError {
    match error {
        OutboundError::Invalid(problem) => outbound::OutboundError::InvalidRequest(problem),
        OutboundError::NotAllowed => outbound::OutboundError::NotAllowed,
        OutboundError::Denied => outbound::OutboundError::Denied,
        OutboundError::Connect => outbound::OutboundError::Connect,
        OutboundError::Timeout => outbound::OutboundError::Timeout,
        OutboundError::TooLarge => outbound::OutboundError::TooLarge,
        OutboundError::Broken => outbound::OutboundError::Broken,
    }
}

impl outbound::Host for CallState {
    async fn send(
        &mut self,
        request: outbound::OutgoingRequest,
    ) -> wasmtime::Result<Result<outbound::IncomingResponse, outbound::OutboundError>> {
        self.count_call()?;
        let Some(left) = self.outbound_left.checked_sub(1) else {
            return Ok(Err(outbound::OutboundError::TooMany));
        };
        let request = match checked(request) {
            Ok(request) => request,
            Err(problem) => return Ok(Err(outbound::OutboundError::InvalidRequest(problem))),
        };
        self.outbound_left = left;
        let mut exchange = self.view.send(request);
        let answer = std::future::poll_fn(|cx| {
            let polled = exchange.as_mut().poll(cx);
            if polled.is_pending() {
                call::begin_waiting(&mut self.cpu);
            }
            polled
        });
        Ok(match answer.await {
            Ok(response) => Ok(outbound::IncomingResponse {
                status: response.status.as_u16(),
                headers: fields(&response.headers),
                body: response.body.into(),
            }),
            Err(error) => Err(told(error)),
        })
    }
}
