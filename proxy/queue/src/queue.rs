//! The queue's front: what request threads and the admin side call. It only hands over and waits; other threads work.

mod export;
mod hands;
mod once;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use beamline_model::{TenantName, UpstreamName};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};

use crate::{
    BodyBuffer, BodyError, Delivery, Demand, Health, KeptResponse, NewRecord, Receipt, ReceiptView, RecordId,
    Refusal, Reservation, Settings, Totals,
    body::SettledBody,
    books::Books,
    delivery::Policy,
    disk::{self, Disk},
    fault::Fault,
    health::HealthCell,
    idempotency::{Fingerprint, KeyUse, NodeKey},
    log::{Append, Change, Content, Effect, Log, LogError, SqliteLog},
    notices::notices,
    owner::{Company, OwnerLock},
    reader::Reader,
    record::Lane,
    settings::{
        bounds::{APPENDS_WAITING, HANDS, HEAD_BYTES, KEY_BYTES, PAGE, RECEIPTS_WAITING, RECORD_OVERHEAD},
        millis,
    },
    spool::{Spool, bodies_dir, collect_orphans},
    standing::Standing,
    waiters::Waiter,
    writer::{AppendRest, PendingAppend, Stored, Tools, Writer},
};

pub use export::{ExportedBody, RecordBody};
pub use hands::{Cancellation, HandError, Purged};
pub use once::{KeyLook, UsedKey};

/// Why a queue could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it and does not share it.
    #[error(
        "the queue in {dir} is in use by another process that does not share it: stop it, or choose another data folder"
    )]
    Owned {
        /// The queue's folder.
        dir: PathBuf,
    },
    /// The folder cannot be used.
    #[error("the queue's folder {path} cannot be used: {source}")]
    Folder {
        /// What could not be used.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A thread could not be started.
    #[error("a thread of the queue could not be started: {0}")]
    Thread(io::Error),
}

/// Why a record was not accepted.
#[derive(Debug, Error)]
pub enum EnqueueError {
    /// Not now: quota, disk, or a failing log.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not this body.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Not ever.
    #[error("{what} of {found} bytes is more than the {limit} that a queued request may have")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its size.
        found: usize,
        /// What it may be.
        limit: usize,
    },
    /// The client's `Idempotency-Key` was used for another request meanwhile.
    #[error("the Idempotency-Key was used for another request: send this one under a key of its own")]
    KeyReused,
    /// The reservation is another tenant's.
    #[error("the reservation is for tenant {reserved}, the record for {record}")]
    ForeignReservation {
        /// Whose room it is.
        reserved: TenantName,
        /// Whose record it is.
        record: TenantName,
    },
}

/// Why a receipt could not be looked up.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The log could not be read, or is closed.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Whether records of an ordering key wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// None do.
    Empty,
    /// Some do.
    Known,
    /// Another process has the queue open, too, and may have accepted some.
    Possible,
}

/// A record that is committed. From here on it is delivered, or dead with a reason, but never lost.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The record.
    pub id: RecordId,
    /// What its client gets.
    pub receipt: Receipt,
}

/// The durable queue. Cheap to clone; all clones are one queue.
///
/// When all clones and the [`Delivery`] are dropped the log is closed in the background; [`Queue::shutdown`] waits for it.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    settings: Settings,
    standing: Arc<Standing>,
    node_key: NodeKey,
    books: Arc<Books>,
    health: Arc<HealthCell>,
    spool: Spool,
    writer: Writer,
    reader: Reader,
    /// Places for appends that the writer has not answered.
    appends: Arc<Semaphore>,
    /// Places for receipts that the reader has not answered.
    receipts: Arc<Semaphore>,
    /// Places for what the admin side asks and does.
    hands: Semaphore,
}

