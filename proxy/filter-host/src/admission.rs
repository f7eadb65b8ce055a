//! Seats for long calls: so many on the node, so many for each tenant, given out fairly where they are short.
//!
//! A call that ends within its slice takes none: at most one such call runs on each data worker, and the instance pool
//! is larger than the seats by what these may need. A call that goes on needs a seat in the slow lane, one that is to wait
//! for an answer from outside needs one before it sends its request, and a call of a tenant that has all of its seats needs
//! one before it begins. Where there is none it waits in its tenant's
//! queue, for [`PATIENCE`] at most; a seat that becomes free goes to the waiting tenant that has the fewest.
//! No tenant has more than half of them, so that one whose calls wait for seconds keeps no other from having any.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use beamline_model::TenantName;
use tokio::sync::oneshot;

/// How long a call waits for a seat before it is refused.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);
/// Calls of one tenant that wait at once; further ones are refused without waiting.
const MAX_WAITING: usize = 1024;

/// The seats of a node.
#[derive(Debug)]
pub(crate) struct Seats {
    capacity: u32,
    // A mutex: only calls that go to the lane, wait for an answer, or are kept from beginning, come here.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: u32,
    /// Seats given to those who waited, so far: breaks ties between tenants.
    given: u64,
    tenants: HashMap<TenantName, Share>,
}

#[derive(Debug, Default)]
struct Share {
    taken: u32,
    waiting: VecDeque<Waiter>,
    /// When it was last given a seat, counted by `State::given`.
    last: u64,
}

#[derive(Debug)]
struct Waiter {
    limit: u32,
    long_calls: Arc<AtomicU32>,
    seat: oneshot::Sender<Seat>,
}

/// One call's seat, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    /// None once it was taken back.
    seats: Option<Arc<Seats>>,
    tenant: TenantName,
    /// Its tenant's seats, to be read without a lock.
    long_calls: Arc<AtomicU32>,
}

impl Seats {
    pub(crate) fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default() })
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for a call of `tenant`, which may have `limit` at once and at most half of all: at once, or after a wait in its tenant's
    /// queue. None where there was none in time. Cancel safe.
    pub(crate) async fn take(
        self: &Arc<Self>,
        tenant: &TenantName,
        limit: u32,
        long_calls: &Arc<AtomicU32>,
    ) -> Option<Seat> {
        let limit = limit.min(self.capacity.div_ceil(2));
        let waiting = {
            let mut state = self.locked();
            let room = state.taken < self.capacity;
            let share = state.tenants.entry(tenant.clone()).or_default();
            // Nobody goes past those of its own tenant who wait.
            if room && share.taken < limit && share.waiting.is_empty() {
                share.taken += 1;
                state.taken += 1;
                return Some(self.seat(tenant.clone(), Arc::clone(long_calls)));
            }
            // Those who gave up count until a seat is offered to them; they are let go of here at the latest.
            share.waiting.retain(|waiter| !waiter.seat.is_closed());
            if share.waiting.len() >= MAX_WAITING {
                return None;
            }
            let (seat, given) = oneshot::channel();
            share.waiting.push_back(Waiter { limit, long_calls: Arc::clone(long_calls), seat });
            given
        };
        let given = tokio::time::timeout(PATIENCE, waiting).await;
        if given.is_err() {
            self.forget(tenant);
        }
        given.ok()?.ok()
    }

    fn seat(self: &Arc<Self>, tenant: TenantName, long_calls: Arc<AtomicU32>) -> Seat {
        long_calls.fetch_add(1, Ordering::AcqRel);
        Seat { seats: Some(Arc::clone(self)), tenant, long_calls }
    }

    /// Lets go of those of a tenant who gave up.
    fn forget(&self, tenant: &TenantName) {
        let mut state = self.locked();
        if let Some(share) = state.tenants.get_mut(tenant) {
            share.waiting.retain(|waiter| !waiter.seat.is_closed());
            if share.taken == 0 && share.waiting.is_empty() {
                state.tenants.remove(tenant);
            }
        }
    }
}

