//! Power cuts: after `kill -9`, everything that a process wrote below a directory and did not fsync is taken away.
//!
//! `shim/powercut.c`, preloaded into the process, keeps an image of what the disk would hold; its opening comment has
//! the rules. [`PowerCut::strike`] puts that image in the directory's place.
//!
//! ```no_run
//! # use beamline_tests::{beamline::{Beamline, Options}, powercut::{Entries, PowerCut}};
//! # fn main() -> anyhow::Result<()> {
//! let mut node = Beamline::prepare(Options::default())?;
//! let power = PowerCut::over(&node.data_dir(), Entries::ByDirectory)?;
//! node.options_mut().environment = power.environment();
//! node.launch()?;
//! // … work that is acknowledged …
//! node.kill_nine()?;
//! let lost = power.strike()?;
//! node.launch()?;
//! // … what was acknowledged is there, whatever `lost` holds …
//! # Ok(())
//! # }
//! ```

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::tools;

/// When a created, renamed or removed directory entry is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// After an fsync of its directory: all that POSIX promises, and what a program should rely on.
    ByDirectory,
    /// Also after an fsync of the file itself, as ext4 has it.
    ByFileToo,
}

/// What a power cut took away, or brought back; paths are relative to the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Files that were there and are gone.
    pub gone: Vec<PathBuf>,
    /// Files whose content changed back.
    pub reverted: Vec<PathBuf>,
    /// Files whose removal or renaming was undone.
    pub back: Vec<PathBuf>,
}

impl Lost {
    /// Whether the power cut made no difference.
    pub fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A directory whose processes can lose power. The image goes with this.
///
/// All that writes to the directory must have the shim, from the first process to the last power cut.
pub struct PowerCut {
    root: PathBuf,
    entries: Entries,
    skip_fsync: Option<String>,
    /// Holds the built library, the image, and the restored tree for a moment.
    folder: TempDir,
}

impl PowerCut {
    /// Over a directory that no process writes to now; what it holds counts as durable.
    ///
    /// # Errors
    /// Where there is no C compiler or the directory can't be read.
    pub fn over(root: &Path, entries: Entries) -> Result<Self> {
        let root = root.canonicalize().with_context(|| format!("no directory {}", root.display()))?;
        let folder = tempfile::Builder::new().prefix("powercut-").tempdir()?;
        let new = Self { root, entries, skip_fsync: None, folder };
        new.build()?;
        new.adopt()?;
        Ok(new)
    }

    /// On files and directories whose path contains `part`, fsync does nothing from now on: what a build that forgot
    /// to call it does. `/` is in every path.
    pub fn skip_fsync(mut self, part: &str) -> Self {
        self.skip_fsync = Some(part.into());
        self
    }

