//! The degraded-mode queue: a durable log and a pure delivery scheduler.
//!
//! A request whose upstream is down is stored here and answered `202` with a receipt; when the upstream is back, it is
//! delivered. The crate knows nothing of connections, manifests or spans: who sends a record is a trait, [`Deliver`].
//!
//! # Invariants
//!
//! Each has a test of its name.
//!
//! 1. **`a_202_means_committed`.** [`Queue::enqueue`] returns only when the record is on stable storage, and every byte
//!    of its body before it. What was returned survives a kill and a power cut.
//! 2. **`delivering_is_on_disk_before_the_first_byte`.** A record is marked `delivering`, with its owner's epoch, in a
//!    commit that is done before [`Deliver::deliver`] is called.
//! 3. **`an_unsafe_record_is_never_sent_again_after_bytes_may_have_left`.** Not by a retry, and not after a crash: it is
//!    then dead (indeterminate), for a person to decide.
//! 4. **`records_of_one_key_go_out_in_commit_order_one_at_a_time`.** The log itself keeps all but the first open record of
//!    an ordering key from being handed out.
//! 5. **`a_failing_key_blocks_only_itself`.** What an origin refuses backs off by itself; only an upstream that cannot be
//!    reached, or refuses several in a row that it did not refuse before, is probed one record at a time.
//! 6. **`whatever_fails_every_record_is_delivered_or_dead_for_a_reason`.** No record is forgotten, by failures, restarts
//!    or reads that are out of date.
//! 7. **`a_row_never_lacks_its_body`.** A body file is synced before the row that names it commits, and removed after the
//!    row let go of it. Files that no row names are collected at the start.
//! 8. **`after_a_disk_error_nothing_is_accepted_until_the_log_is_verified`.** The group that failed is refused, and so is
//!    everything until the log was reopened, checked, and took a durable write.
//! 9. **`a_refused_record_is_never_delivered_though_it_be_on_disk`.** Found after a failed commit, it is dead
//!    (unconfirmed): its client was told no.
//! 10. **`quotas_hold_at_every_moment`.** Room is reserved before a body is read and settled in the commit. When there is
//!     none the answer is a [`Refusal`]; nothing is evicted.
//! 11. **`only_one_owner_delivers`.** Whoever holds the lock file; and a dead owner's late word changes nothing.
//! 12. **`a_receipt_is_shown_only_to_who_has_its_secret`.** Unknown, foreign and malformed receipts are all alike.
//! 13. **`memory_is_bounded_by_windows_not_by_the_backlog`.** The backlog is on disk; in memory is a window of each
//!     upstream's records that are due first.
//! 14. **`what_is_done_by_hand_is_in_the_audit`.** A record that somebody cancels, discards, purges or queues again
//!     changes in one transaction with its row of the audit; nothing that is shown holds a credential or a query.
//!     What the node ends by expiry or deletes by itself is there too, hour by hour; and who reads bodies, before they do.
//! 15. **`of_a_paused_lane_nothing_is_begun`.** From the moment that the pause is answered, and after a restart.
//!     Where it has a rate, no more begin in a second than that.
//! 16. **`an_idle_queue_does_nothing`.** No thread polls: each waits for a message, delivery also for the next due time.
//! 17. **`a_hanging_tenant_blocks_only_itself`.** A tenant takes no more places in flight than it leaves free.
//! 18. **`tenants_get_the_same_bytes_however_large_their_records_are`.** A turn costs the record's size.
//! 19. **`one_key_makes_one_record`.** Of requests that use a client's `Idempotency-Key` in the same way one is stored, and
//!     all get its receipt, whatever crashes when.
//!
//! # Who does what
//!
//! ```text
//! request threads ── Queue ──┬─ body bytes ──▶ spool thread ── bodies/*
//!                            ├─ appends ─────▶ writer thread ─ queue.db ── checkpoint thread
//!                            └─ receipts ────▶ reader thread ─ queue.db       (by WAL size)
//!                                                  ▲  │ notices
//!                                                  │  ▼
//!                                             delivery thread ── Deliver
//! ```
//!
//! The writer owns the log and commits in groups; the reader reads beside it; delivery is a state machine whose every
//! step is one of the writer's commits. Request threads take no lock that is held over I/O, and never touch the disk.

mod body;
mod books;
mod claims;
mod delivery;
mod disk;
mod fault;
mod health;
mod idempotency;
mod keys;
mod log;
mod notices;
mod owner;
mod queue;
mod rate;
mod reader;
mod receipt;
mod record;
mod response;
mod settings;
mod spool;
mod standing;
#[cfg(test)]
mod tests;
mod view;
mod waiters;
mod writer;

/// Called with the number of each step of what takes milliseconds. After every fourth, the thread lets others have the
/// processor first, data workers above all: one that woke up meanwhile would wait for the end, for the scheduler lets
/// whoever runs have their slice.
fn step_back(step: usize) {
    if step % 4 == 3 {
        std::thread::yield_now();
    }
}

pub use body::{BodyBuffer, BodyError};
pub use books::{Demand, Refusal, Reservation, Totals};
pub use claims::KeyClaim;
pub use delivery::{Attempt, AttemptBody, BodyReader, Deliver, Delivery, DeliveryError, Outcome, Rules};
pub use health::Health;
pub use idempotency::{BodyDigest, BodyHasher, Fingerprint, KeyedUse};
pub use log::LogError;
pub use queue::{
    Accepted, Backlog, Cancellation, EnqueueError, ExportedBody, HandError, KeyLook, OpenError, Purged,
    Queue, QueueError, RecordBody, UsedKey,
};
pub use rate::{InvalidRate, Rate};
pub use receipt::{InvalidReceipt, Receipt};
pub use record::{DeadReason, InvalidRecordId, NewRecord, ReceiptView, RecordId, State, StateName, TraceRef};
pub use response::{Keep, KeptResponse, ResponseView, WholeResponse};
pub use settings::{Settings, WallClock};
pub use view::{
    AuditRow, EXPORT_VERSION, ExportPage, HeaderView, LaneStatus, PAGE_MAX, RecordListing, RecordPage,
    RecordQuery, RecordView, RequestView,
};
pub use waiters::Waiter;
