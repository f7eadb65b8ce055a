//! The pieces of JSON that a log record is made of, appended to a byte buffer.
//!
//! Written by hand for the one record that each request costs: keys are constants, numbers and identifiers
//! need no escaping, and text is copied in runs.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Appends text that is known to need no escaping.
#[inline]
pub(crate) fn raw(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// Appends `text`, escaped for the inside of a JSON string.
pub(crate) fn escaped(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let clean = clean_prefix(rest);
        out.extend_from_slice(&rest[..clean]);
        let Some(byte) = rest.get(clean) else { return };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&crate::id::hex::<2>(&[*control]));
            }
        }
        rest = &rest[clean + 1..];
    }
}

/// Whether a byte stands for itself in a JSON string. DEL does not, though JSON allows it: terminals act on it.
const fn is_clean(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f
}

/// How many bytes from the start stand for themselves: eight at a time, then one by one.
fn clean_prefix(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    // The high bit of a byte of `zero_in(x)` is set where that byte is zero, and maybe above such a one: as a test for
    // "any", exact.
    const fn zero_in(x: u64) -> u64 {
        x.wrapping_sub(ONES) & !x & HIGHS
    }
    let (words, _) = bytes.as_chunks::<8>();
    let mut clean = 0;
    for word in words {
        let word = u64::from_ne_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let quote = zero_in(word ^ (ONES * b'"' as u64));
        let backslash = zero_in(word ^ (ONES * b'\\' as u64));
        let delete = zero_in(word ^ (ONES * 0x7f));
        if control | quote | backslash | delete != 0 {
            break;
        }
        clean += 8;
    }
    clean + bytes[clean..].iter().take_while(|byte| is_clean(**byte)).count()
}

/// The two decimal digits of 0 to 99.
const PAIRS: [[u8; 2]; 100] = {
    let mut table = [[0; 2]; 100];
    let mut i = 0u8;
    while i < 100 {
        table[i as usize] = [b'0' + i / 10, b'0' + i % 10];
        i += 1;
    }
    table
};

/// Appends a whole number.
#[inline]
pub(crate) fn integer(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    while value >= 100 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[(value % 100) as usize]);
        value /= 100;
    }
    let [tens, ones] = PAIRS[value as usize];
    at -= 1;
    digits[at] = ones;
    if tens != b'0' {
        at -= 1;
        digits[at] = tens;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a duration as milliseconds with three decimals.
pub(crate) fn millis(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    integer(out, micros / 1000);
    let below = (micros % 1000) as usize;
    let [tens, ones] = PAIRS[below % 100];
    out.extend_from_slice(&[b'.', b'0' + (below / 100) as u8, tens, ones]);
}

/// Appends an IP address.
pub(crate) fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            integer(out, a.into());
            for part in [b, c, d] {
                out.push(b'.');
                integer(out, part.into());
            }
        }
        // Writing to a Vec cannot fail.
        IpAddr::V6(v6) => _ = write!(out, "{v6}"),
    }
}

/// Appends an address and port, `127.0.0.1:80` or `[::1]:80`.
pub(crate) fn socket(out: &mut Vec<u8>, socket: SocketAddr) {
    if socket.is_ipv6() {
        out.push(b'[');
        address(out, socket.ip());
        out.push(b']');
    } else {
        address(out, socket.ip());
    }
    out.push(b':');
    integer(out, socket.port().into());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = vec![];
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn addresses_read_as_everywhere() {
        for text in ["0.0.0.0:0", "127.0.0.1:80", "255.255.255.255:65535", "[::1]:443", "[2001:db8::7]:9"] {
            assert_eq!(with(|out| socket(out, text.parse().unwrap())), text);
        }
    }

    #[test]
    fn durations_are_milliseconds_with_microseconds() {
        for (micros, text) in [(0, "0.000"), (7, "0.007"), (1_234, "1.234"), (60_000_050, "60000.050")] {
            assert_eq!(with(|out| millis(out, Duration::from_micros(micros))), text);
        }
        assert_eq!(with(|out| millis(out, Duration::MAX)), "18446744073709551.615");
    }

    proptest! {
        #[test]
        fn escaped_text_reads_back_and_holds_nothing_that_ends_a_line(text in "\\PC*|[\\x00-\\x7f]{0,40}|(?s).{0,40}") {
            let json = with(|out| { out.push(b'"'); escaped(out, &text); out.push(b'"') });
            prop_assert!(json.bytes().all(|b| b >= 0x20 && b != 0x7f));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn whole_numbers_read_back(value: u64) {
            prop_assert_eq!(with(|out| integer(out, value)), value.to_string());
        }
    }
}
