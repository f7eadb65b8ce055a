//! Reads a request head back from the bytes that hyper wrote of it.
//!
//! Not a parser for what others send: the bytes are our own, and anything unexpected in them is a plain no.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{CONNECTION, TRANSFER_ENCODING},
    request::Parts,
};

/// The head that begins `written`, without the fields that hyper adds for one connection's sake.
pub(crate) fn read_back(written: &[u8]) -> Option<Parts> {
    let mut lines = Lines(written);
    let mut request_line = lines.next()?.split(|b| *b == b' ');
    let method = Method::from_bytes(request_line.next()?).ok()?;
    let target = request_line.next()?.try_into().ok()?;
    let mut headers = HeaderMap::new();
    loop {
        match lines.next()? {
            b"" => break,
            line => {
                let colon = line.iter().position(|b| *b == b':')?;
                let name = HeaderName::from_bytes(&line[..colon]).ok()?;
                let value = HeaderValue::from_bytes(line[colon + 1..].strip_prefix(b" ")?).ok()?;
                headers.append(name, value);
            }
        }
    }
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = target;
    parts.headers = headers;
    Some(parts)
}

/// What lies between CRLFs; a last line without one is no line.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.windows(2).position(|pair| pair == b"\r\n")?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 2..];
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_as_it_was_sent() {
        let written =
            b"PUT /a%20b?c=d&e= HTTP/1.1\r\nhost: acme.test\r\nx-many: 1\r\nx-many:  two \r\nx-empty: \r\n\
            x-latin: \xe9:\x80\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n4\r\nbody\r\n";
        let parts = read_back(written).unwrap();
        assert_eq!(parts.method, Method::PUT);
        assert_eq!(parts.uri, "/a%20b?c=d&e=");
        assert_eq!(parts.headers.get_all("x-many").iter().collect::<Vec<_>>(), ["1", " two "]);
        assert_eq!(parts.headers["x-empty"], "");
        assert_eq!(parts.headers["x-latin"].as_bytes(), b"\xe9:\x80");
        assert_eq!(parts.headers.len(), 5, "the connection's own fields are gone: {:?}", parts.headers);
    }

    #[test]
    fn a_head_that_is_not_whole_is_none() {
        let whole = b"GET / HTTP/1.1\r\nhost: acme.test\r\n\r\n";
        assert!(read_back(whole).is_some());
        for end in 0..whole.len() {
            assert!(read_back(&whole[..end]).is_none(), "{end}");
        }
    }
}