impl Queue {
    /// Opens the queue in `settings.dir`, or makes one: takes the owner's lock and a new epoch, recovers what the owner
    /// before was delivering, collects orphaned body files, and counts what is there. Blocks on the disk.
    ///
    /// Where another process owns it, this one accepts records beside it, and its [`Delivery`] waits until the other lets
    /// the lock go: it then takes over. Until then each counts against its quotas only what it knows of.
    ///
    /// # Errors
    /// [`OpenError`]: an owner that does not share, an unusable folder or log, no threads.
    pub fn open(settings: Settings) -> Result<(Self, Delivery), OpenError> {
        let folder = |path: &PathBuf| {
            let path = path.clone();
            move |source| OpenError::Folder { path, source }
        };
        let (dir, bodies) = (settings.dir.clone(), bodies_dir(&settings.dir));
        disk::make_dir(&dir).map_err(folder(&dir))?;
        disk::make_dir(&bodies).map_err(folder(&bodies))?;
        let (company, lock) = Company::join(&dir).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => OpenError::Owned { dir: dir.clone() },
            _ => folder(&dir)(error),
        })?;
        let path = dir.join("queue.db");
        let log = SqliteLog::open(&path).or_else(|error| match error {
            // Making or upgrading it writes a little. The ballast is there for that: what was accepted must be delivered.
            LogError::Full(_) => {
                Disk::new(dir.clone(), settings.min_free_disk, settings.ballast).free_ballast();
                SqliteLog::open(&path)
            }
            error => Err(error),
        })?;
        Self::open_log(
            settings,
            Box::new(log),
            Place { company: Some(company), is_owner: lock.is_some(), lock },
        )
    }

    /// Opens the queue on a log that is open. The folder of body files exists.
    pub(crate) fn open_log(
        settings: Settings,
        mut log: Box<dyn Log>,
        place: Place,
    ) -> Result<(Self, Delivery), OpenError> {
        let bodies = bodies_dir(&settings.dir);
        let disk = Arc::new(Disk::new(settings.dir.clone(), settings.min_free_disk, settings.ballast));
        disk.look();
        let node_key = NodeKey::open(&settings.dir)
            .or_else(|error| match error.kind() {
                // As for the log: what was accepted must be delivered.
                io::ErrorKind::StorageFull => {
                    disk.free_ballast();
                    NodeKey::open(&settings.dir)
                }
                _ => Err(error),
            })
            .map_err(|source| OpenError::Folder { path: settings.dir.join(NodeKey::FILE), source })?;
        let Place { company, lock, is_owner } = place;
        let is_alone = company.as_ref().is_none_or(Company::is_alone);
        if is_owner {
            let mut take_over = || {
                log.take_over()?;
                recover(&mut *log, (settings.wall_clock)())
            };
            match take_over() {
                // As for making it.
                Err(LogError::Full(_)) => {
                    disk.free_ballast();
                    log.reopen()?;
                    log.take_over()?;
                    recover(&mut *log, (settings.wall_clock)())?;
                }
                taken => taken?,
            }
        } else {
            tracing::warn!(
                dir = %settings.dir.display(),
                "another process owns the queue: records are accepted beside it, and delivered here when it lets go"
            );
        }
        let mut reader = log.reader()?;
        if is_alone {
            // Where others are, a body that no record names yet may be theirs.
            collect(&mut *reader, &bodies)?;
        }
        let books = Arc::new(Books::new(&settings, Arc::clone(&disk)));
        books.recount(&mut *reader)?;
        if !is_alone {
            books.in_company();
        }
        let paused = reader.paused()?.into_iter().collect();
        // Who takes over later is told the rates of that moment.
        let rates = if is_owner { reader.rates()? } else { Vec::new() };

        let policy = Policy {
            epoch: log.epoch(),
            seed: random_seed(),
            max_in_flight: settings.max_in_flight.max(1),
            receipt_retention_ms: millis(settings.receipt_retention),
            dead_retention_ms: millis(settings.dead_retention),
        };
        let health = Arc::new(HealthCell::new());
        let (notice, notices) = notices();
        let spool = Spool::start(bodies.clone(), Arc::clone(&disk)).map_err(OpenError::Thread)?;
        let reader = Reader::start(reader).map_err(OpenError::Thread)?;
        let writer = Writer::start(Tools {
            log,
            lock,
            books: Arc::clone(&books),
            health: Arc::clone(&health),
            disk,
            spool: spool.clone(),
            notices: notice,
            wall_clock: Arc::clone(&settings.wall_clock),
            max_receipts: settings.max_receipts,
            paused,
        })
        .map_err(OpenError::Thread)?;

        let standing =
            Arc::new(Standing::new(company, settings.dir.join(OwnerLock::FILE), Arc::clone(&books)));
        let delivery = Delivery {
            standing: Arc::clone(&standing),
            policy,
            rates,
            reader: reader.clone(),
            writer: writer.clone(),
            notices,
            books: Arc::clone(&books),
            bodies,
            wall_clock: Arc::clone(&settings.wall_clock),
            attempt_timeout: settings.attempt_timeout,
        };
        let shared = Shared {
            settings,
            standing,
            node_key,
            books,
            health,
            spool,
            writer,
            reader,
            appends: Arc::new(Semaphore::new(APPENDS_WAITING)),
            receipts: Arc::new(Semaphore::new(RECEIPTS_WAITING)),
            hands: Semaphore::new(HANDS),
        };
        Ok((Self(Arc::new(shared)), delivery))
    }

    /// A buffer for a body of at most `limit` bytes that may come to be queued.
    pub fn body(&self, limit: u64) -> BodyBuffer {
        BodyBuffer::new(self.0.spool.clone(), limit)
    }

    /// Reserves room for one record with a head and body of `bytes` together, before the body is read. Never waits.
    ///
    /// # Errors
    /// [`Refusal`]: the queue is full for this tenant or this node, or unavailable.
    pub fn reserve(&self, tenant: &TenantName, bytes: u64, demand: Demand) -> Result<Reservation, Refusal> {
        let Shared { books, health, writer, .. } = &*self.0;
        let reserved = if health.is_available() {
            books.reserve(tenant, bytes.saturating_add(RECORD_OVERHEAD), demand)
        } else {
            Err(Refusal::unavailable())
        };
        if let Err(refusal) = &reserved {
            books.refused();
            if matches!(refusal, Refusal::Full { .. }) {
                // Where nothing is written nobody looks at the disk, and it would stay full in our eyes.
                writer.look_at_disk();
            }
        }
        reserved
    }

    /// Stores a record. Returns when it is committed and fsynced, its body before it: from then on a `202` is the truth.
    ///
    /// Dropping the future before it is ready withdraws the record only if it was not yet handed to the writer: it may be
    /// committed, and then is delivered, though nobody has its receipt.
    ///
    /// Where a record has the client's key that this one claims, that record is returned, and nothing is stored.
    ///
    /// # Errors
    /// [`EnqueueError`]. After any of them but [`Refusal::Unconfirmed`] the record is not delivered.
    pub async fn enqueue(
        &self,
        record: NewRecord,
        reservation: Reservation,
    ) -> Result<Accepted, EnqueueError> {
        let Shared { settings, books, health, writer, appends, .. } = &*self.0;
        let head = check(&record, &reservation)?;
        let size = RECORD_OVERHEAD + head as u64 + record.body.len();
        if !health.is_available() {
            books.refused();
            return Err(Refusal::unavailable().into());
        }
        let reservation = reservation.cover(size).inspect_err(|_| books.refused())?;

        let fingerprint = record.claim.is_some().then(|| {
            let digest = record.body.digest().expect("the body of a record that claims a key is hashed");
            let content_type =
                record.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
            Fingerprint::of(&record.target, content_type.map(|(_, value)| &value[..]), &digest)
        });
        // Waiting for a place before the key counts as backlog, and the fsync of the body before that.
        let body = record.body.settle().await.inspect_err(|error| {
            if let BodyError::Disk(reason) = error {
                writer.suspect(reason.clone());
            }
        })?;
        let place = Arc::clone(appends).acquire_owned().await.map_err(|_| Refusal::unavailable())?;

        let accepted_ms = (settings.wall_clock)();
        let id = RecordId::generate(accepted_ms);
        let key_use = record.claim.as_ref().map(|claim| claim.scope()).zip(fingerprint);
        let key_use = key_use
            .filter(|_| !Fault::IgnoreKeys.is_on())
            .map(|(scope, fingerprint)| KeyUse { scope, fingerprint });
        let receipt = match &key_use {
            Some(used) => self.0.node_key.receipt(id, &used.scope),
            None => Receipt::generate(id),
        };
        let lane = Lane { tenant: record.tenant, upstream: record.upstream };
        let key = record.ordering_key.as_deref().map(|key| books.keys.pending(&lane, key));
        let append = Box::new(Append {
            id,
            secret: receipt.hash(),
            lane,
            ordering_key: record.ordering_key,
            on_dead: record.on_dead,
            repeat_safe: record.repeat_safe,
            accepted_ms,
            delay_ms: millis(record.delay),
            expires_ms: accepted_ms.saturating_add(millis(record.expiry)),
            size,
            key_use,
            content: Content {
                id,
                revision: record.revision.0,
                method: record.method,
                target: record.target,
                host: record.host,
                headers: record.headers,
                sealed: record.sealed.map(Into::into),
                body: SettledBody::stored(&body),
                accepted_ms,
                trace: record.trace,
                request_id: record.request_id,
            },
        });
        let (reply, committed) = tokio::sync::oneshot::channel();
        let rest = AppendRest { body, reservation, key, claim: record.claim, reply, place };
        writer.append(PendingAppend { append, rest });
        match (committed.await.map_err(|_| Refusal::Unconfirmed)??, key_use) {
            (Stored::New, _) => Ok(Accepted { id, receipt }),
            (Stored::Earlier(holder), Some(used)) if holder.fingerprint == used.fingerprint => {
                Ok(Accepted { id: holder.id, receipt: self.0.node_key.receipt(holder.id, &used.scope) })
            }
            (Stored::Earlier(_), _) => Err(EnqueueError::KeyReused),
        }
    }

    /// What became of the record that a receipt speaks of. A receipt that is malformed, unknown or another tenant's is
    /// `None`, one like the other.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn receipt(
        &self,
        tenant: &TenantName,
        presented: &str,
    ) -> Result<Option<ReceiptView>, QueueError> {
        let Ok(receipt) = presented.parse::<Receipt>() else { return Ok(None) };
        let place = Arc::clone(&self.0.receipts)
            .acquire_owned()
            .await
            .map_err(|_| LogError::Failed("the queue is closed".into()))?;
        let stored = self.0.reader.receipt(receipt.id(), place).await?;
        let theirs = stored.filter(|s| s.lane.tenant == *tenant && s.secret.matches(&receipt.hash()));
        let now = (self.0.settings.wall_clock)();
        Ok(theirs.map(|stored| ReceiptView {
            response: stored.view.response.filter(|response| response.until_ms > now),
            ..stored.view
        }))
    }

    /// The origin's answer that is kept for the record of a receipt, while its time lasts. Show that it may be seen first:
    /// [`Queue::receipt`].
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn response(&self, id: RecordId) -> Result<Option<KeptResponse>, QueueError> {
        let closed = |_| LogError::Failed("the queue is closed".into());
        let _place = Arc::clone(&self.0.receipts).acquire_owned().await.map_err(closed)?;
        let kept = self.0.reader.look(move |log| log.response(id)).await?;
        let now = (self.0.settings.wall_clock)();
        Ok(kept.filter(|kept| kept.until_ms > now))
    }

    /// Waits for a record to end; ask for its receipt again once this is there, for it may have ended before. None where too
    /// many wait already.
    pub fn waiter(&self, id: RecordId) -> Option<Waiter> {
        self.0.books.waiters.wait_for(id)
    }

    /// Records that wait for this upstream or are being delivered to it. Costs two look-ups and no lock.
    pub fn depth(&self, tenant: &TenantName, upstream: &UpstreamName) -> u64 {
        self.0.books.depth(tenant, upstream)
    }

    /// Whether the queue keeps no record of this tenant, open or dead, and has promised room for none. Receipts alone don't
    /// count. Costs a look-up and no lock.
    pub fn holds_nothing(&self, tenant: &TenantName) -> bool {
        self.0.books.holds_nothing(tenant)
    }

    /// Whether records of this ordering key are in the queue, or about to be: then a request of that key must not go
    /// past them, but behind them.
    pub fn backlog(&self, tenant: &TenantName, upstream: &UpstreamName, ordering_key: &str) -> Backlog {
        let lane = Lane { tenant: tenant.clone(), upstream: upstream.clone() };
        match self.0.books.keys.has_backlog(&lane, ordering_key) {
            true => Backlog::Known,
            false if self.0.books.is_alone() => Backlog::Empty,
            false => Backlog::Possible,
        }
    }

    /// Whether no other process has the queue open.
    pub fn is_alone(&self) -> bool {
        self.0.books.is_alone()
    }

    /// Lets another process take the queue over, with all that was handed over committed before. Stop [`Delivery`] before.
    /// Records are still accepted; the other process delivers them.
    pub async fn let_go(&self, deadline: Duration) {
        self.0.standing.become_guest();
        if tokio::time::timeout(deadline, self.0.writer.let_go()).await.is_err() {
            tracing::warn!(
                "the queue could not be handed over in time; another process takes it over when this one ends"
            );
        }
    }

    /// Says that an upstream may be well, or there, again: it is probed now rather than at the end of its back-off. For
    /// changes of state, such as a new revision or a breaker that closed. Does nothing where nothing waits.
    pub fn nudge(&self, tenant: &TenantName, upstream: &UpstreamName) {
        if self.depth(tenant, upstream) == 0 {
            return;
        }
        self.0.writer.nudge(Lane { tenant: tenant.clone(), upstream: upstream.clone() });
    }

    /// What the queue holds, and has done since it was opened.
    pub fn totals(&self) -> Totals {
        self.0.books.totals()
    }

    /// Whether the queue accepts, and each change of that.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    /// Commits what was handed over, then closes the log and lets the owner's lock go. Stop [`Delivery`] before.
    /// From here on everything is refused. Gives up waiting after `deadline`; what is committed is safe in any case.
    pub async fn shutdown(&self, deadline: Duration) {
        let closed = async {
            self.0.writer.stop().await;
            self.0.reader.stop().await;
        };
        if tokio::time::timeout(deadline, closed).await.is_err() {
            tracing::warn!("the queue was not closed within its deadline; the next start recovers it");
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("dir", &self.0.settings.dir).finish_non_exhaustive()
    }
}

