//! Media types (RFC 9110, section 8.3.1).

/// Whether a `Content-Type` says JSON: `application/json`, or any type with the suffix `+json` (RFC 6839).
pub(crate) fn is_json(content_type: &[u8]) -> bool {
    let essence =
        content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    essence == b"application/json" || essence.ends_with(b"+json")
}
