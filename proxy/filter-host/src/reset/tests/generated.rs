//! Modules that nobody thought of: made by `wasm-smith` from a seed, the same ones on every machine.
//!
//! A generated module is finished: its phase calls generated functions, twice around, logs a sum of what they returned and
//! of all memory after each round, and says `next`. They call the host as they like; a trap that follows from a bad
//! call is as good as any. `BEAMLINE_SEEDS` says how many seeds are tried.

use arbitrary::Unstructured;
use beamline_model::FilterLimits;
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, EntityType, ExportKind,
    ExportSection, Function, FunctionSection, GlobalSection, GlobalType, ImportSection, MemArg, MemArgTarget,
    MemorySection, TableSection, TypeSection, ValType,
    reencode::{Error, Reencode},
};
use wasm_smith::{Config, Module};
use wasmparser::{CompositeInnerType, DataKind, ElementKind, FuncType, Parser, Payload, TypeRef};

use super::{Both, Seen, differential::limits, random_numbers, with_type};
use crate::{
    RequestHead, Tier,
    reset::abi::{Function as HostFunction, functions},
    tests::{compiled, head, taken},
};

/// Imports of the finished module, before the generated one's own: `[resource-drop]request-head` and `write`.
const OWN_IMPORTS: u32 = 2;
/// What generated code may call of the host: nothing that draws lots or tells the time, nor what the finished phase has.
fn host() -> Vec<u8> {
    let mut text = String::from("(module");
    for HostFunction { interface, name, params, results, .. } in functions() {
        let other =
            ["clock@", "random@", "log@"].iter().any(|i| interface.contains(i)) || name.contains("drop]");
        if !other {
            let types =
                |types: &[wasmparser::ValType]| types.iter().map(|t| format!("{t} ")).collect::<String>();
            text += &format!(
                r#"(import "{interface}" "{name}" (func (param {}) (result {})))"#,
                types(params),
                types(results)
            );
        }
    }
    wat::parse_str(text + ")").unwrap()
}

/// Where the finished phase has its text and its verdict, beyond what generated code reaches most.
const TEXT: i32 = 60_000;
const VERDICT: i32 = 60_096;

fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    std::iter::repeat_with(random_numbers(seed)).flat_map(u64::to_le_bytes).take(size).collect()
}

/// What the seed makes, before it is finished.
fn generated(seed: u64) -> Option<Vec<u8>> {
    let bytes = random_bytes(seed, 2_000 + (seed % 5) as usize * 1_000);
    // Half of them come to their end, and call nobody for that: hardly a call would be a good one.
    let calm = seed % 4 < 2;
    let imports = if calm { wat::parse_str("(module)").unwrap() } else { host() };
    let config = Config {
        available_imports: Some(imports),
        min_memories: 1,
        max_memories: 1,
        max_memory32_bytes: 4 << 20,
        min_funcs: 3,
        max_funcs: 12,
        min_globals: 1,
        max_globals: 8,
        max_instructions: 200,
        max_tables: usize::from(seed.is_multiple_of(2)),
        max_table_elements: 100,
        // Without them there is nothing that `memory.init` could name.
        max_data_segments: if seed.is_multiple_of(3) { 4 } else { 0 },
        disallow_traps: calm,
        canonicalize_nans: true,
        allow_start_export: false,
        bulk_memory_enabled: true,
        acquire_release_atomics_enabled: false,
        compact_imports_enabled: false,
        exceptions_enabled: false,
        extended_const_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        max_tags: 0,
        reference_types_enabled: false,
        relaxed_simd_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        ..Config::default()
    };
    let mut module = Module::new(config, &mut Unstructured::new(&bytes)).ok()?;
    module.ensure_termination(10_000).ok()?;
    Some(module.to_bytes())
}

/// Makes room for the imports that come before the generated ones.
struct Finisher;

impl Reencode for Finisher {
    type Error = std::convert::Infallible;

    fn function_index(&mut self, index: u32) -> Result<u32, Error> {
        Ok(index + OWN_IMPORTS)
    }
}

