//! Instances that outlive a call: held for one request, from a filter's first phase to its last, or reused by a filter's next
//! requests. Both only where the tenant's manifest asks for it, and in the component tier; a call that gets a fresh
//! instance passes none of this.
//!
//! Between two calls an instance has nothing of the host's: head, configuration, log, clock and meters are a call's own, and a
//! handle is worth something in its call alone. What stays is what the guest keeps in its memory. A call that fails, is
//! broken off or given up ends its instance.

mod idle;
mod kept;
mod pins;

use std::{cell::Cell, sync::Arc};

use beamline_model::{FilterLimits, FilterName, InstanceLifetime};
use bytes::Bytes;
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout_at,
};

pub use self::pins::Pinned;
use self::{idle::Reuse, kept::Kept};
#[cfg(test)]
pub(crate) use self::{
    idle::{MAX_BYTES as MAX_IDLE_BYTES, waiting_on_this_thread},
    pins::MAX_BYTES as MAX_PINNED_BYTES,
};
pub(crate) use self::{
    idle::{idle_room, kept_idle, sweep},
    pins::PinRoom,
};
use crate::{
    call::{Failure, Given, Input},
    chain::{Chain, Decision, Ended, FilterSetup, Told, Turn},
    host::Subject,
    module::Module,
    passage::{Contexts, ResponseDecision},
    phases::{Phase, PhaseSet},
    reset::Place,
    slow_lane::Call,
};

/// Instances that can be kept beside the pool's `instances`, which are for calls: so many slots it needs on top.
pub(crate) fn kept_beside(instances: u32) -> u32 {
    PinRoom::instances_beside(instances) + kept_idle(instances)
}

/// How a filter's instances are kept.
#[derive(Debug)]
pub(crate) struct Keeping {
    module: Arc<Module>,
    how: How,
}

#[derive(Debug)]
enum How {
    Pinned,
    Reused(Reuse),
}

/// A filter whose manifest asks for its instances to be kept, which would never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptInVain<'c> {
    /// The filter.
    pub filter: &'c FilterName,
    /// The key of its manifest that asks for it.
    pub key: &'static str,
    /// Why, and what to do.
    pub problem: &'static str,
}

impl Keeping {
    /// None where each call gets a fresh instance: the rule, and wherever nothing would come of keeping one.
    pub(crate) fn of(setup: &FilterSetup, limits: &FilterLimits) -> Option<Self> {
        let module = setup.module.as_ref().filter(|_| in_vain(setup, limits).is_none())?;
        let how = match setup.lifetime {
            InstanceLifetime::Call => return None,
            InstanceLifetime::Request => How::Pinned,
            InstanceLifetime::Requests(requests) => How::Reused(Reuse::of(requests)),
        };
        Some(Self { module: Arc::clone(module), how })
    }
}

/// The key that asks for a filter's instances to be kept, why nothing would come of it, and what to do.
fn in_vain(setup: &FilterSetup, limits: &FilterLimits) -> Option<(&'static str, &'static str)> {
    let phases = setup.module.as_ref()?.phases();
    match setup.lifetime {
        InstanceLifetime::Request if phases.is_one_call() => Some((
            "pin_instance",
            "the module is called once in a request: nothing comes after it that could use its memory: remove the key",
        )),
        InstanceLifetime::Request if limits.pinned_instances == 0 => Some((
            "pin_instance",
            "no instance may be held, for limits.pinned_instances or the operator's ceiling for it is 0: raise it, or remove the key",
        )),
        InstanceLifetime::Requests(_) if !phases.has(Phase::Request) => Some((
            "reuse",
            "the module has no request-handler, whose instances alone are reused: remove the key",
        )),
        _ => None,
    }
}

/// Where the instances of one request are between two calls, by filter.
#[derive(Debug)]
pub(crate) struct Slots(Box<[Slot]>);

/// Where the instance of one filter is. Calls may overlap, as of a response's head and the last chunks of its request's body: an
/// instance runs them one after the other.
#[derive(Default)]
pub(crate) struct Slot {
    turn: Mutex<()>,
    kept: Cell<Option<Box<Kept>>>,
}

