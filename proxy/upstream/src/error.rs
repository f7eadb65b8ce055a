//! How a request can fail before it has a response, and what the caller gets back.

use std::{error::Error, fmt};

use beamline_model::GrantRefusal;
use http::Request;

use crate::{Attempts, BoxError, ClusterKey};

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The upstream failed repeatedly; until its back-off ends requests are not tried.
    #[error("its breaker is open after repeated failures; it is tried again when the back-off ends")]
    BreakerOpen,
    /// The endpoint's name could not be resolved.
    #[error(
        "the endpoint's name could not be resolved: check the name in the manifest and the node's resolver"
    )]
    Dns,
    /// The address, as resolved at connect, or the NATS subject is not one this tenant may reach.
    #[error("{0}")]
    Denied(GrantRefusal),
    /// Nothing listens there.
    #[error("the connection was refused: check that the origin runs and listens on the endpoint's port")]
    ConnectRefused,
    /// No connection stood within the upstream's `connect_timeout`.
    #[error(
        "no connection stood within connect_timeout: check the address, firewalls and the origin's backlog"
    )]
    ConnectTimeout,
    /// The connection could not be made for another reason, such as no route or no free descriptor.
    #[error("the connection could not be made")]
    ConnectFailed,
    /// There is no TLS with the server, and the connection asks for it.
    #[error("no TLS with the server: check the certificates on both sides; the log says more")]
    Tls,
    /// The connection broke before a response head was whole.
    #[error("the connection was closed before a whole response head came")]
    Reset,
    /// No response head came in time.
    #[error("no response head came within response_timeout")]
    ResponseTimeout,
    /// What came is no HTTP/1.1 response that can be passed on.
    #[error("what came is not an HTTP/1.1 response that can be passed on")]
    BadResponse,
    /// Nobody listens on the NATS subject, or no stream takes it.
    #[error("nobody listens on the subject: check that its service runs, or that a stream has it")]
    NoResponders,
    /// The stream said that it cannot take the message now; it did not.
    #[error("the stream cannot take the message now: check its limits and its server's storage")]
    StreamUnavailable,
    /// The stream refused the message for good.
    #[error("the stream refused the message for good: check the stream's configuration")]
    Refused,
    /// The NATS server does not let the connection publish to the subject.
    #[error(
        "the NATS server does not let the connection publish to the subject: check its user's permissions"
    )]
    Forbidden,
    /// The request is larger than its upstream takes.
    #[error("the request is larger than the {limit} bytes that its upstream takes")]
    TooLarge {
        /// The most bytes of a body, or of a message with its headers.
        limit: u64,
    },
    /// The bodies that are held for messages leave no room for this one.
    #[error("too many bodies are being read for messages at once: try again")]
    NoRoom,
    /// The request's own body failed: the client went away, or broke its promise about the length.
    #[error("the request's own body ended early or failed")]
    RequestBody,
}

impl ErrorKind {
    /// A short stable name, for logs, metrics and spans.
    pub const fn token(&self) -> &'static str {
        match self {
            Self::BreakerOpen => "breaker-open",
            Self::Dns => "dns",
            Self::Denied(_) => "denied",
            Self::ConnectRefused => "connect-refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::ConnectFailed => "connect-failed",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::ResponseTimeout => "response-timeout",
            Self::BadResponse => "bad-response",
            Self::NoResponders => "no-responders",
            Self::StreamUnavailable => "stream-unavailable",
            Self::Refused => "refused",
            Self::Forbidden => "forbidden",
            Self::TooLarge { .. } => "too-large",
            Self::NoRoom => "no-room",
            Self::RequestBody => "request-body",
        }
    }

    /// The proxy error type for a `Proxy-Status` field (RFC 9209, section 2.3).
    pub const fn proxy_status(&self) -> &'static str {
        match self {
            Self::BreakerOpen | Self::NoResponders | Self::StreamUnavailable => "destination_unavailable",
            Self::NoRoom => "connection_limit_reached",
            Self::Dns => "dns_error",
            Self::Denied(
                GrantRefusal::Connection(_) | GrantRefusal::Subject { .. } | GrantRefusal::Undefined(_),
            ) => "proxy_configuration_error",
            Self::Denied(_) => "destination_ip_prohibited",
            Self::ConnectRefused => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::ConnectFailed => "destination_ip_unroutable",
            Self::Tls => "tls_protocol_error",
            Self::Reset => "connection_terminated",
            Self::ResponseTimeout => "http_response_timeout",
            Self::BadResponse => "http_protocol_error",
            Self::Refused | Self::Forbidden => "http_request_denied",
            Self::RequestBody | Self::TooLarge { .. } => "http_request_error",
        }
    }

    /// Whether it speaks against the upstream: what the breaker counts.
    ///
    /// A refused address is the manifest's fault, a broken request body the client's, and what answers, however
    /// badly, is there.
    pub(crate) const fn is_failure(&self) -> bool {
        match self {
            Self::Dns
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectFailed
            | Self::Tls
            | Self::Reset
            | Self::ResponseTimeout
            | Self::NoResponders
            | Self::StreamUnavailable => true,
            Self::BreakerOpen
            | Self::Denied(_)
            | Self::BadResponse
            | Self::Refused
            | Self::Forbidden
            | Self::TooLarge { .. }
            | Self::NoRoom
            | Self::RequestBody => false,
        }
    }
}

/// How much of a failed request can have reached the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sentness {
    /// Not one byte was handed to the operating system: the upstream knows nothing of this request.
    Nothing,
    /// Some bytes left. The upstream may have acted on them.
    Maybe,
}

/// A request that got no response head.
pub struct SendError<B> {
    /// The upstream.
    pub cluster: ClusterKey,
    /// What went wrong, in the attempt that decided.
    pub kind: ErrorKind,
    /// Whether a byte of the request can have left, over all attempts.
    pub sent: Sentness,
    /// The request, where no frame of its body was taken: it can be sent again as it is. Given back whatever
    /// [`sent`](Self::sent) says; whether it may be repeated is the caller's to know.
    pub request: Option<Request<B>>,
    /// The request, where frames of its body were taken: its head as it was sent, and what is left of its body.
    /// Of use only to a caller that kept what was read so far.
    pub begun: Option<Request<B>>,
    /// What was tried.
    pub attempts: Attempts,
    /// The error beneath, where there is one.
    pub source: Option<BoxError>,
}

impl<B> fmt::Debug for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError")
            .field("cluster", &self.cluster)
            .field("kind", &self.kind)
            .field("sent", &self.sent)
            .field("attempts", &self.attempts)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl<B> fmt::Display for SendError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upstream {}", self.cluster)?;
        if let Some(peer) = self.attempts.last().and_then(|a| a.peer) {
            write!(f, " at {peer}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl<B> Error for SendError<B> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}
