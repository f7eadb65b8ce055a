//! After every request, memory and globals equal those of a new instance, whatever the request did.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use beamline_model::{ByteSize, FilterLimits};
use http::{HeaderValue, Method};

use super::{Both, REALLOC, ask, handle, module, runtime, tiers};
use crate::{
    Decision, Failure, HostView, RequestHead,
    reset::{kept::MADE, shelf},
    tests::{View, chain_with, guest, head},
};

/// A module that scribbles as a seed in the request says: stores of every width at any address, across cards and
/// pages, copies, fills, growth, every kind of global, host writes to addresses that it draws; then it says `next` or
/// traps. Every store is one of a few lines here.
fn scribbler() -> String {
    let at = "(call $at)";
    let value = "(call $rand)";
    let ops = [
        format!("(i32.store8 {at} (i32.wrap_i64 {value}))"),
        format!("(i32.store16 offset=1 {at} (i32.wrap_i64 {value}))"),
        format!("(i32.store offset=3 {at} (i32.wrap_i64 {value}))"),
        format!("(i64.store8 {at} {value})"),
        format!("(i64.store16 {at} {value})"),
        format!("(i64.store32 {at} {value})"),
        format!("(i64.store offset=1020 {at} {value})"),
        format!("(f32.store {at} (f32.convert_i64_u {value}))"),
        format!("(f64.store {at} (f64.convert_i64_u {value}))"),
        format!("(v128.store {at} (i64x2.splat {value}))"),
        format!("(memory.copy {at} {at} (call $length))"),
        format!("(memory.fill {at} (i32.wrap_i64 {value}) (call $length))"),
        "(if (i32.lt_u (memory.size) (i32.const 4)) (then (drop (memory.grow (i32.const 1)))))".into(),
        format!(
            "(global.set $f (f32.convert_i64_u {value})) (global.set $d (f64.convert_i64_u {value}))
             (global.set $v (i64x2.splat {value})) (global.set $n {value})"
        ),
        // The host writes: the return area, then a value where the allocator draws.
        "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.and (call $at) (i32.const -8)))".into(),
        // The last bytes of a card, of a page and of the memory.
        "(i64.store (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 8)) (call $rand))
         (v128.store (i32.const 2047) (i64x2.splat (call $rand)))
         (i64.store (i32.const 1017) (call $rand))"
            .into(),
    ];
    let cases: String = ops
        .iter()
        .enumerate()
        .map(|(i, op)| format!("(if (i32.eq (local.get $op) (i32.const {i})) (then {op}))\n"))
        .collect();
    let work = format!(
        r#"(local $op i32) (local $left i32)
        (call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 64))
        (global.set $rng (i64.or (i64.const 1) (i64.load (i32.load (i32.const 68)))))
        (local.set $left (i32.const 60))
        (loop $next
            (local.set $op (i32.wrap_i64 (i64.and (i64.shr_u (call $rand) (i64.const 40)) (i64.const 15))))
            {cases}
            (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
        (call $say (call $rand))
        (local.set $op (i32.wrap_i64 (i64.and (i64.shr_u (call $rand) (i64.const 40)) (i64.const 7))))
        (if (i32.eq (local.get $op) (i32.const 0)) (then (unreachable)))
        (if (i32.eq (local.get $op) (i32.const 1)) (then
            (i64.store (i32.shl (memory.size) (i32.const 16)) (i64.const 1))))
        (i32.store8 (i32.const 256) (i32.const 0))"#
    );
    // Numbers of the test's own stay below 1024, so that nothing scribbles over the name that is asked for.
    module(&format!(
        r#"
        (global $rng (mut i64) (i64.const 1))
        (global $n (mut i64) (i64.const 5))
        (global $f (mut f32) (f32.const 1.5))
        (global $d (mut f64) (f64.const 2.5))
        (global $v (mut v128) (v128.const i64x2 1 2))
        (data (i32.const 3000) "first state") (data (i32.const 60000) "more of it")
        (func $rand (result i64)
            (global.set $rng (i64.xor (global.get $rng) (i64.shl (global.get $rng) (i64.const 13))))
            (global.set $rng (i64.xor (global.get $rng) (i64.shr_u (global.get $rng) (i64.const 7))))
            (global.set $rng (i64.xor (global.get $rng) (i64.shl (global.get $rng) (i64.const 17))))
            (global.get $rng))
        (func $at (result i32)
            (i32.add (i32.const 1024) (i32.wrap_i64 (i64.rem_u (i64.shr_u (call $rand) (i64.const 8))
                (i64.extend_i32_u (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 6400)))))))
        (func $length (result i32)
            (i32.wrap_i64 (i64.rem_u (i64.shr_u (call $rand) (i64.const 8)) (i64.const 3000))))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (call $at))
        {}"#,
        handle(&work)
    ))
}

