//! Room for the bodies that are kept in memory for filters: so much for each worker, whoever's they are.

use std::{cell::Cell, rc::Rc};

/// What one worker keeps of all bodies together, in bytes.
pub(crate) const WORKER_BODIES: u64 = 256 << 20;

/// A worker's.
#[derive(Debug)]
pub(crate) struct Room {
    most: u64,
    taken: Cell<u64>,
}

/// One body's part of it, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    room: Rc<Room>,
    bytes: u64,
}

impl Room {
    pub(crate) fn of(most: u64) -> Rc<Self> {
        Rc::new(Self { most, taken: Cell::new(0) })
    }
}

impl Kept {
    /// Nothing as yet.
    pub(crate) fn nothing(room: &Rc<Room>) -> Self {
        Self { room: Rc::clone(room), bytes: 0 }
    }

    /// Takes room for `bytes` in all, where there is that much.
    pub(crate) fn grow(&mut self, bytes: u64) -> bool {
        let others = self.room.taken.get() - self.bytes;
        let fits = bytes <= self.bytes || others.saturating_add(bytes) <= self.room.most;
        if fits {
            self.set(bytes.max(self.bytes));
        }
        fits
    }

    /// So many bytes are here, whether there was room or not.
    pub(crate) fn set(&mut self, bytes: u64) {
        self.room.taken.set(self.room.taken.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::of(10);
        let (mut one, mut two) = (Kept::nothing(&room), Kept::nothing(&room));
        assert!(one.grow(6) && two.grow(4) && !two.grow(5) && two.grow(3));
        one.set(2);
        assert!(two.grow(8) && !one.grow(3));
        drop(two);
        assert!(one.grow(10) && !one.grow(11));
        drop(one);
        assert_eq!(room.taken.get(), 0);
    }
}
