//! What does not qualify, one case for each kind of state that the reset tier could not take back.

use super::{REALLOC, handle, module, tiers, typed};
use crate::{
    ModuleKind, Tier,
    engine::compiling_core_engine,
    inspect::inspect,
    reset::{CoreEngine, Unqualified, image::Budget, qualify, rewrite},
    tests::{guest, taken},
    ticker::Ticker,
};

const PHASES: [&str; 2] = ["beamline:edge/request-handler@0.1.0", "beamline:edge/finish-handler@0.1.0"];

fn refused(text: &str) -> Unqualified {
    let phases = PHASES.map(str::to_owned);
    let component = inspect(&guest("tiny.wasm")).unwrap().component;
    match qualify(&typed(text), ModuleKind::CoreModule, &component, &phases) {
        Err(reason) => reason,
        Ok(_) => panic!("it qualifies: {text}"),
    }
}

fn with(part: &str) -> String {
    module(&format!("{REALLOC} {} {part}", handle("")))
}

#[test]
fn each_instruction_whose_effect_cannot_be_taken_back() {
    let table = "(table $t 2 2 funcref) (elem $e func)";
    let cases = [
        ("table.set", "(table.set $t (i32.const 0) (ref.null func))"),
        ("table.grow", "(drop (table.grow $t (ref.null func) (i32.const 1)))"),
        ("table.init", "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 0))"),
        ("table.copy", "(table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 0))"),
        ("table.fill", "(table.fill $t (i32.const 0) (ref.null func) (i32.const 0))"),
        ("elem.drop", "(elem.drop $e)"),
        ("data.drop", "(data.drop $d)"),
        ("memory.init", "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 0))"),
        ("v128.store_lane", "(v128.store8_lane 0 (i32.const 0) (v128.const i64x2 0 0))"),
        ("v128.store_lane", "(v128.store64_lane 0 (i32.const 0) (v128.const i64x2 0 0))"),
        ("v128.load_lane", "(drop (v128.load16_lane 0 (i32.const 0) (v128.const i64x2 0 0)))"),
    ];
    for (name, code) in cases {
        let text = with(&format!("{table} (data $d \"x\") (func {code})"));
        assert_eq!(refused(&text), Unqualified::Instruction(name), "{code}");
    }
}

#[test]
fn each_kind_of_memory_that_is_not_a_plain_one() {
    let memory = |text: &str| with("").replacen("(memory (export \"memory\") 1)", text, 1);
    for text in [
        "(memory (export \"memory\") 1) (memory 1)",
        "(memory (export \"memory\") 1 1 shared)",
        "(memory (export \"memory\") i64 1)",
    ] {
        assert!(matches!(refused(&memory(text)), Unqualified::Memory(_)), "{text}");
    }
    assert!(matches!(refused(&memory("(memory (export \"memory\") 1025)")), Unqualified::Memory(_)));
    let imported = memory("").replacen(
        "(module",
        "(module (import \"beamline:edge/http@0.1.0\" \"memory\" (memory 1))",
        1,
    );
    assert!(matches!(refused(&imported), Unqualified::Import(_)));
    assert!(matches!(refused(&memory("(memory 1)")), Unqualified::Missing(_)));
}

#[test]
fn references_in_mutable_globals() {
    assert_eq!(refused(&with("(global (mut funcref) (ref.null func))")), Unqualified::Global(1));
    assert_eq!(refused(&with("(global (mut externref) (ref.null extern))")), Unqualified::Global(1));
}

#[test]
fn proposals_that_are_not_known() {
    let cases = [
        "(func (param i32) (drop (i32.atomic.load (local.get 0))))",
        "(func (drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1))))",
        "(tag) (func (throw 0))",
        "(type (struct (field i32)))",
        "(func (drop (f32x4.relaxed_madd (v128.const i64x2 0 0) (v128.const i64x2 0 0) (v128.const i64x2 0 0))))",
        "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
    ];
    for text in cases {
        let reason = refused(&with(text));
        assert!(matches!(reason, Unqualified::Feature(_) | Unqualified::Instruction(_)), "{text}: {reason}");
    }
}

#[test]
fn imports_that_the_tier_does_not_have() {
    let import = |line: &str| with("").replacen("(module", &format!("(module {line}"), 1);
    for line in [
        r#"(import "beamline:edge/kv@0.1.0" "get" (func))"#,
        r#"(import "beamline:edge/http@0.1.0" "[method]request-head.unheard-of" (func))"#,
        r#"(import "beamline:edge/http@0.1.0" "[method]request-head.path" (func (param i32)))"#,
        r#"(import "[export]beamline:edge/request-handler@0.1.0" "[resource-new]thing" (func (param i32) (result i32)))"#,
        r#"(import "beamline:edge/http@0.1.0" "counter" (global (mut i32)))"#,
        r#"(import "beamline:edge/http@0.1.0" "table" (table 1 funcref))"#,
    ] {
        assert!(matches!(refused(&import(line)), Unqualified::Import(_)), "{line}");
    }
}

#[test]
fn data_that_reaches_beyond_the_first_memory_or_whose_place_is_computed() {
    assert_eq!(refused(&with("(data (i32.const 65535) \"ab\")")), Unqualified::Segment(1));
    assert_eq!(refused(&with("(data (i32.const -1) \"a\")")), Unqualified::Segment(1));
    assert_eq!(
        refused(&with("(global $g i32 (i32.const 8)) (data (global.get $g) \"a\")")),
        Unqualified::Segment(1)
    );
}

