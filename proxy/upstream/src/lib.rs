//! Clusters: the endpoints behind one upstream, and the way of a request to one of them over HTTP/1.1, or to a NATS
//! subject.
//!
//! A [`Cluster`] is what every thread shares about an upstream: its breaker, its round robin, its address policy.
//! [`Pools`] is what one thread owns: kept connections and the tasks that drive them; no lock and no message to
//! another thread lies on a request's way. [`Pools::send`] takes a request to a response head and says, where it
//! fails, whether a byte of the request can have left: what may be queued or tried elsewhere hangs on that.
//!
//! [`EgressClient`] sends the requests that filters make by themselves, on the threads and within the bounds of an
//! [`EgressNode`].
//!
//! Never here: which upstream a request goes to, what is queued, which header fields are passed on. The request
//! comes with its `Host` and its target in origin form, free of hop-by-hop fields.

mod attempt;
mod body;
mod breaker;
mod clock;
mod cluster;
mod connect;
mod connection;
mod egress;
mod error;
mod exchange;
mod head;
mod nats;
mod pool;
mod send;
mod socket;

pub use attempt::{AttemptInfo, Attempts};
pub use body::{BoxError, BrokenBody, UpstreamBody};
pub use breaker::BreakerSettings;
pub use clock::Clock;
pub use cluster::{AddressPolicy, Cluster, ClusterKey, ClusterSettings, UpstreamState};
pub use egress::{EgressClient, EgressError, EgressNode, EgressRequest, EgressResponse};
pub use error::{ErrorKind, SendError, Sentness};
pub use nats::OwnKey;
pub use pool::{PoolSettings, Pools};
pub use send::{SendOptions, Sent, Unreached};
