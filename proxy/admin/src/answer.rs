//! What answers look like.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// An answer: a status and a JSON document.
pub(crate) struct Answer<T>(pub(crate) StatusCode, pub(crate) T);

/// A `200` with a JSON document.
pub(crate) fn ok<T: Serialize>(document: T) -> Answer<T> {
    Answer(StatusCode::OK, document)
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.1).expect("every answer can be written as JSON");
        let json = HeaderValue::from_static("application/json");
        (self.0, [(header::CONTENT_TYPE, json)], body).into_response()
    }
}

/// What every answer gets, whoever made it: tokens and tenants' data are nothing for a cache, and documents nothing to sniff at.
pub(crate) async fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