#[test]
fn what_would_be_much_to_keep() {
    let memory = with("").replacen("(memory (export \"memory\") 1)", "(memory (export \"memory\") 33)", 1);
    assert!(matches!(refused(&memory), Unqualified::Memory(_)));
    let data = with(&format!("(data (i32.const 0) \"{}\")", "\\00".repeat(4 << 20)));
    assert!(matches!(refused(&data), Unqualified::Size(_)));
    assert_eq!(refused(&with(&"(func)".repeat(10_001))), Unqualified::Functions(10_004));
    assert_eq!(refused(&with(&"(global i32 (i32.const 0))".repeat(500))), Unqualified::Globals(501));
}

#[test]
fn a_first_state_that_would_be_much_to_keep() {
    let start = |body: &str| {
        let text = with(&format!(r#"(func (export "_initialize") {body})"#));
        let text = text.replacen("(memory (export \"memory\") 1)", "(memory (export \"memory\") 20)", 1);
        let (info, artifact) = taken(&typed(&text));
        assert_eq!(info.tier, Tier::Reset, "{:?}", info.tier_reason);
        tiers().reset.load(&artifact, info).unwrap().info().clone()
    };
    let filled = |bytes: u32| format!("(memory.fill (i32.const 0) (i32.const 1) (i32.const {bytes}))");
    assert_eq!(start(&filled((1 << 20) - 256)).tier, Tier::Reset);
    let info = start(&filled(1 << 20));
    assert_eq!(
        (info.tier, info.tier_reason),
        (Tier::Component, Some(Unqualified::Image((1 << 20) + 64).to_string()))
    );
    // It is what is kept that counts, not how far it lies apart.
    assert_eq!(start("(i32.store8 (i32.const 1310719) (i32.const 1))").tier, Tier::Reset);
}

#[test]
fn first_states_that_would_be_much_to_keep_together() {
    let engine = compiling_core_engine().unwrap();
    let ticker = Ticker::start(&engine, &engine).unwrap();
    let cores = CoreEngine::with_images(engine, Budget::of(100_000)).unwrap();
    let bytes = typed(&with(&format!("(data (i32.const 2000) \"{}\")", "x".repeat(40_000))));
    let component = inspect(&guest("tiny.wasm")).unwrap().component;
    let phases = PHASES.map(str::to_owned);
    let qualified = qualify(&bytes, ModuleKind::CoreModule, &component, &phases).unwrap();
    let module = wasmtime::Module::new(cores.wasmtime(), rewrite(&qualified).unwrap()).unwrap();
    let first = cores.prepare(&module, &ticker).unwrap();
    let _second = cores.prepare(&module, &ticker).unwrap();
    // Of the frame around it a block more.
    let bytes = 158 * 256 + 64 + 256 + 64;
    assert_eq!(cores.prepare(&module, &ticker).err(), Some(Unqualified::Images(bytes)));
    drop(first);
    assert!(cores.prepare(&module, &ticker).is_ok());
}

#[test]
fn a_module_that_would_grow_too_much() {
    // Every instruction is a store, the one that grows most.
    let stores = "(i32.store8 (local.get 0) (local.get 0))".repeat(20_000);
    let text = with(&format!("(func (param i32) {stores})"));
    let bytes = typed(&text);
    let component = inspect(&guest("tiny.wasm")).unwrap().component;
    let phases = PHASES.map(str::to_owned);
    let qualified = qualify(&bytes, ModuleKind::CoreModule, &component, &phases).unwrap();
    assert!(matches!(rewrite(&qualified), Err(Unqualified::Rewrite(_))));
    // It is taken all the same.
    let (info, _) = taken(&bytes);
    assert_eq!(info.tier, Tier::Component);
    assert!(info.tier_reason.unwrap().contains("more than"));
}

#[test]
fn tables_that_no_instance_may_have() {
    assert_eq!(refused(&with("(table 20001 funcref)")), Unqualified::Tables(20_001));
}

#[test]
fn other_ways_to_be_called() {
    for name in
        ["cabi_export_realloc", "cabi_realloc_adapter", "__wasm_task_hook", "[async-lift]x", "cm32p2_x"]
    {
        let text = with(&format!(r#"(func (export "{name}"))"#));
        assert_eq!(refused(&text), Unqualified::Convention(name.into()));
    }
    let text = module(&handle(""));
    assert_eq!(refused(&text), Unqualified::Missing("cabi_realloc"));
}

#[test]
fn another_phase_a_component_and_strings_of_another_encoding() {
    let tiny = guest("tiny.wasm");
    let component = inspect(&tiny).unwrap().component;
    let phases = ["beamline:edge/finish-handler@0.1.0".to_owned()];
    let reason = |kind, component: &[u8], phases: &[String]| qualify(&tiny, kind, component, phases).err();
    assert!(matches!(reason(ModuleKind::CoreModule, &component, &phases), Some(Unqualified::Phase)));
    let phases = PHASES.map(str::to_owned);
    assert_eq!(reason(ModuleKind::CoreModule, &component, &phases), None);
    assert_eq!(reason(ModuleKind::Component, &component, &phases), Some(Unqualified::Component));
    let utf16 = wat::parse_str(
        r#"(component (import "f" (func $f (param "s" string)))
            (core module $m (memory (export "memory") 1))
            (core instance $i (instantiate $m))
            (core func (canon lower (func $f) (memory (core memory $i "memory")) string-encoding=utf16)))"#,
    )
    .unwrap();
    assert_eq!(reason(ModuleKind::CoreModule, &utf16, &phases), Some(Unqualified::Encoding));
}

#[test]
fn a_component_runs_in_the_other_tier_and_says_why() {
    let component = inspect(&guest("tiny.wasm")).unwrap().component;
    let (info, _) = taken(&component);
    assert_eq!(info.tier, Tier::Component);
    assert_eq!(info.tier_reason, Some(Unqualified::Component.to_string()));
}