impl State {
    /// Gives back one seat of `tenant`.
    fn give_back(&mut self, tenant: &TenantName) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(share) = self.tenants.get_mut(tenant) {
            share.taken = share.taken.saturating_sub(1);
            if share.taken == 0 && share.waiting.is_empty() {
                self.tenants.remove(tenant);
            }
        }
    }

    /// Who gets the next seat: of the tenants that wait and may have one more, the one that has the fewest, and of
    /// these the one that was not given one for the longest.
    fn next(&mut self) -> Option<(TenantName, Waiter)> {
        let may = |share: &Share| share.waiting.front().is_some_and(|waiter| share.taken < waiter.limit);
        let waiting = self.tenants.iter().filter(|(_, share)| may(share));
        let (tenant, _) = waiting.min_by_key(|(_, share)| (share.taken, share.last))?;
        let tenant = tenant.clone();
        self.given += 1;
        let share = self.tenants.get_mut(&tenant)?;
        share.last = self.given;
        share.taken += 1;
        self.taken += 1;
        Some((tenant, share.waiting.pop_front()?))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(seats) = self.seats.take() else { return };
        self.long_calls.fetch_sub(1, Ordering::AcqRel);
        let mut state = seats.locked();
        state.give_back(&self.tenant);
        while state.taken < seats.capacity {
            let Some((tenant, waiter)) = state.next() else { return };
            // Whoever gave up meanwhile does not get it: it is taken back here, where the lock is held already.
            if let Err(mut unwanted) = waiter.seat.send(seats.seat(tenant, waiter.long_calls)) {
                unwanted.seats = None;
                unwanted.long_calls.fetch_sub(1, Ordering::AcqRel);
                state.give_back(&unwanted.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    /// A tenant with its count of seats.
    struct Caller(TenantName, Arc<AtomicU32>);

    impl Caller {
        fn new(name: &str) -> Self {
            Self(tenant(name), Arc::default())
        }

        async fn take(&self, seats: &Arc<Seats>, limit: u32) -> Option<Seat> {
            seats.take(&self.0, limit, &self.1).await
        }

        fn has(&self) -> u32 {
            self.1.load(Ordering::Acquire)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_place_a_call_waits_for_its_patience_and_no_longer() {
        let (seats, acme) = (Seats::new(8), Caller::new("acme"));
        let held = [acme.take(&seats, 2).await.unwrap(), acme.take(&seats, 2).await.unwrap()];
        let began = tokio::time::Instant::now();
        assert!(acme.take(&seats, 2).await.is_none());
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(acme.has(), 2);
        // Another tenant has seats of its own.
        drop(Caller::new("globex").take(&seats, 2).await.unwrap());
        drop(held);
        assert_eq!(acme.has(), 0);
        assert!(seats.locked().tenants.is_empty(), "nothing is kept of who has nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn no_tenant_has_more_than_half_of_the_seats() {
        let (seats, greedy, other) = (Seats::new(6), Caller::new("greedy"), Caller::new("other"));
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(greedy.take(&seats, 4096).await.unwrap());
        }
        assert!(greedy.take(&seats, 4096).await.is_none());
        for _ in 0..3 {
            held.push(other.take(&seats, 4096).await.unwrap());
        }
        assert_eq!((greedy.has(), other.has()), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_becomes_free_goes_to_who_waits() {
        let (seats, acme) = (Seats::new(8), Caller::new("acme"));
        let held = acme.take(&seats, 1).await.unwrap();
        let (second, ()) = tokio::join!(acme.take(&seats, 1), async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(held);
        });
        assert!(second.is_some());
        assert_eq!(acme.has(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_up_holds_nothing() {
        let (seats, acme) = (Seats::new(1), Caller::new("acme"));
        let held = acme.take(&seats, 1).await.unwrap();
        {
            let waits = acme.take(&seats, 1);
            tokio::pin!(waits);
            assert!(futures_util::poll!(&mut waits).is_pending());
        }
        drop(held);
        assert_eq!((acme.has(), seats.locked().taken), (0, 0));
        assert!(acme.take(&seats, 1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_are_short_are_shared_evenly_whoever_asks_how_often() {
        let seats = Seats::new(12);
        let callers: Vec<_> =
            ["a", "b", "c", "d"].map(|name| Arc::new(Caller::new(name))).into_iter().collect();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                // The first takes all there is; then each has a different number of calls that want a seat.
                for (i, caller) in callers.iter().enumerate() {
                    for _ in 0..12 << i {
                        let (caller, seats) = (Arc::clone(caller), Arc::clone(&seats));
                        tokio::task::spawn_local(async move {
                            loop {
                                if let Some(seat) = caller.take(&seats, 1000).await {
                                    tokio::time::sleep(Duration::from_millis(10)).await;
                                    drop(seat);
                                }
                                tokio::task::yield_now().await;
                            }
                        });
                    }
                }
                let mut had = [0; 4];
                for _ in 0..100 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    for (sum, caller) in had.iter_mut().zip(&callers) {
                        *sum += caller.has();
                    }
                }
                let all: u32 = had.iter().sum();
                assert!(
                    had.iter().all(|h| *h * 10 * 4 >= all * 8),
                    "at least 0.8 of a quarter each: {had:?}"
                );
            })
            .await;
    }
}
