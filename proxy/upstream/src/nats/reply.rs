//! A reply as a response. What a service or a server writes is mistrusted as an origin's words are.

use beamline_http::{MAX_FIELDS, MAX_HEAD_BYTES, proxy_status};
use beamline_model::NatsKind;
use beamline_nats::Message;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use serde::Deserialize;

use super::{Broken, room::Held};
use crate::{BoxError, ErrorKind, Sentness, UpstreamBody};

/// The response that a reply means, or why it is none. Its body holds `room` until its client has taken it.
pub(super) fn response(reply: Message, kind: NatsKind, room: Held) -> Result<Response<UpstreamBody>, Broken> {
    match reply.status {
        None => {}
        // The server's own word: it had nobody to give the message to.
        Some(503) => return Err(Broken::unsent(ErrorKind::NoResponders)),
        Some(status) => return Err(bad(format!("the server answered with the status {status}").into())),
    }
    match kind {
        NatsKind::Request => from_service(reply, room),
        NatsKind::Jetstream => from_stream(&reply),
    }
}

fn bad(source: BoxError) -> Broken {
    Broken { kind: ErrorKind::BadResponse, sent: Sentness::Maybe, source: Some(source) }
}

fn made(status: StatusCode, headers: HeaderMap, payload: Bytes) -> Response<UpstreamBody> {
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let mut response = Response::new(UpstreamBody::whole(if bodiless { Bytes::new() } else { payload }));
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_11;
    *response.headers_mut() = headers;
    response
}

