//! NKeys: Ed25519 keys in the form that NATS gives them. Base32 of a prefix that says whose key it is, the key, and a
//! checksum.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

/// What the first five bits of a seed say: that it is one.
const SEED: u8 = 18 << 3;
/// What makes it a user's: seeds then begin with `SU`, public keys with `U`.
const USER: u8 = 20 << 3;
/// The longest nonce that is signed. Servers send 15 characters.
const NONCE_MAX: usize = 128;

/// A user's key.
pub(crate) struct UserKey {
    pair: Ed25519KeyPair,
    public: String,
}

impl UserKey {
    /// Reads a seed. The error says what was expected, and nothing of what was found.
    pub(crate) fn parse(seed: &str) -> Result<Self, &'static str> {
        const FORM: &str = "expected a user's NKey seed, 58 characters that begin with SU";
        let raw = Zeroizing::new(BASE32_NOPAD.decode(seed.as_bytes()).map_err(|_| FORM)?);
        let (body, sum) = raw.split_last_chunk::<2>().ok_or(FORM)?;
        let [first, second, key @ ..] = body else { return Err(FORM) };
        if key.len() != 32 || first & 0xf8 != SEED {
            return Err(FORM);
        }
        if checksum(body).to_le_bytes() != *sum {
            return Err("the NKey seed's checksum is wrong: expected it as it was made, whole and unchanged");
        }
        if (first & 7) << 5 | second >> 3 != USER {
            return Err(
                "the NKey seed is an account's or another's: expected a user's, which begins with SU",
            );
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(key).map_err(|_| FORM)?;
        let mut shown = vec![USER];
        shown.extend_from_slice(pair.public_key().as_ref());
        shown.extend_from_slice(&checksum(&shown).to_le_bytes());
        Ok(Self { pair, public: BASE32_NOPAD.encode(&shown) })
    }

    /// The public key, which begins with `U`.
    pub(crate) fn public(&self) -> &str {
        &self.public
    }

    /// The signature of a server's nonce. Nothing else is signed, whoever sends it: a nonce is a short text of base64.
    pub(crate) fn sign(&self, nonce: &str) -> Result<String, &'static str> {
        let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"-_+/=".contains(&b);
        if !(1..=NONCE_MAX).contains(&nonce.len()) || !nonce.bytes().all(is_base64) {
            return Err("sent as its nonce what is none: expected at most 128 characters of base64");
        }
        Ok(URL_SAFE_NO_PAD.encode(self.pair.sign(nonce.as_bytes())))
    }
}

/// CRC-16/XMODEM.
fn checksum(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |sum, byte| {
        (0..8).fold(
            sum ^ u16::from(*byte) << 8,
            |sum, _| {
                if sum & 0x8000 == 0 { sum << 1 } else { sum << 1 ^ 0x1021 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    /// A pair of NATS's own documentation of NKeys.
    const KNOWN: [&str; 2] = [
        "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
        "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    ];

    #[test]
    fn a_seed_is_read_and_its_public_key_known() {
        assert_eq!(UserKey::parse(KNOWN[0]).ok().unwrap().public(), KNOWN[1]);
    }

    #[test]
    fn a_nonce_is_signed_and_nothing_else() {
        let key = UserKey::parse(KNOWN[0]).ok().unwrap();
        let signature = URL_SAFE_NO_PAD.decode(key.sign("PXoWU7zWAMt75FY").unwrap()).unwrap();
        let public = UnparsedPublicKey::new(&ED25519, key.pair.public_key());
        public.verify(b"PXoWU7zWAMt75FY", &signature).unwrap();
        assert!(public.verify(b"PXoWU7zWAMt75FZ", &signature).is_err());
        for nonce in ["", "eyJ0eXAi.eyJzdWIi", "a b", &"a".repeat(129)] {
            assert!(key.sign(nonce).unwrap_err().contains("expected at most 128 characters"), "{nonce}");
        }
    }

    #[test]
    fn what_is_no_users_seed_is_refused_and_not_repeated() {
        let mut changed = KNOWN[0].to_owned();
        changed.replace_range(10..11, "A");
        let account = {
            let mut raw = vec![SEED, 0];
            raw.extend([7; 32]);
            raw.extend(checksum(&raw).to_le_bytes());
            BASE32_NOPAD.encode(&raw)
        };
        for (seed, expected) in [
            ("", "58 characters"),
            (KNOWN[1], "58 characters"),
            ("SUACSSL3", "58 characters"),
            ("not base32!", "58 characters"),
            (&changed, "checksum"),
            (&account, "an account's"),
        ] {
            let error = UserKey::parse(seed).err().unwrap();
            assert!(error.contains(expected), "{seed}: {error}");
        }
    }
}
