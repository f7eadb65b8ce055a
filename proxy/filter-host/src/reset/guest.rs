//! What the host knows of one kept instance: the call that it is in, and how its memory stands.

use wasmtime::{Caller, Memory, Result, Trap, bail};

use super::{
    abi::{Lowering, Marks, RESULT},
    qualify::PAGE,
};
use crate::{bindings::beamline::edge::verdicts::Verdict, host::CallState};

/// The handle of the request's head: the same number in each call, as in a fresh component instance.
pub(super) const HANDLE: u32 = 1;

/// Bytes by which an instance's memory may have grown beyond its first size for the instance to be kept.
pub(super) const MAX_KEPT_GROWTH: usize = 1 << 20;
/// Pages that a memory gets beyond what was asked for, at most, while its instance may be kept.
const SPARE_PAGES: u64 = 8;

/// The data of a kept instance's store.
#[derive(Default)]
pub(super) struct Guest {
    /// The call under way. Without one (while the module starts) no import can be called.
    call: Option<Box<CallState>>,
    memory: Option<Memory>,
    /// Bytes that the guest has: what it was rewritten to believe.
    size: usize,
    /// Bytes of memory beyond which the instance is not kept.
    keepable: usize,
    max_pages: u64,
    /// The guest has not dropped its handle yet.
    handle_lives: bool,
    /// The phase has returned.
    returned: bool,
    pub(super) verdict: Option<Verdict>,
    pub(super) lowering: Lowering,
    pub(super) marks: Marks,
}

impl Guest {
    /// Of a memory that has `size` bytes and may have `max_pages`.
    pub(super) fn new(max_pages: u64) -> Self {
        Self { max_pages, ..Self::default() }
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        match self.memory {
            Some(memory) => Ok(memory),
            None => bail!("an import was called before there was a memory"),
        }
    }

    /// Its memory, which begins with so many bytes.
    pub(super) fn set_memory(&mut self, memory: Memory, size: usize) {
        (self.memory, self.size, self.keepable) = (Some(memory), size, size + MAX_KEPT_GROWTH);
    }

