//! Who else has the queue open, and which of them owns it.
//!
//! Any number of processes may accept records into one log. One of them is the owner: it delivers, checkpoints and ends
//! records. The kernel lets go of a process's locks when it ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

/// How long a newcomer waits until those who are there know of it. The owner looks every [`LOOK_EVERY`].
const ADMITTED_WITHIN: Duration = Duration::from_secs(10);
/// How often an owner looks whether somebody has come or everybody has gone.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether the lock was had at once.
fn at_once(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The owner's lock, for as long as this lives.
#[derive(Debug)]
pub(crate) struct OwnerLock {
    _file: File,
}

impl OwnerLock {
    /// The lock's file in the queue's folder.
    pub(crate) const FILE: &'static str = "queue.lock";

    /// Takes the lock at once, or says `WouldBlock` where another process, or another queue of this one, has it.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { _file: file })
    }
}

/// This process among those that have the queue open.
///
/// Who is not the owner holds `queue.guests`, shared. An owner that is alone holds it exclusively: a newcomer then knocks
/// (it holds `queue.knock`) and waits until it is admitted. By then the owner has stopped to rely on being alone.
#[derive(Debug)]
pub(crate) struct Company {
    guests: File,
    knock: File,
    is_alone: bool,
}

impl Company {
    /// Comes in, as the owner where there is none. Blocks until an owner that was alone knows of it.
    ///
    /// # Errors
    /// `TimedOut` where that takes too long; what the folder's file system answers.
    pub(crate) fn join(dir: &Path) -> io::Result<(Self, Option<OwnerLock>)> {
        let (guests, knock) = (open(&dir.join("queue.guests"))?, open(&dir.join("queue.knock"))?);
        let lock = dir.join(OwnerLock::FILE);
        let until = Instant::now() + ADMITTED_WITHIN;
        loop {
            match OwnerLock::take(&lock) {
                Ok(lock) => {
                    let is_alone = at_once(&guests, FlockOperation::NonBlockingLockExclusive)?;
                    return Ok((Self { guests, knock, is_alone }, Some(lock)));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
            }
            // Whoever looks whether somebody knocks holds that file for a moment.
            if at_once(&knock, FlockOperation::NonBlockingLockShared)?
                && at_once(&guests, FlockOperation::NonBlockingLockShared)?
            {
                flock(&knock, FlockOperation::Unlock)?;
                return Ok((Self { guests, knock, is_alone: false }, None));
            }
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether this is the owner, and nobody else has the queue open nor gets to before [`Company::admit`].
    pub(crate) const fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Whether somebody waits to be admitted.
    pub(crate) fn is_knocking(&self) -> io::Result<bool> {
        let nobody = at_once(&self.knock, FlockOperation::NonBlockingLockExclusive)?;
        if nobody {
            flock(&self.knock, FlockOperation::Unlock)?;
        }
        Ok(!nobody)
    }

    /// The owner lets others in: from now on it is not alone. To be called when nothing relies on that any more.
    pub(crate) fn admit(&mut self) -> io::Result<()> {
        self.is_alone = false;
        Ok(flock(&self.guests, FlockOperation::Unlock)?)
    }

    /// The owner is about to be a guest.
    pub(crate) fn become_guest(&mut self) -> io::Result<()> {
        self.is_alone = false;
        Ok(flock(&self.guests, FlockOperation::LockShared)?)
    }

    /// Whether all others have gone; from then on this process is alone. For the owner only.
    pub(crate) fn have_all_gone(&mut self) -> io::Result<bool> {
        // One that was a guest before loses that place by trying: an owner needs none.
        self.is_alone = at_once(&self.guests, FlockOperation::NonBlockingLockExclusive)?;
        Ok(self.is_alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(OwnerLock::FILE);
        let held = OwnerLock::take(&path).unwrap();
        assert_eq!(OwnerLock::take(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        OwnerLock::take(&path).unwrap();
    }

    #[test]
    fn a_newcomer_is_in_only_when_it_was_admitted_and_when_it_goes_the_owner_is_alone_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, owner) = Company::join(dir.path()).unwrap();
        assert!(owner.is_some() && first.is_alone() && !first.is_knocking().unwrap());
        thread::scope(|threads| {
            let newcomer = threads.spawn(|| Company::join(dir.path()).unwrap());
            while !first.is_knocking().unwrap() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(50));
            assert!(!newcomer.is_finished(), "it was not admitted");
            first.admit().unwrap();
            let (second, no_owner) = newcomer.join().unwrap();
            assert!(no_owner.is_none() && !second.is_alone() && !first.have_all_gone().unwrap());
            // A third one need not wait.
            let (third, no_owner) = Company::join(dir.path()).unwrap();
            assert!(no_owner.is_none() && !third.is_alone());
            drop((second, third));
        });
        assert!(first.have_all_gone().unwrap() && first.is_alone());
    }

    #[test]
    fn an_owner_that_becomes_a_guest_is_followed_by_one_that_is_not_alone_until_it_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, owner) = Company::join(dir.path()).unwrap();
        first.become_guest().unwrap();
        drop(owner);
        let (mut second, owner) = Company::join(dir.path()).unwrap();
        assert!(owner.is_some() && !second.is_alone() && !second.have_all_gone().unwrap());
        drop(first);
        assert!(second.have_all_gone().unwrap());
    }
}
