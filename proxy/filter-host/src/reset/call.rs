//! One guest call in the reset tier.

use std::sync::Arc;

use super::{
    kept::{Core, Kept},
    shelf,
};
use crate::{
    call::{Finished, Given, finished, in_fresh_instance},
    host::CallState,
    module::Module,
};

/// Runs the request phase of `module` in a kept instance of its `core`. The future is `Send`: where the call is set
/// aside, the instance goes with it, and ends where the call does.
pub(crate) async fn on_request(module: Arc<Module>, core: Arc<Core>, state: Box<CallState>) -> Finished {
    // A limit that does not even grant the first memory: the other tier refuses it, and nothing is made for it here.
    if core.size() > state.memory.limit {
        // Boxed, as all that is rare here: every call is as large as the largest of what it may come to.
        return Box::pin(in_fresh_instance(module, state)).await;
    }
    let mut kept = match shelf::take(&core) {
        Some(kept) => kept,
        None => match Box::pin(Kept::new(&core)).await {
            Ok(kept) => kept,
            Err(error) => {
                // The node is short of memory, most likely. The other tier's is set aside from the start.
                tracing::debug!(error = format!("{error:#}"), module = %module.digest(), "no kept instance");
                return Box::pin(in_fresh_instance(module, state)).await;
            }
        },
    };
    let (state, outcome) = kept.call(state).await;
    // Before the call's CPU time is read: what it left to be put back is its own.
    if outcome.is_ok() && matches!(kept.reset(), Ok(true)) {
        shelf::put(kept);
    } else {
        drop(kept);
    }
    finished(state, outcome.map(Given::Request))
}
