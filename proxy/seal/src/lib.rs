//! Seal keys: what makes a secret or a credential unreadable to whoever has only the data folder.
//!
//! [`SealKeys`] are read from a file's text: the first key seals, every key opens, so that a key is replaced by putting a
//! new one before it. What is sealed says by which key, and is bound to what it is for ([`Context`]): moved to another
//! tenant, name or record it does not open. XChaCha20-Poly1305, a random nonce each time. No I/O, no clock.

mod key;
mod sealed;

pub use key::{InvalidKeys, KeyId, KeyLine, SealKeys};
pub use sealed::{Context, OpenError, Plain, key_of};
