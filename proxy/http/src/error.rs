//! Every error that the proxy can answer, in one table.

use http::StatusCode;

/// What went wrong, as clients, logs and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each variant is a row of ERRORS, which says what it means")]
pub enum ErrorKind {
    BadRequest,
    UnknownHost,
    NoRoute,
    UnknownReceipt,
    ResponseNotKept,
    MethodNotAllowed,
    RequestTimeout,
    TooLateToCancel,
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    Loop,
    FilterTrap,
    FilterTimeout,
    FilterMemory,
    FilterHostCalls,
    FilterCapacity,
    FilterRequestBody,
    FilterResponseBody,
    FilterVerdict,
    FilterUnavailable,
    FilterSuspended,
    UpstreamUnavailable,
    UpstreamConnect,
    UpstreamTimeout,
    UpstreamReset,
    UpstreamDenied,
    UpstreamRefused,
    PayloadTooLarge,
    SecretUnavailable,
    QueueFull,
    QueueUnavailable,
    QueueUnconfirmed,
    NotQueueable,
    ClientGone,
    Internal,
}

/// One line of the error table, which `docs/reference/errors.md` repeats.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRow {
    /// The error.
    pub kind: ErrorKind,
    /// The last part of the problem document's `type`, the log's `error.type` and the metric label.
    pub token: &'static str,
    /// The status that clients see.
    pub status: u16,
    /// The `error` parameter of `Proxy-Status` (RFC 9209, section 2.3).
    pub proxy_status: &'static str,
    /// The problem document's `title`.
    pub title: &'static str,
}

const fn row(
    kind: ErrorKind,
    token: &'static str,
    status: u16,
    proxy_status: &'static str,
    title: &'static str,
) -> ErrorRow {
    ErrorRow { kind, token, status, proxy_status, title }
}

