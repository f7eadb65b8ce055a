//! The spool: one thread that writes body files, so that no request thread waits for a disk.
//!
//! It owns the files until they are synced. A file whose owner lets it go is removed; one that a committed record
//! names is removed when the record is done with it. What a crash leaves behind is collected at the next start.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    thread,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;

use crate::{
    disk::{self, Disk},
    settings::bounds::{BODY_IN_TRANSIT, GROUP_RECORDS},
};

/// The name of a body's file: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BodyName(u128);

impl BodyName {
    fn generate() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        Self(u128::from_ne_bytes(bytes))
    }
}

impl fmt::Display for BodyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BodyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BodyName {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let digits = s.len() == 32 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digits { u128::from_str_radix(s, 16).map(Self).map_err(|_| ()) } else { Err(()) }
    }
}

/// The folder of body files.
pub(crate) fn bodies_dir(dir: &Path) -> PathBuf {
    dir.join("bodies")
}

/// The path of one body file.
pub(crate) fn body_path(bodies: &Path, name: BodyName) -> PathBuf {
    bodies.join(name.to_string())
}

enum Command {
    Write { file: Arc<Shared>, data: Bytes },
    Sync { file: Arc<Shared>, reply: oneshot::Sender<Result<(), String>> },
    Remove(BodyName),
}

/// What a file's owner and the spool thread both see.
struct Shared {
    name: BodyName,
    /// Bytes handed over and not yet written.
    in_transit: AtomicUsize,
    /// The owner, while it waits for `in_transit` to fall.
    waker: AtomicWaker,
    /// The first error, after which the file is useless.
    failed: OnceLock<String>,
}

/// The way to the spool thread, which ends when the last of these is dropped.
#[derive(Clone)]
pub(crate) struct Spool {
    // Unbounded as a channel; each file has at most BODY_IN_TRANSIT bytes in it.
    commands: mpsc::Sender<Command>,
}

impl Spool {
    /// Starts the thread. `bodies` exists.
    pub(crate) fn start(bodies: PathBuf, disk: Arc<Disk>) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        thread::Builder::new()
            .name("queue-spool".into())
            .spawn(move || Worker { bodies, disk, open: HashMap::new() }.run(&inbox))?;
        Ok(Self { commands })
    }

    /// A new file, made when the first bytes come.
    pub(crate) fn file(&self) -> BodyFile {
        BodyFile {
            shared: Arc::new(Shared {
                name: BodyName::generate(),
                in_transit: AtomicUsize::new(0),
                waker: AtomicWaker::new(),
                failed: OnceLock::new(),
            }),
            spool: self.clone(),
            kept: false,
        }
    }

    /// Removes a file that no record names any more.
    pub(crate) fn remove(&self, name: BodyName) {
        // Where the thread has ended the file is an orphan, collected at the next start.
        let _ = self.commands.send(Command::Remove(name));
    }
}

/// One body file and the duty to remove it: dropping this discards the file unless it was [`BodyFile::keep`]-ed.
pub(crate) struct BodyFile {
    shared: Arc<Shared>,
    spool: Spool,
    kept: bool,
}

impl BodyFile {
    pub(crate) fn name(&self) -> BodyName {
        self.shared.name
    }

    /// Ready when more may be written; an error when the file has failed.
    pub(crate) fn poll_ready(&self, cx: &Context<'_>) -> Poll<Result<(), String>> {
        let look = || match self.shared.failed.get() {
            Some(error) => Poll::Ready(Err(error.clone())),
            None if self.shared.in_transit.load(Ordering::Acquire) < BODY_IN_TRANSIT => Poll::Ready(Ok(())),
            None => Poll::Pending,
        };
        if let Poll::Ready(ready) = look() {
            return Poll::Ready(ready);
        }
        self.shared.waker.register(cx.waker());
        // Between the first look and the registration the thread may have written everything.
        look()
    }

    /// Hands bytes to the thread; errors show at the next `poll_ready` or `sync`.
    pub(crate) fn write(&self, data: Bytes) {
        self.shared.in_transit.fetch_add(data.len(), Ordering::AcqRel);
        if self.spool.commands.send(Command::Write { file: Arc::clone(&self.shared), data }).is_err() {
            let _ = self.shared.failed.set("the queue was closed".into());
        }
    }

    /// Returns when file and folder entry are on stable storage.
    pub(crate) async fn sync(&self) -> Result<(), String> {
        let (reply, synced) = oneshot::channel();
        let closed = || "the queue was closed".to_owned();
        self.spool
            .commands
            .send(Command::Sync { file: Arc::clone(&self.shared), reply })
            .map_err(|_| closed())?;
        synced.await.map_err(|_| closed())?
    }

    /// The file now belongs to a committed record.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl fmt::Debug for BodyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyFile({})", self.shared.name)
    }
}

impl Drop for BodyFile {
    fn drop(&mut self) {
        if !self.kept {
            self.spool.remove(self.shared.name);
        }
    }
}

struct Worker {
    bodies: PathBuf,
    disk: Arc<Disk>,
    /// Files that are being written.
    open: HashMap<BodyName, File>,
}

