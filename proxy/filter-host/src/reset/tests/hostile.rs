//! Modules that try what they should not: each fails, in both tiers with the same words, and leaves nothing.

use std::sync::Arc;

use beamline_model::FilterLimits;

use super::{Both, REALLOC, Seen, ask, handle, module, tiers, typed};
use crate::{
    Tier,
    tests::{head, taken},
};

const PHASE: &str = "beamline:edge/request-handler@0.1.0#handle";

/// Asks several times: a failed request leaves nothing that changes the next one.
fn fails(text: &str) -> Seen {
    let module = Both::wat(text);
    let first = module.same("null", &FilterLimits::default(), &head(&[("x-seed", "abc")]));
    for _ in 0..3 {
        assert_eq!(module.same("null", &FilterLimits::default(), &head(&[("x-seed", "abc")])), first);
    }
    assert!(first.failed(), "{first:?}");
    first
}

fn with(work: &str) -> String {
    module(&format!("{REALLOC} {}", handle(work)))
}

#[test]
fn handles_are_worth_nothing_but_the_calls_own_while_it_lives() {
    let get = |handle: &str| format!("(call $get {handle} (i32.const 0) (i32.const 6) (i32.const 64))");
    for handle in ["(i32.const 0)", "(i32.const 2)", "(i32.const 7)", "(i32.const 100000)", "(i32.const -1)"]
    {
        let seen = fails(&with(&get(handle)));
        assert!(seen.decision.contains("unknown handle index"), "{handle}: {seen:?}");
    }
    fails(&with("(call $drop (local.get $h))"));
    fails(&with(&format!("(call $drop (local.get $h)) {}", get("(local.get $h)"))));
    // Told as a number, so that both tiers must give the same one.
    Both::wat(&with("(call $say (i64.extend_i32_u (local.get $h)))")).same(
        "null",
        &FilterLimits::default(),
        &head(&[]),
    );
    let kept =
        module(&format!(r#"{REALLOC} (func (export "{PHASE}") (param i32) (result i32) (i32.const 256))"#));
    let seen = fails(&kept);
    assert!(seen.decision.contains("borrow handles still remain"), "{seen:?}");
}

#[test]
fn pointers_and_lengths_are_checked_one_by_one() {
    let calls = [
        "(call $log (i32.const 1) (i32.const 65530) (i32.const 7))",
        "(call $log (i32.const 1) (i32.const -1) (i32.const 2))",
        "(call $log (i32.const 1) (i32.const 2) (i32.const -1))",
        "(call $log (i32.const 4) (i32.const 0) (i32.const 1))",
        "(call $log (i32.const -1) (i32.const 0) (i32.const 1))",
        "(i32.store8 (i32.const 0) (i32.const 255)) (call $log (i32.const 1) (i32.const 0) (i32.const 2))",
        "(call $get (local.get $h) (i32.const 65536) (i32.const 1) (i32.const 64))",
        "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 66))",
        "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 65528))",
        "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const -4))",
        "(drop (memory.grow (i32.const 1))) (call $log (i32.const 1) (i32.const 131071) (i32.const 2))",
    ];
    for call in calls {
        fails(&with(call));
    }
    let at_the_end = Both::wat(&with(
        "(call $log (i32.const 1) (i32.const 65536) (i32.const 0))
         (call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 65524))",
    ));
    assert!(!at_the_end.same("null", &FilterLimits::default(), &head(&[("x-seed", "abc")])).failed());
}

#[test]
fn what_an_allocator_returns_is_checked_and_it_may_call_nothing() {
    let get = handle("(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 64))");
    let bodies = [
        "(i32.const 65534)",
        "(i32.const -1)",
        "(i32.const 65536)",
        "(unreachable)",
        "(call $log (i32.const 1) (i32.const 0) (i32.const 1)) (i32.const 1024)",
        "(drop (call $random)) (i32.const 1024)",
        "(call $drop (i32.const 1)) (i32.const 1024)",
        "(call $get (i32.const 1) (i32.const 0) (i32.const 6) (i32.const 64)) (i32.const 1024)",
    ];
    for body in bodies {
        fails(&module(&format!(
            r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {body}) {get}"#
        )));
    }
    // Where the host is to write over the return area, or over the code's own data: the guest's own affair.
    for address in ["(i32.const 64)", "(i32.const 0)"] {
        let text = module(&format!(
            r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {address})
            {}"#,
            handle(
                "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 64))
                 (call $say (i64.load (i32.const 64))) (call $say (i64.load (i32.const 0)))"
            )
        ));
        Both::wat(&text).same("null", &FilterLimits::default(), &head(&[("x-seed", "abc")]));
    }
}

