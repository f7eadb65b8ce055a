//! Media types (RFC 9110, section 8.3.1).

/// A media type without its parameters, in lower case: `text/html` of `Text/HTML; charset=utf-8`. What is no media type is given
/// likewise, and equals none.
///
/// ```
/// assert_eq!(beamline_sdk::media::essence(b"Text/HTML; charset=utf-8"), b"text/html");
/// ```
pub fn essence(content_type: &[u8]) -> Vec<u8> {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase()
}