type Waiting = (Arc<Shared>, oneshot::Sender<Result<(), String>>);

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Command>) {
        let mut syncs: Vec<Waiting> = Vec::new();
        while let Ok(command) = inbox.recv() {
            self.obey(command, &mut syncs);
            // Syncs that wait together share the fsync of the folder.
            while !syncs.is_empty() && syncs.len() < GROUP_RECORDS {
                match inbox.try_recv() {
                    Ok(command) => self.obey(command, &mut syncs),
                    Err(_) => break,
                }
            }
            self.sync(&mut syncs);
        }
    }

    fn obey(&mut self, command: Command, syncs: &mut Vec<Waiting>) {
        match command {
            Command::Write { file, data } => {
                if file.failed.get().is_none()
                    && let Err(error) = self.write(file.name, &data)
                {
                    let _ = file.failed.set(format!("body file {} could not be written: {error}", file.name));
                }
                file.in_transit.fetch_sub(data.len(), Ordering::AcqRel);
                file.waker.wake();
            }
            Command::Sync { file, reply } => syncs.push((file, reply)),
            Command::Remove(name) => {
                self.open.remove(&name);
                if let Err(error) = fs::remove_file(body_path(&self.bodies, name))
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, body = %name, "a body file could not be removed; the next start collects it");
                }
            }
        }
    }

    fn write(&mut self, name: BodyName, data: &[u8]) -> io::Result<()> {
        self.disk.look();
        let file = match self.open.entry(name) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(disk::create_new(&body_path(&self.bodies, name))?)
            }
        };
        file.write_all(data)
    }

    fn sync(&mut self, syncs: &mut Vec<Waiting>) {
        if syncs.is_empty() {
            return;
        }
        let each: Vec<_> = syncs.iter().map(|(file, _)| self.sync_one(file)).collect();
        let folder = if each.iter().any(Result::is_ok) {
            disk::sync_dir(&self.bodies)
                .map_err(|e| format!("the folder of body files could not be synced: {e}"))
        } else {
            Ok(())
        };
        for ((_, reply), one) in syncs.drain(..).zip(each) {
            let _ = reply.send(one.and_then(|()| folder.clone()));
        }
    }

    fn sync_one(&mut self, file: &Shared) -> Result<(), String> {
        if let Some(error) = file.failed.get() {
            return Err(error.clone());
        }
        let open = self
            .open
            .remove(&file.name)
            .ok_or_else(|| format!("body file {} was removed before it was whole", file.name))?;
        disk::sync_file(&open).map_err(|e| format!("body file {} could not be synced: {e}", file.name))
    }
}

/// Removes every file in `bodies` that `is_named` does not know. Returns how many went.
pub(crate) fn collect_orphans(bodies: &Path, mut is_named: impl FnMut(BodyName) -> bool) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(bodies)? {
        let entry = entry?;
        let known = entry.file_name().to_str().and_then(|n| n.parse().ok()).is_some_and(&mut is_named);
        if !known {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::new(dir.path().to_owned(), 0, 0));
        let spool = Spool::start(dir.path().to_owned(), disk).unwrap();
        (dir, spool)
    }

    #[tokio::test]
    async fn what_was_synced_is_in_the_file() {
        let (dir, spool) = spool();
        let file = spool.file();
        file.write(Bytes::from_static(b"one "));
        file.write(Bytes::from_static(b"two"));
        file.sync().await.unwrap();
        assert_eq!(fs::read(body_path(dir.path(), file.name())).unwrap(), b"one two");
        file.keep();
    }

    #[tokio::test]
    async fn a_dropped_file_is_gone_and_a_kept_one_stays() {
        let (dir, spool) = spool();
        let (kept, dropped, barrier) = (spool.file(), spool.file(), spool.file());
        for file in [&kept, &dropped, &barrier] {
            file.write(Bytes::from_static(b"x"));
            file.sync().await.unwrap();
        }
        let kept_name = kept.name();
        kept.keep();
        drop(dropped);
        let _ = barrier.sync().await; // the thread has obeyed all that came before
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2);
        assert!(left.contains(&kept_name.to_string().into()));
    }

    #[tokio::test]
    async fn a_failing_disk_fails_the_file_and_wakes_its_owner() {
        let (dir, spool) = spool();
        fs::remove_dir_all(dir.path()).unwrap();
        let file = spool.file();
        file.write(Bytes::from(vec![0; BODY_IN_TRANSIT]));
        let error = std::future::poll_fn(|cx| file.poll_ready(cx)).await.unwrap_err();
        assert!(error.contains("could not be written"), "{error}");
        assert!(file.sync().await.is_err());
    }

    #[test]
    fn orphans_are_collected_and_named_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (named, orphan) = (BodyName(1), BodyName(2));
        for name in [named.to_string(), orphan.to_string(), "torn.tmp".into()] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        assert_eq!(collect_orphans(dir.path(), |name| name == named).unwrap(), 2);
        assert!(body_path(dir.path(), named).exists());
    }
}