#[test]
fn after_its_verdict_a_guest_may_tidy_up_and_call_nothing() {
    let post = |body: &str| {
        module(&format!(r#"{REALLOC} {} (func (export "cabi_post_{PHASE}") (param i32) {body})"#, handle("")))
    };
    for body in
        ["(unreachable)", "(drop (call $random))", "(call $log (i32.const 1) (i32.const 0) (i32.const 1))"]
    {
        fails(&post(body));
    }
    let tidy = Both::wat(&post("(i32.store (local.get 0) (i32.const -1)) (global.set $heap (i32.const 0))"));
    for _ in 0..3 {
        assert!(!tidy.same("null", &FilterLimits::default(), &head(&[])).failed());
    }
}

#[test]
fn verdicts_are_read_as_carefully() {
    let returning = |work: &str, address: &str| {
        module(&format!(
            r#"{REALLOC} (func (export "{PHASE}") (param $h i32) (result i32)
                {work} (call $drop (local.get $h)) {address})"#
        ))
    };
    for address in ["(i32.const 4)", "(i32.const 65480)", "(i32.const -8)", "(i32.const 65536)"] {
        fails(&returning("", address));
    }
    let store = |at: u32, value: i64| format!("(i64.store (i32.const {at}) (i64.const {value}))");
    // Case, then pointer and length of `upstream`; then the discriminants behind it.
    let bad = [
        store(256, 5),
        store(256, 255),
        format!("{} {}", store(256, 1), store(264, 65_530 | 7 << 32)),
        format!("{} {}", store(256, 1), store(264, 0xffff_ffff)),
        format!("{} {}", store(256, 1), store(272, 2)),
        format!("{} {}", store(256, 1), store(296, 3)),
        format!("{} {} (i32.store8 (i32.const 0) (i32.const 255))", store(256, 1), store(264, 6 << 32)),
        format!("{} {}", store(256, 2), store(264, 200 | 2 << 32)),
        format!("{} {} {}", store(256, 2), store(264, 200 | 4 << 32), store(272, 5000)),
        format!("{} {}", store(256, 2), store(272, 65_535 | 2 << 32)),
        format!("{} {}", store(256, 3), store(288, 9)),
    ];
    for work in bad {
        fails(&returning(&work, "(i32.const 256)"));
    }
}

#[test]
fn more_memory_than_there_can_be_is_refused_by_the_limit() {
    for pages in [70_000, -1, 1_000] {
        let seen = fails(&with(&format!("(drop (memory.grow (i32.const {pages}))) (unreachable)")));
        assert!(seen.decision.contains("Memory("), "{pages}: {seen:?}");
    }
}

/// A module that takes part in other phases, too, may import what their heads can do; here it has no such head.
#[test]
fn a_response_has_no_handle_in_this_phase() {
    let functions = [
        ("[method]response-head.status", 1, "(result i32)"),
        ("[method]response-head.get", 4, ""),
        ("[method]response-head.get-all", 4, ""),
        ("[method]response-head.get-many", 4, ""),
        ("[method]response-head.snapshot", 2, ""),
        ("[method]response-head.set-status", 3, ""),
        ("[method]response-head.set", 6, ""),
        ("[method]response-head.append", 6, ""),
        ("[method]response-head.remove", 4, ""),
        ("[resource-drop]response-head", 1, ""),
    ];
    for (name, params, result) in functions {
        for given in [1, 2, 0] {
            let import = format!(
                r#"(module (import "beamline:edge/http@0.1.0" "{name}" (func $late (param {}) {result}))"#,
                "i32 ".repeat(params)
            );
            let zeros = "(i32.const 0)".repeat(params - 1);
            let call = format!("(call $late (i32.const {given}) {zeros})");
            let call = if result.is_empty() { call } else { format!("(drop {call})") };
            fails(&with(&call).replacen("(module", &import, 1));
        }
    }
}

#[test]
fn what_get_many_gives_is_bounded_before_it_is_placed() {
    // Names `x-seed` so many times in one list, from address 4096 on.
    let module = |times: u32| {
        let text = with(&format!(
            "(local $i i32)
             (loop $next
                (i64.store (i32.add (i32.const 4096) (i32.shl (local.get $i) (i32.const 3))) (i64.const {}))
                (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {times}))))
             (call $many (local.get $h) (i32.const 4096) (i32.const {times}) (i32.const 64))",
            6_u64 << 32
        ));
        let import = r#"(module (import "beamline:edge/http@0.1.0" "[method]request-head.get-many"
            (func $many (param i32 i32 i32 i32)))"#;
        let text = text.replacen("(module", import, 1);
        text.replacen("(memory (export \"memory\") 1)", "(memory (export \"memory\") 32)", 1)
    };
    let value = "x".repeat(10_000).leak();
    let head = head(&[("x-seed", value)]);
    let some = Both::wat(&module(100));
    for _ in 0..10 {
        assert!(!some.same("null", &FilterLimits::default(), &head).failed());
    }
    // Nor does a kept instance hold on to what the host needed for it: `as_new` looks.
    some.assert_kept(90);
    let many = Both::wat(&module(110));
    let seen = many.same("null", &FilterLimits::default(), &head);
    assert!(seen.decision.contains("get-many"), "{seen:?}");
}

