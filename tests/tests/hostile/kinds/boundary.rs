//! Kinds that hand the host what it is not to take: places, handles, texts, fields, verdicts.

use super::{End, Kind, MEMORY, SLOW, TRAP, VERDICT, first, kind, made};
use crate::guest::{AREA, Guest, handles_of_its_own, verdict, with_resources};

/// One that gives the host bad places to write to.
pub(super) fn realloc() -> Vec<Kind> {
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
pub(super) fn handles() -> Vec<Kind> {
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
pub(super) fn strings() -> Vec<Kind> {
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
pub(super) fn heads() -> Vec<Kind> {
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
pub(super) fn verdicts() -> Vec<Kind> {
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
