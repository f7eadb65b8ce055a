//! The books: what the queue holds and what is promised, in counters that request threads read without a lock.
//!
//! *Reserved* is what requests that are still being read may come to need; *kept* is what is in the log. A reservation
//! becomes kept in one step at the commit. The writer thread alone changes what is kept.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use beamline_model::{TenantName, UpstreamName};
use thiserror::Error;

use crate::{
    Settings,
    claims::ClaimIndex,
    disk::Disk,
    fault::Fault,
    keys::KeyIndex,
    log::{Append, CensusRow, Ended, Erased, LogError, LogReader, Pruned, Requeued, Unpaused},
    record::Lane,
    waiters::Waiters,
};

/// Of a quota, in percent: what requests that did not ask to be queued can fill.
const UNASKED_SHARE: u64 = 80;
const RETRY_WHEN_FULL: Duration = Duration::from_secs(30);
pub(crate) const RETRY_WHEN_UNAVAILABLE: Duration = Duration::from_secs(5);

/// Why a request cannot be queued now. The first two are a `503` with `Retry-After`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A quota or the disk is used up. Nothing that is queued is ever evicted to make room.
    #[error("the queue is full ({what}): try again in {} s", .retry_after.as_secs())]
    Full {
        /// Which bound it is, such as `records of this tenant`.
        what: &'static str,
        /// When it is worth another try.
        retry_after: Duration,
    },
    /// The disk failed, and the log is not yet verified; or the queue is closed.
    #[error("the queue is unavailable: try again in {} s", .retry_after.as_secs())]
    Unavailable {
        /// When it is worth another try.
        retry_after: Duration,
    },
    /// The disk failed at this record's commit, and the log could not be read again in time: the record may be there, and
    /// then is delivered.
    #[error(
        "whether the request was stored is not known: the disk failed, and its log could not be read again in time"
    )]
    Unconfirmed,
}

impl Refusal {
    pub(crate) fn full(what: &'static str) -> Self {
        Self::Full { what, retry_after: RETRY_WHEN_FULL }
    }

    pub(crate) fn unavailable() -> Self {
        Self::Unavailable { retry_after: RETRY_WHEN_UNAVAILABLE }
    }

    /// When it is worth another try. None where a try may be a repetition.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after, .. } | Self::Unavailable { retry_after } => Some(*retry_after),
            Self::Unconfirmed => None,
        }
    }
}

/// Whether a client wants its request queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// It asked (`Prefer: respond-async`), or a filter did: quotas can be used whole.
    Asked,
    /// Nobody asked; the alternative is an error. Refused from 80% of a quota on, so that room is left for who asks.
    Unasked,
}

/// What the queue holds. Counters count since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records that wait or are being delivered.
    pub open: u64,
    /// Records that are open or kept as dead letters.
    pub kept: u64,
    /// Bytes of these, and of origins' answers that are kept for receipts.
    pub kept_bytes: u64,
    /// Bytes promised to requests that are being read.
    pub reserved_bytes: u64,
    /// Receipts of delivered records, and of those that were cancelled or discarded.
    pub receipts: u64,
    /// Deliveries in flight.
    pub in_flight: u64,
    /// Records accepted.
    pub accepted: u64,
    /// Records delivered.
    pub delivered: u64,
    /// Records that became dead.
    pub dead: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Groups committed: each is one fsync.
    pub commits: u64,
}

