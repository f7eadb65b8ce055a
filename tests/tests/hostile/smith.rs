//! Modules that nobody thought of: made by `wasm-smith` from a seed, with the imports and exports of a filter.
//!
//! Each has a seed of its own, which is printed where it does harm; `BEAMLINE_SMITH_SEED` begins with it.

use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use beamline_tests::{environment, heavy::heavy, seed::Seed};
use wasm_smith::{Config, Module};

use crate::{
    guest::{Guest, embedded},
    kinds::{End, Kind},
    scene::{Stage, is_long},
};

/// Modules between two looks at the node and the quiet tenant.
const BATCH: u64 = 25;

/// Modules of one node, within what a tenant may keep.
const OF_ONE_NODE: u64 = 2_000;
/// Modules after which a node holds what it always will: its pools have been used, its caches and tables are filled.
const SETTLED: u32 = 300;
/// What it may hold more from then on, however many modules come and go.
const MORE: u64 = 128 << 20;

/// What a node held when it had settled, and a look at what it holds now.
#[derive(Default)]
struct Leaks {
    settled: Option<u64>,
    samples: Vec<u64>,
}

impl Leaks {
    fn look(&mut self, stage: &Stage) {
        let resident = stage.resident();
        self.samples.push(resident >> 20);
        if stage.taken() >= SETTLED {
            let settled = *self.settled.get_or_insert(resident);
            let more = resident.saturating_sub(settled);
            assert!(
                more <= MORE,
                "{} modules left {} MiB behind: {:?} MiB",
                stage.taken(),
                more >> 20,
                self.samples
            );
        }
    }
}

/// The module of a seed; none where the seed's randomness gives none.
fn module(seed: u64) -> Option<Vec<u8>> {
    let mut random = Seed::new(seed);
    let size = random.within(200..6_000) as usize;
    let bytes = random.bytes(size);
    // Most keep to what a filter may use, so that they run; some use all there is.
    let plain = !random.one_in(8);
    let example = Guest::next().core_module();
    let config = Config {
        available_imports: Some(example.clone()),
        exports: Some(example),
        max_instructions: 300,
        max_funcs: 30,
        max_memories: if plain { 1 } else { 3 },
        max_tables: if plain { 1 } else { 4 },
        max_memory32_bytes: if plain { 4 << 20 } else { 1 << 32 },
        max_table_elements: if plain { 10_000 } else { 1_000_000 },
        memory64_enabled: !plain,
        threads_enabled: !plain,
        gc_enabled: !plain,
        exceptions_enabled: !plain,
        compact_imports_enabled: false,
        reference_types_enabled: !plain,
        wide_arithmetic_enabled: !plain,
        max_tags: if plain { 0 } else { 10 },
        ..Config::default()
    };
    let module = Module::new(config, &mut Unstructured::new(&bytes)).ok()?;
    Some(embedded(&module.to_bytes()))
}

#[test]
fn a_seed_makes_the_same_module_each_time() {
    let made = |seed| module(seed).unwrap_or_default();
    assert!((1..20).all(|seed| made(seed) == made(seed)));
    assert!((1..20).any(|seed| made(seed) != made(seed + 1)));
}

#[test]
fn modules_of_any_seed_are_contained() {
    let _heavy = heavy().unwrap();
    let any = || Seed::from_env("modules_of_any_seed_are_contained").within(0..1 << 40);
    let first = environment::number("BEAMLINE_SMITH_SEED").unwrap_or_else(any);
    let minutes = environment::number("BEAMLINE_SMITH_MINUTES").unwrap_or(10);
    let lasting = Duration::from_secs(if is_long() { minutes * 60 } else { 6 });
    let (mut stage, mut leaks) = (Stage::in_tier("reset"), Leaks::default());
    let mut tiers = ["component", "reset"].into_iter().cycle();
    let (began, mut made, mut ran) = (Instant::now(), 0, 0);
    while began.elapsed() < lasting {
        let quiet = stage.begin();
        let seeds = first + made..first + made + BATCH;
        for seed in seeds.clone() {
            let Some(module) = module(seed) else { continue };
            let kind = Kind { name: "made by a seed".into(), module, end: End::Contained };
            let answers = stage.provoke(&kind);
            ran +=
                u64::from(!answers.unwrap_or_else(|e| panic!("BEAMLINE_SMITH_SEED={seed}: {e}")).is_empty());
        }
        made += BATCH;
        stage.judge(quiet).unwrap_or_else(|e| panic!("one of the seeds {seeds:?}: {e}"));
        leaks.look(&stage);
        if made % OF_ONE_NODE == 0 {
            stage.is_well();
            println!("{made} seeds, {:?}; the last node held {:?} MiB", began.elapsed(), leaks.samples);
            // What qualifies for the one tier runs in either, a node after the other.
            let tier = tiers.next().expect("they go round");
            (stage, leaks) = (Stage::in_tier(tier), Leaks::default());
        }
    }
    stage.is_well();
    println!("the node held {:?} MiB", leaks.samples);
    println!("{made} seeds from {first} on; {ran} of their modules ran");
    assert!(ran * 10 >= made, "hardly any module runs: {ran} of {made}");
}