/// The generated module with a phase around it.
fn finished(bytes: &[u8]) -> Option<Vec<u8>> {
    let r = &mut Finisher;
    let (mut types, mut imports, mut functions) =
        (TypeSection::new(), ImportSection::new(), FunctionSection::new());
    let (mut tables, mut memories, mut globals) =
        (TableSection::new(), MemorySection::new(), GlobalSection::new());
    let (mut elements, mut code, mut data) = (ElementSection::new(), CodeSection::new(), DataSection::new());
    let (mut signatures, mut defined, mut imported, mut global_count) = (Vec::new(), Vec::new(), 0, 0);
    let (mut imported_before, mut data_count) = (Vec::new(), None);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.unwrap() {
            Payload::TypeSection(section) => {
                for group in section.clone() {
                    for ty in group.unwrap().into_types() {
                        let CompositeInnerType::Func(ty) = ty.composite_type.inner else { return None };
                        signatures.push(ty);
                    }
                }
                r.parse_type_section(&mut types, section).unwrap();
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.unwrap();
                    let TypeRef::Func(ty) = import.ty else { return None };
                    imported_before.push((import.module.to_owned(), import.name.to_owned(), ty));
                    imported += 1;
                }
            }
            Payload::FunctionSection(section) => {
                defined.extend(section.clone().into_iter().map(Result::unwrap));
                r.parse_function_section(&mut functions, section).unwrap();
            }
            Payload::TableSection(section) => r.parse_table_section(&mut tables, section).unwrap(),
            Payload::MemorySection(section) => {
                if section.clone().into_iter().any(|memory| memory.unwrap().initial == 0) {
                    return None;
                }
                r.parse_memory_section(&mut memories, section).unwrap();
            }
            Payload::GlobalSection(section) => {
                global_count += section.count();
                r.parse_global_section(&mut globals, section).unwrap();
            }
            Payload::ElementSection(section) => {
                let active = |kind: &ElementKind<'_>| matches!(kind, ElementKind::Active { .. });
                if !section.clone().into_iter().all(|element| active(&element.unwrap().kind)) {
                    return None;
                }
                r.parse_element_section(&mut elements, section).unwrap();
            }
            Payload::DataCountSection { count, .. } => data_count = Some(DataCountSection { count }),
            Payload::CodeSectionEntry(body) => r.parse_function_body(&mut code, body).unwrap(),
            Payload::DataSection(section) => {
                let active = |kind: &DataKind<'_>| matches!(kind, DataKind::Active { .. });
                if !section.clone().into_iter().all(|data| active(&data.unwrap().kind)) {
                    return None;
                }
                r.parse_data_section(&mut data, section).unwrap();
            }
            _ => {}
        }
    }
    let drop_type = types.len();
    types.ty().function([ValType::I32], []);
    let write_type = types.len();
    types.ty().function([ValType::I32; 3], []);
    let handle_type = types.len();
    types.ty().function([ValType::I32], [ValType::I32]);
    let realloc_type = types.len();
    types.ty().function([ValType::I32; 4], [ValType::I32]);
    imports.import(
        "beamline:edge/http@0.1.0",
        "[resource-drop]request-head",
        EntityType::Function(drop_type),
    );
    imports.import("beamline:edge/log@0.1.0", "write", EntityType::Function(write_type));
    for (module, name, ty) in &imported_before {
        imports.import(module, name, EntityType::Function(*ty));
    }
    let heap = global_count;
    globals.global(
        GlobalType { val_type: ValType::I32, mutable: true, shared: false },
        &ConstExpr::i32_const(1_024),
    );
    let first = OWN_IMPORTS + imported;
    let handle = first + u32::try_from(defined.len()).unwrap();
    functions.function(handle_type).function(realloc_type);
    code.function(&phase(&signatures, &defined, first));
    code.function(&realloc(heap));
    let mut exports = ExportSection::new();
    exports
        .export("memory", ExportKind::Memory, 0)
        .export("cabi_realloc", ExportKind::Func, handle + 1)
        .export("beamline:edge/request-handler@0.1.0#handle", ExportKind::Func, handle);
    let mut module = wasm_encoder::Module::new();
    module.section(&types).section(&imports).section(&functions).section(&tables).section(&memories);
    module.section(&globals).section(&exports).section(&elements);
    if let Some(count) = data_count {
        module.section(&count);
    }
    module.section(&code).section(&data);
    Some(module.finish())
}

