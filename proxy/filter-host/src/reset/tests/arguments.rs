//! Every host function, with every kind of argument that it should not be given: each fails in both tiers, in the same words.
//!
//! There is a module for each function. It takes the arguments from its configuration, 16 letters each, and tells what the
//! function returned and a sum of all memory. `BEAMLINE_SEEDS` says how many times each is called with arguments by chance.

use std::collections::BTreeSet;

use beamline_model::FilterLimits;
use wasmparser::ValType;

use super::{Both, REALLOC, Seen, handle, module, random_numbers};
use crate::{
    reset::abi::{Function, functions},
    tests::head,
};

/// What an argument is for the host. A length follows each pointer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Handle,
    /// Where a `string` begins.
    Text,
    /// Where a `list<u8>` begins.
    Bytes,
    /// Where a list of names, fields or labels begins.
    List,
    Length,
    /// Where the result goes.
    Return,
    /// The discriminant of an `option`.
    Optional,
    /// One of some cases, or any number.
    Case,
    Number,
}
use Kind::{Bytes, Case, Handle, Length, List, Number, Optional, Return, Text};

type Arguments = Vec<(Kind, u64)>;

/// A function's arguments that are good ones.
fn good(interface: &str, name: &str) -> Arguments {
    let text = |ptr, len| vec![(Text, ptr), (Length, len)];
    let bytes = |ptr, len| vec![(Bytes, ptr), (Length, len)];
    let list = |count| vec![(List, RECORDS), (Length, count)];
    let (field, key, value) = (text(0, 6), text(KEY, 3), bytes(0, 6));
    let head = || vec![(Handle, 1)];
    let to = || vec![(Return, AREA)];
    let number = |n| vec![(Number, n)];
    let some = || vec![(Optional, 1)];
    let parts = match (interface, name.rsplit_once('.').map_or(name, |(_, method)| method)) {
        ("http", "method" | "path" | "query" | "host" | "snapshot") => vec![head(), to()],
        ("http", "get" | "get-all" | "remove") => vec![head(), field, to()],
        ("http", "get-many") => vec![head(), list(2), to()],
        ("http", "set" | "append") => vec![head(), field, bytes(KEY, 3), to()],
        ("http", "set-status") => vec![head(), number(200), to()],
        ("http", _) => vec![head()],
        ("log", "write") => vec![vec![(Case, 1)], field],
        ("context", "set") => vec![value, to()],
        ("config" | "context" | "properties", _) => vec![to()],
        ("kv", "set") => vec![key, value, some(), number(1_000), to()],
        ("kv", "delete") => vec![key],
        ("kv", "increment") => vec![key, number(5), some(), number(1_000), to()],
        ("kv", "compare-and-set") => {
            vec![key, some(), value, bytes(KEY, 3), some(), number(1_000), to()]
        }
        ("kv" | "secrets" | "upstreams", "get") => vec![key, to()],
        ("buckets", "take") => vec![key, field, number(1), number(10), number(1_000), number(10), to()],
        ("metrics", "count") => vec![key, number(1), list(1), to()],
        ("metrics", "observe") => vec![key, number(0.25_f64.to_bits()), list(1), to()],
        ("outbound", "send") => {
            vec![text(METHOD, 3), text(URL, 19), list(1), value, some(), number(1_000), to()]
        }
        other => panic!("no arguments are known of {other:?}"),
    };
    parts.concat()
}

/// Where texts stand in the guest's memory, beside `x-seed` at 0, and records of two texts each.
const KEY: u64 = 552;
const METHOD: u64 = 512;
const URL: u64 = 520;
const NO_TEXT: u64 = 560;
const RECORDS: u64 = 4096;
/// Records of which the second names bytes beyond the memory, and one whose texts are none.
const BAD_RECORDS: u64 = 4112;
const NO_TEXTS: u64 = 4128;
const AREA: u64 = 8192;

