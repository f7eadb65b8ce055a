//! Sealing and opening.
//!
//! What is sealed is: a version (1), the length of the key's id, the id, a nonce of 24 bytes, then the ciphertext with its
//! tag. Version, id and [`Context`] are authenticated with it.

use std::fmt;

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{SealKeys, key::Key};

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;

/// What something sealed is for. It opens only with the same again.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The kind of thing, such as `secret`.
    pub purpose: &'static str,
    /// Whose it is and which one, as with a tenant and a name.
    pub of: &'a [&'a str],
}

impl Context<'_> {
    /// Each part with its length, so that no two contexts are written alike.
    fn authenticated(&self, header: &[u8]) -> Vec<u8> {
        let parts = std::iter::once(self.purpose).chain(self.of.iter().copied()).map(str::as_bytes);
        std::iter::once(header).chain(parts).fold(Vec::new(), |mut all, part| {
            all.extend_from_slice(&(part.len() as u64).to_be_bytes());
            all.extend_from_slice(part);
            all
        })
    }
}

/// What was sealed, opened. Wiped from memory when it is dropped, and never printed.
pub struct Plain(Zeroizing<Vec<u8>>);

impl Plain {
    /// Takes over bytes that are to be sealed, to be wiped with this.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes in the clear.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(…)")
    }
}

/// Why something sealed does not open.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// None of the keys is the one that it names.
    #[error(
        "it is sealed by key {id}, which is not among this node's seal keys: put that key back into the key file"
    )]
    UnknownKey {
        /// The key that it names.
        id: String,
    },
    /// It does not open by the key that it names: it was changed or moved, or another key has that id now.
    #[error(
        "it does not open by key {id}: another key had that id when it was sealed, or what is stored was changed"
    )]
    Mismatch {
        /// The key that it names.
        id: String,
    },
    /// It is not of a form that this version knows.
    #[error("it is not of a form that this version can open: run the version that wrote it")]
    Form,
}

/// The id of the key that sealed this; none where it is not of a known form.
pub fn key_of(sealed: &[u8]) -> Option<&str> {
    let (header, _) = split(sealed)?;
    std::str::from_utf8(&header[2..]).ok()
}

/// Its header (version, length, id) and what follows.
fn split(sealed: &[u8]) -> Option<(&[u8], &[u8])> {
    match sealed {
        [VERSION, len, ..] => sealed.split_at_checked(2 + usize::from(*len)),
        _ => None,
    }
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new_from_slice(&*key.bytes).expect("a key has 32 bytes")
}

impl SealKeys {
    /// Seals `plain` by the current key.
    ///
    /// # Panics
    /// Where the operating system has no randomness to give.
    pub fn seal(&self, context: Context<'_>, plain: &[u8]) -> Vec<u8> {
        let key = self.current_key();
        let id = key.id.as_str().as_bytes();
        let mut sealed = vec![VERSION, u8::try_from(id.len()).expect("a key's id has at most 32 characters")];
        sealed.extend_from_slice(id);
        let aad = context.authenticated(&sealed);
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the operating system gives randomness");
        let encrypted = cipher(key)
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: &aad })
            .expect("what is sealed is far shorter than the cipher's bound of 256 GiB");
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&encrypted);
        sealed
    }

    /// Opens what was sealed for the same context.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, context: Context<'_>, sealed: &[u8]) -> Result<Plain, OpenError> {
        let (header, rest) = split(sealed).ok_or(OpenError::Form)?;
        let id = key_of(sealed).ok_or(OpenError::Form)?;
        let (nonce, encrypted) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::Form)?;
        let key = self.key(id).ok_or_else(|| OpenError::UnknownKey { id: id.to_owned() })?;
        let aad = context.authenticated(header);
        cipher(key)
            .decrypt(&XNonce::from(*nonce), Payload { msg: encrypted, aad: &aad })
            .map(Plain::new)
            .map_err(|_| OpenError::Mismatch { id: id.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::KeyLine;

    const OF_ACME: Context<'_> = Context { purpose: "secret", of: &["acme", "token"] };

    fn line(id: &str) -> String {
        KeyLine::generate(&id.parse().unwrap()).reveal().to_owned()
    }

    #[test]
    fn what_is_sealed_opens_after_its_key_was_replaced_and_not_when_it_is_gone() {
        let (old, new) = (line("old"), line("new"));
        let sealed = SealKeys::parse(&old).unwrap().seal(OF_ACME, b"s3cret");
        assert_eq!(key_of(&sealed), Some("old"));
        let both = SealKeys::parse(&format!("{new}\n{old}")).unwrap();
        assert_eq!(both.open(OF_ACME, &sealed).unwrap().reveal(), b"s3cret");
        assert_eq!(key_of(&both.seal(OF_ACME, b"s3cret")), Some("new"));
        let gone = SealKeys::parse(&new).unwrap().open(OF_ACME, &sealed).unwrap_err();
        assert_eq!(gone, OpenError::UnknownKey { id: "old".into() });
        let other = SealKeys::parse(&line("old")).unwrap().open(OF_ACME, &sealed).unwrap_err();
        assert_eq!(other, OpenError::Mismatch { id: "old".into() });
    }

    #[test]
    fn what_is_sealed_opens_only_for_what_it_is_for() {
        let keys = SealKeys::parse(&line("k")).unwrap();
        let sealed = keys.seal(OF_ACME, b"s3cret");
        for of in [
            Context { purpose: "secret", of: &["globex", "token"] },
            Context { purpose: "secret", of: &["acmet", "oken"] },
            Context { purpose: "secret", of: &["acme"] },
            Context { purpose: "other", of: &["acme", "token"] },
        ] {
            assert!(matches!(keys.open(of, &sealed), Err(OpenError::Mismatch { .. })), "{of:?}");
        }
    }

    #[test]
    fn the_same_is_never_sealed_alike_and_nothing_of_it_shows() {
        let keys = SealKeys::parse(&line("k")).unwrap();
        let (a, b) = (keys.seal(OF_ACME, b"s3cret"), keys.seal(OF_ACME, b"s3cret"));
        assert_ne!(a, b);
        assert!(!a.windows(6).any(|w| w == b"s3cret"));
        assert!(!format!("{:?}", keys.open(OF_ACME, &a).unwrap()).contains("s3cret"));
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_opens(plain: Vec<u8>, at: prop::sample::Index, with in 1..=255_u8) {
            let keys = SealKeys::parse(&line("k")).unwrap();
            let mut sealed = keys.seal(OF_ACME, &plain);
            let opened = keys.open(OF_ACME, &sealed).unwrap();
            prop_assert_eq!(opened.reveal(), &plain[..]);
            *at.get_mut(&mut sealed) ^= with;
            prop_assert!(keys.open(OF_ACME, &sealed).is_err());
        }

        #[test]
        fn whatever_the_bytes_opening_ends(bytes: Vec<u8>) {
            let keys = SealKeys::parse(&line("k")).unwrap();
            prop_assert!(keys.open(OF_ACME, &bytes).is_err());
        }
    }
}
