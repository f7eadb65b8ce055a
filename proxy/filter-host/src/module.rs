//! A module that is ready to run.

use std::sync::Arc;

use beamline_model::Digest;

use wasmtime::component::InstancePre;

use crate::{
    host::Running,
    inspect::ModuleInfo,
    phases::{PhaseExports, PhaseSet},
    reset::{Core, Hold},
};

/// A compiled module, linked as far as it can be before an instance exists. Shared by every tenant that uses it.
pub struct Module {
    engine: wasmtime::Engine,
    pre: InstancePre<Running>,
    exports: PhaseExports,
    phases: PhaseSet,
    /// Its form for the reset tier, where it has that.
    core: Option<Hold>,
    info: ModuleInfo,
    label: Arc<str>,
}

impl Module {
    pub(crate) fn new(
        engine: wasmtime::Engine,
        pre: InstancePre<Running>,
        core: Option<Hold>,
        info: ModuleInfo,
    ) -> wasmtime::Result<Self> {
        let label = info.digest.to_string().into();
        let exports = PhaseExports::find(&pre, &info)?;
        Ok(Self { engine, pre, exports, phases: PhaseSet::of(&info), core, info, label })
    }

    pub(crate) fn engine(&self) -> &wasmtime::Engine {
        &self.engine
    }

    pub(crate) fn pre(&self) -> &InstancePre<Running> {
        &self.pre
    }

    /// Its form for the reset tier, where its request phase runs in that.
    pub(crate) fn core(&self) -> Option<&Arc<Core>> {
        self.core.as_ref().map(Hold::core)
    }

    /// Where its phases' functions are.
    pub(crate) fn exports(&self) -> &PhaseExports {
        &self.exports
    }

    /// The phases that it takes part in.
    pub(crate) fn phases(&self) -> PhaseSet {
        self.phases
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
