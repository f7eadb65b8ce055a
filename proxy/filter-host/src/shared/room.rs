//! Budgets: what is taken from them counts until it is given back.

use std::sync::atomic::{AtomicU64, Ordering};

/// A budget of bytes for several holders.
pub(crate) struct Room {
    used: AtomicU64,
    bytes: u64,
}

impl Room {
    pub(crate) const fn of(bytes: u64) -> Self {
        Self { used: AtomicU64::new(0), bytes }
    }

    /// Takes `more` and gives `less` back in one step; whether there is room for that.
    pub(super) fn take(&self, more: u64, less: u64) -> bool {
        take(&self.used, more, less, self.bytes)
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Adds `more` to a balance and takes `less` from it, unless it would grow beyond `limit`.
pub(super) fn take(balance: &AtomicU64, more: u64, less: u64, limit: u64) -> bool {
    let after = |held: u64| {
        let after = held + more - less;
        (after <= limit || after <= held).then_some(after)
    };
    balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok()
}
