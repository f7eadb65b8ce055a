//! Room for the bodies that are kept in memory for filters: so much for each worker, at most half of it one tenant's.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use rustc_hash::FxHashMap;

/// What one worker keeps of all bodies together, in bytes.
pub(crate) const WORKER_BODIES: u64 = 256 << 20;
/// The part of it that one tenant may have, whose slow requests keep no other from having any.
const SHARE_OF_TENANT: u64 = 2;

/// A worker's.
#[derive(Debug)]
pub(crate) struct Room {
    most: u64,
    taken: Cell<u64>,
    /// What each tenant has of it; those of which no body is under way are not here.
    tenants: RefCell<FxHashMap<Arc<str>, Rc<Cell<u64>>>>,
}

/// One body's part of it, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    room: Rc<Room>,
    tenant: Arc<str>,
    /// All that the tenant has.
    of_tenant: Rc<Cell<u64>>,
    bytes: u64,
}

impl Room {
    pub(crate) fn of(most: u64) -> Rc<Self> {
        Rc::new(Self { most, taken: Cell::new(0), tenants: RefCell::default() })
    }
}

impl Kept {
    /// Nothing as yet of a tenant's body.
    pub(crate) fn nothing(room: &Rc<Room>, tenant: &Arc<str>) -> Self {
        let of_tenant = Rc::clone(room.tenants.borrow_mut().entry(Arc::clone(tenant)).or_default());
        Self { room: Rc::clone(room), tenant: Arc::clone(tenant), of_tenant, bytes: 0 }
    }

    /// Takes room for `bytes` in all, where there is that much for its tenant.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        let after = |taken: u64| (taken - self.bytes).saturating_add(bytes);
        let fits = after(self.room.taken.get()) <= self.room.most
            && after(self.of_tenant.get()) <= self.room.most / SHARE_OF_TENANT;
        if fits {
            self.set(bytes);
        }
        fits
    }

    /// So many bytes are here, whether there was room or not.
    pub(crate) fn set(&mut self, bytes: u64) {
        for taken in [&self.room.taken, &self.of_tenant] {
            taken.set(taken.get() - self.bytes + bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
        // This and the room's: no other body of the tenant is under way.
        if Rc::strong_count(&self.of_tenant) == 2 {
            self.room.tenants.borrow_mut().remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(room: &Rc<Room>, tenant: &str) -> Kept {
        Kept::nothing(room, &tenant.into())
    }

    fn is_empty(room: &Room) -> bool {
        room.taken.get() == 0 && room.tenants.borrow().is_empty()
    }

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::of(20);
        let (mut one, mut two) = (nothing(&room, "acme"), nothing(&room, "acme"));
        assert!(one.grow(6) && two.grow(4) && !two.grow(5) && two.grow(3));
        one.set(2);
        assert!(two.grow(8) && !one.grow(3));
        drop(two);
        assert!(one.grow(10) && !one.grow(11));
        drop(one);
        assert!(is_empty(&room));
    }

    #[test]
    fn no_tenant_has_more_than_half_of_the_room() {
        let room = Room::of(20);
        let mut greedy: Vec<_> = (0..4).map(|_| nothing(&room, "greedy")).collect();
        let grown: Vec<_> = greedy.iter_mut().map(|body| body.grow(4)).collect();
        assert_eq!(grown, [true, true, false, false]);
        let (mut other, mut third) = (nothing(&room, "other"), nothing(&room, "third"));
        assert!(other.grow(10) && !other.grow(11), "it has its half, whatever the first one does");
        assert!(third.grow(2) && !third.grow(3), "all together have what there is");
        // What a filter gave in place of a body is here, whether there was room or not.
        greedy[0].set(30);
        assert!(!greedy[1].grow(5) && !third.grow(3) && third.grow(1));
        drop((greedy, other, third));
        assert!(is_empty(&room));
    }

    #[test]
    fn the_limits_page_tells_of_the_room_and_of_a_tenants_share() {
        let page = include_str!("../../../docs/reference/limits.md");
        let mib = WORKER_BODIES >> 20;
        let told =
            format!("is {mib} MiB together, of which one tenant has at most {} MiB", mib / SHARE_OF_TENANT);
        assert!(page.contains(&told), "docs/reference/limits.md lacks: {told}");
    }
}