fn seeded(seed: u64) -> Box<RequestHead> {
    // As long as a value may be that straddles cards. A field's value holds no zeros.
    let bytes: Vec<u8> =
        seed.to_le_bytes().iter().map(|b| b | 0x80).cycle().take(8 + (seed % 1500) as usize).collect();
    let mut head =
        RequestHead::new(Method::GET, "/".parse().unwrap(), "acme.test".into(), Default::default());
    head.headers.insert("x-seed", HeaderValue::from_bytes(&bytes).unwrap());
    head
}

/// `BEAMLINE_RUNS` sets how many requests.
#[test]
fn after_every_request_memory_and_globals_are_as_in_a_new_instance() {
    let runs = super::number("BEAMLINE_RUNS", 400);
    let scribbler = Both::wat(&scribbler());
    let (mut ended_well, mut failed) = (0, 0);
    for run in 0..runs {
        let seed = run.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let seen = scribbler.same("null", &FilterLimits::default(), &seeded(seed));
        *if seen.failed() { &mut failed } else { &mut ended_well } += 1;
    }
    scribbler.assert_kept(90);
    assert!(ended_well > runs / 4 && failed > runs / 20, "{ended_well} ended well, {failed} failed");
}

#[test]
fn a_module_that_counts_its_calls_always_answers_1() {
    let probe = Both::of(&guest("probe.wasm"));
    for _ in 0..50 {
        let seen = probe.same(r#"{"do":"count"}"#, &FilterLimits::default(), &head(&[]));
        assert!(seen.head.contains(r#""x-count": "1""#), "{seen:?}");
    }
    probe.assert_kept(90);
    // The same by hand: a counter in memory, and one in a global.
    let counter = Both::wat(&module(&format!(
        r#"(global $calls (mut i64) (i64.const 0)) {REALLOC} {}"#,
        handle(
            "(global.set $calls (i64.add (global.get $calls) (i64.const 1)))
             (i64.store (i32.const 32768) (i64.add (i64.load (i32.const 32768)) (i64.const 1)))
             (call $say (i64.add (i64.mul (i64.const 16) (global.get $calls)) (i64.load (i32.const 32768))))"
        )
    )));
    for _ in 0..50 {
        let seen = counter.same("null", &FilterLimits::default(), &head(&[]));
        assert_eq!(seen.log, ["Info bbaaaaaaaaaaaaaa"]);
    }
    counter.assert_kept(90);
}

#[test]
fn memory_that_an_earlier_request_grew_is_not_there_for_a_later_one() {
    // Grows by a page where a field says so; tells the size; then reads just beyond the first page.
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle(
            "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 64))
             (if (i32.load8_u (i32.const 64)) (then
                (drop (memory.grow (i32.const 1))) (i32.store (i32.const 65536) (i32.const -1))))
             (call $say (i64.extend_i32_u (memory.size)))
             (call $say (i64.extend_i32_u (i32.load (i32.const 65536))))"
        )
    )));
    for _ in 0..3 {
        let grown = module.same("null", &FilterLimits::default(), &head(&[("x-seed", "1")]));
        assert_eq!(grown.log, ["Info caaaaaaaaaaaaaaa", "Info ppppppppaaaaaaaa"]);
        let plain = module.same("null", &FilterLimits::default(), &head(&[]));
        assert!(plain.decision.contains("out of bounds memory access"), "{plain:?}");
        assert_eq!(plain.log, ["Info baaaaaaaaaaaaaaa"]);
        // Now the instance is a new one; grow it and come back without a trap between.
        module.same("null", &FilterLimits::default(), &head(&[("x-seed", "1")]));
    }
}

