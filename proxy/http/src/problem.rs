//! What an error looks like to a client: RFC 9457 problem documents and RFC 9209 `Proxy-Status`.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::{ErrorKind, PSEUDONYM};

/// The media type of problem documents.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// One error on its way to a client.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The last part of `type`.
    pub token: Cow<'static, str>,
    /// The status.
    pub status: StatusCode,
    /// `title`: the same for every problem of this type.
    pub title: Cow<'static, str>,
    /// `detail`: what was expected, what was found, what to do. Never a secret, never another tenant's data.
    pub detail: Option<String>,
    /// Sent as `Retry-After`, in whole seconds rounded up.
    pub retry_after: Option<Duration>,
    /// `Proxy-Status`, where the data plane answers.
    pub proxy_status: Option<&'static str>,
    /// The request's id, so that a client can name the request to an operator.
    pub request_id: Option<String>,
}

impl Problem {
    /// The problem of a data-plane error.
    pub fn of(kind: ErrorKind) -> Self {
        let row = kind.row();
        Self {
            token: row.token.into(),
            status: kind.status(),
            title: row.title.into(),
            detail: None,
            retry_after: None,
            proxy_status: Some(row.proxy_status),
            request_id: None,
        }
    }

    /// A problem of the admin API.
    pub fn new(status: StatusCode, token: &'static str, title: &'static str) -> Self {
        Self {
            token: token.into(),
            status,
            title: title.into(),
            detail: None,
            retry_after: None,
            proxy_status: None,
            request_id: None,
        }
    }

    /// With `detail`.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// With the request's id.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// The JSON document.
    pub fn to_json(&self) -> String {
        let mut doc = serde_json::Map::new();
        doc.insert("type".into(), format!("urn:beamline:problem:{}", self.token).into());
        doc.insert("title".into(), self.title.clone().into());
        doc.insert("status".into(), self.status.as_u16().into());
        if let Some(detail) = &self.detail {
            doc.insert("detail".into(), detail.clone().into());
        }
        if let Some(id) = &self.request_id {
            doc.insert("request_id".into(), id.clone().into());
        }
        serde_json::Value::Object(doc).to_string()
    }

    /// The whole response: status, `Content-Type`, `Cache-Control: no-store`, `Retry-After`, `Proxy-Status`, body.
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some(error) = self.proxy_status {
            proxy_status(headers, Some(error), None);
        }
        response
    }
}

/// Adds this proxy's member to `Proxy-Status` (RFC 9209): `beamline; error=…; details="…"`.
///
/// `details` must hold only visible ASCII without quotes and backslashes; another one is left out.
pub fn proxy_status(headers: &mut HeaderMap, error: Option<&str>, details: Option<&str>) {
    let mut value = String::from(PSEUDONYM);
    if let Some(error) = error {
        value.push_str("; error=");
        value.push_str(error);
    }
    if let Some(details) = details
        && details.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\')
    {
        value.push_str("; details=\"");
        value.push_str(details);
        value.push('"');
    }
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append("proxy-status", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_tells_client_and_machine_alike() {
        let response = Problem::of(ErrorKind::UpstreamConnect)
            .detail("upstream api")
            .retry_after(Duration::from_millis(1500))
            .request_id("r1")
            .into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["proxy-status"], "beamline; error=connection_refused");
        let doc: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(doc["type"], "urn:beamline:problem:upstream-connect");
        assert_eq!(doc["status"], 503);
    }

    #[test]
    fn details_cannot_break_out_of_proxy_status() {
        let mut headers = HeaderMap::new();
        proxy_status(&mut headers, None, Some("a\" ; b"));
        assert_eq!(headers["proxy-status"], "beamline");
    }
}
