//! Whose turn it is. Between tenants: who was given the fewest bytes, as long as it leaves places in flight for others.
//! Within a tenant: round robin between its upstreams.
//!
//! A turn costs the record's size. Each tenant has an account of what it was given; the one with the least goes next, so
//! that those who always have something to send get the same number of bytes, to within one record, however large their
//! records are and however many they have. Who had nothing to send starts where the others are: it has saved nothing up.
//!
//! A tenant takes a place only while it has fewer than are free. One alone gets half of them, *n* get an equal part each
//! and leave one more such part free, so that no number of hanging origins takes the last place from a newcomer.

use std::collections::{BTreeSet, HashMap, VecDeque};

use beamline_model::{TenantName, UpstreamName};

use crate::record::Lane;

/// The tenants of which one is kept though it has nothing to do: their accounts are looked through when there are twice
/// as many as at the last time.
const TENANTS: usize = 64;

/// The lanes that can go now. Each is in it at most once, which the caller sees to.
#[derive(Debug)]
pub(super) struct Ring {
    tenants: HashMap<TenantName, Turns>,
    /// Those that have lanes here, by what they were given, then by when they came.
    ready: BTreeSet<(u64, u64, TenantName)>,
    /// Those that have lanes here and as many in flight as there are places free, or more: by their number in flight.
    waiting: BTreeSet<(usize, TenantName)>,
    /// What the one that had the last turn had been given before it.
    level: u64,
    arrivals: u64,
    sweep_at: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            level: 0,
            arrivals: 0,
            sweep_at: TENANTS,
        }
    }
}

#[derive(Debug, Default)]
struct Turns {
    /// In bytes.
    given: u64,
    in_flight: usize,
    upstreams: VecDeque<UpstreamName>,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    /// With when it came.
    Ready(u64),
    Waiting,
}

impl Ring {
    pub(super) fn push(&mut self, lane: Lane) {
        if self.tenants.len() >= self.sweep_at {
            self.tenants.retain(|_, turns| turns.in_flight > 0 || !turns.upstreams.is_empty());
            self.sweep_at = (2 * self.tenants.len()).max(TENANTS);
        }
        let turns = self.tenants.entry(lane.tenant.clone()).or_default();
        debug_assert!(!turns.upstreams.contains(&lane.upstream), "a lane is in the ring once");
        turns.upstreams.push_back(lane.upstream);
        if turns.place == Place::Nowhere {
            self.enter(lane.tenant);
        }
    }

    fn enter(&mut self, tenant: TenantName) {
        let turns = self.tenants.get_mut(&tenant).expect("who enters has an account");
        turns.given = turns.given.max(self.level);
        turns.place = Place::Ready(self.arrivals);
        self.ready.insert((turns.given, self.arrivals, tenant));
        self.arrivals += 1;
    }

    /// The next lane, of `free` places in flight. Say what came of it with [`Ring::turned`].
    pub(super) fn pop(&mut self, free: usize) -> Option<Lane> {
        while self.waiting.first().is_some_and(|(in_flight, _)| *in_flight < free) {
            let (_, tenant) = self.waiting.pop_first()?;
            self.enter(tenant);
        }
        loop {
            let (given, _, tenant) = self.ready.pop_first()?;
            let turns = self.tenants.get_mut(&tenant).expect("who is ready has an account");
            if turns.in_flight >= free {
                turns.place = Place::Waiting;
                self.waiting.insert((turns.in_flight, tenant));
                continue;
            }
            turns.place = Place::Nowhere;
            self.level = given;
            let upstream = turns.upstreams.pop_front().expect("who is ready has lanes here");
            return Some(Lane { tenant, upstream });
        }
    }

    /// The turn that [`Ring::pop`] gave began a delivery of so many bytes, or none.
    pub(super) fn turned(&mut self, tenant: &TenantName, bytes: Option<u64>) {
        let Some(turns) = self.tenants.get_mut(tenant) else { return };
        if let Some(bytes) = bytes {
            turns.given = turns.given.saturating_add(bytes.max(1));
            turns.in_flight += 1;
        }
        if turns.place == Place::Nowhere && !turns.upstreams.is_empty() {
            self.enter(tenant.clone());
        }
    }

