//! Where HTTP/1.1 messages end, found without keeping them: what the load generator and the quick origin need of HTTP,
//! at well under a microsecond per message.

use memchr::{memchr, memmem};

/// The most bytes of a head that came in pieces.
const MAX_HEAD: usize = 64 << 10;

/// Which messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Requests,
    /// Of requests other than HEAD and CONNECT.
    Responses,
}

/// What is known of a message that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The status of a response; of a request the one that it asks for by a target such as `/status/500`, or 0.
    pub(super) status: u16,
    /// Whether its `Connection` field says `close`, or its end is the connection's end.
    pub(super) close: bool,
}

/// The bytes are not HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Scans one connection's bytes.
pub(super) struct Scanner {
    side: Side,
    state: State,
    seen: Seen,
    /// The part of a head that came so far; empty where heads come in one piece.
    partial: Vec<u8>,
    started: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Body(u64),
    ChunkSize {
        size: u64,
        extension: bool,
    },
    ChunkData(u64),
    /// The line end after a chunk.
    ChunkEnd,
    /// The lines after the last chunk; `empty` while the line has no byte yet.
    Trailers {
        empty: bool,
    },
    UntilClose,
}

/// How a body is framed.
enum Framing {
    Length(u64),
    Chunked,
    Undeclared,
}

impl Scanner {
    pub(super) fn new(side: Side) -> Self {
        let seen = Seen { status: 0, close: false };
        Self { side, state: State::Head, seen, partial: Vec::new(), started: false }
    }

    /// Ready for a new connection.
    pub(super) fn reset(&mut self) {
        self.state = State::Head;
        self.partial.clear();
        self.started = false;
    }

    /// Whether a byte of the current message has come.
    pub(super) fn started(&self) -> bool {
        self.started
    }

    /// The connection has ended: whether the current message did with it, as its framing allows.
    pub(super) fn end(&self) -> Option<Seen> {
        matches!(self.state, State::UntilClose).then_some(Seen { close: true, ..self.seen })
    }

    /// Takes bytes from the front of `bytes`, at most to the end of the current message, which is then returned.
    pub(super) fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Seen>, Malformed> {
        while !bytes.is_empty() {
            self.started = true;
            match self.state {
                State::Head => {
                    let head_done = self.take_head(bytes)?;
                    if !head_done {
                        return Ok(None);
                    }
                    if matches!(self.state, State::Body(0)) {
                        return Ok(Some(self.finish()));
                    }
                }
                State::Body(left) => {
                    let n = left.min(bytes.len() as u64);
                    *bytes = &bytes[n as usize..];
                    self.state = State::Body(left - n);
                    if left == n {
                        return Ok(Some(self.finish()));
                    }
                }
                State::UntilClose => *bytes = &[],
                State::ChunkData(left) => {
                    let n = left.min(bytes.len() as u64);
                    *bytes = &bytes[n as usize..];
                    self.state = if left == n { State::ChunkEnd } else { State::ChunkData(left - n) };
                }
                State::ChunkSize { .. } | State::ChunkEnd | State::Trailers { .. } => {
                    let byte = bytes[0];
                    *bytes = &bytes[1..];
                    if self.chunk_byte(byte)? {
                        return Ok(Some(self.finish()));
                    }
                }
            }
        }
        Ok(None)
    }

    /// One byte between chunks; true at the message's end.
    fn chunk_byte(&mut self, byte: u8) -> Result<bool, Malformed> {
        self.state = match (self.state, byte) {
            (State::ChunkSize { size: 0, .. }, b'\n') => State::Trailers { empty: true },
            (State::ChunkSize { size, .. }, b'\n') => State::ChunkData(size),
            (state @ State::ChunkSize { extension: true, .. }, _) => state,
            (State::ChunkSize { size, .. }, b';' | b'\r' | b' ') => {
                State::ChunkSize { size, extension: true }
            }
            (State::ChunkSize { size, .. }, digit) => {
                let digit = (digit as char).to_digit(16).ok_or(Malformed)?;
                let size = size.checked_mul(16).ok_or(Malformed)? + u64::from(digit);
                State::ChunkSize { size, extension: false }
            }
            (State::ChunkEnd, b'\r') => State::ChunkEnd,
            (State::ChunkEnd, b'\n') => State::ChunkSize { size: 0, extension: false },
            (State::Trailers { empty: true }, b'\n') => return Ok(true),
            (State::Trailers { empty: false }, b'\n') => State::Trailers { empty: true },
            (state @ State::Trailers { .. }, b'\r') => state,
            (State::Trailers { .. }, _) => State::Trailers { empty: false },
            _ => return Err(Malformed),
        };
        Ok(false)
    }