/// Records and bytes, kept and reserved, of a tenant or of all.
#[derive(Debug, Default)]
struct Account {
    kept: AtomicU64,
    kept_bytes: AtomicU64,
    reserved: AtomicU64,
    reserved_bytes: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Quota {
    records: u64,
    bytes: u64,
    records_name: &'static str,
    bytes_name: &'static str,
}

impl Account {
    fn reserve(&self, records: u64, bytes: u64, quota: &Quota, demand: Demand) -> Result<(), Refusal> {
        let share = |limit: u64| match demand {
            Demand::Asked => limit,
            Demand::Unasked => limit / 100 * UNASKED_SHARE + limit % 100 * UNASKED_SHARE / 100,
        };
        // First announced, then looked at what is kept, which a settling commit raises before it lowers `reserved`:
        // two reservations can refuse each other, but never pass the quota together.
        let all = self.reserved.fetch_add(records, Ordering::AcqRel) + records;
        let all_bytes = self.reserved_bytes.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes);
        let refused = if Fault::IgnoreQuotas.is_on() {
            None
        } else if records > 0 && all + self.kept.load(Ordering::Acquire) > share(quota.records) {
            Some(quota.records_name)
        } else if all_bytes.saturating_add(self.kept_bytes.load(Ordering::Acquire)) > share(quota.bytes) {
            Some(quota.bytes_name)
        } else {
            None
        };
        match refused {
            None => Ok(()),
            Some(what) => {
                self.unreserve(records, bytes);
                Err(Refusal::full(what))
            }
        }
    }

    fn unreserve(&self, records: u64, bytes: u64) {
        self.reserved_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.reserved.fetch_sub(records, Ordering::AcqRel);
    }

    fn keep(&self, records: u64, bytes: u64) {
        self.kept_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.kept.fetch_add(records, Ordering::AcqRel);
    }

    fn unkeep(&self, records: u64, bytes: u64) {
        less(&self.kept_bytes, bytes);
        less(&self.kept, records);
    }
}

/// Takes from what is kept, of which the writer thread alone is the keeper. Another process's records are not counted
/// before the next recount, and may end before it.
fn less(kept: &AtomicU64, by: u64) {
    kept.store(kept.load(Ordering::Acquire).saturating_sub(by), Ordering::Release);
}

#[derive(Debug, Default)]
struct TenantBook {
    account: Account,
    /// What is kept for each upstream. Grows with the tenant's upstreams, which are few.
    lanes: ArcSwap<HashMap<UpstreamName, Arc<LaneBook>>>,
}

/// What is kept for one upstream.
#[derive(Debug, Default)]
struct LaneBook {
    open: AtomicU64,
    /// Open records and dead letters; their bytes, and those of kept answers.
    kept: AtomicU64,
    kept_bytes: AtomicU64,
    /// These three count since the queue was opened.
    accepted: AtomicU64,
    delivered: AtomicU64,
    died: AtomicU64,
}

/// A [`LaneBook`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneFigures {
    pub(crate) open: u64,
    pub(crate) dead: u64,
    pub(crate) bytes: u64,
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    pub(crate) died: u64,
}