/// What by itself, or with the length after it, no function takes.
fn bad(kind: Kind) -> &'static [&'static [u64]] {
    const BEYOND: u64 = 0xffff_fff8;
    match kind {
        Handle => &[&[0], &[2], &[1_000_000], &[0xffff_ffff]],
        Text => &[&[65_530, 7], &[65_537, 0], &[0, 0xffff_ffff], &[0xffff_ffff, 1], &[NO_TEXT, 2]],
        Bytes => &[&[65_530, 7], &[65_537, 0], &[0, 0xffff_ffff], &[0xffff_ffff, 1]],
        List => &[
            &[RECORDS + 1, 1],
            &[65_532, 1],
            &[0, 0x1000_0000],
            &[0xffff_fffc, 1],
            &[BAD_RECORDS, 2],
            &[NO_TEXTS, 1],
        ],
        Return => &[&[65_536], &[65_535], &[BEYOND]],
        Optional => &[&[2], &[255], &[256], &[0xffff_ffff]],
        Case => &[&[4], &[255], &[0xffff_ffff]],
        Length | Number => &[],
    }
}

/// The text of a function that calls nothing but `function`, with the arguments of its configuration.
fn calling(function: &Function) -> String {
    // What the frame of each module imports has a name already.
    let own = match function.name {
        "[method]request-head.get" => Some("$get"),
        "[resource-drop]request-head" => Some("$drop"),
        "write" => Some("$log"),
        _ => None,
    };
    let types = |types: &[ValType]| types.iter().map(|t| format!("{t} ")).collect::<String>();
    let import = own.map_or_else(
        || {
            format!(
                r#"(import "{}" "{}" (func $tried (param {}) (result {})))"#,
                function.interface,
                function.name,
                types(function.params),
                types(function.results)
            )
        },
        |_| String::new(),
    );
    let config = r#"(import "beamline:edge/config@0.1.0" "get" (func $config (param i32)))"#;
    let (config, tried) =
        if import.contains("edge/config") { ("", "$config") } else { (config, own.unwrap_or("$tried")) };
    let import = if config.is_empty() { import.replacen("$tried", "$config", 1) } else { import };
    let arguments: String = (0..)
        .zip(function.params)
        .map(|(at, ty)| match ty {
            ValType::I64 => format!("(call $arg (i32.const {at})) "),
            ValType::F64 => format!("(f64.reinterpret_i64 (call $arg (i32.const {at}))) "),
            _ => format!("(i32.wrap_i64 (call $arg (i32.const {at}))) "),
        })
        .collect();
    let call = format!("(call {tried} {arguments})");
    let call = match function.results {
        [] => call,
        [ValType::I32] => format!("(call $say (i64.extend_i32_u {call}))"),
        _ => format!("(call $say {call})"),
    };
    let pair = |at: u64, pairs: &[(u64, u64)]| {
        let words = pairs.iter().flat_map(|(ptr, len)| [*ptr as u32, *len as u32]);
        let bytes: String = words.flat_map(u32::to_le_bytes).map(|byte| format!("\\{byte:02x}")).collect();
        format!("(data (i32.const {at}) \"{bytes}\")")
    };
    let text = module(&format!(
        r#"(data (i32.const {METHOD}) "GET") (data (i32.const {URL}) "http://nobody.test/")
        (data (i32.const {KEY}) "key") (data (i32.const {NO_TEXT}) "\ff\fe")
        {} {} {}
        (func $arg (param $i i32) (result i64)
            (local $n i64) (local $digit i32)
            (loop $next
                (local.set $n (i64.or (i64.shl (local.get $n) (i64.const 4)) (i64.extend_i32_u (i32.sub
                    (i32.load8_u (i32.add (i32.load (i32.const 64))
                        (i32.add (i32.shl (local.get $i) (i32.const 4)) (local.get $digit))))
                    (i32.const 97)))))
                (br_if $next (i32.lt_u
                    (local.tee $digit (i32.add (local.get $digit) (i32.const 1))) (i32.const 16))))
            (local.get $n))
        {REALLOC} {}"#,
        pair(RECORDS, &[(0, 6), (KEY, 3)]),
        pair(BAD_RECORDS, &[(KEY, 3), (65_530, 7)]),
        pair(NO_TEXTS, &[(NO_TEXT, 2), (NO_TEXT, 2)]),
        handle(&format!(
            "(local $at i32) (local $sum i64)
             (call $config (i32.const 64))
             {call}
             (loop $next
                (local.set $sum (i64.xor (i64.rotl (local.get $sum) (i64.const 1)) (i64.load (local.get $at))))
                (br_if $next (i32.lt_u
                    (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 65536))))
             (call $say (local.get $sum))"
        ))
    ));
    text.replacen("(module", &format!("(module {config} {import}"), 1)
}

