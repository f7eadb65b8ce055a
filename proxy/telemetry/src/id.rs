//! Identifiers of traces, spans and requests.

use std::{
    cell::Cell,
    fmt,
    hash::{BuildHasher as _, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

/// Identifies one trace (W3C Trace Context): 16 bytes, never all zero, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Identifies one span of a trace: 8 bytes, never all zero, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// Identifies one request at this edge: a UUID of version 7 (RFC 9562), so that ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId([u8; 16]);

/// A number that is new for each call and that nobody outside this process can foresee.
///
/// The standard library's keyed hash over a counter, its key from the operating system once per thread:
/// no system call and no lock per id.
pub(crate) fn random_u64() -> u64 {
    thread_local! {
        static SOURCE: (RandomState, Cell<u64>) = (RandomState::new(), const { Cell::new(0) });
    }
    SOURCE.with(|(key, counter)| {
        let n = counter.get();
        counter.set(n.wrapping_add(1));
        key.hash_one(n)
    })
}

impl TraceId {
    /// A new random id.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random_u64().to_be_bytes());
        bytes[8..].copy_from_slice(&random_u64().max(1).to_be_bytes());
        Self(bytes)
    }

    /// From its bytes; none where they are all zero, which the specification calls invalid.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    /// A new random id.
    pub fn random() -> Self {
        Self(random_u64().max(1).to_be_bytes())
    }

    /// From its bytes; none where they are all zero, which the specification calls invalid.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The 8 bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl RequestId {
    /// A new id of a request that arrived at `now` (to the millisecond), with 74 random bits.
    pub fn at(now: SystemTime) -> Self {
        let millis = now.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[10..]);
        let random = random_u64().to_be_bytes();
        bytes[6..8].copy_from_slice(&random[..2]);
        bytes[8..].copy_from_slice(&random_u64().to_be_bytes());
        bytes[6] = 0x70 | bytes[6] & 0x0f;
        bytes[8] = 0x80 | bytes[8] & 0x3f;
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// In the usual form, `8-4-4-4-12` hexadecimal digits.
    pub(crate) fn text(self) -> [u8; 36] {
        let mut out = [b'-'; 36];
        let mut at = 0;
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                at += 1;
            }
            out[at..at + 2].copy_from_slice(&HEX[usize::from(*byte)]);
            at += 2;
        }
        out
    }
}

/// The two hexadecimal digits of each byte.
const HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = [digits[i >> 4], digits[i & 15]];
        i += 1;
    }
    table
};

/// `bytes` as lower-case hexadecimal digits; `N` is twice their number.
pub(crate) fn hex<const N: usize>(bytes: &[u8]) -> [u8; N] {
    debug_assert_eq!(bytes.len() * 2, N);
    let mut out = [0; N];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&HEX[usize::from(*byte)]);
    }
    out
}

macro_rules! shown {
    ($name:ident, $text:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = $text(self);
                f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
shown!(TraceId, |id: &TraceId| hex::<32>(&id.0));
shown!(SpanId, |id: &SpanId| hex::<16>(&id.0));
shown!(RequestId, |id: &RequestId| id.text());

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    #[test]
    fn ids_are_written_in_lower_case_hex_and_the_zero_id_does_not_exist() {
        let id = TraceId::from_bytes([0xab; 16]).unwrap();
        assert_eq!(id.to_string(), "ab".repeat(16));
        assert_eq!(SpanId::from_bytes([0, 1, 2, 3, 4, 5, 6, 0xff]).unwrap().to_string(), "00010203040506ff");
        assert_eq!(TraceId::from_bytes([0; 16]), None);
        assert_eq!(SpanId::from_bytes([0; 8]), None);
    }

    #[test]
    fn random_ids_do_not_repeat_within_or_between_threads() {
        let draw = || (0..10_000).map(|_| TraceId::random()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw);
        let all: HashSet<_> = draw().into_iter().chain(other.join().unwrap()).collect();
        assert_eq!(all.len(), 20_000);
    }

    #[test]
    fn request_ids_are_uuids_of_version_7_that_sort_by_time() {
        let at = |ms| RequestId::at(UNIX_EPOCH + Duration::from_millis(ms));
        let text = at(0x0190_0000_0001).to_string();
        assert_eq!(text.len(), 36);
        assert!(text.starts_with("01900000-0001-7"), "{text}");
        assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{text}");
        assert!(at(1_000) < at(1_001));
    }
}