#[test]
fn the_limit_of_memory_bounds_what_the_guest_believes_it_has() {
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle(
            "(call $say (i64.extend_i32_s (memory.grow (i32.const 15))))
             (call $say (i64.extend_i32_s (memory.grow (i32.const 1))))
             (call $say (i64.extend_i32_s (memory.grow (i32.const 0))))
             (call $say (i64.extend_i32_s (memory.grow (i32.const 70000))))"
        )
    )));
    let limits = |bytes| FilterLimits { memory: ByteSize::kib(bytes), ..Default::default() };
    // The instance keeps what it once got, and no later call with a lower limit sees it.
    for kib in [1024, 2048, 512, 1024, 64] {
        let seen = module.same("null", &limits(kib), &head(&[]));
        let first = if kib < 1024 { "Info pppppppppppppppp" } else { "Info baaaaaaaaaaaaaaa" };
        assert_eq!(seen.log[0], first, "{kib} KiB");
    }
    let made = MADE.get();
    let refused = module.same("null", &limits(32), &head(&[]));
    assert!(refused.decision.contains("Memory(32768)"), "{refused:?}");
    assert_eq!(MADE.get() - made, 1, "none but the one that the kept one is compared with");
}

#[test]
fn what_does_not_grow_for_the_modules_own_maximum_uses_up_nothing_of_the_limit() {
    let grown = |pages| format!("(call $say (i64.extend_i32_s (memory.grow (i32.const {pages}))))");
    let text = module(&format!("{REALLOC} {}", handle(&[10, 10, 10, 1].map(grown).concat())));
    let with_maximum = text.replace(r#"(memory (export "memory") 1)"#, r#"(memory (export "memory") 1 4)"#);
    let module = Both::wat(&with_maximum);
    let limits = FilterLimits { memory: ByteSize::kib(1024), ..Default::default() };
    for _ in 0..2 {
        let seen = module.same("null", &limits, &head(&[]));
        let no = "Info pppppppppppppppp";
        assert_eq!(seen.log, [no, no, no, "Info baaaaaaaaaaaaaaa"]);
    }
}

#[test]
fn a_call_for_which_there_is_no_seat_has_no_instance_made() {
    let module = Both::wat(&module(&format!("{REALLOC} {}", handle(""))));
    let limits = FilterLimits { concurrency: 1, ..Default::default() };
    let (engine, chain) = (&tiers().reset, chain_with(&module.reset, "seated", "null", &limits));
    let view = View::shared(limits.clone());
    let ask = || runtime().block_on(chain.on_request(engine, &view, head(&[]))).decision;
    let tenant = "seated".parse().unwrap();
    let seat = runtime().block_on(engine.seats.take(&tenant, 1, &chain.load.long_calls)).unwrap();
    for _ in 0..3 {
        assert!(matches!(ask(), Decision::Failed { failure: Failure::Capacity, .. }));
    }
    assert_eq!(MADE.get(), 0);
    drop(seat);
    assert!(matches!(ask(), Decision::Next));
    assert_eq!(MADE.get(), 1);
}

#[test]
fn a_call_that_is_dropped_while_it_waits_leaves_no_instance() {
    let probe = Both::of(&guest("probe.wasm"));
    let (limits, count) = (FilterLimits::default(), r#"{"do":"count"}"#);
    let waits = r#"{"do":"send","url":"http://never.test/","headers":{"x-a":["left behind"]}}"#;
    let chain = chain_with(&probe.reset, "gone", waits, &limits);
    for _ in 0..3 {
        probe.same(count, &limits, &head(&[]));
        assert!(shelf::take(probe.reset.core().unwrap()).map(shelf::put).is_some(), "one is kept");
        let view: Arc<dyn HostView> = View::shared(limits.clone());
        let gave_up = runtime().block_on(async {
            let call = chain.on_request(&tiers().reset, &view, head(&[]));
            tokio::time::timeout(std::time::Duration::from_millis(30), call).await.is_err()
        });
        assert!(gave_up, "it had an answer");
        assert!(shelf::take(probe.reset.core().unwrap()).is_none(), "the call had it, and it went with it");
        let seen = probe.same(count, &limits, &head(&[]));
        assert!(seen.head.contains(r#""x-count": "1""#), "{seen:?}");
    }
}

#[test]
fn a_call_that_is_not_granted_the_first_memory_has_no_instance_made() {
    let module = Both::wat(&module(&format!("{REALLOC} {}", handle(""))));
    let limits = FilterLimits { memory: ByteSize::kib(32), ..Default::default() };
    for _ in 0..3 {
        assert!(module.same("null", &limits, &head(&[])).failed());
    }
    assert_eq!(MADE.get(), 0);
}

#[test]
fn a_memory_gets_no_more_beyond_what_was_asked_for_than_its_limit() {
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle("(drop (memory.grow (i32.const 8))) (drop (memory.grow (i32.const 1)))")
    )));
    for pages in [10, 16] {
        let limits = FilterLimits { memory: ByteSize::kib(64 * pages), ..Default::default() };
        assert!(!module.same("null", &limits, &head(&[])).failed());
        let kept = shelf::take(module.reset.core().unwrap()).expect("it was kept");
        // 10 pages were asked for, the last when there were 9: a quarter of these more, or up to the limit.
        assert_eq!(kept.bytes() >> 16, if pages == 10 { 10 } else { 11 });
    }
}

#[test]
fn a_call_that_outgrows_its_instance_has_the_next_begin_with_a_new_one() {
    // Grows where a field says so, beyond what comes from the allocator; and tells what it finds there before it writes to it.
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle(
            "(call $get (local.get $h) (i32.const 0) (i32.const 6) (i32.const 64))
             (if (i32.load8_u (i32.const 64)) (then
                (drop (memory.grow (i32.const 120)))
                (call $say (i64.load (i32.const 7000000)))
                (i64.store (i32.const 7000000) (i64.const 77))
                (memory.fill (i32.const 100000) (i32.const 5) (i32.const 6000000))
                (call $say (i64.load (i32.const 6099996)))))"
        )
    )));
    let limits = FilterLimits { memory: ByteSize::mib(16), ..Default::default() };
    let made = |head: &crate::RequestHead| {
        let before = MADE.get();
        assert!(!module.same("null", &limits, head).failed());
        MADE.get() - before
    };
    let (grows, plain) = (head(&[("x-seed", "1")]), head(&[]));
    for _ in 0..3 {
        made(&grows);
        assert!(shelf::take(module.reset.core().unwrap()).is_none(), "it was kept");
    }
    made(&plain);
    assert_eq!(made(&plain), 1, "the one that the kept one is compared with");
}

