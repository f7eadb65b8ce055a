//! HTTP/1.1 messages over blocking streams, read as they came: what the client and the servers of the harness share.
//!
//! Not a parser for hostile input: it takes what a correct peer sends, and says clearly where a message was cut off.

use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, bail, ensure};

/// The most bytes of one head.
const MAX_HEAD: usize = 256 << 10;
/// The most bytes of one body that is kept.
const MAX_BODY: u64 = 1 << 30;

/// Field lines in the order in which they came, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Every value of a field, in order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Whether a comma-separated field has this member, in any case.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.all(name).flat_map(|v| v.split(',')).any(|m| m.trim().eq_ignore_ascii_case(member))
    }

    /// All lines.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How a message ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As its framing said.
    Whole,
    /// Before that, with what happened.
    Cut(String),
}

impl End {
    /// Whether the message came whole.
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

/// A head: first line and fields.
#[derive(Clone, Debug)]
pub struct Head {
    /// The request line or status line.
    pub first_line: String,
    /// The fields.
    pub headers: Headers,
}

/// A body with what came after it.
#[derive(Clone, Debug)]
pub struct Body {
    /// The bytes, without framing.
    pub bytes: Vec<u8>,
    /// The trailer fields of a chunked body.
    pub trailers: Headers,
    /// Whether it came whole.
    pub end: End,
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Until the connection ends (responses only).
    UntilClose,
}

impl Framing {
    /// Of a request.
    ///
    /// # Errors
    /// Where `Content-Length` is no number.
    pub fn of_request(headers: &Headers) -> Result<Self> {
        Ok(match Self::declared(headers)? {
            Self::UntilClose => Self::None,
            framing => framing,
        })
    }

    /// Of the response with this status to a request with this method.
    ///
    /// # Errors
    /// Where `Content-Length` is no number.
    pub fn of_response(method: &str, status: u16, headers: &Headers) -> Result<Self> {
        if method == "HEAD" || status / 100 == 1 || status == 204 || status == 304 {
            return Ok(Self::None);
        }
        Self::declared(headers)
    }

    fn declared(headers: &Headers) -> Result<Self> {
        if headers.lists("transfer-encoding", "chunked") {
            return Ok(Self::Chunked);
        }
        match headers.get("content-length") {
            None => Ok(Self::UntilClose),
            Some(n) => {
                let n =
                    n.parse().with_context(|| format!("expected a number as content-length; found {n:?}"))?;
                ensure!(n <= MAX_BODY, "expected a body of at most {MAX_BODY} bytes; found {n}");
                Ok(Self::Length(n))
            }
        }
    }
}

/// One line without its end; `None` where the stream ended before its first byte.
fn read_line(from: &mut impl BufRead, budget: &mut usize) -> Result<Option<String>> {
    let mut line = Vec::new();
    from.by_ref().take(*budget as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() && *budget > 0 {
        return Ok(None);
    }
    *budget -= line.len();
    if line.pop() != Some(b'\n') {
        if *budget == 0 {
            bail!("expected a head of at most {MAX_HEAD} bytes; found a longer one");
        }
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended inside a head").into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(Some(line.into_iter().map(char::from).collect()))
}

fn read_fields(from: &mut impl BufRead, budget: &mut usize) -> Result<Headers> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(from, budget)?.context("the connection ended inside a head")?;
        if line.is_empty() {
            return Ok(Headers(fields));
        }
        let (name, value) =
            line.split_once(':').with_context(|| format!("expected a field line; found {line:?}"))?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Reads a head; `None` where the peer closed before its first byte.
///
/// # Errors
/// Where the stream fails or ends inside the head, or it is malformed or too long.
pub fn read_head(from: &mut impl BufRead) -> Result<Option<Head>> {
    let mut budget = MAX_HEAD;
    let Some(first_line) = read_line(from, &mut budget)? else { return Ok(None) };
    Ok(Some(Head { first_line, headers: read_fields(from, &mut budget)? }))
}

/// Reads a body. A stream that fails or ends early is no error here: the body says so in `end`.
pub fn read_body(from: &mut impl BufRead, framing: Framing) -> Body {
    let mut body = Body { bytes: Vec::new(), trailers: Headers::default(), end: End::Whole };
    let result = match framing {
        Framing::None => Ok(()),
        Framing::Length(n) => read_exactly(from, n, &mut body.bytes),
        Framing::Chunked => read_chunks(from, &mut body),
        Framing::UntilClose => {
            from.by_ref().take(MAX_BODY).read_to_end(&mut body.bytes).map(drop).map_err(Into::into)
        }
    };
    if let Err(error) = result {
        body.end = End::Cut(format!("{error:#}"));
    }
    body
}

fn read_exactly(from: &mut impl BufRead, n: u64, into: &mut Vec<u8>) -> Result<()> {
    let before = into.len() as u64;
    from.by_ref().take(n).read_to_end(into)?;
    let found = into.len() as u64 - before;
    ensure!(found == n, "the connection ended after {found} of {n} body bytes");
    Ok(())
}

fn read_chunks(from: &mut impl BufRead, body: &mut Body) -> Result<()> {
    loop {
        let line = read_line(from, &mut 4096)?.context("the connection ended between two chunks")?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16)
            .with_context(|| format!("expected a chunk size; found {line:?}"))?;
        ensure!(
            body.bytes.len() as u64 + size <= MAX_BODY,
            "expected a body of at most {MAX_BODY} bytes; found more"
        );
        if size == 0 {
            body.trailers = read_fields(from, &mut MAX_HEAD.clone())?;
            return Ok(());
        }
        read_exactly(from, size, &mut body.bytes)?;
        let end = read_line(from, &mut 4096)?.context("the connection ended inside a chunk")?;
        ensure!(end.is_empty(), "expected the end of a chunk; found {end:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(text: &str) -> Body {
        let mut from = text.as_bytes();
        let head = read_head(&mut from).unwrap().unwrap();
        let status = head.first_line.split(' ').nth(1).unwrap().parse().unwrap();
        read_body(&mut from, Framing::of_response("GET", status, &head.headers).unwrap())
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        for (text, bytes, end) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", "abc", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd", "abcd", false),
            ("HTTP/1.1 200 OK\r\n\r\nabcd", "abcd", true),
            ("HTTP/1.1 204 No Content\r\n\r\nabcd", "", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n", "abc", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "abc", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", "ab", false),
        ] {
            let body = body_of(text);
            assert_eq!((body.bytes, body.end.is_whole()), (bytes.into(), end), "{text:?}: {:?}", body.end);
        }
    }

    #[test]
    fn trailers_are_kept_apart_and_names_are_found_in_any_case() {
        let body = body_of("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nX-Sum: 7\r\n\r\n");
        assert_eq!(body.trailers.get("x-sum"), Some("7"));
        assert_eq!(body.trailers.get("X-SUM"), Some("7"));
    }

    #[test]
    fn a_peer_that_closes_at_once_is_not_an_error_and_one_inside_a_head_is() {
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nhost"[..]).is_err());
    }
}
