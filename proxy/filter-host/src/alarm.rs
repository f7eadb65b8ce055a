//! Alarms of the slow lane's threads: a call that waits for a time is woken by the thread that polled it last.

use std::{cell::RefCell, collections::BTreeMap, task::Waker, time::Instant};

#[derive(Default)]
struct Alarms {
    /// By time, and in the order in which they were set.
    set: BTreeMap<(Instant, u64), Waker>,
    count: u64,
}

thread_local! {
    /// None where the thread rings none.
    static ALARMS: RefCell<Option<Alarms>> = const { RefCell::new(None) };
}

/// From now on this thread calls [`ring`] whenever it has nothing else to do.
pub(crate) fn ring_on_this_thread() {
    ALARMS.set(Some(Alarms::default()));
}

/// Has `waker` woken at that time. Nothing where this thread rings no alarms: a call that is pending there goes to one that
/// does, and is polled again.
pub(crate) fn set(at: Instant, waker: &Waker) {
    ALARMS.with_borrow_mut(|alarms| {
        if let Some(alarms) = alarms {
            alarms.count += 1;
            alarms.set.insert((at, alarms.count), waker.clone());
        }
    });
}

/// Wakes all whose time has come. Tells when the next one's comes.
pub(crate) fn ring() -> Option<Instant> {
    let now = Instant::now();
    loop {
        let due = ALARMS.with_borrow_mut(|alarms| {
            let first = alarms.as_mut()?.set.first_entry()?;
            let (at, _) = *first.key();
            Some(if at <= now { Ok(first.remove()) } else { Err(at) })
        });
        match due? {
            Ok(waker) => waker.wake(),
            Err(at) => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::Wake,
        time::Duration,
    };

    use super::*;

    #[derive(Default)]
    struct Rung(AtomicU32);

    impl Wake for Rung {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_is_woken_when_it_is_time_and_once() {
        let (rung, now) = (Arc::new(Rung::default()), Instant::now());
        let waker = Waker::from(Arc::clone(&rung));
        set(now, &waker);
        assert_eq!((ring(), Arc::strong_count(&rung)), (None, 2), "this thread rings none");
        ring_on_this_thread();
        let later = now + Duration::from_secs(600);
        for at in [later, now, now] {
            set(at, &waker);
        }
        assert_eq!(ring(), Some(later));
        assert_eq!(ring(), Some(later));
        assert_eq!(rung.0.load(Ordering::SeqCst), 2);
    }
}