    /// True where the head is complete; the state then tells what follows.
    fn take_head(&mut self, bytes: &mut &[u8]) -> Result<bool, Malformed> {
        const END: &[u8] = b"\r\n\r\n";
        if self.partial.is_empty() {
            if let Some(at) = memmem::find(bytes, END) {
                let (head, rest) = bytes.split_at(at + END.len());
                *bytes = rest;
                return self.read_head(head).map(|()| true);
            }
            self.partial.extend_from_slice(bytes);
            *bytes = &[];
            return Ok(false);
        }
        // The end may straddle the pieces.
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        let from = before.saturating_sub(END.len() - 1);
        let Some(at) = memmem::find(&self.partial[from..], END) else {
            *bytes = &[];
            return if self.partial.len() > MAX_HEAD { Err(Malformed) } else { Ok(false) };
        };
        let length = from + at + END.len();
        *bytes = &bytes[length - before..];
        let mut head = std::mem::take(&mut self.partial);
        let result = self.read_head(&head[..length]);
        head.clear();
        self.partial = head;
        result.map(|()| true)
    }

    fn read_head(&mut self, head: &[u8]) -> Result<(), Malformed> {
        let status = match self.side {
            Side::Requests => asked_for(head).unwrap_or(0),
            Side::Responses => {
                let digits =
                    head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).ok_or(Malformed)?;
                number(digits)? as u16
            }
        };
        let (framing, close) = read_fields(head)?;
        self.seen = Seen { status, close };
        self.state = match framing {
            // An interim response: the final one's head follows.
            _ if status / 100 == 1 => State::Head,
            _ if status == 204 || status == 304 => State::Body(0),
            Framing::Length(n) => State::Body(n),
            Framing::Chunked => State::ChunkSize { size: 0, extension: false },
            Framing::Undeclared if self.side == Side::Requests => State::Body(0),
            Framing::Undeclared => State::UntilClose,
        };
        Ok(())
    }

    fn finish(&mut self) -> Seen {
        self.state = State::Head;
        self.started = false;
        self.seen
    }
}

/// The status that a request's target names.
fn asked_for(head: &[u8]) -> Option<u16> {
    let method = memchr::memchr(b' ', head)?;
    let digits = head[method + 1..].strip_prefix(b"/status/")?.get(..3)?;
    number(digits).ok()?.try_into().ok()
}

fn number(digits: &[u8]) -> Result<u64, Malformed> {
    let value =
        |n: u64, b: &u8| b.is_ascii_digit().then(|| n.checked_mul(10)?.checked_add(u64::from(b - b'0')))?;
    if digits.is_empty() { Err(Malformed) } else { digits.iter().try_fold(0, value).ok_or(Malformed) }
}

fn read_fields(head: &[u8]) -> Result<(Framing, bool), Malformed> {
    let mut framing = Framing::Undeclared;
    let mut close = false;
    let mut rest = head;
    while let Some(end) = memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        // Only fields whose names start with C or T matter here.
        let value = |name: &str| {
            let (found, value) = line.split_at_checked(name.len())?;
            found.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
        };
        match line.first() {
            Some(b'c' | b'C') => {
                if let Some(n) = value("content-length:") {
                    framing = Framing::Length(number(n)?);
                } else if let Some(options) = value("connection:") {
                    close = options.eq_ignore_ascii_case(b"close");
                }
            }
            Some(b't' | b'T')
                if value("transfer-encoding:").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked")) =>
            {
                framing = Framing::Chunked;
            }
            _ => {}
        }
    }
    Ok((framing, close))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
        HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n\
        HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\na;x=1\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\n\
        HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    fn scan(pieces: &[&[u8]]) -> Vec<(u16, bool)> {
        let mut scanner = Scanner::new(Side::Responses);
        let mut seen = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                if let Some(s) = scanner.feed(&mut rest).unwrap() {
                    seen.push((s.status, s.close));
                }
            }
        }
        assert!(!scanner.started());
        seen
    }

    #[test]
    fn messages_end_in_the_same_places_however_the_bytes_are_cut() {
        let expected = [(200, false), (204, true), (503, false), (200, false)];
        assert_eq!(scan(&[STREAM]), expected);
        for size in 1..40 {
            assert_eq!(scan(&STREAM.chunks(size).collect::<Vec<_>>()), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn requests_without_framing_have_no_body_and_responses_last_until_the_end() {
        let mut bytes = &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..];
        assert!(Scanner::new(Side::Requests).feed(&mut bytes).unwrap().is_some());
        let mut scanner = Scanner::new(Side::Responses);
        assert_eq!(scanner.feed(&mut &b"HTTP/1.1 200 OK\r\n\r\nabc"[..]), Ok(None));
        assert_eq!(scanner.end(), Some(Seen { status: 200, close: true }));
    }

    #[test]
    fn what_is_not_http_is_malformed() {
        for text in
            ["\x16\x03\x01\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
        {
            assert_eq!(Scanner::new(Side::Responses).feed(&mut text.as_bytes()), Err(Malformed), "{text:?}");
        }
    }
}
