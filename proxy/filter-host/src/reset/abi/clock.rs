//! `clock`: the node's time, and that of the call.

use wasmparser::ValType::I64;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface};
use crate::{bindings::beamline::edge::clock::Host as _, reset::guest::Guest};

const NAME: &str = "beamline:edge/clock@0.1.0";
const NOW_MS: &str = "now-ms";
const ELAPSED_NS: &str = "elapsed-ns";

const fn function(name: &'static str) -> Function {
    Function { interface: NAME, name, params: &[], results: &[I64], allocates: false }
}

pub(super) const INTERFACE: Interface =
    Interface { functions: &[function(NOW_MS), function(ELAPSED_NS)], link };

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, NOW_MS, |mut caller: Caller<'_, Guest>| -> Result<u64> {
        caller.data_mut().enter()?.now_ms()
    })?;
    linker.func_wrap(NAME, ELAPSED_NS, |mut caller: Caller<'_, Guest>| -> Result<u64> {
        caller.data_mut().enter()?.elapsed_ns()
    })?;
    Ok(())
}