#[test]
fn what_is_copied_in_pieces_comes_to_the_same() {
    // Bytes of which none is like the one a piece away; copied by a little and by more than a piece, both ways; then told.
    let piece = 65_536;
    let copies: String = [piece - 1, piece, piece + 1, 2 * piece, 2 * piece + 1, 3 * piece - 1]
        .into_iter()
        .flat_map(|length| {
            [(300_001, 300_000), (300_000, 300_001), (370_000, 300_000), (300_000, 370_000)].map(
                |(to, from)| {
                    format!("(memory.copy (i32.const {to}) (i32.const {from}) (i32.const {length}))")
                },
            )
        })
        .collect();
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle(&format!(
            "(local $i i32) (local $sum i64)
             (drop (memory.grow (i32.const 15)))
             (local.set $i (i32.const 200000))
             (loop $fill
                (i32.store (local.get $i) (i32.mul (local.get $i) (i32.const 0x9e3779b1)))
                (br_if $fill (i32.lt_u
                    (local.tee $i (i32.add (local.get $i) (i32.const 4))) (i32.const 1000000))))
             {copies}
             (memory.fill (i32.const 700000) (i32.const 9) (i32.const {}))
             (local.set $i (i32.const 200000))
             (loop $sum
                (local.set $sum (i64.add (i64.mul (local.get $sum) (i64.const 31)) (i64.load8_u (local.get $i))))
                (br_if $sum (i32.lt_u
                    (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000000))))
             (call $say (local.get $sum))",
            2 * piece + 3
        ))
    )));
    let limits = FilterLimits {
        memory: ByteSize::mib(4),
        cpu: beamline_model::Duration::millis(1_000),
        ..Default::default()
    };
    for _ in 0..3 {
        assert!(!module.same("null", &limits, &head(&[])).failed());
    }
}