/// Checks a record's bounds; returns the size of its head.
fn check(record: &NewRecord, reservation: &Reservation) -> Result<usize, EnqueueError> {
    if *reservation.tenant() != record.tenant {
        return Err(EnqueueError::ForeignReservation {
            reserved: reservation.tenant().clone(),
            record: record.tenant.clone(),
        });
    }
    let fields: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let fields = fields + record.sealed.as_ref().map_or(0, Vec::len);
    let head =
        record.method.len() + record.target.len() + record.host.len() + record.request_id.len() + fields;
    let key = record.ordering_key.as_ref().map_or(0, String::len);
    for (what, found, limit) in [("a head", head, HEAD_BYTES), ("an ordering key", key, KEY_BYTES)] {
        if found > limit {
            return Err(EnqueueError::TooLarge { what, found, limit });
        }
    }
    Ok(head + key)
}

/// What this process is to the queue that it opens. By default all there is: alone, without files to show it by.
pub(crate) struct Place {
    pub(crate) company: Option<Company>,
    pub(crate) lock: Option<OwnerLock>,
    pub(crate) is_owner: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self { company: None, lock: None, is_owner: true }
    }
}

/// Ends or puts back what an owner before this one was delivering.
pub(crate) fn recover(log: &mut dyn Log, now_ms: u64) -> Result<(), LogError> {
    let (mut requeued, mut dead) = (0, 0);
    loop {
        let recover = Change::Recover { epoch: log.epoch(), now_ms, limit: PAGE };
        let effects = log.commit(&[recover])?;
        let [Effect::Recovered { requeued: page_requeued, ended }] = &effects[..] else {
            unreachable!("the effect of a recovery is Recovered");
        };
        requeued += page_requeued;
        dead += ended.len();
        if page_requeued + ended.len() < PAGE {
            break;
        }
    }
    if requeued + dead > 0 {
        tracing::warn!(
            requeued,
            indeterminate = dead,
            "recovered records that were being delivered when the node stopped"
        );
    }
    Ok(())
}

fn collect(reader: &mut dyn crate::log::LogReader, bodies: &std::path::Path) -> Result<(), OpenError> {
    let mut failed = None;
    let removed = collect_orphans(bodies, |name| match reader.names_body(name) {
        Ok(named) => named,
        Err(error) => {
            failed.get_or_insert(error);
            true
        }
    })
    .map_err(|source| OpenError::Folder { path: bodies.to_owned(), source })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if removed > 0 {
        tracing::info!(removed, "removed body files that no record names");
    }
    Ok(())
}

fn random_seed() -> u64 {
    getrandom::u64().expect("the operating system gives randomness")
}
