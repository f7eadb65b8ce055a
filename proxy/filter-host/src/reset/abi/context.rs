//! `context`: what a filter remembers of a request.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, Lift, Lowering, lower::OPTIONAL, parts};
use crate::{
    bindings::beamline::edge::context::{ContextError, Host as _},
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/context@0.1.0";
const GET: &str = "get";
const SET: &str = "set";

pub(super) const INTERFACE: Interface = Interface {
    functions: &[
        Function { interface: NAME, name: GET, params: &[I32], results: &[], allocates: true },
        Function { interface: NAME, name: SET, params: &[I32; 3], results: &[], allocates: false },
    ],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, GET, |mut caller: Caller<'_, Guest>, ret: u32| -> Result<u64> {
        let (memory, guest) = parts(&mut caller)?;
        let (call, lowering) = guest.enter_lowering()?;
        call.count_call()?;
        let at = lowering.begin(memory, ret, OPTIONAL)?;
        lowering.option(at, 4, call.context.as_deref(), Lowering::bytes);
        guest.lower(memory)
    })?;
    linker.func_wrap(NAME, SET, |mut caller: Caller<'_, Guest>, value: u32, len: u32, ret: u32| {
        let (memory, guest) = parts(&mut caller)?;
        let call = guest.enter()?;
        let result = call.set(Lift::new(memory).bytes(value, len)?.to_owned())?;
        guest.lower_outcome(memory, ret, result.map_err(|ContextError::TooLarge| 0))
    })?;
    Ok(())
}