#[test]
fn a_memory_gets_no_more_than_what_can_be_kept_unless_that_was_asked_for() {
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle("(drop (memory.grow (i32.const 14))) (drop (memory.grow (i32.const 1)))")
    )));
    let limits = FilterLimits { memory: ByteSize::mib(4), ..Default::default() };
    assert!(!module.same("null", &limits, &head(&[])).failed());
    let kept = shelf::take(module.reset.core().unwrap()).expect("it was kept");
    // 16 pages were asked for; a quarter of 15 more would be 18, and 17 can be kept.
    assert_eq!(kept.bytes() >> 16, 17);
}

#[test]
fn what_the_host_wrote_is_put_back_however_often_it_wrote() {
    // The host alone writes: each value has two places that no other has.
    let module = Both::wat(&module(&format!(
        "{REALLOC} {}",
        handle(
            "(local $i i32)
             (loop $next
                (call $get (local.get $h) (i32.const 0) (i32.const 6)
                    (i32.add (i32.const 20000) (i32.shl (local.get $i) (i32.const 4))))
                (br_if $next (i32.lt_u
                    (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1500))))
             (call $say (i64.load8_u (i32.const 43988)))"
        )
    )));
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(1000), ..Default::default() };
    for _ in 0..5 {
        let seen = module.same("null", &limits, &head(&[("x-seed", "abc")]));
        assert!(!seen.failed(), "{seen:?}");
    }
    module.assert_kept(60);
}

#[test]
fn who_lets_go_of_a_module_frees_the_instances_that_idle_threads_keep_of_it() {
    let gone = Both::wat(&module(&format!("{REALLOC} {}", handle(""))));
    let core = Arc::downgrade(gone.reset.core().unwrap());
    let module = Arc::clone(&gone.reset);
    let ((asked, was_asked), (end, ends)) = (mpsc::channel(), mpsc::channel::<()>());
    thread::scope(|scope| {
        scope.spawn(move || {
            ask(&tiers().reset, &module, "null", &FilterLimits::default(), &head(&[]));
            drop(module);
            asked.send(()).unwrap();
            // Idle until the other end is dropped.
            ends.recv().unwrap_err();
        });
        was_asked.recv().unwrap();
        let instances = core.strong_count() - 1;
        drop(gone);
        let left = core.strong_count();
        drop(end);
        assert_eq!((instances, left), (1, 0));
    });
}

#[test]
fn what_the_modules_start_left_is_there_each_time() {
    let start = |export: &str| {
        Both::wat(&module(&format!(
            r#"(global $g (mut i64) (i64.const 0)) {REALLOC}
            (func $start {export} (i64.store (i32.const 40000) (i64.const 7)) (global.set $g (i64.const 8))
                (i32.store8 (i32.const 0) (i32.const 0x78)) (memory.fill (i32.const 5) (i32.const 0) (i32.const 1)))
            {} {}"#,
            if export.is_empty() { "(start $start)" } else { "" },
            handle(
                "(call $say (i64.add (i64.mul (i64.const 16) (global.get $g)) (i64.load (i32.const 40000))))
                 (call $say (i64.load8_u (i32.const 5)))
                 (i64.store (i32.const 40000) (i64.const 1)) (global.set $g (i64.const 1))
                 (i32.store8 (i32.const 5) (i32.const 3))"
            )
        )))
    };
    for module in [start(""), start(r#"(export "_initialize")"#)] {
        for _ in 0..5 {
            let seen = module.same("null", &FilterLimits::default(), &head(&[]));
            assert_eq!(seen.log, ["Info hiaaaaaaaaaaaaaa", "Info aaaaaaaaaaaaaaaa"]);
        }
    }
}
