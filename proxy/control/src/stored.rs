//! The store, from async code: each call on a thread that may block.

use std::sync::Arc;

use beamline_store::{Store, StoreError};

use crate::ControlError;

/// The store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stored(Arc<dyn Store>);

impl Stored {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    /// Runs `ask` on a thread that may block. Once it has begun it runs to its end, though the caller went away.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let store = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || ask(&*store)).await {
            Ok(answer) => Ok(answer?),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ControlError::Stopped),
        }
    }
}
