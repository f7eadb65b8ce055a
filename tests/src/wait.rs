//! Waiting for what comes soon.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

/// Waits until something is so; the last look at it is in the message.
///
/// # Panics
/// Where it does not come within that time.
#[track_caller]
pub fn wait<T: Debug>(within: Duration, mut look: impl FnMut() -> T, so: impl Fn(&T) -> bool) -> T {
    let until = Instant::now() + within;
    loop {
        let seen = look();
        if so(&seen) {
            return seen;
        }
        assert!(
            Instant::now() < until,
            "what was awaited did not come within {within:?}; last seen: {seen:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
