//! `config`: the filter's own configuration.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, parts};
use crate::{bindings::beamline::edge::config::Host as _, reset::guest::Guest};

const NAME: &str = "beamline:edge/config@0.1.0";
const GET: &str = "get";

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function { interface: NAME, name: GET, params: &[I32], results: &[], allocates: true }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, GET, |mut caller: Caller<'_, Guest>, ret: u32| -> Result<u64> {
        let (memory, guest) = parts(&mut caller)?;
        let config = guest.enter()?.get()?;
        let at = guest.lowering.begin(memory, ret, (8, 4))?;
        guest.lowering.bytes(at, config.as_bytes());
        guest.lower(memory)
    })?;
    Ok(())
}
