//! Room for bodies that are held whole, a request's until it is sent and a reply's until its client has taken it: a bound
//! for the thread, and a share for each tenant.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use beamline_model::TenantName;
use bytes::Bytes;

/// Bytes of bodies that one thread holds at once for messages.
pub(super) const ROOM: u64 = 64 << 20;

/// The room of one thread. A tenant takes no more of it than it leaves free, so that one whose clients send slowly never
/// holds the last of it.
///
/// Locked, though one thread alone takes of it: bytes carry what they hold along, and may be given up anywhere.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    limit: u64,
    all: u64,
    by_tenant: HashMap<TenantName, u64>,
}

/// What one request or one reply holds, until it is dropped.
#[derive(Debug)]
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
        Self(Arc::new(Mutex::new(Taken { limit, all: 0, by_tenant: HashMap::new() })))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Whoever panicked with it had changed all of it or nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut taken = self.room.taken();
        let own = taken.by_tenant.get(&self.tenant).copied().unwrap_or(0) + bytes;
        let all = taken.all + bytes;
        if own > taken.limit.saturating_sub(all) {
            return Err(NoRoom);
        }
        taken.all = all;
        taken.by_tenant.insert(self.tenant.clone(), own);
        drop(taken);
        self.bytes += bytes;
        Ok(())
    }

    /// Takes room for these bytes until the last that is left of them is dropped, wherever that is: in a connection's
    /// buffers, too.
    ///
    /// # Errors
    /// As [`grow`](Self::grow).
    pub(super) fn over(mut self, bytes: Bytes) -> Result<Bytes, NoRoom> {
        if bytes.is_empty() {
            return Ok(bytes);
        }
        self.grow(bytes.len() as u64)?;
        Ok(Bytes::from_owner(Roomed { bytes, _held: self }))
    }
}

/// Bytes and what they hold.
struct Roomed {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.room.taken();
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
        assert!(room.taken().by_tenant.is_empty() && room.taken().all == 0);
        room.hold(&acme).grow(50).unwrap();
    }

    #[test]
    fn bytes_hold_their_room_until_the_last_of_them_is_gone() {
        let acme = "acme".parse().unwrap();
        let room = Room::new(100);
        let mut bytes = room.hold(&acme).over(Bytes::from(vec![b'x'; 50])).unwrap();
        assert_eq!(room.hold(&acme).over(Bytes::from_static(b"y")), Err(NoRoom));
        let rest = bytes.split_off(49);
        assert_eq!((bytes.len(), &rest[..]), (49, &b"x"[..]));
        drop(bytes);
        assert_eq!(room.hold(&acme).over(Bytes::from_static(b"y")), Err(NoRoom), "one is left");
        drop(rest);
        assert_eq!(room.taken().all, 0);
        assert_eq!(&room.hold(&acme).over(Bytes::from_static(b"y")).unwrap()[..], b"y");
    }
}
