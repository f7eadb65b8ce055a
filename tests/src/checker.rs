//! The checker: what clients, origins and receipts tell, held against what the node promised. It knows the promises,
//! not the proxy's code.
//!
//! Clients tell a [`Ledger`] of every request before they begin it and when it ends, and [`Changes`] of every change of
//! the control plane and what they see of it. Nothing is judged while faults are made; [`judge`] and
//! [`Changes::violations`] do so at the end, from what everybody saw:
//!
//! - a request that was answered `202` is delivered, still queued, or dead for a reason that can be true of it;
//! - what an origin receives whole was begun by a client and sent whole, with that method and those bytes;
//! - a request that is not safe to repeat reaches an origin at most once;
//! - nothing arrives from the queue that was answered with anything but `202`. A commit whose `202` was never seen is
//!   no violation: it was in flight at a crash. It is counted;
//! - a request that its client sends again under its `Idempotency-Key`, not knowing what became of it, is stored once;
//! - requests of one ordering key, each begun after the one before was answered, arrive in that order;
//! - receipts tell what happened, whether the origin's answer came whole among it, and attempts are counted;
//! - what a client was told to be the origin's good answer was given by the origin;
//! - at no moment is more queued than the quotas allow;
//! - nobody is told that nobody knows whether a request was stored, but where the disk failed under it or the node crashed;
//! - a request goes unanswered only where the node crashed under it;
//! - a change that was answered 2xx is there, whatever came after it, and nothing is there that nobody asked for.

mod changes;
mod ledger;
mod quota;
mod verdict;

use std::fmt;

pub use self::{
    changes::{Change, Changes, Outcome, Sight},
    ledger::{End, Exchange, Intent, Ledger},
    quota::Quota,
    verdict::{Arrival, Numbers, Receipt, Verdict, judge},
};

/// A promise that was broken, of a request or of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub kind: Kind,
    /// The request's id, the ordering key or the tenant's name.
    pub of: String,
    /// What was expected and what was found.
    pub how: String,
}

/// The promises that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A `202` was seen, and the node knows nothing of the request any more.
    Lost,
    /// The node knows of the request, but what it had to deliver is gone.
    ContentLost,
    /// A request was answered `202` that was not sent whole.
    AcceptedInPart,
    /// Something arrived whole that no client sent whole.
    NeverSent,
    /// Something else arrived than was sent.
    Altered,
    /// A request that is not safe to repeat arrived more than once.
    Repeated,
    /// A request that is not safe to repeat arrived, and still waits to be delivered.
    WillRepeat,
    /// One request became two records.
    StoredTwice,
    /// A request was delivered from the queue that was not accepted for it.
    DeliveredThoughRefused,
    /// A request arrived before one that was accepted before it under the same ordering key.
    OutOfOrder,
    /// A receipt tells what can't be.
    FalseReceipt,
    /// Two deliveries of one request have the same number, or a lower one than before.
    AttemptRepeated,
    /// A request got no answer, and there was no crash to blame.
    Unanswered,
    /// A request was answered as by its origin, which did not answer it so.
    NotItsOrigins,
    /// A request was told that nobody knows whether it was stored, and there was no fault to blame.
    UnconfirmedWithoutFault,
    /// More was queued at once than the quotas allow.
    QuotaExceeded,
    /// A change that was answered 2xx is not there.
    ChangeLost,
    /// Something is there that nobody asked for.
    ChangeFromNowhere,
    /// One revision stands for two manifests.
    RevisionReused,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}: {}", self.kind, self.of, self.how)
    }
}

/// The first few violations as lines, and how many of each kind there are.
pub fn summary(violations: &[Violation]) -> String {
    let mut kinds = std::collections::BTreeMap::<Kind, usize>::new();
    violations.iter().for_each(|v| *kinds.entry(v.kind).or_default() += 1);
    let first: Vec<_> = violations.iter().take(10).map(|v| format!("  {v}")).collect();
    format!("{} violations {kinds:?}\n{}", violations.len(), first.join("\n"))
}
