//! A log that fails when it is told to, and remembers its groups.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;
use crate::{
    disk,
    log::{Change, Effect, Log, LogError, LogReader, SqliteLog},
};

/// How a commit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing of it is there.
    Before,
    /// All of it is there, and the answer is an error all the same.
    After,
}

#[derive(Default)]
pub(super) struct Control {
    /// The sizes of all groups that were given to the log: changes, and bytes of appends.
    pub(super) groups: Mutex<Vec<(usize, u64)>>,
    /// The records that are to be marked, of each of these groups that marks some.
    pub(super) marks: Mutex<Vec<Vec<i64>>>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    /// How many reopenings fail from now on.
    pub(super) broken_reopenings: AtomicUsize,
    pub(super) reopenings: AtomicUsize,
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Control {
    pub(super) fn fail_next(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    /// Commits wait from here on.
    pub(super) fn hold_commits(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub(super) fn let_commits_go(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
    }
}

struct FaultyLog {
    inner: SqliteLog,
    control: Arc<Control>,
}

impl Log for FaultyLog {
    fn commit(&mut self, group: &[Change]) -> Result<Vec<Effect>, LogError> {
        self.control.pass();
        let size = |change: &Change| if let Change::Append(append) = change { append.size } else { 0 };
        self.control.groups.lock().unwrap().push((group.len(), group.iter().map(size).sum()));
        let marked =
            |change: &Change| if let Change::Begin { seq, .. } = change { Some(seq.0) } else { None };
        let marks: Vec<_> = group.iter().filter_map(marked).collect();
        if !marks.is_empty() {
            self.control.marks.lock().unwrap().push(marks);
        }
        let failed = || LogError::Failed("injected".into());
        let fault = self.control.faults.lock().unwrap().pop_front();
        match fault {
            None => self.inner.commit(group),
            Some(Fault::Before) => Err(failed()),
            Some(Fault::After) => self.inner.commit(group).and(Err(failed())),
        }
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        self.control.reopenings.fetch_add(1, Ordering::SeqCst);
        let broken = &self.control.broken_reopenings;
        if broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(LogError::Failed("injected".into()));
        }
        self.inner.reopen()
    }

    fn reader(&self) -> Result<Box<dyn LogReader>, LogError> {
        self.inner.reader()
    }

    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    fn take_over(&mut self) -> Result<(), LogError> {
        self.inner.take_over()
    }

    fn let_go(&mut self) {
        self.inner.let_go();
    }

    fn maintain(&mut self) -> Result<(), LogError> {
        self.inner.maintain()
    }
}

/// Opens a queue on a log that can be told to fail.
pub(super) fn open_faulty(dir: &TempDir, settings: Settings) -> (Queue, Delivery, Arc<Control>) {
    disk::make_dir(&dir.path().join("bodies")).unwrap();
    let control = Arc::<Control>::default();
    let inner = SqliteLog::open(&dir.path().join("queue.db")).unwrap();
    let log = Box::new(FaultyLog { inner, control: Arc::clone(&control) });
    let (queue, delivery) = Queue::open_log(settings, log, crate::queue::Place::default()).unwrap();
    control.groups.lock().unwrap().clear();
    (queue, delivery, control)
}
