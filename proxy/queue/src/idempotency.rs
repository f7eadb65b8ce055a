//! What a client's `Idempotency-Key` is worth: a request that comes again is told the receipt of the one that is stored.
//!
//! What a key was used for is its [`KeyScope`], a keyed hash, so that nothing of keys and credentials is on the disk. Of
//! the request itself a [`Fingerprint`] is stored: the same scope with another fingerprint is another request under a key
//! that is taken. The receipt's secret is made of the node's key and the scope, and can be made again; none of it is stored.

use std::{
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use beamline_model::{TenantName, UpstreamName};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::{
    disk,
    receipt::{Receipt, SECRET_BYTES},
    record::RecordId,
};

/// The key of this data folder, in a file of its own: who has the log alone can make no receipt of it.
pub(crate) struct NodeKey([u8; 32]);

/// What a client's `Idempotency-Key` is used for, all of which makes two uses the same.
#[derive(Clone, Copy, Debug)]
pub struct KeyedUse<'a> {
    /// Whose host it was sent to.
    pub tenant: &'a TenantName,
    /// Where it goes.
    pub upstream: &'a UpstreamName,
    /// The host that the client named.
    pub host: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// The key, as the client sent it.
    pub key: &'a [u8],
    /// What the caller shows to prove who it is, in order.
    pub credentials: &'a [&'a [u8]],
}

/// A keyed hash of what a key is used for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyScope(pub(crate) [u8; 32]);

/// A hash of a request, but for what its key's scope has of it: query, content type and body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub(crate) [u8; 32]);

/// The hash of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

/// Hashes a body as it comes.
#[derive(Clone, Default)]
pub struct BodyHasher(Sha256);

/// What a record's client used its key for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUse {
    pub(crate) scope: KeyScope,
    pub(crate) fingerprint: Fingerprint,
}

/// The record for which a key was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) id: RecordId,
    pub(crate) fingerprint: Fingerprint,
}

impl NodeKey {
    /// Its file in the queue's folder.
    pub(crate) const FILE: &str = "idempotency.key";

    /// Reads the key of this folder, or makes one that is on stable storage before it is used.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(Self::FILE);
        match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map(Self).map_err(|bytes: Vec<u8>| {
                let found = format!(
                    "expected 32 bytes, found {}: restore it, or delete it and have clients' keys forgotten",
                    bytes.len()
                );
                io::Error::new(io::ErrorKind::InvalidData, found)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(dir, &path),
            Err(error) => Err(error),
        }
    }

    fn make(dir: &Path, path: &Path) -> io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        let partial = path.with_extension("partial");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&key)?;
        disk::sync_file(&file)?;
        fs::rename(&partial, path)?;
        disk::sync_dir(dir)?;
        Ok(Self(key))
    }

    /// A MAC over parts, each with its length before it, so that no two lists of parts are one text.
    fn mac<'a>(&self, purpose: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in [purpose.as_bytes()].into_iter().chain(parts) {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    pub(crate) fn scope(&self, what: &KeyedUse<'_>) -> KeyScope {
        let texts = [what.tenant.as_str(), what.upstream.as_str(), what.host, what.method, what.path];
        let parts = texts.map(str::as_bytes).into_iter().chain([what.key]);
        KeyScope(self.mac("scope", parts.chain(what.credentials.iter().copied())))
    }

    /// The receipt of a record with a key: the same whenever it is asked for.
    pub(crate) fn receipt(&self, id: RecordId, scope: &KeyScope) -> Receipt {
        let mac = self.mac("receipt", [&id.as_bytes()[..], &scope.0]);
        let secret = mac.first_chunk::<SECRET_BYTES>().expect("a MAC is longer than a secret");
        Receipt::with_secret(id, *secret)
    }
}

impl KeyScope {
    /// What an index goes by: the scope is a MAC, so that any part of it is spread well, and nobody can choose it.
    pub(crate) fn prefix(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("32 bytes have a first eight"))
    }
}

