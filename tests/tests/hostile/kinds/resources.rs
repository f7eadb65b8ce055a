//! Kinds that want more time or memory than there is, in each phase, or before they are asked anything.

use super::{End, Kind, MEMORY, SLOW, TRAP, first, kind, made};
use crate::guest::{Guest, LATER_PHASES, in_phase};

/// One that needs more time than there is.
pub(super) fn time() -> Vec<Kind> {
    let rest = r#"(func (export "cabi_post_beamline:edge/request-handler@0.1.0#handle") (param i32)"#;
    vec![
        kind("an endless loop", SLOW, &first("(loop $l (br $l))")),
        kind(
            "an endless loop of host calls",
            End::Fails(&["filter-timeout", "filter-host-calls"]),
            &first("(loop $l (drop (call $random)) (br $l))"),
        ),
        kind(
            "an endless loop of copies of the head",
            End::Fails(&["filter-timeout", "filter-memory", "filter-host-calls"]),
            &first("(loop $l (call $snapshot (local.get $head) (i32.const 2048)) (br $l))"),
        ),
        kind(
            "an endless loop of changes of the head",
            End::Fails(&["filter-timeout", "filter-host-calls"]),
            &first(
                // Each of them is made: else it traps.
                r"(memory.fill (i32.const 8192) (i32.const 97) (i32.const 30000))
                  (loop $l
                    (call $set (local.get $head) (i32.const 1024) (i32.const 3) (i32.const 8192) (i32.const 30000) (i32.const 2048))
                    (if (i32.load8_u (i32.const 2048)) (then unreachable))
                    (br $l))",
            )
            .items(r#"(data (i32.const 1024) "x-a")"#),
        ),
        kind(
            "memory filled over and over by one instruction",
            SLOW,
            &first(
                "(drop (memory.grow (i32.const 60))) (loop $l (memory.fill (i32.const 65536) (i32.const 1) (i32.const 3900000)) (br $l))",
            ),
        ),
        kind(
            "a time-out after the verdict",
            SLOW,
            &Guest::next().items(&format!("{rest} (loop $l (br $l)))")),
        ),
        kind("a trap after the verdict", TRAP, &Guest::next().items(&format!("{rest} unreachable)"))),
        kind("endless recursion", TRAP, &first("(call $again)").items("(func $again (call $again) (call $again))")),
        kind(
            "endless recursion through a table",
            TRAP,
            &first("(call $again)").items(
                "(table 1 funcref) (elem (i32.const 0) func $again) (func $again (call_indirect (i32.const 0)) (call_indirect (i32.const 0)))",
            ),
        ),
        kind(
            "recursion with large frames",
            TRAP,
            &first("(drop (call $again (i64.const 0)))").items(&format!(
                "(func $again (param i64) (result i64) (local {}) {} (i64.add (call $again (local.get 0)) (local.get 900)))",
                "i64 ".repeat(1000),
                (1..1000).map(|i| format!("(local.set {i} (i64.add (local.get {}) (i64.const {i})))", i - 1)).collect::<String>()
            )),
        ),
    ]
}

/// One that needs more memory, tables or text than there is.
pub(super) fn memory() -> Vec<Kind> {
    let with_memory = |memory: &str| first("").memory(memory);
    vec![
        kind(
            "memory that grows without end",
            MEMORY,
            &first("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"),
        ),
        kind(
            "memory that grows at once",
            MEMORY,
            &first("(drop (memory.grow (i32.const 65000))) (i32.store (i32.const 1000000000) (i32.const 1))"),
        ),
        kind("a memory that begins beyond its limit", MEMORY, &with_memory(r#"(memory (export "memory") 200)"#)),
        kind("a memory of 4 GiB", End::Refused, &with_memory(r#"(memory (export "memory") 65536)"#)),
        kind("several memories", End::Refused, &with_memory(r#"(memory (export "memory") 1) (memory 1)"#)),
        kind("a hundred memories", End::Refused, &with_memory(&format!(r#"(memory (export "memory") 1) {}"#, "(memory 1)".repeat(99)))),
        kind("a memory of 64 bits", End::Refused, &with_memory(r#"(memory (export "memory") i64 1)"#)),
        kind("a shared memory", End::Refused, &with_memory(r#"(memory (export "memory") 1 2 shared)"#)),
        kind(
            "a table that grows without end",
            TRAP,
            &first("(loop $l (br_if $l (i32.ne (table.grow (ref.null func) (i32.const 100)) (i32.const -1)))) unreachable")
                .items("(table 1 funcref)"),
        ),
        kind("a table that begins beyond its limit", End::Refused, &first("").items("(table 1000000 funcref)")),
        kind("a hundred tables", End::Refused, &first("").items(&"(table 1 funcref)".repeat(100))),
        kind(
            "a table filled over and over",
            SLOW,
            &first("(loop $l (table.fill (i32.const 0) (ref.null func) (i32.const 20000)) (br $l))")
                .items("(table 20000 funcref)"),
        ),
        kind(
            "data beyond the memory",
            TRAP,
            &first("").items(r#"(data (i32.const 65530) "more than is left")"#),
        ),
        kind(
            "giant data",
            End::Harmless,
            &first("").memory(r#"(memory (export "memory") 60)"#).items(&format!(r#"(data (i32.const 100000) "{}")"#, "x".repeat(3_500_000))),
        ),
        kind(
            "one huge message",
            End::Harmless,
            &first("(call $log (i32.const 1) (i32.const 0) (i32.const 2000000))").memory(r#"(memory (export "memory") 40)"#),
        ),
        kind(
            "messages without end",
            End::Fails(&["filter-timeout", "filter-host-calls"]),
            &first("(loop $l (call $log (i32.const 3) (i32.const 0) (i32.const 100)) (br $l))"),
        ),
        kind(
            "empty messages",
            End::Harmless,
            &first(
                "(loop $l (call $log (i32.const 0) (i32.const 0) (i32.const 0)) (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5000))))",
            ),
        ),
    ]
}

/// One that does it before it is asked anything.
pub(super) fn start() -> Vec<Kind> {
    let starts = |what: &str| Guest::next().items(&format!("(func $begin {what}) (start $begin)"));
    vec![
        kind("a start that loops", SLOW, &starts("(loop $l (br $l))")),
        kind("a start that traps", TRAP, &starts("unreachable")),
        kind("a start that recurses", TRAP, &starts("(call $begin)")),
        kind(
            "a start that takes memory",
            MEMORY,
            &starts("(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"),
        ),
        kind("a start that calls the host", End::Contained, &starts("(drop (call $random))")),
        kind("a start that names a head", TRAP, &starts("(call $snapshot (i32.const 1) (i32.const 2048))")),
    ]
}

/// One that fails in a phase after the request's head.
pub(super) fn phases() -> Vec<Kind> {
    let grows = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable";
    let mut kinds = Vec::new();
    for (phase, of_type) in LATER_PHASES {
        // Whoever sent the request has its answer before the last phase.
        let end = |end| match end {
            _ if phase == "finish" => End::Harmless,
            End::Fails(problems) if phase == "response-body" => End::FailsLate(problems),
            end => end,
        };
        let mut one = |what: &str, ends, does: &str| {
            kinds.push(made(&format!("{what} in {phase}"), end(ends), in_phase(phase, of_type, does, "")));
        };
        one("a trap", TRAP, "unreachable");
        one("an endless loop", SLOW, "(loop $l (br $l)) unreachable");
        one("memory without end", MEMORY, grows);
        if phase != "finish" {
            one("a verdict beyond the memory", TRAP, "(i32.const 0x7ffffff8)");
        }
    }
    kinds
}
