//! One guest call: a fresh instance, its CPU clock, and how it can fail.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use thiserror::Error;
use wasmtime::{
    Store, Trap, UpdateDeadline, WasmBacktrace,
    component::{Instance, Resource},
};

use crate::{
    bindings::{
        beamline::edge::{
            bodies::ChunkVerdict,
            verdicts::{ResponseVerdict, Verdict},
        },
        exports::beamline::edge::{
            finish_handler::Outcome, whole_request_handler::Decision as WholeRequestDecision,
            whole_response_handler::Decision as WholeResponseDecision,
        },
    },
    host::{CallState, HostCallsExhausted, Running},
    module::Module,
    phases::Phase,
    reset,
    slow_lane::Call,
    ticker::TICK,
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
    /// The call had not ended after this time, most of which it waited: for answers to its own requests, a time, or a processor.
    #[error(
        "the call had not ended {0:?} after it began: it waited for answers to its requests or for a time, too many long calls are under way, or the node is short of processors"
    )]
    WallTime(Duration),
    /// The call failed after memory growth had been refused.
    #[error(
        "the instance asked for more than its limit of {0} bytes of memory, then trapped: use less, or ask for more in limits.memory"
    )]
    Memory(usize),
    /// The call called more host functions than its limit.
    #[error("the call called more than {0} host functions: call fewer, or ask for more in limits.host_calls")]
    HostCalls(u32),
    /// Too many long calls of this tenant are under way, or of the node's.
    #[error("too many filter calls are under way: try again, or ask for more in limits.concurrency")]
    Capacity,
    /// The node has no room for one more instance; or the worker, or the tenant's half of it, for what would be kept of a body.
    #[error(
        "the node, or the tenant's half of it, has no room for the body that the filter is to see, or for one more call: try again, or have fewer or smaller bodies kept"
    )]
    Room,
    /// The tenant's requests hold as many pinned instances as they may: so many.
    #[error(
        "the tenant's requests hold {0} pinned instances on this node, as many as they may: try again, or ask for more in limits.pinned_instances"
    )]
    Pinned(u32),
    /// The node has no room for one more pinned instance.
    #[error(
        "the tenant's requests, or those of all tenants, hold as many pinned instances as the node has room for: try again, or ask for less in limits.memory, which is what each is counted by"
    )]
    PinRoom,
    /// More of a body would have to be kept than `limits.body`.
    #[error("more than limits.body = {limit} bytes of the {} would have to be kept: send less, or ask for more in limits.body", if *.response { "response's body" } else { "request's body" })]
    Body {
        /// The limit in bytes.
        limit: u64,
        /// Whose body it is: the response's, or the request's.
        response: bool,
    },
    /// The verdict has a part that cannot be carried out.
    #[error("the verdict cannot be carried out: {0}")]
    Verdict(String),
    /// The host's side of the call failed: a fault of this node, whose standard error has it.
    #[error("the node's own side of the call failed: the operator finds why in the node's output")]
    Host,
    /// The module is not loaded on this node.
    #[error("the module is not loaded on this node")]
    Unavailable,
    /// The module failed too often lately: it is left out for this long.
    #[error(
        "the filter failed too often lately and is left out for another {0:?}: see the log for why it failed"
    )]
    LeftOut(Duration),
}

impl Failure {
    /// Whether the module is to blame, not the node or what else the tenant runs.
    pub(crate) fn is_the_modules(&self) -> bool {
        matches!(
            self,
            Self::Trap(_) | Self::CpuTime(_) | Self::Memory(_) | Self::HostCalls(_) | Self::Verdict(_)
        )
    }
}

/// Bytes that a guest may hand to the host at once: a verdict with its body, or the arguments of a host function.
/// They are copied, and a guest can name the same bytes many times over in one list. The largest body of a filter, and a
/// head.
pub(crate) const MAX_HANDED_OVER: usize = 17 << 20;
/// Handles of resources that an instance may hold at once.
pub(crate) const MAX_HANDLES: usize = 1_000;
/// Bytes of a backtrace that are kept.
const MAX_BACKTRACE: usize = 2_048;
/// Bytes of one of its lines: names are the guest's, and as long as it likes.
const MAX_BACKTRACE_LINE: usize = 160;