impl Fingerprint {
    /// Of a request with this target (path and query), content type and body.
    pub fn of(target: &str, content_type: Option<&[u8]>, body: &BodyDigest) -> Self {
        let query = target.split_once('?').map(|(_, query)| query.as_bytes());
        let mut hash = Sha256::new_with_prefix(body.0);
        for part in [query, content_type] {
            // One more than the length: none is not empty.
            hash.update(part.map_or(0, |part| part.len() as u64 + 1).to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        Self(hash.finalize().into())
    }
}

impl BodyHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// Of all that came so far.
    pub fn digest(&self) -> BodyDigest {
        BodyDigest(self.0.clone().finalize().into())
    }
}

impl fmt::Debug for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyScope({:016x})", self.prefix())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(…)")
    }
}

impl fmt::Debug for BodyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyHasher")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_nodes_key_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let key = NodeKey::open(dir.path()).unwrap();
        assert_eq!(NodeKey::open(dir.path()).unwrap().0, key.0);
        let path = dir.path().join(NodeKey::FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        let error = NodeKey::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains("expected 32 bytes, found 5"), "{error}");
    }

    #[test]
    fn every_part_of_a_use_makes_another_scope() {
        let (acme, globex) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        let (api, web) = ("api".parse().unwrap(), "web".parse().unwrap());
        let one = KeyedUse {
            tenant: &acme,
            upstream: &api,
            host: "acme.test",
            method: "POST",
            path: "/a",
            key: b"k1",
            credentials: &[b"Bearer a"],
        };
        let uses = [
            one,
            KeyedUse { tenant: &globex, ..one },
            KeyedUse { upstream: &web, ..one },
            KeyedUse { host: "www.acme.test", ..one },
            KeyedUse { method: "PUT", ..one },
            KeyedUse { path: "/b", ..one },
            KeyedUse { key: b"k2", ..one },
            KeyedUse { credentials: &[], ..one },
            KeyedUse { credentials: &[b"Bearer b"], ..one },
            KeyedUse { credentials: &[b"Bearer ", b"a"], ..one },
            // The same bytes, cut elsewhere.
            KeyedUse { path: "/ak", key: b"1", ..one },
        ];
        let (key, other) = (NodeKey([1; 32]), NodeKey([2; 32]));
        let scopes: std::collections::HashSet<_> = uses.iter().map(|used| key.scope(used)).collect();
        assert_eq!(scopes.len(), uses.len());
        assert_eq!(key.scope(&one), key.scope(&one));
        assert_ne!(key.scope(&one), other.scope(&one), "only who has the key can make it");
    }

    #[test]
    fn a_receipt_can_be_made_again_and_by_nobody_else() {
        let (id, scope) = (RecordId::generate(1), KeyScope([3; 32]));
        let receipt = NodeKey([1; 32]).receipt(id, &scope);
        assert_eq!(receipt, NodeKey([1; 32]).receipt(id, &scope));
        for other in [
            NodeKey([2; 32]).receipt(id, &scope),
            NodeKey([1; 32]).receipt(id, &KeyScope([4; 32])),
            NodeKey([1; 32]).receipt(RecordId::generate(1), &scope),
        ] {
            assert_ne!(receipt, other);
        }
    }

    #[test]
    fn a_fingerprint_is_of_query_content_type_and_body() {
        let digest = |body: &[u8]| {
            let mut hasher = BodyHasher::default();
            body.chunks(3).for_each(|piece| hasher.update(piece));
            hasher.digest()
        };
        let of = |target, kind: Option<&'static str>, body| {
            Fingerprint::of(target, kind.map(str::as_bytes), &digest(body))
        };
        let one = of("/a?q=1", Some("text/plain"), b"body");
        assert_eq!(one, of("/b?q=1", Some("text/plain"), b"body"), "the path is the scope's");
        for (target, kind, body) in [
            ("/a?q=2", Some("text/plain"), &b"body"[..]),
            ("/a", Some("text/plain"), b"body"),
            ("/a?", Some("text/plain"), b"body"),
            ("/a?q=1", None, b"body"),
            ("/a?q=1", Some(""), b"body"),
            ("/a?q=1", Some("text/plain"), b"body "),
            ("/a?q=1text", Some("/plain"), b"body"),
        ] {
            assert_ne!(one, of(target, kind, body), "{target} {kind:?}");
        }
    }
}
