//! Files that the configuration names: read in whole, bounded, and anew for each connection, so that what was replaced
//! on disk counts without a restart.

use std::{
    fs::{self, File, Metadata},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use zeroize::Zeroizing;

/// No secret, seed or key file has more bytes.
const PRIVATE_MAX: u64 = 64 << 10;
/// No file of certificates has more bytes: a bundle of all public authorities has a quarter of it.
const PUBLIC_MAX: u64 = 1 << 20;

/// The contents of a file that anybody may read.
pub(crate) fn public(path: &Path) -> Result<Vec<u8>, String> {
    let (file, about) = open(path)?;
    read(path, &file, &about, PUBLIC_MAX)
}

/// The contents of a file that nobody but its owner may use.
pub(crate) fn private(path: &Path) -> Result<Zeroizing<String>, String> {
    let shown = path.display();
    let (file, about) = open(path)?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 && !is_systemd_credential(path) {
        return Err(format!(
            "{shown}: others can use it (mode {mode:04o}): expected 0600 or less, `chmod 600` it"
        ));
    }
    let mut bytes = Zeroizing::new(read(path, &file, &about, PRIVATE_MAX)?);
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(no_text) => {
            drop(Zeroizing::new(no_text.into_bytes()));
            Err(format!("{shown}: expected one secret, seed or PEM as text; found bytes that are no UTF-8"))
        }
    }
}

fn open(path: &Path) -> Result<(File, Metadata), String> {
    let cannot = |error| format!("{} cannot be read: {error}", path.display());
    // Looked at before it is opened, for opening a pipe waits for its other end.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(format!("{}: expected a file; found something else: name a file", path.display()));
    }
    let file = File::open(path).map_err(cannot)?;
    let about = file.metadata().map_err(cannot)?;
    Ok((file, about))
}

fn read(path: &Path, file: &File, about: &Metadata, most: u64) -> Result<Vec<u8>, String> {
    // With room for all of it from the beginning, no copy of a secret is left where a smaller buffer was.
    let mut bytes = Vec::with_capacity(usize::try_from(about.len().min(most) + 1).unwrap_or_default());
    let mut bounded = file.take(most + 1);
    bounded.read_to_end(&mut bytes).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if bytes.len() as u64 > most {
        return Err(format!("{}: expected at most {most} bytes; found more", path.display()));
    }
    Ok(bytes)
}

/// Systemd guards its credentials by access lists, which show as rights of the group.
fn is_systemd_credential(path: &Path) -> bool {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").and_then(|dir| fs::canonicalize(dir).ok());
    folder.is_some_and(|folder| fs::canonicalize(path).is_ok_and(|real| real.starts_with(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_can_use_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "sesame").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = private(&path).unwrap_err();
            assert!(error.contains("others can use it") && error.contains("chmod 600"), "{error}");
            assert!(!error.contains("sesame"));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(*private(&path).unwrap(), "sesame");
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(public(dir.path()).unwrap_err().contains("expected a file; found something else"));
        assert!(public(Path::new("/nowhere/ca.pem")).unwrap_err().contains("/nowhere/ca.pem cannot be read"));
        let path = dir.path().join("large");
        fs::write(&path, vec![b'x'; 1 + (64 << 10)]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(private(&path).unwrap_err().contains("expected at most 65536 bytes"));
        fs::write(&path, b"\xff").unwrap();
        assert!(private(&path).unwrap_err().contains("found bytes that are no UTF-8"));
    }
}
