//! The kinds of hostile module, and what becomes of each.

use std::net::SocketAddr;

use crate::guest::{
    AREA, Guest, LATER_PHASES, NEXT, embedded, handles_of_its_own, in_phase, looping, parsed, verdict,
    with_resources,
};

/// What must come of a module.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The node does not take it.
    Refused,
    /// Each request is answered by the tenant's origin, as if the filter had done nothing.
    Harmless,
    /// Each request is queued, as the filter wanted.
    Queued,
    /// Each request is answered `503` with one of these problems.
    Fails(&'static [&'static str]),
    /// Each request's response is broken off, for its head was sent before the filter failed.
    BrokenOff,
    /// It may be taken or not; then each request is answered by the origin or `503`.
    Contained,
}

/// One kind of hostile module.
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) module: Vec<u8>,
    pub(crate) end: End,
}

const TRAP: End = End::Fails(&["filter-trap"]);
const SLOW: End = End::Fails(&["filter-timeout"]);
const MEMORY: End = End::Fails(&["filter-memory"]);
const VERDICT: End = End::Fails(&["filter-verdict"]);

/// Every kind. They may send requests to this origin.
pub(crate) fn all(origin: SocketAddr) -> Vec<Kind> {
    let groups = [
        time(),
        memory(),
        start(),
        realloc(),
        handles(),
        strings(),
        heads(),
        verdicts(),
        phases(),
        host_functions(),
        outbound(origin),
        shapes(),
        compile(),
    ];
    groups.into_iter().flatten().collect()
}

fn kind(name: &str, end: End, guest: &Guest) -> Kind {
    made(name, end, guest.build())
}

fn made(name: &str, end: End, module: Vec<u8>) -> Kind {
    Kind { name: name.to_owned(), module, end }
}

/// A guest whose `handle` does this first, then drops the head and says `next`.
fn first(what: &str) -> Guest {
    Guest::new(&format!("{what} {NEXT}"))
}

