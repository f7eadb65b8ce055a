//! Turns at what one does at a time: of the tenants that wait, the one goes first whose last turn is longest ago.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use beamline_model::TenantName;
use tokio::sync::oneshot;

/// Hands out one turn at a time.
#[derive(Default)]
pub(crate) struct Turns {
    // Held for a look at who waits.
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    taken: bool,
    /// In the order of their coming.
    waiting: Vec<(TenantName, oneshot::Sender<Turn>)>,
    /// The number of each tenant's last turn, since nobody waited.
    last: HashMap<TenantName, u64>,
    turns: u64,
}

/// A turn, which ends when this is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
}

impl Turns {
    /// Waits for this tenant's turn. Cancel safe.
    pub(crate) async fn of(self: &Arc<Self>, tenant: &TenantName) -> Turn {
        let turn = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.taken {
                let (sender, turn) = oneshot::channel();
                queue.waiting.push((tenant.clone(), sender));
                turn
            } else {
                queue.begin(tenant.clone());
                return Turn { turns: Arc::clone(self) };
            }
        };
        turn.await.expect("whoever waits is handed a turn: each turn that ends hands on the next")
    }
}

impl Queue {
    fn begin(&mut self, tenant: TenantName) {
        self.taken = true;
        self.turns += 1;
        self.last.insert(tenant, self.turns);
    }

    /// Whose turn it is when one has ended.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        self.waiting.retain(|(_, sender)| !sender.is_closed());
        let last = |at: &usize| self.last.get(&self.waiting[*at].0).copied().unwrap_or(0);
        let Some(at) = (0..self.waiting.len()).min_by_key(last) else {
            *self = Self::default();
            return None;
        };
        let (tenant, sender) = self.waiting.remove(at);
        self.begin(tenant);
        Some(sender)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = self.turns.queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        if let Some(next) = next {
            // Who went away meanwhile hands it on, as a turn that ends.
            let _ = next.send(Self { turns: Arc::clone(&self.turns) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

    use super::*;

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    /// Has a tenant ask for a turn, and note it when it comes.
    async fn asks(
        turns: &Arc<Turns>,
        name: &'static str,
        came: &Rc<RefCell<Vec<&'static str>>>,
    ) -> JoinHandle<()> {
        let (turns, came) = (Arc::clone(turns), Rc::clone(came));
        let asking = spawn_local(async move {
            let _turn = turns.of(&tenant(name)).await;
            came.borrow_mut().push(name);
        });
        yield_now().await;
        asking
    }

    #[tokio::test]
    async fn who_had_no_turn_for_longest_goes_first() {
        LocalSet::new()
            .run_until(async {
                let (turns, came) = (Arc::<Turns>::default(), Rc::default());
                let first = turns.of(&tenant("greedy")).await;
                let mut asking = Vec::new();
                for name in ["greedy", "greedy", "quiet", "greedy", "other", "quiet"] {
                    asking.push(asks(&turns, name, &came).await);
                }
                drop(first);
                for one in asking {
                    one.await.unwrap();
                }
                assert_eq!(*came.borrow(), ["quiet", "other", "greedy", "quiet", "greedy", "greedy"]);
                let queue = turns.queue.lock().unwrap();
                assert!(!queue.taken && queue.last.is_empty(), "nobody waits: nothing is kept");
            })
            .await;
    }

    #[tokio::test]
    async fn who_goes_away_keeps_nobody_waiting() {
        LocalSet::new()
            .run_until(async {
                let (turns, came) = (Arc::<Turns>::default(), Rc::default());
                let first = turns.of(&tenant("a")).await;
                let gone = asks(&turns, "b", &came).await;
                let stays = asks(&turns, "c", &came).await;
                gone.abort();
                assert!(gone.await.unwrap_err().is_cancelled());
                drop(first);
                stays.await.unwrap();
                // The turn was handed over, and nobody is there to take it.
                let first = turns.of(&tenant("a")).await;
                let gone = asks(&turns, "b", &came).await;
                let stays = asks(&turns, "c", &came).await;
                drop(first);
                gone.abort();
                let _ = gone.await;
                stays.await.unwrap();
                drop(turns.of(&tenant("d")).await);
            })
            .await;
    }
}