impl Slots {
    pub(crate) fn of(filters: usize) -> Self {
        Self((0..filters).map(|_| Slot::default()).collect())
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Slot> {
        self.0.get(at)
    }

    /// Lets go of those that are not in use.
    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|slot| drop(slot.kept.take()));
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

/// What a phase of a filter came to, for the instance that it ran in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Failed,
    /// The filter is called again at once: for the next chunk, or with the whole body.
    Again,
    /// It answered in the upstream's place.
    Answered,
    Decided,
}

impl After {
    pub(crate) fn of_request(given: &Result<Decision, Failure>) -> Self {
        match given {
            Err(_) => Self::Failed,
            Ok(Decision::ReadBody) => Self::Again,
            Ok(Decision::Respond(_)) => Self::Answered,
            Ok(_) => Self::Decided,
        }
    }

    pub(crate) fn of_response(given: &Result<(ResponseDecision, Option<Bytes>), Failure>) -> Self {
        match given {
            Err(_) => Self::Failed,
            Ok((ResponseDecision::ReadBody, _)) => Self::Again,
            Ok((ResponseDecision::Respond(_), _)) => Self::Answered,
            Ok(_) => Self::Decided,
        }
    }

    pub(crate) fn of_chunk(given: &Result<Bytes, Failure>, last: bool) -> Self {
        match given {
            Err(_) => Self::Failed,
            Ok(_) if last => Self::Decided,
            Ok(_) => Self::Again,
        }
    }

    /// Whether a filter with these phases may still be called for its request after `phase` came to this. Where that is not
    /// known, its instance is held until the request ends.
    fn leaves(self, phases: PhaseSet, phase: Phase) -> bool {
        use Phase::{Finish, Request, RequestBody, Response, ResponseBody, WholeRequest, WholeResponse};
        // A response may come, and go, before its request's last chunk.
        let left = match (phase, self) {
            (_, Self::Failed) => return false,
            (_, Self::Again) => return true,
            (Request | WholeRequest, Self::Answered) => PhaseSet::only([Finish]),
            (Request | WholeRequest, Self::Decided) => {
                PhaseSet::only([RequestBody, Response, WholeResponse, ResponseBody, Finish])
            }
            (RequestBody, _) => PhaseSet::only([Response, WholeResponse, ResponseBody, Finish]),
            (Response, Self::Decided) => PhaseSet::only([RequestBody, ResponseBody, Finish]),
            (Response | WholeResponse | ResponseBody, _) => PhaseSet::only([RequestBody, Finish]),
            (Finish, _) => return false,
        };
        phases.meets(left)
    }
}