/// One that needs more time than there is.
fn time() -> Vec<Kind> {
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
fn memory() -> Vec<Kind> {
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
fn start() -> Vec<Kind> {
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

/// One that gives the host bad places to write to.
fn realloc() -> Vec<Kind> {
    let gives = |realloc: &str| first("(call $path (local.get $head) (i32.const 2048))").realloc(realloc);
    vec![
        kind("a realloc beyond the memory", TRAP, &gives("(i32.const 0x7ffffff0)")),
        kind("a realloc at the last byte there can be", TRAP, &gives("(i32.const -1)")),
        kind(
            "a realloc across the memory's end",
            TRAP,
            &gives("(i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1))"),
        ),
        kind(
            "a misaligned realloc",
            TRAP,
            &first("(call $get-many (local.get $head) (i32.const 1024) (i32.const 1) (i32.const 2048))")
                .realloc("(i32.const 8193)"),
        ),
        kind("a realloc that gives null", End::Harmless, &gives("(i32.const 0)")),
        kind("a realloc over the guest's own data", End::Harmless, &gives("(i32.const 4104)")),
        kind("a realloc that traps", TRAP, &gives("unreachable")),
        kind("a realloc that loops", SLOW, &gives("(loop $l (br $l)) unreachable")),
        kind(
            "a realloc that recurses",
            TRAP,
            &gives("(call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1))"),
        ),
        kind("a realloc that calls the host", TRAP, &gives("(drop (call $random)) (i32.const 8192)")),
        kind(
            "a realloc that grows memory",
            MEMORY,
            &gives("(drop (memory.grow (i32.const 10000))) unreachable"),
        ),
    ]
}

/// One that abuses handles.
fn handles() -> Vec<Kind> {
    let own = |handle: &str| Guest::new(&format!("{handle} (i32.const {AREA})"));
    vec![
        kind("a head that is kept", TRAP, &own("")),
        kind(
            "a head that is dropped twice",
            TRAP,
            &own("(call $drop (local.get $head)) (call $drop (local.get $head))"),
        ),
        kind(
            "a head that is used after it was dropped",
            TRAP,
            &own("(call $drop (local.get $head)) (call $snapshot (local.get $head) (i32.const 2048))"),
        ),
        kind("the handle zero", TRAP, &first("(call $snapshot (i32.const 0) (i32.const 2048))")),
        kind("a forged handle", TRAP, &first("(call $snapshot (i32.const 1234) (i32.const 2048))")),
        kind("the highest handle", TRAP, &first("(call $snapshot (i32.const -1) (i32.const 2048))")),
        kind(
            "every handle in turn",
            TRAP,
            &first(
                "(loop $l (call $snapshot (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 2048)) (br $l))",
            ),
        ),
        made(
            "handles without end",
            TRAP,
            with_resources("(loop $l (drop (call $new (i32.const 1))) (br $l))"),
        ),
        made("handles that are never let go", End::Harmless, handles_of_its_own(500)),
        made(
            "a handle of its own that is dropped twice",
            TRAP,
            with_resources(
                "(local.set $i (call $new (i32.const 1))) (call $let-go (local.get $i)) (call $let-go (local.get $i))",
            ),
        ),
    ]
}

/// One that hands over what is no text or list.
fn strings() -> Vec<Kind> {
    let get = |ptr: &str, len: &str| {
        first(&format!("(call $get (local.get $head) (i32.const {ptr}) (i32.const {len}) (i32.const 2048))"))
    };
    vec![
        kind("a name beyond the memory", TRAP, &get("1000000000", "4")),
        kind("a name of 2^31 bytes", TRAP, &get("0", "0x80000000")),
        kind("a name of 2^32 - 1 bytes", TRAP, &get("0", "-1")),
        kind(
            "a name that is not UTF-8",
            TRAP,
            &get("1024", "4").items(r#"(data (i32.const 1024) "\ff\fe\c0\80")"#),
        ),
        kind(
            "a name that is half a character",
            TRAP,
            &get("1024", "1").items(r#"(data (i32.const 1024) "\e2\82\ac")"#),
        ),
        kind("a name of zero bytes", End::Harmless, &get("0", "0")),
        kind(
            "a name of three megabytes",
            End::Harmless,
            &get("0", "3000000").memory(r#"(memory (export "memory") 60)"#),
        ),
        kind(
            "a message that is not UTF-8",
            TRAP,
            &first("(call $log (i32.const 1) (i32.const 1024) (i32.const 2))")
                .items(r#"(data (i32.const 1024) "\c3\28")"#),
        ),
        kind(
            "a level that there is not",
            TRAP,
            &first("(call $log (i32.const 77) (i32.const 0) (i32.const 1))"),
        ),
        kind(
            "an answer written beyond the memory",
            TRAP,
            &first("(call $path (local.get $head) (i32.const 0x7ffffff0))"),
        ),
        kind(
            "an answer written to a crooked place",
            TRAP,
            &first("(call $path (local.get $head) (i32.const 2049))"),
        ),
        kind(
            "2^31 names",
            TRAP,
            &first(
                "(call $get-many (local.get $head) (i32.const 0) (i32.const 0x80000000) (i32.const 2048))",
            ),
        ),
        kind(
            "names that would be a terabyte in the host",
            TRAP,
            &first(
                r"(drop (memory.grow (i32.const 55)))
                  (loop $l
                    (i32.store (i32.add (i32.const 65536) (local.get $i)) (i32.const 0))
                    (i32.store (i32.add (i32.const 65540) (local.get $i)) (i32.const 1000000))
                    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 3000000))))
                  (call $get-many (local.get $head) (i32.const 65536) (i32.const 375000) (i32.const 2048))",
            ),
        ),
        kind(
            "the status of an upstream that there is not",
            End::Harmless,
            &first("(call $upstream (i32.const 1024) (i32.const 9) (i32.const 2048))")
                .items(r#"(data (i32.const 1024) "\00\0d\0a../..\7f")"#)
                .realloc("unreachable"),
        ),
    ]
}

/// One that writes what does not belong into a head. It traps unless each change is refused.
fn heads() -> Vec<Kind> {
    let text = |bytes: &str| bytes.bytes().map(|b| format!("\\{b:02x}")).collect::<String>();
    let change = |call: &str, name: &str, value: &str| {
        first(&format!(
            "(call ${call} (local.get $head) (i32.const 1024) (i32.const {}) (i32.const 3072) (i32.const {}) (i32.const 2048))
             (if (i32.eqz (i32.load8_u (i32.const 2048))) (then unreachable))",
            name.len(),
            value.len()
        ))
        .items(&format!(
            r#"(data (i32.const 1024) "{}") (data (i32.const 3072) "{}")"#,
            text(name),
            text(value)
        ))
    };
    let refused = |title, name: &str, value: &str| {
        [
            kind(title, End::Harmless, &change("set", name, value)),
            kind(title, End::Harmless, &change("append", name, value)),
        ]
    };
    [
        refused("a value with a line of its own", "x-a", "1\r\nx-evil: 1"),
        refused("a value with a bare line feed", "x-a", "1\nx-evil: 1"),
        refused("a value with NUL", "x-a", "1\0x-evil"),
        refused("a name with a line of its own", "x-a: 1\r\nx-evil", "1"),
        refused("a name with a colon", "x-evil:", "1"),
        refused("a name with a space", "x-evil x", "1"),
        refused("a name that is no ASCII", "x-\u{e9}vil", "1"),
        refused("a pseudo field", ":path", "/evil"),
        refused("another pseudo field", ":authority", "evil.test"),
        refused("framing", "transfer-encoding", "chunked"),
        refused("more framing", "Content-Length", "100000"),
        refused("a hop-by-hop field", "connection", "x-evil"),
        refused("an upgrade", "upgrade", "h2c"),
        refused("another host", "HOST", "evil.test"),
        refused("another client", "x-forwarded-for", "10.0.0.1"),
        refused("a head of the trace", "traceparent", "00-0-0-00"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// One whose verdict is nonsense.
fn verdicts() -> Vec<Kind> {
    // Texts that verdicts point to, and fields: the addresses and lengths of a name and a value.
    let text = |at: u32, text: &str| format!(r#"(data (i32.const {at}) "{text}")"#);
    let field = |at, words: [u32; 4]| {
        let bytes: String =
            words.iter().flat_map(|w| w.to_le_bytes()).map(|b| format!("\\{b:02x}")).collect();
        text(at, &bytes)
    };
    let data = [
        text(1024, "origin"),
        // 15 bytes.
        text(1040, "evil\\0d\\0ax-evil: 1"),
        text(1072, "/a\\0d\\0ab"),
        text(1088, "x-evil"),
        text(1136, "transfer-encoding"),
        text(1200, "queues"),
        field(1104, [1088, 6, 1040, 15]),
        field(1168, [1136, 17, 1024, 6]),
        field(1184, [1088, 6, 1024, 6]),
    ]
    .concat();
    let says = |case, words: &[(u32, u32)]| Guest::new(&verdict(case, words)).items(&data);
    let raw = |handle: &str| Guest::new(&format!("(call $drop (local.get $head)) {handle}"));
    let large = r#"(memory (export "memory") 60)"#;
    let big = |case, words: &[(u32, u32)]| says(case, words).memory(large);
    let after = |before: &str, case, words: &[(u32, u32)]| {
        Guest::new(&format!("{before} {}", verdict(case, words))).items(&data).memory(large)
    };
    // So many times the same field, from 200,000 on.
    let fields = |n: u32| {
        format!(
            "(loop $l
               (memory.copy (i32.add (i32.const 200000) (local.get $i)) (i32.const 1184) (i32.const 16))
               (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 16))) (i32.const {}))))",
            n * 16
        )
    };
    // An upstream's name for `route` and `enqueue`.
    let (origin, queues) = ([(8, 1024), (12, 6)], [(8, 1200), (12, 6)]);
    let with = |more: &[(u32, u32)]| [&origin[..], more].concat();
    let queued = |more: &[(u32, u32)]| [&queues[..], more].concat();
    vec![
        kind("a verdict beyond the memory", TRAP, &raw("(i32.const 0x7ffffff8)")),
        kind("a verdict across the memory's end", TRAP, &raw("(i32.const 65528)")),
        kind("a verdict at a crooked place", TRAP, &raw("(i32.const 4097)")),
        kind("a verdict at the last byte there can be", TRAP, &raw("(i32.const -1)")),
        kind("a wish for a body that no phase of it reads", VERDICT, &says(4, &[])),
        kind("a verdict that there is not", TRAP, &says(5, &[])),
        kind("the verdict 255", TRAP, &says(255, &[])),
        kind("the status 0", VERDICT, &says(2, &[(8, 0)])),
        kind("the status 99", VERDICT, &says(2, &[(8, 99)])),
        kind("the status 101", VERDICT, &says(2, &[(8, 101)])),
        kind("the status 65535", VERDICT, &says(2, &[(8, 65535)])),
        kind("a body of 2^31 bytes", TRAP, &says(2, &[(8, 200), (20, 0), (24, 0x8000_0000)])),
        kind("a body beyond the memory", TRAP, &says(2, &[(8, 200), (20, 65000), (24, 65000)])),
        kind("2^31 fields", TRAP, &says(2, &[(8, 200), (12, 0), (16, 0x8000_0000)])),
        kind("2^28 fields, 2^32 bytes in all", TRAP, &says(2, &[(8, 200), (12, 0), (16, 0x1000_0000)])),
        kind("fields beyond the memory", TRAP, &says(2, &[(8, 200), (12, 65520), (16, 1000)])),
        kind("a field with a line of its own", VERDICT, &says(2, &[(8, 200), (12, 1104), (16, 1)])),
        kind("framing in an answer", VERDICT, &says(2, &[(8, 200), (12, 1168), (16, 1)])),
        kind(
            "as many fields as a head may have, and one more",
            VERDICT,
            &after(&fields(101), 2, &[(8, 200), (12, 200_000), (16, 101)]),
        ),
        kind(
            "as many fields as a head may have",
            End::Harmless,
            &after(&fields(100), 2, &[(8, 200), (12, 200_000), (16, 100)]),
        ),
        kind("fifty thousand empty fields", VERDICT, &big(2, &[(8, 200), (12, 200_000), (16, 50_000)])),
        kind("an upstream that there is not", VERDICT, &says(1, &[(8, 1040), (12, 15)])),
        kind("an upstream without a name", VERDICT, &says(1, &[])),
        kind(
            "an upstream whose name has three megabytes",
            VERDICT,
            &big(1, &[(8, 100_000), (12, 3_000_000)]),
        ),
        kind("a path with a line of its own", VERDICT, &says(1, &with(&[(16, 1), (20, 1072), (24, 5)]))),
        kind(
            "a path of three megabytes",
            VERDICT,
            &after(
                "(memory.fill (i32.const 100000) (i32.const 47) (i32.const 3000000))",
                1,
                &with(&[(16, 1), (20, 100_000), (24, 3_000_000)]),
            ),
        ),
        kind("a host with a line of its own", VERDICT, &says(1, &with(&[(28, 1), (32, 1040), (36, 15)]))),
        kind("an option that is neither", TRAP, &says(1, &with(&[(16, 2)]))),
        kind("an ordering key without bytes", VERDICT, &says(3, &with(&[(16, 1), (20, 1024), (24, 0)]))),
        kind("an ordering key of 4,000 bytes", VERDICT, &says(3, &with(&[(16, 1), (20, 8192), (24, 4000)]))),
        kind("a queue that is not to be had", End::Fails(&["not-queueable"]), &says(3, &origin)),
        kind("a queue that is to be had", End::Queued, &says(3, &queues)),
        kind(
            "an expiry without end",
            End::Queued,
            &says(3, &queued(&[(48, 1), (56, u32::MAX), (60, u32::MAX)])),
        ),
        kind(
            "a delay without end",
            End::Fails(&["not-queueable"]),
            &says(
                3,
                &queued(&[(32, 1), (40, u32::MAX), (44, u32::MAX), (48, 1), (56, u32::MAX), (60, u32::MAX)]),
            ),
        ),
    ]
}

/// One that fails in a phase after the request's head.
fn phases() -> Vec<Kind> {
    let grows = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable";
    let mut kinds = Vec::new();
    for (phase, of_type) in LATER_PHASES {
        // Whoever sent the request has its answer before the last phase.
        let end = |end| if phase == "finish" { End::Harmless } else { end };
        // What fails in a response's body later than at once has sent its head.
        let slow = if phase == "response-body" { End::BrokenOff } else { SLOW };
        let mut one = |what: &str, ends, does: &str| {
            kinds.push(made(&format!("{what} in {phase}"), end(ends), in_phase(phase, of_type, does, "")));
        };
        one("a trap", TRAP, "unreachable");
        one("an endless loop", slow, "(loop $l (br $l)) unreachable");
        one("memory without end", MEMORY, grows);
        if phase != "finish" {
            one("a verdict beyond the memory", TRAP, "(i32.const 0x7ffffff8)");
        }
    }
    kinds
}

/// Traps unless the host refused what was asked for last.
const REFUSED: &str = "(if (i32.eqz (i32.load8_u (i32.const 2048))) (then unreachable))";
/// A step of a loop that goes on for ever.
const ENDLESSLY: &str = "(local.set $i (i32.add (local.get $i) (i32.const 1))) (br $l)";
/// What becomes of such loops of host calls.
const ENDLESS: End = End::Fails(&["filter-timeout", "filter-host-calls"]);

/// One that wants more of what the host keeps, counts or tells than there is.
fn host_functions() -> Vec<Kind> {
    let large = r#"(memory (export "memory") 40)"#;
    vec![
        // Keys of one to a hundred bytes, each with 60,000 bytes.
        kind(
            "more keys and values than there is room for",
            End::Harmless,
            &first(&format!(
                "(loop $l
                   (local.set $i (i32.add (local.get $i) (i32.const 1)))
                   (call $kv-set (i32.const 0) (local.get $i) (i32.const 4096) (i32.const 60000) (i32.const 0) (i64.const 0) (i32.const 2048))
                   (br_if $l (i32.lt_u (local.get $i) (i32.const 100))))
                 {REFUSED}"
            )),
        ),
        kind(
            "keys and values written without end",
            ENDLESS,
            &first(&format!(
                "(loop $l
                   (call $kv-set (i32.const 0) (i32.rem_u (local.get $i) (i32.const 256)) (i32.const 0) (i32.const 100) (i32.const 1) (i64.const 1) (i32.const 2048))
                   {ENDLESSLY})"
            )),
        ),
        kind(
            "a key of a megabyte",
            End::Harmless,
            &first(&format!(
                "(call $kv-set (i32.const 65536) (i32.const 1000000) (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0) (i32.const 2048)) {REFUSED}"
            ))
            .memory(large),
        ),
        kind(
            "a time to live that is neither there nor not",
            TRAP,
            &first(
                "(call $kv-set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 2) (i64.const 0) (i32.const 2048))",
            ),
        ),
        kind(
            "token buckets without end",
            ENDLESS,
            &first(&format!(
                "(loop $l
                   (call $take (i32.const 0) (i32.rem_u (local.get $i) (i32.const 100)) (i32.const 0)
                     (i32.rem_u (i32.div_u (local.get $i) (i32.const 100)) (i32.const 100))
                     (i32.const 1) (i32.const 1) (i32.const 86400000) (i32.const 1) (i32.const 2048))
                   {ENDLESSLY})"
            )),
        ),
        kind(
            "a token bucket that never fills",
            End::Harmless,
            &first(&format!(
                "(call $take (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 1) (i32.const 0) (i32.const -1) (i32.const -1) (i32.const 2048)) {REFUSED}"
            )),
        ),
        kind(
            "twenty thousand labels",
            End::Harmless,
            &first(&format!(
                "(call $count (i32.const 1024) (i32.const 4) (i64.const 1) (i32.const 65536) (i32.const 20000) (i32.const 2048)) {REFUSED}"
            ))
            .memory(large)
            .items(r#"(data (i32.const 1024) "seen")"#),
        ),
        kind(
            "2^31 labels",
            TRAP,
            &first(
                "(call $count (i32.const 1024) (i32.const 4) (i64.const 1) (i32.const 0) (i32.const 0x80000000) (i32.const 2048))",
            ),
        ),
        kind(
            "a label of a megabyte",
            End::Contained,
            &first(
                "(i32.store (i32.const 3072) (i32.const 1024)) (i32.store (i32.const 3076) (i32.const 4))
                 (i32.store (i32.const 3080) (i32.const 65536)) (i32.store (i32.const 3084) (i32.const 1000000))
                 (call $count (i32.const 1024) (i32.const 4) (i64.const 1) (i32.const 3072) (i32.const 1) (i32.const 2048))",
            )
            .memory(large)
            .items(r#"(data (i32.const 1024) "seen")"#),
        ),
        // A value of each length, of 100 names.
        kind(
            "series without end",
            ENDLESS,
            &first(&format!(
                "(memory.fill (i32.const 1024) (i32.const 97) (i32.const 1000))
                 (loop $l
                   (i32.store (i32.const 3072) (i32.const 1024)) (i32.store (i32.const 3076) (i32.const 4))
                   (i32.store (i32.const 3080) (i32.const 1024)) (i32.store (i32.const 3084) (i32.rem_u (local.get $i) (i32.const 1000)))
                   (call $count (i32.const 1024) (i32.rem_u (local.get $i) (i32.const 100)) (i64.const -1) (i32.const 3072) (i32.const 1) (i32.const 2048))
                   {ENDLESSLY})"
            )),
        ),
        kind(
            "more remembered of a request than may be",
            End::Harmless,
            &first(&format!("(call $remember (i32.const 0) (i32.const 60000) (i32.const 2048)) {REFUSED}")),
        ),
        kind(
            "what is remembered changed without end",
            ENDLESS,
            &first(&format!(
                "(loop $l (call $remember (i32.const 0) (i32.const 4096) (i32.const 2048)) {ENDLESSLY})"
            )),
        ),
        kind(
            "what is known of the request asked without end",
            End::Fails(&["filter-timeout", "filter-memory", "filter-host-calls"]),
            &first(&format!("(loop $l (call $properties (i32.const 2048)) {ENDLESSLY})")),
        ),
        kind(
            "another's secret",
            End::Harmless,
            &first(
                "(call $secret (i32.const 1024) (i32.const 3) (i32.const 2048)) (if (i32.load8_u (i32.const 2048)) (then unreachable))",
            )
            .items(r#"(data (i32.const 1024) "key")"#),
        ),
    ]
}

/// One that sends requests of its own.
fn outbound(origin: SocketAddr) -> Vec<Kind> {
    let never = format!("http://{origin}/hang");
    let items = format!(
        r#"(data (i32.const 1024) "GET") (data (i32.const 1040) "{never}") (data (i32.const 1200) "http://elsewhere.test/")
           (data (i32.const 1300) "x-a") (data (i32.const 1310) "1\0d\0ax-evil: 1")
           (data (i32.const 1344) "\14\05\00\00\03\00\00\00\1e\05\00\00\0c\00\00\00")"#
    );
    // With so many fields and bytes of a body, for as long as a call may take.
    let send = |(url, len): (u32, usize), fields: u32, body: u32| {
        format!(
            "(call $send (i32.const 1024) (i32.const 3) (i32.const {url}) (i32.const {len}) (i32.const 1344) (i32.const {fields})
               (i32.const 65536) (i32.const {body}) (i32.const 1) (i32.const -1) (i32.const 2048))"
        )
    };
    let (allowed, elsewhere) = ((1040, never.len()), (1200, 22));
    let guest = |does: &str| first(does).items(&items).memory(r#"(memory (export "memory") 50)"#);
    vec![
        kind(
            "a request of its own that is never answered",
            SLOW,
            &guest(&format!("{} (loop $l (br $l))", send(allowed, 0, 0))),
        ),
        kind(
            "a request of its own to whom it may not send one",
            End::Harmless,
            &guest(&format!("{} {REFUSED}", send(elsewhere, 0, 0))),
        ),
        kind(
            "a request of its own with a field that has a line of its own",
            End::Harmless,
            &guest(&format!("{} {REFUSED}", send(allowed, 1, 0))),
        ),
        kind(
            "a request of its own with a body of three megabytes",
            End::Harmless,
            &guest(&format!("{} {REFUSED}", send(allowed, 0, 3_000_000))),
        ),
        kind(
            "requests of its own without end",
            ENDLESS,
            &guest(&format!("(loop $l {} {ENDLESSLY})", send(elsewhere, 0, 0))),
        ),
    ]
}

/// One that is not what it says.
fn shapes() -> Vec<Kind> {
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
fn compile() -> Vec<Kind> {
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
