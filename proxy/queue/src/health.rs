//! Whether the queue may accept: one flag that request threads read, one watch that others follow.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Whether the queue accepts records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does, within its quotas.
    Available,
    /// After a disk error: it does not until the log was reopened and verified. Deliveries wait too.
    Unavailable {
        /// What went wrong, as a sentence.
        reason: String,
    },
}

#[derive(Debug)]
pub(crate) struct HealthCell {
    available: AtomicBool,
    watch: watch::Sender<Health>,
}

impl HealthCell {
    pub(crate) fn new() -> Self {
        Self { available: AtomicBool::new(true), watch: watch::Sender::new(Health::Available) }
    }

    pub(crate) fn is_available(&self) -> bool {
        self.available.load(Ordering::Acquire)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Health> {
        self.watch.subscribe()
    }

    pub(crate) fn failed(&self, reason: impl Into<String>) {
        self.available.store(false, Ordering::Release);
        self.watch.send_replace(Health::Unavailable { reason: reason.into() });
    }

    pub(crate) fn restored(&self) {
        // Whoever waits for the watch may count on it.
        self.available.store(true, Ordering::Release);
        self.watch.send_replace(Health::Available);
    }
}
