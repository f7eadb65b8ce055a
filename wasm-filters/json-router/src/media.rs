//! Media types (RFC 9110, section 8.3.1).

use beamline_sdk::media;

/// Whether a `Content-Type` says JSON: `application/json`, or any type with the suffix `+json` (RFC 6839).
pub(crate) fn is_json(content_type: &[u8]) -> bool {
    let essence = media::essence(content_type);
    essence == b"application/json" || essence.ends_with(b"+json")
}
