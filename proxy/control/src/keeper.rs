//! Keeps what filters store in the control-plane store, where a manifest has it durable.
//!
//! A filter's call changes memory and says at most that there is something to keep. One thread gathers what has changed for a
//! moment and commits it, of all tenants together; so no call waits for a disk, and many changes cost one fsync. What waits is
//! bounded: of each tenant its changed keys are known, not their values. Where the store fails, the changes are put back and tried
//! again, and filters go on in memory.
//!
//! The thread is not niced: it looks at keys under the locks that filters' calls take.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io, mem, slice,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use beamline_filter_host::{self as filter_host, KvChanges, KvEntry, Restored, TenantKv};
use beamline_model::{FilterLimits, TenantName};
use beamline_store::{KvBatch, KvRecord, KvRow, Store, StoreError};
use serde_json::json;
use tokio::sync::oneshot;

use crate::control::Events;

/// How long changes are gathered before they are committed.
const GATHER: Duration = Duration::from_millis(100);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The same where the node ends.
const FLUSH_RETRY: Duration = Duration::from_millis(200);
/// Failures in a row after which a round ends: until then tenants are tried one by one, so that none of which the disk cannot
/// take it keeps the others waiting.
const HOPELESS: usize = 16;
/// About so many bytes of keys and values are committed at once, but for a tenant of which everything is.
const BATCH: usize = 1 << 20;

/// The thread's handle. When it goes, the thread commits what is left and ends.
pub(crate) struct Keeper {
    orders: Arc<Sender<Order>>,
    failing: Arc<AtomicBool>,
    now: fn() -> SystemTime,
}

enum Order {
    /// Keep a tenant's keys from now on.
    Keep(TenantName, TenantKv),
    /// A tenant's keys have changed.
    Changed(TenantName),
    /// Erase what is stored of a tenant's keys, and keep them no more.
    Erase(TenantName),
    /// Keep a tenant's keys no more; what is stored stays.
    Forget(TenantName, oneshot::Sender<()>),
    /// Commit what there is now, and try until then; says whether that could be done.
    Flush(Instant, oneshot::Sender<bool>),
}

/// Tells the thread of one tenant's changes.
struct Teller {
    tenant: TenantName,
    /// Weak, for the thread holds what holds this.
    orders: Weak<Sender<Order>>,
}

impl filter_host::Keeper for Teller {
    fn changed(&self) {
        // Where the thread has ended, nothing is kept any more.
        if let Some(orders) = self.orders.upgrade() {
            let _ = orders.send(Order::Changed(self.tenant.clone()));
        }
    }
}

impl Keeper {
    pub(crate) fn start(store: Arc<dyn Store>, events: Events, now: fn() -> SystemTime) -> io::Result<Self> {
        let (sender, orders) = channel();
        let failing = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            store,
            events,
            now,
            kvs: HashMap::new(),
            due: BTreeSet::new(),
            erase: BTreeSet::new(),
            failing: Arc::clone(&failing),
        };
        thread::Builder::new().name("kv-keeper".into()).spawn(move || writer.run(&orders))?;
        Ok(Self { orders: Arc::new(sender), failing, now })
    }

    /// Whether the last attempt to commit something failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    fn teller(&self, tenant: &TenantName, kv: &TenantKv) -> Arc<Teller> {
        // Before the first change can be told.
        self.order(Order::Keep(tenant.clone(), kv.clone()));
        Arc::new(Teller { tenant: tenant.clone(), orders: Arc::downgrade(&self.orders) })
    }

    fn order(&self, order: Order) {
        // The thread ends after this handle, unless it panicked, which was told.
        let _ = self.orders.send(order);
    }

    /// Keeps all of a tenant's keys, in place of what is stored of them.
    pub(crate) fn keep(&self, tenant: &TenantName, kv: &TenantKv) {
        kv.keep(self.teller(tenant, kv));
    }

    /// Puts back what is stored of a tenant's keys, and keeps them.
    pub(crate) fn restore(
        &self,
        tenant: &TenantName,
        kv: &TenantKv,
        stored: Vec<KvRecord>,
        limits: &FilterLimits,
    ) -> Restored {
        let entries = stored.into_iter().map(|KvRecord { key, value, expires_ms }| KvEntry {
            key: key.into(),
            value: value.into(),
            expires_ms,
        });
        kv.restore(self.teller(tenant, kv), entries, limits, since_epoch_ms(self.now))
    }

    /// Keeps a tenant's keys no more, and has erased what is stored of them.
    pub(crate) fn erase(&self, tenant: &TenantName) {
        self.order(Order::Erase(tenant.clone()));
    }

    /// Keeps a tenant's keys no more. From the return on nothing of them is on its way to the store.
    pub(crate) async fn forget(&self, tenant: &TenantName) {
        let (done, is_done) = oneshot::channel();
        self.order(Order::Forget(tenant.clone(), done));
        let _ = is_done.await;
    }

    /// Commits what has changed until now; whether that could be done in time.
    pub(crate) async fn flush(&self, within: Duration) -> bool {
        let (done, is_done) = oneshot::channel();
        self.order(Order::Flush(Instant::now() + within, done));
        matches!(tokio::time::timeout(within, is_done).await, Ok(Ok(true)))
    }
}

