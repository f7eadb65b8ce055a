//! `log`: structured log.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result, bail};

use super::{Function, Interface, Lift, parts};
use crate::{
    bindings::beamline::edge::log::{Host as _, Level},
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/log@0.1.0";
const WRITE: &str = "write";

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function {
        interface: NAME,
        name: WRITE,
        params: &[I32, I32, I32],
        results: &[],
        allocates: false,
    }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, WRITE, |mut caller: Caller<'_, Guest>, level: u32, message: u32, len: u32| {
        let (memory, guest) = parts(&mut caller)?;
        let call = guest.enter()?;
        let level = match level {
            0 => Level::Debug,
            1 => Level::Info,
            2 => Level::Warn,
            3 => Level::Error,
            other => bail!("unexpected discriminant: {other}"),
        };
        call.write(level, Lift::new(memory).string(message, len)?.to_owned())
    })?;
    Ok(())
}
