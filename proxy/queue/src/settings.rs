//! Every bound of the queue, in one place.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Milliseconds since the Unix epoch, from whatever the caller takes as the wall clock.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a queue is opened. [`Settings::new`] gives the defaults: `Settings { max_records: 1000, ..Settings::new(dir) }`.
#[derive(Clone)]
pub struct Settings {
    /// The folder that holds `queue.db`, `queue.lock` and the body files. Made where it is missing, mode 0700.
    pub dir: PathBuf,
    /// The most records that wait or are kept as dead letters. Default 1,000,000.
    pub max_records: u64,
    /// The most bytes that these records take, heads and bodies. Default 1 GiB.
    pub max_bytes: u64,
    /// The most records of one tenant. Default (none): half of [`Settings::max_records`].
    pub tenant_max_records: Option<u64>,
    /// The most bytes of one tenant. Default (none): half of [`Settings::max_bytes`].
    pub tenant_max_bytes: Option<u64>,
    /// What stays free on the disk: nothing is accepted that, with all that is promised room, would go into it. Default
    /// 64 MiB.
    pub min_free_disk: u64,
    /// A file of this size that is given up where the disk is full, so that deliveries can still be recorded. Default 8 MiB.
    pub ballast: u64,
    /// How long the receipt of a delivered record can be asked for. Default 24 h.
    pub receipt_retention: Duration,
    /// How long a dead record is kept, with its body. Default 7 days.
    pub dead_retention: Duration,
    /// The most receipts of records that ended; beyond it the oldest go before their time. Default 1,000,000.
    pub max_receipts: u64,
    /// The longest that one attempt may take; then it counts as broken. Default 5 min.
    pub attempt_timeout: Duration,
    /// The most deliveries in flight, all upstreams together. Default 1024.
    pub max_in_flight: usize,
    /// The wall clock. Default the system's.
    pub wall_clock: WallClock,
}

impl Settings {
    /// The defaults for a queue in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        const RECORDS: u64 = 1_000_000;
        const BYTES: u64 = 1 << 30;
        Self {
            dir: dir.into(),
            max_records: RECORDS,
            max_bytes: BYTES,
            tenant_max_records: None,
            tenant_max_bytes: None,
            min_free_disk: 64 << 20,
            ballast: 8 << 20,
            receipt_retention: Duration::from_secs(24 * 3600),
            dead_retention: Duration::from_secs(7 * 24 * 3600),
            max_receipts: 1_000_000,
            attempt_timeout: Duration::from_secs(5 * 60),
            max_in_flight: 1024,
            wall_clock: Arc::new(system_wall_ms),
        }
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("dir", &self.dir)
            .field("max_records", &self.max_records)
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

/// The system's wall clock; a clock before 1970 reads as 1970.
fn system_wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// A duration in whole milliseconds, at most `u64::MAX`.
pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Bounds that are no setting: each protects memory or latency, none is a matter of taste.
pub(crate) mod bounds {
    /// New records, changes of any kind, and bytes that end a group.
    pub(crate) const GROUP_RECORDS: usize = 64;
    pub(crate) const GROUP_CHANGES: usize = 256;
    pub(crate) const GROUP_BYTES: u64 = 1 << 20;
    /// The longest that a group is gathered, counted from its first record.
    pub(crate) const GROUP_TIME: std::time::Duration = std::time::Duration::from_millis(2);
    /// Appends that are with the writer and not yet answered.
    pub(crate) const APPENDS_WAITING: usize = 512;
    /// Receipts that are asked for and not yet answered.
    pub(crate) const RECEIPTS_WAITING: usize = 256;
    /// Questions and interventions of the admin side that are under way.
    pub(crate) const HANDS: usize = 8;
    /// Notices to delivery that it has not taken; beyond it, delivery scans the log instead.
    pub(crate) const NOTICES: usize = 4096;
    /// What a body keeps in memory before it becomes a file.
    pub(crate) const BODY_MEMORY: usize = 32 << 10;
    /// Bytes of one body that may be on their way to its file.
    pub(crate) const BODY_IN_TRANSIT: usize = 64 << 10;
    /// Method, target, host and header fields of one record together.
    pub(crate) const HEAD_BYTES: usize = 256 << 10;
    /// An ordering key.
    pub(crate) const KEY_BYTES: usize = 1 << 10;
    /// What a record takes beside its head and body, in bytes: rows and indexes.
    pub(crate) const RECORD_OVERHEAD: u64 = 512;
    /// Rows that one transaction of recovery, expiry or retention touches.
    pub(crate) const PAGE: usize = 256;
}
