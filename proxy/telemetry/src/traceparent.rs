//! The `traceparent` field (W3C Trace Context, level 2).

use crate::{SpanId, TraceId};

/// The sender recorded its span.
pub(crate) const SAMPLED: u8 = 0b01;
/// The last 7 bytes of the trace id are random (level 2).
pub(crate) const RANDOM: u8 = 0b10;

/// What a `traceparent` says about its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteContext {
    /// The sender's trace.
    pub trace_id: TraceId,
    /// The sender's span.
    pub span_id: SpanId,
    /// Whether the sender recorded it.
    pub sampled: bool,
    /// Whether the sender says that its trace id is random.
    pub random: bool,
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// Reads the value of a `traceparent` field; none where it is not valid, which is then as if it had not been sent.
///
/// Version `ff` is invalid; version `00` has exactly 55 bytes; of a higher one the part that this version knows is
/// taken, provided that what follows is apart by a hyphen. Digits are lower case. Unknown flags are ignored.
/// A request with more than one such field has none: that is for the caller to see.
pub fn parse_traceparent(value: &[u8]) -> Option<RemoteContext> {
    let (head, rest) = value.split_at_checked(55)?;
    let [version] = unhex(&head[..2])?;
    match (version, rest) {
        (0xff, _) => return None,
        (0, []) | (1.., [] | [b'-', ..]) => {}
        _ => return None,
    }
    if [head[2], head[35], head[52]] != [b'-'; 3] {
        return None;
    }
    let [flags] = unhex(&head[53..])?;
    Some(RemoteContext {
        trace_id: TraceId::from_bytes(unhex(&head[3..35])?)?,
        span_id: SpanId::from_bytes(unhex(&head[36..52])?)?,
        sampled: flags & SAMPLED != 0,
        random: flags & RANDOM != 0,
    })
}

/// The value of a `traceparent` field of version `00`.
pub(crate) fn write(trace: TraceId, span: SpanId, flags: u8) -> [u8; 55] {
    let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
    out[3..35].copy_from_slice(&crate::id::hex::<32>(trace.as_bytes()));
    out[36..52].copy_from_slice(&crate::id::hex::<16>(span.as_bytes()));
    out[53..].copy_from_slice(&crate::id::hex::<2>(&[flags]));
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_field_is_read() {
        let remote = parse_traceparent(VALID.as_bytes()).unwrap();
        assert_eq!(remote.trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(remote.span_id.to_string(), "b7ad6b7169203331");
        assert!(remote.sampled && !remote.random);
    }

    #[test]
    fn flags_are_read_bit_by_bit_and_unknown_ones_ignored() {
        for (flags, sampled, random) in [
            ("00", false, false),
            ("01", true, false),
            ("02", false, true),
            ("03", true, true),
            ("fc", false, false),
        ] {
            let remote = parse_traceparent(format!("{}{flags}", &VALID[..53]).as_bytes()).unwrap();
            assert_eq!((remote.sampled, remote.random), (sampled, random), "{flags}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_this_one_goes() {
        assert!(parse_traceparent(format!("01{}", &VALID[2..]).as_bytes()).is_some());
        assert!(parse_traceparent(format!("cc{}-what-comes", &VALID[2..]).as_bytes()).is_some());
        assert!(parse_traceparent(format!("cc{}.what-comes", &VALID[2..]).as_bytes()).is_none());
    }

    #[test]
    fn invalid_fields_are_as_if_not_sent() {
        for bad in [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}-00"),
            &format!(" {VALID}"),
            &format!("ff{}", &VALID[2..]),
            &VALID.to_uppercase(),
            &VALID.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0.",
        ] {
            assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(trace: [u8; 16], span: [u8; 8], flags in 0u8..4) {
            prop_assume!(trace != [0; 16] && span != [0; 8]);
            let (trace, span) = (TraceId::from_bytes(trace).unwrap(), SpanId::from_bytes(span).unwrap());
            let remote = parse_traceparent(&write(trace, span, flags)).unwrap();
            prop_assert_eq!((remote.trace_id, remote.span_id), (trace, span));
            prop_assert_eq!((remote.sampled, remote.random), (flags & 1 != 0, flags & 2 != 0));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse_traceparent(&bytes);
        }
    }
}
