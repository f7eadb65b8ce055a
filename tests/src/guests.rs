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

/// Where a module is, which must be there.
///
/// # Errors
/// Where it isn't; the message says how to build it.
pub fn existing(name: &str) -> Result<PathBuf> {
    module(name).map(|_| path(name))
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

/// The same module, made longer by so many bytes that nothing reads, and a few for their frame.
///
/// # Panics
/// Where it would be longer than a section can be.
pub fn longer(module: &[u8], by: usize) -> Vec<u8> {
    let length = u32::try_from(by + 1).expect("a section's length has 32 bits");
    // LEB128 in its longest form, of five bytes.
    let bytes = (0..5).map(|i| (length >> (7 * i) & 0x7f) as u8 | if i < 4 { 0x80 } else { 0 });
    // A custom section (id 0): its length, its empty name, its content.
    [module, &[0], &bytes.collect::<Vec<_>>(), &[0], &vec![0; by]].concat()
}

/// The same module with a function more that is small as it is written and takes a compiler very long: a compile bomb.
///
/// # Errors
/// Where the bytes are no core module with functions.
pub fn bomb(module: &[u8]) -> Result<Vec<u8>> {
    const FUNCTIONS: u8 = 3;
    const CODE: u8 = 10;
    // No locals; a hundred thousand loops that ask for the memory's size; then `unreachable`, which fits any type.
    let mut body = vec![0];
    (0..100_000).for_each(|_| body.extend([0x03, 0x40, 0x3f, 0x00, 0x0d, 0x00, 0x0b]));
    body.extend([0x00, 0x0b]);
    let body = [leb128(body.len()), body].concat();

    let (header, mut rest) = module.split_at_checked(8).context("a module has a header")?;
    let mut bombed = header.to_vec();
    while let Some((id, after)) = rest.split_first() {
        let (length, after) = read_leb128(after).context("a section has a length")?;
        let (section, after) = after.split_at_checked(length).context("a section is whole")?;
        let section = match *id {
            // One function more, of the first type.
            FUNCTIONS => one_more(section, &[0])?,
            CODE => one_more(section, &body)?,
            _ => section.to_vec(),
        };
        bombed.push(*id);
        bombed.extend(leb128(section.len()));
        bombed.extend(section);
        rest = after;
    }
    Ok(bombed)
}

/// A section that is a list, with another item at its end.
fn one_more(section: &[u8], item: &[u8]) -> Result<Vec<u8>> {
    let (count, items) = read_leb128(section).context("a list has a count")?;
    Ok([&leb128(count + 1), items, item].concat())
}

fn leb128(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        bytes.push(if n > 0 { low | 0x80 } else { low });
        if n == 0 {
            return bytes;
        }
    }
}

fn read_leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)?;
    let n = bytes[..=end].iter().rev().fold(0, |n, byte| n << 7 | usize::from(byte & 0x7f));
    Some((n, &bytes[end + 1..]))
}
