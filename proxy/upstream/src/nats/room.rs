//! Room for bodies that are held whole until they are sent: a bound for the thread, and a share for each tenant.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use beamline_model::TenantName;

/// Bytes of bodies that one thread holds at once for messages.
pub(super) const ROOM: u64 = 64 << 20;

/// The room of one thread. A tenant takes no more of it than it leaves free, so that one whose clients send slowly never
/// holds the last of it.
#[derive(Clone)]
pub(super) struct Room(Rc<RefCell<Taken>>);

struct Taken {
    limit: u64,
    all: u64,
    by_tenant: HashMap<TenantName, u64>,
}

/// What one request holds, until it is dropped.
pub(super) struct Held {
    room: Room,
    tenant: TenantName,
    bytes: u64,
}

/// There is no room now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Self(Rc::new(RefCell::new(Taken { limit, all: 0, by_tenant: HashMap::new() })))
    }

    /// A request of this tenant, which holds nothing yet.
    pub(super) fn hold(&self, tenant: &TenantName) -> Held {
        Held { room: self.clone(), tenant: tenant.clone(), bytes: 0 }
    }
}

impl Held {
    /// Takes so many bytes more.
    ///
    /// # Errors
    /// Where the tenant would hold more than is left free. What is held already stays so.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let mut taken = self.room.0.borrow_mut();
        let own = taken.by_tenant.get(&self.tenant).copied().unwrap_or(0) + bytes;
        let all = taken.all + bytes;
        if own > taken.limit.saturating_sub(all) {
            return Err(NoRoom);
        }
        taken.all = all;
        taken.by_tenant.insert(self.tenant.clone(), own);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.room.0.borrow_mut();
        taken.all -= self.bytes;
        let left = taken.by_tenant.get(&self.tenant).map_or(0, |own| own - self.bytes);
        if left == 0 {
            taken.by_tenant.remove(&self.tenant);
        } else {
            taken.by_tenant.insert(self.tenant.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_takes_no_more_than_it_leaves_free_and_gives_all_back() {
        let (acme, globex) = ("acme".parse().unwrap(), "globex".parse().unwrap());
        let room = Room::new(100);
        let (mut a, mut b, mut other) = (room.hold(&acme), room.hold(&acme), room.hold(&globex));
        a.grow(30).unwrap();
        b.grow(20).unwrap();
        assert_eq!(a.grow(1), Err(NoRoom), "half is the most for one alone");
        other.grow(25).unwrap();
        assert_eq!(other.grow(1), Err(NoRoom));
        drop((a, b));
        other.grow(25).unwrap();
        drop(other);
        assert!(room.0.borrow().by_tenant.is_empty() && room.0.borrow().all == 0);
        room.hold(&acme).grow(50).unwrap();
    }
}