impl LaneBook {
    fn keep(&self, records: u64, bytes: u64) {
        self.kept.fetch_add(records, Ordering::Relaxed);
        self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn unkeep(&self, records: u64, bytes: u64) {
        less(&self.kept, records);
        less(&self.kept_bytes, bytes);
    }

    fn figures(&self) -> LaneFigures {
        let open = self.open.load(Ordering::Relaxed);
        let dead = self.kept.load(Ordering::Relaxed).saturating_sub(open);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LaneFigures {
            open,
            dead,
            bytes: get(&self.kept_bytes),
            accepted: get(&self.accepted),
            delivered: get(&self.delivered),
            died: get(&self.died),
        }
    }
}

impl TenantBook {
    fn lane(&self, upstream: &UpstreamName) -> Arc<LaneBook> {
        if let Some(lane) = self.lanes.load().get(upstream) {
            return Arc::clone(lane);
        }
        let fresh = Arc::new(LaneBook::default());
        self.lanes.rcu(|lanes| {
            let mut lanes = HashMap::clone(lanes);
            lanes.entry(upstream.clone()).or_insert_with(|| Arc::clone(&fresh));
            lanes
        });
        Arc::clone(&self.lanes.load()[upstream])
    }
}

#[derive(Debug, Default)]
struct Counters {
    open: AtomicU64,
    receipts: AtomicU64,
    in_flight: AtomicU64,
    accepted: AtomicU64,
    delivered: AtomicU64,
    dead: AtomicU64,
    refused: AtomicU64,
    commits: AtomicU64,
}

/// All counters of one queue.
pub(crate) struct Books {
    node: Account,
    node_quota: Quota,
    tenant_quota: Quota,
    tenants: ArcSwap<HashMap<TenantName, Arc<TenantBook>>>,
    pub(crate) keys: Arc<KeyIndex>,
    pub(crate) claims: Arc<ClaimIndex>,
    pub(crate) waiters: Arc<Waiters>,
    counters: Counters,
    disk: Arc<Disk>,
    /// 0 while no other process has the queue open: then these books are complete. Else in whose company, counted.
    company: AtomicU64,
    companies: AtomicU64,
}

/// Room for one record, promised before its body is read, or for an answer. Dropping it gives the room back.
#[must_use = "a reservation that is dropped gives its room back"]
pub struct Reservation {
    books: Arc<Books>,
    tenant: Arc<TenantBook>,
    tenant_name: TenantName,
    /// One, or none for an answer.
    records: u64,
    bytes: u64,
    demand: Demand,
}

impl Books {
    pub(crate) fn new(settings: &Settings, disk: Arc<Disk>) -> Self {
        Self {
            node: Account::default(),
            node_quota: Quota {
                records: settings.max_records,
                bytes: settings.max_bytes,
                records_name: "records of this node",
                bytes_name: "bytes of this node",
            },
            tenant_quota: Quota {
                // Half, rounded up: a node that may hold one record may hold a tenant's.
                records: settings.tenant_max_records.unwrap_or(settings.max_records.div_ceil(2)),
                bytes: settings.tenant_max_bytes.unwrap_or(settings.max_bytes.div_ceil(2)),
                records_name: "records of this tenant",
                bytes_name: "bytes of this tenant",
            },
            tenants: ArcSwap::default(),
            keys: Arc::new(KeyIndex::new()),
            claims: Arc::new(ClaimIndex::new()),
            waiters: Arc::default(),
            counters: Counters::default(),
            disk,
            company: AtomicU64::new(0),
            companies: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.company.load(Ordering::Acquire) == 0
    }

    /// Somebody else is about to have the queue open, too.
    pub(crate) fn in_company(&self) {
        let company = self.companies.fetch_add(1, Ordering::AcqRel) + 1;
        self.company.store(company, Ordering::Release);
    }

    /// The present company.
    pub(crate) fn company(&self) -> u64 {
        self.company.load(Ordering::Acquire)
    }

    /// That company has gone, and what it left is counted. Does nothing where another one has come since.
    pub(crate) fn alone_after(&self, company: u64) {
        let _ = self.company.compare_exchange(company, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    fn tenant(&self, name: &TenantName) -> Arc<TenantBook> {
        if let Some(book) = self.tenants.load().get(name) {
            return Arc::clone(book);
        }
        let fresh = Arc::new(TenantBook::default());
        self.tenants.rcu(|tenants| {
            let mut tenants = HashMap::clone(tenants);
            tenants.entry(name.clone()).or_insert_with(|| Arc::clone(&fresh));
            tenants
        });
        Arc::clone(&self.tenants.load()[name])
    }

    pub(crate) fn reserve(
        self: &Arc<Self>,
        name: &TenantName,
        bytes: u64,
        demand: Demand,
    ) -> Result<Reservation, Refusal> {
        self.reserve_room(name, 1, bytes, demand)
    }

    /// Room for an origin's answer, which is no record.
    pub(crate) fn reserve_response(
        self: &Arc<Self>,
        name: &TenantName,
        bytes: u64,
    ) -> Result<Reservation, Refusal> {
        self.reserve_room(name, 0, bytes, Demand::Asked)
    }

    fn reserve_room(
        self: &Arc<Self>,
        name: &TenantName,
        records: u64,
        bytes: u64,
        demand: Demand,
    ) -> Result<Reservation, Refusal> {
        let tenant = self.tenant(name);
        tenant.account.reserve(records, bytes, &self.tenant_quota, demand)?;
        self.node
            .reserve(records, bytes, &self.node_quota, demand)
            .inspect_err(|_| tenant.account.unreserve(records, bytes))?;
        let (books, tenant_name) = (Arc::clone(self), name.clone());
        let reservation = Reservation { books, tenant, tenant_name, records, bytes, demand };
        // All that is promised is taken off what is free, this one with it. What of it is on the disk already counts
        // twice, which errs on the safe side.
        if self.disk.has_room(self.node.reserved_bytes.load(Ordering::Acquire)) {
            Ok(reservation)
        } else {
            Err(Refusal::full("free disk space"))
        }
    }

    pub(crate) fn refused(&self) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn depth(&self, tenant: &TenantName, upstream: &UpstreamName) -> u64 {
        let tenants = self.tenants.load();
        let Some(book) = tenants.get(tenant) else { return 0 };
        book.lanes.load().get(upstream).map_or(0, |lane| lane.open.load(Ordering::Relaxed))
    }

    /// Whether nothing of this tenant is kept, and no room reserved for what may still come.
    pub(crate) fn holds_nothing(&self, tenant: &TenantName) -> bool {
        let tenants = self.tenants.load();
        let Some(book) = tenants.get(tenant) else { return true };
        // In this order: a settling commit raises what is kept before it lowers what is reserved.
        let none_reserved = book.account.reserved.load(Ordering::Acquire) == 0;
        none_reserved && book.account.kept.load(Ordering::Acquire) == 0
    }

    /// What is kept for each upstream, of one tenant or of all, in no order.
    pub(crate) fn lanes(&self, of: Option<&TenantName>) -> Vec<(Lane, LaneFigures)> {
        let tenants = self.tenants.load();
        let wanted = tenants.iter().filter(|(tenant, _)| of.is_none_or(|of| of == *tenant));
        let lanes = wanted.flat_map(|(tenant, book)| {
            let lanes = book.lanes.load();
            let figures = lanes.iter().map(|(upstream, lane)| {
                (Lane { tenant: tenant.clone(), upstream: upstream.clone() }, lane.figures())
            });
            figures.collect::<Vec<_>>()
        });
        lanes.collect()
    }

    pub(crate) fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        Totals {
            open: get(&c.open),
            kept: get(&self.node.kept),
            kept_bytes: get(&self.node.kept_bytes),
            reserved_bytes: get(&self.node.reserved_bytes),
            receipts: get(&c.receipts),
            in_flight: get(&c.in_flight),
            accepted: get(&c.accepted),
            delivered: get(&c.delivered),
            dead: get(&c.dead),
            refused: get(&c.refused),
            commits: get(&c.commits),
        }
    }

    pub(crate) fn receipts(&self) -> u64 {
        self.counters.receipts.load(Ordering::Relaxed)
    }

    pub(crate) fn set_in_flight(&self, now: usize) {
        self.counters.in_flight.store(now as u64, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self) {
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// A record is in the log; its reservation settled.
    pub(crate) fn appended(&self, append: &Append, reservation: Reservation) {
        // Before the reservation goes, so that it is taken off the disk's free space at every moment.
        self.disk.spent(append.size);
        reservation.settle(append.size);
        let lane = self.tenant(&append.lane.tenant).lane(&append.lane.upstream);
        lane.keep(1, append.size);
        lane.open.fetch_add(1, Ordering::Relaxed);
        lane.accepted.fetch_add(1, Ordering::Relaxed);
        self.counters.open.fetch_add(1, Ordering::Relaxed);
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A record is delivered or dead.
    pub(crate) fn ended(&self, ended: &Ended) {
        let tenant = self.tenant(&ended.lane.tenant);
        let lane = tenant.lane(&ended.lane.upstream);
        less(&lane.open, 1);
        less(&self.counters.open, 1);
        if let Some(key) = ended.key.as_ref().filter(|_| !ended.pauses) {
            self.keys.ended(&ended.lane, key);
        }
        if ended.erased {
            self.let_go(&ended.lane, ended.size);
            self.counters.receipts.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(scope) = &ended.released {
            self.claims.released(scope);
        }
        self.waiters.ended(ended.id);
        let (all, of_lane) = if ended.delivered {
            (&self.counters.delivered, &lane.delivered)
        } else {
            (&self.counters.dead, &lane.died)
        };
        all.fetch_add(1, Ordering::Relaxed);
        of_lane.fetch_add(1, Ordering::Relaxed);
    }

    /// A dead letter's content was erased.
    pub(crate) fn erased(&self, erased: &Erased) {
        if let Some(scope) = &erased.released {
            self.claims.released(scope);
        }
        self.let_go(&erased.lane, erased.size);
        self.forgotten(&erased.lane, erased.response);
        self.counters.receipts.fetch_add(1, Ordering::Relaxed);
    }

    /// A dead letter is queued again: it was kept, and stays so.
    pub(crate) fn requeued(&self, requeued: &Requeued) {
        let lane = &requeued.candidate.lane;
        // Where it paused its key it was in its line all the time.
        if let Some(key) = requeued.key.as_ref().filter(|_| !requeued.paused) {
            self.keys.pending(lane, key).committed();
        }
        self.forgotten(lane, requeued.response);
        if let Some(scope) = &requeued.retaken {
            self.claims.kept(scope);
        }
        self.tenant(&lane.tenant).lane(&lane.upstream).open.fetch_add(1, Ordering::Relaxed);
        self.counters.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Dead records pause their key no more: nobody has to wait for them.
    pub(crate) fn unpaused(&self, unpaused: &Unpaused) {
        for _ in 0..unpaused.records {
            self.keys.ended(&unpaused.lane, &unpaused.key);
        }
    }

    /// What was kept of a record is room again.
    fn let_go(&self, lane: &Lane, bytes: u64) {
        let tenant = self.tenant(&lane.tenant);
        tenant.account.unkeep(1, bytes);
        tenant.lane(&lane.upstream).unkeep(1, bytes);
        self.node.unkeep(1, bytes);
    }

    /// An answer is in the log; its reservation settled.
    pub(crate) fn responded(&self, ended: &Ended, reservation: Reservation) {
        self.disk.spent(ended.response);
        reservation.settle(ended.response);
        self.tenant(&ended.lane.tenant).lane(&ended.lane.upstream).keep(0, ended.response);
    }

    /// An answer is kept no more.
    pub(crate) fn forgotten(&self, lane: &Lane, bytes: u64) {
        if bytes > 0 {
            let tenant = self.tenant(&lane.tenant);
            tenant.account.unkeep(0, bytes);
            tenant.lane(&lane.upstream).unkeep(0, bytes);
            self.node.unkeep(0, bytes);
        }
    }

    /// A finished record is deleted.
    pub(crate) fn pruned(&self, pruned: &Pruned) {
        self.forgotten(&pruned.lane, pruned.response);
        if let Some(scope) = &pruned.released {
            self.claims.released(scope);
        }
        if pruned.receipt {
            less(&self.counters.receipts, 1);
        } else {
            self.let_go(&pruned.lane, pruned.size);
        }
    }

    /// Counts everything kept anew from the log, at start and after the log was reopened. Only the writer thread, or
    /// nobody else yet, may call this.
    pub(crate) fn recount(&self, reader: &mut dyn LogReader) -> Result<(), LogError> {
        let (mut rows, mut responses, mut scopes) = (Vec::new(), Vec::new(), Vec::new());
        let mut keys = HashMap::new();
        reader.census(&mut |row| match row {
            // Added, not set: two keys may share a hash.
            CensusRow::Key { lane, key, line } => {
                *keys.entry(self.keys.hash(&lane, &key)).or_default() += line
            }
            CensusRow::Lane { lane, open, kept, kept_bytes, delivered } => {
                rows.push((lane, open, kept, kept_bytes, delivered));
            }
            CensusRow::Responses { lane, bytes, .. } => responses.push((lane, bytes)),
            CensusRow::Scope(scope) => scopes.push(scope),
            CensusRow::Earliest { .. } => {}
        })?;
        self.keys.recount(keys);
        self.claims.recount(&scopes);
        drop(scopes);
        let mut by_tenant: HashMap<TenantName, (u64, u64)> =
            self.tenants.load().keys().map(|name| (name.clone(), (0, 0))).collect();
        let mut by_lane: HashMap<Lane, (u64, u64, u64)> = self
            .tenants
            .load()
            .iter()
            .flat_map(|(tenant, book)| {
                let upstreams: Vec<_> = book.lanes.load().keys().cloned().collect();
                upstreams.into_iter().map(|upstream| (Lane { tenant: tenant.clone(), upstream }, (0, 0, 0)))
            })
            .collect();
        let (mut all_open, mut all, mut receipts) = (0, (0, 0), 0);
        for (lane, open, kept, kept_bytes, delivered) in rows {
            let tenant = by_tenant.entry(lane.tenant.clone()).or_default();
            *tenant = (tenant.0 + kept, tenant.1 + kept_bytes);
            all = (all.0 + kept, all.1 + kept_bytes);
            all_open += open;
            receipts += delivered;
            by_lane.insert(lane, (open, kept, kept_bytes));
        }
        for (lane, bytes) in responses {
            by_tenant.entry(lane.tenant.clone()).or_default().1 += bytes;
            all.1 += bytes;
            by_lane.entry(lane).or_default().2 += bytes;
        }
        for (name, (kept, bytes)) in by_tenant {
            let account = &self.tenant(&name).account;
            account.kept.store(kept, Ordering::Release);
            account.kept_bytes.store(bytes, Ordering::Release);
        }
        for (lane, (open, kept, bytes)) in by_lane {
            let lane = self.tenant(&lane.tenant).lane(&lane.upstream);
            lane.open.store(open, Ordering::Relaxed);
            lane.kept.store(kept, Ordering::Relaxed);
            lane.kept_bytes.store(bytes, Ordering::Relaxed);
        }
        self.node.kept.store(all.0, Ordering::Release);
        self.node.kept_bytes.store(all.1, Ordering::Release);
        self.counters.open.store(all_open, Ordering::Relaxed);
        self.counters.receipts.store(receipts, Ordering::Relaxed);
        Ok(())
    }
}

impl Reservation {
    /// The bytes that are reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose room it is.
    pub fn tenant(&self) -> &TenantName {
        &self.tenant_name
    }

    /// The same, for at least `bytes`. What is too much is given back at the commit.
    pub(crate) fn cover(self, bytes: u64) -> Result<Self, Refusal> {
        if bytes <= self.bytes {
            return Ok(self);
        }
        let (books, name, demand) = (Arc::clone(&self.books), self.tenant_name.clone(), self.demand);
        drop(self);
        books.reserve(&name, bytes, demand)
    }

    /// What was reserved is now kept, at its true size.
    fn settle(self, bytes: u64) {
        self.tenant.account.keep(self.records, bytes);
        self.books.node.keep(self.records, bytes);
        // And dropping takes the reservation away.
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.tenant.account.unreserve(self.records, self.bytes);
        self.books.node.unreserve(self.records, self.bytes);
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} bytes of {})", self.bytes, self.tenant_name)
    }
}
