//! Kinds whose module itself is the trouble: it is not what it says, or hard to compile.

use super::{End, Kind, TRAP, kind, made};
use crate::guest::{Guest, embedded, looping, parsed};

/// One that is not what it says.
pub(super) fn shapes() -> Vec<Kind> {
    let raw = made;
    let handle = r#"(func (export "beamline:edge/request-handler@0.1.0#handle")"#;
    let realloc = r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)"#;
    let lies = |core: &str| embedded(&parsed(core));
    vec![
        raw("nothing", End::Refused, Vec::new()),
        raw("half a module", End::Refused, {
            let whole = Guest::next().build();
            whole[..whole.len() / 2].to_vec()
        }),
        raw("a picture", End::Refused, b"\x89PNG\r\n\x1a\n".to_vec()),
        raw("a magic number and nonsense", End::Refused, [&b"\0asm\x01\0\0\0"[..], &[0xff; 1000]].concat()),
        raw(
            "a handle of another type",
            End::Refused,
            lies(&format!(r#"(module (memory (export "memory") 1) {realloc} {handle} (param i64 i64)))"#)),
        ),
        raw(
            "a handle that is a memory",
            End::Refused,
            lies(
                r#"(module (memory (export "memory") (export "beamline:edge/request-handler@0.1.0#handle") 1))"#,
            ),
        ),
        raw("no handle", End::Refused, lies(&format!(r#"(module (memory (export "memory") 1) {realloc})"#))),
        raw(
            "no memory",
            End::Refused,
            lies(&format!(r#"(module {realloc} {handle} (param i32) (result i32) i32.const 0))"#)),
        ),
        raw(
            "a realloc of another type",
            End::Refused,
            lies(&format!(
                r#"(module (import "beamline:edge/config@0.1.0" "get" (func (param i32))) (memory (export "memory") 1)
                (func (export "cabi_realloc") (param i32) (result i64) unreachable) {handle} (param i32) (result i32) i32.const 0))"#
            )),
        ),
        raw(
            "an import that there is not",
            End::Refused,
            lies(&format!(
                r#"(module (import "env" "system" (func)) (memory (export "memory") 1) {handle} (param i32) (result i32) i32.const 0))"#
            )),
        ),
        raw(
            "a host function that there is not",
            End::Refused,
            lies(&format!(
                r#"(module (import "beamline:edge/config@0.1.0" "set" (func)) (memory (export "memory") 1) {handle} (param i32) (result i32) i32.const 0))"#
            )),
        ),
        raw(
            "a host function of another type",
            End::Refused,
            lies(&format!(
                r#"(module (import "beamline:edge/config@0.1.0" "get" (func (result f64))) (memory (export "memory") 1) {handle} (param i32) (result i32) i32.const 0))"#
            )),
        ),
        raw("a type that is not one", End::Refused, {
            let mut module = Guest::next().core_module();
            let name = b"component-type";
            module.extend([0, name.len() as u8 + 101, name.len() as u8]);
            module.extend(name);
            module.extend([0xab; 100]);
            module
        }),
        raw(
            "a component whose handle has another type",
            End::Refused,
            parsed(
                r#"(component (core module $m (func (export "f") (result i32) i32.const 0)) (core instance $i (instantiate $m))
                 (func $f (result u32) (canon lift (core func $i "f"))) (instance $h (export "handle" (func $f)))
                 (export "beamline:edge/request-handler@0.1.0" (instance $h)))"#,
            ),
        ),
        raw(
            "a component whose phase has no function",
            End::Refused,
            parsed(
                r#"(component (instance $h) (export "beamline:edge/request-handler@0.1.0" (instance $h)))"#,
            ),
        ),
        raw(
            "a component whose phase is a type",
            End::Refused,
            parsed(
                r#"(component (type $t (list u8)) (export "beamline:edge/request-handler@0.1.0" (type $t)))"#,
            ),
        ),
        raw(
            "a component that asks for a door",
            End::Refused,
            parsed(
                r#"(component (import "evil:host/door@1.0.0" (instance (export "open" (func (result u32))))))"#,
            ),
        ),
        raw(
            "a component that asks for a module",
            End::Refused,
            parsed(r#"(component (import "beamline:edge/http@0.1.0" (core module)))"#),
        ),
        raw("seventeen instances of a module", End::Refused, Guest::next().and_instances("(module)", 17)),
        raw("nine tables in all", End::Refused, Guest::next().and_instances("(module (table 1 funcref))", 9)),
        raw("a name of a function that is huge", TRAP, huge_name()),
    ]
}

/// A module that traps in a function whose name has 90,000 bytes, all of them `n`: about as many as names may have.
pub(crate) fn huge_name() -> Vec<u8> {
    let name = "n".repeat(90_000);
    Guest::new(&format!("(call ${name})")).items(&format!("(func ${name} (result i32) unreachable)")).build()
}

/// One that is hard to compile.
pub(super) fn compile() -> Vec<Kind> {
    let many = |n: usize, one: &str| one.repeat(n);
    let bomb = |name, items: String| kind(name, End::Contained, &Guest::next().items(&items));
    let raw = |name, module| made(name, End::Contained, module);
    let nested = |levels: usize| format!("{}{}", "(component ".repeat(levels), ")".repeat(levels));
    vec![
        bomb(
            "a function of half a million instructions",
            format!(
                "(func (param i32) (result i32) (local.get 0) {})",
                many(250_000, "(i32.add (local.get 0)) ")
            ),
        ),
        bomb("a function of a hundred thousand loops", looping()),
        bomb("forty-nine thousand locals", format!("(func (local {}))", many(49_000, "i64 "))),
        bomb(
            "locals that live across every branch",
            format!(
                "(func (param i32) (local {}) {})",
                many(2_000, "i64 "),
                (0..2_000)
                    .map(|i| format!(
                        "(if (local.get 0) (then (local.set {} (i64.add (local.get {}) (i64.const 1)))))",
                        i + 1,
                        (i * 7) % 2000 + 1
                    ))
                    .collect::<String>()
            ),
        ),
        bomb(
            "ten thousand blocks within each other",
            format!("(func {} {})", many(10_000, "block "), many(10_000, "end ")),
        ),
        bomb(
            "conditions within each other",
            format!("(func (param i32) {} {})", many(20_000, "local.get 0 if "), many(20_000, "end ")),
        ),
        bomb(
            "a jump of a hundred thousand ways",
            format!("(func (param i32) block block local.get 0 br_table {} 0 end end)", many(100_000, "1 ")),
        ),
        bomb(
            "jumps of a thousand ways out of a thousand blocks",
            format!(
                "(func (param i32) {} {} {})",
                many(1_000, "block "),
                many(
                    200,
                    &format!(
                        "local.get 0 i32.eqz if local.get 0 br_table {} 0 end ",
                        (0..1_000).map(|i| format!("{i} ")).collect::<String>()
                    )
                ),
                many(1_000, "end ")
            ),
        ),
        bomb("sixty thousand functions", many(60_000, "(func)")),
        bomb(
            "sixty thousand types",
            (0..60_000)
                .map(|i| format!("(type (func (param {})))", if i % 2 == 0 { "i32 i64" } else { "f64" }))
                .collect(),
        ),
        bomb(
            "nine hundred parameters",
            format!("(func (param {}) (result {}) unreachable)", many(900, "i64 "), many(900, "i64 ")),
        ),
        bomb("ten thousand exports", (0..10_000).map(|i| format!(r#"(func (export "e{i}"))"#)).collect()),
        bomb("an export with a name of 90,000 bytes", format!(r#"(func (export "{}"))"#, many(90_000, "e"))),
        bomb("ten thousand globals", many(10_000, "(global i64 (i64.const 1))")),
        bomb("ten thousand segments of data", many(10_000, r#"(data (i32.const 5000) "x")"#)),
        bomb(
            "elements without end",
            format!("(table 1 funcref) (func $f) (elem func {})", many(100_000, "$f ")),
        ),
        bomb(
            "vectors",
            format!(
                "(func (param v128) (result v128) (local.get 0) {})",
                many(100_000, "(i8x16.swizzle (local.get 0)) ")
            ),
        ),
        raw("components within each other", parsed(&nested(90))),
        raw(
            "components that are instantiated two by two",
            parsed(&{
                let mut text =
                    "(component $c0 (core module $m (func)) (core instance (instantiate $m)))".to_owned();
                for level in 1..24 {
                    text = format!(
                        "(component $c{level} {text} (instance (instantiate $c{0})) (instance (instantiate $c{0})))",
                        level - 1
                    );
                }
                text.replacen("(component $c23", "(component", 1)
            }),
        ),
        raw(
            "a module that is instantiated nine hundred times",
            parsed(&format!(
                "(component (core module $m (memory 1)) {})",
                many(900, "(core instance (instantiate $m))")
            )),
        ),
        raw(
            "a type that doubles thirty times",
            parsed(&{
                let mut text = "(component (type $t0 (tuple u8 u8))".to_owned();
                for level in 1..30 {
                    text += &format!("(type $t{level} (tuple $t{0} $t{0}))", level - 1);
                }
                text + ")"
            }),
        ),
    ]
}
