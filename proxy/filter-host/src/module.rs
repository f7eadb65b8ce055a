//! A module that is ready to run.

use std::sync::Arc;

use beamline_model::Digest;

use crate::{bindings::RequestFilterPre, host::CallState, inspect::ModuleInfo, reset::Core};

/// A compiled module, linked as far as it can be before an instance exists. Shared by every tenant that uses it.
pub struct Module {
    engine: wasmtime::Engine,
    pre: RequestFilterPre<CallState>,
    /// Its form for the reset tier, where it has that.
    core: Option<Arc<Core>>,
    info: ModuleInfo,
    label: Arc<str>,
}

impl Module {
    pub(crate) fn new(
        engine: wasmtime::Engine,
        pre: RequestFilterPre<CallState>,
        core: Option<Arc<Core>>,
        info: ModuleInfo,
    ) -> Self {
        let label = info.digest.to_string().into();
        Self { engine, pre, core, info, label }
    }

    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        &self.engine
    }

    pub(crate) fn pre(&self) -> &RequestFilterPre<CallState> {
        &self.pre
    }

    pub(crate) fn core(&self) -> Option<&Arc<Core>> {
        self.core.as_ref()
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
