//! What the disk can still take, and how data gets onto it for good.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::fault::Fault;

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Puts a file's content on stable storage.
pub(crate) fn sync_file(file: &File) -> io::Result<()> {
    if Fault::SkipFsync.is_on() { Ok(()) } else { file.sync_all() }
}

/// Puts a folder's entries on stable storage.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    if Fault::SkipFsync.is_on() { Ok(()) } else { File::open(path)?.sync_all() }
}

/// Makes `path` and its parents, 0700, each entry on stable storage.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_dir(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    sync_dir(parent)
}

/// A new file for owner only, which must not be there yet.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The free space of the queue's file system, looked at no more than once a second, and the ballast.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    min_free: u64,
    ballast: u64,
    free: AtomicU64,
    /// What was kept since then.
    spent: AtomicU64,
    /// When `free` was looked at. Only the queue's own threads take this lock.
    looked: Mutex<Option<Instant>>,
}

impl Disk {
    pub(crate) fn new(dir: PathBuf, min_free: u64, ballast: u64) -> Self {
        Self {
            dir,
            min_free,
            ballast,
            free: AtomicU64::new(u64::MAX),
            spent: AtomicU64::new(0),
            looked: Mutex::new(None),
        }
    }

    /// Whether `bytes`, which is everything that is promised and not yet kept, fit without going into the reserve.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let taken = self.min_free.saturating_add(bytes).saturating_add(self.spent.load(Ordering::Acquire));
        self.free.load(Ordering::Relaxed) >= taken
    }

    /// So many bytes more are kept: until the disk is looked at again, they count against what was free then.
    pub(crate) fn spent(&self, bytes: u64) {
        self.spent.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Looks at the disk again if that was not done within the last second, and keeps the ballast where there is room.
    pub(crate) fn look(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        *looked = Some(Instant::now());
        let spent = self.spent.load(Ordering::Acquire);
        if let Ok(stat) = statvfs(&self.dir) {
            self.free.store(stat.f_bavail.saturating_mul(stat.f_frsize), Ordering::Relaxed);
            self.spent.fetch_sub(spent, Ordering::AcqRel);
        }
        if self.has_room(self.ballast.saturating_mul(2)) {
            self.take_ballast();
        }
    }

    fn ballast_path(&self) -> PathBuf {
        self.dir.join("queue.ballast")
    }

    fn take_ballast(&self) {
        let path = self.ballast_path();
        if self.ballast == 0 || fs::metadata(&path).is_ok_and(|m| m.len() == self.ballast) {
            return;
        }
        let filled = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, self.ballast)?));
        if let Err(error) = filled {
            tracing::debug!(%error, "no ballast: deliveries cannot be recorded if the disk becomes full");
            let _ = fs::remove_file(&path);
        }
    }

    /// Gives the ballast up, so that the log can record deliveries on a disk that is full.
    pub(crate) fn free_ballast(&self) {
        if fs::remove_file(self.ballast_path()).is_ok() {
            tracing::warn!("the disk is full: the queue gave up its ballast file to record deliveries");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_is_there_until_it_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().to_owned(), 0, 4096);
        assert!(disk.has_room(1 << 40), "nothing is refused before the first look");
        disk.look();
        assert_eq!(fs::metadata(disk.ballast_path()).unwrap().len(), 4096);
        disk.free_ballast();
        assert!(!disk.ballast_path().exists());
    }

    #[test]
    fn a_disk_short_of_the_reserve_has_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().to_owned(), u64::MAX / 2, 4096);
        disk.look();
        assert!(!disk.has_room(1));
        assert!(!disk.ballast_path().exists(), "no ballast is taken from a disk that is short");
    }

    #[test]
    fn what_is_kept_counts_until_the_disk_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().to_owned(), 0, 0);
        disk.look();
        let free = disk.free.load(Ordering::Relaxed);
        assert!(disk.has_room(free / 2));
        disk.spent(free - free / 4);
        assert!(!disk.has_room(free / 2));
        *disk.looked.lock().unwrap() = None;
        disk.look();
        assert!(disk.has_room(free / 2), "now the disk itself tells");
    }

    #[test]
    fn folders_are_made_with_their_parents_for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_dir(&path).unwrap();
        make_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
