//! Compiled modules on disk: a cache that can be deleted at any time, and that nobody else can write into.
//!
//! A file is a MAC, the module's description and its machine code. The MAC's key stands in the node's data
//! directory (0600), the name holds the module's digest and the engine's settings: a file that was changed, moved
//! or made by another version is not read but made anew.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use beamline_model::Digest;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::inspect::ModuleInfo;

const MAC_BYTES: usize = 32;

pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
    engine: String,
}

fn private_file() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

/// Makes a key, whole on the disk before it has its name.
fn new_key(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let _ = fs::remove_file(&partial);
    let mut file = private_file().open(&partial)?;
    io::Write::write_all(&mut file, &key)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    Ok(key)
}

impl Cache {
    /// Opens the cache below `dir`, making folder and key where they are missing. `engine` names the settings that
    /// artifacts depend on.
    pub(crate) fn open(dir: &Path, engine: String) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let path = dir.join("cache.key");
        let key = match fs::read(&path) {
            Ok(bytes) => bytes.try_into().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // One that a power cut left torn is as good as none: what was kept under it is compiled again.
        let key = key.map_or_else(|| new_key(&path), Ok)?;
        Ok(Self { dir: dir.to_owned(), key, engine })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}.cwasm", digest.hex(), self.engine))
    }

    fn mac(&self, digest: &Digest, content: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(digest.as_bytes());
        mac.update(self.engine.as_bytes());
        mac.update(&[0]);
        mac.update(content);
        mac
    }

    /// The artifact of `digest`, where the cache has one that is authentic.
    pub(crate) fn get(&self, digest: &Digest) -> Option<(ModuleInfo, Vec<u8>)> {
        let file = fs::read(self.path(digest)).ok()?;
        let (mac, content) = file.split_at_checked(MAC_BYTES)?;
        self.mac(digest, content).verify_slice(mac).ok()?;
        let (length, rest) = content.split_first_chunk::<4>()?;
        let (json, artifact) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        Some((serde_json::from_slice(json).ok()?, artifact.to_vec()))
    }

    /// Keeps an artifact. Not fsynced: a torn file fails its MAC.
    pub(crate) fn put(&self, info: &ModuleInfo, artifact: &[u8]) -> io::Result<()> {
        let json = serde_json::to_vec(info)?;
        let mut content = Vec::with_capacity(4 + json.len() + artifact.len());
        content.extend_from_slice(&u32::try_from(json.len()).map_err(io::Error::other)?.to_le_bytes());
        content.extend_from_slice(&json);
        content.extend_from_slice(artifact);
        let mac = self.mac(&info.digest, &content).finalize().into_bytes();
        let path = self.path(&info.digest);
        let partial = path.with_extension("partial");
        let _ = fs::remove_file(&partial);
        let mut file = private_file().open(&partial)?;
        io::Write::write_all(&mut file, &mac)?;
        io::Write::write_all(&mut file, &content)?;
        fs::rename(partial, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ModuleKind;

    fn info(module: &[u8]) -> ModuleInfo {
        ModuleInfo {
            digest: Digest::of(module),
            kind: ModuleKind::Component,
            phases: vec![],
            imports: vec![],
            tier: crate::Tier::Component,
            tier_reason: None,
            size: 1,
            artifact_size: 4,
            compile_ms: 1,
        }
    }

    #[test]
    fn an_artifact_is_read_back_only_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), "e1".into()).unwrap();
        let (a, b) = (info(b"a"), info(b"b"));
        cache.put(&a, b"code").unwrap();
        cache.put(&b, b"edoc").unwrap();
        assert_eq!(cache.get(&a.digest), Some((a.clone(), b"code".to_vec())));

        // Reopened with the same key, and by another engine.
        assert!(Cache::open(dir.path(), "e1".into()).unwrap().get(&a.digest).is_some());
        assert!(Cache::open(dir.path(), "e2".into()).unwrap().get(&a.digest).is_none());

        // Another module's file in its place; a flipped bit; a torn file; another key.
        fs::copy(cache.path(&b.digest), cache.path(&a.digest)).unwrap();
        assert_eq!(cache.get(&a.digest), None);
        let mut file = fs::read(cache.path(&b.digest)).unwrap();
        *file.last_mut().unwrap() ^= 1;
        fs::write(cache.path(&b.digest), &file).unwrap();
        assert_eq!(cache.get(&b.digest), None);
        fs::write(cache.path(&b.digest), &file[..20]).unwrap();
        assert_eq!(cache.get(&b.digest), None);
        cache.put(&b, b"edoc").unwrap();
        fs::remove_file(dir.path().join("cache.key")).unwrap();
        assert_eq!(Cache::open(dir.path(), "e1".into()).unwrap().get(&b.digest), None);
    }

    #[test]
    fn a_torn_key_is_replaced_and_what_was_kept_under_the_old_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let a = info(b"a");
        Cache::open(dir.path(), "e1".into()).unwrap().put(&a, b"code").unwrap();
        fs::write(dir.path().join("cache.key"), b"").unwrap();
        let cache = Cache::open(dir.path(), "e1".into()).unwrap();
        assert_eq!(cache.get(&a.digest), None);
        cache.put(&a, b"code").unwrap();
        assert!(Cache::open(dir.path(), "e1".into()).unwrap().get(&a.digest).is_some());
    }
}
