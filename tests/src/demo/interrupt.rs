//! Ctrl-C: nothing may be left behind, neither a process nor a folder, so the story has to notice it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// How often SIGINT, SIGTERM or SIGHUP came. They no longer end the process by themselves.
#[derive(Clone, Debug)]
pub(super) struct Interrupt {
    count: Arc<AtomicUsize>,
}

/// The story was interrupted.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Interrupt {
    /// Takes the signals from now on.
    pub(super) fn install() -> Result<Self> {
        let count = Arc::new(AtomicUsize::new(0));
        let for_thread = count.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        // Registered before this returns: a signal that comes at once is not lost.
        let (mut int, mut term, mut hup) = runtime.block_on(async {
            let on = |kind| signal(kind);
            Ok::<_, std::io::Error>((
                on(SignalKind::interrupt())?,
                on(SignalKind::terminate())?,
                on(SignalKind::hangup())?,
            ))
        })?;
        // Lives as long as the process.
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = int.recv() => {}
                        _ = term.recv() => {}
                        _ = hup.recv() => {}
                    }
                    for_thread.fetch_add(1, Ordering::SeqCst);
                }
            });
        })?;
        Ok(Self { count })
    }

    /// How often one came.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Ends a part of the story where one came.
    pub(super) fn check(&self) -> Result<()> {
        if self.count() > 0 { Err(Interrupted.into()) } else { Ok(()) }
    }
}
