//! A file system of its own for a node's data, small enough to be filled.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A tmpfs mounted over a folder until this is dropped.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB over an empty folder. None where this user may not mount.
    ///
    /// # Errors
    /// Where mounting fails for another reason.
    pub fn over(folder: &Path, mib: u32) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let options = format!("size={mib}m,mode=0700");
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("permission denied") || said.contains("not permitted") {
            return Ok(None);
        }
        ensure!(output.status.success(), "cannot mount a tmpfs over {}: {said}", folder.display());
        Ok(Some(Self { folder: folder.into() }))
    }

    /// Fills it to the last byte; dropping the file's handle and removing it frees it again.
    ///
    /// # Errors
    /// Where it fails otherwise than by being full.
    pub fn fill(&self) -> Result<Filler> {
        let path = self.folder.join("filler");
        let mut file = File::create(&path).context("a file can be made")?;
        for size in [1 << 20, 4096] {
            let block = vec![0; size];
            loop {
                match file.write_all(&block) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("the disk fills up"),
                }
            }
        }
        Ok(Filler(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may still have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).output();
    }
}

/// What fills a disk, until this is dropped.
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
