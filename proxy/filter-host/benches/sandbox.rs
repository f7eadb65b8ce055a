//! The sandbox alone: what one filter call costs that reads 12 headers, in each tier, with 1 and with 1,000 modules.
//!
//! CPU time of the thread, median of nine loops; the whole of `Chain::on_request` counts. `BEAMLINE_BIN` compiles (the
//! release binary by default), `MODULES` says how many are many. `make bench SUITE=filter` runs it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use beamline_filter_host::{
    Chain, Compilation, Compiler, CompilerSettings, Decision, Engine, EngineSettings, Exchange, FilterConfig,
    FilterSetup, HostView, Metric, MetricRefusal, OutboundError, OutboundRequest, Properties, RequestHead,
    TenantState, Tier, UpstreamStatus,
};
use beamline_model::{Ceilings, FilterLimits, InstanceLifetime, Limit, LimitClass, OnError, TenantName};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// µs for one call in the reset tier, and where it should be.
const BAR_RESET: f64 = 1.5;
const GOAL_RESET: f64 = 0.8;
/// µs for one call in the component tier.
const BAR_COMPONENT: f64 = 13.0;
const LOOPS: usize = 9;
const CALLS: usize = 20_000;

struct View {
    state: TenantState,
    limits: FilterLimits,
}

/// The filter that is measured asks for none of it.
impl HostView for View {
    fn upstream(&self, _: &str) -> Option<UpstreamStatus> {
        None
    }

    fn properties(&self) -> Properties {
        Properties {
            client: "192.0.2.7:4000".parse().expect("an address"),
            request_id: "id".into(),
            trace_id: "trace".into(),
            tenant: "bench".into(),
            revision: 1,
            scheme: "http",
            tls_server_name: None,
        }
    }

    fn state(&self) -> &TenantState {
        &self.state
    }

    fn limits(&self) -> &FilterLimits {
        &self.limits
    }

    fn crossed(&self, _: &str, _: Limit) {}

    fn count(&self, _: &str, _: Metric<'_>) -> Result<(), MetricRefusal> {
        Ok(())
    }

    fn send(&self, _: OutboundRequest) -> Exchange {
        Box::pin(async { Err(OutboundError::Connect("nothing is sent here".into())) })
    }
}

fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn head() -> Box<RequestHead> {
    let mut headers = HeaderMap::new();
    for i in 1..=12 {
        let name = HeaderName::try_from(format!("x-h{i}")).expect("a token");
        headers.insert(name, HeaderValue::try_from(format!("{i:0>64}")).expect("digits"));
    }
    RequestHead::new(Method::GET, "/".parse().expect("a path"), "bench.test".into(), headers)
}

/// The same module with another custom section, so that its digest is another.
fn with_section(module: &[u8], n: usize) -> Vec<u8> {
    let text = format!("\x05bench{n}");
    [module, &[0, u8::try_from(text.len()).expect("short")], text.as_bytes()].concat()
}

async fn chains(compiler: &Compiler, module: &[u8], n: usize) -> Vec<Chain> {
    let mut chains = Vec::new();
    for i in 0..n {
        let tenant: TenantName = format!("t{i}").parse().expect("a name");
        let class = LimitClass::Small;
        let of = Compilation { tenant: tenant.clone(), class, limits: Ceilings::of(class).module };
        let compiled = compiler.compile(with_section(module, i).into(), &of).await.expect("it compiles");
        let filter = FilterSetup {
            name: "bench".parse().expect("a name"),
            module: Some(compiled.module),
            config: FilterConfig::new(&"bench".parse().expect("a name"), "null"),
            on_error: OnError::FailClosed,
            lifetime: InstanceLifetime::Call,
        };
        chains.push(Chain::new(tenant, FilterLimits::default(), vec![filter]));
    }
    chains
}

/// µs of a call: the median of the loops, and the least, which a busy machine disturbs less.
async fn measure(engine: &Engine, chains: &[Chain]) -> (f64, f64) {
    let view: Arc<dyn HostView> =
        Arc::new(View { state: TenantState::new(), limits: FilterLimits::default() });
    let mut head = head();
    let mut random = 1_u64;
    let mut loops = Vec::new();
    for _ in 0..=LOOPS {
        let started = thread_cpu();
        for _ in 0..CALLS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let chain = &chains[usize::try_from(random).unwrap_or(0) % chains.len()];
            let outcome = chain.on_request(engine, &view, head).await;
            assert!(matches!(outcome.decision, Decision::Route { .. }), "{:?}", outcome.decision);
            head = outcome.head;
        }
        loops.push((thread_cpu() - started).as_secs_f64() * 1e6 / CALLS as f64);
    }
    // The first one warms up.
    loops.remove(0);
    loops.sort_by(f64::total_cmp);
    (loops[LOOPS / 2], loops[0])
}

fn main() {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let worker =
        std::env::var_os("BEAMLINE_BIN").map_or_else(|| root.join("target/release/beamline"), PathBuf::from);
    let module =
        std::fs::read(root.join("target/guests/tiny.wasm")).expect("`make guests` builds target/guests");
    let many = std::env::var("MODULES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let cache = tempfile::tempdir().expect("a folder for the cache");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!(
        "one call of a filter that reads 12 headers, fresh semantics: CPU of its thread, median of {LOOPS} loops"
    );
    let cases = [
        (Tier::Reset, true, "", BAR_RESET),
        (Tier::Component, true, "", BAR_COMPONENT),
        (Tier::Component, false, " without PAGEMAP_SCAN", BAR_COMPONENT),
    ];
    for (tier, pagemap_scan, how, bar) in cases {
        let reset_tier = tier == Tier::Reset;
        let settings = EngineSettings { reset_tier, pagemap_scan, ..EngineSettings::default() };
        let engine = Engine::new(settings).expect("the engine starts");
        let compiler = CompilerSettings { cache_dir: cache.path().into(), worker: worker.clone() };
        let compiler = Compiler::new(Arc::clone(&engine), compiler).expect("the cache opens");
        for n in [1, many] {
            let (found, least) = runtime.block_on(async {
                let chains = chains(&compiler, &module, n).await;
                measure(&engine, &chains).await
            });
            let goal = if tier == Tier::Reset { format!(" (goal {GOAL_RESET})") } else { String::new() };
            // The bars are for one module; with many, caches are cold, and the whole proxy has bars of its own.
            let verdict = if n > 1 {
                String::new()
            } else if found <= bar {
                format!(", at most {bar}{goal}: met")
            } else {
                format!(", at most {bar}{goal}: MISSED")
            };
            println!("{tier:?}{how}, {n} modules: {found:.2} µs (least {least:.2}){verdict}");
        }
    }
}
