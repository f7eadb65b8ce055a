//! `upstreams`: how the tenant's upstreams fare.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, Lift, parts};
use crate::{
    bindings::beamline::edge::upstreams::{Host as _, State},
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/upstreams@0.1.0";
const GET: &str = "get";
/// Of `option<status>`: the status stands at 8, its queue depth at 16.
const STATUS: (usize, u32) = (24, 8);

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function {
        interface: NAME,
        name: GET,
        params: &[I32, I32, I32],
        results: &[],
        allocates: false,
    }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, GET, |mut caller: Caller<'_, Guest>, name: u32, len: u32, ret: u32| {
        let (memory, guest) = parts(&mut caller)?;
        let call = guest.enter()?;
        let name = Lift::new(memory).string(name, len)?.to_owned();
        let status = call.get(name)?;
        let at = guest.lowering.begin(memory, ret, STATUS)?;
        guest.lowering.option(at, 8, status, |l, at, status| {
            let state = match status.state {
                State::Ready => 0,
                State::Degraded => 1,
                State::Down => 2,
            };
            l.byte(at, state);
            l.word(at.at(8), status.queue_depth);
        });
        guest.lower(memory)?;
        Ok(())
    })?;
    Ok(())
}
