//! The Wasm modules that `make guests` builds: the stock filters and the tests' own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Where a module is: in the folder that `BEAMLINE_GUESTS` names, or else in `target/guests` of this checkout.
pub fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os("BEAMLINE_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from);
    folder.join(format!("{name}.wasm"))
}

/// A module's bytes.
///
/// # Errors
/// Where it isn't there; the message says how to build it.
pub fn module(name: &str) -> Result<Vec<u8>> {
    let path = path(name);
    fs::read(&path).with_context(|| format!("no module at {}: build it with `make guests`", path.display()))
}

/// The same module with another digest: what it holds more, nothing reads.
///
/// # Panics
/// Where `mark` is longer than 100 bytes.
pub fn variant(module: &[u8], mark: &str) -> Vec<u8> {
    assert!(mark.len() <= 100, "one byte tells the length");
    let name = mark.len() as u8;
    // A custom section (id 0): its length, its name's length, its name.
    [module, &[0, name + 1, name], mark.as_bytes()].concat()
}
