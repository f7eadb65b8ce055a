//! Signals: the first asks for a drain, the second for an end.

use std::process;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// The exit code of a second signal.
const EXIT_AT_ONCE: i32 = 130;

/// Waits for SIGTERM or SIGINT and names it.
pub(crate) async fn first_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be awaited")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be awaited")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// From now on a signal ends the process where it stands. What the queue accepted is on disk.
pub(crate) fn exit_at_second_signal() {
    tokio::spawn(async {
        if let Ok(name) = first_signal().await {
            eprintln!("beamline: a second signal ({name}): ending at once");
            process::exit(EXIT_AT_ONCE);
        }
    });
}
