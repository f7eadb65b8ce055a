//! The client protocol's wire form. Pure; what comes from a server is bounded and mistrusted.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::headers;

/// The longest control line. An INFO that lists a large cluster's servers is the longest that there is.
const LINE_MAX: usize = 64 << 10;
/// The largest message that is read, headers included; a larger one is skipped and its request told so.
pub(crate) const MESSAGE_MAX: usize = 8 << 20;

/// What a server sent that is no NATS.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the server sent what is not the NATS protocol: {0}")]
pub(crate) struct ProtocolError(&'static str);

/// What a server says of itself. Fields that are not needed are not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Info {
    pub(crate) max_payload: u64,
    pub(crate) headers: bool,
    pub(crate) tls_required: bool,
    /// It takes connections under TLS as well as in the clear.
    pub(crate) tls_available: bool,
    pub(crate) auth_required: bool,
    pub(crate) nonce: Option<String>,
    /// It is about to go (lame duck mode): it takes nobody any more.
    pub(crate) ldm: bool,
}

/// What we say of ourselves.
#[derive(Serialize)]
pub(crate) struct Hello<'a> {
    pub(crate) verbose: bool,
    pub(crate) pedantic: bool,
    pub(crate) tls_required: bool,
    pub(crate) echo: bool,
    pub(crate) headers: bool,
    pub(crate) no_responders: bool,
    pub(crate) lang: &'static str,
    pub(crate) version: &'static str,
    pub(crate) protocol: u8,
    pub(crate) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auth_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nkey: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sig: Option<&'a str>,
}

/// A message that came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The status in its headers' first line: the server's own word, such as 503 where nobody listens.
    pub status: Option<u16>,
    /// Its headers, names as they came.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its payload.
    pub payload: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerOp {
    Info(Info),
    Ping,
    Pong,
    Ok,
    Err(String),
    /// A message to this subject; none where it was too large to be read or its headers are none.
    Message(String, Option<Message>),
}

/// Reads what a server sends, in whatever pieces it comes.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The message whose head was read.
    head: Option<Head>,
    /// Bytes that are passed over.
    skip: usize,
}

#[derive(Debug)]
struct Head {
    subject: String,
    headers: usize,
    total: usize,
}

impl Decoder {
    /// The next operation, if it is there whole.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<ServerOp>, ProtocolError> {
        loop {
            if self.skip > 0 {
                let passed = self.skip.min(buffer.len());
                buffer.advance(passed);
                self.skip -= passed;
                if self.skip > 0 {
                    return Ok(None);
                }
            }
            if let Some(head) = &self.head {
                if buffer.len() < head.total + 2 {
                    return Ok(None);
                }
                let head = self.head.take().expect("it was looked at just now");
                return message(head, buffer).map(Some);
            }
            let Some(end) = buffer.windows(2).take(LINE_MAX).position(|pair| pair == b"\r\n") else {
                return if buffer.len() > LINE_MAX {
                    Err(ProtocolError("a control line without an end"))
                } else {
                    Ok(None)
                };
            };
            let line = buffer.split_to(end + 2);
            let line =
                std::str::from_utf8(&line[..end]).map_err(|_| ProtocolError("a line that is no text"))?;
            let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            match verb.to_ascii_uppercase().as_str() {
                "MSG" => self.begin(rest, false)?,
                "HMSG" => self.begin(rest, true)?,
                "PING" => return Ok(Some(ServerOp::Ping)),
                "PONG" => return Ok(Some(ServerOp::Pong)),
                "+OK" => return Ok(Some(ServerOp::Ok)),
                "-ERR" => {
                    let text = rest.trim().trim_matches('\'').chars().take(300).collect();
                    return Ok(Some(ServerOp::Err(text)));
                }
                "INFO" => {
                    let info = serde_json::from_str(rest.trim());
                    return info
                        .map(|info| Some(ServerOp::Info(info)))
                        .map_err(|_| ProtocolError("an INFO that cannot be read"));
                }
                _ => return Err(ProtocolError("an operation that is not known")),
            }
            if let Some(head) = self.head.take_if(|head| head.total > MESSAGE_MAX) {
                self.skip = head.total + 2;
                return Ok(Some(ServerOp::Message(head.subject, None)));
            }
        }
    }

    /// `subject sid [reply] [headers] total`.
    fn begin(&mut self, arguments: &str, with_headers: bool) -> Result<(), ProtocolError> {
        let wrong = || ProtocolError("a message's head that cannot be read");
        let parts: Vec<&str> = arguments.split_ascii_whitespace().take(6).collect();
        let sizes = if with_headers { 2 } else { 1 };
        if !(2 + sizes..=3 + sizes).contains(&parts.len()) {
            return Err(wrong());
        }
        let size = |at: usize| parts[parts.len() - at].parse::<u32>().map_err(|_| wrong());
        let total = size(1)? as usize;
        let headers = if with_headers { size(2)? as usize } else { 0 };
        if headers > total {
            return Err(wrong());
        }
        self.head = Some(Head { subject: parts[0].to_owned(), headers, total });
        Ok(())
    }
}

