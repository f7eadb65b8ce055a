//! A file system of its own for a node's data, small enough to be filled.

use std::{
    ffi::OsStr,
    fs::{self, File},
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

/// An ext4 of its own mounted over a folder until this is dropped, in a file: it can break as a real one does.
pub struct Ext4 {
    folder: PathBuf,
    /// Removed with this, after the file system was unmounted.
    image: tempfile::NamedTempFile,
}

/// Runs a program that mends or makes a file system. Exit codes up to `most` are success.
fn run(program: &str, arguments: &[&OsStr], most: i32) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("{program} can be run"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code().is_some_and(|code| code <= most), "{program}: {said}");
    Ok(said)
}

impl Ext4 {
    /// Mounts one of so many MiB over an empty folder. None where this user may not, or the machine has no ext4 in files.
    ///
    /// # Errors
    /// Where the image cannot be made.
    pub fn over(folder: &Path, mib: u64) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(mib << 20)?;
        run("mkfs.ext4", &["-q".as_ref(), image.path().as_os_str()], 0)?;
        let new = Self { folder: folder.into(), image };
        match new.mount() {
            Ok(()) => Ok(Some(new)),
            Err(error) => {
                println!("{error:#}");
                Ok(None)
            }
        }
    }

    fn mount(&self) -> Result<()> {
        let image = self.image.path().as_os_str();
        run("mount", &["-o".as_ref(), "loop,errors=remount-ro".as_ref(), image, self.folder.as_os_str()], 0)?;
        Ok(())
    }

    /// Makes the file system find an error in itself: it is read-only from now on. False where the kernel has no way to.
    ///
    /// # Errors
    /// Where it is not mounted.
    pub fn breaks(&self) -> Result<bool> {
        let device = Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.folder).output()?.stdout;
        let device = String::from_utf8(device)?;
        let name = device.trim().rsplit('/').next().context("a mounted device has a name")?;
        let trigger = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        match fs::write(&trigger, "broken by a test") {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{} can be written", trigger.display())),
        }
    }

    /// Unmounts it, checks it and mounts it again. No process may use it.
    ///
    /// # Errors
    /// Where it is in use, or past mending.
    pub fn mend(&self) -> Result<()> {
        run("umount", &[self.folder.as_os_str()], 0)?;
        // 1: errors were corrected.
        run("fsck.ext4", &["-fy".as_ref(), self.image.path().as_os_str()], 1)?;
        self.mount()
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).output();
    }
}
