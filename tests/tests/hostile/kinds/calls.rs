//! Kinds that want more of the host functions than there is.

use std::net::SocketAddr;

use super::{End, Kind, SLOW, TRAP, first, kind};

/// Traps unless the host refused what was asked for last.
const REFUSED: &str = "(if (i32.eqz (i32.load8_u (i32.const 2048))) (then unreachable))";
/// A step of a loop that goes on for ever.
const ENDLESSLY: &str = "(local.set $i (i32.add (local.get $i) (i32.const 1))) (br $l)";
/// What becomes of such loops of host calls.
const ENDLESS: End = End::Fails(&["filter-timeout", "filter-host-calls"]);

/// One that wants more of what the host keeps, counts or tells than there is.
pub(super) fn host_functions() -> Vec<Kind> {
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
pub(super) fn outbound(origin: SocketAddr) -> Vec<Kind> {
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