    /// A delivery of this tenant has ended.
    pub(super) fn landed(&mut self, tenant: &TenantName) {
        let Some(turns) = self.tenants.get_mut(tenant) else { return };
        let before = turns.in_flight;
        turns.in_flight = before.saturating_sub(1);
        if turns.place == Place::Waiting {
            self.waiting.remove(&(before, tenant.clone()));
            self.waiting.insert((turns.in_flight, tenant.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(tenant: &str, upstream: &str) -> Lane {
        Lane { tenant: tenant.parse().unwrap(), upstream: upstream.parse().unwrap() }
    }

    #[test]
    fn a_tenant_with_many_upstreams_gets_no_more_turns_than_one_with_few() {
        let mut ring = Ring::default();
        for (tenant, upstream) in [("big", "a"), ("big", "b"), ("big", "c"), ("small", "x")] {
            ring.push(lane(tenant, upstream));
        }
        let mut order = vec![];
        while let Some(lane) = ring.pop(100) {
            ring.turned(&lane.tenant, Some(1));
            order.push(format!("{}/{}", lane.tenant, lane.upstream));
        }
        assert_eq!(order, ["big/a", "small/x", "big/b", "big/c"]);
    }

    /// Bytes that each tenant gets of so many turns, if each always has a record of its size to send.
    fn shares(tenants: &[(&str, u64)], turns: usize) -> HashMap<String, u64> {
        let (mut ring, mut given) = (Ring::default(), HashMap::new());
        tenants.iter().for_each(|(tenant, _)| ring.push(lane(tenant, "a")));
        for _ in 0..turns {
            let turn = ring.pop(100).unwrap();
            let size = tenants.iter().find(|(tenant, _)| turn.tenant.as_str() == *tenant).unwrap().1;
            ring.turned(&turn.tenant, Some(size));
            ring.landed(&turn.tenant);
            *given.entry(turn.tenant.to_string()).or_default() += size;
            ring.push(turn);
        }
        given
    }

    #[test]
    fn a_turn_costs_the_size_of_its_record() {
        let given = shares(&[("films", 1 << 20), ("notes", 1 << 10), ("songs", 1 << 16)], 5000);
        let (least, most) = (given.values().min().unwrap(), given.values().max().unwrap());
        assert!(most - least <= 1 << 20, "equal to within one record: {given:?}");
    }

    #[test]
    fn who_had_nothing_to_send_has_saved_nothing_up() {
        let mut ring = Ring::default();
        ring.push(lane("late", "a"));
        ring.pop(100).unwrap();
        ring.turned(&"late".parse().unwrap(), Some(1));
        ring.push(lane("steady", "a"));
        for _ in 0..1000 {
            let steady = ring.pop(100).unwrap();
            ring.turned(&steady.tenant, Some(100));
            ring.landed(&steady.tenant);
            ring.push(steady);
        }
        ring.push(lane("late", "a"));
        ring.push(lane("late", "b"));
        ring.push(lane("late", "c"));
        let order: Vec<_> = (0..6)
            .map(|_| {
                let turn = ring.pop(100).unwrap();
                ring.turned(&turn.tenant, Some(100));
                let tenant = turn.tenant.to_string();
                ring.push(turn);
                tenant
            })
            .collect();
        let late = order.iter().filter(|tenant| *tenant == "late").count();
        assert_eq!(late, 3, "{order:?}");
    }

    #[test]
    fn a_tenant_has_no_more_in_flight_than_it_leaves_free() {
        for (hanging, each) in [(1, 50), (3, 25), (9, 10)] {
            let mut ring = Ring::default();
            let mut in_flight = HashMap::<TenantName, usize>::new();
            for tenant in 0..hanging {
                ring.push(lane(&format!("t{tenant}"), "a"));
            }
            let mut free = 100;
            while let Some(turn) = ring.pop(free) {
                ring.turned(&turn.tenant, Some(1));
                *in_flight.entry(turn.tenant.clone()).or_default() += 1;
                free -= 1;
                ring.push(turn);
            }
            assert!(in_flight.values().all(|n| *n == each), "{hanging} that hang: {in_flight:?}");
            ring.push(lane("newcomer", "a"));
            assert_eq!(ring.pop(free).unwrap().tenant.as_str(), "newcomer");
            ring.turned(&"newcomer".parse().unwrap(), Some(1));
            ring.landed(&"t0".parse().unwrap());
            let next = ring.pop(free).map(|turn| turn.tenant.to_string());
            assert_eq!(next.as_deref(), Some("t0"), "and who got a place back takes it again");
        }
    }

    #[test]
    fn accounts_of_who_has_nothing_to_do_are_not_kept_for_ever() {
        let mut ring = Ring::default();
        for tenant in 0..10_000 {
            ring.push(lane(&format!("t{tenant}"), "a"));
            let turn = ring.pop(100).unwrap();
            ring.turned(&turn.tenant, Some(1));
            ring.landed(&turn.tenant);
        }
        assert!(ring.tenants.len() <= TENANTS);
    }
}
