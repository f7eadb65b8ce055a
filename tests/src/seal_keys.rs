//! Seal key files, as an operator makes them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::{
    beamline::{self, Options},
    tools,
};

/// A folder with a seal key file, which goes when it is dropped.
pub struct SealKeys {
    folder: TempDir,
}

impl SealKeys {
    /// A file with new keys of these ids, the first of which seals.
    ///
    /// # Errors
    /// Where a key can't be made, or the file not be written.
    pub fn with(ids: &[&str]) -> Result<Self> {
        let keys = Self { folder: tempfile::tempdir()? };
        keys.write(&ids.iter().map(|id| key(id)).collect::<Result<Vec<_>>>()?)?;
        Ok(keys)
    }

    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.folder().join("seal-keys")
    }

    /// The folder that it is in, with room for other files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its lines: one key each.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn lines(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(self.path())?.lines().map(str::to_owned).collect())
    }

    /// Puts these lines in the place of what it holds. Nobody else may read it, or a node would not.
    ///
    /// # Errors
    /// Where it can't be written.
    pub fn write(&self, lines: &[String]) -> Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(self.path())?;
        Ok(file.write_all(lines.join("\n").as_bytes())?)
    }

    /// Options of a node that seals with it.
    pub fn options(&self) -> Options {
        let arguments = vec!["--seal-key-file".into(), self.path().display().to_string()];
        Options { arguments, ..Options::default() }
    }
}

/// A new key of this id: the line that `beamline seal-key generate` prints.
///
/// # Errors
/// Where the command fails.
pub fn key(id: &str) -> Result<String> {
    let mut command = Command::new(beamline::binary()?);
    let made = tools::run(command.args(["seal-key", "generate", "--id", id]), Duration::from_secs(30))?;
    ensure!(
        made.status.success(),
        "seal-key generate ended with {}: {}",
        made.status,
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(String::from_utf8(made.stdout)?.trim_end().to_owned())
}