impl Chain {
    /// Filters whose manifest asks for their instances to be kept, which would never be.
    pub fn kept_in_vain(&self) -> impl Iterator<Item = KeptInVain<'_>> {
        self.filters().filter_map(|setup| {
            let (key, problem) = in_vain(setup, &self.limits)?;
            Some(KeptInVain { filter: &setup.name, key, problem })
        })
    }

    /// How many instances the tenant's requests hold, and how many calls found no room for one; none where no filter asks for
    /// any, or ever did.
    pub fn pinned(&self) -> Option<Pinned> {
        let counts = Pinned::of(&self.load);
        let pins = self.filters().any(|setup| setup.lifetime == InstanceLifetime::Request);
        (pins || counts != Pinned::default()).then_some(counts)
    }

    /// Whether the filter at this place has an instance for `phase` that outlives the call.
    pub(crate) fn keeps_instance(&self, at: usize, phase: Phase) -> bool {
        match &self.link(at).keeping {
            None => false,
            Some(Keeping { how: How::Pinned, .. }) => true,
            Some(Keeping { how: How::Reused(_), .. }) => phase == Phase::Request,
        }
    }

    /// One call for which [`Self::keeps_instance`] holds. Its instance must be told what came of it by [`Self::settle_instance`].
    pub(crate) async fn call_kept(&self, turn: Turn<'_>, subject: Subject, input: Input) -> Ended<'_, Given> {
        let Turn { engine, contexts, at, .. } = turn;
        let mut told = Told::of(input.phase());
        let (Some(Keeping { how, .. }), Some(slot)) = (&self.link(at).keeping, contexts.slot(at)) else {
            return Ended::refused(told, subject, Failure::Host);
        };
        // Nearly always free: calls of one filter for one request seldom overlap.
        let _turn = match slot.turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => match timeout_at(told.ends(engine.longest_call).into(), slot.turn.lock()).await {
                Ok(turn) => {
                    told.waited();
                    turn
                }
                Err(_) => return Ended::refused(told, subject, Failure::WallTime(engine.longest_call)),
            },
        };
        let new = |permit| {
            let share = Place::none(self.load.reused(&engine.idle));
            Kept::new(Place::none(&engine.idle), share, permit)
        };
        let kept = match (slot.kept.take(), how) {
            (Some(kept), _) => Ok(kept),
            (None, How::Pinned) => match engine.pins.take(&self.load, &self.limits) {
                Ok(permit) => Ok(new(Some(permit))),
                Err(failure) => return Ended::refused(told, subject, failure),
            },
            // Taken when the call begins: one that is refused leaves it where it is.
            (None, How::Reused(reuse)) => Err(reuse),
        };
        let (back, mut returned) = oneshot::channel();
        let begin = |module, state| -> Call {
            let kept = kept.unwrap_or_else(|reuse| reuse.take().unwrap_or_else(|| new(None)));
            Box::pin(kept::call(module, kept, input, state, back))
        };
        let ended = self.call(turn, told, subject, begin).await;
        // None where the call failed, or never began.
        slot.kept.set(returned.try_recv().ok());
        ended
    }

    /// Keeps a filter's instance for what may come after `phase`, or lets go of it. Nothing where its calls get fresh ones.
    pub(crate) fn settle_instance(&self, contexts: &Contexts, at: usize, phase: Phase, after: After) {
        let Some(Keeping { module, how }) = &self.link(at).keeping else { return };
        let Some(slot) = contexts.slot(at) else { return };
        let Some(kept) = slot.kept.take() else { return };
        match how {
            How::Pinned if after.leaves(module.phases(), phase) && !contexts.is_over() => {
                slot.kept.set(Some(kept));
            }
            How::Reused(reuse) if after != After::Failed => reuse.put(kept),
            // It ends here.
            How::Pinned | How::Reused(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_held_for_as_long_as_a_phase_may_come() {
        use Phase::{Finish, Request, RequestBody, Response, ResponseBody, WholeRequest, WholeResponse};
        let all = PhaseSet::only(Phase::ALL);
        for (phases, phase, after, held) in [
            (PhaseSet::only([Request, Response]), Request, After::Decided, true),
            (PhaseSet::only([Request, Response]), Request, After::Answered, false),
            (PhaseSet::only([Request, Response]), Response, After::Decided, false),
            (PhaseSet::only([Request, WholeRequest]), Request, After::Again, true),
            (PhaseSet::only([Request, WholeRequest]), Request, After::Decided, false),
            (PhaseSet::only([RequestBody]), RequestBody, After::Again, true),
            (PhaseSet::only([RequestBody]), RequestBody, After::Decided, false),
            // A response may come before its request's last chunk.
            (PhaseSet::only([RequestBody, Response]), Response, After::Decided, true),
            (PhaseSet::only([Response, WholeResponse]), Response, After::Again, true),
            (PhaseSet::only([Response, WholeResponse]), Response, After::Decided, false),
            (PhaseSet::only([Response, ResponseBody]), Response, After::Answered, false),
            (PhaseSet::only([Request, Finish]), Request, After::Answered, true),
            (all, ResponseBody, After::Again, true),
            (all, WholeResponse, After::Decided, true),
            (all, Finish, After::Decided, false),
        ] {
            assert_eq!(after.leaves(phases, phase), held, "{phases:?} after {phase:?}: {after:?}");
        }
        for phase in Phase::ALL {
            assert!(!After::Failed.leaves(all, phase), "{phase:?}");
        }
    }

    #[test]
    fn what_is_called_once_has_nothing_to_be_held_for() {
        for phase in Phase::ALL {
            let chunks = matches!(phase, Phase::RequestBody | Phase::ResponseBody);
            assert_eq!(PhaseSet::only([phase]).is_one_call(), !chunks, "{phase:?}");
        }
        assert!(!PhaseSet::only([Phase::Request, Phase::Finish]).is_one_call());
    }
}
