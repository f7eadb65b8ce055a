//! Changes to a head that come from a filter: held to the rules that a client's own head is held to, and a few more.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use thiserror::Error;

/// The most field lines that a head may have.
pub const MAX_FIELDS: usize = 100;

/// The most bytes of names and values that a head may have.
pub const MAX_HEAD_BYTES: usize = 64 << 10;

/// Why a change was refused. The head is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadEditError {
    /// Not a token (RFC 9110, section 5.6.2).
    #[error("not a field name: expected an HTTP token")]
    InvalidName,
    /// A byte that no field value holds (RFC 9110, section 5.5).
    #[error("not a field value: CR, LF, NUL and other controls cannot be in one")]
    InvalidValue,
    /// The field is the host's own.
    #[error("this field is set by the proxy alone")]
    Forbidden,
    /// The head would be too large.
    #[error("the head would exceed its limit of fields or bytes")]
    TooLarge,
}

/// Hop-by-hop fields, framing, and what the proxy vouches for towards upstreams. The reference page of the filter interface names
/// them, which the SDK's own list is held to as well.
const FORBIDDEN: [&str; 17] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "host",
    "via",
    "expect",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "proxy-status",
    "traceparent",
];

/// Parses a field that a filter wrote, by the rules above.
pub fn checked_field(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), HeadEditError> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| HeadEditError::InvalidName)?;
    if FORBIDDEN.contains(&name.as_str()) {
        return Err(HeadEditError::Forbidden);
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| HeadEditError::InvalidValue)?;
    Ok((name, value))
}

/// Whether the fields that `stay` leave room for one more.
fn fits<'h>(
    stay: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
    name: &HeaderName,
    value: &HeaderValue,
) -> Result<(), HeadEditError> {
    let bytes_of = |name: &HeaderName, value: &HeaderValue| name.as_str().len() + value.len();
    let (fields, bytes) = stay.fold((1, bytes_of(name, value)), |(fields, bytes), (name, value)| {
        (fields + 1, bytes + bytes_of(name, value))
    });
    if fields > MAX_FIELDS || bytes > MAX_HEAD_BYTES {
        return Err(HeadEditError::TooLarge);
    }
    Ok(())
}

/// Replaces every value of a field.
pub fn set(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), HeadEditError> {
    let (name, value) = checked_field(name, value)?;
    fits(headers.iter().filter(|(other, _)| **other != name), &name, &value)?;
    headers.insert(name, value);
    Ok(())
}

/// Adds a value to a field.
pub fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), HeadEditError> {
    let (name, value) = checked_field(name, value)?;
    fits(headers.iter(), &name, &value)?;
    headers.append(name, value);
    Ok(())
}

/// Removes every value of a field.
pub fn remove(headers: &mut HeaderMap, name: &str) -> Result<(), HeadEditError> {
    let (name, _) = checked_field(name, b"")?;
    if let header::Entry::Occupied(entry) = headers.entry(name) {
        entry.remove_entry_mult();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_names_the_hosts_own_fields() {
        let page = include_str!("../../../docs/reference/filter-interface.md");
        let section = page.split("### Fields that belong to the host\n").nth(1).unwrap();
        let named = section.split(" They can be read").next().unwrap().split('`').skip(1).step_by(2);
        let mut named: Vec<_> = named.collect();
        named.sort_unstable();
        let mut own = FORBIDDEN;
        own.sort_unstable();
        assert_eq!(named, own);
    }

    #[test]
    fn injection_and_the_hosts_own_fields_are_refused() {
        let mut headers = HeaderMap::new();
        for (name, value, error) in [
            ("x-a", &b"a\r\nx-b: c"[..], HeadEditError::InvalidValue),
            ("x-a", b"\0", HeadEditError::InvalidValue),
            ("x a", b"", HeadEditError::InvalidName),
            (":path", b"/", HeadEditError::InvalidName),
            ("", b"", HeadEditError::InvalidName),
            ("Transfer-Encoding", b"chunked", HeadEditError::Forbidden),
            ("content-length", b"5", HeadEditError::Forbidden),
            ("Host", b"other.test", HeadEditError::Forbidden),
            ("X-Forwarded-For", b"1.2.3.4", HeadEditError::Forbidden),
        ] {
            assert_eq!(set(&mut headers, name, value), Err(error), "{name}");
            assert_eq!(append(&mut headers, name, value), Err(error), "{name}");
        }
        assert!(headers.is_empty());
    }

    #[test]
    fn a_head_stays_within_its_limits() {
        let mut headers = HeaderMap::new();
        for i in 0..MAX_FIELDS {
            append(&mut headers, "x-a", i.to_string().as_bytes()).unwrap();
        }
        assert_eq!(append(&mut headers, "x-a", b"more"), Err(HeadEditError::TooLarge));
        assert_eq!(set(&mut headers, "x-b", b"more"), Err(HeadEditError::TooLarge));
        set(&mut headers, "x-a", b"in place of all of them").unwrap();
        assert_eq!(headers.len(), 1);
        remove(&mut headers, "x-a").unwrap();
        assert!(headers.is_empty());
        assert_eq!(set(&mut headers, "x-big", &vec![b'a'; MAX_HEAD_BYTES]), Err(HeadEditError::TooLarge));
        for value in [b'a', b'b'] {
            set(&mut headers, "x-big", &vec![value; MAX_HEAD_BYTES / 2 + 1]).unwrap();
        }
        assert_eq!(append(&mut headers, "x-big", &[b'c'; MAX_HEAD_BYTES / 2]), Err(HeadEditError::TooLarge));
    }
}
