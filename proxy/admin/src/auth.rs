//! Who is asking: bearer tokens (RFC 6750), looked at before anything else of a request.

use axum::{
    extract::{FromRequestParts, RawPathParams, Request, State, rejection::RawPathParamsRejection},
    middleware::Next,
    response::{IntoResponse, Response},
};
use beamline_control::{Control, ControlError};
use beamline_model::{TenantName, Token, TokenHash, TokenScope};
use http::{HeaderMap, header, request::Parts};

use crate::{
    RouteRow, Who,
    problem::{Refusal, unknown_tenant, unreadable_path},
};

/// Whom the request's token speaks for.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) TokenScope);

/// The hash of the request's token, for what goes on for so long that the token has to be looked at again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credential(pub(crate) TokenHash);

/// Stands before every route: finds out who is asking where the route wants to know, and leaves the row for those behind it.
///
/// Whom a route is for is asked here too, in `control`'s words, so that nobody's body is read in vain, and for what a route asks
/// of others than `control`.
pub(crate) async fn guard(
    State((control, row)): State<(Control, &'static RouteRow)>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let params = match params {
        Ok(params) => params,
        Err(error) => return unreadable_path(error).into_response(),
    };
    if row.who != Who::Anyone {
        let wanted = params.iter().find(|(name, _)| *name == "tenant").map(|(_, value)| value);
        let known = caller(&control, request.headers())
            .and_then(|(caller, credential)| Ok((admitted(caller, row, wanted)?, credential)));
        match known {
            Ok((caller, credential)) => {
                request.extensions_mut().insert(caller);
                request.extensions_mut().insert(credential);
            }
            Err(refusal) => return refusal.into_response(),
        }
    }
    request.extensions_mut().insert(row);
    next.run(request).await
}

fn caller(control: &Control, headers: &HeaderMap) -> Result<(Caller, Credential), Refusal> {
    let token = Token::presented(bearer(headers)?).hash();
    let scope = control.authenticate(&token).ok_or_else(unknown_token)?;
    Ok((Caller(scope), Credential(token)))
}

/// For a token that speaks for nobody, or for nobody any more.
pub(crate) fn unknown_token() -> Refusal {
    Refusal::of(
        "token-unknown",
        "the token is not one of this node's: use the operator's, which is in its data folder, or a tenant's, \
         which was shown when the tenant was created",
    )
}

fn admitted(caller: Caller, row: &RouteRow, wanted: Option<&str>) -> Result<Caller, Refusal> {
    match (&caller.0, row.who) {
        (TokenScope::Tenant(token), Who::Operator) => {
            Err(ControlError::OperatorOnly { token: token.clone(), wanted: row.does }.into())
        }
        (TokenScope::Tenant(token), Who::Tenant) if wanted != Some(token.as_str()) => {
            // A name that cannot be a tenant's is nobody's secret.
            let wanted: TenantName = wanted.unwrap_or_default().parse().map_err(unknown_tenant)?;
            Err(ControlError::OtherTenant { token: token.clone(), wanted }.into())
        }
        _ => Ok(caller),
    }
}

/// The token that a request presents.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let missing = |found: &str| {
        Refusal::of(
            "token-missing",
            format!("expected one header \"Authorization: Bearer <token>\", found {found}: send a token"),
        )
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Err(missing("none")),
        (Some(_), Some(_)) => return Err(missing("several")),
        (Some(value), None) => value,
    };
    // Nothing of the value may reach a message: it may be a token in the wrong place.
    let (scheme, token) =
        value.to_str().ok().and_then(|v| v.split_once(' ')).ok_or_else(|| missing("one of another form"))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing("another scheme"));
    }
    Ok(token.trim())
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        of_the_guard(parts)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Credential {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        of_the_guard(parts)
    }
}

/// What the guard found out. A route for anyone has no caller; a handler that asks for one there is refused rather than
/// trusted.
fn of_the_guard<T: Clone + Send + Sync + 'static>(parts: &Parts) -> Result<T, Refusal> {
    parts.extensions.get::<T>().cloned().ok_or_else(|| Refusal::of("internal", "the route has no caller"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn presented(values: &[&str]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        bearer(&headers).map(str::to_owned).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_bearer_token_is_taken_in_any_case_of_its_scheme() {
        for value in ["Bearer blo_1", "bearer blo_1", "BEARER  blo_1"] {
            assert_eq!(presented(&[value]).unwrap(), "blo_1");
        }
    }

    #[test]
    fn anything_else_is_refused_without_being_repeated() {
        for values in [&[][..], &["blo_1"], &["Basic blo_1"], &["Bearer blo_1", "Bearer blo_2"]] {
            let refusal = presented(values).unwrap_err();
            assert!(refusal.starts_with("token-missing: ") && !refusal.contains("blo_"), "{refusal}");
        }
    }
}
