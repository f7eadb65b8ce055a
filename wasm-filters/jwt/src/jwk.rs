//! Keys, and what they have signed.

use base64ct::{Base64UrlUnpadded, Encoding};
use p256::ecdsa;
use rsa::{BoxedUint, pkcs1v15, sha2::Sha256, signature::Verifier};
use serde::{Deserialize, Deserializer};

use crate::token::Token;

/// How a token is signed. Each algorithm has its own kind of key, so that no key can be used for another: there is no
/// symmetric one, and no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum Algorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// A public key (RFC 7517).
#[derive(Debug)]
pub(crate) struct Jwk {
    key_id: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Both coordinates, as SEC 1 writes an uncompressed point.
    P256([u8; 65]),
    Ed25519([u8; 32]),
}

/// The keys of a set that can be used here; others are passed over (RFC 7517, section 5).
#[derive(Debug, Deserialize)]
pub(crate) struct JwkSet {
    #[serde(deserialize_with = "usable")]
    pub(crate) keys: Vec<Jwk>,
}

/// A key as it is written.
#[derive(Deserialize)]
struct Written {
    kty: String,
    crv: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    use_: Option<String>,
    key_ops: Option<Vec<String>>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The most keys that are read of a set.
const MAX_KEYS: usize = 64;

impl Algorithm {
    /// The algorithm of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

impl Jwk {
    /// Whether a token says that it is signed by this key, or by one of its kind where it does not say by which.
    pub(crate) fn fits(&self, token: &Token) -> bool {
        self.algorithm() == token.algorithm
            && token.key_id.as_ref().is_none_or(|id| self.key_id.as_ref().is_none_or(|own| own == id))
    }

    /// Whether it fits a token, and the token names it or names none.
    pub(crate) fn is_named_by(&self, token: &Token) -> bool {
        self.fits(token) && (token.key_id.is_none() || token.key_id == self.key_id)
    }

    fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// Whether this key has signed a token. Not for one that it does not fit.
    pub(crate) fn has_signed(&self, token: &Token) -> bool {
        self.verify(token.signed.as_bytes(), &token.signature).is_some()
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        match &self.material {
            Material::Rsa { n, e } => {
                let [n, e] = [n, e].map(|number| BoxedUint::from_be_slice_vartime(number));
                // RFC 7518, section 3.3: no fewer bits. More would cost more than a call may.
                let key = rsa::PublicKey::new_with_size_limits(n, e, 2048..=4096).ok()?;
                let signature = pkcs1v15::Signature::try_from(signature).ok()?;
                pkcs1v15::VerifyingKey::<Sha256>::new(key).verify(message, &signature).ok()
            }
            Material::P256(point) => {
                let key = ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?;
                key.verify(message, &ecdsa::Signature::from_slice(signature).ok()?).ok()
            }
            Material::Ed25519(key) => {
                let key = ed25519_dalek::VerifyingKey::from_bytes(key).ok()?;
                // Strict: no key and no part of a signature of small order, by which one signature fits many messages.
                key.verify_strict(message, &ed25519_dalek::Signature::from_slice(signature).ok()?).ok()
            }
        }
    }

    /// Reads a key; says what is wrong with one that cannot be used.
    fn from_written(written: Written) -> Result<Self, &'static str> {
        let octets = |text: Option<String>| {
            let text = text.ok_or("expected n and e (RSA), x and y (EC) or x (OKP)")?;
            Base64UrlUnpadded::decode_vec(&text).map_err(|_| "expected base64url without padding")
        };
        let coordinate =
            |text| <[u8; 32]>::try_from(octets(text)?).map_err(|_| "expected x and y of 32 octets");
        let material = match (&*written.kty, written.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (octets(written.n)?, octets(written.e)?);
                let bits = n.iter().skip_while(|octet| **octet == 0).count() * 8;
                if !(2048..=4096).contains(&bits) || e.len() > 8 {
                    return Err("expected an RSA key of 2048 to 4096 bits");
                }
                Material::Rsa { n, e }
            }
            ("EC", Some("P-256")) => {
                let point = [&[4][..], &coordinate(written.x)?, &coordinate(written.y)?].concat();
                Material::P256(point.try_into().expect("1 + 32 + 32 octets"))
            }
            ("OKP", Some("Ed25519")) => Material::Ed25519(coordinate(written.x)?),
            _ => return Err("expected kty RSA, EC with crv P-256, or OKP with crv Ed25519"),
        };
        let key = Self { key_id: written.kid, material };
        if written.use_.is_some_and(|use_| use_ != "sig")
            || written.key_ops.is_some_and(|ops| ops.iter().all(|op| op != "verify"))
            || written.alg.is_some_and(|alg| Algorithm::named(&alg) != Some(key.algorithm()))
        {
            return Err(
                "expected a key to verify signatures of RS256, ES256 or EdDSA with: see its use, key_ops and alg",
            );
        }
        Ok(key)
    }
}

impl<'de> Deserialize<'de> for Jwk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_written(Written::deserialize(deserializer)?)
            .map_err(|problem| serde::de::Error::custom(["key: ", problem].concat()))
    }
}

fn usable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Jwk>, D::Error> {
    // Each by itself: one that is written in another way keeps none of the others off.
    let written = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(written.into_iter().filter_map(|key| serde_json::from_value(key).ok()).take(MAX_KEYS).collect())
}
