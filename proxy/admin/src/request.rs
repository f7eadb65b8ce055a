//! What handlers take from a request, each refused with a problem that says what was expected.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody as _},
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
};
use beamline_model::{InvalidName, RevisionId, SecretName, TenantName, UpstreamName};
use beamline_queue::RecordId;
use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::{
    RouteRow,
    problem::{Refusal, unknown_tenant, unreadable_path},
};

/// How long a caller may take to send a body.
pub const BODY_TIME: Duration = Duration::from_secs(60);

/// The tenant that the path names.
pub(crate) struct Tenant(pub(crate) TenantName);

/// The revision that the path names.
pub(crate) struct Revision(pub(crate) RevisionId);

/// The queued record that the path names.
pub(crate) struct Record(pub(crate) RecordId);

/// The upstream that the path names.
pub(crate) struct Upstream(pub(crate) UpstreamName);

/// The secret that the path names.
pub(crate) struct Secret(pub(crate) SecretName);

/// The whole body, as it came.
pub(crate) struct Raw(pub(crate) Bytes);

/// The body as a JSON document.
pub(crate) struct Document<T>(pub(crate) T);

/// The body as a JSON document, or the default where there is no body.
pub(crate) struct OrEmpty<T>(pub(crate) T);

/// The query's parameters.
pub(crate) struct Query<T>(pub(crate) T);

async fn parameter<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<String, Refusal> {
    let params = RawPathParams::from_request_parts(parts, state).await.map_err(unreadable_path)?;
    let found = params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    found.ok_or_else(|| Refusal::of("internal", format!("the route has no parameter {name}")))
}

impl<S: Send + Sync> FromRequestParts<S> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let name = parameter(parts, state, "tenant").await?;
        name.parse().map(Self).map_err(unknown_tenant)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Revision {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let text = parameter(parts, state, "revision").await?;
        let number = text.parse().ok().filter(|n| *n > 0);
        number.map(|n| Self(RevisionId(n))).ok_or_else(|| {
            let found: String = text.chars().take(40).collect();
            Refusal::of(
                "unknown-revision",
                format!("expected a revision's number, from 1 upwards; found {found:?}"),
            )
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Record {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let id = parameter(parts, state, "record").await?.parse();
        id.map(Self).map_err(|error| Refusal::of("unknown-record", format!("{error}")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Upstream {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let name = parameter(parts, state, "upstream").await?.parse();
        name.map(Self).map_err(|error: InvalidName| Refusal::of("unknown-upstream", error.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Secret {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let name = parameter(parts, state, "secret").await?.parse();
        name.map(Self).map_err(|error: InvalidName| Refusal::of("unknown-secret", error.to_string()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => {
                let why =
                    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Err(Refusal::of("invalid-request", format!("the query: {why}")))
            }
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let limit = request.extensions().get::<&'static RouteRow>().map_or(0, |row| row.max_body);
        read(request.into_body(), limit, || {
            let told = format!("the body has more than the {limit} bytes that this route takes: send less");
            Refusal::of("body-too-large", told)
        })
        .await
        .map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Document<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Raw(body) = Raw::from_request(request, state).await?;
        parse(&body).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OrEmpty<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Raw(body) = Raw::from_request(request, state).await?;
        if body.is_empty() { Ok(Self(T::default())) } else { parse(&body).map(Self) }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::of("invalid-request", format!("the body: {error}")))
}

/// Reads a body, whole or not at all: at most `limit` bytes, within [`BODY_TIME`]. Where it is longer, it is `too_large`.
pub(crate) async fn read(
    body: Body,
    limit: usize,
    too_large: impl FnOnce() -> Refusal,
) -> Result<Bytes, Refusal> {
    // A length that is announced is judged before the first byte of it is asked for.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Refusal::of("body-incomplete", format!("the body broke off ({error}): send it again")))
        }
        Err(_) => Err(Refusal::of(
            "body-incomplete",
            format!("the body did not come whole within {} s: send it again", BODY_TIME.as_secs()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;

    use super::*;

    /// A body that never ends.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1024])))))
        }
    }

    /// A body that never comes.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Pending
        }
    }

    fn told() -> Refusal {
        Refusal::of("body-too-large", "at most 5")
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_no_further() {
        assert_eq!(read(Body::from("12345"), 5, told).await.unwrap(), "12345");
        for body in [Body::from("123456"), Body::new(Endless)] {
            let refusal = read(body, 5, told).await.unwrap_err().to_string();
            assert_eq!(refusal, "body-too-large: at most 5");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let refusal = read(Body::new(Silent), 5, told).await.unwrap_err().to_string();
        assert!(refusal.starts_with("body-incomplete: the body did not come whole within 60 s"), "{refusal}");
    }
}
