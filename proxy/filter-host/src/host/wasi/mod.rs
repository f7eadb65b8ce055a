//! WASI 0.2 as a context that grants nothing: what the toolchains of other languages import, whether a filter needs it or not.
//!
//! No code here, and none that is linked, could open a file, a socket or the node's environment for a guest. A function
//! answers that there is nothing, or takes a handle that no guest can have, and ends the call. A guest has clocks, randomness
//! and, in its log, what it prints.
//!
//! A handle's number is all that the host knows of it, so that there is no table to fill: how many a guest has is bounded as
//! for any other. Each call of a function counts as one of a host function.

mod absent;
mod cli;
mod clocks;
mod io;
mod random;
mod sockets;

use wasmtime::{
    StoreContextMut,
    component::{ComponentNamedList, Lift, Linker, LinkerInstance, Lower, ResourceType},
};

pub(super) use self::cli::Printed;
use super::{CallState, Running};

/// The interfaces: those of the world `wasi:cli/imports`.
pub(crate) const INTERFACES: [&str; 27] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// The version whose functions these are. Another 0.2.x has the same or some of them; one that has more does not link where it
/// is used.
pub(crate) const VERSION: &str = "0.2.12";

/// Whether a module may import this interface.
pub(crate) fn offers(import: &str) -> bool {
    import.split_once('@').is_some_and(|(interface, version)| {
        let patch = version.strip_prefix("0.2.");
        INTERFACES.contains(&interface)
            && patch.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// Makes all of it known to `linker`.
pub(crate) fn add_to_linker(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    cli::link(linker)?;
    clocks::link(linker)?;
    io::link(linker)?;
    random::link(linker)?;
    sockets::link(linker)?;
    absent::link(linker)
}

/// An interface that is being made known.
struct Interface<'l>(LinkerInstance<'l, Running>);

impl<'l> Interface<'l> {
    fn of(linker: &'l mut Linker<Running>, name: &str) -> wasmtime::Result<Self> {
        linker.instance(&format!("{name}@{VERSION}")).map(Self)
    }

    /// A function that never waits.
    fn function<P, R>(
        &mut self,
        name: &str,
        answer: impl Fn(&mut CallState, P) -> wasmtime::Result<R> + Send + Sync + 'static,
    ) -> wasmtime::Result<()>
    where
        P: ComponentNamedList + Lift + 'static,
        R: ComponentNamedList + Lower + 'static,
    {
        self.0.func_wrap(name, move |mut cx: StoreContextMut<'_, Running>, given: P| {
            let call = cx.data_mut().call();
            call.count_call()?;
            answer(call, given)
        })
    }

    /// A kind of handle. Nothing is to be done where a guest lets go of one.
    fn resource<T: 'static>(&mut self, name: &str) -> wasmtime::Result<()> {
        self.0.resource(name, ResourceType::host::<T>(), |_, _| Ok(()))
    }

    /// Methods of a resource of which there are none: their first parameter is a handle that no guest can have. It is read
    /// first, so that nothing else that a guest hands over is read, whatever type it says that this has.
    fn absent(&mut self, names: &[&str]) -> wasmtime::Result<()> {
        names.iter().try_for_each(|name| {
            debug_assert!(name.starts_with("[method]"), "{name} has no handle first");
            let refusal = format!("{name} was called, though there is nothing that it could be called for");
            self.0.func_new(name, move |_, _, _, _| Err(wasmtime::Error::msg(refusal.clone())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_wasi_0_2_are_offered_and_no_other() {
        for offered in ["wasi:cli/environment@0.2.0", "wasi:io/poll@0.2.9", "wasi:sockets/udp@0.2.13"] {
            assert!(offers(offered), "{offered}");
        }
        for other in [
            "wasi:cli/environment",
            "wasi:cli/environment@0.2",
            "wasi:cli/environment@0.2.",
            "wasi:cli/environment@0.2.0-rc-2023-11-10",
            "wasi:cli/environment@0.3.0",
            "wasi:cli/environment@1.0.2.0",
            "wasi:cli/run@0.2.0",
            "wasi:http/outgoing-handler@0.2.0",
            "evil:cli/environment@0.2.0",
        ] {
            assert!(!offers(other), "{other}");
        }
    }

    /// Else a guest could have the host read what takes it long, or much memory.
    #[test]
    fn what_takes_no_handle_first_has_the_type_that_it_has() {
        let engine = crate::engine::compiling_engine().unwrap();
        let linker = crate::engine::linker(&engine).unwrap();
        for (interface, function) in
            [("filesystem/types", "filesystem-error-code"), ("sockets/network", "network-error-code")]
        {
            for parameter in ["(list u8)", "u32"] {
                let text = format!(
                    r#"(component (import "wasi:{interface}@0.2.0" (instance
                        (export "{function}" (func (param "err" {parameter}) (result bool))))))"#
                );
                let component =
                    wasmtime::component::Component::new(&engine, wat::parse_str(&text).unwrap()).unwrap();
                let refused = linker.instantiate_pre(&component).err();
                assert!(refused.is_some(), "{function} of {parameter}");
            }
        }
    }

    /// By a module that imports every function of WASI's own description, which comes with the adapter for its first version.
    #[test]
    fn every_function_of_wasi_is_there_and_has_its_type() {
        use wit_component::{
            ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata, metadata,
        };
        use wit_parser::{LiftLowerAbi, ManglingAndAbi};

        let (_, wasi) = metadata::decode(crate::inspect::ADAPTER).unwrap();
        let abi = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);
        let mut module = dummy_module(&wasi.resolve, wasi.world, abi);
        embed_component_metadata(&mut module, &wasi.resolve, wasi.world, StringEncoding::UTF8, false)
            .unwrap();
        let component = ComponentEncoder::default().module(&module).unwrap().encode().unwrap();

        let (imports, _) = crate::inspect::interfaces(&component).unwrap();
        let mut all: Vec<_> = imports.iter().map(|import| import.split_once('@').unwrap()).collect();
        let mut known = INTERFACES.map(|interface| (interface, VERSION));
        all.sort_unstable();
        known.sort_unstable();
        assert_eq!(all, known);
        let engine = crate::engine::compiling_engine().unwrap();
        let linker = crate::engine::linker(&engine).unwrap();
        let component = wasmtime::component::Component::new(&engine, &component).unwrap();
        linker.instantiate_pre(&component).unwrap();
    }

    #[test]
    fn the_reference_page_names_each_interface() {
        let page = include_str!("../../../../../docs/reference/filter-interface.md");
        let missing: Vec<_> = INTERFACES
            .iter()
            .filter(|interface| {
                let name = interface.strip_prefix("wasi:").unwrap();
                !page.contains(&format!("`{name}`"))
            })
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