fn message(head: Head, buffer: &mut BytesMut) -> Result<ServerOp, ProtocolError> {
    let mut payload = buffer.split_to(head.total).freeze();
    if buffer.split_to(2) != b"\r\n"[..] {
        return Err(ProtocolError("a message that does not end where it said"));
    }
    if head.headers == 0 {
        return Ok(ServerOp::Message(head.subject, Some(Message { payload, ..Message::default() })));
    }
    let block = payload.split_to(head.headers);
    let message = headers::parse(&block).map(|parsed| Message {
        status: parsed.status,
        headers: parsed.headers,
        payload,
    });
    Ok(ServerOp::Message(head.subject, message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<ServerOp>, ProtocolError> {
        let (mut decoder, mut buffer, mut ops) = (Decoder::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(&piece);
            while let Some(op) = decoder.next(&mut buffer)? {
                ops.push(op);
            }
        }
        Ok(ops)
    }

    const STREAM: &[u8] =
        b"INFO {\"max_payload\":1048576,\"headers\":true,\"version\":\"2.10\"}\r\nPING\r\nMSG _INBOX.a.b 1 5\r\nhe\r\nl\r\n\
          HMSG _INBOX.a.c 1 reply 16 16\r\nNATS/1.0 503\r\n\r\n\r\n-ERR 'Slow Consumer'\r\nMSG x 1 0\r\n\r\npong\r\n";

    #[test]
    fn operations_are_read() {
        let ops = all([STREAM.to_vec()]).unwrap();
        let info = Info { max_payload: 1 << 20, headers: true, ..Info::default() };
        let payload = Message { payload: Bytes::from_static(b"he\r\nl"), ..Message::default() };
        let nobody = Message { status: Some(503), ..Message::default() };
        assert_eq!(
            ops,
            [
                ServerOp::Info(info),
                ServerOp::Ping,
                ServerOp::Message("_INBOX.a.b".into(), Some(payload)),
                ServerOp::Message("_INBOX.a.c".into(), Some(nobody)),
                ServerOp::Err("Slow Consumer".into()),
                ServerOp::Message("x".into(), Some(Message::default())),
                ServerOp::Pong,
            ]
        );
    }

    #[test]
    fn a_message_that_is_too_large_is_passed_over() {
        let size = MESSAGE_MAX + 1;
        let head = format!("MSG big 1 {size}\r\n").into_bytes();
        let ops = all([head, vec![b'x'; size / 2], vec![b'x'; size - size / 2], b"\r\nPING\r\n".to_vec()]);
        assert_eq!(ops.unwrap(), [ServerOp::Message("big".into(), None), ServerOp::Ping]);
    }

    #[test]
    fn what_is_not_the_protocol_is_an_error() {
        for bad in [
            "HELLO\r\n",
            "MSG a\r\n",
            "MSG a 1 -1\r\n",
            "MSG a 1 99999999999\r\n",
            "HMSG a 1 9 5\r\n",
            "INFO {\r\n",
            "MSG a 1 1\r\nxyz\r\n",
            "MSG a 1 r s t 1\r\n",
        ] {
            assert!(all([bad.as_bytes().to_vec()]).is_err(), "{bad}");
        }
        assert!(all([vec![b'a'; LINE_MAX + 2]]).is_err());
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(cuts in proptest::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| STREAM[cut[0]..cut[1]].to_vec());
            prop_assert_eq!(all(pieces), all([STREAM.to_vec()]));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = all([bytes]);
        }
    }
}
