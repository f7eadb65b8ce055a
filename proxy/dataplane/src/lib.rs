//! The data plane: listeners, HTTP serving, and the request pipeline from accept to last byte.
//!
//! Each worker is a thread with a current-thread runtime, its own upstream pools and its own telemetry buffer
//! ([`Workers`]). What workers share is immutable ([`beamline_control::Snapshot`]) or made of atomics. The life of a
//! request is [`pipeline`], one readable function; each of its steps is a module. [`DeliverToUpstreams`] sends queued requests.

mod body;
mod capture;
mod connection;
mod credentials;
mod delivery;
mod enqueue;
mod failures;
mod filtered;
mod forward;
mod heartbeat;
mod idempotency;
mod listener;
mod phases;
mod pipeline;
mod prefer;
mod receipts;
mod respond;
mod retry_after;
mod room;
mod transaction;
mod view;
mod worker;

pub use delivery::{DeliverToUpstreams, Deliverer};
pub use heartbeat::Heartbeats;
pub use listener::{ListenError, Listener};
pub use worker::{DrainOutcome, DrainSettings, WorkerParts, WorkerSettings, Workers};
