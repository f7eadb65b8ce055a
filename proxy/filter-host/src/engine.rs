//! wasmtime as BeamLine uses it: one engine, one instance pool, one tick, one slow lane.

use std::{sync::Arc, time::Duration};

use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
    component::{Component, HasSelf, Linker},
};

use crate::{
    admission::Seats,
    artifact::Artifact,
    bindings::EveryPhase,
    chain::LONGEST_CALL,
    compile::CompileError,
    host::{CallState, MAX_TABLE_ELEMENTS, Running, wasi},
    inspect::{ModuleInfo, Rejection, Tier},
    instances::{self, PinRoom, idle_room, kept_beside},
    load::Unseated,
    module::Module,
    reset::{self, CoreEngine, Hold, Node},
    slow_lane::SlowLane,
    ticker::Ticker,
};

/// Bytes of stack that a guest may use.
pub(crate) const MAX_STACK: usize = 256 << 10;
/// The largest linear memory that any limit can grant; the pool's slots are this large.
pub(crate) const MAX_MEMORY: usize = 64 << 20;

/// What the engine is given.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Instances that can exist at once on this node, beside those that are held for requests and kept for reuse, of which there can be an
    /// eighth and a sixteenth as many. Default 4096: beyond the number of modules in use, so that each keeps warm slots of its own.
    pub pool_instances: u32,
    /// Niced threads that run calls which outlived their first slice. Default 1.
    pub slow_lane_threads: usize,
    /// Whether modules that qualify run in the reset tier; else all run in the component tier. Default true.
    pub reset_tier: bool,
    /// Whether the component tier asks the kernel which pages a call wrote (`PAGEMAP_SCAN`, Linux 6.7), where it can; else all
    /// that it keeps is cleared. Default true.
    pub pagemap_scan: bool,
    /// Wall time after which a call that has not ended is given up, whatever it waits for. Default [`LONGEST_CALL`].
    pub longest_call: Duration,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            pool_instances: 4096,
            slow_lane_threads: 1,
            reset_tier: true,
            pagemap_scan: true,
            longest_call: LONGEST_CALL,
        }
    }
}

/// wasmtime, its pool, the epoch tick and the slow lane. Shared by all workers; ends its threads when dropped.
pub struct Engine {
    ticker: Ticker,
    wasmtime: wasmtime::Engine,
    linker: Linker<Running>,
    cores: CoreEngine,
    reset_tier: bool,
    pub(crate) lane: SlowLane,
    pub(crate) seats: Arc<Seats>,
    pub(crate) longest_call: Duration,
    pub(crate) unseated: Unseated,
    pub(crate) pins: Arc<PinRoom>,
    /// Of instances that are kept for their filters' next requests.
    pub(crate) idle: Arc<Node>,
}

/// What must be the same wherever a module is compiled or run.
fn common_config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_component_model(true)
        .max_wasm_stack(MAX_STACK)
        .async_stack_size(512 << 10)
        // As the environment says otherwise, which the compile worker has not: both must be of one mind.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .parallel_compilation(false);
    config
}

/// The same for core modules of the reset tier. Their memories have no guard, and while they are small no mapping and no system
/// call; a trap is no signal, for a hostile guest's would cost its host several microseconds each.
fn core_config() -> Config {
    let mut config = common_config();
    config
        .wasm_multi_memory(true)
        .signals_based_traps(false)
        .memory_reservation(0)
        .memory_reservation_for_growth(0)
        .memory_guard_size(0)
        .memory_init_cow(false)
        .with_host_memory(reset::creator());
    config
}

/// An engine for core modules. It allocates on demand, so that the compile worker's is the host's.
pub(crate) fn compiling_core_engine() -> wasmtime::Result<wasmtime::Engine> {
    wasmtime::Engine::new(&core_config())
}

/// An engine that compiles and never runs a guest: for the compile worker.
pub(crate) fn compiling_engine() -> wasmtime::Result<wasmtime::Engine> {
    wasmtime::Engine::new(&common_config())
}

pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Running>> {
    let mut linker = Linker::new(engine);
    EveryPhase::add_to_linker::<_, HasSelf<CallState>>(&mut linker, Running::call)?;
    wasi::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// The pool as it measured best for fresh instances: small memories and tables are wiped in place rather than
/// given back to the kernel, and every slot may stay warm.
fn pool(settings: &EngineSettings) -> PoolingAllocationConfig {
    /// Of one component.
    const CORES: u32 = 16;
    const TABLES: u32 = 8;
    let (calls, kept) = (settings.pool_instances, kept_beside(settings.pool_instances));
    let n = calls + kept;
    let mut pool = PoolingAllocationConfig::new();
    // Calls are over soon, and few components have all that they may; kept ones could hold it for long.
    pool.total_component_instances(n)
        .total_core_instances(calls * 4 + kept * CORES)
        .total_memories(n)
        .total_tables(calls * 2 + kept * TABLES)
        .total_stacks(n)
        .max_core_instances_per_component(CORES)
        .max_memories_per_component(1)
        .max_tables_per_component(TABLES)
        .max_memory_size(MAX_MEMORY)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_unused_warm_slots(n)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(64 << 10)
        .pagemap_scan(if settings.pagemap_scan { Enabled::Auto } else { Enabled::No });
    pool
}

impl Engine {
    /// Starts the engine and its threads.
    ///
    /// # Errors
    /// Where the operating system does not give the pool's address space.
    pub fn new(settings: EngineSettings) -> Result<Arc<Self>, CompileError> {
        let broken = |e: wasmtime::Error| CompileError::Host(format!("the Wasm engine did not start: {e:#}"));
        let mut config = common_config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(&settings)));
        let wasmtime = wasmtime::Engine::new(&config).map_err(broken)?;
        let linker = linker(&wasmtime).map_err(broken)?;
        let cores = compiling_core_engine().and_then(CoreEngine::new).map_err(broken)?;
        let ticker = Ticker::start(&wasmtime, cores.wasmtime())
            .map_err(|e| CompileError::Host(format!("no thread for the epoch tick: {e}")))?;
        let lane = SlowLane::start(settings.slow_lane_threads, ticker.clone())
            .map_err(|e| CompileError::Host(format!("no thread for the slow lane: {e}")))?;
        // A quarter of the pool stays free for calls that end within their slice.
        Ok(Arc::new(Self {
            ticker,
            wasmtime,
            linker,
            cores,
            reset_tier: settings.reset_tier,
            lane,
            seats: Seats::new(settings.pool_instances / 4 * 3),
            longest_call: settings.longest_call,
            unseated: Unseated::within(settings.pool_instances),
            pins: PinRoom::beside(settings.pool_instances),
            idle: idle_room(settings.pool_instances),
        }))
    }

    /// Lets go of instances that are kept and that no request has used during some calls of this, on whichever thread they are.
    /// To be called every few seconds, by a thread that has time to free memory.
    pub fn sweep_kept_instances() {
        reset::sweep();
        instances::sweep();
    }

    /// A guest is about to run on this thread: the tick must be on.
    pub(crate) fn about_to_run(&self) {
        self.ticker.keep();
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.wasmtime
    }

    pub(crate) fn cores(&self) -> &CoreEngine {
        &self.cores
    }

    /// Makes an artifact of this build's compile worker ready to run.
    ///
    /// `artifact` is machine code: it must come from the compile worker or from the authenticated cache.
    #[expect(unsafe_code, reason = "wasmtime offers no safe way to load compiled code")]
    pub(crate) fn load(&self, artifact: &[u8], mut info: ModuleInfo) -> Result<Arc<Module>, CompileError> {
        let broken = |e: &dyn std::fmt::Display| {
            CompileError::Host(format!("a compiled module could not be loaded: {e:#}"))
        };
        let (component, core) =
            Artifact::split(artifact).ok_or_else(|| broken(&"it is not of the expected form"))?;
        let core = core.filter(|_| self.reset_tier);
        // SAFETY: `deserialize` runs whatever machine code it is given. Both callers have it from our own compile
        // worker: straight from its pipe, or from the cache, whose MAC was checked with a key that only this node's
        // user can read. wasmtime itself checks that version and settings are this engine's. The cache's tests show
        // that a changed or foreign file is never handed here.
        let (component, core) = unsafe {
            (
                Component::deserialize(&self.wasmtime, component),
                core.map(|core| wasmtime::Module::deserialize(self.cores.wasmtime(), core)),
            )
        };
        // What is whole and of this engine, and yet does not load, is too large for the pool.
        let component = component.map_err(|e| Rejection::TooDemanding { problem: format!("{e:#}") })?;
        let core = core.transpose().map_err(|e| broken(&e))?;
        let core = self.prepared(core.as_ref(), &mut info);
        self.linker
            .instantiate_pre(&component)
            .and_then(|pre| Module::new(self.wasmtime.clone(), pre, core, info))
            .map(Arc::new)
            .map_err(|e| CompileError::Host(format!("a compiled module could not be linked: {e:#}")))
    }

    /// The core module with its first state. Where there is none, `info` is made to say why.
    fn prepared(&self, core: Option<&wasmtime::Module>, info: &mut ModuleInfo) -> Option<Hold> {
        let reason = match core {
            Some(core) => match self.cores.prepare(core, &self.ticker) {
                Ok(hold) => return Some(hold),
                Err(reason) => Some(reason.to_string()),
            },
            None if info.tier == Tier::Reset => Some("the reset tier is switched off on this node".into()),
            None => None,
        };
        info.tier = Tier::Component;
        info.tier_reason = reason.or_else(|| info.tier_reason.take());
        None
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}
