//! What the queue holds at once, seen from outside.
//!
//! When a record comes to be and when it ends is the node's to know. What clients and origins see lies within: it was there
//! when its `202` came, and it was there when its last delivery arrived. So what is counted here is the least that can
//! have been queued; who is over a quota by that is over it.

use std::time::Instant;

/// The most that a queue may hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Records, dead letters among them.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Quota {
    /// No bound at all.
    pub const NONE: Self = Self { records: u64::MAX, bytes: u64::MAX };
}

/// A record, for as long as it was in the queue for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stay {
    pub(super) from: Instant,
    /// None where it is there yet.
    pub(super) until: Option<Instant>,
    /// At least.
    pub(super) bytes: u64,
}

/// The most records that were there at once, and the most bytes, each at its own moment.
pub(super) fn peak(stays: &[Stay]) -> Quota {
    // At one and the same moment what ends goes before what begins.
    let mut events: Vec<(Instant, bool, u64)> = Vec::with_capacity(2 * stays.len());
    for Stay { from, until, bytes } in stays {
        if until.is_some_and(|until| until <= *from) {
            continue;
        }
        events.push((*from, true, *bytes));
        events.extend(until.map(|until| (until, false, *bytes)));
    }
    events.sort_unstable();
    let (mut now, mut most) = (Quota { records: 0, bytes: 0 }, Quota { records: 0, bytes: 0 });
    for (_, begins, bytes) in events {
        if begins {
            now = Quota { records: now.records + 1, bytes: now.bytes + bytes };
            most = Quota { records: most.records.max(now.records), bytes: most.bytes.max(now.bytes) };
        } else {
            now = Quota { records: now.records - 1, bytes: now.bytes - bytes };
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_there_at_once_is_counted_and_nothing_else() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let stay = |from, until: Option<u64>, bytes| Stay { from: at(from), until: until.map(at), bytes };
        assert_eq!(peak(&[]), Quota { records: 0, bytes: 0 });
        let one_after_the_other = [stay(1, Some(2), 10), stay(2, Some(3), 20), stay(3, Some(4), 30)];
        assert_eq!(peak(&one_after_the_other), Quota { records: 1, bytes: 30 });
        let backwards = [stay(5, Some(4), 10), stay(5, Some(5), 10)];
        assert_eq!(peak(&backwards), Quota { records: 0, bytes: 0 }, "it was never there for certain");
        let together = [stay(1, Some(4), 10), stay(2, Some(3), 10), stay(3, Some(6), 10), stay(5, None, 100)];
        assert_eq!(peak(&together), Quota { records: 2, bytes: 110 });
        assert_eq!(peak(&[stay(1, None, 10), stay(9, None, 10)]), Quota { records: 2, bytes: 20 });
    }
}