pub(crate) fn since_epoch_ms(now: fn() -> SystemTime) -> u64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The thread's own.
struct Writer {
    store: Arc<dyn Store>,
    events: Events,
    now: fn() -> SystemTime,
    /// Whose keys are kept.
    kvs: HashMap<TenantName, TenantKv>,
    /// Of whose there is something to take.
    due: BTreeSet<TenantName>,
    /// Of whom what is stored is to go.
    erase: BTreeSet<TenantName>,
    failing: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut write_at: Option<Instant> = None;
        loop {
            let order = match write_at {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(order) => self.follow(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.write_all();
                    return;
                }
            }
            if write_at.is_some_and(|at| at <= Instant::now()) {
                self.write();
                write_at = None;
            }
            if self.has_done() {
                // Also where what could not be stored is not to be stored any more.
                self.recovered();
            }
            write_at = match write_at {
                _ if self.has_done() => None,
                Some(at) => Some(at),
                None if self.failing.load(Ordering::Relaxed) => Some(Instant::now() + RETRY),
                None => Some(Instant::now() + GATHER),
            };
        }
    }

    fn follow(&mut self, order: Order) {
        match order {
            Order::Keep(tenant, kv) => {
                self.erase.remove(&tenant);
                self.kvs.insert(tenant, kv);
            }
            Order::Changed(tenant) => {
                self.due.insert(tenant);
            }
            Order::Erase(tenant) => {
                self.forget(&tenant);
                self.erase.insert(tenant);
            }
            Order::Forget(tenant, done) => {
                self.forget(&tenant);
                self.erase.remove(&tenant);
                let _ = done.send(());
            }
            Order::Flush(until, done) => {
                let mut is_done = self.write_all();
                while !is_done && Instant::now() + FLUSH_RETRY < until {
                    thread::sleep(FLUSH_RETRY);
                    is_done = self.write_all();
                }
                let _ = done.send(is_done);
            }
        }
    }

    fn forget(&mut self, tenant: &TenantName) {
        self.kvs.remove(tenant);
        self.due.remove(tenant);
    }

    /// Whether there is nothing to do.
    fn has_done(&self) -> bool {
        self.due.is_empty() && self.erase.is_empty()
    }

    /// Commits all that there is; whether that could be done. Ends also where filters write faster than this.
    fn write_all(&mut self) -> bool {
        const ROUNDS: usize = 1000;
        for _ in 0..ROUNDS {
            if self.has_done() || !self.write() {
                break;
            }
        }
        self.has_done()
    }

    /// Commits something of each tenant of which there is something, and erases what is to go; whether all of it could be done.
    /// What is more of a tenant comes after the others.
    fn write(&mut self) -> bool {
        let mut round: VecDeque<_> = mem::take(&mut self.due).into_iter().collect();
        let mut erase = mem::take(&mut self.erase);
        let (mut failure, mut in_a_row) = (None, 0);
        loop {
            let mut work: Vec<_> =
                mem::take(&mut erase).into_iter().map(|tenant| Work { tenant, changes: None }).collect();
            work.extend(self.take(&mut round));
            if work.is_empty() {
                break;
            }
            let together = self.commit(&work);
            let alone = work.len() == 1;
            if together.is_ok() {
                in_a_row = 0;
            }
            for one in work {
                let written = match &together {
                    Ok(()) => true,
                    Err(_) if alone => {
                        in_a_row += 1;
                        false
                    }
                    // One by one where not together: what the disk does not take of one tenant keeps no other waiting.
                    Err(_) if in_a_row < HOPELESS => match self.commit(slice::from_ref(&one)) {
                        Ok(()) => {
                            in_a_row = 0;
                            true
                        }
                        Err(error) => {
                            in_a_row += 1;
                            failure = Some(error);
                            false
                        }
                    },
                    Err(_) => false,
                };
                self.settle(one, written);
            }
            if let Err(error) = together {
                failure.get_or_insert(error);
                if in_a_row >= HOPELESS {
                    self.due.extend(round);
                    break;
                }
            }
        }
        match &failure {
            Some(error) => self.failed(error),
            None => self.recovered(),
        }
        failure.is_none()
    }

    fn commit(&self, work: &[Work]) -> Result<(), StoreError> {
        let batches: Vec<_> = work.iter().map(Work::batch).collect();
        self.store.write_kv(&batches)
    }

    /// What is left to do of what was written, or was not.
    fn settle(&mut self, Work { tenant, changes }: Work, written: bool) {
        match changes {
            None if written => {}
            None => drop(self.erase.insert(tenant)),
            Some(changes) => {
                if written && !changes.more {
                    return;
                }
                if !written && let Some(kv) = self.kvs.get(&tenant) {
                    kv.put_back(changes);
                }
                self.due.insert(tenant);
            }
        }
    }

    fn recovered(&self) {
        if self.failing.swap(false, Ordering::Relaxed) {
            (self.events)("kv.recovered", json!({}));
        }
    }

    /// Takes changes of the tenants that are next in a round.
    fn take(&self, round: &mut VecDeque<TenantName>) -> Vec<Work> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH
            && let Some(tenant) = round.pop_front()
        {
            let changes =
                self.kvs.get(&tenant).and_then(|kv| kv.take_changes(BATCH, since_epoch_ms(self.now)));
            if let Some(changes) = changes {
                bytes += changes.entries.iter().map(|e| e.key.len() + e.value.len()).sum::<usize>();
                taken.push(Work { tenant, changes: Some(changes) });
            }
        }
        taken
    }

    fn failed(&self, error: &StoreError) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "what filters store durably is in memory alone until the store works again");
            (self.events)("kv.failing", json!({ "problem": error.to_string() }));
        }
    }
}