    /// Whether a memory of so many bytes is small enough to be kept.
    pub(super) fn may_keep(&self, bytes: usize) -> bool {
        bytes <= self.keepable
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn set_size(&mut self, size: usize) {
        self.size = size;
    }

    /// Begins a call. `false` where its limit does not even grant the memory that the module begins with.
    pub(super) fn begin(&mut self, call: Box<CallState>) -> bool {
        let call = self.call.insert(call);
        (self.handle_lives, self.returned) = (true, false);
        call.memory.grant(0, self.size)
    }

    /// Ends the call: its state, and the verdict where there is one.
    pub(super) fn end(&mut self) -> (Option<Box<CallState>>, Option<Verdict>) {
        self.lowering.end();
        (self.call.take(), self.verdict.take())
    }

    /// The call's state, for the epoch's tick.
    pub(super) fn running(&mut self) -> Option<&mut CallState> {
        self.call.as_deref_mut()
    }

    fn may_leave(&self) -> Result<()> {
        if self.returned || self.lowering.is_under_way() {
            return Err(Trap::CannotLeaveComponent.into());
        }
        Ok(())
    }

    /// An import was called: the call's state.
    pub(super) fn enter(&mut self) -> Result<&mut CallState> {
        self.may_leave()?;
        match &mut self.call {
            Some(call) => Ok(call),
            None => bail!("an import was called while the module started"),
        }
    }

    /// An import was called whose result borrows from the call's state.
    pub(super) fn enter_lowering(&mut self) -> Result<(&mut CallState, &mut Lowering)> {
        self.enter()?;
        match &mut self.call {
            Some(call) => Ok((call, &mut self.lowering)),
            None => bail!("an import was called while the module started"),
        }
    }

    /// An import was called with a handle.
    pub(super) fn use_handle(&self, handle: u32) -> Result<()> {
        self.may_leave()?;
        if handle != HANDLE || !self.handle_lives {
            bail!("unknown handle index {handle}")
        }
        Ok(())
    }

    /// An import was called with a handle of a response, of which this phase has none.
    pub(super) fn use_response_handle(&self, handle: u32) -> Result<()> {
        self.use_handle(handle)?;
        bail!(
            "handle index {handle} used with the wrong type, \
             expected guest-defined resource but found a different guest-defined resource"
        )
    }

    pub(super) fn drop_handle(&mut self, handle: u32) -> Result<()> {
        self.use_handle(handle)?;
        self.handle_lives = false;
        Ok(())
    }

    /// The phase returned: the handle was only lent, and no import may be called from now on.
    pub(super) fn leave(&mut self) -> Result<()> {
        if self.handle_lives {
            bail!("borrow handles still remain at the end of the call")
        }
        self.returned = true;
        Ok(())
    }

    /// Places a result; the first layout to allocate for it, or 0.
    pub(super) fn lower(&mut self, memory: &mut [u8]) -> Result<u64> {
        self.lowering.advance(memory, &mut self.marks)
    }

    /// Places a `result` with nothing in it but the case of its error.
    pub(super) fn lower_outcome(
        &mut self,
        memory: &mut [u8],
        ret: u32,
        outcome: std::result::Result<(), u8>,
    ) -> Result<()> {
        let at = self.lowering.begin(memory, ret, RESULT)?;
        self.lowering.byte(at, outcome.is_err().into());
        if let Err(case) = outcome {
            self.lowering.byte(at.at(1), case);
        }
        self.lower(memory)?;
        Ok(())
    }

    /// `memory.grow`: whether the guest gets `more` pages. What it once got stays there for later calls, unseen.
    pub(super) fn grow(caller: &mut Caller<'_, Self>, old: u32, more: u32) -> Result<bool> {
        let memory = caller.data().memory()?;
        let guest = caller.data_mut();
        let pages = u64::from(old) + u64::from(more);
        let bytes = |pages: u64| usize::try_from(pages * PAGE).unwrap_or(usize::MAX);
        // The limit is asked first, however much is wanted: its refusal is what a trap that follows is put down to.
        let granted = match &mut guest.call {
            Some(call) => call.memory.grant(bytes(old.into()), bytes(pages)),
            None => bail!("the memory was grown while the module started"),
        };
        // No further than this call's limit, whatever the module may have.
        let limit = guest.call.as_ref().map_or(0, |call| call.memory.limit as u64 / PAGE);
        let (max_pages, keepable) = (guest.max_pages, guest.keepable as u64 / PAGE);
        if !granted {
            return Ok(false);
        }
        let there = memory.size(&*caller);
        let has_room = pages <= max_pages
            && (pages <= there || {
                let target = with_spare(there, pages, keepable).min(limit).max(pages).min(max_pages);
                memory.grow(&mut *caller, target - there).is_ok()
            });
        let guest = caller.data_mut();
        if has_room {
            guest.size = bytes(pages);
        } else if let Some(call) = &mut guest.call {
            call.memory.give_back();
        }
        Ok(has_room)
    }

    /// Whether nothing of a call is left.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.call.is_none() && self.verdict.is_none() && self.lowering.is_at_rest() && self.marks.is_empty()
    }
}

/// Pages for a memory that has `there` and is to have `pages`. Growing copies a small memory: some more than was asked for,
/// unseen, so that many small steps do not. What would make an instance outgrow its `keepable` pages is no spare.
fn with_spare(there: u64, pages: u64, keepable: u64) -> u64 {
    if pages <= keepable { (there + (there / 4).min(SPARE_PAGES)).min(keepable) } else { pages }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_that_is_grown_gets_some_more_but_not_much() {
        // There, wanted, keepable; with spare.
        let cases = [
            ((1, 2, 17), 1),
            ((8, 9, 17), 10),
            ((40, 41, 60), 48),
            // Asked for is what can be kept: it stays so.
            ((15, 16, 17), 17),
            ((16, 17, 17), 17),
            // It will not be kept.
            ((17, 18, 17), 18),
            ((100, 170, 17), 170),
        ];
        for ((there, pages, keepable), expected) in cases {
            assert_eq!(with_spare(there, pages, keepable), expected, "{pages} for {there}");
        }
    }
}
