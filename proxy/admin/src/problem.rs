//! What refusals look like: every problem of the admin API in one table.

use std::{fmt, time::Duration};

use axum::{
    body::Body,
    extract::{MatchedPath, rejection::RawPathParamsRejection},
    response::{IntoResponse, Response},
};
use beamline_control::{ControlError, ControlErrorKind};
use beamline_http::Problem;
use beamline_model::InvalidName;
use http::{HeaderValue, Method, StatusCode, Uri, header};

use crate::ROUTES;

/// One line of the problem table in `docs/reference/admin-api.md`.
#[derive(Clone, Copy, Debug)]
pub struct ProblemRow {
    /// The last part of the document's `type`.
    pub token: &'static str,
    /// The status.
    pub status: u16,
    /// The document's `title`.
    pub title: &'static str,
}

const fn row(token: &'static str, status: u16, title: &'static str) -> ProblemRow {
    ProblemRow { token, status, title }
}

/// Every problem, by status.
pub const PROBLEMS: &[ProblemRow] = &[
    row("body-incomplete", 400, "The request's body did not arrive whole"),
    row("token-missing", 401, "A token is needed"),
    row("token-unknown", 401, "The token is not known"),
    row("operator-only", 403, "Only the operator may do this"),
    row("other-tenant", 403, "The token is another tenant's"),
    row("unknown-path", 404, "There is nothing at this path"),
    row("unknown-tenant", 404, "There is no such tenant"),
    row("unknown-revision", 404, "The tenant has no such revision"),
    row("no-revision", 404, "The tenant has no active revision"),
    row("unknown-upstream", 404, "The tenant has no such upstream"),
    row("unknown-record", 404, "The queue has no such record"),
    row("unknown-secret", 404, "The tenant has no such secret"),
    row("method-not-allowed", 405, "The method is not allowed here"),
    row("tenant-exists", 409, "There is a tenant of that name"),
    row("host-taken", 409, "Another tenant holds the host"),
    row("changed-meanwhile", 409, "The tenant was changed by somebody else"),
    row("no-previous-revision", 409, "There is no revision to go back to"),
    row("record-state", 409, "This cannot be done to a record in its state"),
    row("may-repeat", 409, "The origin may get the request twice"),
    row("being-deleted", 409, "The tenant is being deleted"),
    row("backlog", 409, "Requests are in the queue for what is to be deleted"),
    row("no-seal-key", 409, "The node has no seal key"),
    row("secret-in-use", 409, "The active revision names the secret"),
    row("body-too-large", 413, "The request's body is too large"),
    row("module-quota", 413, "The tenant's modules would take too much room"),
    row("secret-quota", 413, "The tenant has as many secrets as it may have"),
    row("invalid-request", 422, "The request is not of the expected form"),
    row("invalid-manifest", 422, "The manifest is not valid"),
    row("outside-grant", 422, "The manifest asks for what the tenant was not granted"),
    row("module-path", 422, "The manifest names a module by a local path"),
    row("unknown-module", 422, "The manifest names a module that was not uploaded"),
    row("invalid-secret", 422, "The value is none that a secret can have"),
    row("secret-not-set", 422, "The manifest names a secret that is not set"),
    row("nothing-to-keep", 422, "The manifest would have instances kept that never would be"),
    row("module-rejected", 422, "The module cannot be taken"),
    row("internal", 500, "The node failed"),
    row("not-ready", 503, "The node takes no new traffic"),
    row("not-live", 503, "A worker of the node makes no progress"),
    row("module-unloadable", 503, "A module cannot be loaded on this node"),
    row("compiler-unavailable", 503, "The node cannot compile modules now"),
    row("secret-unavailable", 503, "A secret cannot be opened on this node"),
    row("revision-unreadable", 503, "The revision cannot be read by this version"),
    row("exports-taken", 503, "As many exports with bodies run as may at once"),
    row("queue-unavailable", 503, "The node's queue does not answer"),
    row("store-unavailable", 503, "The node's store does not answer"),
    row("store-unconfirmed", 503, "The change may be made or not"),
    row("store-damaged", 503, "The node's store cannot be read"),
    row("stopping", 503, "The node is stopping"),
];

