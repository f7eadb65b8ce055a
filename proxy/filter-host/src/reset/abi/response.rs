//! `http`: the response's head, of which the request phase has none. A module that exports other phases, too, may import its
//! functions; here no handle is one of theirs.

use wasmparser::ValType::I32;
use wasmtime::{Caller, FuncType, Linker, Result, ValType};

use super::{Function, Interface};
use crate::reset::guest::Guest;

const NAME: &str = "beamline:edge/http@0.1.0";

const fn function(
    name: &'static str,
    params: &'static [wasmparser::ValType],
    results: &'static [wasmparser::ValType],
) -> Function {
    Function { interface: NAME, name, params, results, allocates: false }
}

pub(super) const INTERFACE: Interface = Interface {
    functions: &[
        function("[method]response-head.status", &[I32], &[I32]),
        function("[method]response-head.get", &[I32; 4], &[]),
        function("[method]response-head.get-all", &[I32; 4], &[]),
        function("[method]response-head.get-many", &[I32; 4], &[]),
        function("[method]response-head.snapshot", &[I32; 2], &[]),
        function("[method]response-head.set-status", &[I32; 3], &[]),
        function("[method]response-head.set", &[I32; 6], &[]),
        function("[method]response-head.append", &[I32; 6], &[]),
        function("[method]response-head.remove", &[I32; 4], &[]),
        function("[resource-drop]response-head", &[I32], &[]),
    ],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    let engine = linker.engine().clone();
    for function in INTERFACE.functions {
        let numbers = |types: &[wasmparser::ValType]| types.iter().map(|_| ValType::I32).collect::<Vec<_>>();
        let ty = FuncType::new(&engine, numbers(function.params), numbers(function.results));
        linker.func_new(NAME, function.name, ty, |caller: Caller<'_, Guest>, params, _| {
            // The handle comes first in each of them.
            let handle = params.first().and_then(wasmtime::Val::i32).unwrap_or(0);
            caller.data().use_response_handle(handle.cast_unsigned())
        })?;
    }
    Ok(())
}
