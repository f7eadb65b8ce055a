//! Modules made for the occasion: core modules in the text format, with the type of the filters' world embedded as
//! `wit-bindgen` would.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The interface of the package `beamline:edge` and the functions of it that a guest here may call.
const IMPORTS: &str = r#"
  (import "beamline:edge/http@0.1.0" "[resource-drop]request-head" (func $drop (param i32)))
  (import "beamline:edge/http@0.1.0" "[method]request-head.path" (func $path (param i32 i32)))
  (import "beamline:edge/http@0.1.0" "[method]request-head.get" (func $get (param i32 i32 i32 i32)))
  (import "beamline:edge/http@0.1.0" "[method]request-head.get-many" (func $get-many (param i32 i32 i32 i32)))
  (import "beamline:edge/http@0.1.0" "[method]request-head.snapshot" (func $snapshot (param i32 i32)))
  (import "beamline:edge/http@0.1.0" "[method]request-head.set" (func $set (param i32 i32 i32 i32 i32 i32)))
  (import "beamline:edge/http@0.1.0" "[method]request-head.append" (func $append (param i32 i32 i32 i32 i32 i32)))
  (import "beamline:edge/config@0.1.0" "get" (func $config (param i32)))
  (import "beamline:edge/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  (import "beamline:edge/random@0.1.0" "get-u64" (func $random (result i64)))
  (import "beamline:edge/upstreams@0.1.0" "get" (func $upstream (param i32 i32 i32)))
  (import "beamline:edge/context@0.1.0" "set" (func $remember (param i32 i32 i32)))
  (import "beamline:edge/properties@0.1.0" "snapshot" (func $properties (param i32)))
  (import "beamline:edge/secrets@0.1.0" "get" (func $secret (param i32 i32 i32)))
  (import "beamline:edge/kv@0.1.0" "set" (func $kv-set (param i32 i32 i32 i32 i32 i64 i32)))
  (import "beamline:edge/buckets@0.1.0" "take" (func $take (param i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "beamline:edge/metrics@0.1.0" "count" (func $count (param i32 i32 i64 i32 i32 i32)))
  (import "beamline:edge/outbound@0.1.0" "send" (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
"#;

/// Where a guest writes its verdict: 64 bytes.
pub(crate) const AREA: u32 = 4096;

/// What `handle` ends with that says `next`, without a change.
pub(crate) const NEXT: &str = "(call $drop (local.get $head)) (i32.const 4096)";

/// Gives out memory from 64 KiB on, growing it, and traps where it cannot.
const BUMP: &str = r"
    (local $at i32) (local $end i32)
    (local.set $at (i32.and
      (i32.add (global.get $next) (i32.sub (local.get $align) (i32.const 1)))
      (i32.sub (i32.const 0) (local.get $align))))
    (local.set $end (i32.add (local.get $at) (local.get $new)))
    (block $fits (loop $more
      (br_if $fits (i32.le_u (local.get $end) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))
      unreachable))
    (global.set $next (local.get $end))
    (local.get $at)";

/// A filter to be: what is not said otherwise is as a good one has it.
#[derive(Clone)]
pub(crate) struct Guest {
    /// Its memory, table and the like.
    memory: String,
    /// What `cabi_realloc` does with `$old`, `$old-size`, `$align` and `$new`; `$next` is a global.
    realloc: String,
    /// Further functions, data and so on.
    items: String,
    /// What `handle` does with `$head`; it has the locals `$i` and `$j` and leaves the address of a verdict.
    handle: String,
}

impl Guest {
    /// One whose `handle` does this.
    pub(crate) fn new(handle: &str) -> Self {
        Self {
            memory: r#"(memory (export "memory") 1)"#.into(),
            realloc: BUMP.into(),
            items: String::new(),
            handle: handle.into(),
        }
    }

    /// One that says `next`, for what is hostile is elsewhere.
    pub(crate) fn next() -> Self {
        Self::new(&format!("(call $drop (local.get $head)) (i32.const {AREA})"))
    }

    pub(crate) fn memory(mut self, memory: &str) -> Self {
        self.memory = memory.into();
        self
    }

    pub(crate) fn realloc(mut self, realloc: &str) -> Self {
        self.realloc = realloc.into();
        self
    }

    pub(crate) fn items(mut self, items: &str) -> Self {
        self.items.push_str(items);
        self
    }

    fn core(&self) -> String {
        let Self { memory, realloc, items, handle } = self;
        format!(
            r#"(module {IMPORTS} {memory}
  (global $next (mut i32) (i32.const 65536))
  (func $realloc (export "cabi_realloc")
    (param $old i32) (param $old-size i32) (param $align i32) (param $new i32) (result i32) {realloc})
  {items}
  (func $handle (export "beamline:edge/request-handler@0.1.0#handle") (param $head i32) (result i32)
    (local $i i32) (local $j i32)
    {handle}))"#
        )
    }

    /// The module.
    pub(crate) fn build(&self) -> Vec<u8> {
        embedded(&self.core_module())
    }

    /// The component of the module, with so many instances of another core module beside.
    pub(crate) fn and_instances(&self, other: &str, n: u8) -> Vec<u8> {
        let mut component =
            ComponentEncoder::default().module(&self.build()).and_then(|encoder| encoder.encode()).unwrap();
        // Sections of a component may come in any order and more than once: a core module is one, its instances are one.
        let (core_module, core_instances) = (1, 2);
        let index = sections(&component).into_iter().filter(|id| *id == core_module).count();
        let other = parsed(other);
        component.extend([core_module, u8::try_from(other.len()).unwrap()]);
        component.extend(other);
        let instance = [0, u8::try_from(index).unwrap(), 0];
        component.extend([core_instances, 1 + 3 * n, n]);
        component.extend(instance.repeat(n.into()));
        component
    }

    /// The core module without its type.
    pub(crate) fn core_module(&self) -> Vec<u8> {
        parsed(&self.core())
    }

    /// The module in a world that exports these resources, too.
    pub(crate) fn build_in(&self, world: &str) -> Vec<u8> {
        embed(&self.core_module(), Some(world))
    }
}

/// The kinds of a module's sections.
fn sections(module: &[u8]) -> Vec<u8> {
    let (mut rest, mut kinds) = (&module[8..], Vec::new());
    while let [kind, more @ ..] = rest {
        let digits = more.iter().take_while(|byte| **byte >= 0x80).count() + 1;
        let size = (0..digits).map(|i| usize::from(more[i] & 0x7f) << (7 * i)).sum::<usize>();
        kinds.push(*kind);
        rest = &more[digits + size..];
    }
    kinds
}

/// A module from its text.
pub(crate) fn parsed(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}"))
}

/// A core module with the filters' world embedded.
pub(crate) fn embedded(core: &[u8]) -> Vec<u8> {
    embed(core, None)
}

fn embed(core: &[u8], world: Option<&str>) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    let (mut package, _) = resolve.push_dir(wit).unwrap();
    if let Some(world) = world {
        package = resolve.push_str("hostile.wit", world).unwrap();
    }
    let name = if world.is_some() { "hostile" } else { "request-filter" };
    let world = resolve.select_world(&[package], Some(name)).unwrap();
    let mut module = core.to_vec();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    module
}

/// The phases after the request's head, each with what its function takes and gives.
pub(crate) const LATER_PHASES: [(&str, &str); 6] = [
    ("whole-request", "(param i32 i32 i32) (result i32)"),
    ("request-body", "(param i32 i32 i32 i32) (result i32)"),
    ("response", "(param i32 i32) (result i32)"),
    ("whole-response", "(param i32 i32 i32 i32) (result i32)"),
    ("response-body", "(param i32 i32 i32 i32 i32) (result i32)"),
    ("finish", "(param i32 i32 i32 i32 i32 i32 i64 i64 i64 i64 i32 i32 i32)"),
];

/// A module that does something in this later phase, by a function of this type, and nothing before; `items` are what it
/// needs beside.
pub(crate) fn in_phase(phase: &str, of_type: &str, does: &str, items: &str) -> Vec<u8> {
    let world = format!(
        "package hostile:guest;
world hostile {{ include beamline:edge/request-filter@0.1.0; export beamline:edge/{phase}-handler@0.1.0; }}"
    );
    // The body is read where it asks for that.
    let first = if phase == "whole-request" { verdict(4, &[]) } else { NEXT.to_owned() };
    let export = format!(r#"(func (export "beamline:edge/{phase}-handler@0.1.0#handle") {of_type} {does})"#);
    Guest::new(&first).items(&export).items(items).build_in(&world)
}

/// What writes the case `next` (0), `route` (1), `respond` (2) or `enqueue` (3) and 32-bit words at offsets of the
/// verdict, drops the head, and leaves the verdict's address.
pub(crate) fn verdict(case: u32, words: &[(u32, u32)]) -> String {
    let stores: String = words
        .iter()
        .map(|(at, word)| format!("(i32.store (i32.const {}) (i32.const {}))\n", AREA + at, *word as i32))
        .collect();
    format!(
        "(call $drop (local.get $head)) (i32.store8 (i32.const {AREA}) (i32.const {case}))\n{stores}(i32.const {AREA})"
    )
}

/// A module that has resources of its own, whose `handle` does this before it says `next`.
pub(crate) fn with_resources(handle: &str) -> Vec<u8> {
    let world = r#"package hostile:guest;
interface things { resource thing { constructor(); } }
world hostile { include beamline:edge/request-filter@0.1.0; export things; }"#;
    Guest::new(&format!("{handle} {NEXT}"))
        .items(
            r#"(func (export "hostile:guest/things#[constructor]thing") (result i32) (call $new (i32.const 7)))
               (func (export "hostile:guest/things#[dtor]thing") (param i32))"#,
        )
        .memory(
            r#"(import "[export]hostile:guest/things" "[resource-new]thing" (func $new (param i32) (result i32)))
               (import "[export]hostile:guest/things" "[resource-drop]thing" (func $let-go (param i32)))
               (memory (export "memory") 1)"#,
        )
        .build_in(world)
}

/// A module that makes so many handles and never lets go of them.
pub(crate) fn handles_of_its_own(n: u32) -> Vec<u8> {
    with_resources(&format!(
        "(loop $l (drop (call $new (i32.const 1)))
           (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {n}))))"
    ))
}

/// A function that is small as it is written, and large when it is compiled.
pub(crate) fn looping() -> String {
    format!("(func (param i32) {})", "(loop (br_if 0 (local.get 0)))".repeat(100_000))
}

/// A module that takes its compile worker all of its memory or time.
pub(crate) fn bomb() -> Vec<u8> {
    Guest::next().items(&looping()).build()
}
