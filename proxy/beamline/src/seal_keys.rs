//! Where a node's seal keys come from: a file of the operator's, or a credential of systemd. Never the data folder, which
//! they protect.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use beamline_seal::{Plain, SealKeys};

/// The credential that is looked for where no file is named.
const CREDENTIAL: &str = "beamline-seal-key";
/// No key file has more bytes; a longer one is something else.
const FILE_MAX: u64 = 64 << 10;

/// The keys of `file`, else of systemd's credential in the folder `credentials`, else none.
///
/// # Errors
/// Where they cannot be read, others can read them too, or they lie in the data folder.
pub(crate) fn load(
    file: Option<&Path>,
    credentials: Option<&Path>,
    data_dir: &Path,
) -> anyhow::Result<Option<SealKeys>> {
    let credential = credentials.map(|dir| dir.join(CREDENTIAL)).filter(|path| path.exists());
    let Some(path) = file.map(PathBuf::from).or(credential) else { return Ok(None) };
    read(&path, credentials, data_dir).map(Some).with_context(|| format!("seal key file {}", path.display()))
}

/// The folder in which systemd puts this unit's credentials.
pub(crate) fn credentials_dir() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

fn read(path: &Path, credentials: Option<&Path>, data_dir: &Path) -> anyhow::Result<SealKeys> {
    let real = fs::canonicalize(path).context("it cannot be found: name another with --seal-key-file")?;
    let data_dir = fs::canonicalize(data_dir).context("where the data folder really is cannot be told")?;
    if real.starts_with(&data_dir) {
        bail!(
            "it lies in the data folder {}, and whoever copies that would have the key with what it seals: keep it elsewhere",
            data_dir.display()
        );
    }
    // Looked at before it is opened, for opening a pipe waits for its other end.
    if !fs::metadata(&real).context("it cannot be looked at")?.is_file() {
        bail!(
            "expected a file with lines of the form ID:KEY, as `beamline seal-key generate` prints them; found something else"
        );
    }
    let file = File::open(&real).context("it cannot be read")?;
    let about = file.metadata().context("it cannot be looked at")?;
    // Systemd guards its credentials by access lists, which show as rights of the group.
    let guarded =
        credentials.and_then(|dir| fs::canonicalize(dir).ok()).is_some_and(|dir| real.starts_with(dir));
    let mode = about.permissions().mode() & 0o777;
    if !guarded && mode & 0o077 != 0 {
        bail!("others can use it (mode {mode:04o}): expected 0600 or less, `chmod 600` it");
    }
    // All at once: a buffer that grows would leave copies of keys behind.
    let mut bytes = Vec::with_capacity(FILE_MAX as usize + 1);
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).context("it cannot be read")?;
    let bytes = Plain::new(bytes);
    if bytes.reveal().len() as u64 > FILE_MAX {
        bail!("expected lines of the form ID:KEY, {FILE_MAX} bytes at most; found more");
    }
    let text = std::str::from_utf8(bytes.reveal())
        .ok()
        .context("expected lines of the form ID:KEY; found bytes that are no UTF-8")?;
    Ok(SealKeys::parse(text)?)
}

#[cfg(test)]
mod tests {
    use beamline_seal::KeyLine;

    use super::*;

    /// A file with one key, of this mode.
    fn key_file(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, KeyLine::generate(&"k1".parse().unwrap()).reveal()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A folder with a data folder in it.
    fn folders() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        (dir, data)
    }

    #[test]
    fn a_named_file_goes_before_the_credential_and_without_either_there_are_none() {
        let (dir, data) = folders();
        let credentials = dir.path().join("credentials");
        fs::create_dir(&credentials).unwrap();
        assert!(load(None, Some(&credentials), &data).unwrap().is_none());
        assert!(load(None, None, &data).unwrap().is_none());
        // As systemd's access list shows in the mode.
        key_file(&credentials, CREDENTIAL, 0o440);
        assert_eq!(load(None, Some(&credentials), &data).unwrap().unwrap().current().as_str(), "k1");
        let missing = load(Some(Path::new("/nowhere")), Some(&credentials), &data).unwrap_err();
        assert!(format!("{missing:#}").contains("/nowhere: it cannot be found"), "{missing:#}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (dir, data) = folders();
        assert!(load(Some(&key_file(dir.path(), "mine", 0o600)), None, &data).unwrap().is_some());
        for mode in [0o640, 0o604, 0o620] {
            let error = load(Some(&key_file(dir.path(), "ours", mode)), None, &data).unwrap_err();
            assert!(format!("{error:#}").contains(&format!("mode {mode:04o}")), "{error:#}");
        }
    }

    #[test]
    fn a_file_in_the_data_folder_is_refused_by_whatever_way_it_is_named() {
        let (dir, data) = folders();
        let file = key_file(&data, "keys", 0o600);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for named in [file, link, data.join("../data/keys")] {
            let error = load(Some(&named), None, &data).unwrap_err();
            assert!(format!("{error:#}").contains("it lies in the data folder"), "{error:#}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_told_without_repeating_it() {
        let (dir, data) = folders();
        let path = key_file(dir.path(), "keys", 0o600);
        for (content, expected) in [
            ("s3cret", "line 1: there is no \":\""),
            ("", "there is no key in it"),
            ("k1:s3cret", "not base64"),
        ] {
            fs::write(&path, content).unwrap();
            let error = format!("{:#}", load(Some(&path), None, &data).unwrap_err());
            assert!(error.contains(expected) && !error.contains("s3cret"), "{error}");
        }
        assert!(load(Some(dir.path()), None, &data).is_err());
    }
}