/// How soon a caller may ask again where waiting is what helps.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A refusal on its way to the caller.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Problem>);

impl Refusal {
    /// The problem of a token of [`PROBLEMS`], with what exactly is wrong and what to do.
    pub(crate) fn of(token: &str, detail: impl Into<String>) -> Self {
        let row = PROBLEMS.iter().find(|row| row.token == token);
        debug_assert!(row.is_some(), "{token} is no row of PROBLEMS");
        let row = row.unwrap_or(&ProblemRow { token: "internal", status: 500, title: "The node failed" });
        let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem::new(status, row.token, row.title).detail(detail);
        let wait = status == StatusCode::SERVICE_UNAVAILABLE;
        Self(Box::new(if wait { problem.retry_after(RETRY_AFTER) } else { problem }))
    }
}

/// For a name that no tenant can have.
pub(crate) fn unknown_tenant(error: InvalidName) -> Refusal {
    Refusal::of("unknown-tenant", error.to_string())
}

/// For a path whose parameters are no text.
pub(crate) fn unreadable_path(error: RawPathParamsRejection) -> Refusal {
    Refusal::of("unknown-path", format!("the path cannot be read: {error}"))
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        if error.kind() == ControlErrorKind::Unavailable {
            tracing::warn!(%error, "the control plane could not do what the admin API was asked for");
        }
        let detail = match error.limit() {
            Some(limit) => format!("{error} (limit: {limit})"),
            None => error.to_string(),
        };
        Self::of(error.token(), detail)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.token, self.0.detail.as_deref().unwrap_or_default())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let challenge = match &*self.0.token {
            "token-missing" => Some("Bearer realm=\"beamline\""),
            "token-unknown" => Some("Bearer realm=\"beamline\", error=\"invalid_token\""),
            _ => None,
        };
        let mut response = self.0.into_response().map(Body::from);
        if let Some(challenge) = challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// The most of a path that a message repeats.
const PATH_MAX: usize = 200;

/// Answers every path that no route has.
pub(crate) async fn unknown_path(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(PATH_MAX).collect();
    Refusal::of(
        "unknown-path",
        format!("expected a path of the admin API, such as /v1/tenants or /readyz; found {path}"),
    )
}

/// Answers a route's path with a method that it does not have. The router adds `Allow`.
pub(crate) async fn method_not_allowed(path: MatchedPath, method: Method) -> Refusal {
    let allowed: Vec<_> =
        ROUTES.iter().filter(|r| r.path == path.as_str()).map(|r| r.method.as_str()).collect();
    Refusal::of(
        "method-not-allowed",
        format!("expected {} for {}; found {method}", allowed.join(" or "), path.as_str()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_stands_once_and_by_status() {
        assert!(PROBLEMS.is_sorted_by_key(|row| row.status));
        let mut tokens: Vec<_> = PROBLEMS.iter().map(|row| row.token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), PROBLEMS.len());
    }

    #[test]
    fn every_refusal_of_control_has_its_row() {
        // Its variants cannot be listed from here, but the table that gives them their tokens can be read.
        let source = include_str!("../../control/src/error.rs");
        let tokens = source.lines().filter(|l| l.contains("=> (")).filter_map(|l| l.split('"').nth(1));
        let missing: Vec<_> = tokens
            // At the first start only, before there is an API.
            .filter(|token| *token != "token-unwritable")
            .filter(|token| PROBLEMS.iter().all(|row| row.token != *token))
            .collect();
        assert!(missing.is_empty() && source.contains("=> (Conflict, \"host-taken\")"), "{missing:?}");
    }

    #[test]
    fn every_route_names_problems_that_exist() {
        for route in ROUTES {
            for token in route.problems {
                assert!(
                    PROBLEMS.iter().any(|row| row.token == *token),
                    "{} {}: {token}",
                    route.method,
                    route.path
                );
            }
        }
    }
}
