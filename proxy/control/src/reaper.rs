//! Drops what the snapshot no longer needs, on a thread of its own.
//!
//! The last holder of a retired tenant frees modules and unmaps code, which can take milliseconds. Requests in flight,
//! and workers that have not looked at the new snapshot yet, hold what they use; so the reaper holds on longer
//! than they do, and lets go when nobody else is left.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::{Snapshot, TenantRuntime};

/// Between two looks at what is still held by others: at first, and at most when nothing is let go for long.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Swaps that may wait for the reaper. It keeps up with thousands a second; there are at most fifty.
const WAITING: usize = 1024;

/// What one swap retires.
pub(crate) struct Retired {
    /// The snapshot that was replaced.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The tenants that were replaced in it.
    pub(crate) tenants: Vec<Arc<TenantRuntime>>,
}

/// Hands retired things to the thread. The thread ends, and drops what it holds, when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Reaper(SyncSender<Retired>);

impl Reaper {
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING);
        thread::Builder::new().name("reaper".into()).spawn(move || run(&receiver))?;
        Ok(Self(sender))
    }

    /// Takes over what a swap retired. Never blocks: if the reaper cannot take more, it is dropped by whoever is last.
    pub(crate) fn retire(&self, retired: Retired) {
        let _ = self.0.try_send(retired);
    }
}

enum Held {
    Snapshot(Arc<Snapshot>),
    Tenant(Arc<TenantRuntime>),
}

impl Held {
    fn by_others(&self) -> bool {
        // Nobody takes a new hold through a weak one, so that 1 stays 1.
        match self {
            Self::Snapshot(s) => Arc::strong_count(s) > 1,
            Self::Tenant(t) => Arc::strong_count(t) > 1,
        }
    }
}

fn run(receiver: &Receiver<Retired>) {
    let mut held: Vec<Held> = Vec::new();
    let mut look = LOOK.0;
    loop {
        let received = if held.is_empty() {
            receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            receiver.recv_timeout(look)
        };
        let before = held.len();
        match received {
            Ok(Retired { snapshot, tenants }) => {
                // In this order: a snapshot that goes lets go of its tenants.
                held.push(Held::Snapshot(snapshot));
                held.extend(tenants.into_iter().map(Held::Tenant));
                look = LOOK.0;
            }
            Err(RecvTimeoutError::Timeout) => look = (look * 2).min(LOOK.1),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        held.retain(Held::by_others);
        if held.len() < before {
            look = LOOK.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;

    use super::*;
    use crate::runtime::testing::{runtime, tell_when_dropped};

    /// Far longer than the reaper needs; only a failing test waits for it.
    const SOON: Duration = Duration::from_secs(20);

    fn retired(tell: Sender<String>) -> (Retired, Arc<TenantRuntime>) {
        let tenant = tell_when_dropped(runtime("acme", 1, &["acme.test"]), tell);
        let snapshot = Arc::new(Snapshot::new([Arc::clone(&tenant)]));
        (Retired { snapshot, tenants: vec![Arc::clone(&tenant)] }, tenant)
    }

    #[test]
    fn what_was_replaced_is_dropped_on_the_reapers_thread() {
        let reaper = Reaper::start().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (retired, request) = retired(tell);
        let worker = Arc::clone(&retired.snapshot);
        reaper.retire(retired);

        drop(worker); // a worker that looks at the newer snapshot
        drop(request); // a request that ends: neither is the last to let go
        assert_eq!(told.recv_timeout(SOON).unwrap(), "reaper");
    }

    #[test]
    fn what_a_request_still_holds_stays() {
        let reaper = Reaper::start().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (first, request) = retired(tell);
        reaper.retire(first);
        let (tell, other) = std::sync::mpsc::channel();
        reaper.retire(retired(tell).0);
        other.recv_timeout(SOON).unwrap(); // the reaper has looked at both by now
        assert!(told.try_recv().is_err());
        assert_eq!(request.revision.0, 1);
        drop(request);
        assert_eq!(told.recv_timeout(SOON).unwrap(), "reaper");
    }

    #[test]
    fn the_thread_ends_with_its_last_handle() {
        let (sender, receiver) = sync_channel(1);
        let thread = thread::spawn(move || run(&receiver));
        drop(Reaper(sender));
        thread.join().unwrap();
    }
}
