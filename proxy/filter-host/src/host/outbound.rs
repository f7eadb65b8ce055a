//! `outbound`: requests of the filter itself. The call waits for the answer, its CPU clock and its worker do not.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use ::http::{HeaderMap, Method, StatusCode, Uri};
use beamline_model::Limit;
use bytes::Bytes;

use super::{CallState, LogLevel, http::fields};
use crate::{bindings::beamline::edge::outbound, call};

/// How long a request may take that does not say so.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The most bytes of a method.
const MAX_METHOD: usize = 32;
/// So many characters of what is wrong are repeated to the guest.
const SHOWN: usize = 64;

/// A request of a filter.
#[derive(Debug)]
pub struct OutboundRequest {
    /// Its method.
    pub method: Method,
    /// Its URL, which may be of any form.
    pub url: Uri,
    /// Its fields: the filter's, by the rules of `beamline_http::append`, and `Via`.
    pub headers: HeaderMap,
    /// Its body, of any size.
    pub body: Bytes,
    /// How long all of it may take: no longer than the call.
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
    /// The filters of this request have sent as many as they may.
    TooMany,
    /// No connection could be made. Why is for the log alone: a filter that learned it could look around.
    Connect(String),
    /// Not in time.
    Timeout,
    /// The request has a body that is too large. What is told of it.
    TooLong(String),
    /// The answer is too large.
    TooLarge,
    /// There is no room for its body or that of its answer. Why is for the log alone.
    NoRoom(String),
    /// The exchange broke. Why is for the log alone.
    Broken(String),
}

/// An exchange under way, which ends with its drop. Polled on any thread, within no runtime.
pub type Exchange = Pin<Box<dyn Future<Output = Result<OutboundResponse, OutboundError>> + Send>>;

/// What a guest asks for, as far as it is a request. `on_behalf_of` are the fields of the request that it is about.
fn checked(request: outbound::OutgoingRequest, on_behalf_of: &HeaderMap) -> Result<OutboundRequest, String> {
    let method = Method::from_bytes(request.method.as_bytes()).ok();
    let method = method.filter(|method| method.as_str().len() <= MAX_METHOD);
    let method = method
        .ok_or_else(|| format!("method: expected a token such as \"GET\", of at most {MAX_METHOD} bytes"))?;
    let url = request.url.parse().map_err(|error| format!("url: {error}"))?;
    let (most, found) = (beamline_http::MAX_FIELDS, request.headers.len());
    if found > most {
        return Err(format!("headers: expected at most {most} fields; found {found}"));
    }
    let mut headers = HeaderMap::with_capacity(found);
    for field in &request.headers {
        beamline_http::append(&mut headers, &field.name, &field.value)
            .map_err(|error| format!("headers: {:?}: {error}", shown(&field.name)))?;
    }
    beamline_http::hand_on_via(on_behalf_of, &mut headers);
    let timeout = request.timeout_ms.map_or(TIMEOUT, |ms| Duration::from_millis(ms.into()));
    Ok(OutboundRequest { method, url, headers, body: request.body.into(), timeout })
}

fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}

fn told(error: OutboundError) -> outbound::OutboundError {
    match error {
        OutboundError::Invalid(problem) | OutboundError::TooLong(problem) => {
            outbound::OutboundError::InvalidRequest(problem)
        }
        OutboundError::NotAllowed => outbound::OutboundError::NotAllowed,
        OutboundError::TooMany => outbound::OutboundError::TooMany,
        OutboundError::Connect(_) => outbound::OutboundError::Connect,
        OutboundError::Timeout => outbound::OutboundError::Timeout,
        OutboundError::TooLarge => outbound::OutboundError::TooLarge,
        OutboundError::NoRoom(_) | OutboundError::Broken(_) => outbound::OutboundError::Broken,
    }
}

/// The limit that a request crossed, where that is why there is no answer.
fn crossed(error: &OutboundError) -> Option<Limit> {
    match error {
        OutboundError::TooMany => Some(Limit::OutboundRequests),
        OutboundError::TooLong(_) | OutboundError::TooLarge => Some(Limit::OutboundSize),
        OutboundError::NoRoom(_) => Some(Limit::OutboundBytes),
        OutboundError::Invalid(_)
        | OutboundError::NotAllowed
        | OutboundError::Connect(_)
        | OutboundError::Timeout
        | OutboundError::Broken(_) => None,
    }
}

impl outbound::Host for CallState {
    async fn send(
        &mut self,
        request: outbound::OutgoingRequest,
    ) -> wasmtime::Result<Result<outbound::IncomingResponse, outbound::OutboundError>> {
        self.count_call()?;
        let Some(left) = self.outbound_left.checked_sub(1) else {
            self.crossed(Limit::OutboundCalls);
            return Ok(Err(outbound::OutboundError::TooMany));
        };
        let mut request = match checked(request, &self.head.headers) {
            Ok(request) => request,
            Err(problem) => return Ok(Err(outbound::OutboundError::InvalidRequest(problem))),
        };
        self.outbound_left = left;
        // Nothing is sent before there is a seat to wait on: whoever polls takes one for the call, or ends it.
        poll_fn(|_| {
            if call::has_seat() {
                return Poll::Ready(());
            }
            call::begin_waiting(&mut self.cpu);
            Poll::Pending
        })
        .await;
        request.timeout = request.timeout.min(self.ends.saturating_duration_since(Instant::now()));
        let mut exchange = self.view.send(request);
        let answer = poll_fn(|cx| {
            let polled = exchange.as_mut().poll(cx);
            if polled.is_pending() {
                call::begin_waiting(&mut self.cpu);
            }
            polled
        })
        .await;
        if let Some(limit) = answer.as_ref().err().and_then(crossed) {
            self.crossed(limit);
        }
        if let Err(
            OutboundError::Connect(problem) | OutboundError::NoRoom(problem) | OutboundError::Broken(problem),
        ) = &answer
        {
            let told = format!("outbound request: {problem}");
            self.log.write(LogLevel::Warn, told, &self.config.redaction);
        }
        Ok(match answer {
            Ok(response) => Ok(outbound::IncomingResponse {
                status: response.status.as_u16(),
                headers: fields(&response.headers),
                body: response.body.into(),
            }),
            Err(error) => Err(told(error)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::beamline::edge::http::Field;

    fn request(method: &str, name: &str) -> outbound::OutgoingRequest {
        outbound::OutgoingRequest {
            method: method.into(),
            url: "http://a.test/".into(),
            headers: vec![Field { name: name.into(), value: b"1".into() }],
            body: Vec::new(),
            timeout_ms: None,
        }
    }

    #[test]
    fn what_is_wrong_is_repeated_no_further_than_it_helps() {
        for name in [" ".repeat(8 << 20), "é".repeat(8 << 20)] {
            let problem = checked(request("GET", &name), &HeaderMap::new()).unwrap_err();
            assert!(problem.len() < 300, "{} bytes", problem.len());
        }
    }

    #[test]
    fn a_method_is_short() {
        let checked = |method: &str| checked(request(method, "x"), &HeaderMap::new());
        assert_eq!(checked(&"M".repeat(32)).unwrap().method.as_str().len(), 32);
        for wrong in ["", "G T", &"M".repeat(33), &"M".repeat(1 << 20)] {
            let expected = "method: expected a token such as \"GET\", of at most 32 bytes";
            assert_eq!(checked(wrong).unwrap_err(), expected);
        }
    }
}
