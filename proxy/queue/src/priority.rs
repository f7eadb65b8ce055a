//! What the queue does by itself gives way to what clients wait for.

/// Of this process's threads, those that serve clients have 0.
const NICENESS: i32 = 5;

/// Lets the threads that serve clients go first on this one's processor.
pub(crate) fn give_way() {
    // Without the right to do so, the thread competes as an equal.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
}
