//! One component instance that outlives its calls.

use std::sync::Arc;

use tokio::sync::oneshot;
use wasmtime::{Store, component::Instance};

use super::pins::Permit;
use crate::{
    call::{Finished, Input, finished, given, store},
    host::{CallState, Running},
    module::Module,
    reset::Place,
};

/// What an instance takes beside its linear memory, at most: its stack, tables, and what wasmtime needs.
const BESIDE: usize = 1 << 20;

/// An instance between two calls, or before its first.
pub(super) struct Kept {
    /// None before the first call, which makes both: that costs CPU time, and may meet a limit.
    store: Option<Store<Running>>,
    instance: Option<Instance>,
    /// Bytes of its linear memory.
    memory: usize,
    /// Calls that it has served.
    served: u32,
    /// Its part in what the node keeps for next requests.
    pub(super) place: Place,
    /// The same of its tenant's share of that.
    pub(super) share: Place,
    /// Its part in what requests hold.
    _permit: Option<Permit>,
}

impl Kept {
    pub(super) fn new(place: Place, share: Place, permit: Option<Permit>) -> Box<Self> {
        Box::new(Self { store: None, instance: None, memory: 0, served: 0, place, share, _permit: permit })
    }

    /// Calls that it has served.
    pub(super) fn served(&self) -> u32 {
        self.served
    }

    /// Bytes that it may take of the node's memory, all told.
    pub(super) fn cost(&self) -> usize {
        self.memory.saturating_add(BESIDE)
    }

    async fn run(&mut self, module: &Module, input: &Input, mut state: Box<CallState>) -> Finished {
        let store = match &mut self.store {
            Some(store) => {
                // The memory's limit is the instance's, over all its calls.
                state.memory.go_on(self.memory);
                store.data_mut().begin(state);
                store.set_epoch_deadline(1);
                store
            }
            None => self.store.insert(store(module, Running::of(state))),
        };
        let made = &mut self.instance;
        let outcome = async {
            let instance = match made {
                Some(instance) => *instance,
                None => *made.insert(module.pre().instantiate_async(&mut *store).await?),
            };
            given(module, &mut *store, &instance, input).await
        }
        .await;
        let state = store.data_mut().end();
        self.memory = state.memory.used;
        finished(state, outcome)
    }
}

/// Runs one phase of `module` in `kept`, which comes `back` unless the call fails. The future is `Send`, and the instance
/// ends with it.
pub(super) async fn call(
    module: Arc<Module>,
    mut kept: Box<Kept>,
    input: Input,
    state: Box<CallState>,
    back: oneshot::Sender<Box<Kept>>,
) -> Finished {
    let finished = kept.run(&module, &input, state).await;
    if finished.given.is_ok() {
        kept.served += 1;
        // Whoever waited for it may have given up: then it ends here.
        let _ = back.send(kept);
    }
    finished
}
