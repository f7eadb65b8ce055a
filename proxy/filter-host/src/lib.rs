//! The Wasm host: takes a tenant's module from its bytes to a verdict.
//!
//! * [`Compiler`] validates and compiles in a child process and keeps artifacts in a cache.
//! * [`Engine`] owns wasmtime, its instance pool, the 1 ms epoch tick and the slow lane.
//! * [`Chain`] runs a tenant's filters over a request head and backward over its response, each call in a fresh
//!   sandbox unless its manifest asks for one that is kept, and always answers. A [`Passage`] is what its later phases know of the request. Which of two ways makes
//!   the sandbox fresh is the module's [`Tier`].
//!
//! Guests are untrusted: whatever a module does ends as a verdict or as a [`Failure`], within its limits, and
//! without delaying another tenant's requests for longer than one slice, 1 to 2 ms (see [`SLICE`]).
//! Floor 2: knows nothing of upstreams, queue or store; what a guest may ask of them comes through [`HostView`].

mod admission;
mod alarm;
mod artifact;
mod bindings;
mod breaker;
mod cache;
mod call;
mod chain;
mod compile;
mod compile_worker;
mod engine;
mod head;
mod host;
mod inspect;
mod instances;
mod limit;
mod load;
mod module;
mod passage;
mod phases;
mod reset;
mod shared;
mod signature;
mod slow_lane;
#[cfg(test)]
mod tests;
mod ticker;
mod turns;

pub use breaker::{BreakerChange, BreakerState};
pub use call::{Failure, SLICE};
pub use chain::{
    Answer, Chain, ChainOutcome, Decision, EnqueueOptions, FilterRun, FilterSetup, LONGEST_CALL,
};
pub use compile::{Compilation, CompileError, Compiled, Compiler, CompilerSettings};
pub use compile_worker::run as compile_worker;
pub use engine::{Engine, EngineSettings};
pub use head::{RequestHead, ResponseHead};
pub use host::{
    Exchange, FilterConfig, GuestLog, HostView, LogLevel, Metric, MetricRefusal, MetricUpdate, OutboundError,
    OutboundRequest, OutboundResponse, Properties, Redaction, UpstreamState, UpstreamStatus,
};
pub use inspect::{ModuleInfo, ModuleKind, Rejection, Tier};
pub use instances::{KeptInVain, Pinned};
pub use module::Module;
pub use passage::{BodyStage, FinishOutcome, Passage, ResponseDecision, ResponseStep};
pub use phases::Phase;
pub use shared::{Keeper, KvChanges, KvEntry, Restored, TenantKv, TenantState};