/// Numbers as the module reads them.
fn written(arguments: &[u64]) -> String {
    let letters = |n: &u64| format!("{n:016x}").bytes().map(letter).collect::<String>();
    arguments.iter().map(letters).collect()
}

fn letter(digit: u8) -> char {
    let value = char::from(digit).to_digit(16).expect("a hexadecimal digit");
    char::from(b'a' + u8::try_from(value).expect("below 16"))
}

/// Numbers that are at the edge of something.
const EDGES: [u64; 26] = [
    0,
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    64,
    96,
    KEY,
    NO_TEXT,
    RECORDS,
    RECORDS + 4,
    BAD_RECORDS,
    NO_TEXTS,
    AREA,
    65_520,
    65_528,
    65_530,
    65_535,
    65_536,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff8,
    0xffff_ffff,
];

/// How a failure begins, without its numbers.
fn told(seen: &Seen) -> String {
    seen.decision.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[test]
fn every_host_function_takes_the_same_arguments_in_both() {
    let chances = super::number("BEAMLINE_SEEDS", 100);
    let (mut tried, mut calls, mut failed, mut words) = (BTreeSet::new(), 0, 0, BTreeSet::new());
    let head = head(&[("x-seed", "abc"), ("key", "1")]);
    for function in functions() {
        let interface =
            function.interface.strip_prefix("beamline:edge/").unwrap().strip_suffix("@0.1.0").unwrap();
        // What takes nothing, and never gives the same.
        if matches!(interface, "clock" | "random") {
            assert!(function.params.is_empty());
            continue;
        }
        let arguments = good(interface, function.name);
        assert_eq!(arguments.len(), function.params.len(), "{interface} {}", function.name);
        let both = Both::wat(&calling(function));
        let mut ask = |arguments: &[u64]| {
            let (component, seen) = both.pair(&written(arguments), &FilterLimits::default(), &head);
            assert_eq!(component, seen, "{interface} {}: {arguments:?}", function.name);
            calls += 1;
            if seen.failed() {
                failed += 1;
                words.insert(told(&seen));
            }
            seen
        };
        let plain: Vec<u64> = arguments.iter().map(|(_, value)| *value).collect();
        // There is no response's head here, and the frame drops the request's itself.
        let is_good = !function.name.contains("response-head") && !function.name.contains("drop]");
        let seen = ask(&plain);
        assert_eq!(seen.failed(), !is_good, "{interface} {}: {seen:?}", function.name);
        for (at, (kind, _)) in arguments.iter().enumerate() {
            for bad in bad(*kind) {
                let mut arguments = plain.clone();
                arguments[at..at + bad.len()].copy_from_slice(bad);
                let seen = ask(&arguments);
                assert!(seen.failed(), "{interface} {}, argument {at} {bad:?}: {seen:?}", function.name);
            }
            for edge in EDGES {
                let mut arguments = plain.clone();
                arguments[at] = edge;
                ask(&arguments);
            }
        }
        let mut draw = random_numbers(u64::try_from(tried.len()).unwrap() + 1);
        for _ in 0..chances {
            let mut arguments = plain.clone();
            for _ in 0..1 + draw() % 3 {
                let (at, edge) = (draw() as usize % arguments.len(), draw());
                arguments[at] = if edge.is_multiple_of(4) {
                    edge & 0xffff_ffff
                } else {
                    EDGES[(edge >> 8) as usize % EDGES.len()]
                };
            }
            ask(&arguments);
        }
        if is_good {
            // A call that ended well left its instance, whatever calls before it did.
            ask(&plain);
            both.assert_kept(75);
        }
        tried.insert((interface.to_owned(), function.name));
    }
    println!("{} functions, {calls} calls, {failed} failed, in {} ways", tried.len(), words.len());
    assert!(tried.len() > 30 && failed * 5 > calls, "{} functions, {failed} of {calls} failed", tried.len());
    for expected in [
        "string pointer/length out of bounds of memory",
        "list pointer/length out of bounds of memory",
        "list pointer is not aligned",
        "pointer not aligned",
        "pointer out of bounds",
        "invalid option discriminant",
        "unexpected discriminant",
        "invalid utf-",
        "unknown handle index",
        "used with the wrong type",
    ] {
        assert!(words.iter().any(|words| words.contains(expected)), "nothing fails by {expected}: {words:?}");
    }
}