/// Every error, in the order of [`ErrorKind`].
pub const ERRORS: [ErrorRow; 35] = [
    row(
        ErrorKind::BadRequest,
        "bad-request",
        400,
        "http_request_error",
        "The request is not one that can be forwarded",
    ),
    row(ErrorKind::UnknownHost, "unknown-host", 404, "destination_not_found", "No tenant holds this host"),
    row(
        ErrorKind::NoRoute,
        "no-route",
        404,
        "destination_not_found",
        "No filter routed the request and the tenant has no default upstream",
    ),
    row(ErrorKind::UnknownReceipt, "unknown-receipt", 404, "http_request_error", "No such receipt"),
    row(
        ErrorKind::ResponseNotKept,
        "response-not-kept",
        404,
        "http_request_error",
        "The origin's answer is not kept",
    ),
    row(
        ErrorKind::MethodNotAllowed,
        "method-not-allowed",
        405,
        "http_request_denied",
        "The method is not allowed here",
    ),
    row(
        ErrorKind::RequestTimeout,
        "request-timeout",
        408,
        "http_request_error",
        "The request's body did not come in time",
    ),
    row(
        ErrorKind::TooLateToCancel,
        "too-late-to-cancel",
        409,
        "http_request_denied",
        "The request can no longer be cancelled",
    ),
    row(
        ErrorKind::IdempotencyKeyInUse,
        "idempotency-key-in-use",
        409,
        "http_request_denied",
        "A request with this Idempotency-Key is under way",
    ),
    row(
        ErrorKind::IdempotencyKeyReused,
        "idempotency-key-reused",
        422,
        "http_request_error",
        "This Idempotency-Key was used for another request",
    ),
    row(
        ErrorKind::Loop,
        "loop-detected",
        508,
        "proxy_loop_detected",
        "The request has passed this proxy before",
    ),
    row(ErrorKind::FilterTrap, "filter-trap", 503, "proxy_internal_error", "A filter failed"),
    row(
        ErrorKind::FilterTimeout,
        "filter-timeout",
        503,
        "proxy_internal_error",
        "A filter did not end in time",
    ),
    row(ErrorKind::FilterMemory, "filter-memory", 503, "proxy_internal_error", "A filter used up its memory"),
    row(
        ErrorKind::FilterHostCalls,
        "filter-host-calls",
        503,
        "proxy_internal_error",
        "A filter used up its host calls",
    ),
    row(
        ErrorKind::FilterCapacity,
        "filter-capacity",
        503,
        "proxy_internal_error",
        "Too many filter calls are under way, or instances or bodies kept for them",
    ),
    row(
        ErrorKind::FilterRequestBody,
        "filter-request-body",
        413,
        "http_request_error",
        "The request's body is longer than a filter may keep",
    ),
    row(
        ErrorKind::FilterResponseBody,
        "filter-response-body",
        502,
        "http_response_body_size",
        "The response's body is longer than a filter may keep",
    ),
    row(
        ErrorKind::FilterVerdict,
        "filter-verdict",
        503,
        "proxy_configuration_error",
        "A filter's verdict cannot be carried out",
    ),
    row(
        ErrorKind::FilterUnavailable,
        "filter-unavailable",
        503,
        "proxy_configuration_error",
        "A filter's module cannot be loaded",
    ),
    row(
        ErrorKind::FilterSuspended,
        "filter-suspended",
        503,
        "proxy_internal_error",
        "A filter failed too often and is left out for a while",
    ),
    row(
        ErrorKind::UpstreamUnavailable,
        "upstream-unavailable",
        503,
        "destination_unavailable",
        "The upstream is down",
    ),
    row(
        ErrorKind::UpstreamConnect,
        "upstream-connect",
        503,
        "connection_refused",
        "No connection to the upstream could be made",
    ),
    row(
        ErrorKind::UpstreamTimeout,
        "upstream-timeout",
        504,
        "http_response_timeout",
        "The upstream did not answer in time",
    ),
    row(
        ErrorKind::UpstreamReset,
        "upstream-reset",
        502,
        "connection_terminated",
        "The upstream ended the exchange before a whole response head",
    ),
    row(
        ErrorKind::UpstreamDenied,
        "upstream-denied",
        502,
        "destination_ip_prohibited",
        "The upstream is not one that the tenant may reach",
    ),
    row(
        ErrorKind::UpstreamRefused,
        "upstream-refused",
        502,
        "http_request_denied",
        "The stream behind the upstream refused the message for good",
    ),
    row(
        ErrorKind::PayloadTooLarge,
        "payload-too-large",
        413,
        "http_request_error",
        "The request is larger than its upstream takes",
    ),
    row(
        ErrorKind::SecretUnavailable,
        "secret-unavailable",
        503,
        "proxy_configuration_error",
        "A secret that the upstream's requests need is not to be had",
    ),
    row(ErrorKind::QueueFull, "queue-full", 503, "proxy_internal_error", "The durable queue is full"),
    row(
        ErrorKind::QueueUnavailable,
        "queue-unavailable",
        503,
        "proxy_internal_error",
        "The durable queue cannot take requests now",
    ),
    row(
        ErrorKind::QueueUnconfirmed,
        "queue-unconfirmed",
        500,
        "proxy_internal_error",
        "Whether the request was stored is not known: it may still be delivered",
    ),
    row(
        ErrorKind::NotQueueable,
        "not-queueable",
        503,
        "proxy_configuration_error",
        "The request cannot be queued",
    ),
    row(ErrorKind::ClientGone, "client-gone", 499, "http_request_error", "The client went away"),
    row(ErrorKind::Internal, "internal", 500, "proxy_internal_error", "The proxy failed"),
];

impl ErrorKind {
    /// Its line of the table.
    pub const fn row(self) -> &'static ErrorRow {
        &ERRORS[self as usize]
    }

    /// The status that clients see.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The stable token: last part of the problem's `type`, `error.type` in logs, label in metrics.
    pub const fn token(self) -> &'static str {
        self.row().token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_own_row() {
        for (i, row) in ERRORS.iter().enumerate() {
            assert_eq!(row.kind as usize, i, "{}", row.token);
            assert!(row.kind.status().as_u16() == row.status && row.status >= 400);
        }
        let mut tokens: Vec<_> = ERRORS.iter().map(|r| r.token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), ERRORS.len());
    }

    #[test]
    fn the_reference_page_has_every_row() {
        let page = include_str!("../../../docs/reference/errors.md");
        for row in &ERRORS {
            let line =
                format!("| `{}` | {} | `{}` | {} |", row.token, row.status, row.proxy_status, row.title);
            assert!(page.contains(&line), "docs/reference/errors.md lacks: {line}");
        }
        assert_eq!(
            page.lines().filter(|l| l.starts_with("| `")).count(),
            ERRORS.len(),
            "rows that the code does not know"
        );
    }
}
