//! `secrets`: what the manifest lets the filter read.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, Lift, Lowering, lower::OPTIONAL, parts};
use crate::{bindings::beamline::edge::secrets::Host as _, reset::guest::Guest};

const NAME: &str = "beamline:edge/secrets@0.1.0";
const GET: &str = "get";

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function { interface: NAME, name: GET, params: &[I32; 3], results: &[], allocates: true }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        GET,
        |mut caller: Caller<'_, Guest>, name: u32, len: u32, ret: u32| -> Result<u64> {
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let secret = call.get(Lift::new(memory).string(name, len)?.to_owned())?;
            let at = guest.lowering.begin(memory, ret, OPTIONAL)?;
            guest.lowering.option(at, 4, secret.as_deref(), Lowering::bytes);
            guest.lower(memory)
        },
    )?;
    Ok(())
}
