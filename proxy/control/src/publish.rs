//! The only place where the snapshot is replaced.
//!
//! A task takes finished runtimes and swaps them in: the first after a quiet time at once, those that come
//! within the next window together at its end. So a burst of changes costs a few swaps, and a single one no wait.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use beamline_model::TenantName;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    ControlError, Snapshot, TenantRuntime,
    reaper::{Reaper, Retired},
    snapshot::Change,
};

/// Runtimes that may wait for a swap; more wait in front of it.
const WAITING: usize = 1024;

struct Wanted {
    change: Change,
    visible: oneshot::Sender<u64>,
}

/// Hands runtimes to the task. The task ends when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Publisher(mpsc::Sender<Wanted>);

impl Publisher {
    /// Starts the task on the current runtime.
    pub(crate) fn start(snapshots: Arc<ArcSwap<Snapshot>>, reaper: Reaper, window: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(run(receiver, snapshots, reaper, window));
        Self(sender)
    }

    /// Makes `tenant` visible, in place of what was of its name, and returns the snapshot's generation when it is:
    /// whoever loads the snapshot from then on finds it.
    ///
    /// # Errors
    /// [`ControlError::Stopped`] where the runtime is shutting down.
    pub(crate) async fn publish(&self, tenant: Arc<TenantRuntime>) -> Result<u64, ControlError> {
        self.change(Change::Put(tenant)).await
    }

    /// Takes a tenant out; as [`publish`](Self::publish) otherwise.
    pub(crate) async fn remove(&self, tenant: TenantName) -> Result<u64, ControlError> {
        self.change(Change::Remove(tenant)).await
    }

    async fn change(&self, change: Change) -> Result<u64, ControlError> {
        let (visible, seen) = oneshot::channel();
        self.0.send(Wanted { change, visible }).await.map_err(|_| ControlError::Stopped)?;
        seen.await.map_err(|_| ControlError::Stopped)
    }
}

async fn run(
    mut wanted: mpsc::Receiver<Wanted>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    reaper: Reaper,
    window: Duration,
) {
    let mut open_at = Instant::now();
    while let Some(first) = wanted.recv().await {
        tokio::time::sleep_until(open_at).await;
        let mut changes = vec![first.change];
        let mut waiting = vec![first.visible];
        while changes.len() < WAITING
            && let Ok(more) = wanted.try_recv()
        {
            changes.push(more.change);
            waiting.push(more.visible);
        }
        let (next, replaced) = snapshots.load().with(changes);
        let generation = next.generation();
        let before = snapshots.swap(Arc::new(next));
        reaper.retire(Retired { snapshot: before, tenants: replaced });
        for visible in waiting {
            let _ = visible.send(generation);
        }
        open_at = Instant::now() + window;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::runtime;

    fn publisher() -> (Publisher, Arc<ArcSwap<Snapshot>>) {
        let snapshots = Arc::new(ArcSwap::from_pointee(Snapshot::new([])));
        let window = Duration::from_millis(20);
        (Publisher::start(Arc::clone(&snapshots), Reaper::start().unwrap(), window), snapshots)
    }

    fn publish_later(publisher: &Publisher, tenant: Arc<TenantRuntime>) -> tokio::task::JoinHandle<u64> {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(tenant).await.unwrap() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_after_a_quiet_time_is_swapped_in_at_once() {
        let (publisher, snapshots) = publisher();
        for revision in 1..=3 {
            let before = Instant::now();
            publisher.publish(runtime("acme", revision, &["acme.test"])).await.unwrap();
            assert_eq!(before.elapsed(), Duration::ZERO);
            assert_eq!(snapshots.load().by_host("acme.test").unwrap().revision.0, revision);
            tokio::time::advance(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_within_the_window_share_the_next_swap() {
        let (publisher, snapshots) = publisher();
        publisher.publish(runtime("first", 1, &["first.test"])).await.unwrap();
        let before = Instant::now();
        let burst: Vec<_> = (0..10)
            .map(|i| publish_later(&publisher, runtime(&format!("t{i}"), 1, &[&format!("t{i}.test")])))
            .collect();
        for change in burst {
            assert_eq!(change.await.unwrap(), 2, "all in the second swap");
        }
        assert_eq!(before.elapsed(), Duration::from_millis(20));
        assert_eq!(snapshots.load().tenants().count(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_tenants_changes_in_one_swap_the_last_counts() {
        let (publisher, snapshots) = publisher();
        publisher.publish(runtime("first", 1, &[])).await.unwrap();
        let burst: Vec<_> = (1..=3)
            .map(|revision| publish_later(&publisher, runtime("acme", revision, &["acme.test"])))
            .collect();
        for change in burst {
            change.await.unwrap();
        }
        assert_eq!(snapshots.load().by_host("acme.test").unwrap().revision.0, 3);
    }
}
