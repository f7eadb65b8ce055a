//! `random`: randomness from the host.

use wasmparser::ValType::I64;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface};
use crate::{bindings::beamline::edge::random::Host as _, reset::guest::Guest};

const NAME: &str = "beamline:edge/random@0.1.0";
const GET_U64: &str = "get-u64";

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function { interface: NAME, name: GET_U64, params: &[], results: &[I64], allocates: false }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, GET_U64, |mut caller: Caller<'_, Guest>| -> Result<u64> {
        caller.data_mut().enter()?.get_u64()
    })?;
    Ok(())
}
