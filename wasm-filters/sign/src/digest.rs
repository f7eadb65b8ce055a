//! `Content-Digest` (RFC 9530).

use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha256};

/// The field's value for a body, which may be empty.
pub(crate) fn sha256(body: &[u8]) -> String {
    ["sha-256=:", &Base64::encode_string(&Sha256::digest(body)), ":"].concat()
}
