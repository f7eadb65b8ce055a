//! Signals: the first asks for a drain, the second for an end.

use std::process;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code of a second signal.
const EXIT_AT_ONCE: i32 = 130;

/// SIGTERM and SIGINT, caught from the moment that this is made: before the first socket listens, so that a signal
/// during the start drains what was accepted by then.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to catch them.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be awaited")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be awaited")?,
        })
    }

    /// Waits for the next one and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// From now on a signal ends the process where it stands. What the queue accepted is on disk.
    pub(crate) fn exit_at_the_next(mut self) {
        tokio::spawn(async move {
            let name = self.next().await;
            eprintln!("beamline: a second signal ({name}): ending at once");
            process::exit(EXIT_AT_ONCE);
        });
    }
}