#[test]
fn what_a_guest_hands_over_is_bounded_as_in_the_other_tier() {
    // A list that names the same bytes many times over.
    let respond = |times: u64| {
        module(&format!(
            r#"{REALLOC} (func (export "{PHASE}") (param $h i32) (result i32)
                (local $i i32)
                (loop $next
                    (i64.store offset=8192 (i32.shl (local.get $i) (i32.const 4)) (i64.const {}))
                    (i64.store offset=8200 (i32.shl (local.get $i) (i32.const 4)) (i64.const {}))
                    (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {times}))))
                (i64.store (i32.const 256) (i64.const 2))
                (i64.store (i32.const 264) (i64.const {}))
                (i64.store (i32.const 272) (i64.const {times}))
                (call $drop (local.get $h)) (i32.const 256))"#,
            6_u64 << 32,
            65_536_u64 << 32,
            200 | 8_192_u64 << 32,
        ))
    };
    let seen = fails(&respond(300));
    assert!(seen.decision.contains("too much data"), "{seen:?}");
    let seen = fails(&respond(200));
    assert!(!seen.decision.contains("too much data"), "{seen:?}");
}

#[test]
fn a_start_that_calls_the_host_grows_or_never_ends_has_no_first_state() {
    for body in [
        "(drop (call $random))",
        "(call $log (i32.const 1) (i32.const 0) (i32.const 1))",
        "(drop (memory.grow (i32.const 1)))",
        "(loop (br 0))",
    ] {
        let text = module(&format!(r#"{REALLOC} (func (export "_initialize") {body}) {}"#, handle("")));
        let (info, artifact) = taken(&typed(&text));
        assert_eq!(info.tier, Tier::Reset, "nothing is run where it is compiled");
        let module = tiers().reset.load(&artifact, info).unwrap();
        assert_eq!(module.info().tier, Tier::Component, "{body}");
        assert!(module.info().tier_reason.as_ref().unwrap().contains("start"), "{:?}", module.info());
        assert!(module.core().is_none());
        if !body.contains("loop") {
            let seen =
                ask(&tiers().reset, &Arc::clone(&module), "null", &FilterLimits::default(), &head(&[]));
            assert!(!Seen::of(&seen).failed(), "{body}: {seen:?}");
        }
    }
}

#[test]
fn a_call_that_was_set_aside_leaves_nothing_either() {
    // Long enough for the slow lane, short enough to end well.
    let busy = with(
        "(local $i i64)
         (loop $next (i32.store (i32.const 50000) (i32.const 7))
            (br_if $next (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 8000000))))
         (call $say (i64.load (i32.const 50008)))
         (i64.store (i32.const 50008) (i64.const 1))",
    );
    let module = Both::wat(&busy);
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(1000), ..Default::default() };
    for _ in 0..3 {
        assert_eq!(module.reset("null", &limits, &head(&[])).log, ["Info aaaaaaaaaaaaaaaa"]);
    }
    // Had one of them ended on this thread, it would have left its instance here.
    assert_eq!((module.well.get(), module.kept.get()), (3, 0));
}
