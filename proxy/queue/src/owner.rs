//! One owner: whoever holds the lock file delivers, checkpoints and ends records. The kernel lets go of it when the
//! process ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

/// The lock, for as long as this lives.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    _file: File,
}

impl OwnerLock {
    /// Takes the lock at once, or says `WouldBlock` where another process, or another queue of this one, has it.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.lock");
        let held = OwnerLock::take(&path).unwrap();
        assert_eq!(OwnerLock::take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        OwnerLock::take(&path).unwrap();
    }
}
