//! What is asked of the filter host, as a seam: tests have their own.

use std::{pin::Pin, sync::Arc};

use beamline_filter_host::{Compilation, CompileError, Compiler, Module, ModuleInfo};
use bytes::Bytes;

/// A future of a trait that is used as an object.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A module that is ready.
pub(crate) struct Ready {
    /// The module. None only where a test has no Wasm to run.
    pub(crate) module: Option<Arc<Module>>,
    /// What was found out about it.
    pub(crate) info: ModuleInfo,
    /// Whether nothing had to be compiled for it.
    pub(crate) cached: bool,
}

/// Makes modules ready.
pub(crate) trait Modules: Send + Sync + 'static {
    /// The module of `bytes`, validated and loaded, compiled where it was not before.
    fn ready(&self, bytes: Bytes, of: Compilation) -> BoxFuture<'_, Result<Ready, CompileError>>;
}

impl Modules for Compiler {
    fn ready(&self, bytes: Bytes, of: Compilation) -> BoxFuture<'_, Result<Ready, CompileError>> {
        Box::pin(async move {
            let compiled = self.compile(bytes, &of).await?;
            Ok(Ready { module: Some(compiled.module), info: compiled.info, cached: compiled.cached })
        })
    }
}
