//! Tenants' turns: of one tenant one thing after the other, whatever others do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use beamline_model::TenantName;
use tokio::sync::OwnedMutexGuard;

/// One turn per tenant. Only names of tenants that exist, or of whom that is not known yet, have one.
#[derive(Default)]
pub(crate) struct Turns {
    // Held for a look-up; the turns are what is held long.
    turns: Mutex<HashMap<TenantName, Arc<tokio::sync::Mutex<()>>>>,
}

/// A turn, until it is dropped.
pub(crate) type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// Waits for the turn of this name, whether there is a tenant of it or not. Cancel safe: who goes away loses its place.
    pub(crate) async fn take(&self, name: &TenantName) -> Turn {
        loop {
            let turn = Arc::clone(self.turns().entry(name.clone()).or_default());
            let guard = Arc::clone(&turn).lock_owned().await;
            // One that was ended while this waited excludes nobody any more.
            if self.turns().get(name).is_some_and(|now| Arc::ptr_eq(now, &turn)) {
                return guard;
            }
        }
    }

    /// Lets the name have no turn any more. Who waits for one, or has one and changes nothing more, is not disturbed.
    pub(crate) fn end(&self, name: &TenantName) {
        self.turns().remove(name);
    }

    /// Whether the name has a turn.
    #[cfg(test)]
    pub(crate) fn has(&self, name: &TenantName) -> bool {
        self.turns().contains_key(name)
    }

    fn turns(&self) -> std::sync::MutexGuard<'_, HashMap<TenantName, Arc<tokio::sync::Mutex<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
