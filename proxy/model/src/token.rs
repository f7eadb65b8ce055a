//! Bearer tokens: made here, shown once, kept only as hashes.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    TenantName,
    digest::{hex, unhex32},
};

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role", content = "tenant")]
pub enum TokenScope {
    /// The operator: every tenant and every setting.
    Operator,
    /// One tenant: its own modules, manifests and receipts, nothing of another's.
    Tenant(TenantName),
}

/// A bearer token in the clear: 32 random bytes behind a prefix that secret scanners can find.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// The SHA-256 of a token. Tokens carry 256 random bits, so a plain hash is enough to store.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl Token {
    /// A new random token; `scope` chooses its prefix (`blo_` or `blt_`).
    ///
    /// # Panics
    /// Where the operating system has no randomness to give.
    pub fn generate(scope: &TokenScope) -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        let prefix = match scope {
            TokenScope::Operator => "blo_",
            TokenScope::Tenant(_) => "blt_",
        };
        Self(format!("{prefix}{}", hex(&bytes)))
    }

    /// A token as somebody sent it.
    pub fn presented(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The token in the clear, for the one time that it is shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored and compared.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl TokenHash {
    /// As 64 hexadecimal digits, the stored form.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// From the stored form.
    pub fn from_hex(text: &str) -> Option<Self> {
        unhex32(text).map(Self)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_and_never_printed() {
        let token = Token::generate(&TokenScope::Operator);
        assert!(token.reveal().starts_with("blo_") && token.reveal().len() == 68);
        assert_eq!(Token::presented(token.reveal()).hash(), token.hash());
        assert_eq!(TokenHash::from_hex(&token.hash().to_hex()), Some(token.hash()));
        assert!(!format!("{token:?}{:?}", token.hash()).contains(&token.reveal()[4..]));
    }
}
