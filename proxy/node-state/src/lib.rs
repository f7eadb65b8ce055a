//! Whether this node is healthy, degraded or draining: one state machine, and the watch that everything reads.
//!
//! Whoever sees something fail or work again reports it under a [`Reason`]; the machine decides when that is a
//! transition. `/readyz`, events, the admin API and `Proxy-Status` all read [`NodeState::current`].

mod machine;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use serde::Serialize;
use tokio::sync::watch;

use machine::Machine;
pub use machine::{FAILURE_WINDOW, FAILURES_TO_ENTER, MIN_BETWEEN_TRANSITIONS, SUCCESSES_TO_LEAVE};

/// What can be wrong with a node while it goes on serving.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason", content = "of")]
pub enum Reason {
    /// An upstream's breaker opens again and again: `tenant/upstream`.
    UpstreamDown(String),
    /// The queue's disk refuses writes or fsyncs: requests are proxied, none is accepted for later.
    QueueUnavailable,
    /// The queue is near its quota.
    QueueFull,
    /// The control-plane store refuses writes, seen where filters store something durably: the last snapshot serves, and what they
    /// store is in memory alone.
    StoreUnavailable,
    /// A tenant's module cannot be loaded: `tenant/filter`.
    ModuleUnavailable(String),
    /// A secret that an upstream's requests need, or a filter may read, is not to be had: `tenant/upstream`, or
    /// `tenant/filters.filter`.
    SecretUnavailable(String),
    /// Spans cannot be exported; they are dropped and counted.
    TelemetryExport,
}

/// What the node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not ready yet.
    Starting,
    /// Everything as it should be.
    Healthy,
    /// Serving, with something wrong.
    Degraded,
    /// Finishing what it has, taking no new connections soon.
    Draining,
}

/// The node's state at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// What it is doing.
    pub phase: Phase,
    /// What is wrong, sorted; empty unless degraded (a draining node keeps its reasons).
    pub reasons: Vec<Reason>,
}

impl State {
    /// Whether new traffic should be sent here: healthy or degraded.
    pub fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Healthy | Phase::Degraded)
    }
}

/// The node's one state machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeState {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // Reports are rare (failures and recoveries, not requests) and the work under the lock is a few map look-ups.
    machine: Mutex<Machine>,
    state: watch::Sender<State>,
}

impl Default for NodeState {
    fn default() -> Self {
        Self::new()
    }
}

impl NodeState {
    /// A node that has just started.
    pub fn new() -> Self {
        let machine = Machine::new();
        let (state, _) = watch::channel(machine.state());
        Self { shared: Arc::new(Shared { machine: Mutex::new(machine), state }) }
    }

    fn with(&self, change: impl FnOnce(&mut Machine)) {
        let mut machine = self.shared.machine.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut machine);
        let now = machine.state();
        self.shared.state.send_if_modified(|state| {
            let changed = *state != now;
            *state = now;
            changed
        });
    }

    /// The state now.
    pub fn current(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// A watch on the state, for readers that wait for changes or look often.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Everything is up: from now on the node is ready.
    pub fn started(&self) {
        self.with(Machine::started);
    }

    /// The node is draining; there is no way back.
    pub fn draining(&self) {
        self.with(Machine::draining);
    }

    /// Something failed.
    pub fn failed(&self, reason: Reason) {
        self.with(|m| m.failed(reason, Instant::now()));
    }

    /// Something that may have failed before worked.
    pub fn worked(&self, reason: &Reason) {
        self.with(|m| m.worked(reason, Instant::now()));
    }

    /// Lets time pass: to be called about once a second, so that held-back transitions happen.
    pub fn tick(&self) {
        self.with(|m| m.tick(Instant::now()));
    }
}
