//! `properties`: what is known of the request beside its head.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, parts};
use crate::{bindings::beamline::edge::properties::Host as _, reset::guest::Guest};

const NAME: &str = "beamline:edge/properties@0.1.0";
const SNAPSHOT: &str = "snapshot";
/// Of `request-properties`; its fields stand where the comments below have them.
const PROPERTIES: (usize, u32) = (72, 8);

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function { interface: NAME, name: SNAPSHOT, params: &[I32], results: &[], allocates: true }],
    link,
};

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(NAME, SNAPSHOT, |mut caller: Caller<'_, Guest>, ret: u32| -> Result<u64> {
        let (memory, guest) = parts(&mut caller)?;
        let properties = guest.enter()?.snapshot()?;
        let at = guest.lowering.begin(memory, ret, PROPERTIES)?;
        let l = &mut guest.lowering;
        l.bytes(at, properties.client_address.as_bytes());
        // A u16, and two bytes of padding.
        l.half(at.at(8), properties.client_port);
        l.bytes(at.at(12), properties.request_id.as_bytes());
        l.bytes(at.at(20), properties.trace_id.as_bytes());
        l.bytes(at.at(28), properties.tenant.as_bytes());
        // Aligned to 8.
        l.word(at.at(40), properties.revision);
        l.bytes(at.at(48), properties.scheme.as_bytes());
        l.option(at.at(56), 4, properties.tls_server_name, |l, at, name| l.bytes(at, name.as_bytes()));
        guest.lower(memory)
    })?;
    Ok(())
}
