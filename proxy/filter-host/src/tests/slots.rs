//! What a slot of the component tier's pool held is not there for whoever has it next.

use beamline_model::{ByteSize, FilterLimits};

use super::{View, chain_with, head, taken};
use crate::{
    Decision, Engine, EngineSettings, Tier,
    reset::tests::{REALLOC, handle, module, typed},
};

/// Slots for calls; few beside them are for instances that are kept.
const POOL: u32 = 16;
/// Modules of each kind: more than there are slots, for a slot goes to the module that had it last where it can.
const MODULES: i64 = 24;

/// A module whose memory can have 64 pages and whose table 20,000 elements; it does `work`, and is like no other of this
/// `number`.
fn of_kind(work: &str, number: i64) -> String {
    module(&format!(
        "(table $t 10 20000 funcref) (elem declare func $left) (func $left)
         (global $number i64 (i64.const {number})) {REALLOC} {}",
        handle(&format!("(local $at i32) {work}"))
    ))
}

/// Fills all of its memory, and its table.
fn fills(number: i64) -> String {
    let work = "(drop (memory.grow (i32.const 63)))
        (memory.fill (i32.const 4096) (i32.const 0xa5) (i32.const 4190208))
        (drop (table.grow $t (ref.func $left) (i32.const 19990)))
        (table.fill $t (i32.const 0) (ref.func $left) (i32.const 20000))";
    of_kind(work, number)
}

/// Traps where it finds something in memory or table that it did not write.
fn looks(number: i64) -> String {
    let work = "(if (i32.ne (memory.grow (i32.const 63)) (i32.const 1)) (then unreachable))
        (local.set $at (i32.const 4096))
        (loop $next
            (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
            (br_if $next (i32.lt_u
                (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 4194304))))
        (if (i32.ne (table.grow $t (ref.null func) (i32.const 19990)) (i32.const 10)) (then unreachable))
        (local.set $at (i32.const 0))
        (loop $next
            (if (i32.eqz (ref.is_null (table.get $t (local.get $at)))) (then unreachable))
            (br_if $next (i32.lt_u
                (local.tee $at (i32.add (local.get $at) (i32.const 1))) (i32.const 20000))))";
    of_kind(work, number)
}

#[tokio::test]
async fn memory_and_tables_of_a_slot_are_wiped_before_another_tenant_has_it() {
    // Whether Linux tells which pages were written, or not.
    for pagemap_scan in [true, false] {
        what_is_left_is_looked_for(pagemap_scan).await;
    }
}

async fn what_is_left_is_looked_for(pagemap_scan: bool) {
    let settings =
        EngineSettings { pool_instances: POOL, reset_tier: false, pagemap_scan, ..Default::default() };
    let engine = Engine::new(settings).unwrap();
    let limits = FilterLimits {
        memory: ByteSize::mib(8),
        cpu: beamline_model::Duration::millis(1_000),
        ..Default::default()
    };
    let chain = |tenant: &str, text: &str| {
        let (info, artifact) = taken(&typed(text));
        let loaded = engine.load(&artifact, info).unwrap();
        assert_eq!(loaded.info().tier, Tier::Component);
        chain_with(&loaded, tenant, "null", &limits)
    };
    let one: Vec<_> = (0..MODULES).map(|n| chain("one", &fills(n))).collect();
    let other: Vec<_> = (0..MODULES).map(|n| chain("other", &looks(n))).collect();
    let view = View::shared(limits.clone());
    for round in 0..3 {
        for chain in one.iter().chain(&other) {
            let outcome = chain.on_request(&engine, &view, head(&[])).await;
            assert!(matches!(outcome.decision, Decision::Next), "round {round}: {:?}", outcome.decision);
        }
    }
    // Something that was there would be seen.
    let seen = looks(0).replacen(
        "(local.set $at (i32.const 4096))",
        "(i64.store (i32.const 4000000) (i64.const 1)) (local.set $at (i32.const 4096))",
        1,
    );
    let outcome = chain("other", &seen).on_request(&engine, &view, head(&[])).await;
    assert!(matches!(outcome.decision, Decision::Failed { .. }), "{:?}", outcome.decision);
}
