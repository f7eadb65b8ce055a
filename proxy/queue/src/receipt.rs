//! Receipts: an id and a secret. Only the secret's hash is stored. A random secret is shown once; that of a record whose
//! client sent an `Idempotency-Key` can be made again, for a client that shows the key again (see [`crate::idempotency`]).

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::RecordId;

pub(crate) const SECRET_BYTES: usize = 24;
/// 16 bytes and 24 bytes in base64url without padding, and the dot between them.
const TEXT_LEN: usize = 22 + 1 + 32;

/// What the client of a `202` gets: `<id>.<secret>`, both base64url. Whoever has it can ask what became of the request.
#[derive(Clone, PartialEq, Eq)]
pub struct Receipt {
    id: RecordId,
    secret: [u8; SECRET_BYTES],
}

/// The SHA-256 of a receipt's secret. The secret has 192 bits that nobody can guess, so a plain hash is enough to store.
#[derive(Clone, Copy)]
pub(crate) struct SecretHash(pub(crate) [u8; 32]);

impl Receipt {
    /// A new receipt for `id`.
    pub(crate) fn generate(id: RecordId) -> Self {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).expect("the operating system gives randomness");
        Self { id, secret }
    }

    /// The receipt for `id` that has this secret.
    pub(crate) fn with_secret(id: RecordId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { id, secret }
    }

    /// The record that it speaks of.
    pub fn id(&self) -> RecordId {
        self.id
    }

    pub(crate) fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.secret).into())
    }
}

impl SecretHash {
    /// Whether both are the same, in a time that does not depend on where they differ.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        let difference = self.0.iter().zip(&other.0).fold(0, |acc, (a, b)| acc | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// A text that is not a receipt. It says no more, for it is never shown to a client: an unknown receipt is the same to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a receipt: expected 22 and 32 characters of base64url with a dot between them")]
pub struct InvalidReceipt;

impl FromStr for Receipt {
    type Err = InvalidReceipt;

    fn from_str(text: &str) -> Result<Self, InvalidReceipt> {
        let (id, secret) = match text.split_once('.') {
            Some(parts) if text.len() == TEXT_LEN => parts,
            _ => return Err(InvalidReceipt),
        };
        let mut receipt = Self { id: RecordId::from_bytes([0; 16]), secret: [0; SECRET_BYTES] };
        let mut id_bytes = [0; 16];
        let fill = |part: &str, into: &mut [u8]| {
            let expected = into.len();
            matches!(URL_SAFE_NO_PAD.decode_slice(part, into), Ok(n) if n == expected)
        };
        if fill(id, &mut id_bytes) && fill(secret, &mut receipt.secret) {
            receipt.id = RecordId::from_bytes(id_bytes);
            Ok(receipt)
        } else {
            Err(InvalidReceipt)
        }
    }
}

/// The receipt in the clear, for the `Location` of the one `202` that shows it.
impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt({}.…)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_reads_back_what_it_writes_and_debug_hides_the_secret() {
        let receipt = Receipt::generate(RecordId::generate(1_700_000_000_000));
        let text = receipt.to_string();
        assert_eq!(text.len(), TEXT_LEN);
        assert_eq!(text.parse(), Ok(receipt.clone()));
        assert!(receipt.hash().matches(&text.parse::<Receipt>().unwrap().hash()));
        assert!(!format!("{receipt:?} {:?}", receipt.hash()).contains(&text[23..]));
    }

    #[test]
    fn malformed_receipts_are_refused() {
        let good = Receipt::generate(RecordId::generate(1)).to_string();
        for bad in ["", ".", "a.b", &good[1..], &format!("{good}A"), &good.replace('.', "A"), &"é".repeat(28)]
        {
            assert!(bad.parse::<Receipt>().is_err(), "{bad}");
        }
    }
}
