//! One guest call: a fresh instance, its CPU clock, and how it can fail.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use thiserror::Error;
use wasmtime::{Store, Trap, UpdateDeadline, component::Resource};

use crate::{
    bindings::beamline::edge::verdicts::Verdict, host::CallState, module::Module, reset, ticker::TICK,
};

/// CPU time after which a guest is set aside, at the next epoch tick. A guest that spins holds a data worker for 1 to 2 ms:
/// to the first tick, from which its CPU time is counted, and one tick more.
pub const SLICE: Duration = Duration::from_micros(500);

/// Why a filter call gave no verdict.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The guest trapped: a panic, an unreachable instruction, a bad access, a stack overflow.
    #[error("the module trapped: {0}")]
    Trap(String),
    /// The call used more CPU time than its limit.
    #[error(
        "the call used more than its limit of {0:?} CPU time: make it shorter, or ask for more in limits.cpu"
    )]
    CpuTime(Duration),
    /// The call had not ended after this time, most of which it waited for a processor.
    #[error(
        "the call had not ended {0:?} after it began: too many long calls are under way, or the node is short of processors"
    )]
    WallTime(Duration),
    /// The call failed after memory growth had been refused.
    #[error(
        "the instance asked for more than its limit of {0} bytes of memory, then trapped: use less, or ask for more in limits.memory"
    )]
    Memory(usize),
    /// Too many calls of this tenant, or of the node, are under way.
    #[error("too many filter calls are under way")]
    Capacity,
    /// The verdict has a part that cannot be carried out.
    #[error("the verdict cannot be carried out: {0}")]
    Verdict(String),
    /// The module is not loaded on this node.
    #[error("the module is not loaded on this node")]
    Unavailable,
}

/// What a slice is measured by: wall time on a data worker, where it is short, or the thread's CPU time in the
/// slow lane, whose niced thread may wait long between two instructions.
#[derive(Clone, Copy)]
enum SliceClock {
    Wall(Instant),
    Cpu(Duration),
}

thread_local! {
    static SLICE_CLOCK: Cell<Option<SliceClock>> = const { Cell::new(None) };
}

fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Begins a slice on a data worker.
pub(crate) fn begin_inline_slice(now: Instant) {
    SLICE_CLOCK.set(Some(SliceClock::Wall(now)));
}

/// Begins a slice on a slow-lane thread; returns the thread's CPU time.
pub(crate) fn begin_lane_slice() -> Duration {
    let now = thread_cpu();
    SLICE_CLOCK.set(Some(SliceClock::Cpu(now)));
    now
}

/// Ends a slice on a slow-lane thread that began at `start`; returns the CPU time that it took.
pub(crate) fn end_lane_slice(start: Duration) -> Duration {
    thread_cpu().saturating_sub(start)
}

fn slice_elapsed() -> Duration {
    match SLICE_CLOCK.get() {
        Some(SliceClock::Wall(start)) => start.elapsed(),
        Some(SliceClock::Cpu(start)) => thread_cpu().saturating_sub(start),
        None => Duration::ZERO,
    }
}

/// The CPU time of one call over its slices.
pub(crate) struct CpuClock {
    limit: Duration,
    before: Duration,
}

impl CpuClock {
    pub(crate) fn start(limit: Duration) -> Self {
        Self { limit, before: Duration::ZERO }
    }

    pub(crate) fn used(&self) -> Duration {
        self.before + slice_elapsed()
    }
}

#[derive(Debug, Error)]
#[error("CPU time exhausted")]
struct CpuExhausted;

/// Gives the thread back once.
struct SetAside(bool);

impl Future for SetAside {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// At every epoch tick that a running guest meets.
pub(crate) fn at_tick(state: &mut CallState) -> wasmtime::Result<UpdateDeadline> {
    let slice = slice_elapsed();
    if let Some(SliceClock::Wall(_)) = SLICE_CLOCK.get() {
        // The first tick on a data worker. By the wall the guest may have used anything from nothing to a tick: the
        // thread may have been off its processor. From here on its CPU time is read, which few calls live to pay for.
        state.cpu.before += slice.min(TICK);
        SLICE_CLOCK.set(Some(SliceClock::Cpu(thread_cpu())));
        return Ok(UpdateDeadline::Continue(1));
    }
    if state.cpu.before + slice >= state.cpu.limit {
        return Err(CpuExhausted.into());
    }
    if slice < SLICE {
        return Ok(UpdateDeadline::Continue(1));
    }
    state.cpu.before += slice;
    // The slice is accounted for; what is left of this poll belongs to the next one.
    SLICE_CLOCK.set(None);
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(SetAside(false))))
}

/// What a finished call leaves: the state that went in, and a verdict or why there is none.
pub(crate) struct Finished {
    pub(crate) state: CallState,
    pub(crate) verdict: Result<Verdict, Failure>,
    pub(crate) cpu: Duration,
}

/// Runs the request phase of `module`, in the tier that it has. The future is `Send`: it may move between threads
/// whenever it is pending.
pub(crate) async fn on_request(module: Arc<Module>, state: CallState) -> Finished {
    match module.core().map(Arc::clone) {
        Some(core) => reset::on_request(module, &core, state).await,
        None => in_fresh_instance(module, state).await,
    }
}

/// Runs the request phase of `module` in a fresh component instance.
pub(crate) async fn in_fresh_instance(module: Arc<Module>, state: CallState) -> Finished {
    let mut store = Store::new(module.engine(), state);
    store.limiter(|state| &mut state.memory);
    store.epoch_deadline_callback(|mut cx| at_tick(cx.data_mut()));
    store.set_epoch_deadline(1);
    let outcome = async {
        let filter = module.pre().instantiate_async(&mut store).await?;
        filter.beamline_edge_request_handler().call_handle(&mut store, Resource::new_borrow(0)).await
    }
    .await;
    let state = store.into_data();
    let verdict = outcome.map_err(|error| classify(&error, &state));
    let cpu = state.cpu_used();
    Finished { state, verdict, cpu }
}

/// What a guest's failure is put down to.
pub(crate) fn classify(error: &wasmtime::Error, state: &CallState) -> Failure {
    if error.downcast_ref::<CpuExhausted>().is_some() {
        Failure::CpuTime(state.cpu.limit)
    } else if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
        Failure::Capacity
    } else if state.memory.refused {
        Failure::Memory(state.memory.limit)
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        Failure::Trap(trap.to_string())
    } else {
        Failure::Trap(error.root_cause().to_string())
    }
}
