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

/// An ext4 file system in a file. It can break, and its power can be cut: what the kernel had not written to the file is
/// lost.
pub struct LoopDisk {
    /// Holds the images and the folder that the file system is mounted over.
    holder: tempfile::TempDir,
    mounted: bool,
}

impl LoopDisk {
    /// Makes one of so many MiB and mounts it. None where this user may not, or there are no loop devices.
    ///
    /// # Errors
    /// Where it fails for another reason.
    pub fn make(mib: u64) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            return Ok(None);
        }
        let holder = tempfile::Builder::new().prefix("beamline-disk-").tempdir()?;
        let mut disk = Self { holder, mounted: false };
        std::fs::create_dir(disk.folder())?;
        File::create(disk.image())?.set_len(mib << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()))?;
        match disk.mount() {
            Err(error) if format!("{error:#}").contains("ermi") => Ok(None), // permission, permitted
            other => other.map(|()| Some(disk)),
        }
    }

    /// Where it is mounted.
    pub fn folder(&self) -> PathBuf {
        self.holder.path().join("mounted")
    }

    fn image(&self) -> PathBuf {
        self.holder.path().join("image")
    }

    fn noted(&self) -> PathBuf {
        self.holder.path().join("noted")
    }

    fn mount(&mut self) -> Result<()> {
        run(Command::new("mount")
            .args(["-o", "loop,errors=remount-ro"])
            .arg(self.image())
            .arg(self.folder()))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            // Lazily: a process that was killed may not be gone from it yet.
            let _ = Command::new("umount").arg("-l").arg(self.folder()).output();
        }
    }

    /// Notes what of it is on the disk now, as a power cut would find it. Nothing should be written meanwhile.
    ///
    /// # Errors
    /// Where its image cannot be copied.
    pub fn note_what_is_written(&self) -> Result<()> {
        std::fs::copy(self.image(), self.noted()).context("the image can be copied").map(drop)
    }

    /// Goes back to what was noted: the rest is lost. Whoever had files open there must have ended.
    ///
    /// # Errors
    /// Where what was noted cannot be mounted.
    pub fn lose_the_rest(&mut self) -> Result<()> {
        self.unmount();
        // Under another name: the old file may still be its loop device's.
        std::fs::remove_file(self.image())?;
        std::fs::rename(self.noted(), self.image())?;
        self.mount()
    }

    /// Makes it find an error in itself: it is read-only from now on. False where the kernel has no way to.
    ///
    /// # Errors
    /// Where it is not mounted.
    pub fn breaks(&self) -> Result<bool> {
        let device = Command::new("findmnt").args(["-no", "SOURCE"]).arg(self.folder()).output()?.stdout;
        let device = String::from_utf8(device)?;
        let name = device.trim().rsplit('/').next().context("a mounted device has a name")?;
        let trigger = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        match std::fs::write(&trigger, "broken by a test") {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{} can be written", trigger.display())),
        }
    }

    /// Unmounts it, has it mended and mounts it again. No process may use it.
    ///
    /// # Errors
    /// Where it is in use, or past mending.
    pub fn mend(&mut self) -> Result<()> {
        run(Command::new("umount").arg(self.folder()))?;
        self.mounted = false;
        let mended = Command::new("fsck.ext4").arg("-fy").arg(self.image()).output()?;
        // 1: errors were corrected.
        ensure!(mended.status.code().is_some_and(|code| code <= 1), "fsck.ext4: {mended:?}");
        self.mount()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} can be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}