/// What a slice is measured by: wall time on a data worker, where it is short, or the thread's CPU time in the
/// slow lane, whose niced thread may wait long between two instructions.
#[derive(Clone, Copy)]
enum SliceClock {
    Wall(Instant),
    Cpu(Duration),
}

thread_local! {
    static SLICE_CLOCK: Cell<Option<SliceClock>> = const { Cell::new(None) };
    /// Whether the call that was polled last on this thread waits for an answer from outside.
    static WAITING: Cell<bool> = const { Cell::new(false) };
    /// Whether the call that runs on this thread has a seat.
    static SEATED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is one of the slow lane's.
    static IN_LANE: Cell<bool> = const { Cell::new(false) };
}

/// CPU time of this thread.
pub(crate) fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Begins a slice on a data worker, of a call that has a seat or not.
pub(crate) fn begin_inline_slice(now: Instant, seated: bool) {
    WAITING.set(false);
    SEATED.set(seated);
    SLICE_CLOCK.set(Some(SliceClock::Wall(now)));
}

/// This thread is one of the slow lane's.
pub(crate) fn this_is_the_lane() {
    IN_LANE.set(true);
}

/// Begins a slice on a slow-lane thread; returns the thread's CPU time.
pub(crate) fn begin_lane_slice() -> Duration {
    WAITING.set(false);
    SEATED.set(true);
    let now = thread_cpu();
    SLICE_CLOCK.set(Some(SliceClock::Cpu(now)));
    now
}

/// Ends a slice on a slow-lane thread that began at `start`; returns the CPU time that it took.
pub(crate) fn end_lane_slice(start: Duration) -> Duration {
    thread_cpu().saturating_sub(start)
}

/// Ends a call's slice, for it waits for an answer from outside: its CPU time stands still until the next slice begins.
pub(crate) fn begin_waiting(cpu: &mut CpuClock) {
    set_aside(cpu);
    WAITING.set(true);
}

/// Ends a call's slice, for it is to go on in the slow lane: its CPU time stands still until the next slice begins.
pub(crate) fn set_aside(cpu: &mut CpuClock) {
    // By the wall only until the first tick: see `at_tick`.
    let slice = match SLICE_CLOCK.get() {
        Some(SliceClock::Wall(start)) => start.elapsed().min(TICK),
        _ => slice_elapsed(Instant::now()),
    };
    cpu.before += slice;
    SLICE_CLOCK.set(None);
}

/// Whether the call whose slice began last on this thread, and that is pending, waits for an answer from outside rather than for
/// its next slice.
pub(crate) fn is_waiting() -> bool {
    WAITING.get()
}

/// Whether the call that runs on this thread has a seat, without which none waits for an answer from outside.
pub(crate) fn has_seat() -> bool {
    SEATED.get()
}

