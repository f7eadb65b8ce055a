//! Tests that load the whole machine wait for each other: within a program, between programs, between checkouts.

use std::{fs::File, path::PathBuf};

use anyhow::{Context, Result};

/// The right to load the machine, until it is dropped or its process ends.
#[derive(Debug)]
pub struct Heavy {
    _locked: File,
}

/// Waits until no other heavy test runs.
///
/// # Errors
/// Where the lock's file can't be made.
pub fn heavy() -> Result<Heavy> {
    let path = lock_file();
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(Heavy { _locked: file })
}

/// One for each user: another's file could not be opened.
fn lock_file() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    std::env::temp_dir().join(format!("beamline-heavy-{user}.lock"))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use super::*;

    #[test]
    fn only_one_is_heavy_at_a_time() {
        let (inside, seen) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _heavy = heavy().unwrap();
                    seen.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(seen.into_inner(), 1);
    }
}
