//! The epoch tick: what makes a running guest stop and look whether its slice is over. Rests while no guest runs.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

/// How often a running guest is asked whether its slice is over.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Ticks without a guest after which the ticker rests. Longer than any guest runs without [`Ticker::keep`] being called
/// again: a slice ends a few ticks after it began.
const REST_AFTER: u32 = 200;

/// The ticker's handle. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    /// A guest began a slice since the last tick.
    used: AtomicBool,
    resting: AtomicBool,
}

impl Ticker {
    /// Starts the thread, which ticks for both engines; it ends with them.
    pub(crate) fn start(components: &wasmtime::Engine, cores: &wasmtime::Engine) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (components, cores, flags) = (components.weak(), cores.weak(), Arc::clone(&shared));
        let ticking = thread::Builder::new().name("epoch".into()).spawn(move || {
            // A late tick is a late end of a guest's slice. Without the right to go first, the tick waits its turn.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -5);
            let mut idle = 0;
            while let (Some(components), Some(cores)) = (components.upgrade(), cores.upgrade()) {
                components.increment_epoch();
                cores.increment_epoch();
                drop((components, cores));
                idle = if flags.used.swap(false, Ordering::SeqCst) { 0 } else { idle + 1 };
                if idle < REST_AFTER {
                    thread::sleep(TICK);
                    continue;
                }
                idle = 0;
                flags.resting.store(true, Ordering::SeqCst);
                // Whoever came between the swap and the store saw no rest: look once more, then rest. The time limit
                // lets the thread see that its engine is gone.
                if !flags.used.load(Ordering::SeqCst) {
                    thread::park_timeout(Duration::from_secs(1));
                }
                flags.resting.store(false, Ordering::SeqCst);
            }
        })?;
        Ok(Self { shared, thread: ticking.thread().clone() })
    }

    /// A guest begins a slice. Writes only where the last tick has taken note of the one before.
    pub(crate) fn keep(&self) {
        if !self.shared.used.load(Ordering::SeqCst) {
            self.shared.used.store(true, Ordering::SeqCst);
            if self.shared.resting.load(Ordering::SeqCst) {
                self.thread.unpark();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_resting_ticker_is_woken_by_the_next_guest() {
        let engine = crate::engine::compiling_engine().unwrap();
        let ticker = Ticker::start(&engine, &engine).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ticker.shared.resting.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "it never rests");
            thread::sleep(TICK);
        }
        ticker.keep();
        while ticker.shared.used.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "it was not woken");
            thread::sleep(TICK);
        }
    }
}