fn slice_elapsed(now: Instant) -> Duration {
    match SLICE_CLOCK.get() {
        Some(SliceClock::Wall(start)) => now.saturating_duration_since(start),
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

    pub(crate) fn used(&self, now: Instant) -> Duration {
        self.before + slice_elapsed(now)
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

/// Gets a call off a data worker, before it does there what takes long and meets no tick.
pub(crate) async fn go_to_the_lane(cpu: &mut CpuClock) {
    if !IN_LANE.get() {
        set_aside(cpu);
        SetAside(false).await;
    }
}

/// At every epoch tick that a running guest meets.
pub(crate) fn at_tick(state: &mut CallState) -> wasmtime::Result<UpdateDeadline> {
    let slice = slice_elapsed(Instant::now());
    if let Some(SliceClock::Wall(_)) = SLICE_CLOCK.get() {
        // The first tick on a data worker. By the wall the guest may have used anything from nothing to a tick: the
        // thread may have been off its processor. From here on its CPU time is read, which few calls live to pay for.
        state.cpu.before += slice.min(TICK);
        // A call that waits often may meet no other tick in any of its slices.
        if state.cpu.before >= state.cpu.limit {
            return Err(CpuExhausted.into());
        }
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

/// What a finished call leaves: the state that went in, and what the guest gave or why it gave nothing.
pub(crate) struct Finished {
    pub(crate) state: Box<CallState>,
    pub(crate) given: Result<Given, Failure>,
    pub(crate) ended: Instant,
    pub(crate) cpu: Duration,
    /// The functions that were running where it trapped, innermost first; by name where the module has names.
    pub(crate) backtrace: Option<Box<str>>,
}

/// What a guest gives, by its phase.
pub(crate) enum Given {
    Request(Verdict),
    WholeRequest(WholeRequestDecision),
    Response(ResponseVerdict),
    WholeResponse(WholeResponseDecision),
    Chunk(ChunkVerdict),
    Nothing,
}

/// What a phase is given beside the heads.
pub(crate) enum Input {
    Request,
    WholeRequest(Bytes),
    RequestBody(Bytes, bool),
    Response,
    WholeResponse(Bytes),
    ResponseBody(Bytes, bool),
    Finish(Outcome),
}

impl Input {
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Self::Request => Phase::Request,
            Self::WholeRequest(_) => Phase::WholeRequest,
            Self::RequestBody(..) => Phase::RequestBody,
            Self::Response => Phase::Response,
            Self::WholeResponse(_) => Phase::WholeResponse,
            Self::ResponseBody(..) => Phase::ResponseBody,
            Self::Finish(_) => Phase::Finish,
        }
    }
}

/// A store for an instance of `module`, in which a call runs at once, or later.
pub(crate) fn store(module: &Module, running: Running) -> Store<Running> {
    let mut store = Store::new(module.engine(), running);
    store.limiter_async(|running| running.call());
    store.set_hostcall_fuel(MAX_HANDED_OVER);
    store.set_max_component_handles(MAX_HANDLES);
    store.epoch_deadline_callback(|mut cx| at_tick(cx.data_mut().call()));
    store.set_epoch_deadline(1);
    store
}

/// What a call leaves that came to this.
pub(crate) fn finished(state: Box<CallState>, outcome: wasmtime::Result<Given>) -> Finished {
    let backtrace = outcome.as_ref().err().and_then(backtrace);
    let given = outcome.map_err(|error| classify(&error, &state));
    let ended = Instant::now();
    let cpu = state.cpu.used(ended);
    Finished { state, given, ended, cpu, backtrace }
}

/// Runs the request phase of `module`, in the tier that it has. The call may move between threads whenever it is pending.
pub(crate) fn on_request(module: Arc<Module>, state: Box<CallState>) -> Call {
    match module.core().map(Arc::clone) {
        Some(core) => Box::pin(reset::on_request(module, core, state)),
        None => Box::pin(in_fresh_instance(module, state)),
    }
}

/// Runs the request phase of `module` in a fresh component instance.
pub(crate) async fn in_fresh_instance(module: Arc<Module>, state: Box<CallState>) -> Finished {
    let mut store = store(&module, Running::of(state));
    let outcome = async {
        let instance = module.pre().instantiate_async(&mut store).await?;
        let guest = module.exports().request(&mut store, &instance)?;
        guest.call_handle(&mut store, Resource::new_borrow(0)).await.map(Given::Request)
    }
    .await;
    finished(store.into_data().end(), outcome)
}

/// Runs a later phase of `module`, in a fresh component instance whatever tier its request phase has. Apart from the
/// request phase, whose future stays as small as it can be.
pub(crate) async fn on_later(module: Arc<Module>, input: Input, state: Box<CallState>) -> Finished {
    let mut store = store(&module, Running::of(state));
    let outcome = async {
        let instance = module.pre().instantiate_async(&mut store).await?;
        given(&module, &mut store, &instance, &input).await
    }
    .await;
    finished(store.into_data().end(), outcome)
}

/// What an instance of `module` gives in the phase that `input` is for.
pub(crate) async fn given(
    module: &Module,
    store: &mut Store<Running>,
    instance: &Instance,
    input: &Input,
) -> wasmtime::Result<Given> {
    let exports = module.exports();
    // Their numbers mean nothing: see `host/http.rs`.
    let (request, response) = (Resource::new_borrow(0), Resource::new_borrow(0));
    Ok(match input {
        Input::Request => {
            let guest = exports.request(&mut *store, instance)?;
            Given::Request(guest.call_handle(store, request).await?)
        }
        Input::WholeRequest(body) => {
            let guest = exports.whole_request(&mut *store, instance)?;
            Given::WholeRequest(guest.call_handle(store, request, body).await?)
        }
        Input::RequestBody(chunk, last) => {
            let guest = exports.request_body(&mut *store, instance)?;
            Given::Chunk(guest.call_handle(store, request, chunk, *last).await?)
        }
        Input::Response => {
            let guest = exports.response(&mut *store, instance)?;
            Given::Response(guest.call_handle(store, request, response).await?)
        }
        Input::WholeResponse(body) => {
            let guest = exports.whole_response(&mut *store, instance)?;
            Given::WholeResponse(guest.call_handle(store, request, response, body).await?)
        }
        Input::ResponseBody(chunk, last) => {
            let guest = exports.response_body(&mut *store, instance)?;
            Given::Chunk(guest.call_handle(store, request, response, chunk, *last).await?)
        }
        Input::Finish(outcome) => {
            let guest = exports.finish(&mut *store, instance)?;
            guest.call_handle(store, request, outcome).await?;
            Given::Nothing
        }
    })
}

/// The backtrace of a failure, bounded in lines and bytes.
fn backtrace(error: &wasmtime::Error) -> Option<Box<str>> {
    let whole = error.downcast_ref::<WasmBacktrace>()?.to_string();
    Some(bounded(&whole)).filter(|text| !text.is_empty()).map(Into::into)
}

/// The frames of a backtrace as wasmtime writes it: what stands before them and control characters left out.
fn bounded(backtrace: &str) -> String {
    let mut out = String::new();
    // Each frame begins with its number and a colon.
    let frames =
        backtrace.lines().map(str::trim).filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    for line in frames {
        let end = line.floor_char_boundary(MAX_BACKTRACE_LINE);
        if out.len() + end + 1 > MAX_BACKTRACE {
            break;
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out.extend(line[..end].chars().filter(|c| !c.is_control()));
    }
    out
}

/// What a guest's failure is put down to.
fn classify(error: &wasmtime::Error, state: &CallState) -> Failure {
    if error.downcast_ref::<CpuExhausted>().is_some() {
        Failure::CpuTime(state.cpu.limit)
    } else if error.downcast_ref::<HostCallsExhausted>().is_some() {
        Failure::HostCalls(state.calls.limit)
    } else if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
        Failure::Room
    } else if state.memory.refused {
        Failure::Memory(state.memory.limit)
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        Failure::Trap(trap.to_string())
    } else {
        Failure::Trap(error.root_cause().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_bounded_whatever_a_module_calls_its_functions() {
        let long = "é".repeat(1000);
        let frames: String = (0..20).map(|i| format!("    {i}:   0x1f - evil.wasm!{long}\u{7}\n")).collect();
        let text = bounded(&format!("error while executing at wasm backtrace:\n{frames}"));
        assert!(text.starts_with("0:   0x1f - evil.wasm!é") && text.len() <= MAX_BACKTRACE, "{text}");
        assert!(text.lines().count() > 5 && text.lines().all(|l| l.len() <= MAX_BACKTRACE_LINE), "{text}");
        assert_eq!(bounded("nothing of it"), "");
    }
}