const PLAIN: MemArg = MemArg { offset: 0, align: 0, target: MemArgTarget::Memory(0), ordering: None };

/// Calls up to three generated functions, twice; tells a number for each round.
fn phase(signatures: &[FuncType], defined: &[u32], first: u32) -> Function {
    let (sum, at, digit) = (1, 2, 3);
    let mut f = Function::new([(1, ValType::I64), (2, ValType::I32)]);
    for round in 0..2 {
        for (index, ty) in (first..).zip(defined).take(3) {
            call(&mut f, &signatures[*ty as usize], index, round, sum);
        }
        // All of memory.
        f.instructions().i32_const(0).local_set(at).loop_(BlockType::Empty);
        f.instructions().local_get(sum).i64_const(1).i64_rotl().local_get(at).i64_load(PLAIN).i64_xor();
        f.instructions().local_set(sum).local_get(at).i32_const(8).i32_add().local_tee(at);
        f.instructions().memory_size(0).i32_const(16).i32_shl().i32_lt_u().br_if(0).end();
        // 16 letters.
        f.instructions().i32_const(0).local_set(digit).loop_(BlockType::Empty);
        f.instructions().local_get(digit).i32_const(TEXT).i32_add().local_get(sum).local_get(digit);
        f.instructions().i32_const(4).i32_mul().i64_extend_i32_u().i64_shr_u().i32_wrap_i64().i32_const(15);
        f.instructions().i32_and().i32_const(97).i32_add().i32_store8(PLAIN);
        f.instructions().local_get(digit).i32_const(1).i32_add().local_tee(digit).i32_const(16);
        f.instructions().i32_lt_u().br_if(0).end();
        f.instructions().i32_const(1).i32_const(TEXT).i32_const(16).call(1);
    }
    f.instructions().local_get(0).call(0).i32_const(VERDICT).i64_const(0).i64_store(PLAIN);
    f.instructions().i32_const(VERDICT).end();
    f
}

/// Calls a generated function and adds what it returns.
fn call(f: &mut Function, ty: &FuncType, index: u32, round: i32, sum: u32) {
    use wasmparser::ValType as V;
    for (place, param) in (1..).zip(ty.params()) {
        let number = place * 1_000 + round;
        match param {
            V::I32 => f.instructions().i32_const(number),
            V::I64 => f.instructions().i64_const(number.into()),
            V::F32 => f.instructions().f32_const((number as f32).into()),
            V::F64 => f.instructions().f64_const(f64::from(number).into()),
            V::V128 => f.instructions().v128_const(number.into()),
            V::Ref(_) => f.instructions().ref_null(wasm_encoder::HeapType::FUNC),
        };
    }
    f.instructions().call(index);
    for result in ty.results().iter().rev() {
        match result {
            V::I32 => f.instructions().i64_extend_i32_u(),
            V::I64 => &mut f.instructions(),
            V::F32 => f.instructions().i32_reinterpret_f32().i64_extend_i32_u(),
            V::F64 => f.instructions().i64_reinterpret_f64(),
            V::V128 => f.instructions().i64x2_extract_lane(0),
            V::Ref(_) => f.instructions().drop().i64_const(0),
        };
        f.instructions().local_get(sum).i64_add().local_set(sum);
    }
}

fn realloc(heap: u32) -> Function {
    let mut f = Function::new([]);
    f.instructions().global_get(heap).i32_const(7).i32_add().i32_const(-8).i32_and().global_set(heap);
    f.instructions().global_get(heap).global_get(heap).local_get(3).i32_add().global_set(heap).end();
    f
}

/// What came of many requests in both tiers.
#[derive(Debug, Default)]
struct Outcomes {
    modules: u64,
    ended_well: u64,
    failed: u64,
    /// Those of which not more can be told than that they went too deep, in one tier at least: how deep is too deep
    /// differs.
    too_deep: u64,
    /// Those that used up their time in both.
    too_slow: u64,
    /// Of those that ended well in the reset tier: all, and those whose instance was kept.
    well: u64,
    kept: u64,
}

