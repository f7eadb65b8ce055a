//! Which limit a failure or a refusal crossed.

use beamline_model::Limit;
use wasmtime::Trap;

use crate::{CompileError, Failure, Rejection};

/// Beginnings or parts of what traps say that have no type of their own, in either tier.
const HANDED_OVER: &str = "fuel allocated for hostcalls has been exhausted";
const HANDLES: &str = "store handle limit exceeded";
pub(crate) const RANDOM: &str = "the guest asked for more random bytes at once than";
pub(crate) const GET_MANY: &str = "get-many was asked for more than";

impl Failure {
    /// The limit that the call crossed, where that is why it failed.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::CpuTime(_) => Some(Limit::Cpu),
            Self::WallTime(_) => Some(Limit::CallTime),
            Self::Memory(_) => Some(Limit::Memory),
            Self::HostCalls(_) => Some(Limit::HostCalls),
            Self::Capacity => Some(Limit::Concurrency),
            Self::Pinned(_) => Some(Limit::PinnedInstances),
            Self::Body { .. } => Some(Limit::Body),
            Self::Trap(said) if *said == Trap::StackOverflow.to_string() => Some(Limit::Stack),
            Self::Trap(said) if said.contains(HANDED_OVER) => Some(Limit::HandedOver),
            Self::Trap(said) if said.contains(HANDLES) => Some(Limit::Handles),
            Self::Trap(said) if said.starts_with(GET_MANY) => Some(Limit::GetMany),
            Self::Trap(said) if said.starts_with(RANDOM) => Some(Limit::Random),
            Self::Trap(_)
            | Self::Room
            | Self::PinRoom
            | Self::Verdict(_)
            | Self::Host
            | Self::Unavailable
            | Self::LeftOut(_) => None,
        }
    }
}

impl CompileError {
    /// The limit that the module crossed, where that is why it is not taken.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::OutOfBounds { .. } => Some(Limit::Compile),
            Self::Rejected(Rejection::TooLarge { .. }) => Some(Limit::ModuleSize),
            Self::Rejected(Rejection::TooDemanding { .. }) => Some(Limit::ModuleNeeds),
            Self::Rejected(_) | Self::Host(_) => None,
        }
    }
}
