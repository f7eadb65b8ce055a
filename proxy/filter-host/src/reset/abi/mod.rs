//! The canonical ABI of `beamline:edge` for core modules: each interface is one module here and one row of
//! [`INTERFACES`].
//!
//! What a guest hands over is a number and nothing more: each pointer and length is checked against the bytes that the
//! guest has, each string for UTF-8, each handle for being the one of this call. What the host hands over is placed
//! where `cabi_realloc` says, checked in the same way. While `cabi_realloc` or the guest's tidying up runs, no
//! import may be called. Errors have the words of wasmtime's own canonical ABI, so that a tenant sees no difference.

mod buckets;
mod clock;
mod config;
mod context;
mod http;
mod kv;
mod lift;
mod log;
mod lower;
mod metrics;
mod outbound;
mod properties;
mod random;
mod response;
mod secrets;
mod upstreams;
mod verdict;

use wasmparser::ValType;
use wasmtime::{Caller, Linker};

use super::guest::Guest;
pub(super) use lift::Lift;
pub(super) use lower::{Lowering, Marks, Place, RESULT};

/// One function of an interface, as a core module imports it.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) interface: &'static str,
    pub(super) name: &'static str,
    pub(super) params: &'static [ValType],
    pub(super) results: &'static [ValType],
    /// Whether its result lies in memory that `cabi_realloc` gives. The host's function then returns the first layout
    /// to allocate, or 0.
    pub(super) allocates: bool,
}

/// One interface: its functions, and how they get into a linker.
struct Interface {
    functions: &'static [Function],
    link: fn(&mut Linker<Guest>) -> wasmtime::Result<()>,
}

const INTERFACES: &[Interface] = &[
    buckets::INTERFACE,
    clock::INTERFACE,
    config::INTERFACE,
    context::INTERFACE,
    http::INTERFACE,
    kv::INTERFACE,
    log::INTERFACE,
    metrics::INTERFACE,
    outbound::INTERFACE,
    properties::INTERFACE,
    random::INTERFACE,
    response::INTERFACE,
    secrets::INTERFACE,
    upstreams::INTERFACE,
];

/// The function that a core module imports as `module` `name`.
pub(super) fn find(module: &str, name: &str) -> Option<&'static Function> {
    INTERFACES.iter().flat_map(|i| i.functions).find(|f| f.interface == module && f.name == name)
}

/// All functions of all interfaces.
#[cfg(test)]
pub(super) fn functions() -> impl Iterator<Item = &'static Function> {
    INTERFACES.iter().flat_map(|i| i.functions)
}

/// All that a rewritten module can import.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    for interface in INTERFACES {
        (interface.link)(&mut linker)?;
    }
    lower::link(&mut linker)?;
    verdict::link(&mut linker)?;
    Ok(linker)
}

/// The guest's memory and what the host knows of the guest.
pub(super) fn parts<'a>(
    caller: &'a mut Caller<'_, Guest>,
) -> wasmtime::Result<(&'a mut [u8], &'a mut Guest)> {
    let memory = caller.data().memory()?;
    let (bytes, guest) = memory.data_and_store_mut(caller);
    let size = guest.size();
    Ok((&mut bytes[..size], guest))
}

#[cfg(test)]
mod tests {
    use wasmtime::{Module, Store};

    use super::*;

    /// A module that imports a function as the rewriter would.
    fn importing(function: &Function) -> String {
        let names = |types: &[ValType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let results = if function.allocates { "i64".into() } else { names(function.results) };
        format!(
            r#"(module (import "{}" "{}" (func (param {}) (result {results}))))"#,
            function.interface,
            function.name,
            names(function.params)
        )
    }

    #[test]
    fn each_function_of_the_table_is_linked_with_its_type_and_nothing_else_is() {
        let engine = crate::engine::compiling_core_engine().unwrap();
        let linker = linker(&engine).unwrap();
        for function in functions() {
            let module = Module::new(&engine, wat::parse_str(importing(function)).unwrap()).unwrap();
            linker.instantiate_pre(&module).unwrap_or_else(|e| panic!("{}: {e:#}", function.name));
        }
        let mut store = Store::new(&engine, Guest::default());
        for (module, name, _) in linker.iter(&mut store) {
            let of_glue = module == crate::reset::rewrite::names::HOST;
            assert!(of_glue || find(module, name).is_some(), "{module} {name} is in no interface's table");
        }
    }
}