impl Outcomes {
    /// Requests to a module, which must come to the same in both tiers.
    fn of(&mut self, module: &[u8], requests: usize, head: &RequestHead, seed: u64) {
        let both = Both::of(module);
        self.modules += 1;
        for _ in 0..requests {
            let (mut component, mut seen) = both.pair("null", &limits(), head);
            // What a call costs differs. Given all the time that it wants, each has to come to the same.
            if too_slow(&component) != too_slow(&seen) {
                let patient = FilterLimits { cpu: beamline_model::Duration::millis(1_000), ..limits() };
                (component, seen) = both.pair("null", &patient, head);
            }
            if too_deep(&component) || too_deep(&seen) {
                self.too_deep += 1;
                continue;
            }
            assert_eq!(component, seen, "seed {seed}");
            *if !seen.failed() {
                &mut self.ended_well
            } else if too_slow(&seen) {
                &mut self.too_slow
            } else {
                &mut self.failed
            } += 1;
        }
        self.well += u64::from(both.well.get());
        self.kept += u64::from(both.kept.get());
    }

    /// Enough of them mean something.
    fn judge(&self, seeds: u64) {
        println!("{seeds} seeds: {self:?}");
        // Some grow by much.
        assert!(self.kept * 10 >= self.well * 7, "hardly an instance was kept: {self:?}");
        let all = self.ended_well + self.failed + self.too_deep + self.too_slow;
        assert!((self.too_deep + self.too_slow) * 10 <= all, "much is not compared: {self:?}");
    }
}

fn too_deep(seen: &Seen) -> bool {
    seen.decision.contains("call stack exhausted")
}

fn too_slow(seen: &Seen) -> bool {
    seen.decision.contains("CpuTime(")
}

#[test]
fn generated_modules_do_the_same_in_both() {
    let seeds = super::number("BEAMLINE_SEEDS", 400);
    let mut outcomes = Outcomes::default();
    for seed in 1..=seeds {
        let Some(module) = generated(seed).and_then(|module| finished(&module)) else { continue };
        let module = with_type(module);
        let (info, _) = taken(&module);
        // For what it is made of, which the tests of what does not qualify are about.
        if info.tier == Tier::Component {
            continue;
        }
        outcomes.of(&module, 3, &head(&[("x-seed", "abc")]), seed);
    }
    outcomes.judge(seeds);
    let enough = seeds / 8;
    let Outcomes { modules, ended_well, failed, .. } = outcomes;
    assert!(modules >= enough && ended_well >= enough && failed >= enough, "{outcomes:?}");
}

/// A real module with some bits of its code turned over: most are refused, and what is left does what nobody meant.
#[test]
fn mutated_modules_do_the_same_in_both() {
    let seeds = super::number("BEAMLINE_SEEDS", 300);
    let module = crate::tests::guest("tiny.wasm");
    let code: Vec<usize> = Parser::new(0)
        .parse_all(&module)
        .filter_map(|payload| match payload.unwrap() {
            Payload::CodeSectionEntry(body) => Some(body.range()),
            _ => None,
        })
        .flatten()
        .map(|at| usize::try_from(at).unwrap())
        .collect();
    let mut outcomes = Outcomes::default();
    for seed in 1..=seeds {
        let mut mutated = module.clone();
        for draw in random_bytes(seed, 8 * (1 + seed as usize % 2)).chunks_exact(8) {
            let draw = u64::from_le_bytes(draw.try_into().unwrap());
            mutated[code[(draw >> 8) as usize % code.len()]] ^= 1 << (draw % 8);
        }
        let Ok((info, _)) = compiled(&mutated) else { continue };
        if info.tier == Tier::Component {
            continue;
        }
        outcomes.of(&mutated, 2, &head(&[("x-h12", "other")]), seed);
    }
    outcomes.judge(seeds);
    assert!(outcomes.modules > 20 && outcomes.ended_well > 20, "{outcomes:?}");
}
