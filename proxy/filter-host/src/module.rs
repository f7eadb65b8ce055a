//! A module that is ready to run.

use std::sync::Arc;

use beamline_model::Digest;

use crate::{bindings::RequestFilterPre, host::CallState, inspect::ModuleInfo};

/// A compiled module, linked as far as it can be before an instance exists. Shared by every tenant that uses it.
pub struct Module {
    engine: wasmtime::Engine,
    pre: RequestFilterPre<CallState>,
    info: ModuleInfo,
    label: Arc<str>,
}

impl Module {
    pub(crate) fn new(engine: wasmtime::Engine, pre: RequestFilterPre<CallState>, info: ModuleInfo) -> Self {
        let label = info.digest.to_string().into();
        Self { engine, pre, info, label }
    }

    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        &self.engine
    }

    pub(crate) fn pre(&self) -> &RequestFilterPre<CallState> {
        &self.pre
    }

    /// What was found out about it when it was compiled.
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.info.digest
    }

    /// Its digest as text, cheap to clone.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("digest", &self.info.digest).finish_non_exhaustive()
    }
}
