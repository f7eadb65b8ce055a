//! The proof of the reset tier: nothing passes from one request to the next, and no module can tell the tiers apart.

mod arguments;
mod differential;
mod generated;
mod hostile;
mod rejected;
mod state;

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};

use beamline_model::{FilterLimits, InstanceLifetime, OnError, SecretValue};
use tokio::runtime::{Builder, Runtime};

use super::{kept::Kept, shelf};
use crate::{
    Chain, ChainOutcome, Engine, EngineSettings, FilterConfig, FilterSetup, HostView, Module, Redaction,
    RequestHead, Tier,
    tests::{View, guest, taken},
};

/// Engines whose modules run in the one and in the other tier.
struct Tiers {
    reset: Arc<Engine>,
    component: Arc<Engine>,
}

fn tiers() -> &'static Tiers {
    static TIERS: OnceLock<Tiers> = OnceLock::new();
    TIERS.get_or_init(|| {
        let engine = |reset_tier| {
            Engine::new(EngineSettings { pool_instances: 64, reset_tier, ..Default::default() }).unwrap()
        };
        Tiers { reset: engine(true), component: engine(false) }
    })
}

/// A module that runs in both tiers.
struct Both {
    reset: Arc<Module>,
    component: Arc<Module>,
    /// Requests that ended well in the reset tier, and how many of them left a kept instance.
    well: Cell<u32>,
    kept: Cell<u32>,
}

impl Both {
    fn of(bytes: &[u8]) -> Self {
        let (info, artifact) = taken(bytes);
        assert_eq!((info.tier, &info.tier_reason), (Tier::Reset, &None));
        let load = |engine: &Arc<Engine>| engine.load(&artifact, info.clone()).unwrap();
        let both = Self {
            reset: load(&tiers().reset),
            component: load(&tiers().component),
            well: Cell::new(0),
            kept: Cell::new(0),
        };
        assert_eq!(both.reset.info().tier_reason, None);
        assert_eq!((both.reset.info().tier, both.component.info().tier), (Tier::Reset, Tier::Component));
        both
    }

    fn wat(text: &str) -> Self {
        Self::of(&typed(text))
    }

    /// One request in each tier, which must come to the same; what came of it, and whether it failed.
    fn same(&self, config: &str, limits: &FilterLimits, head: &RequestHead) -> Seen {
        let (component, reset) = self.pair(config, limits, head);
        assert_eq!(component, reset, "config {config}, head {head:?}");
        reset
    }

    /// One request in the component tier and one in the reset tier.
    fn pair(&self, config: &str, limits: &FilterLimits, head: &RequestHead) -> (Seen, Seen) {
        self.pair_seeing(config, limits, head, &|| View::new(limits.clone()))
    }

    /// The same, where the host shows it what `view` makes, anew for each.
    fn pair_seeing(
        &self,
        config: &str,
        limits: &FilterLimits,
        head: &RequestHead,
        view: &dyn Fn() -> View,
    ) -> (Seen, Seen) {
        let component = ask_seeing(&tiers().component, &self.component, config, limits, head, view());
        (Seen::of(&component), self.reset_seeing(config, limits, head, view()))
    }

    /// One request in the reset tier alone, after which this thread's instance is as a new one.
    fn reset(&self, config: &str, limits: &FilterLimits, head: &RequestHead) -> Seen {
        self.reset_seeing(config, limits, head, View::new(limits.clone()))
    }

    fn reset_seeing(&self, config: &str, limits: &FilterLimits, head: &RequestHead, view: View) -> Seen {
        let seen = Seen::of(&ask_seeing(&tiers().reset, &self.reset, config, limits, head, view));
        let kept = self.as_new();
        if !seen.failed() {
            self.well.set(self.well.get() + 1);
            self.kept.set(self.kept.get() + u32::from(kept));
        }
        seen
    }

    /// What this thread keeps of the module equals a new instance byte for byte. `false`: it keeps none.
    fn as_new(&self) -> bool {
        let core = self.reset.core().expect("it runs in the reset tier");
        let Some(mut kept) = shelf::take(core) else { return false };
        let mut new = runtime().block_on(Kept::new(core)).unwrap();
        kept.assert_is(&mut new);
        shelf::put(kept);
        true
    }

    /// Of the requests that ended well, at least so many percent left an instance that was kept: what compares equal
    /// to a new one would mean nothing otherwise.
    fn assert_kept(&self, percent: u32) {
        let (well, kept) = (self.well.get(), self.kept.get());
        assert!(
            well > 0 && kept * 100 >= well * percent,
            "of {well} requests that ended well, {kept} were kept"
        );
    }
}

#[test]
fn what_is_not_as_in_a_new_instance_is_seen() {
    let module = Both::wat(&module(&format!("{REALLOC} {}", handle(""))));
    let core = module.reset.core().unwrap();
    for what in 0..5 {
        module.same("null", &FilterLimits::default(), &crate::tests::head(&[]));
        let mut kept = shelf::take(core).expect("it was kept");
        kept.spoil(what);
        let mut new = runtime().block_on(Kept::new(core)).unwrap();
        let compared = catch_unwind(AssertUnwindSafe(|| kept.assert_is(&mut new)));
        assert!(compared.is_err(), "nobody sees that {what} was spoiled");
    }
    module.assert_kept(100);
}

