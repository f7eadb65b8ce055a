//! What requests hold: so many instances of a tenant, so many and so much memory of the node.
//!
//! A request may last for hours, and its instance with it. So these have slots of their own in the pool, beside those for
//! calls, and whoever finds no room is refused at once: waiting would seldom help.

use std::sync::{
    Arc,
    atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
};

use beamline_model::FilterLimits;

use crate::{call::Failure, load::TenantLoad};

/// What pinned instances may take of a node, each counted by its tenant's `limits.memory`.
pub(crate) const MAX_BYTES: u64 = 2 << 30;

/// The room that a node has for pinned instances.
#[derive(Debug)]
pub(crate) struct PinRoom {
    most: u32,
    most_bytes: u64,
    instances: AtomicU32,
    bytes: AtomicU64,
}

/// One pinned instance's part in both counts, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    room: Arc<PinRoom>,
    load: Arc<TenantLoad>,
    bytes: u64,
}

/// What a tenant's requests hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Instances, right now.
    pub held: u32,
    /// Calls that were refused since the node's start, for there was no room for an instance.
    pub refused: u64,
}

impl Pinned {
    pub(super) fn of(load: &TenantLoad) -> Self {
        Self { held: load.pinned.load(Relaxed), refused: load.pins_refused.load(Relaxed) }
    }
}

impl PinRoom {
    /// Instances that can be pinned beside a pool of so many.
    pub(super) fn instances_beside(pool: u32) -> u32 {
        (pool / 8).max(2)
    }

    pub(crate) fn beside(pool: u32) -> Arc<Self> {
        Self::of(Self::instances_beside(pool), MAX_BYTES)
    }

    fn of(most: u32, most_bytes: u64) -> Arc<Self> {
        Arc::new(Self { most, most_bytes, instances: AtomicU32::new(0), bytes: AtomicU64::new(0) })
    }

    /// What a tenant with these limits may have: never more than half of the room, so that none takes it from all others.
    fn share_of_node(&self, limits: &FilterLimits) -> u32 {
        let by_memory = self.most_bytes / 2 / limits.memory.get().max(1);
        let by_memory = u32::try_from(by_memory).unwrap_or(u32::MAX).max(1);
        by_memory.min(self.most / 2)
    }

    /// Room for one more instance of a tenant.
    ///
    /// # Errors
    /// [`Failure::Pinned`] where the tenant has as many as it may, [`Failure::PinRoom`] where the node has. Both are counted.
    pub(super) fn take(
        self: &Arc<Self>,
        load: &Arc<TenantLoad>,
        limits: &FilterLimits,
    ) -> Result<Permit, Failure> {
        let (of_node, bytes) = (self.share_of_node(limits), limits.memory.get());
        let share = limits.pinned_instances.min(of_node);
        let refused = |failure| {
            load.pins_refused.fetch_add(1, Relaxed);
            failure
        };
        if !take(&load.pinned, share) {
            // Asking for more of them helps where these are what it has used up.
            let by_quota = limits.pinned_instances < of_node;
            return Err(refused(if by_quota { Failure::Pinned(share) } else { Failure::PinRoom }));
        }
        if !take(&self.instances, self.most) {
            load.pinned.fetch_sub(1, AcqRel);
            return Err(refused(Failure::PinRoom));
        }
        // From here on its drop gives back what was taken, the bytes included.
        let before = self.bytes.fetch_add(bytes, AcqRel);
        let permit = Permit { room: Arc::clone(self), load: Arc::clone(load), bytes };
        if before.saturating_add(bytes) > self.most_bytes {
            Err(refused(Failure::PinRoom))
        } else {
            Ok(permit)
        }
    }
}

/// Adds one to a count that is at most `limit`.
fn take(count: &AtomicU32, limit: u32) -> bool {
    count.fetch_update(AcqRel, Relaxed, |held| (held < limit).then_some(held + 1)).is_ok()
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, AcqRel);
        self.room.instances.fetch_sub(1, AcqRel);
        self.load.pinned.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use beamline_model::ByteSize;

    use super::*;

    fn limits(pinned_instances: u32, memory: u64) -> FilterLimits {
        FilterLimits { pinned_instances, memory: ByteSize::bytes(memory), ..Default::default() }
    }

    fn taken(room: &PinRoom) -> (u32, u64) {
        (room.instances.load(Relaxed), room.bytes.load(Relaxed))
    }

    #[test]
    fn a_tenant_has_its_limit_and_at_most_half_of_the_nodes_room() {
        let room = PinRoom::of(8, 800);
        for (asked, memory, share) in [(0, 100, 0), (3, 100, 3), (100, 1, 4), (100, 200, 2), (100, 500, 1)] {
            let load = TenantLoad::new();
            let mut held = Vec::new();
            let refused = loop {
                match room.take(&load, &limits(asked, memory)) {
                    Ok(permit) => held.push(permit),
                    Err(failure) => break failure,
                }
            };
            // Of what it asks for, or of the node's room.
            let expected = if asked < room.share_of_node(&limits(asked, memory)) {
                Failure::Pinned(share)
            } else {
                Failure::PinRoom
            };
            assert_eq!(refused, expected);
            let held_now = u32::try_from(held.len()).unwrap();
            assert_eq!((held_now, Pinned::of(&load)), (share, Pinned { held: share, refused: 1 }));
            drop(held);
            assert_eq!((taken(&room), Pinned::of(&load).held), ((0, 0), 0));
        }
    }

    #[test]
    fn all_tenants_together_have_the_nodes_room() {
        for (room, memory) in [(PinRoom::of(4, u64::MAX), 1), (PinRoom::of(100, 400), 100)] {
            let loads = [(); 3].map(|()| TenantLoad::new());
            let mut held: Vec<_> = loads[..2]
                .iter()
                .flat_map(|load| [(); 2].map(|()| room.take(load, &limits(2, memory)).unwrap()))
                .collect();
            assert_eq!(room.take(&loads[2], &limits(2, memory)).unwrap_err(), Failure::PinRoom);
            assert_eq!(
                (taken(&room), Pinned::of(&loads[2])),
                ((4, 4 * memory), Pinned { held: 0, refused: 1 })
            );
            held.pop();
            assert!(room.take(&loads[2], &limits(2, memory)).is_ok());
        }
    }
}