/// What is to be written of one tenant: these changes, or that nothing of it stays.
struct Work {
    tenant: TenantName,
    changes: Option<KvChanges>,
}

impl Work {
    fn batch(&self) -> KvBatch<'_> {
        let Self { tenant, changes } = self;
        let Some(changes) = changes else {
            return KvBatch { tenant, all: true, entries: Vec::new(), gone: Vec::new() };
        };
        fn row(entry: &KvEntry) -> KvRow<'_> {
            KvRow { key: &entry.key, value: &entry.value, expires_ms: entry.expires_ms }
        }
        KvBatch {
            tenant,
            all: changes.all,
            entries: changes.entries.iter().map(row).collect(),
            gone: changes.gone.iter().map(|key| &**key).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use beamline_filter_host::TenantState;
    use beamline_model::{Grant, Token};
    use beamline_store::{SqliteStore, Stamp};

    use super::*;

    const WALL: u64 = 1_700_000_000_000;

    struct Place {
        dir: tempfile::TempDir,
        store: Arc<SqliteStore>,
        keeper: Keeper,
        told: Arc<Mutex<Vec<String>>>,
        acme: TenantName,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path()).unwrap());
        let acme: TenantName = "acme".parse().unwrap();
        let stamp = Stamp { at_ms: 1, actor: "operator" };
        store.create_tenant(&acme, &Grant::default(), &Token::presented("t").hash(), stamp).unwrap();
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let events = {
            let told = Arc::clone(&told);
            Arc::new(move |name: &str, _| told.lock().unwrap().push(name.to_owned()))
        };
        let now = || UNIX_EPOCH + Duration::from_millis(WALL);
        let keeper = Keeper::start(store.clone(), events, now).unwrap();
        Place { dir, store, keeper, told, acme }
    }

    fn record(key: &str, value: &str, expires_ms: Option<u64>) -> KvRecord {
        KvRecord { key: key.into(), value: value.into(), expires_ms }
    }

    const SOON: Duration = Duration::from_secs(20);
    /// For what is not done in time.
    const BRIEF: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn what_is_kept_is_stored_and_what_has_expired_or_has_no_room_goes() {
        let Place { dir: _dir, store, keeper, acme, .. } = place();
        let kv = TenantState::new().durable();
        let stored = ["a", "b", "c"].map(|key| record(key, "1", None)).to_vec();
        // As if it had been stored: what does not come back is to go.
        let rows: Vec<_> = ["c", "over"].map(|key| KvRow { key, value: b"1", expires_ms: None }).to_vec();
        store.write_kv(&[KvBatch { tenant: &acme, all: false, entries: rows, gone: vec![] }]).unwrap();
        let limits = FilterLimits { kv_entries: 2, ..FilterLimits::default() };
        let stored = [stored, vec![record("over", "1", Some(WALL - 1))]].concat();
        let outcome = keeper.restore(&acme, &kv, stored, &limits);
        assert_eq!(outcome, Restored { restored: 2, expired: 1, dropped: 1 });
        assert!(keeper.flush(SOON).await);
        assert!(store.kv(&acme).unwrap().is_empty());
        keeper.keep(&acme, &kv);
        assert!(keeper.flush(SOON).await);
        let all = store.kv(&acme).unwrap();
        assert_eq!(all, [record("a", "1", None), record("b", "1", None)]);
        keeper.erase(&acme);
        assert!(keeper.flush(SOON).await && store.kv(&acme).unwrap().is_empty());
    }

    #[tokio::test]
    async fn while_the_store_fails_changes_wait_and_it_is_told_once() {
        let Place { dir, store, keeper, told, acme } = place();
        let kv = TenantState::new().durable();
        keeper.restore(&acme, &kv, vec![record("a", "1", None)], &FilterLimits::default());
        // A table that is not there fails each commit at once, and others not at all.
        let database = rusqlite::Connection::open(dir.path().join(SqliteStore::FILE)).unwrap();
        database.execute("ALTER TABLE kv RENAME TO away", []).unwrap();
        keeper.keep(&acme, &kv);
        assert!(!keeper.flush(BRIEF).await && !keeper.flush(BRIEF).await);
        assert!(keeper.is_failing());
        assert_eq!(*told.lock().unwrap(), ["kv.failing"]);
        database.execute("ALTER TABLE away RENAME TO kv", []).unwrap();
        assert!(keeper.flush(SOON).await && !keeper.is_failing());
        assert_eq!(store.kv(&acme).unwrap(), [record("a", "1", None)]);
        assert_eq!(*told.lock().unwrap(), ["kv.failing", "kv.recovered"]);
    }

    #[tokio::test]
    async fn of_a_tenant_that_is_forgotten_nothing_is_written() {
        let Place { dir: _dir, store, keeper, acme, .. } = place();
        let kv = TenantState::new().durable();
        keeper.restore(&acme, &kv, vec![record("a", "1", None)], &FilterLimits::default());
        keeper.keep(&acme, &kv);
        keeper.forget(&acme).await;
        assert!(keeper.flush(SOON).await && store.kv(&acme).unwrap().is_empty());
    }

    #[tokio::test]
    async fn where_what_could_not_be_stored_is_not_to_be_any_more_nothing_fails() {
        let Place { dir, keeper, told, acme, .. } = place();
        let database = rusqlite::Connection::open(dir.path().join(SqliteStore::FILE)).unwrap();
        database.execute("ALTER TABLE kv RENAME TO away", []).unwrap();
        let kv = TenantState::new().durable();
        keeper.restore(&acme, &kv, vec![record("a", "1", None)], &FilterLimits::default());
        keeper.keep(&acme, &kv);
        assert!(!keeper.flush(BRIEF).await && keeper.is_failing());
        keeper.forget(&acme).await;
        assert!(keeper.flush(SOON).await && !keeper.is_failing());
        assert_eq!(*told.lock().unwrap(), ["kv.failing", "kv.recovered"]);
    }

    #[tokio::test]
    async fn a_tenant_whose_keys_the_store_does_not_take_keeps_no_other_waiting() {
        let Place { dir, store, keeper, acme, .. } = place();
        let zeta: TenantName = "zeta".parse().unwrap();
        let stamp = Stamp { at_ms: 1, actor: "operator" };
        store.create_tenant(&zeta, &Grant::default(), &Token::presented("z").hash(), stamp).unwrap();
        let database = rusqlite::Connection::open(dir.path().join(SqliteStore::FILE)).unwrap();
        let refuse = "CREATE TRIGGER no BEFORE INSERT ON kv WHEN NEW.key LIKE 'too large%' \
                      BEGIN SELECT RAISE(ABORT, 'no room'); END";
        database.execute(refuse, []).unwrap();
        let (large, small) = (TenantState::new().durable(), TenantState::new().durable());
        let limits = FilterLimits::default();
        // More than one commit takes, of a tenant that comes first.
        let value = "v".repeat(64 << 10);
        let many = (0..20).map(|n| record(&format!("too large {n}"), &value, None)).collect();
        keeper.restore(&acme, &large, many, &limits);
        keeper.restore(&zeta, &small, vec![record("small", "1", None)], &limits);
        keeper.keep(&acme, &large);
        keeper.keep(&zeta, &small);
        assert!(!keeper.flush(BRIEF).await && keeper.is_failing());
        assert_eq!(store.kv(&zeta).unwrap(), [record("small", "1", None)]);
        database.execute("DROP TRIGGER no", []).unwrap();
        assert!(keeper.flush(SOON).await && !keeper.is_failing());
        assert_eq!(store.kv(&acme).unwrap().len(), 20);
    }

    #[tokio::test]
    async fn what_is_left_is_stored_when_the_handle_goes() {
        let Place { dir: _dir, store, keeper, acme, .. } = place();
        let kv = TenantState::new().durable();
        keeper.restore(&acme, &kv, vec![record("a", "1", None)], &FilterLimits::default());
        keeper.keep(&acme, &kv);
        drop(keeper);
        let until = Instant::now() + SOON;
        while store.kv(&acme).unwrap().is_empty() {
            assert!(Instant::now() < until, "it is never stored");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