/// A service's reply: its status from `Beamline-Status` or as NATS services tell their errors, else 200.
fn from_service(reply: Message, room: Held) -> Result<Response<UpstreamBody>, Broken> {
    let Message { headers: fields, mut payload, .. } = reply;
    let told = |wanted: &str| {
        let found = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    let mut headers = fields_of(&fields)?;
    let status = if let Some(code) = told("Nats-Service-Error-Code") {
        // A service that says nothing else says at least what went wrong.
        if payload.is_empty()
            && let Some(words) = told("Nats-Service-Error")
        {
            payload = Bytes::from(words);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        code.parse().ok().filter(|code| (400..=599).contains(code)).unwrap_or(502)
    } else if let Some(status) = told("Beamline-Status") {
        let read = status.parse().ok().filter(|status| (200..=599).contains(status));
        read.ok_or_else(|| bad("expected a Beamline-Status from 200 to 599".into()))?
    } else {
        200
    };
    let status = StatusCode::from_u16(status).map_err(|error| bad(error.into()))?;
    // Not the request's want of room, for somebody had it: a client is not told to try again.
    let no_room =
        |_| bad("too many replies are held for clients that read slowly: there is no room for it".into());
    let payload = room.over(payload).map_err(no_room)?;
    Ok(made(status, headers, payload))
}

/// The reply's headers that are fields of a response. Framing is ours, `Nats-` and `Beamline-` are not for clients.
fn fields_of(fields: &[(String, Vec<u8>)]) -> Result<HeaderMap, Broken> {
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    if fields.len() > MAX_FIELDS || bytes > MAX_HEAD_BYTES {
        return Err(bad(
            format!("expected at most {MAX_FIELDS} headers of {MAX_HEAD_BYTES} bytes together").into()
        ));
    }
    let mut headers = HeaderMap::with_capacity(fields.len() + 2);
    for (name, value) in fields {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value))
        else {
            continue;
        };
        let own = name.as_str().starts_with("nats-") || name.as_str().starts_with("beamline-");
        if !own && name != header::CONTENT_LENGTH && name != header::TRANSFER_ENCODING {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// A stream's acknowledgement, as far as it is needed.
#[derive(Debug, Deserialize)]
struct PubAck {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<PubError>,
}

#[derive(Debug, Deserialize)]
struct PubError {
    code: u16,
    #[serde(default)]
    description: String,
}

fn from_stream(reply: &Message) -> Result<Response<UpstreamBody>, Broken> {
    let ack: PubAck = serde_json::from_slice(&reply.payload)
        .map_err(|_| bad("expected a stream's acknowledgement: does a stream have the subject?".into()))?;
    if let Some(PubError { code, description }) = ack.error {
        // Either way the stream did not take it.
        let kind = if code >= 500 { ErrorKind::StreamUnavailable } else { ErrorKind::Refused };
        let words: String = description.chars().take(200).collect();
        return Err(Broken { source: Some(words.into()), ..Broken::unsent(kind) });
    }
    let PubAck { stream, seq, duplicate, .. } = ack;
    if stream.is_empty() || seq == 0 {
        return Err(bad("expected a stream and a sequence in the acknowledgement".into()));
    }
    let body =
        serde_json::json!({ "status": "published", "stream": stream, "seq": seq, "duplicate": duplicate });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let details =
        format!("published; stream={stream}; seq={seq}{}", if duplicate { "; duplicate" } else { "" });
    proxy_status(&mut headers, None, Some(&details));
    Ok(made(StatusCode::ACCEPTED, headers, Bytes::from(body.to_string())))
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use http_body::Body as _;

    use super::*;
    use crate::nats::room::Room;

    fn room(bytes: u64) -> Held {
        Room::new(bytes).hold(&"acme".parse().unwrap())
    }

    fn reply(headers: &[(&str, &str)], payload: &str) -> Message {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect();
        Message { status: None, headers, payload: Bytes::from(payload.to_owned()) }
    }

    fn serviced(headers: &[(&str, &str)], payload: &str) -> Result<Response<UpstreamBody>, ErrorKind> {
        response(reply(headers, payload), NatsKind::Request, room(1 << 20)).map_err(|broken| broken.kind)
    }

    #[test]
    fn a_services_reply_becomes_a_response() {
        let response = serviced(
            &[
                ("Beamline-Status", "201"),
                ("Content-Type", "text/plain"),
                ("X-A", "1"),
                ("X-A", "2"),
                ("Content-Length", "99"),
                ("Nats-Sequence", "7"),
                ("bad name", "x"),
            ],
            "made",
        )
        .unwrap();
        assert_eq!((response.status(), response.headers().len()), (StatusCode::CREATED, 3));
        assert_eq!(response.headers().get_all("x-a").iter().count(), 2);
        assert_eq!(response.body().size_hint().exact(), Some(4));
        assert_eq!(serviced(&[], "").unwrap().status(), StatusCode::OK);
        assert!(serviced(&[("Beamline-Status", "204")], "x").unwrap().body().is_end_stream());
    }

    #[test]
    fn a_reply_takes_room_until_its_client_has_it_and_without_room_is_none() {
        let (room, acme) = (Room::new(10), "acme".parse().unwrap());
        let of = |payload| response(reply(&[], payload), NatsKind::Request, room.hold(&acme));
        let mut body = of("12345").unwrap().into_body();
        let broken = of("6").unwrap_err();
        assert_eq!((broken.kind, broken.sent), (ErrorKind::BadResponse, Sentness::Maybe));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) else {
            panic!("the payload is there");
        };
        // Taken from the body, it waits for a slow client in its connection's buffers.
        drop(body);
        assert_eq!(of("6").unwrap_err().kind, ErrorKind::BadResponse);
        drop(frame);
        of("6").unwrap();
    }

    #[test]
    fn a_services_error_becomes_its_status() {
        for (code, status) in [("404", 404), ("503", 503), ("200", 502), ("oops", 502)] {
            let response =
                serviced(&[("Nats-Service-Error-Code", code), ("Nats-Service-Error", "not there")], "");
            let response = response.unwrap();
            assert_eq!((response.status().as_u16(), response.body().size_hint().exact()), (status, Some(9)));
        }
    }

    #[test]
    fn what_is_no_response_is_none() {
        for status in ["99", "101", "600", "", "abc"] {
            assert_eq!(serviced(&[("Beamline-Status", status)], "").unwrap_err(), ErrorKind::BadResponse);
        }
        let many = vec![("X-A", "1"); MAX_FIELDS + 1];
        assert_eq!(serviced(&many, "").unwrap_err(), ErrorKind::BadResponse);
        let long = "x".repeat(MAX_HEAD_BYTES);
        assert_eq!(serviced(&[("X-A", &long)], "").unwrap_err(), ErrorKind::BadResponse);
        let nobody = Message { status: Some(503), ..Message::default() };
        let broken = response(nobody, NatsKind::Request, room(0)).unwrap_err();
        assert_eq!((broken.kind, broken.sent), (ErrorKind::NoResponders, Sentness::Nothing));
    }

    #[test]
    fn a_streams_word_is_taken_as_it_is_meant() {
        let of = |payload: &str| response(reply(&[], payload), NatsKind::Jetstream, room(0));
        let answer = of(r#"{"stream":"ORDERS","seq":7}"#).unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(answer.headers()["proxy-status"], "beamline; details=\"published; stream=ORDERS; seq=7\"");
        let again = of(r#"{"stream":"ORDERS","seq":7,"duplicate":true}"#).unwrap();
        assert!(again.headers()["proxy-status"].to_str().unwrap().ends_with("seq=7; duplicate\""));
        for (payload, kind, sent) in [
            (
                r#"{"error":{"code":503,"description":"full"}}"#,
                ErrorKind::StreamUnavailable,
                Sentness::Nothing,
            ),
            (r#"{"error":{"code":400,"err_code":10054}}"#, ErrorKind::Refused, Sentness::Nothing),
            (r#"{"stream":"ORDERS"}"#, ErrorKind::BadResponse, Sentness::Maybe),
            ("pong", ErrorKind::BadResponse, Sentness::Maybe),
        ] {
            let broken = of(payload).unwrap_err();
            assert_eq!((broken.kind, broken.sent), (kind, sent), "{payload}");
        }
    }
}