    /// The environment variables of a process that works on the directory.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let entries = match self.entries {
            Entries::ByDirectory => "directory",
            Entries::ByFileToo => "file",
        };
        let mut all = vec![
            ("LD_PRELOAD".into(), self.library().into()),
            ("POWERCUT_ROOT".into(), self.root.clone().into()),
            ("POWERCUT_IMAGE".into(), self.image().into()),
            ("POWERCUT_ENTRIES".into(), entries.into()),
        ];
        all.extend(self.skip_fsync.as_ref().map(|part| ("POWERCUT_SKIP_FSYNC".into(), part.into())));
        all
    }

    /// From now on every fsync fails with EIO, or works again.
    ///
    /// # Errors
    /// Where the image can't be written.
    pub fn failing(&self, on: bool) -> Result<()> {
        let mark = self.image().join("failing");
        match on {
            true => fs::write(mark, b"")?,
            false if mark.exists() => fs::remove_file(mark)?,
            false => {}
        }
        Ok(())
    }

    /// From now on the wall clock of the processes is so many seconds ahead, or behind. A power cut puts it right.
    ///
    /// # Errors
    /// Where the image can't be written.
    pub fn clock(&self, ahead: i64) -> Result<()> {
        // Whole in one step: it is read at any moment.
        let partial = self.image().join("clock.partial");
        fs::write(&partial, ahead.to_string())?;
        Ok(fs::rename(partial, self.image().join("clock"))?)
    }

    /// Takes away what was not fsynced. The processes must have been killed before.
    ///
    /// # Errors
    /// Where the image is not as the library keeps it, or the disk fails.
    pub fn strike(&self) -> Result<Lost> {
        let restored = self.folder.path().join("restored");
        fs::create_dir(&restored)?;
        self.restore(fs::metadata(&self.root)?.ino(), &restored)?;
        let (before, after) = (files(&self.root)?, files(&restored)?);
        let lost = Lost {
            gone: before.keys().filter(|p| !after.contains_key(*p)).cloned().collect(),
            reverted: before
                .iter()
                .filter(|(path, content)| after.get(*path).is_some_and(|c| c != *content))
                .map(|(path, _)| path.clone())
                .collect(),
            back: after.keys().filter(|p| !before.contains_key(*p)).cloned().collect(),
        };
        for item in fs::read_dir(&self.root)? {
            let path = item?.path();
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        copy_tree(&restored, &self.root)?;
        fs::remove_dir_all(&restored)?;
        self.adopt()?;
        Ok(lost)
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("powercut.so")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn build(&self) -> Result<()> {
        tools::require(&["cc"])?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/powercut.c");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-U_FORTIFY_SOURCE", "-pthread", "-o"])
            .arg(self.library())
            .arg(&source)
            .output()?;
        ensure!(
            output.status.success(),
            "cc could not build {}:\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Makes the image anew from the directory as it is.
    fn adopt(&self) -> Result<()> {
        let image = self.image();
        if image.exists() {
            fs::remove_dir_all(&image)?;
        }
        fs::create_dir_all(image.join("inodes"))?;
        fs::create_dir_all(image.join("dirs"))?;
        self.adopt_folder(&self.root)
    }

    fn adopt_folder(&self, folder: &Path) -> Result<()> {
        let kept = self.image().join("dirs").join(fs::metadata(folder)?.ino().to_string());
        fs::create_dir_all(&kept)?;
        for item in fs::read_dir(folder)? {
            let item = item?;
            let (path, meta) = (item.path(), item.metadata()?);
            let place = kept.join(item.file_name());
            if meta.is_dir() {
                symlink(format!("{}:{:o}", meta.ino(), meta.mode() & 0o7777), place)?;
                self.adopt_folder(&path)?;
            } else if meta.is_file() && !item.file_name().to_string_lossy().ends_with("-shm") {
                let content = self.image().join("inodes").join(meta.ino().to_string());
                if !content.exists() {
                    fs::copy(&path, &content)?;
                }
                fs::hard_link(content, place)?;
            }
        }
        Ok(())
    }

    /// Builds what is durable of the directory with this inode number.
    fn restore(&self, inode: u64, into: &Path) -> Result<()> {
        let kept = self.image().join("dirs").join(inode.to_string());
        if !kept.exists() {
            return Ok(()); // its own name was made durable, none of its entries
        }
        for item in fs::read_dir(&kept)? {
            let item = item?;
            let place = into.join(item.file_name());
            if item.file_type()?.is_symlink() {
                let target = fs::read_link(item.path())?;
                let (inode, mode) = target
                    .to_str()
                    .and_then(|t| t.split_once(':'))
                    .and_then(|(inode, mode)| Some((inode.parse().ok()?, u32::from_str_radix(mode, 8).ok()?)))
                    .with_context(|| {
                        format!("expected inode and mode in the image; found {}", target.display())
                    })?;
                fs::create_dir(&place)?;
                self.restore(inode, &place)?;
                fs::set_permissions(&place, fs::Permissions::from_mode(mode))?;
            } else {
                fs::copy(item.path(), &place)?;
            }
        }
        Ok(())
    }
}

/// Copies what a directory holds, modes included.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for item in fs::read_dir(from)? {
        let item = item?;
        let place = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            fs::create_dir(&place)?;
            copy_tree(&item.path(), &place)?;
            fs::set_permissions(&place, item.metadata()?.permissions())?;
        } else {
            fs::copy(item.path(), &place)?;
        }
    }
    Ok(())
}

/// Every file below a directory with its content, but those that a power cut leaves out.
fn files(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for item in fs::read_dir(&folder)? {
            let path = item?.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.is_file() && !path.to_string_lossy().ends_with("-shm") {
                let content = fs::read(&path)?;
                found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), content);
            }
        }
    }
    Ok(found)
}