/// What can be seen of a request from outside.
#[derive(Debug, PartialEq)]
struct Seen {
    decision: String,
    head: String,
    log: Vec<String>,
    cut: u64,
    /// What it remembers, where it has later phases to remember it for.
    context: Option<Vec<u8>>,
}

impl Seen {
    fn of(outcome: &ChainOutcome) -> Self {
        let run = &outcome.runs[0];
        Self {
            decision: format!("{:?}", outcome.decision),
            head: format!("{:?} {:?} {:?}", outcome.head.method, outcome.head.uri, outcome.head.headers),
            log: run.log.lines.iter().map(|(level, line)| format!("{level:?} {line}")).collect(),
            cut: run.log.cut,
            context: outcome.contexts.get(0).map(|context| context.to_vec()),
        }
    }

    fn failed(&self) -> bool {
        self.decision.starts_with("Failed")
    }
}

/// Drives calls on the test's own thread, which is their worker: what it keeps is its own.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap())
}

fn ask(
    engine: &Engine,
    module: &Arc<Module>,
    config: &str,
    limits: &FilterLimits,
    head: &RequestHead,
) -> ChainOutcome {
    ask_seeing(engine, module, config, limits, head, View::new(limits.clone()))
}

/// One request to a filter that may read the secret `key`.
fn ask_seeing(
    engine: &Engine,
    module: &Arc<Module>,
    config: &str,
    limits: &FilterLimits,
    head: &RequestHead,
    view: View,
) -> ChainOutcome {
    let secret = SecretValue::new(b"what nobody is told").unwrap();
    let redaction = Redaction::of([&secret]);
    let secrets = vec![("key".parse().unwrap(), Ok(secret))];
    let filter = FilterSetup {
        name: "probe".parse().unwrap(),
        module: Some(Arc::clone(module)),
        config: FilterConfig::with_secrets(&"probe".parse().unwrap(), config, secrets, &redaction),
        on_error: OnError::FailClosed,
        lifetime: InstanceLifetime::Call,
    };
    let chain = Chain::new("acme".parse().unwrap(), limits.clone(), vec![filter]);
    let view: Arc<dyn HostView> = Arc::new(view);
    runtime().block_on(chain.on_request(engine, &view, Box::new(head.clone())))
}

/// Numbers by chance, the same ones for the same seed.
fn random_numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// A core module from text, with its component type.
pub(crate) fn typed(text: &str) -> Vec<u8> {
    with_type(wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}")))
}

/// A core module with the component type that `wit-bindgen` leaves.
fn with_type(mut bytes: Vec<u8>) -> Vec<u8> {
    let tiny = guest("tiny.wasm");
    for payload in wasmparser::Parser::new(0).parse_all(&tiny) {
        if let wasmparser::Payload::CustomSection(section) = payload.unwrap()
            && section.name().starts_with("component-type")
        {
            let custom =
                wasm_encoder::CustomSection { name: section.name().into(), data: section.data().into() };
            wasm_encoder::Section::append_to(&custom, &mut bytes);
        }
    }
    bytes
}

/// The imports that the modules here use, in this order.
const IMPORTS: &str = r#"
    (import "beamline:edge/http@0.1.0" "[method]request-head.get"
        (func $get (param i32 i32 i32 i32)))
    (import "beamline:edge/http@0.1.0" "[resource-drop]request-head" (func $drop (param i32)))
    (import "beamline:edge/log@0.1.0" "write" (func $log (param i32 i32 i32)))
    (import "beamline:edge/random@0.1.0" "get-u64" (func $random (result i64)))
"#;

/// A module around the parts that a test is about. Page 0: text at 0, the return area at 64, numbers at 96, the
/// verdict `next` at 256; `cabi_realloc` hands out from 1024 on.
pub(crate) fn module(body: &str) -> String {
    format!(
        r#"(module {IMPORTS}
            (memory (export "memory") 1)
            (data (i32.const 0) "x-seed")
            (global $heap (mut i32) (i32.const 1024))
            ;; Logs a number as 16 letters.
            (func $say (param $n i64)
                (local $i i32)
                (loop $next
                    (i32.store8 offset=96 (local.get $i)
                        (i32.add (i32.const 97) (i32.wrap_i64 (i64.and (local.get $n) (i64.const 15)))))
                    (local.set $n (i64.shr_u (local.get $n) (i64.const 4)))
                    (br_if $next (i32.lt_u
                        (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 16))))
                (call $log (i32.const 1) (i32.const 96) (i32.const 16)))
            {body})"#
    )
}

pub(crate) const REALLOC: &str = r#"
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
        (global.set $heap (i32.add (local.get $at) (local.get 3)))
        (local.get $at))"#;

/// A phase that runs `work` (the handle is `$h`), drops the handle and says `next`.
pub(crate) fn handle(work: &str) -> String {
    format!(
        r#"(func (export "beamline:edge/request-handler@0.1.0#handle") (param $h i32) (result i32)
            {work}
            (call $drop (local.get $h))
            (i32.const 256))"#
    )
}

/// The number that a variable of the environment names, or this one where there is no such variable.
pub(super) fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("{variable}: expected a whole number; found {text:?}"))
        }
        Err(_) => otherwise,
    }
}
