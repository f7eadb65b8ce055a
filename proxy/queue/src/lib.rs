//! The degraded-mode queue: a durable log and a pure delivery scheduler.
//!
//! A request whose upstream is down is stored here and answered `202` with a receipt; when the upstream is back, it is
//! delivered. The crate knows nothing of HTTP connections, tenants' manifests or traces: who sends a record is a trait.

mod body;
mod books;
mod delivery;
mod disk;
mod health;
mod keys;
mod log;
mod notices;
mod owner;
mod queue;
mod reader;
mod receipt;
mod record;
mod settings;
mod spool;
#[cfg(test)]
mod tests;
mod writer;

pub use body::{BodyBuffer, BodyError};
pub use books::{Demand, Refusal, Reservation, Totals};
pub use delivery::{Attempt, AttemptBody, BodyReader, Deliver, Delivery, DeliveryError, Outcome};
pub use health::Health;
pub use log::LogError;
pub use queue::{Accepted, EnqueueError, OpenError, Queue, QueueError};
pub use receipt::{InvalidReceipt, Receipt};
pub use record::{DeadReason, NewRecord, ReceiptView, RecordId, State, TraceRef};
pub use settings::{Settings, WallClock};
