//! NATS headers: a block of lines as in HTTP/1.1, behind a line that may hold a status.

use thiserror::Error;

/// A header that would break out of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "not a header: expected a name of visible characters without a colon and a value without CR, LF and NUL"
)]
pub struct InvalidHeader;

/// The largest block that is read.
const BLOCK_MAX: usize = 128 << 10;

const VERSION: &[u8] = b"NATS/1.0";

/// The headers of one message that is to be published, in order.
#[derive(Clone, Debug)]
pub struct HeaderBlock(Vec<u8>);

impl HeaderBlock {
    /// A block without headers.
    pub fn new() -> Self {
        Self([VERSION, b"\r\n"].concat())
    }

    /// Adds one.
    ///
    /// # Errors
    /// Where it would not be one header when it is read again.
    pub fn push(&mut self, name: &str, value: &[u8]) -> Result<(), InvalidHeader> {
        let sound = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
            && !value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0));
        if !sound {
            return Err(InvalidHeader);
        }
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
        Ok(())
    }

    /// The block so far, without the empty line at its end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The block as it is sent, its last line empty.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

impl Default for HeaderBlock {
    fn default() -> Self {
        Self::new()
    }
}

/// A block that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// The status, where its first line has one.
    pub(crate) status: Option<u16>,
    /// Names and values as they came.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

/// Reads a block, or nothing where it is none or too large. Lines that are no headers are left out.
pub(crate) fn parse(block: &[u8]) -> Option<Parsed> {
    if block.len() > BLOCK_MAX {
        return None;
    }
    let mut lines = block.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next()?.strip_prefix(VERSION)?;
    let status = match first.trim_ascii_start() {
        b"" => None,
        rest => Some(std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()?),
    };
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        let name = std::str::from_utf8(&line[..colon]).ok()?;
        Some((name.to_owned(), line[colon + 1..].trim_ascii().to_vec()))
    });
    Some(Parsed { status, headers: headers.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reads_back_as_it_was_written() {
        let mut block = HeaderBlock::new();
        block.push("X-A", b"1").unwrap();
        block.push("X-A", b"two words: \xe9").unwrap();
        block.push("X-Empty", b"").unwrap();
        let Parsed { status, headers } = parse(&block.finish()).unwrap();
        assert_eq!(status, None);
        let expected: [(String, Vec<u8>); 3] = [
            ("X-A".into(), b"1".to_vec()),
            ("X-A".into(), b"two words: \xe9".to_vec()),
            ("X-Empty".into(), Vec::new()),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn nothing_breaks_out_of_a_header() {
        let mut block = HeaderBlock::new();
        for (name, value) in [
            ("X-A", &b"a\r\nX-B: c"[..]),
            ("X-A", b"a\nb"),
            ("X-A", b"\0"),
            ("X:A", b""),
            ("X A", b""),
            ("", b""),
        ] {
            assert_eq!(block.push(name, value), Err(InvalidHeader), "{name}");
        }
        assert_eq!(block.finish(), b"NATS/1.0\r\n\r\n");
    }

    #[test]
    fn a_status_is_read_and_nonsense_is_none() {
        assert_eq!(parse(b"NATS/1.0 503\r\n\r\n").unwrap(), Parsed { status: Some(503), headers: vec![] });
        assert_eq!(parse(b"NATS/1.0 503 No Responders\r\nA:b\r\n\r\n").unwrap().status, Some(503));
        let large = [b"NATS/1.0\r\n", &b"a:\n".repeat(BLOCK_MAX / 3)[..]].concat();
        for bad in [&b""[..], b"HTTP/1.1 200", b"NATS/1.0 5", b"NATS/1.0 abc", &large] {
            assert!(parse(bad).is_none(), "{:?}", &bad[..bad.len().min(20)]);
        }
    }
}
